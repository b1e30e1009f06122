//! What is MariaDB's own: transactions that the server ends, triggers that refuse, and holes among the numbers.

use sea_orm::{ConnectionTrait, EntityTrait, IntoActiveModel, TransactionSession, TransactionTrait};
use tidewire_outbox::{Capture, Cursor, Error, ErrorKind, Filter, Recorder, RecorderOptions, Registry, Step};
use tidewire_testkit::{TestDatabase, cells_of, eventually, soon, zoo};

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
                Step::Transactions { transactions, .. } => changes += transactions.len(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(changes, 21);
    }
    assert!(waiting.len() > 40, "{waiting}");
    assert_eq!(zoo.transactions(waiting.parse().unwrap()).await.len(), 1);
    other.close().await;
}

/// Where so many numbers are missing that no cursor could tell them, readers wait and are told why, and then all is given.
#[tokio::test(flavor = "multi_thread")]
async fn more_holes_than_a_cursor_holds_are_waited_for() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    let zoo = Zoo::of(database).await;
    let before = zoo.recorder.log().position().await.unwrap();
    let mut follower = zoo.recorder.log().follow_all(before.clone()).await.unwrap();
    let slow = zoo.recorder.begin().await.unwrap();
    run(&slow, "INSERT INTO food (name) VALUES ('slow')").await;
    // As a server of several masters numbers its rows.
    let plain = zoo.database.plain().await;
    let many = "INSERT INTO food (name) SELECT CONCAT('food ', seq) FROM";
    run(&plain, &format!("SET auto_increment_increment = 2; {many} seq_1_to_1500")).await;
    let waiting = zoo.recorder.log().position().await.unwrap();
    assert!(waiting.to_string().parse::<Cursor>().is_ok_and(|read| read == waiting));
    run(&plain, &format!("SET auto_increment_increment = 2; {many} seq_1501_to_4500")).await;
    let busy = zoo.recorder.log().position().await.unwrap_err();
    assert!(busy.kind() == ErrorKind::Busy && busy.to_string().contains("innodb_trx"), "{busy}");
    eventually(async || !zoo.recorder.log().tail_stats().healthy).await;

    slow.commit().await.unwrap();
    eventually(async || zoo.recorder.log().position().await.is_ok()).await;
    let end = zoo.recorder.log().position().await.unwrap();
    let mut changes = 0;
    while !follower.cursor().covers(&end) {
        match soon(follower.next()).await.unwrap() {
            Step::Transactions { transactions, .. } => {
                changes += transactions.iter().map(|transaction| transaction.changes.len()).sum::<usize>();
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(changes, 4501);
    assert_eq!(zoo.transactions(waiting).await.len(), 2);
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
    assert!(matches!(soon(follower.next()).await.unwrap(), Step::Resync(tidewire_outbox::ResyncReason::Epoch)));
}

/// A table as people make them by hand; `sea-orm-cli` gives some of its columns types that read something else.
mod ticket {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "ticket")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: u8,
        pub season: Option<i32>,
        pub extras: Option<String>,
        pub valid: bool,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

mod misread {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "ticket")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: u8,
        pub season: Option<String>,
        pub bits: Option<Vec<u8>>,
        pub gate: Option<Vec<u8>>,
        pub extras: Option<i32>,
        pub valid: bool,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

#[tokio::test]
async fn what_a_column_holds_must_be_what_its_entity_reads() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    // GIVEN a table with a year, a set, bits and a point
    let ticket = Registry::new().entity::<ticket::Entity>();
    let recorder = database
        .recorder(ticket, async |db| {
            let table = "CREATE TABLE ticket (id tinyint unsigned PRIMARY KEY, season year, bits bit(5), gate point, \
                         extras set('sauna', 'towel') NOT NULL, valid bit(1) NOT NULL)";
            db.execute_unprepared(table).await.unwrap();
        })
        .await;

    // WHEN an entity takes what can be read, THEN that is recorded and read as it is stored
    let row = ticket::Model { id: 200, season: Some(1999), extras: Some("sauna,towel".into()), valid: true };
    ticket::Entity::insert(row.clone().into_active_model()).exec_without_returning(&recorder).await.unwrap();
    let mut follower = recorder.log().follow_all(Cursor::start()).await.unwrap();
    let Step::Transactions { transactions, .. } = soon(follower.next()).await.unwrap() else { panic!("no change") };
    let after = transactions[0].changes[0].after.as_ref().unwrap();
    assert_eq!(after.cells().map(|cell| cell.map(str::to_owned)).collect::<Vec<_>>(), cells_of(&row));
    let meta = recorder.catalog().of::<ticket::Entity>().unwrap();
    let mut snapshot = recorder.log().snapshot(meta, Filter::all(), 10).await.unwrap();
    assert_eq!(snapshot.next().await.unwrap().unwrap(), std::slice::from_ref(after));

    // and one that reads something else is told which columns, before anything is served.
    let other = Registry::new().entity::<misread::Entity>();
    let other = Recorder::connect_with(database.url(), other, RecorderOptions::default()).await.unwrap();
    let error = other.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Setup);
    let told = "ticket.season (`year` as a text), ticket.bits (`bit` as bytes), ticket.gate (`point` as bytes), ticket.extras (`set` as an integer)";
    assert!(error.to_string().contains(told), "{error}");
}

