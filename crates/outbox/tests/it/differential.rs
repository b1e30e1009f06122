//! The same work on the same rows gives the same changes under every capture that a database has, image by image, for every column type.

use std::collections::BTreeMap;

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DbBackend, DbErr, EntityTrait, ExprTrait, IntoActiveModel,
    Iterable, QueryFilter, Set, TransactionSession, TransactionTrait,
    sea_query::{Expr, OnConflict},
};
use tidewire_outbox::{Actor, Change, Cursor, Origin, Recorder, Step};
use tidewire_testkit::{
    Target, TestDatabase, soon,
    zoo::{self, animal, arbitrary, chip, diet, food, keeper, specimen, visit},
};

use crate::support::id;

/// How many transactions of work.
const ROUNDS: usize = 250;
const SEED: u64 = 7;
/// How many kinds of steps there are.
const KINDS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn all_captures_of_postgres_record_the_same() {
    record_the_same(&[Target::PostgresHooks, Target::PostgresTriggers, Target::PostgresLog]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_captures_of_mariadb_record_the_same() {
    record_the_same(&[Target::MariadbHooks, Target::MariadbTriggers]).await;
}

async fn record_the_same(targets: &[Target]) {
    let mut histories: Vec<(Target, Vec<History>)> = Vec::new();
    for &target in targets {
        let Some(database) = target.database().await else { return };
        let recorder = open(&database).await;
        work(&recorder).await;
        assert_is_stored(&recorder).await;
        histories.push((target, history(&recorder).await));
        recorder.close().await;
    }
    let (first, expected) = &histories[0];
    assert!(expected.len() > ROUNDS / 2, "{}", expected.len());
    for (other, history) in &histories[1..] {
        for (place, (expected, found)) in expected.iter().zip(history).enumerate() {
            assert_eq!(expected, found, "transaction {place}, by {first:?} and by {other:?}");
        }
        assert_eq!(expected.len(), history.len(), "transactions by {first:?} and by {other:?}");
    }
}

async fn open(database: &TestDatabase) -> Recorder {
    let registry = zoo::registry().entity::<specimen::Entity>();
    let create = async |db: &sea_orm::DatabaseConnection| {
        zoo::create(db).await;
        let backend = db.get_database_backend();
        db.execute(&sea_orm::Schema::new(backend).create_table_from_entity(specimen::Entity)).await.unwrap();
        if backend == DbBackend::MySql {
            zoo::keep_fractions(db).await;
        }
    };
    database.recorder(registry, create).await
}

/// What a transaction did to each row, in the order of the row's changes: that of different rows is a capture's own.
pub(crate) type History = BTreeMap<(String, Vec<Option<String>>), Vec<String>>;

pub(crate) async fn history(recorder: &Recorder) -> Vec<History> {
    let catalog = recorder.catalog();
    let end = recorder.log().position().await.unwrap();
    let mut follower = recorder.log().follow_all(Cursor::start()).await.unwrap();
    let mut all = Vec::new();
    while !follower.cursor().covers(&end) {
        let Step::Transactions { transactions, .. } = soon(follower.next()).await.unwrap() else { panic!("a resync") };
        for transaction in transactions {
            let mut history = History::new();
            for change in &transaction.changes {
                let meta = catalog.entity(change.entity);
                let key = change.key(meta).map(|cell| cell.map(str::to_owned)).collect();
                history.entry((meta.name.to_owned(), key)).or_default().push(describe(change));
            }
            all.push(history);
        }
    }
    all
}

fn describe(change: &Change) -> String {
    let cells = |image: &Option<tidewire_outbox::Image>| {
        image.as_ref().map(|image| image.cells().map(|cell| cell.map(str::to_owned)).collect::<Vec<_>>())
    };
    format!(
        "{} {:?} -> {:?} by {:?} from {:?}",
        change.operation,
        cells(&change.before),
        cells(&change.after),
        change.actor,
        change.origin,
    )
}

/// The last images of rows are the rows as SeaORM reads them.
async fn assert_is_stored(recorder: &Recorder) {
    let (catalog, db) = (recorder.catalog(), recorder.unrecorded());
    let meta = catalog.of::<specimen::Entity>().unwrap();
    let mut replica = tidewire_testkit::Replica::default();
    let mut specimens: BTreeMap<i64, specimen::Model> = BTreeMap::new();
    let end = recorder.log().position().await.unwrap();
    let mut follower = recorder.log().follow_all(Cursor::start()).await.unwrap();
    while !follower.cursor().covers(&end) {
        let Step::Transactions { transactions, .. } = soon(follower.next()).await.unwrap() else { panic!("a resync") };
        for transaction in transactions {
            replica.apply(catalog, &transaction);
            for change in transaction.changes.iter().filter(|change| change.entity == meta.id) {
                let model = |image: &Option<tidewire_outbox::Image>| {
                    image.as_ref().map(|image| image.model::<specimen::Entity>(meta).unwrap())
                };
                if let Some(before) = model(&change.before) {
                    assert_eq!(specimens.remove(&before.id).as_ref(), Some(&before));
                }
                specimens.extend(model(&change.after).map(|after| (after.id, after)));
            }
        }
    }
    // Cells are not compared: jsonb has its own order of keys, and SeaORM's documents another.
    let stored = specimen::Entity::find().all(db).await.unwrap();
    assert_eq!(stored.into_iter().map(|row| (row.id, row)).collect::<BTreeMap<_, _>>(), specimens);
    replica.assert_equals::<animal::Entity>(catalog, db).await;
    replica.assert_equals::<keeper::Entity>(catalog, db).await;
    replica.assert_equals::<diet::Entity>(catalog, db).await;
    replica.assert_equals::<food::Entity>(catalog, db).await;
}

async fn work(recorder: &Recorder) {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[SEED as u8; 32]);
    let on_mariadb = ConnectionTrait::get_database_backend(recorder) == DbBackend::MySql;
    let mut worker =
        Worker { specimens: TestRunner::new_with_rng(Config::default(), rng), done: [0; KINDS], on_mariadb };
    for round in 0..ROUNDS {
        let db = recorder.clone().acting_as(Actor::user(round % 3));
        let db = if round % 4 == 0 { db.from(Origin::new("elsewhere")) } else { db };
        // What fails (a constraint) fails under every capture.
        if random.random_range(0..3) == 0 {
            let _ = worker.step(&db, &mut random).await;
            continue;
        }
        let transaction = db.begin().await.unwrap();
        for _ in 0..random.random_range(1..6) {
            let savepoint = transaction.begin().await.unwrap();
            match worker.step(&savepoint, &mut random).await {
                Ok(()) if random.random_range(0..6) > 0 => savepoint.commit().await.unwrap(),
                _ => savepoint.rollback().await.unwrap(),
            }
        }
        if random.random_range(0..8) == 0 {
            transaction.rollback().await.unwrap();
        } else {
            transaction.commit().await.unwrap();
        }
    }
    assert!(worker.done.iter().all(|&times| times > 2), "{:?}", worker.done);
}

struct Worker {
    specimens: TestRunner,
    /// How often each kind of step succeeded.
    done: [u32; KINDS],
    on_mariadb: bool,
}

impl Worker {
    fn specimen(&mut self) -> specimen::ActiveModel {
        let row = arbitrary::specimen().new_tree(&mut self.specimens).unwrap().current();
        let row = if self.on_mariadb { arbitrary::specimen_for_mariadb(row) } else { row };
        let mut row = row.into_active_model().reset_all();
        row.id = sea_orm::ActiveValue::NotSet;
        row
    }

    async fn step(&mut self, db: &impl ConnectionTrait, random: &mut ChaCha8Rng) -> Result<(), DbErr> {
        let kind = random.random_range(0..KINDS);
        self.perform(kind, db, random).await?;
        self.done[kind] += 1;
        Ok(())
    }

    async fn perform(&mut self, kind: usize, db: &impl ConnectionTrait, random: &mut ChaCha8Rng) -> Result<(), DbErr> {
        let n = random.random_range(1..8_u8);
        let some = i64::from(random.random_range(1..30_u8));
        match kind {
            0 | 1 => drop(self.specimen().insert(db).await?),
            2 => {
                let rows = [self.specimen(), self.specimen(), self.specimen()];
                specimen::Entity::insert_many(rows).exec_without_returning(db).await?;
            }
            3 => {
                let mut row = self.specimen();
                row.id = Set(some);
                row.update(db).await?;
            }
            4 => {
                let mut rows = [self.specimen(), self.specimen()];
                rows[0].id = Set(some);
                rows[1].id = Set(some + 1);
                let columns = specimen::Column::iter().filter(|column| !matches!(column, specimen::Column::Id));
                let clause = OnConflict::column(specimen::Column::Id).update_columns(columns).to_owned();
                specimen::Entity::insert_many(rows).on_conflict(clause).exec(db).await?;
            }
            5 => {
                let later = match self.on_mariadb {
                    true => "`timestamp` + interval 1 microsecond",
                    false => "timestamp + interval '1 microsecond'",
                };
                let update = specimen::Entity::update_many()
                    .col_expr(specimen::Column::Double, Expr::col(specimen::Column::Double).div(Expr::cust("3")))
                    .col_expr(specimen::Column::Decimal, Expr::col(specimen::Column::Decimal).mul(Expr::cust("0.1")))
                    .col_expr(specimen::Column::MaybeTimestamp, Expr::cust(later));
                update.filter(specimen::Column::Id.between(some, some + 4)).exec(db).await?;
            }
            6 => {
                let delete = specimen::Entity::delete_many().filter(specimen::Column::Id.eq(some));
                if self.on_mariadb {
                    delete.exec(db).await?;
                } else {
                    delete.exec_with_returning(db).await?;
                }
            }
            7 => {
                let quote = if self.on_mariadb { '`' } else { '"' };
                let text = format!(
                    "UPDATE specimen SET id = id + 40 WHERE id IN ({some}, {some} + 2); UPDATE specimen SET {quote}int{quote} = {quote}int{quote} WHERE id > 20"
                );
                db.execute_unprepared(&text).await?;
            }
            8 | 9 => {
                let rows = [1, 2, 3].map(|m| keeper::ActiveModel {
                    id: Set(i32::from(m * n)),
                    email: Set(format!("{}@zoo.example", m * n)),
                    name: Set(format!("{}", random.random_range(0..3))),
                    boss_id: Set(random.random::<bool>().then_some(i32::from(n))),
                });
                let clause = OnConflict::column(keeper::Column::Id)
                    .update_columns([keeper::Column::Name, keeper::Column::BossId])
                    .to_owned();
                keeper::Entity::insert_many(rows).on_conflict(clause).exec_without_returning(db).await?;
            }
            10 | 11 => {
                let row = crate::support::animal(n, "leo", random.random::<bool>().then_some(i32::from(n)));
                let clause = OnConflict::column(animal::Column::Id)
                    .update_columns([animal::Column::Name, animal::Column::KeeperId])
                    .to_owned();
                animal::Entity::insert(row).on_conflict(clause).exec(db).await?;
            }
            12 => {
                let rows = (0..n).map(|n| food::ActiveModel { name: Set(format!("food {n}")), ..Default::default() });
                let mut clause = OnConflict::column(food::Column::Name);
                let clause = match self.on_mariadb {
                    true => clause.do_nothing_on([food::Column::Id]).to_owned(),
                    false => clause.do_nothing().to_owned(),
                };
                food::Entity::insert_many(rows).on_conflict(clause).exec_without_returning(db).await?;
            }
            13 => {
                let conflict = match self.on_mariadb {
                    true => {
                        "ON DUPLICATE KEY UPDATE grams = IF(diet.grams < 20, diet.grams + VALUES(grams), diet.grams)"
                    }
                    false => {
                        "ON CONFLICT (animal_id, food_id) DO UPDATE SET grams = diet.grams + excluded.grams WHERE diet.grams < 20"
                    }
                };
                let insert = format!(
                    "INSERT INTO diet (animal_id, food_id, grams) SELECT a.id, f.id, 5 FROM animal a, food f WHERE f.id % 2 = 0 {conflict}"
                );
                db.execute_unprepared(&insert).await?;
            }
            14 => {
                let row = chip::ActiveModel { serial: Set(some), animal_id: Set(id(n)) };
                row.insert(db).await?;
                let row = visit::ActiveModel {
                    animal_id: Set(id(n)),
                    number: Set(1),
                    at: Set("2026-11-20T10:00:00".parse().unwrap()),
                    ..Default::default()
                };
                row.insert(db).await?;
            }
            15 => {
                keeper::Entity::delete_by_id(i32::from(n)).exec(db).await?;
            }
            16 => {
                animal::Entity::delete_many().filter(animal::Column::Id.eq(id(n))).exec(db).await?;
            }
            17 => {
                db.execute_unprepared(&format!(
                    "UPDATE keeper SET id = id + 50 WHERE id = {n}; UPDATE food SET id = id + 100 WHERE id = {some}"
                ))
                .await?;
            }
            18 => {
                let update = match self.on_mariadb {
                    true => format!(
                        "UPDATE animal JOIN keeper AS k ON k.id = keeper_id SET animal.name = concat(k.name, '!') WHERE k.id > {n}"
                    ),
                    false => format!(
                        "UPDATE animal SET name = k.name || '!' FROM keeper AS k WHERE k.id = keeper_id AND k.id > {n}"
                    ),
                };
                db.execute_unprepared(&update).await?;
            }
            _ => {
                food::Entity::delete_many().filter(food::Column::Id.gt(some)).exec(db).await?;
            }
        }
        Ok(())
    }
}
