//! Sakila, served: what the API says of its rows against what plain SQL says, and what is recorded against what is stored.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use heck::ToLowerCamelCase;
use sakila::entities::{category, city, film, language, payment, staff};
use sea_orm::{ConnectionTrait, DatabaseConnection, EntityTrait, Statement};
use serde_json::{Value, json};
use tidewire_graphql::{Api, Request, async_graphql::Variables};
use tidewire_outbox::{EntityMeta, Filter, Recorder, Registry, RelationMeta, Step, filter::ArrayOperator};
use tidewire_testkit::{TestDatabase, cells_of, soon};

mod load;

struct Sakila {
    api: Api,
    recorder: Recorder,
    /// A connection that knows nothing of Tidewire.
    plain: DatabaseConnection,
    _database: TestDatabase,
}

impl Sakila {
    /// Sakila with its outbox beside it; `None` where the database is not at hand.
    async fn open() -> Option<Self> {
        let database = TestDatabase::sqlite_from(&tidewire_testkit::sakila()?);
        Some(Self::with(database, sakila::registry(), async |_| {}).await)
    }

    /// The same rows in PostgreSQL's schema.
    async fn postgres() -> Option<Self> {
        let file = tidewire_testkit::sakila()?;
        let database = TestDatabase::postgres().await?;
        Some(Self::with(database, sakila::postgres::registry(), async |db| load::postgres(db, &file).await).await)
    }

    /// The same rows in MySQL's own schema, with its triggers, on MariaDB.
    async fn mariadb() -> Option<Self> {
        let file = tidewire_testkit::sakila()?;
        let database = TestDatabase::mariadb().await?;
        Some(Self::with(database, sakila::mysql::registry(), async |db| load::mysql(db, &file).await).await)
    }

    async fn with(database: TestDatabase, registry: Registry, create: impl AsyncFnOnce(&DatabaseConnection)) -> Self {
        let recorder = database.recorder(registry, create).await;
        let api = Api::builder(recorder.clone()).finish().unwrap();
        Self { api, recorder, plain: database.plain().await, _database: database }
    }

    async fn data(&self, query: &str, variables: Value) -> Value {
        let request =
            Request { query: query.to_owned(), variables: Variables::from_json(variables), ..Request::default() };
        let mut response: Value = serde_json::from_str(&self.api.execute(request).await.json).unwrap();
        assert!(response.get("errors").is_none(), "{query}: {response}");
        response["data"].take()
    }

    /// The rows of a statement that gives one JSON text each.
    async fn rows(&self, sql: &str) -> Vec<Value> {
        let statement = Statement::from_string(self.plain.get_database_backend(), sql);
        let rows = self.plain.query_all_raw(statement).await.unwrap();
        rows.iter().map(|row| serde_json::from_str(&row.try_get_by_index::<String>(0).unwrap()).unwrap()).collect()
    }
}

/// `film { nodes { filmId } }`
fn keys(entity: &EntityMeta) -> String {
    entity.key_columns().map(|column| column.name.to_lower_camel_case() + " ").collect()
}

/// A row's key as it was selected by [`keys`], as text: the API gives 64-bit integers as text where they are large.
fn key(node: &Value, entity: &EntityMeta) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    entity.key_columns().map(|column| text(&node[column.name.to_lower_camel_case()])).collect()
}

/// What the test's own SQL says differently from one database to another.
struct Words {
    array: &'static str,
    text: &'static str,
}

const SQLITE: Words = Words { array: "json_array", text: "TEXT" };
const POSTGRES: Words = Words { array: "json_build_array", text: "TEXT" };
const MARIADB: Words = Words { array: "JSON_ARRAY", text: "CHAR" };

fn sql_key(words: &Words, alias: &str, entity: &EntityMeta) -> Vec<String> {
    entity.key_columns().map(|column| format!("CAST({alias}.{} AS {})", column.name, words.text)).collect()
}

