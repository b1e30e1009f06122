//! Doorbells between the processes of one PostgreSQL database. Two recorders share nothing but the database, as two processes do.

use std::time::Duration;

use sea_orm::ConnectionTrait;
use sqlx::postgres::PgListener;
use tidewire_outbox::{Capture, Cursor, Follower, Recorder, RecorderOptions, Step};
use tidewire_testkit::{TestDatabase, eventually, soon, zoo};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Zoo, run};

/// A zoo whose writers all ring, or nothing where PostgreSQL is not installed.
async fn zoo() -> Option<Zoo> {
    Some(Zoo::of(TestDatabase::postgres().await?.captured_by(Capture::Hooks)).await)
}

/// Another process, which looks by itself so rarely that it must be told.
async fn deaf(zoo: &Zoo) -> Recorder {
    let mut options = RecorderOptions::default();
    options.log.poll_max = Duration::from_secs(3600);
    options.log.poll_max_rung = Duration::from_secs(3600);
    let recorder = Recorder::connect_with(zoo.database.url(), zoo::registry(), options).await.unwrap();
    recorder.check().await.unwrap();
    recorder
}

async fn follow(recorder: &Recorder) -> Follower {
    let now = recorder.log().position().await.unwrap();
    recorder.log().follow_all(now).await.unwrap()
}

