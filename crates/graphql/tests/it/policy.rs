//! Who may see and do what.

use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, PaginatorTrait, sea_query::ExprTrait};
use serde_json::{Value, json};
use tidewire_graphql::{Api, Policy, Request, Rule, Viewer, claim};
use tidewire_testkit::{
    TestDatabase, eventually, on_every_target,
    zoo::{animal, diet, food, keeper, visit},
};

use crate::support::{Events, Zoo, id, request};

/// A keeper sees their own animals, all keepers' names, foods but fish, and diets of more than 50 grams.
fn policies() -> Vec<Policy> {
    use animal::Column::{Born, Id, KeeperId, Name, Species, Tame, Weight};
    let own = || KeeperId.eq(claim("sub"));
    vec![
        Policy::on_everything("boss").anything(),
        Policy::of::<animal::Entity>("keeper")
            .read(own())
            .insert(own())
            .update(own())
            .delete(own().and(Tame.eq(true)))
            .readable([Id, Name, Species, KeeperId, Tame, Weight])
            .writable([Id, Name, Species, KeeperId, Tame, Born])
            .filterable([Name, KeeperId, Tame]),
        Policy::of::<keeper::Entity>("keeper").read(Rule::all()).readable([keeper::Column::Name]),
        Policy::of::<food::Entity>("keeper").read(food::Column::Name.ne("fish")),
        Policy::of::<diet::Entity>("keeper").read(diet::Column::Grams.gt(50)),
    ]
}

fn keeper(sub: impl Into<Value>) -> Viewer {
    Viewer::with_roles(["keeper"]).claim("sub", sub)
}

async fn guarded(database: TestDatabase) -> Zoo {
    Zoo::guarded(database, policies()).await
}

/// What a viewer is told, which must be the same by a plan and by the resolvers.
async fn told(zoo: &Zoo, viewer: &Viewer, query: &str) -> Value {
    let as_viewer = || Request { viewer: viewer.clone().into(), ..request(query, json!({})) };
    let planned: Value = serde_json::from_str(&zoo.api.execute(as_viewer()).await.json).unwrap();
    let resolved: Value = serde_json::from_str(&zoo.api.execute_resolved(as_viewer()).await.json).unwrap();
    assert_eq!(planned, resolved, "{query}");
    planned
}

async fn seen(zoo: &Zoo, viewer: &Viewer, query: &str) -> Value {
    let mut response = told(zoo, viewer, query).await;
    assert!(response.get("errors").is_none(), "{query}: {response}");
    response["data"].take()
}

/// The message of the refusal that a viewer gets.
fn refusal(response: &Value) -> &str {
    assert_eq!(response["errors"][0]["extensions"]["code"], "FORBIDDEN", "{response}");
    response["errors"][0]["message"].as_str().unwrap()
}

