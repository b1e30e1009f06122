//! Mutations: one transaction a document, once for each id, and never over what the client has not seen.

use std::sync::Arc;

use sea_orm::{ActiveModelTrait, ConnectionTrait, EntityTrait, PaginatorTrait, Set};
use serde_json::{Value, json};
use tidewire_graphql::{
    Api, Options, Request, Viewer,
    async_graphql::dynamic::{Field, FieldFuture, FieldValue, TypeRef},
};
use tidewire_outbox::{Actor, Cursor, Origin, Step};
use tidewire_testkit::{
    TestDatabase, on_every_target, soon,
    zoo::{food, keeper},
};

use crate::support::{Zoo, request};

/// The changes that the log has, transaction by transaction, as `operation entity`.
async fn log(zoo: &Zoo, after: Cursor) -> Vec<Vec<String>> {
    let end = zoo.recorder.log().position().await.unwrap();
    let mut follower = zoo.recorder.log().follow_all(after).await.unwrap();
    let mut all = Vec::new();
    while !follower.cursor().covers(&end) {
        let Step::Transactions { transactions, .. } = soon(follower.next()).await.unwrap() else { panic!("no resync") };
        for transaction in &transactions {
            let name = |change: &tidewire_outbox::Change| zoo.recorder.catalog().entity(change.entity).name;
            all.push(
                transaction.changes.iter().map(|change| format!("{} {}", change.operation, name(change))).collect(),
            );
        }
    }
    all
}

