//! Why a subscriber gets a change, or does not: what an operator is told is what is so.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use sea_orm::{ConnectionTrait, EntityTrait};
use serde_json::{Value, json};
use tidewire_graphql::{Api, Options, Policy, Rule, Viewer, claim};
use tidewire_outbox::Cursor;
use tidewire_testkit::{TestDatabase, zoo::animal};

use crate::{
    leaks::{self, Grant, Known},
    support::{Zoo, id, request},
};

/// What the API says of a viewer's subscription.
async fn explain(zoo: &Zoo, viewer: &Viewer, query: &str, variables: Value, after: &str) -> Value {
    let mut request = request(query, variables);
    request.viewer = viewer.clone().into();
    serde_json::to_value(zoo.api.explain(request, after, 1_000).await.unwrap()).unwrap()
}

/// Where one stands who has seen everything.
async fn now(zoo: &Zoo) -> String {
    zoo.recorder.log().position().await.unwrap().to_string()
}

/// The changes of an explanation, with the cursors of their transactions.
fn changes(explanation: &Value) -> Vec<(&Value, &Value)> {
    let transactions = explanation["transactions"].as_array().unwrap().iter();
    transactions
        .flat_map(|transaction| {
            transaction["changes"].as_array().unwrap().iter().map(|change| (&transaction["cursor"], change))
        })
        .collect()
}

/// The only change of an explanation.
fn only(explanation: &Value) -> &Value {
    let changes = changes(explanation);
    assert_eq!(changes.len(), 1, "{explanation}");
    changes[0].1
}

/// What a subscriber gets that comes back with a cursor: cursor, event and key of each change, or why it is refused.
async fn received(zoo: &Zoo, viewer: &Viewer, query: &str, variables: &Value) -> Result<Vec<Value>, Value> {
    let mut events = zoo.subscribe_as(viewer, query, variables.clone()).await?;
    let mut received = Vec::new();
    loop {
        let event = events.next().await;
        let changes = event["changes"].as_array().unwrap().iter();
        received.extend(changes.map(|change| json!([event["cursor"], change["event"], change["key"]])));
        if event["upToDate"] == true {
            return Ok(received);
        }
    }
}

/// A filter that a client may write, and operations.
fn arguments(random: &mut ChaCha8Rng) -> Value {
    let filters = loop {
        let filters = leaks::Rule::random(random, 0).json();
        // In a client's filter a dollar is a dollar, and no number.
        if !filters.to_string().contains('$') {
            break filters;
        }
    };
    let operations = [json!(null), json!(null), json!(["INSERT", "DELETE"]), json!(["UPDATE"])];
    json!({ "filters": filters, "operations": operations.choose(random).unwrap() })
}

const CHANGES: &str = "subscription ($filters: AnimalFilterInput, $operations: [ChangeOperation!], $after: String) {
    animalChanges(filters: $filters, operations: $operations, after: $after) { cursor upToDate changes { event key { id } } } }";