/// A connection that runs statement after statement, in order.
async fn connected(zoo: &Zoo) -> sqlx::MySqlConnection {
    <sqlx::MySqlConnection as sqlx::Connection>::connect(zoo.database.url()).await.unwrap()
}

async fn on(conn: &mut sqlx::MySqlConnection, sql: &'static str) {
    use sqlx::Executor;
    conn.execute(sqlx::raw_sql(sql)).await.unwrap();
}

/// A prepared transaction has let go of its shared locks, and is still to come.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_is_waited_for() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    let zoo = Zoo::of(database).await;
    let _awake = zoo.recorder.log().follow_all(Cursor::start()).await.unwrap();
    // GIVEN a transaction that is prepared, and others that were rolled back and committed around it
    let mut other = connected(&zoo).await;
    run(&zoo.recorder, "INSERT INTO food (name) VALUES ('before')").await;
    let undone = zoo.recorder.begin().await.unwrap();
    run(&undone, "INSERT INTO food (name) VALUES ('undone')").await;
    undone.rollback().await.unwrap();
    on(&mut other, "XA START 'a'; INSERT INTO food (name) VALUES ('prepared'); XA END 'a'; XA PREPARE 'a'").await;
    run(&zoo.recorder, "INSERT INTO food (name) VALUES ('after')").await;

    // WHEN what is settled has moved past the one that was rolled back, and had time to move further
    let settled = async || {
        let row = zoo.recorder.unrecorded().query_one_raw(sea_orm::Statement::from_string(
            sea_orm::DbBackend::MySql,
            "SELECT settled FROM tidewire_log",
        ));
        row.await.unwrap().unwrap().try_get_by_index::<i64>(0).unwrap()
    };
    eventually(async || settled().await == 2).await;
    for n in 0..20 {
        run(&zoo.recorder, &format!("INSERT INTO food (name) VALUES ('later {n}')")).await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let waiting = zoo.recorder.log().position().await.unwrap();
    assert_eq!(settled().await, 2);
    on(&mut other, "XA COMMIT 'a'").await;

    // THEN it is given when it comes
    let late = zoo.transactions(waiting).await;
    assert_eq!(late.iter().map(|transaction| transaction.changes.len()).collect::<Vec<_>>(), [1]);
    zoo.assert_replays().await;
}

