//! Live queries that come as patches.

use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use sea_orm::ConnectionTrait;
use serde_json::{Value, json};
use tidewire_testkit::{eventually, on_every_target};

use crate::support::{Events, LiveCopy, Zoo};

async fn run(zoo: &Zoo, sql: &str) {
    zoo.recorder.execute_unprepared(sql).await.unwrap();
}

/// The keepers that ada leads, the last by name first.
const LED: &str = "subscription { keeperLive(filters: { bossId: { eq: 1 } }, orderBy: { name: DESC }, pagination: { page: { page: 0, limit: 2 } }) {
    sequence reset removals { id } upserts { index key { id } node { name animal { nodes { name } } } } paginationInfo { total } } }";

/// A patch of [`LED`]: the removed keys, and of each upsert its index, key, name and animals.
fn patch(sequence: u64, removals: &[i32], upserts: &[(usize, i32, &str, &[&str])], total: u64) -> Value {
    let keys: Vec<_> = removals.iter().map(|id| json!({ "id": id })).collect();
    let upserts = upserts.iter().map(|(index, id, name, animals)| {
        let animals: Vec<_> = animals.iter().map(|name| json!({ "name": name })).collect();
        json!({ "index": index, "key": { "id": id }, "node": { "name": name, "animal": { "nodes": animals } } })
    });
    json!({
        "sequence": sequence, "reset": sequence == 0, "removals": keys, "upserts": upserts.collect::<Vec<_>>(),
        "paginationInfo": { "total": total },
    })
}

on_every_target! {
    async fn a_live_query_comes_as_its_rows_and_then_as_patches(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let mut events = zoo.subscribe(LED, json!({})).await;
        assert_eq!(events.next().await, patch(0, &[], &[(0, 3, "cy", &[]), (1, 2, "bo", &["sid"])], 2));
        // One comes into the window and pushes another out.
        run(&zoo, "INSERT INTO keeper (email, name, boss_id) VALUES ('x', 'dee', 1)").await;
        assert_eq!(events.next().await, patch(1, &[2], &[(0, 4, "dee", &[])], 3));
        // A row of a relation.
        run(&zoo, "UPDATE animal SET keeper_id = 3 WHERE name = 'leo'").await;
        assert_eq!(events.next().await, patch(2, &[], &[(1, 3, "cy", &["leo"])], 3));
        // One that moves takes no other with it.
        run(&zoo, "UPDATE keeper SET name = 'eve' WHERE id = 3").await;
        assert_eq!(events.next().await, patch(3, &[], &[(0, 3, "eve", &["leo"])], 3));
        // Beside the rows only.
        run(&zoo, "INSERT INTO keeper (email, name, boss_id) VALUES ('y', 'al', 1)").await;
        assert_eq!(events.next().await, patch(4, &[], &[], 4));
        // What is not seen is nothing; what comes next proves it.
        run(&zoo, "UPDATE keeper SET email = 'z' WHERE id = 4").await;
        run(&zoo, "DELETE FROM keeper WHERE id = 4").await;
        assert_eq!(events.next().await, patch(5, &[4], &[(1, 2, "bo", &["sid"])], 3));
        // Who comes later begins with what there is.
        let mut late = zoo.subscribe(LED, json!({})).await;
        assert_eq!(zoo.api.subscription_stats().groups, 1);
        assert_eq!(late.next().await, patch(0, &[], &[(0, 3, "eve", &["leo"]), (1, 2, "bo", &["sid"])], 3));
        run(&zoo, "DELETE FROM keeper WHERE id = 3").await;
        assert_eq!(events.next().await, patch(6, &[3], &[(1, 5, "al", &[])], 2));
        assert_eq!(late.next().await, patch(1, &[3], &[(1, 5, "al", &[])], 2));
        drop((events, late));
        eventually(async || zoo.api.subscription_stats().groups == 0).await;
    }
}

