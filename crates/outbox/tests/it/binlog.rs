//! Capture by MariaDB's binary log: the same stream as by triggers, from whichever node reads it, and a word where something is missing.

use std::time::{Duration, Instant};

use sea_orm::{ActiveModelTrait, ConnectionTrait, DbBackend, Set, Statement, TransactionSession, TransactionTrait};
use tidewire_outbox::{
    Actor, Capture, Cursor, Error, ErrorKind, Origin, Recorder, RecorderOptions, Registry, ResyncReason, install,
};
use tidewire_testkit::{
    MariadbServer, TestDatabase, eventually,
    zoo::{self, food},
};

use crate::{
    differential::history,
    support::{Zoo, first_resync, node, operations, run, transactions},
};

async fn zoo() -> Option<Zoo> {
    Some(Zoo::of(TestDatabase::mariadb().await?.captured_by(Capture::Log)).await)
}

async fn text(db: &impl ConnectionTrait, sql: &str) -> Option<String> {
    let row = db.query_one_raw(Statement::from_string(DbBackend::MySql, sql)).await.unwrap()?;
    row.try_get_by_index::<Option<String>>(0).unwrap()
}

/// What programs write that know nothing of Tidewire, in whatever way.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_any_program_writes_is_recorded() {
    let Some(zoo) = zoo().await else { return };
    zoo.populate().await;
    // A connection of its own, so that what belongs to a session stays with it.
    let program = zoo.database.plain().await;
    run(&program, "CREATE TABLE journal (line text) ENGINE=MyISAM").await;
    for (sql, expected) in [
        ("INSERT INTO food (name) SELECT CONCAT('food ', seq) FROM seq_1_to_10", [10, 0, 0]),
        ("UPDATE food SET name = name", [0, 0, 0]),
        ("UPDATE food SET id = id + 1000 WHERE name = 'meat'", [3, 0, 3]),
        ("REPLACE INTO food (id, name) VALUES (1001, 'meat!'), (2001, 'new')", [2, 0, 3]),
        ("INSERT INTO food (name) VALUES ('new') ON DUPLICATE KEY UPDATE name = 'newer'", [0, 1, 0]),
        // Rolled back, wholly and in part; also where the log keeps what was.
        ("START TRANSACTION; INSERT INTO food (name) VALUES ('never'); ROLLBACK", [0, 0, 0]),
        (
            "START TRANSACTION; INSERT INTO food (name) VALUES ('a'); SAVEPOINT a; DELETE FROM diet; ROLLBACK TO a;
             UPDATE keeper SET name = 'x' WHERE id = 3; COMMIT",
            [1, 1, 0],
        ),
        (
            "START TRANSACTION; INSERT INTO food (name) VALUES ('b'); SAVEPOINT a; DELETE FROM diet; INSERT INTO journal VALUES ('x');
             ROLLBACK TO a; SAVEPOINT A; DELETE FROM animal; ROLLBACK TO SAVEPOINT a; INSERT INTO food (name) VALUES ('c'); COMMIT",
            [2, 0, 0],
        ),
        (
            "START TRANSACTION; CREATE TEMPORARY TABLE t (id int); INSERT INTO food (name) VALUES ('d'); INSERT INTO t VALUES (1); ROLLBACK",
            [0, 0, 0],
        ),
        ("DELETE FROM animal WHERE name = 'leo'", [0, 0, 4]),
        ("UPDATE keeper SET id = 20 WHERE id = 2", [1, 1, 1]),
        ("SET STATEMENT gtid_domain_id = 7 FOR INSERT INTO food (name) VALUES ('elsewhere')", [1, 0, 0]),
        ("FLUSH BINARY LOGS; INSERT INTO food (name) VALUES ('in another file')", [1, 0, 0]),
        ("ALTER TABLE food ADD COLUMN stars int FIRST, MODIFY name varchar(300); INSERT INTO food (name) VALUES ('with stars')", [1, 0, 0]),
        ("DELETE FROM keeper WHERE id = 1", [0, 3, 1]),
    ] {
        let before = zoo.recorder.log().position().await.unwrap();
        run(&program, sql).await;
        let transactions = zoo.transactions(before).await;
        assert_eq!(transactions.len(), usize::from(expected != [0; 3]), "{sql}");
        let changes: Vec<_> = transactions.iter().flat_map(|transaction| &transaction.changes).collect();
        assert_eq!(operations(&transactions), expected, "{sql}");
        // The log does not tell who wrote.
        assert!(changes.iter().all(|change| change.actor.as_deref() == Some("service:app")), "{sql}");
        zoo.assert_replays().await;
    }
    eventually(async || text(&program, "SELECT CAST(count(*) AS CHAR) FROM tidewire_followed").await.unwrap() == "0")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_told_in_whose_name_a_row_was_written() {
    let Some(zoo) = zoo().await else { return };
    let before = zoo.recorder.log().position().await.unwrap();
    let ada = zoo.recorder.clone().acting_as(Actor::user("ada")).from(Origin::new("her browser"));
    run(&ada, "INSERT INTO food (name) VALUES ('one')").await;
    run(&zoo.recorder, "INSERT INTO food (name) VALUES ('two')").await;
    let transaction = ada.begin().await.unwrap();
    run(&transaction, "INSERT INTO food (name) VALUES ('three')").await;
    let nested = transaction.begin().await.unwrap().acting_as(Actor::user("bo"));
    run(&nested, "INSERT INTO food (name) VALUES ('never')").await;
    nested.rollback().await.unwrap();
    run(&transaction, "INSERT INTO food (name) VALUES ('four')").await;
    transaction.commit().await.unwrap();
    let transactions = zoo.transactions(before).await;
    let told: Vec<_> = transactions
        .iter()
        .flat_map(|transaction| &transaction.changes)
        .map(|change| (change.actor.as_deref().unwrap(), change.origin.as_deref()))
        .collect();
    let ada = ("user:ada", Some("her browser"));
    assert_eq!(told, [ada, ("service:app", None), ada, ada]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_comes_whole_and_in_pieces() {
    let Some(zoo) = zoo().await else { return };
    let before = zoo.recorder.log().position().await.unwrap();
    let program = zoo.database.plain().await;
    let began = Instant::now();
    run(&program, "INSERT INTO food (name) SELECT CONCAT('food ', seq) FROM seq_1_to_60000").await;
    run(&program, "UPDATE food SET name = CONCAT(name, '!')").await;
    // Of which most is taken back after it has been handed on.
    run(
        &program,
        "CREATE TABLE journal (line text) ENGINE=MyISAM; START TRANSACTION; INSERT INTO food (name) VALUES ('kept'); SAVEPOINT a;
         DELETE FROM food WHERE name LIKE 'food 1%'; INSERT INTO journal VALUES ('x'); ROLLBACK TO a; COMMIT",
    )
    .await;
    let written = began.elapsed();
    // On a busy machine it takes longer than one call waits.
    eventually(async || zoo.recorder.log().position().await.is_ok()).await;
    println!("131,000 changes: written in {written:?}, in the outbox after {:?}", began.elapsed());
    let transactions = zoo.transactions(before).await;
    let sizes: Vec<_> = transactions.iter().map(|transaction| transaction.changes.len()).collect();
    assert_eq!(sizes, [60_000, 60_000, 1]);
    zoo.assert_replays().await;
}

/// Many small ones are appended together, and stay apart for who reads them.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_are_appended_together_are_delivered_apart() {
    let Some(zoo) = zoo().await else { return };
    let before = zoo.recorder.log().position().await.unwrap();
    zoo.recorder.close().await;
    let program = zoo.database.plain().await;
    for n in 0..300 {
        run(&program, &format!("INSERT INTO food (name) VALUES ('{n}a'), ('{n}b')")).await;
    }
    let mut options = RecorderOptions::default();
    options.log.chunk_changes = 7;
    let node = node(&zoo, options).await;
    let zoo = Zoo { recorder: node, database: zoo.database };
    let transactions = zoo.transactions(before).await;
    assert!(transactions.iter().all(|transaction| transaction.changes.len() == 2));
    assert_eq!(transactions.len(), 300);
    // From each of their cursors the rest follows.
    for (seen, transaction) in transactions.iter().enumerate().step_by(37) {
        assert_eq!(zoo.transactions(transaction.cursor.clone()).await.len(), 299 - seen);
    }
    zoo.assert_replays().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_goes_on_where_one_stops_or_is_paused() {
    let Some(zoo) = zoo().await else { return };
    let other = node(&zoo, RecorderOptions::default()).await;
    let writer = {
        let program = zoo.database.plain().await;
        tokio::spawn(async move {
            for n in 0..2_000 {
                run(&program, &format!("INSERT INTO food (name) VALUES ('{n}')")).await;
            }
        })
    };
    // One that is paused beyond the end of its lease: the other ends its stream, and it appends nothing more.
    let program = zoo.database.plain().await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        run(&program, "UPDATE tidewire_lease SET expires = 1 WHERE name = 'capture'").await;
    }
    writer.await.unwrap();
    assert_eq!(zoo.transactions(Cursor::start()).await.len(), 2_000);

    // One that ends in order is followed at once.
    zoo.recorder.close().await;
    let began = Instant::now();
    run(&program, "INSERT INTO food (name) VALUES ('last')").await;
    let zoo = Zoo { recorder: other, database: zoo.database };
    zoo.assert_replays().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_crashes_and_all_goes_on() {
    let durable = [
        "--innodb-flush-log-at-trx-commit=1",
        "--sync-binlog=1",
        "--log-bin-compress=ON",
        "--log-bin-compress-min-len=20",
    ];
    let Some(mut server) = MariadbServer::with(&durable).await else { return };
    let zoo = Zoo::of(TestDatabase::mariadb_on(&server).await).await;
    zoo.populate().await;
    let cursor = zoo.recorder.log().position().await.unwrap();
    // What was written in the very second in which a server starts is not told from what it has written since.
    let now = "SELECT CAST(UNIX_TIMESTAMP() AS CHAR)";
    let written = text(zoo.recorder.unrecorded(), now).await;
    eventually(async || text(zoo.recorder.unrecorded(), now).await != written).await;
    for n in 0..3 {
        let add = |name: String| food::ActiveModel { name: Set(name), ..Default::default() };
        add(format!("{n} before")).insert(&zoo.recorder).await.unwrap();
        server.crash().await;
        eventually(async || add(format!("{n} after")).insert(&zoo.recorder).await.is_ok()).await;
        eventually(async || zoo.recorder.log().position().await.is_ok()).await;
    }
    // Nothing is there twice; an insert whose answer was lost in the crash may be there as well.
    assert!(zoo.transactions(cursor).await.len() >= 6);
    zoo.assert_replays().await;
}

/// Removes all files of the binary log but the newest; answers whether the server did, which it does not while it believes that one is read.
async fn purged(db: &impl ConnectionTrait) -> bool {
    let files = async || {
        let rows = db.query_all_raw(Statement::from_string(DbBackend::MySql, "SHOW BINARY LOGS")).await.unwrap();
        rows.iter().map(|row| row.try_get_by_index::<String>(0).unwrap()).collect::<Vec<_>>()
    };
    let newest = files().await.pop().unwrap();
    run(db, &format!("PURGE BINARY LOGS TO '{newest}'")).await;
    files().await == [newest]
}

/// Where changes are missing, nobody who follows goes on as if they were not.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_cannot_tell_is_answered_by_a_resync() {
    // What is done here concerns the whole server.
    let Some(server) = MariadbServer::with(&[]).await else { return };
    let zoo = Zoo::of(TestDatabase::mariadb_on(&server).await).await;
    zoo.populate().await;
    let program = zoo.database.plain().await;
    let recorded = async || {
        eventually(async || zoo.recorder.log().position().await.is_ok()).await;
        let cursor = zoo.recorder.log().position().await.unwrap();
        run(&program, "INSERT INTO food (name) VALUES (UUID())").await;
        assert_eq!(zoo.transactions(cursor.clone()).await.len(), 1);
        cursor
    };
    run(&program, "CREATE FUNCTION writes() RETURNS int DETERMINISTIC BEGIN UPDATE food SET name = 'w' WHERE id = 1; RETURN 1; END")
        .await;
    for sql in [
        "TRUNCATE chip",
        "SET STATEMENT binlog_format = 'STATEMENT' FOR DO writes()",
        "RESET MASTER",
        // As it is where nobody has set it: the server's default.
        "SET GLOBAL binlog_row_metadata = 'NO_LOG'; UPDATE food SET name = 'v' WHERE id = 1; SET GLOBAL binlog_row_metadata = 'FULL'",
        "SET STATEMENT binlog_row_image = 'MINIMAL' FOR UPDATE food SET name = 'x' WHERE id = 1",
        "SET STATEMENT binlog_format = 'STATEMENT' FOR UPDATE food SET name = 'y' WHERE id = 1",
        "XA START 'x'; UPDATE food SET name = 'z' WHERE id = 1; XA END 'x'; XA PREPARE 'x'; XA COMMIT 'x'",
        "CREATE OR REPLACE TABLE chip LIKE chip_copy",
    ] {
        if sql.contains("chip_copy") {
            run(&program, "CREATE TABLE chip_copy LIKE chip").await;
        }
        let before = recorded().await;
        run(&program, sql).await;
        assert_eq!(first_resync(&zoo.recorder, before).await, ResyncReason::Epoch, "{sql}");
        assert_eq!(first_resync(&zoo.recorder, Cursor::start()).await, ResyncReason::Trimmed, "{sql}");
    }
    // One that is prepared and rolled back is nothing.
    let before = recorded().await;
    run(&program, "XA START 'x'; DELETE FROM food; XA END 'x'; XA PREPARE 'x'; XA ROLLBACK 'x'").await;
    assert_eq!(zoo.transactions(before).await.len(), 1);

    // One that was prepared before all that the log says.
    let before = recorded().await;
    run(&program, "XA START 'x'; UPDATE food SET name = 'u' WHERE id = 1; XA END 'x'; XA PREPARE 'x'").await;
    run(&zoo.database.plain().await, "RESET MASTER").await;
    assert_eq!(first_resync(&zoo.recorder, before).await, ResyncReason::Epoch);
    eventually(async || zoo.recorder.log().position().await.is_ok()).await;
    let before = zoo.recorder.log().position().await.unwrap();
    run(&program, "XA COMMIT 'x'").await;
    assert_eq!(first_resync(&zoo.recorder, before).await, ResyncReason::Epoch);

    // While nobody reads: a log that was begun anew, however far it has gone since, and one of which files were removed unread.
    let mut reader = zoo.recorder.clone();
    for sql in ["RESET MASTER", "FLUSH BINARY LOGS; INSERT INTO food (name) VALUES ('unread'); FLUSH BINARY LOGS"] {
        eventually(async || reader.log().position().await.is_ok()).await;
        let before = reader.log().position().await.unwrap();
        reader.close().await;
        run(&program, sql).await;
        run(&program, "INSERT INTO food (name) SELECT CONCAT(UUID(), seq) FROM seq_1_to_3000").await;
        eventually(async || purged(&program).await).await;
        reader = node(&zoo, RecorderOptions::default()).await;
        eventually(async || reader.log().position().await.is_ok()).await;
        assert_eq!(first_resync(&reader, before).await, ResyncReason::Epoch, "{sql}");
    }
    // Files that have been read may go.
    let before = reader.log().position().await.unwrap();
    let was = reader.log_status().await.unwrap().unwrap().name;
    run(&program, "INSERT INTO food (name) VALUES ('read'); FLUSH BINARY LOGS").await;
    eventually(async || reader.log_status().await.unwrap().unwrap().name != was).await;
    eventually(async || purged(&program).await).await;
    reader.close().await;
    run(&program, "INSERT INTO food (name) VALUES ('last')").await;
    let reader = node(&zoo, RecorderOptions::default()).await;
    assert_eq!(transactions(&reader, before).await.len(), 2);
}

/// What a server takes into a column though it is no text, an event that is longer than a statement may be, and a date of zeros.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_odd_is_recorded_or_said() {
    let Some(server) = MariadbServer::with(&[]).await else { return };
    let zoo = Zoo::of(TestDatabase::mariadb_on(&server).await).await;
    zoo.populate().await;
    let program = zoo.database.plain().await;
    let before = zoo.recorder.log().position().await.unwrap();
    run(
        &program,
        "SET sql_mode = ''; ALTER TABLE visit MODIFY at timestamp(6) NULL; ALTER TABLE food MODIFY name longtext",
    )
    .await;
    for sql in
        ["INSERT INTO food (name) VALUES (X'61EDA08062')", "SET sql_mode = ''; UPDATE visit SET at = '0000-00-00'"]
    {
        run(&program, sql).await;
    }
    let transactions = zoo.transactions(before).await;
    let says = |what: &str| {
        let changes = transactions.iter().flat_map(|transaction| &transaction.changes);
        let mut images = changes.filter_map(|change| change.after.as_ref());
        images.any(|image| image.cells().any(|cell| cell.is_some_and(|cell| cell.contains(what))))
    };
    assert!(says("a\u{fffd}") && says("0000-00-00"), "{transactions:?}");

    run(&program, "INSERT INTO food (id, name) VALUES (900, REPEAT('x', 9000000)); UPDATE food SET name = REPEAT('y', 9000000) WHERE id = 900").await;
    let said = async || zoo.recorder.log_status().await.unwrap().unwrap().trouble.unwrap_or_default();
    eventually(async || said().await.contains("max_allowed_packet")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_lacks_a_column_is_waited_for_and_never_skipped() {
    let Some(zoo) = zoo().await else { return };
    zoo.populate().await;
    zoo.recorder.log().follow_all(Cursor::start()).await.unwrap();
    let program = zoo.database.plain().await;
    let before = zoo.recorder.log().position().await.unwrap();
    run(
        &program,
        "ALTER TABLE keeper RENAME COLUMN name TO called; INSERT INTO keeper (id, email, called) VALUES (7, 'x', 'x')",
    )
    .await;
    let troubled =
        async |recorder: &Recorder| recorder.check().await.is_err_and(|error| error.to_string().contains("keeper"));
    eventually(async || troubled(&zoo.recorder).await && !zoo.recorder.log().tail_stats().healthy).await;
    let status = zoo.recorder.log_status().await.unwrap().unwrap();
    assert!(status.trouble.unwrap().contains("keeper has no column name") && status.lag_bytes.unwrap() > 0);

    // When it is there again, what was written meanwhile is recorded.
    run(
        &program,
        "ALTER TABLE keeper ADD COLUMN name varchar(255) NOT NULL DEFAULT ''; ALTER TABLE keeper DROP COLUMN called",
    )
    .await;
    eventually(async || zoo.recorder.log().position().await.is_ok()).await;
    assert_eq!(zoo.transactions(before).await.len(), 1);
    zoo.recorder.check().await.unwrap();
    eventually(async || zoo.recorder.log().tail_stats().healthy).await;
    let status = zoo.recorder.log_status().await.unwrap().unwrap();
    assert!(status.active && status.trouble.is_none(), "{status:?}");
}

/// From triggers to the log and back while somebody writes: nothing is missing, and nothing is there twice.
#[tokio::test(flavor = "multi_thread")]
async fn captures_change_places_without_a_gap() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    let zoo = Zoo::of(database.captured_by(Capture::Triggers)).await;
    let before = zoo.recorder.log().position().await.unwrap();
    zoo.recorder.close().await;
    let program = zoo.database.plain().await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = tokio::spawn({
        let stop = std::sync::Arc::clone(&stop);
        async move {
            let mut written = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let insert = format!("INSERT INTO food (name) VALUES ('{written}')");
                match program.execute_unprepared(&insert).await {
                    Ok(_) => written += 1,
                    // A statement that has waited for the table may find triggers whose tables it has not opened: the server refuses it then.
                    Err(error) => assert!(error.to_string().contains("tidewire_barrier"), "{error}"),
                }
            }
            written
        }
    });
    for capture in [Capture::Log, Capture::Triggers, Capture::Log, Capture::Log] {
        let mut options = RecorderOptions::default();
        options.capture = Some(capture);
        let installer = Recorder::connect_with(zoo.database.url(), zoo::registry(), options).await.unwrap();
        installer.install_capture().await.unwrap();
        installer.check().await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        installer.close().await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let written = writer.await.unwrap();
    let node = node(&zoo, RecorderOptions::default()).await;
    let zoo = Zoo { recorder: node, database: zoo.database };
    assert_eq!(zoo.transactions(before).await.len(), written);
    zoo.assert_replays().await;
    // Removed, nothing of it is left.
    zoo.recorder.remove_capture().await.unwrap();
    let left = "SELECT CAST(count(*) AS CHAR) FROM information_schema.triggers WHERE trigger_schema = DATABASE()";
    assert_eq!(text(&zoo.database.plain().await, left).await.unwrap(), "0");
}

async fn refused(url: &str) -> Error {
    let mut options = RecorderOptions::default();
    options.capture = Some(Capture::Log);
    let recorder = Recorder::connect_with(url, zoo::registry(), options).await.unwrap();
    let error = recorder.install_capture().await.unwrap_err();
    recorder.close().await;
    assert_eq!(error.kind(), ErrorKind::Setup, "{error:?}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_captured_is_refused_with_what_to_do() {
    let Some(server) = MariadbServer::with(&[]).await else { return };
    let database = TestDatabase::mariadb_on(&server).await;
    let db = database.plain().await;
    install(&db).await.unwrap();
    zoo::create(&db).await;
    run(&db, "CREATE USER u; SET @sql = CONCAT('GRANT ALL ON ', DATABASE(), '.* TO u'); EXECUTE IMMEDIATE @sql").await;
    let theirs = database.url().replace("root@", "u@");
    assert!(refused(&theirs).await.to_string().contains("BINLOG MONITOR"));
    run(&db, "GRANT BINLOG MONITOR ON *.* TO u").await;
    let error = refused(&theirs).await;
    assert!(error.to_string().contains("GRANT REPLICATION SLAVE"), "{error}");
    for (break_it, problem, mend) in [
        ("SET GLOBAL binlog_format = 'MIXED'", "SET GLOBAL binlog_format = 'ROW'", "SET GLOBAL binlog_format = 'ROW'"),
        (
            "SET GLOBAL binlog_row_image = 'MINIMAL'",
            "binlog_row_image = MINIMAL",
            "SET GLOBAL binlog_row_image = 'FULL'",
        ),
        (
            "SET GLOBAL binlog_row_metadata = 'NO_LOG'",
            "SET GLOBAL binlog_row_metadata = 'FULL'",
            "SET GLOBAL binlog_row_metadata = 'FULL'",
        ),
        (
            "ALTER TABLE food MODIFY name varchar(255) CHARACTER SET cp1250",
            "food.name",
            "ALTER TABLE food MODIFY name varchar(255)",
        ),
        (
            "ALTER TABLE food ADD old varchar(255), DROP name, ADD COLUMN name varchar(255) AS (UPPER(old))",
            "food.name",
            "ALTER TABLE food DROP name, ADD COLUMN name varchar(255)",
        ),
        (
            "ALTER TABLE chip DROP FOREIGN KEY `fk-chip-animal_id`; ALTER TABLE chip ENGINE = MyISAM",
            "ENGINE = InnoDB",
            "ALTER TABLE chip ENGINE = InnoDB",
        ),
    ] {
        run(&db, break_it).await;
        let error = refused(database.url()).await;
        assert!(error.to_string().contains(problem), "{break_it}: {error}");
        run(&db, mend).await;
    }
    let Some(server) = MariadbServer::with(&["--skip-log-bin"]).await else { return };
    let database = TestDatabase::mariadb_on(&server).await;
    install(&database.plain().await).await.unwrap();
    let error = refused(database.url()).await;
    assert!(error.to_string().contains("log_bin"), "{error}");
}

mod kinds {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "kinds")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i32,
        pub tiny: Option<i8>,
        pub tiny_u: Option<u8>,
        pub yes: Option<bool>,
        pub bits: Option<i64>,
        pub years: Option<i16>,
        pub small_u: Option<u16>,
        pub medium: Option<i32>,
        pub medium_u: Option<u32>,
        pub big: Option<i64>,
        pub big_u: Option<u64>,
        pub single: Option<f32>,
        pub twice: Option<f64>,
        pub exact: Option<Decimal>,
        pub whole: Option<Decimal>,
        pub tail: Option<Decimal>,
        pub chars: Option<String>,
        pub latin: Option<String>,
        pub plain: Option<String>,
        pub three: Option<String>,
        pub lengthy: Option<String>,
        pub one_of: Option<String>,
        pub some_of: Option<String>,
        pub fixed: Option<Vec<u8>>,
        pub varied: Option<Vec<u8>>,
        pub thing: Option<Vec<u8>>,
        pub doc: Option<Json>,
        pub made: Option<i64>,
        pub day: Option<Date>,
        pub span: Option<Time>,
        pub span3: Option<Time>,
        pub moment: Option<DateTime>,
        pub moment3: Option<DateTime>,
        pub instant: Option<DateTimeUtc>,
        pub instant5: Option<DateTimeUtc>,
    }

    impl ActiveModelBehavior for ActiveModel {}
}