/// Where no gaps are locked, a row may join those that a deletion takes along until what it refers to is locked for writing.
#[tokio::test(flavor = "multi_thread")]
async fn a_cascade_of_two_levels_misses_nobody_who_joins() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    let zoo = Zoo::of(database).await;
    zoo.populate().await;
    let (mut one, mut two) = (connected(&zoo).await, connected(&zoo).await);
    // GIVEN a deletion that waits between what its triggers read and what its foreign keys do
    on(
        &mut one,
        "CREATE TABLE place (id int PRIMARY KEY) ENGINE=InnoDB; INSERT INTO place VALUES (1);
         ALTER TABLE animal ADD place_id int NULL DEFAULT 1,
           ADD CONSTRAINT animal_place FOREIGN KEY (place_id) REFERENCES place (id) ON DELETE CASCADE",
    )
    .await;
    zoo.recorder.install_capture().await.unwrap();
    on(&mut one, "CREATE TRIGGER waits BEFORE DELETE ON place FOR EACH ROW DO SLEEP(2)").await;
    let level = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
    on(&mut one, level).await;
    on(&mut two, level).await;
    let deletion = tokio::spawn(async move { on(&mut one, "DELETE FROM place").await });
    let waits = "SELECT 1 FROM information_schema.processlist WHERE db = DATABASE() AND state = 'User sleep'";
    let plain = zoo.database.plain().await;
    eventually(async || {
        let statement = sea_orm::Statement::from_string(sea_orm::DbBackend::MySql, waits);
        plain.query_one_raw(statement).await.unwrap().is_some()
    })
    .await;

    // WHEN another adds a row that would go with it
    let joins = sqlx::raw_sql(
        "INSERT INTO visit (animal_id, number, at) VALUES (X'01010101010101010101010101010101', 9, '2026-11-20')",
    );
    let joined = sqlx::Executor::execute(&mut two, joins).await;
    deletion.await.unwrap();

    // THEN it comes too late, and nothing has gone unseen
    assert!(joined.is_err(), "what it refers to is gone");
    zoo.assert_replays().await;
}

/// What such an engine has written stays when the transaction is rolled back.
#[tokio::test]
async fn tables_without_transactions_are_refused() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    let zoo = Zoo::of(database).await;
    run(zoo.recorder.unrecorded(), "ALTER TABLE everything ENGINE = Aria").await;
    let refused = zoo.recorder.check().await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Setup && refused.to_string().contains("everything"), "{refused}");
    let refused = zoo.recorder.install_capture().await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Setup && refused.to_string().contains("InnoDB"), "{refused}");
}

/// `NEXTVAL` is logged at once, by which triggers would take what follows for another transaction.
#[tokio::test]
async fn a_sequence_splits_no_transaction() {
    let (Some(triggers), Some(hooks)) = (TestDatabase::mariadb().await, TestDatabase::mariadb().await) else { return };
    let zoo = Zoo::of(triggers.captured_by(Capture::Triggers)).await;
    run(zoo.recorder.unrecorded(), "CREATE SEQUENCE numbers").await;
    for refused in [zoo.recorder.check().await.unwrap_err(), zoo.recorder.install_capture().await.unwrap_err()] {
        assert!(refused.kind() == ErrorKind::Setup && refused.to_string().contains("numbers"), "{refused}");
    }

    let zoo = Zoo::of(hooks.captured_by(Capture::Hooks)).await;
    run(zoo.recorder.unrecorded(), "CREATE SEQUENCE numbers").await;
    zoo.recorder.check().await.unwrap();
    let transaction = zoo.recorder.begin().await.unwrap();
    for _ in 0..2 {
        run(&transaction, "INSERT INTO food (name) VALUES (CONCAT('food ', NEXTVAL(numbers)))").await;
    }
    transaction.commit().await.unwrap();
    let transactions = zoo.transactions(Cursor::start()).await;
    assert_eq!(transactions.iter().map(|transaction| transaction.changes.len()).collect::<Vec<_>>(), [2]);
}

/// Two programs with different entities may write to one database; what one of them knows nothing of goes on being recorded.
#[tokio::test]
async fn triggers_of_tables_that_nobody_registered_are_left_alone() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    let zoo = Zoo::of(database.captured_by(Capture::Triggers)).await;
    let mut options = RecorderOptions::default();
    options.capture = Some(Capture::Triggers);
    let few = Registry::new().entity::<zoo::food::Entity>();
    let other = Recorder::connect_with(zoo.database.url(), few, options).await.unwrap();
    let refused = other.install_capture().await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Setup && refused.to_string().contains("keeper"), "{refused}");
    zoo.recorder.check().await.unwrap();
    zoo.populate().await;
    zoo.assert_replays().await;

    zoo.recorder.remove_capture().await.unwrap();
    other.install_capture().await.unwrap();
    other.check().await.unwrap();
}

