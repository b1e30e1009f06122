use std::sync::Arc;

use sea_orm::{ConnectionTrait, DatabaseConnection, EntityTrait, Set};
use tidewire_outbox::{Cursor, Operation, Recorder, RecorderOptions, ResyncReason, Step, Transaction};
use tidewire_testkit::{
    Replica, TestDatabase, soon,
    zoo::{self, animal, chip, diet, food, keeper, visit},
};
use uuid::Uuid;

/// A zoo whose recorder writes to a fresh database.
pub(crate) struct Zoo {
    pub(crate) recorder: Recorder,
    pub(crate) database: TestDatabase,
}

impl Zoo {
    pub(crate) async fn new() -> Self {
        Self::with(async |_| {}).await
    }

    /// `prepare` runs on the plain connection once the tables are there.
    pub(crate) async fn with(prepare: impl AsyncFnOnce(&DatabaseConnection)) -> Self {
        Self::on(TestDatabase::sqlite(), prepare).await
    }

    /// In a database that is there and empty.
    pub(crate) async fn of(database: TestDatabase) -> Self {
        Self::on(database, async |_| {}).await
    }

    async fn on(database: TestDatabase, prepare: impl AsyncFnOnce(&DatabaseConnection)) -> Self {
        let recorder = database
            .recorder(zoo::registry(), async |db| {
                zoo::create(db).await;
                prepare(db).await;
            })
            .await;
        Self { recorder, database }
    }

    /// Rows of every kind: three keepers, four animals (two of them the first keeper's), their visits, chips and diets.
    pub(crate) async fn populate(&self) {
        let db = &self.recorder;
        let keepers = [(1, "ada", None), (2, "bo", Some(1)), (3, "cy", Some(1))];
        keeper::Entity::insert_many(keepers.map(|(id, name, boss)| keeper::ActiveModel {
            id: Set(id),
            email: Set(format!("{name}@zoo.example")),
            name: Set(name.into()),
            boss_id: Set(boss),
        }))
        .exec(db)
        .await
        .unwrap();
        let animals = [(1, "leo", Some(1)), (2, "otto", Some(1)), (3, "sid", Some(2)), (4, "stray", None)];
        animal::Entity::insert_many(animals.map(|(n, name, keeper)| animal(n, name, keeper))).exec(db).await.unwrap();
        visit::Entity::insert_many([(1, 1), (1, 2), (2, 1)].map(|(n, number)| visit::ActiveModel {
            animal_id: Set(id(n)),
            number: Set(number),
            at: Set("2026-11-20T10:00:00".parse().unwrap()),
            report: Set(Some("fine".into())),
            picture: Set(Some(vec![0, 255])),
        }))
        .exec(db)
        .await
        .unwrap();
        chip::Entity::insert(chip::ActiveModel { serial: Set(1 << 60), animal_id: Set(id(1)) }).exec(db).await.unwrap();
        food::Entity::insert_many(
            ["meat", "fish"].map(|name| food::ActiveModel { name: Set(name.into()), ..Default::default() }),
        )
        .exec(db)
        .await
        .unwrap();
        diet::Entity::insert_many([(1, 1), (2, 1), (2, 2)].map(|(animal, food)| diet::ActiveModel {
            animal_id: Set(id(animal)),
            food_id: Set(food),
            ..Default::default()
        }))
        .exec(db)
        .await
        .unwrap();
    }

    /// All transactions after a cursor that have been committed by now.
    pub(crate) async fn transactions(&self, after: Cursor) -> Vec<Arc<Transaction>> {
        transactions(&self.recorder, after).await
    }

    /// Rebuilds all tables from the log and holds them against the tables themselves.
    pub(crate) async fn assert_replays(&self) -> Replica {
        let mut replica = Replica::default();
        let catalog = self.recorder.catalog();
        for transaction in self.transactions(Cursor::start()).await {
            replica.apply(catalog, &transaction);
        }
        let db = self.recorder.unrecorded();
        replica.assert_equals::<keeper::Entity>(catalog, db).await;
        replica.assert_equals::<animal::Entity>(catalog, db).await;
        replica.assert_equals::<visit::Entity>(catalog, db).await;
        replica.assert_equals::<chip::Entity>(catalog, db).await;
        replica.assert_equals::<food::Entity>(catalog, db).await;
        replica.assert_equals::<diet::Entity>(catalog, db).await;
        replica.assert_equals::<zoo::everything::Entity>(catalog, db).await;
        replica
    }
}

pub(crate) fn animal(n: u8, name: &str, keeper: Option<i32>) -> animal::ActiveModel {
    animal::ActiveModel {
        id: Set(id(n)),
        name: Set(name.into()),
        species: Set(animal::Species::SeaOtter),
        keeper_id: Set(keeper),
        weight: Set(Some(0.1 + f64::from(n))),
        ..Default::default()
    }
}

/// The key of the nth animal.
pub(crate) fn id(n: u8) -> Uuid {
    Uuid::from_bytes([n; 16])
}

/// Runs statements that must succeed.
pub(crate) async fn run(db: &impl ConnectionTrait, sql: &str) {
    db.execute_unprepared(sql).await.unwrap();
}

/// All transactions after a cursor that have been committed by now.
pub(crate) async fn transactions(recorder: &Recorder, after: Cursor) -> Vec<Arc<Transaction>> {
    let end = recorder.log().position().await.unwrap();
    let mut follower = recorder.log().follow_all(after).await.unwrap();
    let mut all = Vec::new();
    while !follower.cursor().covers(&end) {
        match soon(follower.next()).await.unwrap() {
            Step::Transactions { transactions, .. } => all.extend(transactions),
            other => panic!("{other:?}"),
        }
    }
    all
}

/// How many inserts, updates and deletes there are.
pub(crate) fn operations(transactions: &[Arc<Transaction>]) -> [usize; 3] {
    let changes: Vec<_> = transactions.iter().flat_map(|transaction| &transaction.changes).collect();
    [Operation::Insert, Operation::Update, Operation::Delete]
        .map(|operation| changes.iter().filter(|change| change.operation == operation).count())
}

/// Another node of the same database, which takes part in reading the log.
pub(crate) async fn node(zoo: &Zoo, options: RecorderOptions) -> Recorder {
    let node = Recorder::connect_with(zoo.database.url(), zoo::registry(), options).await.unwrap();
    node.start_capture().await.unwrap();
    node
}

/// Why somebody who follows from a cursor is told to start over.
pub(crate) async fn first_resync(recorder: &Recorder, after: Cursor) -> ResyncReason {
    let mut follower = recorder.log().follow_all(after).await.unwrap();
    loop {
        match soon(follower.next()).await {
            Ok(Step::Resync(reason)) => return reason,
            Ok(Step::Transactions { .. }) => {}
            Ok(Step::Ended) => panic!("ended"),
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
    }
}
