//! Subscriptions: changes, live queries, resuming and starting over.

use std::{collections::BTreeSet, time::Duration};

use sea_orm::{ConnectionTrait, TransactionSession, TransactionTrait};
use serde_json::{Value, json};
use tidewire_graphql::{Options, Subscribed};
use tidewire_outbox::{Cursor, Recorder, Step};
use tidewire_testkit::{Target, eventually, on_every_target, soon, zoo};

use crate::support::{Events, Zoo, request};

async fn run(db: &impl ConnectionTrait, sql: &str) {
    db.execute_unprepared(sql).await.unwrap();
}

const FOODS: &str = "subscription ($after: String, $snapshot: Boolean, $operations: [ChangeOperation!]) {
    foodChanges(filters: { name: { starts_with: \"m\" } }, after: $after, snapshot: $snapshot, operations: $operations) {
      cursor sequence upToDate resync
      changes { event operation key { id } node { name } previous { name } changedFields } } }";

/// The first event only says where the subscriber stands.
async fn opened(events: &mut Events) -> String {
    let first = events.next().await;
    assert_eq!(
        (&first["sequence"], &first["upToDate"], &first["resync"], &first["changes"]),
        (&json!(0), &json!(true), &Value::Null, &json!([]))
    );
    first["cursor"].as_str().unwrap().to_owned()
}

on_every_target! {
    async fn changes_come_with_what_they_mean_to_the_subscriber(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let mut events = zoo.subscribe(FOODS, json!({})).await;
        opened(&mut events).await;

        run(&zoo.recorder, "INSERT INTO food (name) VALUES ('milk')").await;
        run(&zoo.recorder, "UPDATE food SET name = 'nuts' WHERE name = 'fish'").await;
        run(&zoo.recorder, "UPDATE food SET name = 'malt' WHERE name = 'milk'").await;
        let transaction = zoo.recorder.begin().await.unwrap();
        run(&transaction, "UPDATE food SET name = 'oats' WHERE name = 'malt'").await;
        run(&transaction, "UPDATE food SET name = 'mud' WHERE name = 'nuts'").await;
        transaction.commit().await.unwrap();

        let change = |event: &str, operation: &str, key: i64, node: Value, previous: Value| {
            let fields = if operation == "INSERT" { json!(["id", "name"]) } else { json!(["name"]) };
            json!({ "event": event, "operation": operation, "key": { "id": key }, "node": node, "previous": previous, "changedFields": fields })
        };
        let row = |name: &str| json!({ "name": name });
        let mut sequence = 0;
        for expected in [
            json!([change("ENTER", "INSERT", 4, row("milk"), Value::Null)]),
            json!([change("UPDATE", "UPDATE", 4, row("malt"), row("milk"))]),
            json!([
                change("LEAVE", "UPDATE", 4, Value::Null, row("malt")),
                change("ENTER", "UPDATE", 2, row("mud"), Value::Null),
            ]),
        ] {
            let mut event = events.next().await;
            while event["changes"] == json!([]) {
                sequence += 1;
                event = events.next().await;
            }
            sequence += 1;
            assert_eq!(event["changes"], expected);
            assert_eq!(event["sequence"], sequence);
        }
        let mut deletes = zoo.subscribe(FOODS, json!({ "operations": ["DELETE"] })).await;
        opened(&mut deletes).await;
        run(&zoo.recorder, "INSERT INTO food (name) VALUES ('more')").await;
        run(&zoo.recorder, "DELETE FROM food WHERE name = 'mud' OR name = 'meat'").await;
        let gone = deletes.changes().await;
        // In which order a statement takes its rows is the database's own business.
        let gone: BTreeSet<_> = gone
            .as_array()
            .unwrap()
            .iter()
            .map(|change| (change["event"].as_str().unwrap(), change["previous"]["name"].as_str().unwrap()))
            .collect();
        assert_eq!(gone, BTreeSet::from([("LEAVE", "meat"), ("LEAVE", "mud")]));
    }
}

on_every_target! {
    async fn a_subscriber_resumes_after_its_cursor(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let mut events = zoo.subscribe(FOODS, json!({})).await;
        let cursor = opened(&mut events).await;
        drop(events);
        run(&zoo.recorder, "INSERT INTO food (name) VALUES ('milk')").await;
        run(&zoo.recorder, "INSERT INTO food (name) VALUES ('malt')").await;

        let mut events = zoo.subscribe(FOODS, json!({ "after": cursor })).await;
        // The tail may not have come to the writes yet; then it is said that there is nothing new so far.
        let (first, second) = (events.eventful().await, events.eventful().await);
        let name = |event: &Value| event["changes"][0]["node"]["name"].clone();
        assert_eq!((name(&first), name(&second)), (json!("milk"), json!("malt")));
        let mut again = zoo.subscribe(FOODS, json!({ "after": first["cursor"] })).await;
        assert_eq!(name(&again.eventful().await), "malt");
    }
}

on_every_target! {
    async fn a_snapshot_comes_first_where_it_is_asked_for(database: TestDatabase) {
        let mut options = Options::default();
        options.snapshot_rows = 2;
        let zoo = Zoo::of(database, options).await;
        zoo.populate().await;
        run(&zoo.recorder, "INSERT INTO food (name) VALUES ('milk'), ('malt')").await;
        let mut events = zoo.subscribe(FOODS, json!({ "snapshot": true })).await;

        let first = events.next().await;
        assert_eq!(
            (&first["cursor"], &first["upToDate"], first["changes"].as_array().unwrap().len()),
            (&Value::Null, &json!(false), 2)
        );
        assert_eq!(
            first["changes"][0],
            json!({ "event": "ENTER", "operation": null, "key": { "id": 1 }, "node": { "name": "meat" }, "previous": null, "changedFields": ["id", "name"] })
        );
        let second = events.next().await;
        assert_eq!(second["changes"].as_array().unwrap().len(), 1);
        let cursor = second["cursor"].as_str().unwrap().to_owned();
        assert_eq!(events.next().await["upToDate"], true);
        run(&zoo.recorder, "DELETE FROM food WHERE name = 'milk'").await;
        assert_eq!(events.changes().await[0]["previous"]["name"], "milk");

        // With a cursor that can be continued, no snapshot is needed.
        let mut events = zoo.subscribe(FOODS, json!({ "snapshot": true, "after": cursor })).await;
        assert_eq!(events.next().await["changes"][0]["event"], "LEAVE");
    }
}

on_every_target! {
    async fn a_cursor_that_cannot_be_continued_is_answered_by_a_resync(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        for after in ["nonsense", "", "AAAA", &"A".repeat(10_000), "🦀"] {
            let mut events = zoo.subscribe(FOODS, json!({ "after": after })).await;
            let first = events.next().await;
            assert_eq!((&first["resync"], &first["sequence"]), (&json!("MALFORMED"), &json!(0)));
            // It goes on from now.
            assert_eq!(events.next().await["upToDate"], true);
            run(&zoo.recorder, "UPDATE food SET name = 'm' || name WHERE id = 1").await;
            assert_eq!(events.changes().await[0]["event"], "UPDATE");
        }
        let log = zoo.recorder.log();
        while log.prune(None, Some(0), 100).await.unwrap().more {}
        let mut events = zoo.subscribe(FOODS, json!({ "after": Cursor::start().to_string(), "snapshot": true })).await;
        assert_eq!(events.next().await["resync"], "TRIMMED");
        let rows = events.next().await;
        assert_eq!((&rows["resync"], rows["changes"].as_array().unwrap().len()), (&Value::Null, 1));
    }
}

on_every_target! {
    async fn nodes_come_with_their_relations(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let query = "subscription { animalChanges { changes { node {
            name keeper { name } food(orderBy: { name: ASC }) { nodes { name } aggregate { count } } } previous { name keeperId } } } }";
        let mut events = zoo.subscribe(query, json!({})).await;
        events.next().await;
        run(&zoo.recorder, "UPDATE animal SET keeper_id = 3 WHERE name = 'leo'").await;
        assert_eq!(
            events.changes().await,
            json!([{
                "node": { "name": "leo", "keeper": { "name": "cy" }, "food": { "nodes": [{ "name": "fish" }, { "name": "meat" }], "aggregate": { "count": 2 } } },
                "previous": { "name": "leo", "keeperId": 1 },
            }])
        );
    }
}

