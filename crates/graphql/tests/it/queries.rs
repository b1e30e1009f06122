//! Queries with Seaography's names, arguments and results.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use sqlx::{
    ConnectOptions,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use tidewire_graphql::{
    Api, Options, TimeFormat,
    async_graphql::dynamic::{Field, FieldFuture, FieldValue, TypeRef},
};
use tidewire_outbox::Recorder;
use tidewire_testkit::{on_every_target, zoo};
use tracing_subscriber::layer::SubscriberExt;

use crate::support::{Zoo, request};

/// The names of the nodes of a connection.
fn names(connection: &Value) -> Vec<&str> {
    connection["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect()
}

on_every_target! {
    async fn filters_choose_rows(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        for (filter, expected) in [
            ("{}", "leo otto sid stray"),
            ("{ name: { eq: \"leo\" } }", "leo"),
            ("{ name: { contains: \"T\" }, tame: { eq: true } }", "otto"),
            ("{ name: { starts_with: \"s\" } }", "sid stray"),
            ("{ name: { ends_with: \"o\" } }", "leo otto"),
            ("{ name: { like: \"_t%\" } }", "otto stray"),
            ("{ name: { not_like: \"_t%\" } }", "leo sid"),
            ("{ name: { ci_eq: \"LEO\" } }", "leo"),
            ("{ name: { is_in: [\"leo\", \"sid\"] } }", "leo sid"),
            ("{ name: { is_not_in: [\"leo\", \"sid\"] } }", "otto stray"),
            ("{ name: { between: [\"o\", \"sm\"] } }", "otto sid"),
            ("{ name: { not_between: [\"o\", \"sm\"] } }", "leo stray"),
            ("{ species: { eq: lion } }", "leo stray"),
            ("{ species: { ne: _3toedsloth } }", "leo otto stray"),
            ("{ keeperId: { is_null: true } }", "stray"),
            ("{ keeperId: { is_null: false } }", "leo otto sid"),
            ("{ keeperId: { eq: null } }", "stray"),
            ("{ weight: { gte: 30 } }", "leo otto"),
            ("{ weight: { lt: 30, gt: 0.5 } }", "sid"),
            ("{ price: { gt: \"1\" } }", "leo otto"),
            ("{ born: { lte: \"2022-01-02\" } }", "leo otto"),
            ("{ seenAt: { gt: \"2026-11-22T12:00:00+02:00\" } }", "otto sid stray"),
            ("{ seenAt: { eq: \"2026-11-22 10:00:00.5 UTC\" } }", "otto"),
            ("{ id: { eq: \"01010101-0101-0101-0101-010101010101\" } }", "leo"),
            ("{ notes: { is_null: false } }", "leo"),
            ("{ or: [{ name: { eq: \"leo\" } }, { tame: { eq: true } }] }", "leo otto sid"),
            ("{ and: [{ tame: { eq: true } }, { weight: { lt: 10 } }] }", "sid"),
            ("{ not: { tame: { eq: true } } }", "leo stray"),
            // What is unknown is not true, and neither is its negation.
            ("{ not: { weight: { gt: 1 } } }", ""),
            ("{ or: [] }", ""),
            ("{ and: [] }", "leo otto sid stray"),
        ] {
            let data = zoo
                .data(&format!("{{ animal(filters: {filter}, orderBy: {{ name: ASC }}) {{ nodes {{ name }} }} }}"))
                .await;
            assert_eq!(names(&data["animal"]).join(" "), expected, "{filter}");
        }
    }
}

on_every_target! {
    async fn a_condition_may_be_long(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let or: Vec<_> = (0..3_000)
            .map(|n| json!({ "name": { "eq": format!("food {n}") } }))
            .chain([json!({ "name": { "eq": "fish" } })])
            .collect();
        let query = "query ($or: [FoodFilterInput!]) { food(filters: { or: $or }) { nodes { name } } }";
        let found = zoo.run(query, json!({ "or": or })).await;
        assert_eq!(found["data"]["food"]["nodes"], json!([{ "name": "fish" }]), "{found}");
    }
}

on_every_target! {
    async fn having_asks_for_related_rows(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        for (having, expected) in [
            ("{ visit: { number: { eq: 2 } } }", "leo"),
            ("{ food: { name: { eq: \"fish\" } } }", "leo otto"),
            ("{ keeper: { name: { eq: \"ada\" } }, chip: { serial: { gt: 5 } } }", "otto"),
            ("{ visit: {} }", "leo otto sid stray"),
        ] {
            let data =
                zoo.data(&format!("{{ animal(having: {having}, orderBy: {{ name: ASC }}) {{ nodes {{ name }} }} }}")).await;
            assert_eq!(names(&data["animal"]).join(" "), expected, "{having}");
        }
    }
}

on_every_target! {
    async fn relations_of_every_kind_nest_with_their_own_arguments(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let data = zoo
            .data(
                "{ keeper(orderBy: { id: ASC }) { nodes {
                     name
                     boss { name }
                     bossReverse(orderBy: { name: DESC }) { nodes { name } }
                     animal(filters: { tame: { eq: true } }) { nodes {
                       name
                       chip { serial animal { name } }
                       food(pagination: { page: { page: 0, limit: 1 } }) { nodes { name } paginationInfo { total } }
                       diet { nodes { grams food { name } } }
                     } }
                   } } }",
            )
            .await;
        let otto = json!({
            "name": "otto",
            "chip": { "serial": "9007199254740993", "animal": { "name": "otto" } },
            "food": { "nodes": [{ "name": "fish" }], "paginationInfo": { "total": 1 } },
            "diet": { "nodes": [{ "grams": 900, "food": { "name": "fish" } }] },
        });
        let sid = json!({
            "name": "sid",
            "chip": null,
            "food": { "nodes": [{ "name": "leaves" }], "paginationInfo": { "total": 1 } },
            "diet": { "nodes": [{ "grams": 300, "food": { "name": "leaves" } }] },
        });
        assert_eq!(
            data["keeper"]["nodes"],
            json!([
                { "name": "ada", "boss": null, "bossReverse": { "nodes": [{ "name": "cy" }, { "name": "bo" }] }, "animal": { "nodes": [otto] } },
                { "name": "bo", "boss": { "name": "ada" }, "bossReverse": { "nodes": [] }, "animal": { "nodes": [sid] } },
                { "name": "cy", "boss": { "name": "ada" }, "bossReverse": { "nodes": [] }, "animal": { "nodes": [] } },
            ])
        );
    }
}

