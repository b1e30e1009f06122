//! The subscription engine: who is told what, and what that costs.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sea_orm::{ConnectionTrait, TransactionSession, TransactionTrait};
use serde_json::{Value, json};
use tidewire_testkit::{eventually, on_every_target};

use crate::support::{Events, Zoo};

async fn run(db: &impl ConnectionTrait, sql: &str) {
    db.execute_unprepared(sql).await.unwrap();
}

/// A subscription to the foods that pass a filter.
fn foods(filter: &str) -> String {
    format!(
        "subscription ($after: String) {{ foodChanges(filters: {filter}, after: $after) {{
            cursor sequence upToDate resync changes {{ event operation key {{ id }} node {{ id name }} previous {{ id name }} changedFields }} }} }}"
    )
}

/// Reads until everything is told; gives the events that have changes, without what is a subscriber's own.
async fn told(events: &mut Events, until: &str) -> Vec<Value> {
    let mut told = Vec::new();
    loop {
        let mut event = events.next().await;
        assert_eq!(event["resync"], Value::Null);
        let fields = event.as_object_mut().unwrap();
        fields.remove("sequence");
        fields.remove("upToDate");
        let last = fields["changes"].to_string().contains(until);
        if fields["changes"] != json!([]) {
            told.push(event);
        }
        if last {
            return told;
        }
    }
}

/// Filters of every way in that the index has, and of none.
const FILTERS: [&str; 13] = [
    "{}",
    "{ name: { eq: \"a1\" } }",
    "{ name: { is_in: [\"a1\", \"b2\", \"c3\"] } }",
    "{ name: { starts_with: \"b\" } }",
    "{ id: { gt: 10 } }",
    "{ id: { between: [5, 15] } }",
    "{ id: { lte: 8 }, name: { contains: \"c\" } }",
    "{ or: [{ id: { eq: 7 } }, { name: { eq: \"c1\" } }] }",
    "{ not: { name: { starts_with: \"a\" } } }",
    "{ name: { ne: \"a1\" } }",
    "{ name: { contains: \"2\" } }",
    "{ id: { is_null: true } }",
    "{ or: [{ name: { starts_with: \"c\" } }, { id: { is_in: [1, 2, 3] } }] }",
];

on_every_target! {
    /// I3, I4: who waits is told by way of the index, who comes back by asking the filter of each change.
    async fn who_waits_and_who_comes_back_are_told_the_same(database: TestDatabase) {
        let zoo = Zoo::of(database, tidewire_graphql::Options::default()).await;
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let everything = |filter: &str| foods(&format!("{{ or: [{{ name: {{ eq: \"end\" }} }}, {filter}] }}"));
        // GIVEN subscribers who wait
        let mut waiting = Vec::new();
        for filter in FILTERS {
            let mut events = zoo.subscribe(&everything(filter), json!({})).await;
            let first = events.next().await["cursor"].clone();
            waiting.push((filter, events, first));
        }

        // WHEN rows come, change and go, alone and together
        let name = |rng: &mut ChaCha8Rng| format!("{}{}", ["a", "b", "c"][rng.random_range(0..3)], rng.random_range(1..4));
        for _ in 0..40 {
            let transaction = zoo.recorder.begin().await.unwrap();
            for _ in 0..rng.random_range(1..4) {
                let (new, id) = (name(&mut rng), rng.random_range(1..25));
                // No two have the same name.
                run(&transaction, &format!("DELETE FROM food WHERE name = '{new}'")).await;
                let sql = match rng.random_range(0..4) {
                    0 | 1 => format!("INSERT INTO food (name) VALUES ('{new}')"),
                    2 => format!("UPDATE food SET name = '{new}' WHERE id = {id}"),
                    _ => format!("DELETE FROM food WHERE id = {id}"),
                };
                run(&transaction, &sql).await;
            }
            transaction.commit().await.unwrap();
        }
        run(&zoo.recorder, "INSERT INTO food (name) VALUES ('end')").await;

        // THEN who comes back now is told what those were told
        let mut some = 0;
        for (filter, mut events, first) in waiting {
            let live = told(&mut events, "\"end\"").await;
            some += live.len();
            drop(events);
            let mut again = zoo.subscribe(&everything(filter), json!({ "after": first })).await;
            assert_eq!(told(&mut again, "\"end\"").await, live, "{filter}");
        }
        assert!(some > 100, "{some}");
    }
}