/// The same for those who ask for rows as they are now.
const LIVE: &str = "subscription ($filters: AnimalFilterInput) { animal(filters: $filters) { nodes { id } } }";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_explained_is_what_subscribers_get() {
    agree(TestDatabase::sqlite(), 0..16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_explained_is_what_subscribers_get_on_postgres() {
    let Some(database) = TestDatabase::postgres().await else { return };
    agree(database, 0..4).await;
}

async fn agree(database: TestDatabase, seeds: std::ops::Range<u64>) {
    let mut zoo = Zoo::populated_in(database).await;
    let mut outcomes = BTreeMap::<String, usize>::new();
    for seed in seeds {
        // GIVEN policies, or none; viewers; filters; and writes
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        animal::Entity::delete_many().exec(&zoo.recorder).await.unwrap();
        let grants: Vec<_> = (0..seed % 5).map(|_| Grant::random(&mut random)).collect();
        let policies = grants.iter().map(Grant::policy);
        zoo.api = Api::builder(zoo.recorder.clone()).policies(policies).finish().unwrap();
        let after = now(&zoo).await;
        let mut rows = BTreeMap::new();
        for _ in 0..40 {
            leaks::write(&zoo, &mut rows, &mut random).await;
            if random.random_ratio(1, 8) {
                zoo.recorder.execute_unprepared("UPDATE food SET name = name || '!' WHERE id = 1").await.unwrap();
            }
        }
        for _ in 0..8 {
            let Known { viewer, .. } = Known::random(&mut random, &grants);
            let mut variables = arguments(&mut random);
            variables["after"] = json!(after);

            // WHEN one is asked for, and explained
            let explained = explain(&zoo, &viewer, CHANGES, variables.clone(), &after).await;
            let received = match received(&zoo, &viewer, CHANGES, &variables).await {
                Ok(received) => received,
                // THEN both are refused alike
                Err(refused) => {
                    let code = refused["extensions"]["code"].as_str().unwrap();
                    let refusal = format!("{code}: {}", refused["message"].as_str().unwrap());
                    assert_eq!(explained["refusal"], refusal);
                    *outcomes.entry(code.into()).or_default() += 1;
                    continue;
                }
            };
            // or what is said to be delivered is, and nothing else
            assert_eq!(explained["upToDate"], true);
            let mut delivered = Vec::new();
            for (cursor, change) in changes(&explained) {
                *outcomes.entry(change["outcome"].as_str().unwrap().into()).or_default() += 1;
                fits(change);
                if change["outcome"] == "DELIVERED" {
                    delivered.push(json!([cursor, change["event"], change["key"]]));
                }
            }
            assert_eq!(delivered, received, "{variables}");
            // and a live query is read again for changes of rows that its result had, or has
            let live = explain(&zoo, &viewer, LIVE, variables, &after).await;
            for (_, change) in changes(&live) {
                let (before, after) = (&change["before"], &change["after"]);
                let passes = |image: &Value| image["filter"] == true && image["policy"] == true;
                assert_eq!(change["outcome"] == "READ_AGAIN", passes(before) || passes(after), "{change}");
            }
        }
    }
    for outcome in ["DELIVERED", "OTHER_ENTITY", "FILTER", "POLICY", "OPERATION", "HIDDEN_FIELDS", "FORBIDDEN"] {
        assert!(outcomes.contains_key(outcome), "none was {outcome}: {outcomes:?}");
    }
}

/// The parts of an explanation say the same as the whole.
fn fits(change: &Value) {
    if change["outcome"] == "OTHER_ENTITY" {
        return assert_eq!([&change["index"], &change["before"], &change["after"]], [&Value::Null; 3]);
    }
    let passed = |when: &str| change[when]["filter"] == true && change[when]["policy"] == true;
    for when in ["before", "after"] {
        let rules = change[when]["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
        let any = rules.iter().any(|rule| rule["passes"] == true);
        assert!(rules.is_empty() || change[when]["policy"] == any, "the policy is one of its rules: {change}");
        assert!(!passed(when) || change["index"][when] == true, "what passes is found: {change}");
    }
    let event = match (passed("before"), passed("after")) {
        (false, false) => Value::Null,
        (false, true) => json!("ENTER"),
        (true, true) => json!("UPDATE"),
        (true, false) => json!("LEAVE"),
    };
    let is_withheld = change["outcome"] == "OPERATION" || change["outcome"] == "HIDDEN_FIELDS";
    if is_withheld {
        assert!(change["event"].is_null() && !event.is_null(), "{change}");
    } else {
        assert_eq!(change["event"], event, "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_reason_is_named() {
    use animal::Column::{Id, KeeperId, Name, Tame};
    let policies = [
        Policy::of::<animal::Entity>("keeper").read(KeeperId.eq_claim("sub")).readable([Id, Name, KeeperId, Tame]),
        Policy::on_everything("admin").anything(),
    ];
    let zoo = Zoo::guarded(TestDatabase::sqlite(), policies).await;
    let ada = Viewer::with_roles(["keeper"]).signed_in_as("1");
    let tame = "subscription { animalChanges(filters: { tame: { eq: true } }) { cursor } }";
    let all = "subscription { changes { cursor } }";

    for (sql, viewer, query, outcome, event, words) in [
        (
            "UPDATE animal SET tame = TRUE WHERE name = 'leo'",
            &ada,
            tame,
            "DELIVERED",
            json!("ENTER"),
            "delivered as ENTER: the row passes, and did not before",
        ),
        (
            "UPDATE animal SET name = 'leon' WHERE name = 'leo'",
            &ada,
            tame,
            "DELIVERED",
            json!("UPDATE"),
            "the row passes before and after",
        ),
        (
            "UPDATE animal SET weight = 1 WHERE name = 'leon'",
            &ada,
            tame,
            "HIDDEN_FIELDS",
            json!(null),
            "only fields have changed",
        ),
        (
            "UPDATE animal SET keeper_id = 2 WHERE name = 'leon'",
            &ada,
            tame,
            "DELIVERED",
            json!("LEAVE"),
            "is hidden from the viewer now: only its key is told",
        ),
        (
            "UPDATE animal SET name = 'leo' WHERE name = 'leon'",
            &ada,
            tame,
            "POLICY",
            json!(null),
            "the policy hides the row",
        ),
        (
            "UPDATE animal SET tame = FALSE WHERE name = 'otto'",
            &ada,
            tame,
            "DELIVERED",
            json!("LEAVE"),
            "and does so no longer",
        ),
        (
            "UPDATE animal SET name = 'o' WHERE name = 'otto'",
            &ada,
            tame,
            "FILTER",
            json!(null),
            "neither before nor after",
        ),
        (
            "UPDATE food SET name = 'm' WHERE id = 1",
            &ada,
            tame,
            "OTHER_ENTITY",
            json!(null),
            "nothing to do with this entity",
        ),
        (
            "UPDATE food SET name = 'meat' WHERE id = 1",
            &ada,
            all,
            "POLICY",
            json!(null),
            "no role lets the viewer read this entity",
        ),
        (
            "UPDATE animal SET name = 'otto' WHERE name = 'o'",
            &ada,
            "subscription { animalChanges(operations: [DELETE]) { cursor } }",
            "OPERATION",
            json!(null),
            "the operation UPDATE",
        ),
    ] {
        let after = now(&zoo).await;
        zoo.recorder.execute_unprepared(sql).await.unwrap();
        let explained = explain(&zoo, viewer, query, json!({}), &after).await;
        let change = only(&explained);
        assert_eq!((&change["outcome"], &change["event"]), (&json!(outcome), &event), "{sql}: {change}");
        assert!(change["reason"].as_str().unwrap().contains(words), "{sql}: {change}");
    }

    // The parts of one.
    let after = now(&zoo).await;
    zoo.recorder.execute_unprepared("UPDATE animal SET tame = FALSE WHERE name = 'sid'").await.unwrap();
    let ada_or_any = "subscription ($names: [String!]) { animalChanges(filters: { name: { is_in: $names }, weight: { gt: 3 } }) { cursor } }";
    let explained = explain(&zoo, &ada, ada_or_any, json!({ "names": ["sid", "leo"] }), &after).await;
    assert!(explained["refusal"].as_str().unwrap().starts_with("FORBIDDEN: Animal.weight"), "{explained}");
    let query = "subscription ($names: [String!]) { animalChanges(filters: { name: { is_in: $names }, or: [{ tame: { eq: true } }, { keeperId: { is_null: true } }] }) { cursor } }";
    let explained = explain(&zoo, &ada, query, json!({ "names": ["sid", "leo"] }), &after).await;
    assert_eq!(explained["filter"], r#"name in ["sid", "leo"] and (tame = true or keeperId is null)"#);
    let change = only(&explained);
    assert_eq!(change["key"], json!({ "id": id(3) }));
    assert_eq!(change["index"], json!({ "by": "KEYS", "keys": ["keeperId = 1"], "before": false, "after": false }));
    assert_eq!(change["hiddenFields"], json!(["species", "weight", "born", "price", "notes", "seenAt"]));
    assert_eq!(
        change["before"],
        json!({ "filter": true, "policy": false, "deciding": [r#"name in ["sid", "leo"] is true"#, "tame = true is true"],
            "rules": [{ "role": "keeper", "rule": "keeperId = 1", "passes": false, "deciding": ["keeperId = 1 is false"] }] })
    );
    assert_eq!(change["after"]["deciding"], json!(["tame = true is false", "keeperId is null is false"]));
}

/// Conditions as rules of a policy.
trait Claimed {
    fn eq_claim(self, name: &str) -> Rule;
}

impl Claimed for animal::Column {
    fn eq_claim(self, name: &str) -> Rule {
        sea_orm::ColumnTrait::eq(&self, claim(name)).into()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_is_shown_as_it_is() {
    let zoo = Zoo::populated().await;
    let after = now(&zoo).await;
    zoo.recorder.execute_unprepared("UPDATE animal SET weight = 31 WHERE name = 'otto'").await.unwrap();
    for (filters, by, keys, before, after_too) in [
        ("{}", "EACH", json!([]), true, true),
        ("{ name: { eq: \"otto\" }, weight: { gt: 3 } }", "KEYS", json!(["name = \"otto\""]), true, true),
        ("{ weight: { gte: 31, lt: 50 } }", "KEYS", json!(["weight from 31 to 50"]), false, true),
        ("{ weight: { lt: 30.5 } }", "KEYS", json!(["weight up to 30.5"]), true, false),
        ("{ name: { like: \"OT%t_\" } }", "KEYS", json!(["name like \"OT%\""]), true, true),
        ("{ name: { like: \"%tt%\" } }", "EACH", json!([]), true, true),
        ("{ not: { tame: { eq: false } } }", "EACH", json!([]), true, true),
        ("{ keeperId: { is_in: [1, 2] } }", "KEYS", json!(["keeperId = 1", "keeperId = 2"]), true, true),
        (
            "{ or: [{ keeperId: { eq: 3 } }, { name: { is_null: true } }] }",
            "KEYS",
            json!(["keeperId = 3", "name is null"]),
            false,
            false,
        ),
        ("{ keeperId: { is_in: [] } }", "KEYS", json!([]), false, false),
    ] {
        let query = format!("subscription {{ animalChanges(filters: {filters}) {{ cursor }} }}");
        let explained = explain(&zoo, &Viewer::default(), &query, json!({}), &after).await;
        let index = &only(&explained)["index"];
        let expected = json!({ "by": by, "keys": keys, "before": before, "after": after_too });
        assert_eq!(*index, expected, "{filters}");
    }
    let all = explain(&zoo, &Viewer::default(), "subscription { changes { cursor } }", json!({}), &after).await;
    assert_eq!(only(&all)["index"]["by"], "ENTITY");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_query_is_read_again_or_not() {
    let zoo = Zoo::populated().await;
    for (sql, query, outcome, words) in [
        (
            "UPDATE animal SET weight = 31 WHERE name = 'otto'",
            "{ animal(filters: { tame: { eq: true } }) { nodes { id } } }",
            "READ_AGAIN",
            "because the row passes",
        ),
        (
            "UPDATE animal SET weight = 32 WHERE name = 'leo'",
            "{ animal(filters: { tame: { eq: true } }) { nodes { id } } }",
            "FILTER",
            "neither before nor after",
        ),
        (
            "UPDATE keeper SET name = 'ada!' WHERE id = 1",
            "{ animal { nodes { keeper { name } } } }",
            "READ_AGAIN",
            "because it also reads this entity",
        ),
        (
            "UPDATE keeper SET name = 'ada' WHERE id = 1",
            "{ animal { nodes { id } } }",
            "OTHER_ENTITY",
            "does not read this entity",
        ),
        (
            "UPDATE keeper SET name = 'bob' WHERE id = 2",
            "{ keeper(filters: { id: { eq: 3 } }) { nodes { boss { name } } } }",
            "READ_AGAIN",
            "hang on other rows of the same entity",
        ),
    ] {
        let after = now(&zoo).await;
        zoo.recorder.execute_unprepared(sql).await.unwrap();
        let explained = explain(&zoo, &Viewer::default(), &format!("subscription {query}"), json!({}), &after).await;
        let change = only(&explained);
        assert!(change["outcome"] == outcome && change["reason"].as_str().unwrap().contains(words), "{sql}: {change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_that_cannot_be_continued_and_documents_that_are_none_are_told() {
    let zoo = Zoo::populated().await;
    let query = "subscription { animalChanges { cursor } }";
    let viewer = Viewer::default();
    assert_eq!(explain(&zoo, &viewer, query, json!({}), "nonsense").await["resync"], "MALFORMED");
    let other = Zoo::populated().await;
    assert_eq!(explain(&zoo, &viewer, query, json!({}), &now(&other).await).await["resync"], "EPOCH");
    let after = now(&zoo).await;
    zoo.recorder.execute_unprepared("UPDATE food SET name = 'x' WHERE id = 1").await.unwrap();
    let log = zoo.recorder.log();
    while log.prune(None, Some(0), 100).await.unwrap().more {}
    let trimmed = explain(&zoo, &viewer, query, json!({}), &Cursor::start().to_string()).await;
    assert_eq!((&trimmed["resync"], &trimmed["transactions"]), (&json!("TRIMMED"), &json!([])));
    assert!(after != now(&zoo).await);

    let refused = explain(&zoo, &viewer, "subscription { nothing }", json!({}), &after).await;
    assert!(refused["refusal"].as_str().unwrap().starts_with("GRAPHQL_VALIDATION_FAILED: "), "{refused}");
    let refused = zoo.api.explain(request("{ animal { nodes { id } } }", json!({})), &after, 1).await.unwrap_err();
    assert!(refused.to_string().contains("only subscriptions can be explained"), "{refused}");
}

/// So many transactions, then on from there.
#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_goes_on_where_one_ended() {
    let zoo = Zoo::populated().await;
    let mut after = now(&zoo).await;
    for n in 0..5 {
        zoo.recorder.execute_unprepared(&format!("UPDATE food SET name = 'food {n}' WHERE id = 1")).await.unwrap();
    }
    let mut cursors = Vec::new();
    for expected in [2, 2, 1] {
        let query = request("subscription { foodChanges { cursor } }", json!({}));
        let explained = serde_json::to_value(zoo.api.explain(query, &after, 2).await.unwrap()).unwrap();
        let found = changes(&explained);
        assert_eq!((found.len(), &explained["upToDate"]), (expected, &json!(expected == 1)), "{explained}");
        cursors.extend(found.iter().map(|(cursor, _)| cursor.to_string()));
        after = explained["cursor"].as_str().unwrap().to_owned();
    }
    cursors.dedup();
    assert_eq!(cursors.len(), 5);
}

const FIELD: &str = r#"query ($after: String!) { explainChanges(after: $after, roles: ["keeper"], actor: "1",
    subscription: "subscription ($n: String) { animalChanges(filters: { name: { eq: $n } }) { cursor } }", variables: { n: "leo" }) {
    refusal resync upToDate filter cursor
    transactions { cursor omitted changes { entity key operation event outcome reason hiddenFields
        index { by keys before after } before { filter policy deciding rules { role rule passes deciding } } after { filter } } } } }"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_field_is_there_for_its_role_alone() {
    let mut options = Options::default();
    options.explain_role = Some("operator".into());
    let mut zoo = Zoo::populated().await;
    // Nobody has it by default.
    let after = now(&zoo).await;
    assert!(!zoo.api.sdl().contains("explainChanges"));
    let operator = Viewer::with_roles(["operator"]);
    let unknown = zoo.run_as(&operator, FIELD, json!({ "after": after })).await;
    assert_eq!(unknown["errors"][0]["extensions"]["code"], "GRAPHQL_VALIDATION_FAILED");

    let keeper = Policy::of::<animal::Entity>("keeper").read(animal::Column::KeeperId.eq_claim("sub"));
    zoo.api = Api::builder(zoo.recorder.clone()).options(options).policies([keeper]).finish().unwrap();
    zoo.recorder.execute_unprepared("UPDATE animal SET weight = 1 WHERE name = 'leo'").await.unwrap();
    let explained = zoo.run_as(&operator, FIELD, json!({ "after": after })).await;
    let explained = &explained["data"]["explainChanges"];
    let change = only(explained);
    assert_eq!((&change["outcome"], &change["key"]), (&json!("DELIVERED"), &json!({ "id": id(1) })));
    assert_eq!(change["before"]["rules"][0]["rule"], "keeperId = 1");
    assert_eq!((&explained["refusal"], &explained["upToDate"]), (&json!(null), &json!(true)));

    for viewer in [Viewer::default(), Viewer::with_roles(["keeper", "admin"]).signed_in_as("1")] {
        let refused = zoo.run_as(&viewer, FIELD, json!({ "after": after })).await;
        assert_eq!(refused["data"], Value::Null, "{refused}");
        assert_eq!(refused["errors"][0]["extensions"]["code"], "FORBIDDEN");
        assert!(!refused.to_string().contains(&id(1).to_string()), "{refused}");
    }
    for (argument, word) in
        [("limit: 0", "from 1 to 100"), ("limit: 101", "from 1 to 100"), ("claims: [1]", "`claims`")]
    {
        let query = format!("{{ explainChanges(after: \"\", subscription: \"\", {argument}) {{ resync }} }}");
        let refused = zoo.run_as(&operator, &query, json!({})).await;
        assert_eq!(refused["errors"][0]["extensions"]["code"], "BAD_USER_INPUT");
        assert!(refused["errors"][0]["message"].as_str().unwrap().contains(word), "{refused}");
    }
}
