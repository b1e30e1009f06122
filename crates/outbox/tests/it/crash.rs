//! What a crash of PostgreSQL leaves of cursors.

use tidewire_outbox::{Recorder, Step};
use tidewire_testkit::{PostgresServer, TestDatabase, soon, zoo};

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