on_every_target! {
    /// I7
    async fn who_does_not_read_is_left_behind_and_misses_nothing(database: TestDatabase) {
        const EVENTS: u64 = 400;
        let zoo = Zoo::of(database, tidewire_graphql::Options::default()).await;
        // GIVEN two of one group who wait
        let document = foods("{ name: { starts_with: \"m\" } }");
        let (mut reads, mut sleeps) = (zoo.subscribe(&document, json!({})).await, zoo.subscribe(&document, json!({})).await);
        for events in [&mut reads, &mut sleeps] {
            events.next().await;
        }
        eventually(async || zoo.api.subscription_stats().live == 2).await;

        // WHEN more happens than is kept for one who does not read
        let check = async |events: &mut Events| {
            let mut seen = BTreeMap::new();
            let mut sequence = 1;
            while (seen.len() as u64) < EVENTS {
                let event = events.next().await;
                assert_eq!(event["sequence"], sequence);
                sequence += 1;
                for change in event["changes"].as_array().unwrap() {
                    let earlier = seen.insert(change["key"]["id"].as_u64().unwrap(), change["node"]["name"].clone());
                    assert_eq!(earlier, None);
                }
            }
            seen
        };
        for number in 0..EVENTS {
            run(&zoo.recorder, &format!("INSERT INTO food (name) VALUES ('m{number}')")).await;
        }
        let expected = check(&mut reads).await;

        // THEN they read the log from where they stand, and wait with the others again
        assert_eq!(check(&mut sleeps).await, expected);
        let stats = zoo.api.subscription_stats();
        assert!(stats.left_behind >= 1, "{stats:?}");
        run(&zoo.recorder, "INSERT INTO food (name) VALUES ('milk')").await;
        for events in [&mut reads, &mut sleeps] {
            assert_eq!(events.eventful().await["changes"][0]["node"]["name"], "milk");
        }
        eventually(async || zoo.api.subscription_stats().live == 2).await;
    }
}

on_every_target! {
    async fn a_live_query_is_read_again_only_for_what_may_change_it(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let live = "subscription { food(filters: { name: { starts_with: \"m\" } }, orderBy: { name: ASC }) { nodes { name } } }";
        let names = |event: Value| {
            let nodes = event["nodes"].as_array().unwrap().clone();
            nodes.iter().map(|node| node["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let mut events = zoo.subscribe(live, json!({})).await;
        assert_eq!(names(events.next().await), ["meat"]);
        assert_eq!(zoo.api.subscription_stats().queries, 1);
        // What passes neither before nor after costs nothing; who is told of the last of these has seen the others go by.
        let mut others = zoo.subscribe(&foods("{ name: { starts_with: \"x\" } }"), json!({})).await;
        others.next().await;
        for name in ["xa", "xb", "xc"] {
            run(&zoo.recorder, &format!("INSERT INTO food (name) VALUES ('{name}')")).await;
            others.eventful().await;
        }
        assert_eq!(zoo.api.subscription_stats().queries, 1);
        run(&zoo.recorder, "UPDATE food SET name = 'mx' WHERE name = 'xb'").await;
        assert_eq!(names(events.next().await), ["meat", "mx"]);
        run(&zoo.recorder, "DELETE FROM food WHERE name = 'mx'").await;
        assert_eq!(names(events.next().await), ["meat"]);
        assert_eq!(zoo.api.subscription_stats().queries, 3);
    }
}

on_every_target! {
    async fn a_page_is_not_read_again_for_what_comes_after_it(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let page = |beside: &str| format!(
            "subscription {{ keeper(orderBy: {{ name: ASC }}, pagination: {{ page: {{ page: 0, limit: 2 }} }}) {{ nodes {{ name }} {beside} }} }}"
        );
        let result = |names: [&str; 2], total: u64| {
            json!({ "nodes": names.map(|name| json!({ "name": name })), "paginationInfo": { "total": total } })
        };
        let names = |names: [&str; 2]| json!({ "nodes": names.map(|name| json!({ "name": name })) });
        let (mut rows, mut counted) = (zoo.subscribe(&page(""), json!({})).await, zoo.subscribe(&page("paginationInfo { total }"), json!({})).await);
        assert_eq!((rows.next().await, counted.next().await), (names(["ada", "bo"]), result(["ada", "bo"], 3)));
        let mut told = zoo.subscribe("subscription { keeperChanges { changes { operation } } }", json!({})).await;
        told.next().await;

        // After the page; who is told of it has seen it go by.
        run(&zoo.recorder, "UPDATE keeper SET name = 'eve' WHERE name = 'cy'").await;
        told.changes().await;
        assert_eq!(zoo.api.subscription_stats().queries, 2);
        // Whoever counts, reads.
        for (sql, total) in [("INSERT INTO keeper (email, name) VALUES ('x', 'dee')", 4), ("DELETE FROM keeper WHERE name = 'dee'", 3)] {
            run(&zoo.recorder, sql).await;
            told.changes().await;
            assert_eq!(counted.next().await, result(["ada", "bo"], total));
        }
        assert_eq!(zoo.api.subscription_stats().queries, 4);
        // One leaves the page, one comes into it, one in it changes, and one goes, so that what came after it is in it.
        for (sql, expected) in [
            ("UPDATE keeper SET name = 'fay' WHERE name = 'bo'", ["ada", "eve"]),
            ("UPDATE keeper SET name = 'bo' WHERE name = 'fay'", ["ada", "bo"]),
            ("UPDATE keeper SET name = 'bea' WHERE name = 'eve'", ["ada", "bea"]),
            ("UPDATE keeper SET name = 'abe' WHERE name = 'ada'", ["abe", "bea"]),
            ("DELETE FROM keeper WHERE name = 'bea'", ["abe", "bo"]),
        ] {
            run(&zoo.recorder, sql).await;
            assert_eq!(rows.next().await, names(expected));
        }
        // A page that is not full has no end.
        run(&zoo.recorder, "DELETE FROM keeper WHERE name = 'bo'").await;
        assert_eq!(rows.next().await, json!({ "nodes": [{ "name": "abe" }] }));
        run(&zoo.recorder, "INSERT INTO keeper (email, name) VALUES ('z', 'zoe')").await;
        assert_eq!(rows.next().await, names(["abe", "zoe"]));
    }
}
