//! What is wrong is said, and nothing is lost.

use std::{future::poll_fn, task::Poll, time::Duration};

use sea_orm::{
    ActiveModelTrait, ConnectionTrait, DatabaseConnection, DbErr, EntityTrait, Set, TransactionSession,
    TransactionTrait,
};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use tidewire_outbox::{Cursor, ErrorKind, Recorder, Registry};
use tidewire_testkit::{
    TestDatabase, on_every_target, soon,
    zoo::{self, animal, food, keeper},
};

use crate::support::{Zoo, run};

mod keyless {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "tidewire_other")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i32,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

#[tokio::test]
async fn entities_that_cannot_be_synced_are_named_all_at_once() {
    let registry = Registry::new().entity::<food::Entity>().entity::<food::Entity>().entity::<keyless::Entity>();
    let error = registry.catalog().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    let text = error.to_string();
    assert!(text.contains("food is registered twice") && text.contains("tidewire_other"), "{text}");
}

#[tokio::test]
async fn a_database_that_cannot_be_captured_is_told_at_the_check() {
    // GIVEN databases without an outbox, without a table, and without a column
    let setup = async |prepare: &str| {
        let database = TestDatabase::sqlite();
        let recorder = Recorder::connect(database.url(), zoo::registry()).await.unwrap();
        let db = recorder.unrecorded();
        zoo::create(db).await;
        tidewire_outbox::install(db).await.unwrap();
        run(db, prepare).await;
        let error = recorder.check().await.unwrap_err();
        let refused = recorder.execute_unprepared("DELETE FROM food").await.unwrap_err().to_string();
        assert_eq!(error.kind(), ErrorKind::Setup);
        assert!(refused.contains(&error.to_string()), "{refused}");
        error.to_string()
    };
    let no_outbox = setup("DROP TABLE tidewire_outbox").await;
    assert!(no_outbox.contains("tidewire migrate up"), "{no_outbox}");
    let no_table = setup("PRAGMA foreign_keys = OFF; DROP TABLE chip").await;
    assert!(no_table.contains("the table chip"), "{no_table}");
    let no_column = setup("ALTER TABLE everything DROP COLUMN maybe_uuid").await;
    assert!(no_column.contains("the column everything.maybe_uuid"), "{no_column}");
    let hidden = setup(
        "CREATE TABLE odd (id INTEGER PRIMARY KEY);
         CREATE TRIGGER hides AFTER INSERT ON food BEGIN INSERT OR REPLACE INTO food (id, name) VALUES (1, 'x'); END",
    )
    .await;
    assert!(hidden.contains("trigger hides") && hidden.contains("REPLACE"), "{hidden}");
    let unknown = Recorder::connect("oracle://localhost", zoo::registry()).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Setup);
}

/// The zoo on a connection that gives up a lock soon.
async fn impatient(zoo: &Zoo) -> (DatabaseConnection, Recorder) {
    let options = zoo.database.url().parse::<SqliteConnectOptions>().unwrap().busy_timeout(Duration::from_millis(50));
    let pool = SqlitePoolOptions::new().connect_with(options).await.unwrap();
    let connection = sea_orm::SqlxSqliteConnector::from_sqlx_sqlite_pool(pool);
    let recorder = Recorder::new(&connection, zoo::registry()).unwrap();
    recorder.check().await.unwrap();
    (connection, recorder)
}

#[tokio::test]
async fn a_locked_database_is_said_to_be_busy_and_works_again_afterwards() {
    // GIVEN another process that holds the lock
    let zoo = Zoo::new().await;
    zoo.populate().await;
    let (_, recorder) = impatient(&zoo).await;
    let lock = zoo.recorder.begin().await.unwrap();
    run(&lock, "UPDATE food SET name = 'locked' WHERE id = 1").await;

    // WHEN someone writes, and reads
    let write = async || food::Entity::delete_by_id(2).exec(&recorder).await;
    let error = tidewire_outbox::Error::from(write().await.unwrap_err());
    let begun = tidewire_outbox::Error::from(recorder.begin().await.unwrap_err());

    // THEN the write is refused for now, reads go on, and later both go through
    assert_eq!((error.kind(), begun.kind()), (ErrorKind::Busy, ErrorKind::Busy));
    assert!(error.is_transient());
    assert_eq!(food::Entity::find().all(&recorder).await.unwrap().len(), 2);
    lock.commit().await.unwrap();
    write().await.unwrap();
    zoo.assert_replays().await;
}