on_every_target! {
    async fn rows_are_created_changed_and_deleted(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let data = zoo
            .data(
                "mutation {
                   one: keeperCreateOne(data: { email: \"d@x\", name: \"dee\", bossId: 1 }) { id name bossId }
                   many: foodCreateBatch(data: [{ name: \"nuts\" }, { name: \"figs\" }]) { id name }
                   changed: animalUpdate(data: { tame: true, price: \"12.50\" }, filter: { species: { eq: lion } }) { name tame price }
                   gone: visitDelete(filter: { number: { eq: 1 } })
                 }",
            )
            .await;
        assert_eq!(data["one"], json!({ "id": 4, "name": "dee", "bossId": 1 }));
        assert_eq!(data["many"], json!([{ "id": 4, "name": "nuts" }, { "id": 5, "name": "figs" }]));
        let changed: Vec<_> =
            data["changed"].as_array().unwrap().iter().map(|row| (&row["name"], &row["tame"], &row["price"])).collect();
        // A server keeps a decimal with the digits that its column has.
        let price = if zoo.database.is("sqlite:") { "12.5" } else { "12.5000" };
        assert_eq!(json!(changed), json!([["leo", true, price], ["stray", true, price]]));
        assert_eq!(data["gone"], 2);
    }
}

on_every_target! {
    async fn a_document_is_one_transaction(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let before = zoo.recorder.log().position().await.unwrap();

        // The second field fails, so the first has not happened.
        let response = zoo
            .run(
                "mutation { a: foodCreateOne(data: { name: \"nuts\" }) { id } b: foodCreateOne(data: { name: \"meat\" }) { id } }",
                json!({}),
            )
            .await;
        assert_eq!(response["data"], Value::Null);
        assert_eq!(response["errors"][0]["path"], json!(["b"]));
        assert_eq!(response["errors"][0]["extensions"]["code"], "ALREADY_EXISTS");
        assert_eq!(food::Entity::find().count(&zoo.recorder).await.unwrap(), 3);

        zoo.data(
            "mutation { a: foodCreateOne(data: { name: \"nuts\" }) { id } b: keeperDelete(filter: { id: { eq: 3 } }) }",
        )
        .await;
        assert_eq!(log(&zoo, before).await, [["insert food", "delete keeper"]]);
    }
}

on_every_target! {
    async fn upserts_insert_or_update_or_leave(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let upsert = async |on_conflict: &str, name: &str| {
            let query = format!(
                "mutation {{ keeperUpsert(data: {{ id: 2, email: \"bo@zoo.example\", name: \"{name}\" }}{on_conflict}) {{ id name bossId }} }}"
            );
            zoo.data(&query).await["keeperUpsert"].take()
        };
        // By the primary key; every column that was given takes its new value.
        assert_eq!(upsert("", "Bo").await, json!({ "id": 2, "name": "Bo", "bossId": 1 }));
        assert_eq!(upsert(", onConflict: { target: [email], update: [name] }", "Bob").await["name"], "Bob");
        assert_eq!(upsert(", onConflict: { update: [] }", "Rob").await["name"], "Bob");
        let data = zoo.data("mutation { keeperCreateOne(data: { email: \"new@x\", name: \"new\" }, onConflict: { target: [email] }) { name } }").await;
        assert_eq!(data["keeperCreateOne"]["name"], "new");
        let error = zoo
            .error("mutation { keeperUpsert(data: { id: 1, email: \"bo@zoo.example\", name: \"x\" }) { id } }", json!({}))
            .await;
        assert_eq!(error["extensions"]["code"], "ALREADY_EXISTS");
    }
}

on_every_target! {
    /// I12
    async fn a_mutation_with_an_id_takes_effect_once(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let before = zoo.recorder.log().position().await.unwrap();
        let create = "mutation ($id: String) { foodCreateOne(data: { name: \"nuts\" }, mutationId: $id) { id name } }";
        let first = zoo.run(create, json!({ "id": "m1" })).await;
        assert!(first.get("errors").is_none(), "{first}");

        // A retry gives the first result, also once the row has changed, and does nothing.
        zoo.data("mutation { foodUpdate(data: { name: \"pecans\" }, filter: { name: { eq: \"nuts\" } }) { id } }").await;
        assert_eq!(zoo.run(create, json!({ "id": "m1" })).await, first);
        assert_eq!(log(&zoo, before.clone()).await.len(), 2);

        // The same id for something else is refused; another id is another mutation.
        let other = "mutation ($id: String) { foodCreateOne(data: { name: \"figs\" }, mutationId: $id) { id name } }";
        assert_eq!(zoo.error(other, json!({ "id": "m1" })).await["extensions"]["code"], "MUTATION_ID_REUSED");
        assert!(zoo.run(other, json!({ "id": "m2" })).await.get("errors").is_none());
        assert_eq!(zoo.error(other, json!({ "id": "" })).await["extensions"]["code"], "BAD_USER_INPUT");

        // One that failed has not happened, so it may be tried again.
        assert_eq!(zoo.error(other, json!({ "id": "m3" })).await["extensions"]["code"], "ALREADY_EXISTS");
        zoo.data("mutation { foodDelete(filter: { name: { eq: \"figs\" } }) }").await;
        assert!(zoo.run(other, json!({ "id": "m3" })).await.get("errors").is_none());
    }
}

on_every_target! {
    /// I12, with retries that overtake each other.
    async fn retries_at_the_same_time_take_effect_once(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let tries = (0..16).map(|_| {
            let api = zoo.api.clone();
            let query = "mutation { foodCreateOne(data: { name: \"nuts\" }, mutationId: \"m\") { id } }";
            tokio::spawn(async move { api.execute(request(query, json!({}))).await.json })
        });
        let mut answers = Vec::new();
        for attempt in tries.collect::<Vec<_>>() {
            answers.push(soon(attempt).await.unwrap());
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_eq!(food::Entity::find().count(&zoo.recorder).await.unwrap(), 4);
    }
}

on_every_target! {
    async fn a_write_on_a_stale_row_is_refused_with_the_row_as_it_is(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let update = "mutation ($name: String!) { keeperUpdate(data: { name: \"Ada\" }, filter: { id: { eq: 1 } }, ifMatch: { name: $name, bossId: null }) { name } }";
        let error = zoo.error(update, json!({ "name": "someone" })).await;
        assert_eq!(error["extensions"]["code"], "CONFLICT");
        assert_eq!(
            error["extensions"]["current"],
            json!([{ "id": 1, "email": "ada@zoo.example", "name": "ada", "bossId": null }])
        );
        assert!(zoo.run(update, json!({ "name": "ada" })).await.get("errors").is_none());
        // It is not that any more.
        assert_eq!(zoo.error(update, json!({ "name": "ada" })).await["extensions"]["code"], "CONFLICT");
        let delete = "mutation { keeperDelete(filter: { id: { eq: 77 } }, ifMatch: { name: \"ada\" }) }";
        assert_eq!(zoo.error(delete, json!({})).await["extensions"]["current"], json!([]));
        let delete = "mutation { keeperDelete(filter: { id: { eq: 1 } }, ifMatch: { name: \"Ada\" }) }";
        assert_eq!(zoo.data(delete).await["keeperDelete"], 1);
        // Equal is what the database calls equal: leo's price is 1500.25.
        let update = "mutation { animalUpdate(data: { tame: true }, filter: { name: { eq: \"leo\" } }, ifMatch: { price: \"1500.2500\" }) { tame } }";
        assert_eq!(zoo.data(update).await["animalUpdate"], json!([{ "tame": true }]));
    }
}

on_every_target! {
    /// Of those who take a row to be the same, and write at the same time, one does.
    async fn writes_on_the_same_row_at_the_same_time_are_not_lost(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let mut name = "ada".to_owned();
        for round in 0..4 {
            let tries = (0..8).map(|n| {
                let (api, name) = (zoo.api.clone(), name.clone());
                // In the second field, so that the transaction has read before.
                let query = "mutation ($name: String!, $new: String!) { foodDelete(filter: { name: { eq: \"none\" } })
                     keeperUpdate(data: { name: $new }, filter: { id: { eq: 1 } }, ifMatch: { name: $name }) { name } }";
                let variables = json!({ "name": name, "new": format!("{round} {n}") });
                tokio::spawn(async move { api.execute(request(query, variables)).await.json })
            });
            let mut written = Vec::new();
            for attempt in tries.collect::<Vec<_>>() {
                let answer: Value = serde_json::from_str(&soon(attempt).await.unwrap()).unwrap();
                match answer["data"]["keeperUpdate"][0]["name"].as_str() {
                    Some(name) => written.push(name.to_owned()),
                    None => assert_eq!(answer["errors"][0]["extensions"]["code"], "CONFLICT", "{answer}"),
                }
            }
            assert_eq!(written.len(), 1, "{written:?}");
            name = written.remove(0);
        }
    }
}

on_every_target! {
    async fn a_field_added_by_hand_writes_in_the_documents_transaction(database: TestDatabase) {
        let zoo = Zoo::of(database, Options::default()).await;
        let field = Field::new("addFoods", TypeRef::named_nn(TypeRef::INT), |ctx| {
            FieldFuture::new(async move {
                let transaction = tidewire_graphql::transaction(&ctx).await?;
                for name in ["oats", "bran"] {
                    food::ActiveModel { name: Set(name.into()), ..Default::default() }.insert(&*transaction).await?;
                }
                Ok(Some(FieldValue::value(2)))
            })
        });
        let api = Api::builder(zoo.recorder.clone()).mutation(field).finish().unwrap();
        let before = zoo.recorder.log().position().await.unwrap();
        let run = async |query: &str| api.execute(request(query, json!({}))).await.json;
        assert_eq!(
            run(r#"mutation { addFoods foodCreateOne(data: { name: "rye" }) { name } }"#).await,
            r#"{"data":{"addFoods":2,"foodCreateOne":{"name":"rye"}}}"#
        );
        // A later field fails, so the first has not happened either; and the other way round.
        zoo.recorder.execute_unprepared("DELETE FROM food WHERE name <> 'rye'").await.unwrap();
        let failed = run(r#"mutation { addFoods foodCreateOne(data: { name: "rye" }) { name } }"#).await;
        assert!(failed.contains("ALREADY_EXISTS"), "{failed}");
        let failed = run(r#"mutation { foodCreateOne(data: { name: "rye" }) { name } addFoods }"#).await;
        assert!(failed.contains("ALREADY_EXISTS"), "{failed}");
        let transactions = log(&zoo, before).await;
        assert_eq!(transactions.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2], "{transactions:?}");
    }
}

#[tokio::test]
async fn what_follows_a_failed_field_says_why_it_was_not_done() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::populated_in(database).await;
    let query = r#"mutation { foodCreateOne(data: { name: "meat" }) { name } foodDelete }"#;
    let answer = zoo.run(query, json!({})).await;
    let codes: Vec<_> = answer["errors"].as_array().unwrap().iter().map(|e| &e["extensions"]["code"]).collect();
    assert_eq!(codes, ["ALREADY_EXISTS", "ROLLED_BACK"], "{answer}");
}

on_every_target! {
    async fn refusals_have_codes_and_tell_no_values(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let long = format!("mutation {{ foodCreateBatch(data: [{}]) {{ id }} }}", "{ name: \"hunter2\" } ".repeat(101));
        for (query, code) in [
            (
                "mutation { chipCreateOne(data: { serial: 1, animalId: \"99999999-0202-0202-0202-020202020202\" }) { serial } }",
                "REFERENCE_VIOLATION",
            ),
            (
                "mutation { keeperCreateOne(data: { email: \"ada@zoo.example\", name: \"hunter2\" }) { id } }",
                "ALREADY_EXISTS",
            ),
            ("mutation { keeperCreateOne(data: { name: \"hunter2\" }) { id } }", "GRAPHQL_VALIDATION_FAILED"),
            ("mutation { keeperUpdate(data: { name: null }) { id } }", "BAD_USER_INPUT"),
            ("mutation { animalUpdate(data: { born: \"hunter2\" }) { id } }", "BAD_USER_INPUT"),
            ("mutation { animalUpdate(data: { price: \"hunter2\" }) { id } }", "BAD_USER_INPUT"),
            ("mutation { visitUpdate(data: { picture: \"hunter2\" }) { number } }", "BAD_USER_INPUT"),
            ("mutation { keeperUpdate(data: { bossId: 99999999999 }) { id } }", "BAD_USER_INPUT"),
            ("mutation { keeperUpdate(data: { salary: \"hunter2\" }) { id } }", "GRAPHQL_VALIDATION_FAILED"),
            (long.as_str(), "LIMIT_EXCEEDED"),
        ] {
            let mut options = Options::default();
            options.max_mutation_rows = 100;
            let api = tidewire_graphql::Api::builder(zoo.recorder.clone()).options(options).finish().unwrap();
            let response = api.execute(request(query, json!({}))).await.json;
            let parsed: Value = serde_json::from_str(&response).unwrap();
            assert_eq!(parsed["errors"][0]["extensions"]["code"], code, "{query}\n{response}");
            assert!(
                !response.contains("hunter2") && !response.to_lowercase().contains("insert into"),
                "{query}\n{response}"
            );
        }
        // Too many rows are refused before they are changed.
        let many = "INSERT INTO keeper (id, email, name) WITH RECURSIVE n AS (SELECT 10 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 200) SELECT i, i, 'x' FROM n";
        zoo.recorder.execute_unprepared(many).await.unwrap();
        let mut options = Options::default();
        options.max_mutation_rows = 100;
        let api = tidewire_graphql::Api::builder(zoo.recorder.clone()).options(options).finish().unwrap();
        for query in ["mutation { keeperDelete }", "mutation { keeperUpdate(data: { name: \"y\" }) { id } }"] {
            let response = api.execute(request(query, json!({}))).await.json;
            assert!(response.contains("LIMIT_EXCEEDED"), "{response}");
        }
        assert_eq!(keeper::Entity::find().count(&zoo.recorder).await.unwrap(), 194);
    }
}

on_every_target! {
    async fn who_asks_is_recorded(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let before = zoo.recorder.log().position().await.unwrap();
        let request = Request {
            viewer: Arc::new(Viewer::default().acting_as(Actor::user("ada"))),
            origin: Some(Origin::new("phone")),
            ..request("mutation { foodCreateOne(data: { name: \"nuts\" }, mutationId: \"m\") { id } }", json!({}))
        };
        zoo.api.execute(request).await;
        let mut follower = zoo.recorder.log().follow_all(before).await.unwrap();
        let change = loop {
            let Step::Transactions { transactions, .. } = soon(follower.next()).await.unwrap() else { panic!("no resync") };
            if let Some(transaction) = transactions.first() {
                break transaction.changes[0].clone();
            }
        };
        let said = [change.actor, change.origin, change.mutation_id].map(|text| text.unwrap().to_string());
        assert_eq!(said, ["user:ada", "phone", "m"]);
    }
}