on_every_target! {
    async fn changes_of_all_entities_come_as_json(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let query = "subscription ($entities: [String!]) { changes(entities: $entities) { changes { entity operation key row previous actor at __typename } } }";
        let mut all = zoo.subscribe(query, json!({})).await;
        let mut some = zoo.subscribe(query, json!({ "entities": ["food", "diet"] })).await;
        all.next().await;
        some.next().await;
        run(&zoo.recorder, "UPDATE keeper SET name = 'Ada' WHERE id = 1").await;
        run(&zoo.recorder, "DELETE FROM food WHERE name = 'leaves'").await;
        let first = all.changes().await;
        assert_eq!(first[0]["row"], json!({ "id": 1, "email": "ada@zoo.example", "name": "Ada", "bossId": null }));
        assert_eq!((&first[0]["previous"]["name"], &first[0]["actor"]), (&json!("ada"), &json!("service:app")));
        assert!(first[0]["at"].as_str().unwrap().ends_with("UTC"), "{first}");
        let second = some.changes().await;
        let mut told: Vec<_> = second
            .as_array()
            .unwrap()
            .iter()
            .map(|change| (&change["entity"], &change["operation"], &change["key"]))
            .collect();
        // SQLite cascades first, PostgreSQL afterwards.
        told.sort_by_key(|(entity, ..)| entity.to_string());
        assert_eq!(
            json!(told),
            json!([["diet", "DELETE", { "animalId": "03030303-0303-0303-0303-030303030303", "foodId": 3 }], ["food", "DELETE", { "id": 3 }]])
        );
        let Subscribed::Single(refused) = zoo.api.subscribe(request(query, json!({ "entities": ["nobody"] }))).await else {
            panic!("there is no such entity");
        };
        assert!(refused.json.contains("BAD_USER_INPUT"), "{}", refused.json);
    }
}