on_every_target! {
    async fn pages_of_all_kinds_cover_all_rows_once(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let page = async |pagination: &str| {
            let query = format!(
                "{{ animal(orderBy: {{ name: DESC }}, pagination: {{ {pagination} }}) {{
                     nodes {{ name }} edges {{ cursor }} pageInfo {{ hasNextPage hasPreviousPage startCursor endCursor }}
                     paginationInfo {{ current offset pages total }} }} }}"
            );
            zoo.data(&query).await["animal"].take()
        };
        let first = page("page: { page: 0, limit: 3 }").await;
        assert_eq!(names(&first), ["stray", "sid", "otto"]);
        assert_eq!(first["paginationInfo"], json!({ "current": 0, "offset": 0, "pages": 2, "total": 4 }));
        assert_eq!(
            (&first["pageInfo"]["hasNextPage"], &first["pageInfo"]["hasPreviousPage"]),
            (&json!(true), &json!(false))
        );
        let second = page("page: { page: 1, limit: 3 }").await;
        assert_eq!(names(&second), ["leo"]);
        assert_eq!(
            (&second["pageInfo"]["hasNextPage"], &second["pageInfo"]["hasPreviousPage"]),
            (&json!(false), &json!(true))
        );
        let beyond = page("page: { page: 9, limit: 3 }").await;
        assert_eq!(names(&beyond), [""; 0]);
        assert_eq!(beyond["pageInfo"]["startCursor"], json!(null));
        let window = page("offset: { offset: 1, limit: 2 }").await;
        assert_eq!(names(&window), ["sid", "otto"]);
        assert_eq!(window["paginationInfo"], json!({ "current": 1, "offset": 1, "pages": 2, "total": 4 }));

        // By cursor: in the order of the key, whatever else was asked, and over a key of two columns.
        let mut cursor = "null".to_owned();
        let mut seen = Vec::new();
        loop {
            let data = zoo
                .data(&format!(
                    "{{ visit(pagination: {{ cursor: {{ cursor: {cursor}, limit: 2 }} }}) {{
                         edges {{ cursor node {{ number animal {{ name }} }} }} pageInfo {{ hasNextPage hasPreviousPage endCursor }} }} }}"
                ))
                .await;
            let visits = &data["visit"];
            assert_eq!(visits["pageInfo"]["hasPreviousPage"], json!(cursor != "null"));
            for edge in visits["edges"].as_array().unwrap() {
                seen.push(format!("{}{}", edge["node"]["animal"]["name"].as_str().unwrap(), edge["node"]["number"]));
            }
            if visits["pageInfo"]["hasNextPage"] == false {
                break;
            }
            cursor = visits["pageInfo"]["endCursor"].to_string();
        }
        assert_eq!(seen, ["leo1", "leo2", "sid1"]);
    }
}