/// Waits for so many changes.
async fn take(follower: &mut Follower, mut changes: usize) {
    while changes > 0 {
        match soon(follower.next()).await.unwrap() {
            Step::Transactions { transactions, .. } => {
                changes -= transactions.iter().map(|transaction| transaction.changes.len()).sum::<usize>();
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn hears(recorder: &Recorder) {
    eventually(async || recorder.log().tail_stats().rung).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_one_process_wakes_the_tails_of_others() {
    // GIVEN a process that only writes, and another that follows and looks once an hour
    let Some(zoo) = zoo().await else { return };
    let reader = deaf(&zoo).await;
    let mut follower = follow(&reader).await;
    hears(&reader).await;
    // WHEN the one writes, in a transaction or not, THEN the other is told
    for number in 0..20 {
        run(&zoo.recorder, &format!("INSERT INTO food (name) VALUES ('{number}')")).await;
        take(&mut follower, 1).await;
    }
    // AND what was written just before a process ends is rung for
    run(&zoo.recorder, "INSERT INTO food (name) VALUES ('once'), ('more')").await;
    zoo.recorder.close().await;
    take(&mut follower, 2).await;
    reader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rings_are_few_and_there_are_none_while_nothing_happens() {
    let Some(zoo) = zoo().await else { return };
    let mut options = RecorderOptions::default();
    options.log.doorbell_interval = Duration::from_millis(100);
    let writer = Recorder::connect_with(zoo.database.url(), zoo::registry(), options).await.unwrap();
    let outbox = zoo.recorder.unrecorded().query_one_raw(sea_orm::Statement::from_string(
        sea_orm::DbBackend::Postgres,
        "SELECT to_regclass('tidewire_outbox')::oid::int8",
    ));
    let outbox: i64 = outbox.await.unwrap().unwrap().try_get_by_index(0).unwrap();
    let mut ear = PgListener::connect(zoo.database.url()).await.unwrap();
    ear.listen(&format!("tidewire_{outbox}")).await.unwrap();

    // WHEN many commits come fast
    let began = Instant::now();
    for number in 0..200 {
        run(&writer, &format!("INSERT INTO food (name) VALUES ('{number}')")).await;
    }
    let most = began.elapsed().as_millis() / 100 + 2;
    // THEN there is a ring for the first, one an interval, and one for the last
    let mut rings = 0;
    while let Ok(ring) = timeout(Duration::from_millis(500), ear.recv()).await {
        ring.unwrap();
        rings += 1;
    }
    assert!((2..=most).contains(&rings), "{rings} rings, {most} expected at most");
    // AND reads, and writes of what was rolled back, ring for nothing
    run(&writer, "SELECT count(*) FROM food").await;
    assert!(timeout(Duration::from_millis(300), ear.recv()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_doorbell_that_is_cut_off_is_heard_again_and_what_came_in_between_is_found() {
    let Some(zoo) = zoo().await else { return };
    let reader = deaf(&zoo).await;
    let mut follower = follow(&reader).await;
    hears(&reader).await;
    for number in 0..5 {
        // WHEN the connection that listens, and the one that rings, are cut
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tidewire doorbell'";
        run(zoo.recorder.unrecorded(), cut).await;
        run(&zoo.recorder, &format!("INSERT INTO food (name) VALUES ('{number}')")).await;
        // THEN the write is seen, and later ones are rung for again
        take(&mut follower, 1).await;
        hears(&reader).await;
    }
    run(&zoo.recorder, "INSERT INTO food (name) VALUES ('last')").await;
    take(&mut follower, 1).await;
}

/// Under capture by triggers any program may write, and other programs don't ring: so the tail goes on looking.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_program_writes_that_does_not_ring_is_found() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database.captured_by(Capture::Triggers)).await;
    let mut options = RecorderOptions::default();
    options.log.poll_max_rung = Duration::from_secs(3600);
    let reader = Recorder::connect_with(zoo.database.url(), zoo::registry(), options).await.unwrap();
    reader.check().await.unwrap();
    let mut follower = follow(&reader).await;
    assert!(reader.log().check_doorbell().await.unwrap());
    sleep(Duration::from_millis(500)).await;
    assert!(!reader.log().tail_stats().rung);
    let psql = zoo.database.plain().await;
    let began = Instant::now();
    run(&psql, "INSERT INTO food (name) VALUES ('by hand')").await;
    take(&mut follower, 1).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// Turned off, nobody is told and nobody listens, and everything is found by looking.
#[tokio::test(flavor = "multi_thread")]
async fn doorbells_can_be_turned_off() {
    let Some(zoo) = zoo().await else { return };
    let mut options = RecorderOptions::default();
    options.log.doorbell_interval = Duration::ZERO;
    let reader = Recorder::connect_with(zoo.database.url(), zoo::registry(), options).await.unwrap();
    reader.check().await.unwrap();
    let mut follower = reader.log().follow_all(Cursor::start()).await.unwrap();
    run(&zoo.recorder, "INSERT INTO food (name) VALUES ('found')").await;
    take(&mut follower, 1).await;
    assert!(!reader.log().check_doorbell().await.unwrap() && !reader.log().tail_stats().rung);
}

/// Two outboxes in schemas of one database are two.
#[tokio::test(flavor = "multi_thread")]
async fn another_schemas_commits_ring_elsewhere() {
    let Some(zoo) = zoo().await else { return };
    run(zoo.recorder.unrecorded(), "CREATE SCHEMA other").await;
    let url = format!("{}?options=-csearch_path%3Dother", zoo.database.url());
    let other = Recorder::connect(&url, zoo::registry()).await.unwrap();
    tidewire_outbox::install(other.unrecorded()).await.unwrap();
    zoo::create(other.unrecorded()).await;
    other.install_capture().await.unwrap();
    let reader = deaf(&zoo).await;
    let mut follower = follow(&reader).await;
    hears(&reader).await;
    let mut ear = PgListener::connect(zoo.database.url()).await.unwrap();
    let outbox = zoo.recorder.unrecorded().query_one_raw(sea_orm::Statement::from_string(
        sea_orm::DbBackend::Postgres,
        "SELECT 'public.tidewire_outbox'::regclass::oid::int8",
    ));
    let outbox: i64 = outbox.await.unwrap().unwrap().try_get_by_index(0).unwrap();
    ear.listen(&format!("tidewire_{outbox}")).await.unwrap();
    run(&other, "INSERT INTO food (name) VALUES ('elsewhere')").await;
    assert!(timeout(Duration::from_millis(500), ear.recv()).await.is_err());
    run(&zoo.recorder, "INSERT INTO food (name) VALUES ('here')").await;
    take(&mut follower, 1).await;
    soon(ear.recv()).await.unwrap();
}