on_every_target! {
    /// I7: however much happened while one did not read, one patch tells of it; and what was undone meanwhile is not told.
    async fn who_does_not_read_gets_one_patch_to_the_newest_state(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let (mut reads, mut sleeps) = (zoo.subscribe(LED, json!({})).await, zoo.subscribe(LED, json!({})).await);
        assert_eq!(reads.next().await, sleeps.next().await);
        for number in 1..20 {
            run(&zoo, &format!("UPDATE keeper SET name = 'cy{number}' WHERE id = 3")).await;
            let name = format!("cy{number}");
            assert_eq!(reads.next().await, patch(number, &[], &[(0, 3, &name, &[])], 2));
        }
        assert_eq!(sleeps.at_hand(), Some(patch(1, &[], &[(0, 3, "cy19", &[])], 2)));
        assert_eq!(sleeps.at_hand(), None);
        run(&zoo, "DELETE FROM keeper WHERE id = 2").await;
        assert_eq!(reads.next().await, patch(20, &[2], &[], 1));
        run(&zoo, "INSERT INTO keeper (id, email, name, boss_id) VALUES (2, 'bo', 'bo', 1)").await;
        run(&zoo, "UPDATE animal SET keeper_id = 2 WHERE name = 'sid'").await;
        let mut copy = reads.next().await;
        while copy["upserts"][0]["node"]["animal"]["nodes"] != json!([{ "name": "sid" }]) {
            copy = reads.next().await;
        }
        assert_eq!(sleeps.at_hand(), None);
        run(&zoo, "UPDATE keeper SET name = 'cy' WHERE id = 3").await;
        assert_eq!(sleeps.next().await, patch(2, &[], &[(0, 3, "cy", &[])], 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_has_what_was_selected_of_it() {
    let zoo = Zoo::populated().await;
    let mut events = zoo
        .subscribe(
            "subscription { all: dietLive(orderBy: { grams: DESC }, pagination: { offset: { offset: 0, limit: 1 } }) {
                __typename upserts { __typename at: index key { __typename animal: animalId foodId } node { __typename grams } and: node { food { name } } }
                ids: removals { foodId } pageInfo { hasNextPage } aggregate { count sum { grams } } } }",
            json!({}),
        )
        .await;
    let row = |grams: i32, animal: u8, food: i64, name: &str| {
        json!([{
            "__typename": "DietUpsert", "at": 0, "key": { "__typename": "DietKey", "animal": crate::support::id(animal), "foodId": food },
            "node": { "__typename": "Diet", "grams": grams }, "and": { "food": { "name": name } },
        }])
    };
    let patch = |upserts: Value, ids: Value, sum: i32, count: u8| {
        json!({
            "__typename": "DietPatch", "upserts": upserts, "ids": ids, "pageInfo": { "hasNextPage": true },
            "aggregate": { "count": count, "sum": { "grams": sum } },
        })
    };
    assert_eq!(events.next().await, patch(row(5_000, 1, 1, "meat"), json!([]), 6_210, 4));
    run(&zoo, "UPDATE diet SET grams = 1 WHERE grams = 5000").await;
    assert_eq!(events.next().await, patch(row(900, 2, 2, "fish"), json!([{ "foodId": 1 }]), 1_211, 4));
    run(&zoo, "UPDATE food SET name = 'cod' WHERE name = 'fish'").await;
    assert_eq!(events.next().await, patch(row(900, 2, 2, "cod"), json!([]), 1_211, 4));
}

/// A live query of some keepers, as a query and as a subscription to its patches.
struct Random {
    query: String,
    patches: String,
}

impl Random {
    /// A page of rows of which nothing but their own columns is read.
    fn page(random: &mut ChaCha8Rng) -> Self {
        let mut one = |of: &[&'static str]| *of.choose(random).unwrap();
        let filter = one(&["{}", "{ name: { ne: \"a1\" } }", "{ id: { gt: 2 } }"]);
        let order = one(&["{}", "{ name: ASC }", "{ name: DESC }", "{ bossId: DESC, name: ASC }"]);
        let page = one(&[
            "{ page: { page: 0, limit: 3 } }",
            "{ page: { page: 1, limit: 2 } }",
            "{ offset: { offset: 1, limit: 4 } }",
            "{ cursor: { limit: 2 } }",
        ]);
        let beside = one(&["pageInfo { hasNextPage }", "aggregate { count }", "paginationInfo { total }"]);
        Self::of(filter, order, page, "id name", beside)
    }

    fn new(random: &mut ChaCha8Rng) -> Self {
        let mut one = |of: &[&'static str]| *of.choose(random).unwrap();
        let filter = one(&[
            "{}",
            "{ bossId: { eq: 1 } }",
            "{ name: { starts_with: \"b\" } }",
            "{ id: { gt: 6 } }",
            "{ or: [{ bossId: { is_null: true } }, { name: { eq: \"c1\" } }] }",
            "{ not: { name: { contains: \"2\" } } }",
        ]);
        let order = one(&["{}", "{ name: ASC }", "{ name: DESC }", "{ bossId: ASC, name: DESC }"]);
        let page = one(&[
            "null",
            "{ page: { page: 0, limit: 3 } }",
            "{ offset: { offset: 1, limit: 4 } }",
            "{ cursor: { limit: 2 } }",
        ]);
        let node = one(&[
            "id name",
            "id",
            "name boss { name }",
            "name animal(orderBy: { name: DESC }, pagination: { page: { page: 0, limit: 1 } }) { nodes { name } pageInfo { hasNextPage } }",
            "id name animal { nodes { name keeper { id } } aggregate { count } }",
        ]);
        let beside = one(&[
            "pageInfo { startCursor hasNextPage }",
            "paginationInfo { total }",
            "aggregate { count max { id } }",
        ]);
        Self::of(filter, order, page, node, beside)
    }

    fn of(filter: &str, order: &str, page: &str, node: &str, beside: &str) -> Self {
        let arguments = format!("filters: {filter}, orderBy: {order}, pagination: {page}");
        Self {
            query: format!("{{ keeper({arguments}) {{ nodes {{ {node} }} {beside} }} }}"),
            patches: format!(
                "subscription {{ keeperLive({arguments}) {{ sequence reset removals {{ id }} upserts {{ index key {{ id }} node {{ {node} }} }} {beside} }} }}"
            ),
        }
    }
}

/// One who keeps a copy of a live query by its patches.
struct Client {
    patches: Events,
    copy: LiveCopy,
    /// What stands beside the rows.
    beside: Value,
}

impl Client {
    async fn new(zoo: &Zoo, query: &Random) -> Self {
        let mut client = Self {
            patches: zoo.subscribe(&query.patches, json!({})).await,
            copy: LiveCopy::default(),
            beside: Value::Null,
        };
        let first = client.patches.next().await;
        client.apply(first);
        client
    }

    fn apply(&mut self, mut patch: Value) {
        let before = (self.copy.rows.clone(), self.beside.clone());
        self.copy.apply(&patch);
        let text = patch.to_string();
        for own in ["sequence", "reset", "removals", "upserts"] {
            patch.as_object_mut().unwrap().remove(own);
        }
        self.beside = patch;
        assert!((&self.copy.rows, &self.beside) != (&before.0, &before.1), "nothing changed: {text}");
    }

    fn result(&self) -> Value {
        let mut result = self.beside.clone();
        if let Some(fields) = result.as_object_mut() {
            fields.insert("nodes".into(), self.copy.nodes().into());
        }
        result
    }

    /// Goes on until the copy is this.
    async fn reaches(&mut self, expected: &Value) {
        while self.result() != *expected {
            let patch = self.patches.next().await;
            self.apply(patch);
        }
    }
}

/// Writes something to keepers or animals.
async fn write(zoo: &Zoo, random: &mut ChaCha8Rng, number: usize) {
    let name = format!("{}{}", ["a", "b", "c"].choose(random).unwrap(), random.random_range(1..4));
    let id = random.random_range(1..14);
    let boss = ["NULL", "1", "2"].choose(random).unwrap();
    let animal = ["leo", "otto", "sid", "stray"].choose(random).unwrap();
    let sql = match random.random_range(0..10) {
        0..3 => format!("INSERT INTO keeper (email, name, boss_id) SELECT '{number}', '{name}', MIN(id) FROM keeper"),
        3 | 4 => format!("UPDATE keeper SET name = '{name}' WHERE id = {id}"),
        5 => format!("UPDATE keeper SET boss_id = NULL WHERE id = {id} OR boss_id = {boss}"),
        6 => format!("UPDATE keeper SET boss_id = 1 WHERE id BETWEEN {id} AND {id} + 2 AND id > 1"),
        // The first two are there to be led by.
        7 => format!("DELETE FROM keeper WHERE id = {id} AND id > 2"),
        8 => format!("UPDATE animal SET keeper_id = 1 WHERE name = '{animal}'"),
        _ => format!("UPDATE animal SET keeper_id = {boss} WHERE name = '{animal}'"),
    };
    run(zoo, &sql).await;
}

on_every_target! {
    /// I5, I7: whatever is written while whatever is watched, who applies the patches has what the query gives, however rarely they look.
    async fn patches_lead_to_what_the_query_gives(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let mut random = ChaCha8Rng::seed_from_u64(11);
        let queries: Vec<_> = (0..16).map(|_| Random::new(&mut random)).collect();
        let mut clients = Vec::new();
        let mut number = 0;
        for _ in 0..4 {
            for query in &queries {
                clients.push((query, Client::new(&zoo, query).await));
            }
            for _ in 0..15 {
                number += 1;
                write(&zoo, &mut random, number).await;
                for (_, client) in &mut clients {
                    if random.random_ratio(1, 8)
                        && let Some(patch) = client.patches.at_hand()
                    {
                        client.apply(patch);
                    }
                }
            }
            for (query, client) in &mut clients {
                let expected = zoo.data(&query.query).await["keeper"].take();
                client.reaches(&expected).await;
            }
        }
        let patches = zoo.api.subscription_stats().events - clients.len() as u64;
        assert!(patches > 100, "{patches}");
    }
}

on_every_target! {
    /// Whatever is not read again for a change is what the query gives after it, too.
    async fn a_page_is_what_the_query_gives_after_every_write(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let mut clients = Vec::new();
        for _ in 0..12 {
            let query = Random::page(&mut random);
            let client = Client::new(&zoo, &query).await;
            clients.push((query, client));
        }
        let mut number = 0;
        for _ in 0..60 {
            for _ in 0..*[1, 1, 4].choose(&mut random).unwrap() {
                number += 1;
                write(&zoo, &mut random, number).await;
            }
            for (query, client) in &mut clients {
                let expected = zoo.data(&query.query).await["keeper"].take();
                client.reaches(&expected).await;
            }
        }
        let stats = zoo.api.subscription_stats();
        assert!(stats.queries < number as u64 * stats.groups / 2, "{number} writes, {stats:?}");
    }
}