on_every_target! {
    async fn a_query_finds_the_rows_that_may_be_read(database: TestDatabase) {
        let zoo = guarded(database).await;
        let ada = keeper("1");
        // Lists, with what is computed over them.
        assert_eq!(
            seen(&zoo, &ada, "{ animal(orderBy: { name: ASC }, pagination: { page: { limit: 1, page: 0 } }) {
                nodes { name weight } pageInfo { hasNextPage } paginationInfo { total pages } aggregate { count sum { weight } } } }").await["animal"],
            json!({ "nodes": [{ "name": "leo", "weight": 190.5 }], "pageInfo": { "hasNextPage": true },
                    "paginationInfo": { "total": 2, "pages": 2 }, "aggregate": { "count": 2, "sum": { "weight": 220.5 } } })
        );
        let page = async |cursor: Value| {
            let query = format!("{{ animal(pagination: {{ cursor: {{ limit: 1, cursor: {cursor} }} }}) {{ nodes {{ name }} pageInfo {{ endCursor hasNextPage hasPreviousPage }} }} }}");
            seen(&zoo, &ada, &query).await["animal"].take()
        };
        let first = page(Value::Null).await;
        assert_eq!((&first["nodes"], &first["pageInfo"]["hasNextPage"]), (&json!([{ "name": "leo" }]), &json!(true)));
        let second = page(first["pageInfo"]["endCursor"].clone()).await;
        assert_eq!((&second["nodes"], &second["pageInfo"]["hasNextPage"], &second["pageInfo"]["hasPreviousPage"]), (&json!([{ "name": "otto" }]), &json!(false), &json!(true)));
        let by_key = format!("{{ mine: animalByPk(id: \"{}\") {{ name }} other: animalByPk(id: \"{}\") {{ name }} }}", id(1), id(3));
        assert_eq!(seen(&zoo, &ada, &by_key).await, json!({ "mine": { "name": "leo" }, "other": null }));
        // A filter finds nothing more, whatever it says.
        let any = "{ animal(filters: { or: [{ name: { eq: \"sid\" } }, { not: { name: { eq: \"sid\" } } }] }) { nodes { name } } }";
        assert_eq!(seen(&zoo, &ada, any).await["animal"]["nodes"].as_array().unwrap().len(), 2);
        // Relations, one, many and through a table in the middle: of leo's fish both the food and the diet may not be read.
        assert_eq!(
            seen(&zoo, &ada, "{ animal(filters: { name: { eq: \"leo\" } }) { nodes { keeper { name }
                food { nodes { name } paginationInfo { total } } diet { nodes { grams food { name } } aggregate { count } } } } }").await["animal"]["nodes"][0],
            json!({ "keeper": { "name": "ada" }, "food": { "nodes": [{ "name": "meat" }], "paginationInfo": { "total": 1 } },
                    "diet": { "nodes": [{ "grams": 5000, "food": { "name": "meat" } }], "aggregate": { "count": 1 } } })
        );
        let otto = seen(&zoo, &ada, "{ animal(filters: { name: { eq: \"otto\" } }) { nodes { diet { nodes { food { name } } } food { nodes { name } } } } }").await;
        assert_eq!(otto["animal"]["nodes"][0], json!({ "diet": { "nodes": [{ "food": null }] }, "food": { "nodes": [] } }));
        // A related row that may not be read does not count.
        let having = |name: &str| format!("{{ animal(having: {{ food: {{ name: {{ eq: \"{name}\" }} }} }}) {{ nodes {{ name }} }} }}");
        assert_eq!(seen(&zoo, &ada, &having("meat")).await, json!({ "animal": { "nodes": [{ "name": "leo" }] } }));
        assert_eq!(seen(&zoo, &ada, &having("fish")).await, json!({ "animal": { "nodes": [] } }));
        let keepers = "{ keeper(having: { animal: { tame: { eq: true } } }) { nodes { name } } }";
        assert_eq!(told(&zoo, &ada, keepers).await["errors"], Value::Null);
        assert_eq!(seen(&zoo, &ada, keepers).await, json!({ "keeper": { "nodes": [{ "name": "ada" }] } }));
        // Who may do everything sees everything.
        let boss = Viewer::with_roles(["boss"]);
        assert_eq!(seen(&zoo, &boss, "{ animal { nodes { price } aggregate { count } } }").await["animal"]["aggregate"]["count"], 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_columns_and_entities_are_refused_wherever_they_are_asked_for() {
    let zoo = guarded(TestDatabase::sqlite()).await;
    let ada = keeper(1);
    for (query, what) in [
        ("{ animal { nodes { price } } }", "Animal.price may not be read"),
        ("{ animal { edges { node { price } } } }", "Animal.price may not be read"),
        ("{ keeper { nodes { animal { nodes { notes } } } } }", "Animal.notes may not be read"),
        ("{ animal { nodes { keeper { email } } } }", "Keeper.email may not be read"),
        ("{ animal { aggregate { max { price } } } }", "Animal.price may not be read"),
        ("{ animal { aggregate { sum { price } } } }", "Animal.price may not be read"),
        ("{ animal(filters: { price: { gt: \"1\" } }) { nodes { name } } }", "Animal.price may not be filtered"),
        (
            "{ animal(filters: { not: { or: [{ weight: { gt: 1 } }] } }) { nodes { name } } }",
            "Animal.weight may not be filtered",
        ),
        ("{ animal(orderBy: { price: ASC }) { nodes { name } } }", "Animal.price may not be filtered or ordered by"),
        (
            "{ keeper(having: { animal: { price: { is_null: true } } }) { nodes { name } } }",
            "Animal.price may not be filtered",
        ),
        // The boss's key is in a hidden column, so that the way to the boss is hidden too.
        ("{ keeper { nodes { boss { name } } } }", "Keeper.bossId may not be read"),
        ("{ keeper(having: { boss: { name: { eq: \"ada\" } } }) { nodes { name } } }", "Keeper.bossId may not be read"),
        ("{ animal { nodes { visit { nodes { number } } } } }", "rows of Visit may not be read"),
        ("{ animal(having: { visit: { number: { eq: 1 } } }) { nodes { name } } }", "rows of Visit may not be read"),
        ("{ visit { aggregate { count } } }", "rows of Visit may not be read"),
        ("{ chipByPk(serial: 1) { serial } }", "rows of Chip may not be read"),
    ] {
        let response = told(&zoo, &ada, query).await;
        assert!(refusal(&response).starts_with(what), "{query}: {response}");
    }
    for (query, what) in [
        ("subscription { animalChanges { changes { node { price } } } }", "Animal.price may not be read"),
        ("subscription { animalChanges { changes { previous { price } } } }", "Animal.price may not be read"),
        ("subscription { animalChanges { changes { node { keeper { email } } } } }", "Keeper.email may not be read"),
        (
            "subscription { animalChanges(filters: { weight: { gt: 1 } }) { cursor } }",
            "Animal.weight may not be filtered",
        ),
        ("subscription { visitChanges { cursor } }", "rows of Visit may not be read"),
        ("subscription { changes(entities: [\"animal\", \"visit\"]) { cursor } }", "rows of Visit may not be read"),
        ("subscription { animal { nodes { price } } }", "Animal.price may not be read"),
        ("subscription { visit { nodes { number } } }", "rows of Visit may not be read"),
        ("subscription { animalLive { upserts { node { price } } } }", "Animal.price may not be read"),
        ("subscription { animalLive(orderBy: { price: ASC }) { reset } }", "Animal.price may not be filtered"),
        ("subscription { animalLive { aggregate { max { price } } } }", "Animal.price may not be read"),
        ("subscription { visitLive { removals { number } } }", "rows of Visit may not be read"),
    ] {
        let Err(error) = zoo.subscribe_as(&ada, query, json!({})).await else { panic!("{query} was accepted") };
        assert_eq!(error["extensions"]["code"], "FORBIDDEN", "{query}");
        assert!(error["message"].as_str().unwrap().starts_with(what), "{query}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_grant_allows_is_denied() {
    let names = "{ animal(orderBy: { name: ASC }) { nodes { name } } }";
    let of = |response: &Value| {
        let nodes = response["data"]["animal"]["nodes"].as_array().unwrap().iter();
        nodes.map(|node| node["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    let zoo = guarded(TestDatabase::sqlite()).await;
    // Who has no role that policies speak of, has no rights.
    for viewer in [Viewer::default(), Viewer::with_roles(["stranger"])] {
        assert_eq!(
            refusal(&told(&zoo, &viewer, names).await),
            "rows of Animal may not be read with the roles of this request"
        );
    }
    // A claim that is missing, or not of the column's type, grants nothing.
    for viewer in [
        Viewer::with_roles(["keeper"]),
        keeper(Value::Null),
        keeper("ada"),
        keeper(true),
        keeper(json!([1])),
        keeper(1.5),
    ] {
        refusal(&told(&zoo, &viewer, names).await);
    }
    assert_eq!(of(&told(&zoo, &keeper(2), names).await), "sid");

    // Of several roles, the rows of any and the columns of all.
    let zoo = Zoo::guarded(
        TestDatabase::sqlite(),
        [
            Policy::of::<animal::Entity>("a")
                .read(animal::Column::Name.is_in([claim("names")]))
                .readable([animal::Column::Name, animal::Column::Tame]),
            Policy::of::<animal::Entity>("b")
                .read(animal::Column::KeeperId.eq(claim("zoo.sub")))
                .readable([animal::Column::Name, animal::Column::Weight]),
            Policy::of::<animal::Entity>("anonymous")
                .read(animal::Column::Tame.eq(true))
                .readable([animal::Column::Name]),
        ],
    )
    .await;
    let both = Viewer::with_roles(["a", "b"]).claim("zoo", json!({ "sub": 2 })).claim("names", json!(["leo", "stray"]));
    assert_eq!(of(&told(&zoo, &both, names).await), "leo sid stray");
    refusal(&told(&zoo, &both, "{ animal { nodes { tame } } }").await);
    refusal(&told(&zoo, &both, "{ animal { nodes { weight } } }").await);
    // A grant that does not apply takes no columns away.
    let one = Viewer::with_roles(["a", "b"]).claim("names", "leo");
    assert_eq!(
        seen(&zoo, &one, "{ animal { nodes { name tame } } }").await,
        json!({ "animal": { "nodes": [{ "name": "leo", "tame": false }] } })
    );
    let literal = Viewer::with_roles(["b"]).claim("zoo.sub", 1);
    assert_eq!(of(&told(&zoo, &literal, names).await), "leo otto");
    let none = Viewer::with_roles(["a"]).claim("names", json!([]));
    assert_eq!(of(&told(&zoo, &none, names).await), "");
    assert_eq!(of(&told(&zoo, &Viewer::default(), names).await), "otto sid");
}

on_every_target! {
    async fn a_write_leaves_only_rows_that_the_policy_allows(database: TestDatabase) {
        let zoo = guarded(database).await;
        let ada = keeper(1);
        let run = async |mutation: &str| zoo.run_as(&ada, &format!("mutation {{ {mutation} }}"), json!({})).await;
        let animal = |n: u8, keeper: &str| format!("{{ id: \"{}\", name: \"new{n}\", species: lion, keeperId: {keeper} }}", id(n));
        let stored = async || animal::Entity::find().count(&zoo.recorder).await.unwrap();

        // Insert: the row as stored.
        assert_eq!(run(&format!("animalCreateOne(data: {}) {{ name tame }}", animal(5, "1"))).await["data"]["animalCreateOne"], json!({ "name": "new5", "tame": false }));
        let elsewhere = run(&format!("animalCreateBatch(data: [{}, {}]) {{ name }}", animal(6, "1"), animal(7, "2"))).await;
        assert_eq!(refusal(&elsewhere), "a row of Animal as it would be stored may not be inserted with the roles of this request");
        assert_eq!(stored().await, 5);
        let price = run(&format!("animalCreateOne(data: {{ id: \"{}\", name: \"x\", species: lion, keeperId: 1, price: \"1\" }}) {{ id }}", id(6))).await;
        assert_eq!(refusal(&price), "Animal.price may not be set with the roles of this request");
        assert_eq!(refusal(&run("foodCreateOne(data: { name: \"figs\" }) { id }").await), "rows of Food may not be inserted with the roles of this request");

        // Update: other rows are as if they were not there, and none leaves.
        assert_eq!(run("animalUpdate(data: { tame: true }) { name }").await["data"]["animalUpdate"].as_array().unwrap().len(), 3);
        assert_eq!(run("animalUpdate(data: { tame: true }, filter: { name: { eq: \"sid\" } }) { name }").await["data"], json!({ "animalUpdate": [] }));
        assert_eq!(refusal(&run("animalUpdate(data: { keeperId: 2 }, filter: { name: { eq: \"leo\" } }) { name }").await), "a row of Animal as it would be stored may not be updated with the roles of this request");
        assert_eq!(refusal(&run("animalUpdate(data: { weight: 1 }) { name }").await), "Animal.weight may not be set with the roles of this request");
        assert!(refusal(&run("animalUpdate(data: { tame: true }, filter: { price: { gt: \"1\" } }) { name }").await).starts_with("Animal.price may not be filtered"));
        // What may be set and not be seen does not come back, and what asks for it is undone.
        assert!(refusal(&run("animalUpdate(data: { born: \"2020-01-01\" }, filter: { name: { eq: \"leo\" } }) { born }").await).starts_with("Animal.born may not be read"));
        assert_ne!(animal::Entity::find_by_id(id(1)).one(&zoo.recorder).await.unwrap().unwrap().born, "2020-01-01".parse().ok());

        // `ifMatch` sees what the viewer sees.
        let stale = run("animalUpdate(data: { tame: true }, filter: { name: { eq: \"leo\" } }, ifMatch: { name: \"lea\" }) { name }").await;
        assert_eq!(stale["errors"][0]["extensions"]["code"], "CONFLICT");
        let current = stale["errors"][0]["extensions"]["current"][0].as_object().unwrap();
        assert_eq!(current.keys().collect::<Vec<_>>(), ["id", "keeperId", "name", "species", "tame", "weight"]);
        let (other, nobody) = (
            run("animalUpdate(data: { tame: true }, filter: { name: { eq: \"sid\" } }, ifMatch: { name: \"sid\" }) { name }").await,
            run("animalUpdate(data: { tame: true }, filter: { name: { eq: \"nobody\" } }, ifMatch: { name: \"nobody\" }) { name }").await,
        );
        assert_eq!(other, nobody);
        refusal(&run("animalUpdate(data: { tame: true }, ifMatch: { price: \"1500.25\" }) { name }").await);

        // Upsert: of a row that is there, what an update may do; else what an insert may.
        assert_eq!(run(&format!("animalUpsert(data: {}) {{ name }}", animal(1, "1"))).await["data"]["animalUpsert"]["name"], "new1");
        assert_eq!(run(&format!("animalUpsert(data: {}, onConflict: {{ update: [] }}) {{ name }}", animal(2, "1"))).await["data"]["animalUpsert"]["name"], "otto");
        assert_eq!(run(&format!("animalUpsert(data: {}) {{ name }}", animal(8, "1"))).await["data"]["animalUpsert"]["name"], "new8");
        refusal(&run(&format!("animalUpsert(data: {}) {{ name }}", animal(9, "2"))).await);
        for on_conflict in ["", ", onConflict: { update: [] }"] {
            let other = run(&format!("animalUpsert(data: {}{on_conflict}) {{ name }}", animal(3, "1"))).await;
            assert_eq!(other["errors"][0]["extensions"]["code"], "ALREADY_EXISTS");
        }

        // Delete: only tame ones of one's own.
        zoo.recorder.execute_unprepared("UPDATE animal SET tame = FALSE WHERE name = 'otto'").await.unwrap();
        assert_eq!(run("animalDelete(filter: { name: { is_in: [\"otto\", \"sid\", \"new1\"] } })").await["data"], json!({ "animalDelete": 1 }));
        refusal(&run("keeperDelete").await);
    }
}

/// What a write with an id gave is given again to those alone who have the same rights.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_tells_nothing_that_may_not_be_read() {
    let zoo = guarded(TestDatabase::sqlite()).await;
    let update = "mutation { animalUpdate(data: { tame: true }, mutationId: \"m\") { name } }";
    let first = zoo.run_as(&keeper(1), update, json!({})).await;
    assert_eq!(
        zoo.run_as(&keeper("1"), update, json!({})).await["errors"][0]["extensions"]["code"],
        "MUTATION_ID_REUSED"
    );
    assert_eq!(zoo.run_as(&keeper(1), update, json!({})).await, first);
    assert_eq!(
        zoo.run_as(&keeper(2), update, json!({})).await["errors"][0]["extensions"]["code"],
        "MUTATION_ID_REUSED"
    );
}

async fn opened(events: &mut Events) {
    assert_eq!(events.next().await["upToDate"], true);
}

on_every_target! {
    async fn streams_tell_what_the_policy_lets_through(database: TestDatabase) {
        let zoo = guarded(database).await;
        let changes = "subscription ($snapshot: Boolean) { animalChanges(snapshot: $snapshot, filters: { name: { ne: \"otto\" } }) { upToDate
            changes { event operation key { id } node { name food { nodes { name } } } previous { name } changedFields actor } } }";
        let all = "subscription { changes { upToDate changes { entity operation key row previous changedFields } } }";
        let ada = keeper(1);
        let mut mine = zoo.subscribe_as(&ada, changes, json!({ "snapshot": true })).await.unwrap();
        let mut same = zoo.subscribe_as(&ada, changes, json!({})).await.unwrap();
        let mut others = zoo.subscribe_as(&keeper(2), changes, json!({})).await.unwrap();
        let mut json = zoo.subscribe_as(&ada, all, json!({})).await.unwrap();
        // Like viewers share a group, and unlike ones do not.
        assert_eq!(zoo.api.subscription_stats().groups, 3);
        let snapshot = mine.changes().await;
        assert_eq!(snapshot, json!([{ "event": "ENTER", "operation": null, "key": { "id": id(1) }, "previous": null, "actor": null,
            "node": { "name": "leo", "food": { "nodes": [{ "name": "meat" }] } }, "changedFields": ["id", "name", "species", "keeperId", "weight", "tame"] }]));
        for events in [&mut mine, &mut same, &mut others, &mut json] {
            opened(events).await;
        }

        // WHEN rows change that the viewer does not see, in columns that it does not see, and out of its sight and back
        for sql in [
            "UPDATE animal SET name = 'stay' WHERE name = 'stray'",
            "UPDATE animal SET price = 1, weight = 5 WHERE name = 'sid'",
            "UPDATE animal SET price = 1 WHERE name = 'leo'",
            "UPDATE animal SET keeper_id = 2, price = 2, name = 'lea' WHERE name = 'leo'",
            "UPDATE animal SET name = 'leah', price = 3 WHERE name = 'lea'",
            "UPDATE animal SET keeper_id = 1, price = 4 WHERE name = 'leah'",
            "UPDATE animal SET tame = TRUE, price = 5 WHERE name = 'leah'",
            "DELETE FROM animal WHERE name = 'leah'",
        ] {
            zoo.recorder.execute_unprepared(sql).await.unwrap();
        }

        // THEN it is told of its own
        let mut told = Vec::new();
        for _ in 0..4 {
            let mut change = mine.changes().await[0].take();
            assert_eq!(change["key"]["id"], json!(id(1)));
            change["node"] = change["node"]["name"].take();
            change["previous"] = change["previous"]["name"].take();
            told.push(json!([change["event"], change["operation"], change["node"], change["previous"], change["changedFields"], Value::is_null(&change["actor"])]));
        }
        let fields = json!(["id", "name", "species", "keeperId", "weight", "tame"]);
        assert_eq!(json!(told), json!([
            ["LEAVE", "UPDATE", null, null, [], true],
            ["ENTER", "UPDATE", "leah", null, fields, false],
            ["UPDATE", "UPDATE", "leah", "leah", ["tame"], false],
            ["LEAVE", "DELETE", null, "leah", [], false],
        ]));
        assert_eq!(same.changes().await[0]["event"], "LEAVE");
        // To the other keeper it is the other way round.
        let mut kinds = Vec::new();
        for _ in 0..4 {
            let change = others.changes().await[0].take();
            kinds.push(json!([change["event"], change["node"]["name"], change["previous"]["name"]]));
        }
        assert_eq!(json!(kinds), json!([["UPDATE", "sid", "sid"], ["ENTER", "lea", null], ["UPDATE", "leah", "lea"], ["LEAVE", null, null]]));
        // As JSON, without the columns that are hidden.
        let row = |name: &str, tame: bool| json!({ "id": id(1), "name": name, "species": "lion", "keeperId": 1, "weight": 190.5, "tame": tame });
        for expected in [
            json!({ "operation": "UPDATE", "row": null, "previous": null, "changedFields": [] }),
            json!({ "operation": "UPDATE", "row": row("leah", false), "previous": null, "changedFields": fields }),
            json!({ "operation": "UPDATE", "row": row("leah", true), "previous": row("leah", false), "changedFields": ["tame"] }),
        ] {
            let mut change = json.changes().await[0].take();
            assert_eq!((&change["entity"], &change["key"]), (&json!("animal"), &json!({ "id": id(1) })));
            change.as_object_mut().unwrap().retain(|key, _| key != "entity" && key != "key");
            assert_eq!(change, expected);
        }
        // The diet that goes with the animal may be read, and its visits may not.
        let gone = json.changes().await;
        let mut gone: Vec<_> = gone.as_array().unwrap().iter().map(|change| change["entity"].as_str().unwrap()).collect();
        gone.sort_unstable();
        assert_eq!(gone, ["animal", "diet"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_that_is_named_twice_is_told_of_once() {
    let zoo = guarded(TestDatabase::sqlite()).await;
    let twice = "subscription { changes(entities: [\"animal\", \"animal\"]) { upToDate changes { operation } } }";
    let mut events = zoo.subscribe_as(&keeper(1), twice, json!({})).await.unwrap();
    opened(&mut events).await;
    zoo.recorder.execute_unprepared("UPDATE animal SET tame = TRUE WHERE name = 'leo'").await.unwrap();
    assert_eq!(events.changes().await, json!([{ "operation": "UPDATE" }]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_query_shows_what_may_be_read() {
    let zoo = guarded(TestDatabase::sqlite()).await;
    let query = "subscription { animal(orderBy: { name: ASC }) { nodes { name } aggregate { count } } }";
    let mut ada = zoo.subscribe_as(&keeper(1), query, json!({})).await.unwrap();
    let mut bo = zoo.subscribe_as(&keeper(2), query, json!({})).await.unwrap();
    let names = |result: Value| {
        let names: Vec<_> =
            result["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(result["aggregate"]["count"], names.len());
        names.join(" ")
    };
    assert_eq!(names(ada.next().await), "leo otto");
    assert_eq!(names(bo.next().await), "sid");
    zoo.recorder.execute_unprepared("UPDATE animal SET keeper_id = 2 WHERE name = 'leo'").await.unwrap();
    assert_eq!(names(ada.next().await), "otto");
    assert_eq!(names(bo.next().await), "leo sid");
    drop((ada, bo));
    eventually(async || zoo.api.subscription_stats().groups == 0).await;
}

/// A policy is written as a table too, in the form of the API's filters.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_can_be_written_as_a_table() {
    let policy: Policy = serde_json::from_value(json!({
        "entity": "animal", "role": "keeper", "filterable": ["name"], "readable": ["name", "keeper_id"],
        "read": { "or": [{ "keeperId": { "eq": "$sub" } }, { "name": { "is_in": ["$$s", "$name"] } }] },
    }))
    .unwrap();
    let zoo = Zoo::guarded(TestDatabase::sqlite(), [policy]).await;
    zoo.recorder.execute_unprepared("UPDATE animal SET name = '$s' WHERE name = 'sid'").await.unwrap();
    // What a claim holds is a value, whatever it looks like.
    for (name, expected) in [("stray", json!(["$s", "leo", "otto", "stray"])), ("$sub", json!(["$s", "leo", "otto"]))] {
        let viewer = keeper("1").claim("name", name);
        let names = seen(&zoo, &viewer, "{ animal(orderBy: { name: ASC }) { nodes { name } } }").await;
        let names: Vec<_> = names["animal"]["nodes"].as_array().unwrap().iter().map(|node| &node["name"]).collect();
        assert_eq!(json!(names), expected);
    }
}

#[tokio::test]
async fn a_policy_about_what_is_not_there_is_refused_at_the_start() {
    let zoo = Zoo::new().await;
    let refused = |policy: Policy| {
        Api::builder(zoo.recorder.clone()).policies([policy]).finish().expect_err("it is refused").to_string()
    };
    let written = |rule: Value| {
        refused(serde_json::from_value(json!({ "entity": "animal", "role": "keeper", "read": rule })).unwrap())
    };
    let table = |table: Value| refused(serde_json::from_value(table).unwrap());
    for (problem, expected) in [
        (table(json!({ "entity": "unicorn", "role": "keeper" })), "about \"unicorn\", which is no registered entity"),
        (
            table(json!({ "entity": "animal", "role": "keeper", "readable": ["horn"] })),
            "readable names \"horn\", which is no column",
        ),
        (
            table(json!({ "entity": "animal", "role": "keeper", "readable": ["name"], "filterable": ["weight"] })),
            "\"weight\" is filterable and not readable",
        ),
        (written(json!({ "horn": { "eq": 1 } })), "on \"animal\": read: Animal has no column horn"),
        (written(json!({ "name": { "near": "x" } })), "name has no operator near"),
        (written(json!({ "tame": { "eq": "yes" } })), "Animal.tame takes true or false"),
        (
            written(json!({ "name": { "like": "$sub" } })),
            "Animal.name takes no claim where texts are matched by their parts",
        ),
        (
            written(json!({ "keeper": { "name": { "eq": "$sub" } } })),
            "keeper is a relation of Animal, and only columns can be compared",
        ),
        (written(json!(true)), "a filter must be an object"),
        (
            refused(Policy::of::<animal::Entity>("keeper").read(visit::Column::Number.eq(1))),
            "read: a filter on animal uses a column of another table",
        ),
    ] {
        assert!(problem.contains(expected), "{problem}");
    }
    assert!(serde_json::from_value::<Policy>(json!({ "entity": "animal", "role": "keeper", "raed": {} })).is_err());
}
