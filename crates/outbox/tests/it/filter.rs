//! A filter means the same in SQL and in memory.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*, sample::select, test_runner::TestRunner};
use sea_orm::{
    ActiveModelBehavior, ActiveModelTrait, ConnectionTrait, DbBackend, EntityTrait, IntoActiveModel, Iterable,
    PrimaryKeyToColumn, sea_query::Value,
};
use tidewire_outbox::{
    Direction, EntityMeta, Filter, Image, Item, Kind, Recorder, Select, cell,
    filter::{Comparison, Like, Predicate, PredicateIndex},
    json::Scanner,
};
use tidewire_testkit::{
    TestDatabase,
    zoo::{self, arbitrary, everything, keeper, specimen},
};

use crate::support::{Zoo, run};

/// A filter whose values are still places in a pool of rows, so that it often finds some.
#[derive(Debug, Clone)]
enum Sketch {
    All(Vec<Sketch>),
    Any(Vec<Sketch>),
    Not(Box<Sketch>),
    Leaf { column: usize, operator: u8, values: [usize; 3], pattern: String },
}

const POOL: usize = 16;

fn sketch() -> impl Strategy<Value = Sketch> {
    let wildcards =
        vec(select(vec!["%", "_", "a", "A", "ü", "\\", "|", "\"", "0", ""]), 0..4).prop_map(|parts| parts.concat());
    let leaf = (0..64_usize, any::<u8>(), [0..POOL, 0..POOL, 0..POOL], wildcards)
        .prop_map(|(column, operator, values, pattern)| Sketch::Leaf { column, operator, values, pattern });
    leaf.prop_recursive(4, 12, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Sketch::All),
            vec(inner.clone(), 0..4).prop_map(Sketch::Any),
            inner.prop_map(|inner| Sketch::Not(Box::new(inner))),
        ]
    })
}

impl Sketch {
    fn filter(&self, meta: &EntityMeta, pool: &[Image]) -> Filter {
        let (column, operator, values, pattern) = match self {
            Self::All(parts) => return Filter::All(parts.iter().map(|part| part.filter(meta, pool)).collect()),
            Self::Any(parts) => return Filter::Any(parts.iter().map(|part| part.filter(meta, pool)).collect()),
            Self::Not(inner) => return Filter::Not(Box::new(inner.filter(meta, pool))),
            Self::Leaf { column, operator, values, pattern } => {
                (column % meta.columns.len(), operator, values, pattern)
            }
        };
        let of = &meta.columns[column];
        let value =
            |place: usize| -> Value { cell::read_value(of, pool[values[place] % pool.len()].cell(column)).unwrap() };
        let compare = |comparison| Filter::Compare(column, comparison, value(0));
        let text = matches!(of.kind, Kind::Text);
        let ordered = of.kind != Kind::Json;
        match operator % 12 {
            0 => Filter::IsNull(column),
            1 => compare(Comparison::NotEqual),
            2 => Filter::In(column, (0..3).map(value).collect()),
            3 => Filter::In(column, Vec::new()),
            4 if ordered => compare(Comparison::Less),
            5 if ordered => compare(Comparison::LessOrEqual),
            6 if ordered => compare(Comparison::Greater),
            7 if ordered => compare(Comparison::GreaterOrEqual),
            8 if ordered => Filter::Between(column, value(0), value(1)),
            9 if text => Filter::Like(column, Like::pattern(pattern.clone())),
            10 if text => {
                let whole = cell::text(pool[values[0] % pool.len()].cell(column).unwrap_or("\"\"")).into_owned();
                let part: String = whole.chars().skip(1).take(2).collect();
                Filter::Like(column, Like::literal(&part, true, values[1] % 2 == 0))
            }
            11 if text => {
                let whole = cell::text(pool[values[0] % pool.len()].cell(column).unwrap_or("\"\"")).into_owned();
                Filter::EqualsIgnoringCase(column, whole.to_uppercase())
            }
            _ => compare(Comparison::Equal),
        }
    }
}