/// The pairs of rows that a relation leads between, by SQL of our own.
fn joined(
    words: &Words,
    entity: &EntityMeta,
    relation: &RelationMeta,
    target: &EntityMeta,
    junction: Option<&EntityMeta>,
) -> String {
    let on = |a: &str, left: &EntityMeta, from: &[usize], b: &str, right: &EntityMeta, to: &[usize]| -> String {
        let pairs = from.iter().zip(to);
        let equal = pairs.map(|(&l, &r)| format!("{a}.{} = {b}.{}", left.columns[l].name, right.columns[r].name));
        equal.collect::<Vec<_>>().join(" AND ")
    };
    let pair = [sql_key(words, "a", entity), sql_key(words, "b", target)].concat().join(", ");
    let from = match (&relation.junction, junction) {
        (Some(way), Some(middle)) => format!(
            "JOIN {} j ON {} JOIN {} b ON {}",
            middle.name,
            on("a", entity, &relation.from, "j", middle, &relation.to),
            target.name,
            on("j", middle, &way.from, "b", target, &way.to)
        ),
        _ => format!("JOIN {} b ON {}", target.name, on("a", entity, &relation.from, "b", target, &relation.to)),
    };
    format!("SELECT CAST({}({pair}) AS {}) FROM {} a {from}", words.array, words.text, entity.name)
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_run_over_all_entities_and_all_their_relations() {
    let Some(sakila) = Sakila::open().await else { return };
    let (rows, relations) = query_everything(&sakila, &SQLITE).await;
    assert_eq!(rows, 46_273, "the rows of all sixteen tables");
    // Each of the 22 foreign keys leads there and back; the rest are ways through junctions.
    assert!(relations > 40, "{relations}");
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_run_over_all_entities_on_postgres() {
    let Some(sakila) = Sakila::postgres().await else { return };
    let (rows, relations) = query_everything(&sakila, &POSTGRES).await;
    assert_eq!(rows, 46_273 - 5, "the rows but for five payments that the schema does not allow");
    assert!(relations > 40, "{relations}");
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_run_over_all_entities_on_mariadb() {
    let Some(sakila) = Sakila::mariadb().await else { return };
    let (rows, relations) = query_everything(&sakila, &MARIADB).await;
    assert_eq!(rows, 47_273, "the rows of all sixteen tables, with those of `film_text` that a trigger makes");
    assert!(relations > 40, "{relations}");
}

/// Answers how many rows and relations there are.
async fn query_everything(sakila: &Sakila, words: &Words) -> (usize, usize) {
    let catalog = sakila.recorder.catalog();
    let (mut rows, mut relations) = (0, 0);
    for entity in catalog.entities() {
        let field = entity.name.to_lower_camel_case();
        // Every column of every row.
        let columns: String = entity.columns.iter().map(|column| column.name.to_lower_camel_case() + " ").collect();
        let all = sakila.data(&format!("{{ {field} {{ nodes {{ {columns} }} }} }}"), json!({})).await;
        let nodes = all[&field]["nodes"].as_array().unwrap();
        let stored = sakila.rows(&format!("SELECT CAST(count(*) AS {}) FROM {}", words.text, entity.name)).await;
        assert_eq!(json!(nodes.len()), stored[0], "{}", entity.name);
        rows += nodes.len();

        // Every relation of every row, against a join.
        for relation in &entity.relations {
            let target = catalog.entity(relation.target);
            let junction = relation.junction.as_ref().map(|way| catalog.entity(way.entity));
            let name = relation.name.to_lower_camel_case();
            let selection = if relation.many { format!("nodes {{ {} }}", keys(target)) } else { keys(target) };
            let query = format!("{{ {field} {{ nodes {{ {} {name} {{ {selection} }} }} }} }}", keys(entity));
            let answer = sakila.data(&query, json!({})).await;
            let mut pairs = Vec::new();
            for node in answer[&field]["nodes"].as_array().unwrap() {
                let related = &node[&name];
                let related = match related["nodes"].as_array() {
                    Some(nodes) => nodes.iter().collect(),
                    None if related.is_null() => Vec::new(),
                    None => vec![related],
                };
                pairs.extend(related.into_iter().map(|other| json!([key(node, entity), key(other, target)].concat())));
            }
            let mut expected = sakila.rows(&joined(words, entity, relation, target, junction)).await;
            let in_order = |a: &Value, b: &Value| a.to_string().cmp(&b.to_string());
            pairs.sort_by(in_order);
            expected.sort_by(in_order);
            assert!(pairs == expected, "{}.{name}: {} pairs, not {}", entity.name, pairs.len(), expected.len());
            relations += 1;
        }
    }
    (rows, relations)
}

/// How many rows a snapshot has, each as SeaORM itself reads it.
async fn read_alike<E: EntityTrait>(sakila: &Sakila, _: E) -> usize
where
    E::Model: Sync,
{
    let meta = sakila.recorder.catalog().of::<E>().unwrap();
    let mut ours = Vec::new();
    let mut snapshot = sakila.recorder.log().snapshot(meta, Filter::all(), 1_000).await.unwrap();
    while let Some(rows) = snapshot.next().await.unwrap() {
        ours.extend(rows.iter().map(|row| row.cells().map(|cell| cell.map(str::to_owned)).collect::<Vec<_>>()));
    }
    let mut theirs: Vec<_> = E::find().all(&sakila.plain).await.unwrap().iter().map(cells_of).collect();
    ours.sort();
    theirs.sort();
    assert!(ours == theirs, "{}", meta.name);
    ours.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_mariadb_reads_as_seaorm_reads_it() {
    use sakila::mysql::entities::prelude::*;
    let Some(sakila) = Sakila::mariadb().await else { return };
    let mut rows = 0;
    macro_rules! each {
        ($($entity:ident)*) => { $(rows += read_alike(&sakila, $entity).await;)* };
    }
    each! {
        Actor Address Category City Country Customer Film FilmActor FilmCategory FilmText Inventory Language Payment Rental Staff Store
    }
    assert_eq!(rows, 47_273);
}

/// A write of a document, and what the log says of it.
async fn written(sakila: &Sakila, document: &str) -> (Value, Vec<std::sync::Arc<tidewire_outbox::Transaction>>) {
    let after = sakila.recorder.log().position().await.unwrap();
    let mut follower = sakila.recorder.log().follow_all(after).await.unwrap();
    let data = sakila.data(document, json!({})).await;
    loop {
        match soon(follower.next()).await.unwrap() {
            Step::Transactions { transactions, .. } if !transactions.is_empty() => return (data, transactions),
            Step::Transactions { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Sakila's triggers rewrite `last_update` after each write: the row that a statement returns is not the row that is stored.
#[tokio::test(flavor = "multi_thread")]
async fn updates_are_recorded_and_answered_as_stored() {
    let Some(sakila) = Sakila::open().await else { return };
    let db = &sakila.plain;

    macro_rules! check {
        ($entity:ident, $field:literal, $id:expr, $data:literal) => {{
            let before = $entity::Entity::find_by_id($id).one(db).await.unwrap().unwrap();
            let id = stringify!($entity).to_owned() + "Id";
            let document = format!(
                "mutation {{ {0}Update(data: {{ {1} }}, filter: {{ {id}: {{ eq: {2} }} }}) {{ lastUpdate }} }}",
                $field, $data, $id
            );
            let (data, transactions) = written(&sakila, &document).await;
            let stored = $entity::Entity::find_by_id($id).one(db).await.unwrap().unwrap();
            assert_ne!(before.last_update, stored.last_update, "the trigger ran");
            let changes: Vec<_> = transactions.iter().flat_map(|transaction| &transaction.changes).collect();
            assert_eq!(changes.len(), 1, "{changes:?}");
            let cells = |image: &Option<tidewire_outbox::Image>| -> Vec<_> {
                image.as_ref().unwrap().cells().map(|cell| cell.map(str::to_owned)).collect()
            };
            assert_eq!(cells(&changes[0].before), cells_of(&before));
            assert_eq!(cells(&changes[0].after), cells_of(&stored));
            let answered = &data[concat!($field, "Update")][0]["lastUpdate"];
            let now = sakila
                .data(
                    &format!("{{ {0}(filters: {{ {id}: {{ eq: {1} }} }}) {{ nodes {{ lastUpdate }} }} }}", $field, $id),
                    json!({}),
                )
                .await;
            assert_eq!(*answered, now[$field]["nodes"][0]["lastUpdate"]);
        }};
    }
    check!(film, "film", 1, r#"title: "ACADEMY DINOSAUR II", rentalRate: "1.99""#);
    check!(language, "language", 1_i16, r#"name: "Englisch""#);
    check!(category, "category", 1_i16, r#"name: "Aktion""#);
    check!(city, "city", 1, r#"city: "A Corunha""#);
    check!(payment, "payment", 1, r#"amount: "3.49""#);
    check!(staff, "staff", 1_i16, r#"email: "mike@example.org""#);
}

#[tokio::test(flavor = "multi_thread")]
async fn inserts_and_deletes_are_recorded_as_stored() {
    let Some(sakila) = Sakila::open().await else { return };
    let (created, transactions) = written(
        &sakila,
        r#"mutation { languageCreateOne(data: { languageId: 7, name: "Frisian", lastUpdate: "1999-01-01 00:00:00 UTC" }) { languageId lastUpdate } }"#,
    )
    .await;
    let id = created["languageCreateOne"]["languageId"].as_i64().unwrap();
    let stored = language::Entity::find_by_id(i16::try_from(id).unwrap()).one(&sakila.plain).await.unwrap().unwrap();
    let after = transactions[0].changes[0].after.as_ref().unwrap();
    assert_eq!(after.cells().map(|cell| cell.map(str::to_owned)).collect::<Vec<_>>(), cells_of(&stored));
    assert!(!created["languageCreateOne"]["lastUpdate"].as_str().unwrap().starts_with("1999"), "{created}");

    let (deleted, transactions) =
        written(&sakila, &format!("mutation {{ languageDelete(filter: {{ languageId: {{ eq: {id} }} }}) }}")).await;
    assert_eq!(deleted["languageDelete"], 1);
    assert_eq!(transactions[0].changes[0].before.as_ref(), Some(after));
}

/// What PostgreSQL's schema has and the others' do not: arrays, enumerations, columns that a trigger fills.
#[tokio::test(flavor = "multi_thread")]
async fn arrays_and_enumerations_are_served_and_recorded() {
    use sakila::postgres::entities::film;
    let Some(sakila) = Sakila::postgres().await else { return };
    let stored = async || film::Entity::find_by_id(1).one(&sakila.plain).await.unwrap().unwrap();
    let before = stored().await;
    let features = json!(["Deleted Scenes", "Behind the Scenes"]);
    let film_1 = "{ film(filters: { filmId: { eq: 1 } }) { nodes { rating specialFeatures releaseYear } } }";
    let node = sakila.data(film_1, json!({})).await;
    assert_eq!(node["film"]["nodes"][0], json!({ "rating": "PG", "specialFeatures": features, "releaseYear": 2006 }));

    let rated = "{ film(filters: { rating: { is_in: [PG] } }) { aggregate { count } } }";
    assert_eq!(sakila.data(rated, json!({})).await["film"]["aggregate"]["count"], 194);

    // Written, answered and recorded.
    let document = r#"mutation { filmUpdate(data: { specialFeatures: ["\"A\", {b}", ""], rating: NC17 }, filter: { filmId: { eq: 1 } })
         { specialFeatures rating } }"#;
    let (data, transactions) = written(&sakila, document).await;
    assert_eq!(data["filmUpdate"], json!([{ "specialFeatures": ["\"A\", {b}", ""], "rating": "NC17" }]));
    let changes: Vec<_> = transactions.iter().flat_map(|transaction| &transaction.changes).collect();
    let cells = |image: &Option<tidewire_outbox::Image>| -> Vec<_> {
        image.as_ref().unwrap().cells().map(|cell| cell.map(str::to_owned)).collect()
    };
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!(cells(&changes[0].before), cells_of(&before));
    assert_eq!(cells(&changes[0].after), cells_of(&stored().await));

    // Filtered, by the database and on the way.
    let meta = sakila.recorder.catalog().of::<film::Entity>().unwrap();
    for (operators, expected) in [
        (json!({ "array_contains": ["", "\"A\", {b}"] }), 1),
        (json!({ "array_contains": ["Trailers"] }), 535),
        (json!({ "array_contained": ["Trailers"] }), 72),
        (json!({ "array_overlap": ["Trailers", ""] }), 536),
        (json!({ "array_contains": [] }), 1000),
        (json!({ "array_overlap": [] }), 0),
        (json!({ "is_null": true }), 0),
    ] {
        let query = "query ($f: FilmFilterInput) { film(filters: $f) { aggregate { count } } }";
        let count = sakila.data(query, json!({ "f": { "specialFeatures": operators } })).await;
        assert_eq!(count["film"]["aggregate"]["count"], expected, "{operators}");
        let Some((operator, values)) = operators.as_object().unwrap().iter().next().filter(|(_, v)| v.is_array())
        else {
            continue;
        };
        let values = values.as_array().unwrap().iter().map(|value| value.as_str().unwrap().into()).collect();
        let operator = match operator.as_str() {
            "array_contains" => ArrayOperator::Contains,
            "array_contained" => ArrayOperator::Contained,
            _ => ArrayOperator::Overlaps,
        };
        let column = meta.columns.iter().position(|column| column.name == "special_features").unwrap();
        let filter = Filter::Array(column, operator, values);
        let predicate = sakila.recorder.log().predicate(meta, &filter).await.unwrap();
        let mut snapshot = sakila.recorder.log().snapshot(meta, Filter::all(), 500).await.unwrap();
        let mut passing = 0;
        while let Some(rows) = snapshot.next().await.unwrap() {
            passing += rows.iter().filter(|row| predicate.matches(row)).count();
        }
        assert_eq!(passing, expected, "{operators}");
    }
}

/// What the application's triggers write is recorded in its place: into another synced table, and into the row itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_triggers_write_is_recorded_on_mariadb() {
    use sakila::mysql::entities::{customer, film, film_text};
    let Some(sakila) = Sakila::mariadb().await else { return };
    let db = &sakila.plain;
    let cells = |image: &Option<tidewire_outbox::Image>| -> Vec<_> {
        image.as_ref().unwrap().cells().map(|cell| cell.map(str::to_owned)).collect()
    };

    // GIVEN a film, and what stands in `film_text` of it
    let film = async || film::Entity::find_by_id(1).one(db).await.unwrap().unwrap();
    let text = async || film_text::Entity::find_by_id(1_i16).one(db).await.unwrap().unwrap();
    let before = (film().await, text().await);

    // WHEN it is given another title and another rating
    let document = r#"mutation { filmUpdate(data: { title: "ACADEMY DINOSAUR II", rating: NC17 }, filter: { filmId: { eq: 1 } })
        { title rating } }"#;
    let (data, transactions) = written(&sakila, document).await;

    // THEN the film's change is told, and after it that of the other table, in one transaction
    assert_eq!(data["filmUpdate"], json!([{ "title": "ACADEMY DINOSAUR II", "rating": "NC17" }]));
    let after = (film().await, text().await);
    assert_eq!(
        (after.1.title.as_str(), after.0.rating),
        ("ACADEMY DINOSAUR II", Some(sakila::mysql::entities::sea_orm_active_enums::Rating::Nc17))
    );
    assert_eq!(transactions.len(), 1);
    let [of_film, of_text] = &*transactions[0].changes else { panic!("{:?}", transactions[0].changes) };
    assert_eq!((cells(&of_film.before), cells(&of_film.after)), (cells_of(&before.0), cells_of(&film().await)));
    assert_eq!((cells(&of_text.before), cells(&of_text.after)), (cells_of(&before.1), cells_of(&after.1)));

    // A column that a trigger fills before the row is written.
    let document = r#"mutation { customerCreateOne(data: { storeId: 1, firstName: "Ada", lastName: "L", addressId: 5, active: 1,
        createDate: "1999-01-01 00:00:00" }) { customerId createDate } }"#;
    let (data, transactions) = written(&sakila, document).await;
    let id = i32::try_from(data["customerCreateOne"]["customerId"].as_i64().unwrap()).unwrap();
    let stored = customer::Entity::find_by_id(id).one(db).await.unwrap().unwrap();
    assert_eq!(cells(&transactions[0].changes[0].after), cells_of(&stored));
    assert!(!data["customerCreateOne"]["createDate"].as_str().unwrap().starts_with("1999"), "{data}");

    // An enumeration is compared as its own texts.
    let rated = "{ film(filters: { rating: { is_in: [PG13, NC17] } }) { aggregate { count } } }";
    let counted = sakila.rows("SELECT CAST(count(*) AS CHAR) FROM film WHERE rating IN ('PG-13', 'NC-17')").await;
    assert_eq!(sakila.data(rated, json!({})).await["film"]["aggregate"]["count"], counted[0]);
}