#[tokio::test]
async fn a_read_only_database_can_be_followed_and_not_written() {
    let zoo = Zoo::new().await;
    zoo.populate().await;
    let url = zoo.database.url().replace("mode=rwc", "mode=ro");
    let recorder = Recorder::connect(&url, zoo::registry()).await.unwrap();
    let error = food::Entity::delete_by_id(2).exec(&recorder).await.unwrap_err().to_string();
    assert!(error.contains("readonly"), "{error}");
    let mut follower = recorder.log().follow_all(Cursor::start()).await.unwrap();
    let step = soon(follower.next()).await.unwrap();
    assert!(matches!(step, tidewire_outbox::Step::Transactions { transactions, .. } if transactions.len() > 3));
    assert_eq!(food::Entity::find().all(&recorder).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_statement_that_fails_leaves_nothing_behind() {
    let zoo = Zoo::new().await;
    zoo.populate().await;
    let before = zoo.recorder.log().position().await.unwrap();

    // In a transaction of its own: some rows go in before one does not.
    let rows = ["new", "meat"].map(|name| food::ActiveModel { name: Set(name.into()), ..Default::default() });
    let error = food::Entity::insert_many(rows.clone()).exec(&zoo.recorder).await.unwrap_err();
    assert!(matches!(error.sql_err(), Some(sea_orm::SqlErr::UniqueConstraintViolation(_))), "{error}");
    run(&zoo.recorder, "DELETE FROM chip").await;

    // In a transaction of the caller's, which goes on.
    let transaction = zoo.recorder.begin().await.unwrap();
    keeper::Entity::delete_by_id(3).exec(&transaction).await.unwrap();
    food::Entity::insert_many(rows).exec(&transaction).await.unwrap_err();
    let error = animal::ActiveModel { name: Set("no key".into()), ..Default::default() }.insert(&transaction).await;
    assert!(matches!(error, Err(DbErr::Exec(_) | DbErr::Query(_) | DbErr::UnpackInsertId)), "{error:?}");
    transaction.commit().await.unwrap();

    assert_eq!(zoo.transactions(before).await.len(), 2);
    zoo.assert_replays().await;
}

/// Drops writes at each point at which they wait, one point after the other, until one is done and it begins again: no clock decides what is tried.
#[derive(Debug, Default)]
struct Dropping {
    point: usize,
    done: usize,
    dropped: usize,
}

impl Dropping {
    async fn try_next(&mut self, write: impl Future<Output = ()>) {
        let mut write = Box::pin(write);
        let mut polls = 0;
        let done = poll_fn(|context| match write.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending if polls == self.point => Poll::Ready(false),
            Poll::Pending => {
                polls += 1;
                Poll::Pending
            }
        });
        if done.await {
            self.done += 1;
            self.point = 0;
            return;
        }
        if self.dropped % 2 == 1 {
            // The answer may have come, and was not read.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.dropped += 1;
        self.point += 1;
    }
}

on_every_target! {
    /// Futures are dropped: by timeouts, by clients that hang up. The next writer must not find half a transaction.
    async fn a_write_that_is_dropped_in_the_middle_is_undone_or_done(database: TestDatabase) {
        let zoo = Zoo::of(database).await;
        zoo.populate().await;
        let (mut writes, mut singles) = (Dropping::default(), Dropping::default());
        while [&writes, &singles].iter().any(|tried| tried.done < 5 || tried.dropped < 5) {
            let write = async {
                let transaction = zoo.recorder.begin().await.unwrap();
                run(&transaction, "UPDATE food SET name = name || '.'").await;
                let nested = transaction.begin().await.unwrap();
                run(&nested, "UPDATE keeper SET name = name || '.'").await;
                nested.commit().await.unwrap();
                transaction.commit().await.unwrap();
            };
            writes.try_next(write).await;
            let single = async { run(&zoo.recorder, "UPDATE visit SET report = report || '.'").await };
            singles.try_next(single).await;
        }
        // A statement that was dropped may still be on its way to a server.
        tokio::time::sleep(Duration::from_millis(500)).await;
        soon(food::Entity::delete_by_id(1).exec(&zoo.recorder)).await.unwrap();
        let replica = zoo.assert_replays().await;
        assert!(replica.changes > 40);
    }
}