/// Every type of MariaDB's that an entity may have, in the character sets that are read, among columns that it does not have.
const KINDS: &str = "CREATE TABLE kinds (
  other mediumtext CHARACTER SET cp1250, id int NOT NULL AUTO_INCREMENT PRIMARY KEY, tiny tinyint, tiny_u tinyint unsigned, yes bit(1), bits bit(20),
  years year, small_u smallint unsigned, medium mediumint, medium_u mediumint unsigned, big bigint, big_u bigint unsigned, single float, twice double,
  exact decimal(20,6), whole decimal(9,0), tail decimal(38,38), chars char(10), latin varchar(60) CHARACTER SET latin1, plain tinytext CHARACTER SET ascii,
  three varchar(300) CHARACTER SET utf8mb3, lengthy longtext, one_of enum('a', 'bé', 'c''d') CHARACTER SET latin1, some_of set('x', 'y', 'zé', '4', '5', '6', '7', '8', '9'),
  fixed binary(6), varied varbinary(300), thing tinyblob, doc json, made bigint AS (big * 2) STORED, day date, span time, span3 time(3),
  moment datetime, moment3 datetime(3), instant timestamp NULL, instant5 timestamp(5) NULL, nobodys uuid, theirs inet6
) CHARACTER SET utf8mb4";

