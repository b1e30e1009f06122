//! What crashes, backups and copies of PostgreSQL leave of cursors.

use sea_orm::{ConnectionTrait, EntityTrait, PaginatorTrait, TransactionSession, TransactionTrait};
use tidewire_outbox::{Cursor, Recorder, ResyncReason, Step, install};
use tidewire_testkit::{
    PostgresServer, TestDatabase, eventually, soon,
    zoo::{self, food},
};

use crate::support::{Zoo, run};

/// I4: a crash takes back ids whose transactions left nothing on disk, and gives them to others. Those are not taken for seen.
#[tokio::test(flavor = "multi_thread")]
async fn ids_that_a_crash_gives_again_are_not_taken_for_seen() {
    let Some(mut server) = PostgresServer::own(&["wal_writer_delay=10s"]).await else { return };
    let url = server.create().await;
    let zoo = Zoo::of(TestDatabase::at(&url)).await;
    run(&zoo.recorder, "INSERT INTO food (name) VALUES ('before')").await;

    // GIVEN a reader that stands behind ids of transactions that were rolled back
    for _ in 0..50 {
        run(zoo.recorder.unrecorded(), "BEGIN; SELECT pg_current_xact_id(); ROLLBACK").await;
    }
    let cursor = zoo.recorder.log().position().await.unwrap();

    // WHEN the server is killed, and as many transactions are committed after its recovery
    server.kill();
    server.start().await;
    let recorder = Recorder::connect(&url, zoo::registry()).await.unwrap();
    for number in 0..50 {
        run(&recorder, &format!("INSERT INTO food (name) VALUES ('after {number}')")).await;
    }

    // THEN the reader is given each of them
    let mut follower = recorder.log().follow_all(cursor).await.unwrap();
    let mut changes = 0;
    while changes < 50 {
        match soon(follower.next()).await.unwrap() {
            Step::Transactions { transactions, .. } => changes += transactions.len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(changes, 50);
}

/// What a reader is told first.
async fn first(recorder: &Recorder, after: Cursor) -> Step {
    let mut follower = recorder.log().follow_all(after).await.unwrap();
    soon(follower.next()).await.unwrap()
}

fn is_resync(step: Step, reason: ResyncReason) -> bool {
    matches!(step, Step::Resync(why) if why == reason)
}

/// I4: a backup that is started forgets what readers have seen, and gives the ids of that again.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_started_continues_only_what_it_has() {
    let Some(server) = PostgresServer::own(&[]).await else { return };
    let url = server.create().await;
    let zoo = Zoo::of(TestDatabase::at(&url)).await;
    run(&zoo.recorder, "INSERT INTO food (name) VALUES ('before')").await;
    let kept = zoo.recorder.log().position().await.unwrap();

    // GIVEN a backup, and a reader of what came after
    let backup = server.backup().await;
    for number in 0..10 {
        run(&zoo.recorder, &format!("INSERT INTO food (name) VALUES ('lost {number}')")).await;
    }
    let lost = zoo.recorder.log().position().await.unwrap();

    // WHEN as much and more is written to the backup, the first of it before anybody looks
    let url = backup.url(url.rsplit('/').next().unwrap());
    let recorder = Recorder::connect(&url, zoo::registry()).await.unwrap();
    for number in 0..20 {
        run(&recorder, &format!("INSERT INTO food (name) VALUES ('other {number}')")).await;
    }

    // THEN who saw what is lost starts over, and who did not goes on
    assert!(is_resync(first(&recorder, lost).await, ResyncReason::Epoch));
    let Step::Transactions { transactions, .. } = first(&recorder, kept).await else { panic!("it goes on") };
    assert_eq!(transactions.len(), 20);
    // Also after another start.
    let late = recorder.log().position().await.unwrap();
    recorder.close().await;
    let mut backup = backup;
    backup.stop();
    backup.start().await;
    let recorder = Recorder::connect(&url, zoo::registry()).await.unwrap();
    run(&recorder, "INSERT INTO food (name) VALUES ('last')").await;
    let Step::Transactions { transactions, .. } = first(&recorder, late).await else { panic!("it goes on") };
    assert_eq!(transactions.len(), 1);
}

/// I4: a standby that takes over may lack a transaction whose id is below that of one which it has.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_takes_over_may_lack_what_readers_have_seen() {
    let Some(mut primary) = PostgresServer::own(&[]).await else { return };
    let url = primary.create().await;
    let zoo = Zoo::of(TestDatabase::at(&url)).await;
    zoo.recorder.log().position().await.unwrap();
    let mut standby = primary.standby().await;
    let its_url = standby.url(url.rsplit('/').next().unwrap());

    // GIVEN a transaction that the standby has, and an earlier one that commits when the standby is gone
    let earlier = zoo.recorder.begin().await.unwrap();
    run(&earlier, "INSERT INTO food (name) VALUES ('earlier')").await;
    run(&zoo.recorder, "INSERT INTO food (name) VALUES ('later')").await;
    let copy = TestDatabase::at(&its_url).plain().await;
    eventually(async || food::Entity::find().count(&copy).await.is_ok_and(|rows| rows == 1)).await;
    standby.stop();
    earlier.commit().await.unwrap();
    let cursor = zoo.recorder.log().position().await.unwrap();
    primary.kill();

    // WHEN the standby takes over
    standby.start().await;
    let copy = TestDatabase::at(&its_url).plain().await;
    run(&copy, "SELECT pg_promote()").await;

    // THEN a reader that saw both starts over
    let recorder = Recorder::connect(&its_url, zoo::registry()).await.unwrap();
    recorder.check().await.unwrap();
    assert!(is_resync(first(&recorder, cursor).await, ResyncReason::Epoch));
}

/// I4: a copy has its own history, though it was made by the same server from the same files.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_database_begins_anew() {
    let Some(server) = PostgresServer::own(&[]).await else { return };
    let url = server.create().await;
    let zoo = Zoo::of(TestDatabase::at(&url)).await;
    zoo.populate().await;
    let cursor = zoo.recorder.log().position().await.unwrap();
    zoo.recorder.close().await;
    let name = url.rsplit('/').next().unwrap();
    let other = TestDatabase::postgres_on(&server).await.plain().await;
    let copy = format!("CREATE DATABASE copy TEMPLATE {name}");
    eventually(async || other.execute_unprepared(&copy).await.is_ok()).await;
    let recorder = Recorder::connect(&server.url("copy"), zoo::registry()).await.unwrap();
    recorder.check().await.unwrap();
    assert!(is_resync(first(&recorder, cursor).await, ResyncReason::Epoch));
    assert!(is_resync(first(&recorder, Cursor::start()).await, ResyncReason::Trimmed));
}

/// Nodes that are started together agree on the epoch that begins.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_may_start_together() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let db = database.plain().await;
    install(&db).await.unwrap();
    zoo::create(&db).await;
    for _ in 0..5 {
        run(&db, "UPDATE tidewire_log SET started = 0").await;
        let nodes = (0..8).map(|_| {
            let url = database.url().to_owned();
            tokio::spawn(async move {
                let node = Recorder::connect(&url, zoo::registry()).await.unwrap();
                node.check().await.unwrap();
                node.close().await;
            })
        });
        for node in nodes.collect::<Vec<_>>() {
            node.await.unwrap();
        }
    }
}
