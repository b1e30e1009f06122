//! I2, I3: under capture by triggers, what programs write that know nothing of Tidewire.

use sea_orm::{Database, TransactionSession, TransactionTrait};
use tidewire_outbox::{Actor, Capture, ErrorKind, Recorder, RecorderOptions};
use tidewire_testkit::{TestDatabase, zoo};

use crate::support::{Zoo, operations, run};

/// A statement, and how many inserts, updates and deletes it is.
const ON_SQLITE: &[(&str, [usize; 3])] = &[
    ("INSERT INTO food (name) VALUES ('leaves'), ('ants')", [2, 0, 0]),
    ("INSERT OR IGNORE INTO food (name) VALUES ('meat')", [0, 0, 0]),
    ("INSERT INTO food (id, name) VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET name = excluded.name", [0, 1, 0]),
    ("INSERT INTO food (name) VALUES ('x') ON CONFLICT DO NOTHING", [0, 0, 0]),
    ("UPDATE food SET name = name", [0, 0, 0]),
    ("UPDATE food SET name = name || '!' WHERE id = 1", [0, 1, 0]),
    // The diets of the food go along.
    ("UPDATE food SET id = 70 WHERE id = 1", [3, 0, 3]),
    // In the way by its key; its diets go too.
    ("REPLACE INTO food (id, name) VALUES (70, 'y')", [1, 0, 3]),
    // In the way by a unique column, in another case of it.
    ("INSERT OR REPLACE INTO food (name) VALUES ('y')", [1, 0, 1]),
    ("REPLACE INTO food (name) VALUES ('new'), ('newer')", [2, 0, 0]),
    ("UPDATE OR REPLACE food SET name = 'new' WHERE name = 'newer'", [0, 1, 1]),
    ("DELETE FROM animal WHERE name = 'leo'", [0, 0, 4]),
    ("DELETE FROM keeper WHERE id = 2", [0, 1, 1]),
    ("DELETE FROM food", [0, 0, 6]),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_write_of_another_program_is_recorded_on_sqlite() {
    for recursive in [false, true] {
        let zoo = Zoo::of(TestDatabase::sqlite().captured_by(Capture::Triggers)).await;
        zoo.populate().await;
        let other = Database::connect(zoo.database.url()).await.unwrap();
        run(&other, &format!("PRAGMA recursive_triggers = {recursive}")).await;
        for (sql, expected) in ON_SQLITE {
            let before = zoo.recorder.log().position().await.unwrap();
            run(&other, sql).await;
            let transactions = zoo.transactions(before).await;
            assert_eq!(transactions.len(), usize::from(*expected != [0; 3]), "{sql}");
            let changes: Vec<_> = transactions.iter().flat_map(|transaction| &transaction.changes).collect();
            assert_eq!(operations(&transactions), *expected, "{sql}, recursive triggers {recursive}: {changes:?}");
            assert!(changes.iter().all(|change| change.actor.as_deref() == Some("database")), "{sql}");
            zoo.assert_replays().await;
        }
    }
}

/// Transactions of several programs, and of the recorder between them, are not split and not mixed.
#[tokio::test(flavor = "multi_thread")]
async fn another_programs_transactions_stay_whole_on_sqlite() {
    let zoo = Zoo::of(TestDatabase::sqlite().captured_by(Capture::Triggers)).await;
    let other = Database::connect(zoo.database.url()).await.unwrap();
    let start = zoo.recorder.log().position().await.unwrap();
    let mut follower = zoo.recorder.log().follow_all(start.clone()).await.unwrap();
    let (theirs, ours) = (40, 20);
    let writer = async {
        for n in 0..theirs {
            let transaction = other.begin().await.unwrap();
            for part in 0..3 {
                run(&transaction, &format!("INSERT INTO food (name) VALUES ('{n} {part}')")).await;
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            transaction.commit().await.unwrap();
        }
    };
    let recorder = async {
        for n in 0..ours {
            let transaction = TransactionTrait::begin(&zoo.recorder).await.unwrap();
            run(&transaction, &format!("INSERT INTO food (name) VALUES ('ours {n}')")).await;
            run(&transaction, &format!("UPDATE food SET name = name || '!' WHERE name = 'ours {n}'")).await;
            transaction.commit().await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let live = async {
        let mut seen = Vec::new();
        while seen.iter().map(|of: &Vec<u64>| of.len()).sum::<usize>() < theirs * 3 + ours * 2 {
            if let tidewire_outbox::Step::Transactions { transactions, .. } = follower.next().await.unwrap() {
                seen.extend(transactions.iter().map(|t| t.changes.iter().map(|change| change.seq).collect()));
            }
        }
        seen
    };
    let ((), (), live) = tokio::join!(writer, recorder, live);
    assert!(live.iter().flatten().is_sorted(), "out of order");
    for transaction in zoo.transactions(start).await {
        let actors: std::collections::BTreeSet<_> = transaction.changes.iter().map(|change| &change.actor).collect();
        assert_eq!(actors.len(), 1, "mixed: {transaction:?}");
        let whole = if transaction.changes[0].actor.as_deref() == Some("database") { 3 } else { 2 };
        assert_eq!(transaction.changes.len() % whole, 0, "split: {transaction:?}");
    }
    zoo.assert_replays().await;
}

#[tokio::test]
async fn triggers_on_sqlite_are_checked_and_refused_where_they_could_not_be_right() {
    let zoo = Zoo::of(TestDatabase::sqlite().captured_by(Capture::Triggers)).await;
    let options = |capture| {
        let mut options = RecorderOptions::default();
        options.capture = capture;
        options
    };
    let open = |capture| Recorder::connect_with(zoo.database.url(), zoo::registry(), options(capture));
    let plain = zoo.recorder.unrecorded();

    // A program that says nothing does as the database says; one that says another way is told.
    open(None).await.unwrap().check().await.unwrap();
    let error = open(Some(Capture::Hooks)).await.unwrap().check().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Setup && error.to_string().contains("captured by triggers"), "{error}");
    let error = open(Some(Capture::Log)).await.unwrap().install_capture().await.unwrap_err();
    assert!(error.to_string().contains("`triggers`"), "{error}");

    // What is missing or has changed is found, and put right.
    for damage in ["DROP TRIGGER tidewire_food_delete", "CREATE UNIQUE INDEX by_weight ON animal (weight)"] {
        run(plain, damage).await;
        let error = open(None).await.unwrap().check().await.unwrap_err();
        assert!(error.to_string().contains("missing or out of date"), "{error}");
        zoo.recorder.install_capture().await.unwrap();
        open(None).await.unwrap().check().await.unwrap();
    }

    run(plain, "CREATE UNIQUE INDEX by_length ON animal (length(name))").await;
    let error = open(None).await.unwrap().install_capture().await.unwrap_err();
    assert!(error.to_string().contains("by_length"), "{error}");
    run(plain, "DROP INDEX by_length").await;
    run(plain, "CREATE TRIGGER mine AFTER INSERT ON food BEGIN UPDATE keeper SET name = name || '+'; END").await;
    let error = open(None).await.unwrap().install_capture().await.unwrap_err();
    assert!(error.to_string().contains("triggers of its own"), "{error}");

    // Removed, nothing of another program is recorded, and everything of ours.
    run(plain, "DROP TRIGGER mine").await;
    zoo.recorder.remove_capture().await.unwrap();
    let db = open(None).await.unwrap().acting_as(Actor::user(7));
    let before = db.log().position().await.unwrap();
    run(plain, "INSERT INTO food (name) VALUES ('unseen')").await;
    run(&db, "INSERT INTO food (name) VALUES ('seen')").await;
    let seen = zoo.transactions(before).await;
    assert_eq!(seen.iter().map(|transaction| transaction.changes.len()).sum::<usize>(), 1);
}