#[test]
fn a_filter_means_the_same_in_sql_and_in_memory() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // GIVEN a table whose texts also compare by other rules than byte by byte, and hold times in every form that SQLite knows
    let zoo = runtime.block_on(Zoo::with(async |db| {
        let table: String = db
            .query_one_raw(sea_orm::Statement::from_string(
                db.get_database_backend(),
                "SELECT sql FROM sqlite_schema WHERE name = 'everything'",
            ))
            .await
            .unwrap()
            .unwrap()
            .try_get_by_index(0)
            .unwrap();
        let table = table.replace("\"maybe_text\" varchar", "\"maybe_text\" varchar COLLATE NOCASE");
        assert!(table.contains("NOCASE"), "{table}");
        run(db, "DROP TABLE everything").await;
        run(db, &table).await;
    }));
    agree::<everything::Entity>(
        &runtime,
        &zoo.recorder,
        arbitrary::everything(),
        Some(
            "UPDATE everything SET maybe_timestamp = datetime(maybe_timestamp), maybe_timestamp_tz = NULL WHERE id % 3 = 0",
        ),
    );
}

/// On a column whose collation finds more texts equal than there are, too.
#[test]
fn a_filter_means_the_same_in_sql_and_in_memory_on_mariadb() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let Some(database) = runtime.block_on(TestDatabase::mariadb()) else { return };
    let zoo = runtime.block_on(Zoo::of(database));
    runtime.block_on(run(
        zoo.recorder.unrecorded(),
        "ALTER TABLE everything MODIFY maybe_text varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci",
    ));
    let rows = arbitrary::everything().prop_map(arbitrary::for_mariadb);
    agree::<everything::Entity>(&runtime, &zoo.recorder, rows, None);
}

/// On columns that sort by the rules of a language, and enumerations, which sort as they were defined, too.
#[test]
fn a_filter_means_the_same_in_sql_and_in_memory_on_postgres() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let Some(database) = runtime.block_on(TestDatabase::postgres()) else { return };
    let registry = zoo::registry().entity::<specimen::Entity>();
    let recorder = runtime.block_on(database.recorder(registry, async |db| {
        zoo::create(db).await;
        db.execute(&sea_orm::Schema::new(DbBackend::Postgres).create_table_from_entity(specimen::Entity))
            .await
            .unwrap();
        run(db, "ALTER TABLE specimen ALTER maybe_text TYPE varchar(255) COLLATE \"und-x-icu\"").await;
    }));
    agree::<specimen::Entity>(&runtime, &recorder, arbitrary::specimen(), None);
}

/// Rather than tell of changes that a query with the same filter would not find.
#[tokio::test]
async fn a_collation_that_only_postgres_knows_is_no_filter_of_changes() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let recorder = database
        .recorder(zoo::registry(), async |db| {
            zoo::create(db).await;
            run(
                db,
                "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
                 ALTER TABLE keeper ALTER name TYPE varchar(255) COLLATE nocase",
            )
            .await;
        })
        .await;
    let meta = recorder.catalog().of::<keeper::Entity>().unwrap();
    let filter = |column: &str| {
        let column = meta.columns.iter().position(|meta| meta.name == column).unwrap();
        Filter::Compare(column, Comparison::Equal, Value::from("ada"))
    };
    let refused = recorder.log().predicate(meta, &filter("name")).await.unwrap_err();
    assert!(refused.to_string().contains("keeper.name has a collation that only the database knows"), "{refused}");
    recorder.log().predicate(meta, &filter("email")).await.unwrap();
}