on_every_target! {
    async fn aggregates_follow_the_filters_and_not_the_page(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        // A server keeps a decimal with the digits that its column has.
        let price = if zoo.database.is("sqlite:") { "99.9" } else { "99.9000" };
        let data = zoo
            .data(
                "{ animal(filters: { tame: { eq: true } }, pagination: { page: { page: 0, limit: 1 } }) { nodes { name } aggregate {
                     count min { name weight born } max { name price } sum { weight price } avg { weight } } }
                   none: animal(filters: { name: { eq: \"nobody\" } }) { aggregate { count min { name } sum { weight } avg { weight } } }
                   keeper(orderBy: { id: ASC }) { nodes { animal { aggregate { count sum { weight } } } } }
                   chip { aggregate { sum { serial } max { serial } } } }",
            )
            .await;
        assert_eq!(
            data["animal"]["aggregate"],
            json!({
                "count": 2,
                "min": { "name": "otto", "weight": 4.25, "born": "2022-01-02" },
                "max": { "name": "sid", "price": price },
                "sum": { "weight": 34.25, "price": price },
                "avg": { "weight": 17.125 },
            })
        );
        assert_eq!(data["animal"]["nodes"].as_array().unwrap().len(), 1);
        let nothing = json!({ "count": 0, "min": { "name": null }, "sum": { "weight": null }, "avg": { "weight": null } });
        assert_eq!(data["none"]["aggregate"], nothing);
        let sums: Vec<_> =
            data["keeper"]["nodes"].as_array().unwrap().iter().map(|node| &node["animal"]["aggregate"]).collect();
        assert_eq!(
            json!(sums),
            json!([
                { "count": 2, "sum": { "weight": 220.5 } },
                { "count": 1, "sum": { "weight": 4.25 } },
                { "count": 0, "sum": { "weight": null } },
            ])
        );
        assert_eq!(data["chip"]["aggregate"]["sum"]["serial"], json!("9007199254740993"));
    }
}

on_every_target! {
    async fn times_are_written_as_asked(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let query = "{ animal(filters: { name: { eq: \"leo\" } }) { nodes { seenAt born visit(filters: { number: { eq: 2 } }) { nodes { at picture report } } } } }";
        let leo = zoo.data(query).await["animal"]["nodes"][0].take();
        assert_eq!(leo["seenAt"], "2026-11-21 10:00:00.500 UTC");
        assert_eq!(
            leo["visit"]["nodes"][0],
            json!({ "at": "2026-11-20 10:00:00", "picture": "00abff", "report": "well \"fed\"\n" })
        );
        let mut options = Options::default();
        options.times = TimeFormat::Rfc3339;
        let api = Api::builder(zoo.recorder.clone()).options(options).finish().unwrap();
        let leo: Value = serde_json::from_str(&api.execute(request(query, json!({}))).await.json).unwrap();
        let leo = &leo["data"]["animal"]["nodes"][0];
        assert_eq!(leo["seenAt"], "2026-11-21T10:00:00.500Z");
        assert_eq!(leo["visit"]["nodes"][0]["at"], "2026-11-20T10:00:00");
    }
}

on_every_target! {
    async fn large_integers_come_back_as_they_went(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let query = "query ($serial: Int!, $not: [Int!]) { chipByPk(serial: $serial) { serial } chip(filters: { serial: { eq: $serial, is_not_in: $not } }) { nodes { serial } } }";
        let serial = json!("9007199254740993");
        let response = zoo.run(query, json!({ "serial": serial, "not": ["1", 2] })).await;
        assert_eq!(
            response["data"],
            json!({ "chipByPk": { "serial": serial }, "chip": { "nodes": [{ "serial": serial }] } })
        );
    }
}

