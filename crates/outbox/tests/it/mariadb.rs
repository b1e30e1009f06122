//! What is MariaDB's own: transactions that the server ends, triggers that refuse, and holes among the numbers.

use sea_orm::{ConnectionTrait, TransactionSession, TransactionTrait};
use tidewire_outbox::{Cursor, Error, ErrorKind, Recorder, RecorderOptions};
use tidewire_testkit::{TestDatabase, eventually, soon, zoo};

use crate::support::{Zoo, run};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_after_a_deadlock_has_ended_the_transaction() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    let zoo = Zoo::of(database).await;
    zoo.populate().await;
    let before = zoo.recorder.log().position().await.unwrap();
    // GIVEN two transactions that wait for each other, of which the server ends the smaller
    let (one, two) = (zoo.recorder.begin().await.unwrap(), zoo.recorder.begin().await.unwrap());
    run(&one, "UPDATE food SET name = 'one' WHERE id = 1").await;
    run(&two, "UPDATE animal SET weight = 1").await;
    let (first, second) = tokio::join!(one.execute_unprepared("UPDATE animal SET weight = 2"), async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        two.execute_unprepared("UPDATE food SET name = 'two' WHERE id = 1").await
    });
    assert!(first.is_err() != second.is_err(), "one of them goes on");
    let (lost, won) = if first.is_err() { (one, two) } else { (two, one) };
    assert_eq!(Error::from(first.and(second).unwrap_err()).kind(), ErrorKind::Busy);

    // THEN the caller that does not look cannot write half of what it meant
    let error = lost.execute_unprepared("UPDATE keeper SET name = 'half'").await.unwrap_err();
    assert_eq!(Error::from(error).kind(), ErrorKind::Aborted);
    assert_eq!(Error::from(lost.commit().await.unwrap_err()).kind(), ErrorKind::Aborted);
    won.commit().await.unwrap();
    assert_eq!(zoo.transactions(before).await.len(), 1);
    zoo.assert_replays().await;
}

#[tokio::test]
async fn what_cannot_be_recorded_is_refused_by_the_database_itself() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    let zoo = Zoo::of(database).await;
    zoo.populate().await;
    let before = zoo.recorder.log().position().await.unwrap();
    let plain = zoo.database.plain().await;
    // Without the binary log a transaction has no name.
    let refused = plain.execute_unprepared("SET sql_log_bin = 0; UPDATE food SET name = 'hunter2'").await;
    let refused = Error::from(refused.unwrap_err());
    assert!(refused.kind() == ErrorKind::Refused && refused.to_string().contains("sql_log_bin"), "{refused}");
    assert_eq!(zoo.transactions(before).await.len(), 0);
    for sql in [
        "TRUNCATE food",
        "ALTER TABLE food ADD x int",
        "LOCK TABLES food WRITE",
        "SET @tidewire_actor = 'user:1'",
        "SELECT 1 /*! ; COMMIT */",
    ] {
        let refused = Error::from(zoo.recorder.execute_unprepared(sql).await.unwrap_err());
        assert_eq!(refused.kind(), ErrorKind::Refused, "{sql}: {refused}");
    }
    zoo.assert_replays().await;
}

/// Numbers of what is rolled back are never used: once nobody can use them any more, cursors forget them, on every node.
#[tokio::test(flavor = "multi_thread")]
async fn holes_are_forgotten_once_they_are_known_to_stay() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    let zoo = Zoo::of(database).await;
    let other = Recorder::connect_with(zoo.database.url(), zoo::registry(), RecorderOptions::default()).await.unwrap();
    let mut followers = [
        zoo.recorder.log().follow_all(Cursor::start()).await.unwrap(),
        other.log().follow_all(Cursor::start()).await.unwrap(),
    ];

    // GIVEN holes, and a transaction that has drawn a number and goes on
    let slow = zoo.recorder.begin().await.unwrap();
    run(&slow, "INSERT INTO food (name) VALUES ('slow')").await;
    for n in 0..20 {
        let undone = zoo.recorder.begin().await.unwrap();
        run(&undone, &format!("INSERT INTO food (name) VALUES ('undone {n}')")).await;
        undone.rollback().await.unwrap();
        run(&zoo.recorder, &format!("INSERT INTO food (name) VALUES ('done {n}')")).await;
    }
    let waiting = other.log().position().await.unwrap().to_string();

    // WHEN it commits
    slow.commit().await.unwrap();
    eventually(async || other.log().position().await.unwrap().to_string().len() < 30).await;

    // THEN it is given, late, and a cursor from before goes on as well
    for follower in &mut followers {
        let end = zoo.recorder.log().position().await.unwrap();
        let mut changes = 0;
        while !follower.cursor().covers(&end) {
            match soon(follower.next()).await.unwrap() {
                tidewire_outbox::Step::Transactions { transactions, .. } => changes += transactions.len(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(changes, 21);
    }
    assert!(waiting.len() > 40, "{waiting}");
    assert_eq!(zoo.transactions(waiting.parse().unwrap()).await.len(), 1);
    other.close().await;
}

#[tokio::test]
async fn a_restored_database_begins_another_epoch() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    let zoo = Zoo::of(database).await;
    zoo.populate().await;
    let seen = zoo.recorder.log().position().await.unwrap();
    // A dump makes its tables anew.
    let elsewhere = zoo.database.another().await;
    let other = elsewhere.recorder(zoo::registry(), zoo::create).await;
    let mut follower = other.log().follow_all(seen).await.unwrap();
    assert!(matches!(
        soon(follower.next()).await.unwrap(),
        tidewire_outbox::Step::Resync(tidewire_outbox::ResyncReason::Epoch)
    ));
}