const KIND_ROWS: [&str; 6] = [
    "INSERT INTO kinds (id) VALUES (1)",
    "INSERT INTO kinds SET id = 2, other = 'ž', tiny = -128, tiny_u = 255, yes = 1, bits = 600001, years = 2026, small_u = 65535, medium = -8388608,
       medium_u = 16777215, big = -9007199254740993, big_u = 18446744073709551615, single = 0.1, twice = -1.5e-300, exact = -12345678901234.000001,
       whole = 999999999, tail = -0.00000000000000000000000000000000000001, chars = 'ab  ', latin = 'naïve € \\\\ \"q\"', plain = 'x\\ny', three = '日本', lengthy = '🌊\\0',
       one_of = 'bé', some_of = 'x,zé,9', fixed = X'0100', varied = X'00FF00', thing = '', doc = '{ \"a\": [1, null, \"\\\\u00e9\"] }', day = '0999-12-31',
       span = '-12:34:56', span3 = '838:59:58.125', moment = '9999-12-31 23:59:59', moment3 = '1000-01-01 00:00:00.007', instant = '2038-01-19 03:14:07',
       instant5 = '1970-01-01 00:00:01.5', nobodys = UUID(), theirs = '::1'",
    "INSERT INTO kinds SET id = 3, tiny = 0, yes = 0, bits = 0, years = 0, single = 3.4028234e38, twice = 1e15, exact = 0, whole = -7, tail = 0.5, chars = '', latin = '',
       lengthy = REPEAT('long ', 30000), one_of = 'a', some_of = '', fixed = X'000000000001', varied = REPEAT('v', 280), span = '-00:00:01', span3 = '-00:00:00.001',
       day = '2026-11-21', moment = '2026-11-21 00:00:00', instant = '2026-11-21 12:00:00', doc = 'null'",
    "UPDATE kinds SET big = 21, one_of = 'c''d', some_of = '4,8', span3 = '-100:00:00.999', moment3 = '2026-11-21 01:02:03.456' WHERE id < 3",
    "UPDATE kinds SET other = 'not the entity''s', nobodys = UUID()",
    "UPDATE kinds SET id = id + 10, single = -0.0, exact = 1.5 WHERE id > 1",
];

/// The same statements on the same rows under both captures, image by image.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_tells_what_triggers_record_of_every_type() {
    let mut histories = Vec::new();
    for capture in [Capture::Triggers, Capture::Log] {
        let Some(database) = TestDatabase::mariadb().await else { return };
        let registry = Registry::new().entity::<kinds::Entity>();
        let recorder = database.captured_by(capture).recorder(registry, async |db| run(db, KINDS).await).await;
        for sql in KIND_ROWS {
            run(&recorder, sql).await;
        }
        run(&recorder, "DELETE FROM kinds").await;
        histories.push(history(&recorder).await);
    }
    assert_eq!(histories[0].len(), KIND_ROWS.len());
    for (by_triggers, by_log) in histories[0].iter().zip(&histories[1]) {
        for (row, (expected, found)) in
            by_triggers.iter().zip(by_log.values()).map(|((key, one), two)| (key, (one, two)))
        {
            assert_eq!(expected, found, "{row:?}");
        }
        assert_eq!(by_triggers.len(), by_log.len());
    }
    assert_eq!(histories[0].len(), histories[1].len());
}