on_every_target! {
    async fn a_live_query_gives_its_result_whenever_that_changes(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let query = "subscription { keeper(filters: { bossId: { eq: 1 } }, orderBy: { name: DESC }, pagination: { page: { page: 0, limit: 2 } }) {
            nodes { name animal { nodes { name } } } paginationInfo { total } } }";
        let mut events = zoo.subscribe(query, json!({})).await;
        let names = |result: &Value| {
            let names = result["nodes"].as_array().unwrap().iter().map(|node| {
                let animals: Vec<_> =
                    node["animal"]["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect();
                format!("{}:{}", node["name"].as_str().unwrap(), animals.join("+"))
            });
            format!("{} of {}", names.collect::<Vec<_>>().join(" "), result["paginationInfo"]["total"])
        };
        assert_eq!(names(&events.next().await), "cy: bo:sid of 2");
        // A row comes into the window, a related row changes, a row that matters to nobody changes, and one leaves.
        run(&zoo.recorder, "INSERT INTO keeper (email, name, boss_id) VALUES ('x', 'dee', 1)").await;
        assert_eq!(names(&events.next().await), "dee: cy: of 3");
        run(&zoo.recorder, "UPDATE animal SET keeper_id = 3 WHERE name = 'leo'").await;
        assert_eq!(names(&events.next().await), "dee: cy:leo of 3");
        run(&zoo.recorder, "UPDATE keeper SET email = 'y' WHERE name = 'ada'").await;
        run(&zoo.recorder, "UPDATE food SET name = 'x' WHERE name = 'meat'").await;
        run(&zoo.recorder, "DELETE FROM keeper WHERE name = 'dee'").await;
        assert_eq!(names(&events.next().await), "cy:leo bo:sid of 2");
    }
}

on_every_target! {
    async fn like_subscriptions_share_their_work_and_end_when_nobody_listens(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let live = "subscription { food { nodes { name } } }";
        let mut streams = Vec::new();
        for _ in 0..5 {
            streams.push(zoo.subscribe(live, json!({})).await);
            streams.push(zoo.subscribe(FOODS, json!({ "after": Cursor::start().to_string() })).await);
        }
        streams.push(zoo.subscribe(FOODS, json!({ "operations": ["INSERT"] })).await);
        let stats = zoo.api.subscription_stats();
        assert_eq!((stats.open, stats.groups), (11, 3));
        drop(streams);
        eventually(async || zoo.api.subscription_stats().open == 0).await;
        assert_eq!(zoo.api.subscription_stats().groups, 0);
    }
}