/// Rows get keys of the database's.
fn agree<E>(
    runtime: &tokio::runtime::Runtime,
    recorder: &Recorder,
    rows: impl Strategy<Value = E::Model>,
    then: Option<&str>,
) where
    E: EntityTrait<Model: IntoActiveModel<E::ActiveModel>>,
    E::ActiveModel: ActiveModelBehavior + Send,
{
    let meta = recorder.catalog().of::<E>().unwrap().clone();
    let mut runner = TestRunner::new(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() });
    let cases = (vec(rows, POOL), vec(sketch(), 40));
    let result = runner.run(&cases, |(rows, sketches)| {
        runtime.block_on(async {
            E::delete_many().exec(recorder).await.unwrap();
            for row in rows {
                let mut row = row.into_active_model().reset_all();
                for key in E::PrimaryKey::iter() {
                    row.not_set(key.into_column());
                }
                row.insert(recorder).await.unwrap();
            }
            if let Some(then) = then {
                run(recorder, then).await;
            }
            let images = images(recorder, &meta).await;
            let mut predicates = Vec::new();
            for sketch in &sketches {
                let filter = sketch.filter(&meta, &images);
                let predicate = recorder.log().predicate(&meta, &filter).await.unwrap();
                predicates.push(predicate.clone());

                // WHEN the database and the predicate are asked for the rows that pass
                let select = Select { items: vec![Item::Cell(0)], filter: filter.clone(), ..Select::new(meta.id) };
                let found = recorder.fetch(&[select]).await.unwrap();
                let found: BTreeSet<i64> = keys(&found[0]).into_iter().collect();
                let matched: BTreeSet<i64> = images
                    .iter()
                    .filter(|image| predicate.matches(image))
                    .map(|image| image.cell(0).unwrap().parse().unwrap())
                    .collect();

                // THEN they agree
                prop_assert_eq!(found, matched, "{:?}", filter);
            }
            comes_after(recorder, &meta, &images).await?;
            is_indexed(predicates, &images)
        })
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

/// An index finds those predicates that pass, and no others, whatever came and went before.
fn is_indexed(predicates: Vec<Predicate>, images: &[Image]) -> Result<(), TestCaseError> {
    let mut index = PredicateIndex::default();
    let mut known = BTreeMap::new();
    let mut found = Vec::new();
    for round in 0..3 {
        for predicate in &predicates {
            known.insert(index.insert(predicate.clone()), predicate);
        }
        for image in images {
            index.find(image, &mut found);
            let passed: Vec<_> =
                known.iter().filter(|(_, predicate)| predicate.matches(image)).map(|(id, _)| *id).collect();
            prop_assert_eq!(&found, &passed);
            for (id, predicate) in &known {
                prop_assert!(!predicate.matches(image) || index.leads(*id, image));
                // What is said of how it is found is said of each, whatever it is; without a key, every row leads to it.
                prop_assert!(index.keys(*id, &[]).is_some() || index.leads(*id, image));
                let deciding = predicate.deciding(image, &[]);
                prop_assert!(deciding.iter().all(|part| !part.condition.is_empty()));
            }
        }
        known.retain(|id, _| {
            let stays = id.index() % 3 == round;
            if !stays {
                index.remove(*id);
            }
            stays
        });
        prop_assert_eq!(index.len(), known.len());
    }
    Ok(())
}

/// What is said to come after a row is sorted after it, whatever it is sorted by. By whole numbers, that is all that does.
async fn comes_after(recorder: &Recorder, meta: &EntityMeta, images: &[Image]) -> Result<(), TestCaseError> {
    let of_key = |key: i64| images.iter().find(|image| image.cell(0) == Some(key.to_string().as_str())).unwrap();
    for column in 0..meta.columns.len() {
        for direction in [Direction::Ascending, Direction::Descending] {
            let order = vec![(column, direction)];
            let select = Select { items: vec![Item::Cell(0)], order, ..Select::new(meta.id) };
            let sorted = keys(&recorder.fetch(std::slice::from_ref(&select)).await.unwrap()[0]);
            for (place, key) in sorted.iter().enumerate() {
                let cells: Vec<_> = select
                    .sorting(meta)
                    .iter()
                    .map(|(column, _)| of_key(*key).cell(*column).map(str::to_owned))
                    .collect();
                let after = recorder.log().after(&select, &cells).await.unwrap();
                let after = |key: &i64| after.as_ref().is_some_and(|after| after.matches(of_key(*key)));
                let name = &meta.columns[column].name;
                prop_assert!(!sorted[..=place].iter().any(after), "{} of {:?} by {}", key, sorted, name);
                if matches!(meta.columns[column].kind, Kind::Integer { .. }) && !meta.columns[column].nullable {
                    prop_assert!(sorted[place + 1..].iter().all(after), "{} of {:?} by {}", key, sorted, name);
                }
            }
        }
    }
    Ok(())
}

async fn images(recorder: &Recorder, meta: &EntityMeta) -> Vec<Image> {
    let mut snapshot = recorder.log().snapshot(meta, Filter::all(), 1_000).await.unwrap();
    snapshot.next().await.unwrap().unwrap()
}

/// The first cells of the rows that a select gave.
fn keys(json: &str) -> Vec<i64> {
    let mut scanner = Scanner::new(json);
    scanner.open().unwrap();
    let mut keys = Vec::new();
    while scanner.next_item().unwrap() {
        let mut row = Scanner::new(scanner.value().unwrap());
        row.next_item().unwrap();
        keys.push(row.value().unwrap().parse().unwrap());
    }
    keys
}