#[tokio::test]
async fn dates_of_zeros_are_recorded_as_they_are() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    let zoo = Zoo::of(database.captured_by(Capture::Triggers)).await;
    let mut other = connected(&zoo).await;
    on(
        &mut other,
        "SET sql_mode = ''; ALTER TABLE visit MODIFY at timestamp(6) NULL; SET foreign_key_checks = 0;
         INSERT INTO visit (animal_id, number, at) VALUES (X'01010101010101010101010101010101', 1, NULL)",
    )
    .await;
    zoo.recorder.install_capture().await.unwrap();
    let before = zoo.recorder.log().position().await.unwrap();
    on(&mut other, "UPDATE visit SET at = '0000-00-00'").await;
    let transactions = zoo.transactions(before).await;
    let changes: Vec<_> = transactions.iter().flat_map(|transaction| transaction.changes.iter()).collect();
    assert_eq!(changes.len(), 1);
    let image = |image: &Option<tidewire_outbox::Image>| {
        image.as_ref().unwrap().cells().any(|cell| cell.is_some_and(|cell| cell.contains("0000-00-00")))
    };
    assert!(!image(&changes[0].before) && image(&changes[0].after));
}

/// What a reader is told first.
async fn first(recorder: &Recorder, after: &Cursor) -> Step {
    let mut follower = recorder.log().follow_all(after.clone()).await.unwrap();
    soon(follower.next()).await.unwrap()
}

/// I4: a server that was started from a backup gives numbers again, to nodes that run all the while as to those that come.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_are_given_again_are_not_taken_for_seen() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    let zoo = Zoo::of(database.alone().await).await;
    let plain = zoo.recorder.unrecorded();
    run(&zoo.recorder, "INSERT INTO food (name) VALUES ('before')").await;
    let kept = zoo.recorder.log().position().await.unwrap();
    for n in 0..10 {
        run(&zoo.recorder, &format!("INSERT INTO food (name) VALUES ('lost {n}')")).await;
    }
    let lost = zoo.recorder.log().position().await.unwrap();
    let is_epoch = |step| matches!(step, Step::Resync(tidewire_outbox::ResyncReason::Epoch));

    // GIVEN an outbox that has forgotten some of that, and nothing new yet
    run(plain, "DELETE FROM tidewire_outbox WHERE seq > 1; UPDATE tidewire_log SET settled = LEAST(settled, 1)").await;
    assert!(is_epoch(first(&zoo.recorder, &lost).await), "it has seen what was never given");

    // WHEN its server was started since, and gives as many numbers again and more
    run(
        plain,
        "ALTER TABLE tidewire_outbox AUTO_INCREMENT = 2; UPDATE tidewire_outbox SET at = at - INTERVAL 1 DAY;
         UPDATE tidewire_log SET started = started - 1",
    )
    .await;
    for n in 0..20 {
        run(&zoo.recorder, &format!("INSERT INTO food (name) VALUES ('other {n}')")).await;
    }

    // THEN who saw what is lost starts over, and who did not goes on
    let other = Recorder::connect(zoo.database.url(), zoo::registry()).await.unwrap();
    for recorder in [&zoo.recorder, &other] {
        assert!(is_epoch(first(recorder, &lost).await));
        let end = recorder.log().position().await.unwrap();
        let mut follower = recorder.log().follow_all(kept.clone()).await.unwrap();
        let mut transactions = 0;
        while !follower.cursor().covers(&end) {
            match soon(follower.next()).await.unwrap() {
                Step::Transactions { transactions: some, .. } => transactions += some.len(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(transactions, 20);
    }
    let late = other.log().position().await.unwrap();
    run(&other, "INSERT INTO food (name) VALUES ('last')").await;
    assert_eq!(zoo.transactions(late).await.len(), 1);
}

/// Nodes that find a server started again agree on the epoch that begins.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_may_start_together() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    let zoo = Zoo::of(database).await;
    for _ in 0..5 {
        run(zoo.recorder.unrecorded(), "UPDATE tidewire_log SET started = 0").await;
        let nodes = (0..8).map(|_| {
            let url = zoo.database.url().to_owned();
            tokio::spawn(async move {
                let node = Recorder::connect(&url, zoo::registry()).await.unwrap();
                let cursor = node.log().position().await.unwrap();
                node.close().await;
                cursor
            })
        });
        let mut cursors = std::collections::HashSet::new();
        for node in nodes.collect::<Vec<_>>() {
            cursors.insert(node.await.unwrap());
        }
        assert_eq!(cursors.len(), 1);
    }
}