on_every_target! {
    /// A subscription that nothing concerns is told from time to time how far the log has come, so that it need not go far back.
    async fn a_quiet_subscription_is_told_the_newest_cursor(database: TestDatabase) {
        let mut options = Options::default();
        options.cursor_interval = Duration::from_millis(100);
        let zoo = Zoo::of(database, options).await;
        zoo.populate().await;
        let mut events = zoo.subscribe(FOODS, json!({})).await;
        let first = opened(&mut events).await;
        run(&zoo.recorder, "UPDATE keeper SET name = 'Ada' WHERE id = 1").await;
        let second = events.next().await;
        assert_eq!((&second["changes"], &second["upToDate"], &second["sequence"]), (&json!([]), &json!(true), &json!(1)));
        assert_ne!(second["cursor"], first);
        let told: Cursor = second["cursor"].as_str().unwrap().parse().unwrap();
        assert!(zoo.recorder.log().position().await.unwrap().covers(&told));
        assert!(told.covers(&first.parse().unwrap()));
    }
}

on_every_target! {
    async fn other_operations_are_answered_once(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        for (query, executed) in
            [("{ food { nodes { name } } }", true), ("{ fod { nodes { name } } }", false), ("subscription { nope }", false)]
        {
            let Subscribed::Single(response) = zoo.api.subscribe(request(query, json!({}))).await else {
                panic!("{query}")
            };
            assert_eq!(response.executed, executed, "{}", response.json);
        }
        let refused = zoo.error("subscription { food { nodes { name } } }", json!({})).await;
        assert_eq!(refused["extensions"]["code"], "OPERATION_NOT_ALLOWED");
    }
}

/// Two clients of a group may have had different transactions before the same one: each is told where it stands itself, and nothing is lost between.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_is_told_where_they_stand_and_not_where_another_does() {
    for target in [Target::PostgresHooks, Target::MariadbHooks] {
        let Some(database) = target.database().await else { continue };
        let zoo = Zoo::of(database, Options::default()).await;
        let insert = |name: &str| format!("INSERT INTO food (name) VALUES ('{name}')");
        let start = zoo.recorder.log().position().await.unwrap();

        // GIVEN a transaction whose number is the lowest and which ends last
        let late = zoo.recorder.begin().await.unwrap();
        run(&late, &insert("m late")).await;
        run(&zoo.recorder, &insert("m first")).await;
        run(&zoo.recorder, &insert("m second")).await;
        // and a client that another node has told of one of those before
        let other = Recorder::connect(zoo.database.url(), zoo::registry()).await.unwrap();
        let mut follower = other.log().follow_all(start.clone()).await.unwrap();
        let Step::Transactions { transactions, .. } = soon(follower.next()).await.unwrap() else {
            panic!("{target:?}")
        };
        let between = transactions[0].cursor.to_string();
        late.commit().await.unwrap();

        // WHEN a client that has had nothing is told all of it here, and then this one
        let name = |event: &Value| event["changes"][0]["node"]["name"].as_str().unwrap().to_owned();
        let mut first = zoo.subscribe(FOODS, json!({ "after": start.to_string() })).await;
        let mut names = Vec::new();
        for _ in 0..3 {
            names.push(name(&first.eventful().await));
        }
        assert_eq!(names, ["m late", "m first", "m second"], "{target:?}");
        let mut second = zoo.subscribe(FOODS, json!({ "after": between })).await;
        let event = second.eventful().await;
        assert_eq!(name(&event), "m second", "{target:?}");

        // THEN this one can leave and come back there
        let mut third = zoo.subscribe(FOODS, json!({ "after": event["cursor"] })).await;
        assert_eq!(name(&third.eventful().await), "m late", "{target:?}");
        assert_eq!(name(&second.eventful().await), "m late", "{target:?}");
        other.close().await;
    }
}