on_every_target! {
    async fn a_list_without_a_page_is_capped_where_the_options_say_so(database: TestDatabase) {
        let mut options = Options::default();
        options.max_rows = Some(2);
        let zoo = Zoo::of(database, options).await;
        zoo.populate().await;
        let data = zoo.data("{ animal { nodes { name food { nodes { name } } } pageInfo { hasNextPage } } }").await;
        assert_eq!((names(&data["animal"]).len(), &data["animal"]["pageInfo"]["hasNextPage"]), (2, &json!(true)));
        let error =
            zoo.error("{ animal(pagination: { page: { page: 0, limit: 3 } }) { nodes { name } } }", json!({})).await;
        assert_eq!(error["extensions"]["code"], "BAD_USER_INPUT");
    }
}

on_every_target! {
    async fn a_field_added_by_hand_stands_beside_the_generated_ones(database: TestDatabase) {
        let zoo = Zoo::populated_in(database).await;
        let field = Field::new("headcount", TypeRef::named_nn(TypeRef::INT), |ctx| {
            FieldFuture::new(async move {
                use sea_orm::PaginatorTrait;
                let db = ctx.data::<Recorder>()?;
                Ok(Some(FieldValue::value(<zoo::keeper::Entity as sea_orm::EntityTrait>::find().count(db).await?)))
            })
        });
        let api = Api::builder(zoo.recorder.clone()).query(field).finish().unwrap();
        let both = request("{ headcount food(orderBy: { id: ASC }) { nodes { name } } }", json!({}));
        assert!(!api.is_planned(both.clone()));
        let answer = api.execute(both).await.json;
        assert_eq!(
            answer,
            r#"{"data":{"headcount":3,"food":{"nodes":[{"name":"meat"},{"name":"fish"},{"name":"leaves"}]}}}"#
        );
    }
}

/// No N+1: however many rows there are, a level costs one statement, and a plan as a whole costs one.
#[tokio::test(flavor = "multi_thread")]
async fn statements_are_counted() {
    // GIVEN a zoo on a connection that says each statement
    let zoo = Zoo::populated().await;
    let options = zoo.database.url().parse::<SqliteConnectOptions>().unwrap().log_statements("info".parse().unwrap());
    let options = options.log_slow_statements("off".parse().unwrap(), Duration::MAX);
    let pool = SqlitePoolOptions::new().connect_with(options).await.unwrap();
    let recorder = Recorder::new(&sea_orm::SqlxSqliteConnector::from_sqlx_sqlite_pool(pool), zoo::registry()).unwrap();
    let api = Api::builder(recorder).finish().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Counting(Arc::clone(&count));
    // For all threads: SQLite has its own. Other tests have only their slow statements logged, at another level.
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(counting)).unwrap();

    // WHEN a document of three levels is answered, by a plan and by resolvers
    let query = "{ keeper { nodes { name animal(filters: { name: { ne: \"x\" } }) { nodes { name keeper { name } food(orderBy: { name: ASC }) { nodes { name } } visit { nodes { number } } } } } } }";
    let planned = api.execute(request(query, json!({}))).await.json;
    let by_plan = count.swap(0, Ordering::Relaxed);
    let resolved = api.execute_resolved(request(query, json!({}))).await.json;
    let by_resolvers = count.swap(0, Ordering::Relaxed);

    // THEN that takes one statement, and one for each relation (with a junction: two)
    assert_eq!(planned, resolved);
    assert_eq!(by_plan, 1);
    assert_eq!(by_resolvers, 1 + 1 + 1 + 2 + 1);
}

/// Counts the statements that read, of all that sqlx says it runs.
struct Counting(Arc<AtomicUsize>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Counting {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" && *event.metadata().level() == tracing::Level::INFO {
            event.record(&mut Selects(&self.0));
        }
    }
}

struct Selects<'a>(&'a AtomicUsize);

impl tracing::field::Visit for Selects<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "summary" && format!("{value:?}").contains("SELECT") {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}
