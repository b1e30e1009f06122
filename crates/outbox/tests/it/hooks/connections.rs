//! What is left on connections, by callers who go away and by others who use them.

use futures_util::FutureExt;
use sea_orm::{
    ActiveModelTrait, ConnectionTrait, EntityTrait, PaginatorTrait, Set, TransactionSession, TransactionTrait,
};
use tidewire_outbox::{Error, ErrorKind, Recorder, RecorderTransaction};
use tidewire_testkit::{
    TestDatabase, eventually,
    zoo::{self, food},
};

use super::{cascade::GATE, waiting};
use crate::support::{Zoo, run};

/// A caller who goes away while a transaction begins leaves no connection in one.
#[tokio::test(flavor = "multi_thread")]
async fn a_beginning_that_is_given_up_leaves_no_transaction() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database).await;
    for number in 0..20 {
        while let Some(begun) = zoo.recorder.begin().now_or_never() {
            begun.unwrap().rollback().await.unwrap();
        }
        let row = food::ActiveModel { name: Set(number.to_string()), ..Default::default() };
        row.insert(&zoo.recorder).await.unwrap();
        let stored = food::Entity::find().count(zoo.recorder.unrecorded()).await.unwrap();
        assert_eq!(stored, number + 1);
    }
    zoo.assert_replays().await;
}

/// A savepoint that was dropped is undone, though nobody waits for that to happen.
#[tokio::test(flavor = "multi_thread")]
async fn a_savepoint_that_was_dropped_is_undone_whoever_goes_away() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database).await;
    zoo.populate().await;
    let plain = zoo.recorder.unrecorded();
    let gate = plain.begin().await.unwrap();
    run(&gate, "SELECT pg_advisory_xact_lock(7)").await;
    let transaction = zoo.recorder.begin().await.unwrap();
    let nested = transaction.begin().await.unwrap();
    run(&nested, "UPDATE food SET name = name || '!'").await;
    tokio::select! {
        done = nested.execute_unprepared("SELECT pg_advisory_xact_lock(7)") => panic!("{done:?}"),
        () = eventually(async || waiting(plain).await == 1) => {}
    }
    drop(nested);
    // The next one waits for the answer to what was given up, and is given up too.
    assert!(transaction.execute_unprepared("SELECT 1").now_or_never().is_none());
    gate.commit().await.unwrap();
    run(&transaction, "INSERT INTO food (name) VALUES ('kept')").await;
    transaction.commit().await.unwrap();
    let changed = food::Entity::find().all(plain).await.unwrap().iter().filter(|row| row.name.ends_with('!')).count();
    assert_eq!(changed, 0);
    zoo.assert_replays().await;
}

/// A statement that is given up between its steps leaves a transaction that cannot be committed, but for what was before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cascade_that_is_given_up_is_undone() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database).await;
    zoo.populate().await;
    let plain = zoo.recorder.unrecorded();
    run(plain, &format!("{GATE} CREATE TRIGGER gate BEFORE DELETE ON animal FOR EACH ROW EXECUTE FUNCTION gate()"))
        .await;
    zoo.recorder.check().await.unwrap();
    let give_up = async |db: &RecorderTransaction| {
        let gate = plain.begin().await.unwrap();
        run(&gate, "SELECT pg_advisory_xact_lock(7)").await;
        tokio::select! {
            done = db.execute_unprepared("DELETE FROM animal WHERE name = 'leo'") => panic!("{done:?}"),
            () = eventually(async || waiting(plain).await == 1) => {}
        }
        gate.commit().await.unwrap();
    };

    let transaction = zoo.recorder.begin().await.unwrap();
    run(&transaction, "UPDATE food SET name = 'before' WHERE id = 1").await;
    let nested = transaction.begin().await.unwrap();
    give_up(&nested).await;
    let error = Error::from(nested.execute_unprepared("SELECT 1").await.unwrap_err());
    assert!(error.kind() == ErrorKind::Aborted && error.to_string().contains("given up in the middle"), "{error}");
    drop(nested);
    run(&transaction, "UPDATE food SET name = 'behind' WHERE id = 2").await;
    transaction.commit().await.unwrap();
    zoo.assert_replays().await;

    let transaction = zoo.recorder.begin().await.unwrap();
    give_up(&transaction).await;
    transaction.commit().await.unwrap_err();
    zoo.assert_replays().await;
}

/// What is set over the plain connection is not set for the recorder's statements.
#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_plain_connection_stay_there() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database).await;
    zoo.populate().await;
    let plain = zoo.recorder.unrecorded();
    run(plain, "CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.food (id bigint, name text)").await;
    for _ in 0..20 {
        run(plain, "SET search_path = elsewhere, public").await;
    }
    run(&zoo.recorder, "INSERT INTO food (name) VALUES ('here')").await;
    for _ in 0..20 {
        run(plain, "RESET search_path").await;
    }
    zoo.assert_replays().await;
}

/// Images are the same whatever the role writes bytes and numbers like; where the connections are not the recorder's to set up, that is asked.
#[tokio::test(flavor = "multi_thread")]
async fn settings_that_images_depend_on_are_the_recorders() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database).await;
    run(
        zoo.recorder.unrecorded(),
        "DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' SET bytea_output = escape';
           EXECUTE 'ALTER DATABASE ' || current_database() || ' SET IntervalStyle = iso_8601'; END $$",
    )
    .await;
    let recorder = Recorder::connect(zoo.database.url(), zoo::registry()).await.unwrap();
    recorder.check().await.unwrap();
    let there = Zoo { recorder, database: zoo.database };
    there.populate().await;
    there.assert_replays().await;

    let theirs = there.database.plain().await;
    let error = Recorder::new(&theirs, zoo::registry()).unwrap().check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Setup);
    for problem in ["`bytea_output` is not `hex`", "`IntervalStyle` is not `postgres`"] {
        assert!(error.to_string().contains(problem), "{error}");
    }
}
