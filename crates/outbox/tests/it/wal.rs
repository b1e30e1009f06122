//! Capture by PostgreSQL's own log: the same stream as by triggers, from whichever node reads it, and a word where something is missing.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use sea_orm::{
    ActiveModelTrait, ConnectionTrait, DbBackend, EntityTrait, Set, Statement, TransactionTrait, entity::prelude::*,
};
use tidewire_outbox::{
    Actor, Capture, Cursor, Error, ErrorKind, Operation, Recorder, RecorderOptions, Registry, ResyncReason, Step,
    install,
};
use tidewire_testkit::{
    PostgresServer, TestDatabase, eventually, soon,
    zoo::{self, food},
};

use crate::support::{Zoo, first_resync, node, operations, run};

async fn zoo() -> Option<Zoo> {
    Some(Zoo::of(TestDatabase::postgres().await?.captured_by(Capture::Log)).await)
}

async fn text(db: &impl ConnectionTrait, sql: &str) -> Option<String> {
    let row = db.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await.unwrap()?;
    row.try_get_by_index::<Option<String>>(0).unwrap()
}

async fn slot(db: &impl ConnectionTrait) -> String {
    let sql = "SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database()";
    text(db, sql).await.unwrap()
}

/// Drops a slot, though somebody reads from it.
async fn drop_slot(db: &impl ConnectionTrait, name: &str) {
    let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database()";
    eventually(async || {
        run(db, end).await;
        db.execute_unprepared(&format!("SELECT pg_drop_replication_slot('{name}')")).await.is_ok()
    })
    .await;
}

/// What a reader is told that says something.
async fn first_news(recorder: &Recorder, after: Cursor) -> Step {
    let mut follower = recorder.log().follow_all(after).await.unwrap();
    loop {
        match soon(follower.next()).await.unwrap() {
            Step::Transactions { transactions, .. } if transactions.is_empty() => {}
            step => return step,
        }
    }
}

/// What programs write that know nothing of Tidewire, in whatever way.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_any_program_writes_is_recorded() {
    let Some(zoo) = zoo().await else { return };
    zoo.populate().await;
    let psql = zoo.database.plain().await;
    let large = "repeat(md5(random()::text) || md5(random()::text), 400)";
    for (sql, expected) in [
        ("INSERT INTO food (name) SELECT 'food ' || n FROM generate_series(1, 10) n", [10, 0, 0]),
        ("UPDATE food SET name = name", [0, 0, 0]),
        ("UPDATE food SET id = id + 1000 WHERE name = 'meat'", [3, 0, 3]),
        (
            "MERGE INTO food USING (VALUES ('meat'), ('new')) v (name) ON food.name = v.name WHEN MATCHED THEN UPDATE SET name = v.name || '!' WHEN NOT MATCHED THEN INSERT (name) VALUES (v.name)",
            [1, 1, 0],
        ),
        (
            "DO $$ BEGIN BEGIN DELETE FROM diet; RAISE 'no'; EXCEPTION WHEN OTHERS THEN UPDATE keeper SET name = 'x' WHERE id = 3; END; END $$",
            [0, 1, 0],
        ),
        ("BEGIN; INSERT INTO food (name) VALUES ('never'); ROLLBACK", [0, 0, 0]),
        ("BEGIN; INSERT INTO food (name) VALUES ('later'); PREPARE TRANSACTION 'two'", [0, 0, 0]),
        ("COMMIT PREPARED 'two'", [1, 0, 0]),
        ("DELETE FROM animal WHERE name = 'leo'", [0, 0, 5]),
        ("TRUNCATE diet", [0, 0, 2]),
        ("TRUNCATE diet", [0, 0, 0]),
        (
            "BEGIN; INSERT INTO food (name) VALUES ('gone'); TRUNCATE food, diet; INSERT INTO food (name) VALUES ('back'); COMMIT",
            [2, 0, 15],
        ),
        ("TRUNCATE food, diet, keeper, animal, chip, visit RESTART IDENTITY CASCADE", [0, 0, 8]),
    ] {
        let before = zoo.recorder.log().position().await.unwrap();
        run(&psql, sql).await;
        let transactions = zoo.transactions(before).await;
        assert_eq!(transactions.len(), usize::from(expected != [0; 3]), "{sql}");
        let changes: Vec<_> = transactions.iter().flat_map(|transaction| &transaction.changes).collect();
        assert_eq!(operations(&transactions), expected, "{sql}");
        // The log does not tell who wrote.
        assert!(changes.iter().all(|change| change.actor.as_deref() == Some("service:app")), "{sql}");
        zoo.assert_replays().await;
    }
    // Values that are kept apart from their row, and that an update leaves as they are.
    run(&psql, &format!("INSERT INTO food (name) VALUES ({large})")).await;
    run(&psql, "INSERT INTO keeper (id, email, name) VALUES (1, 'a', 'a')").await;
    run(
        &psql,
        &format!("INSERT INTO animal (id, name, species, tame) VALUES (gen_random_uuid(), {large}, 'lion', false)"),
    )
    .await;
    run(&psql, "UPDATE animal SET tame = true, weight = 5").await;
    run(&psql, "UPDATE animal SET name = name || 'x'").await;
    zoo.assert_replays().await;
}

/// Anybody may write messages into the log, and only what empties a table may tell of its rows.
#[tokio::test]
async fn nobody_else_tells_of_rows_that_are_removed() {
    let Some(zoo) = zoo().await else { return };
    zoo.populate().await;
    let psql = zoo.database.plain().await;
    let before = zoo.recorder.log().position().await.unwrap();
    for (prefix, content) in [
        ("tidewire.removed", "nonsense"),
        ("tidewire.removed", "diet\n{}"),
        ("tidewire.removed", "\ndiet\n{}"),
        ("tidewire.truncated", "1"),
        ("tidewire", "nonsense"),
        ("tidewire.other", ""),
    ] {
        run(&psql, &format!("SELECT pg_logical_emit_message(true, '{prefix}', E'{}')", content.escape_default())).await;
    }
    run(&psql, "INSERT INTO food (name) VALUES ('after')").await;
    let transactions = zoo.transactions(before).await;
    let changes: Vec<_> = transactions.iter().flat_map(|transaction| &transaction.changes).collect();
    assert_eq!(changes.iter().map(|change| change.operation).collect::<Vec<_>>(), [Operation::Insert]);
    zoo.assert_replays().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_comes_whole_and_in_pieces() {
    let Some(zoo) = zoo().await else { return };
    let before = zoo.recorder.log().position().await.unwrap();
    let psql = zoo.database.plain().await;
    let began = Instant::now();
    run(&psql, "INSERT INTO food (name) SELECT 'food ' || n FROM generate_series(1, 60000) n").await;
    run(&psql, "UPDATE food SET name = name || '!'").await;
    let written = began.elapsed();
    // One call waits for so much only where the machine has nothing else to do.
    eventually(async || zoo.recorder.log().position().await.is_ok()).await;
    println!("120,000 changes: written in {written:?}, in the outbox after {:?}", began.elapsed());
    let transactions = zoo.transactions(before).await;
    let sizes: Vec<_> = transactions.iter().map(|transaction| transaction.changes.len()).collect();
    assert_eq!(sizes, [60_000, 60_000]);
    zoo.assert_replays().await;
}

/// Many small ones are appended together, and stay apart for who reads them.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_are_appended_together_are_delivered_apart() {
    let Some(zoo) = zoo().await else { return };
    let before = zoo.recorder.log().position().await.unwrap();
    zoo.recorder.close().await;
    let psql = zoo.database.plain().await;
    for n in 0..300 {
        run(&psql, &format!("INSERT INTO food (name) VALUES ('{n}a'), ('{n}b')")).await;
    }
    let mut options = RecorderOptions::default();
    options.log.chunk_changes = 7;
    let node = node(&zoo, options).await;
    let zoo = Zoo { recorder: node, database: zoo.database };
    let transactions = zoo.transactions(before).await;
    assert!(transactions.iter().all(|transaction| transaction.changes.len() == 2));
    assert_eq!(transactions.len(), 300);
    let appended = text(&psql, "SELECT count(DISTINCT xid)::text FROM tidewire_outbox").await.unwrap();
    assert!(appended.parse::<u32>().unwrap() < 250, "{appended}");
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
    let start = Cursor::start();
    let writer = {
        let psql = zoo.database.plain().await;
        tokio::spawn(async move {
            for n in 0..2_000 {
                run(&psql, &format!("INSERT INTO food (name) VALUES ('{n}')")).await;
            }
        })
    };
    // One that is paused beyond the end of its lease: the other ends its stream, and it appends nothing more.
    let psql = zoo.database.plain().await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        run(&psql, "UPDATE tidewire_lease SET expires = 1 WHERE name = 'capture'").await;
    }
    writer.await.unwrap();
    assert_eq!(zoo.transactions(start).await.len(), 2_000);

    // One that ends in order is followed at once.
    zoo.recorder.close().await;
    let began = Instant::now();
    run(&psql, "INSERT INTO food (name) VALUES ('last')").await;
    let zoo = Zoo { recorder: other, database: zoo.database };
    zoo.assert_replays().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_crashes_and_all_goes_on() {
    let Some(server) = PostgresServer::with("").await else { return };
    let zoo = Zoo::of(TestDatabase::postgres_on(&server).await.captured_by(Capture::Log)).await;
    zoo.populate().await;
    let cursor = zoo.recorder.log().position().await.unwrap();
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

/// Where changes are missing, nobody who follows goes on as if they were not.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_cannot_tell_is_answered_by_a_resync() {
    let Some(zoo) = zoo().await else { return };
    zoo.populate().await;
    let psql = zoo.database.plain().await;
    let recorded = async || {
        food::ActiveModel { name: Set(Uuid::new_v4().to_string()), ..Default::default() }.insert(&psql).await.unwrap();
        let cursor = soon(zoo.recorder.log().position()).await.unwrap();
        food::Entity::insert(food::ActiveModel { name: Set(Uuid::new_v4().to_string()), ..Default::default() })
            .exec(&psql)
            .await
            .unwrap();
        assert_eq!(zoo.transactions(cursor.clone()).await.len(), 1);
        cursor
    };

    // A table that is emptied past its trigger.
    let before = recorded().await;
    run(&psql, "BEGIN; SET LOCAL session_replication_role = replica; TRUNCATE chip; COMMIT").await;
    assert_eq!(first_resync(&zoo.recorder, before).await, ResyncReason::Epoch);
    assert_eq!(first_resync(&zoo.recorder, Cursor::start()).await, ResyncReason::Trimmed);

    // A table that lost its replica identity, which is given back.
    let before = recorded().await;
    run(&psql, "ALTER TABLE keeper REPLICA IDENTITY DEFAULT; UPDATE keeper SET name = name || '!'").await;
    assert_eq!(first_resync(&zoo.recorder, before).await, ResyncReason::Epoch);
    eventually(async || zoo.recorder.check().await.is_ok()).await;

    // A publication that was made by somebody else, and one that has left a table out for a while.
    for sql in [
        "DROP PUBLICATION tidewire; CREATE PUBLICATION tidewire FOR TABLE food",
        "ALTER PUBLICATION tidewire DROP TABLE chip; DELETE FROM chip; ALTER PUBLICATION tidewire ADD TABLE chip",
    ] {
        let before = recorded().await;
        run(&psql, sql).await;
        assert_eq!(first_resync(&zoo.recorder, before).await, ResyncReason::Epoch, "{sql}");
        eventually(async || zoo.recorder.check().await.is_ok()).await;
    }

    // A slot that somebody drops, though it is in use.
    let before = recorded().await;
    let name = slot(&psql).await;
    drop_slot(&psql, &name).await;
    assert_eq!(first_resync(&zoo.recorder, before).await, ResyncReason::Epoch);

    // A slot that somebody reads from, while nobody of us does.
    let before = recorded().await;
    let lease = |set: &str| format!("UPDATE tidewire_lease SET token = token + 1, {set} WHERE name = 'capture'");
    run(&psql, &lease("holder = 'nobody', expires = expires + 1000000")).await;
    let steal = format!(
        "SELECT count(*)::text FROM pg_logical_slot_get_binary_changes('{name}', NULL, NULL, 'proto_version', '1', 'publication_names', 'tidewire')"
    );
    eventually(async || psql.execute_unprepared(&steal).await.is_ok()).await;
    run(&psql, "INSERT INTO food (name) VALUES ('stolen')").await;
    run(&psql, &steal).await;
    run(&psql, &lease("expires = 0")).await;
    assert_eq!(first_resync(&zoo.recorder, before).await, ResyncReason::Epoch);

    // A slot for which the server would have to keep too much.
    let before = recorded().await;
    let mut options = RecorderOptions::default();
    options.max_kept_log = Some(1);
    let careful = node(&zoo, options).await;
    assert_eq!(first_resync(&zoo.recorder, before).await, ResyncReason::Epoch);
    careful.close().await;
    recorded().await;
}

/// A log that no node can read fills no disk: the limit holds then too.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_read_is_given_up_at_its_limit() {
    let Some(zoo) = zoo().await else { return };
    zoo.populate().await;
    let psql = zoo.database.plain().await;
    let before = zoo.recorder.log().position().await.unwrap();
    run(&psql, "ALTER TABLE keeper RENAME name TO called; INSERT INTO keeper (id, email, called) VALUES (7, 'x', 'x')")
        .await;
    eventually(async || zoo.recorder.check().await.is_err()).await;
    zoo.recorder.close().await;
    let mut options = RecorderOptions::default();
    options.max_kept_log = Some(1);
    let careful = node(&zoo, options).await;
    eventually(async || careful.log().position().await.is_ok()).await;
    assert_eq!(first_resync(&careful, before).await, ResyncReason::Epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_lacks_a_column_is_waited_for_and_never_skipped() {
    let Some(zoo) = zoo().await else { return };
    zoo.populate().await;
    zoo.recorder.log().follow_all(Cursor::start()).await.unwrap();
    let psql = zoo.database.plain().await;
    let before = zoo.recorder.log().position().await.unwrap();
    run(&psql, "ALTER TABLE keeper RENAME name TO called; INSERT INTO keeper (id, email, called) VALUES (7, 'x', 'x')")
        .await;
    let troubled =
        async |recorder: &Recorder| recorder.check().await.is_err_and(|error| error.to_string().contains("keeper"));
    eventually(async || troubled(&zoo.recorder).await && !zoo.recorder.log().tail_stats().healthy).await;
    let status = zoo.recorder.log_status().await.unwrap().unwrap();
    assert!(status.trouble.unwrap().contains("keeper has no column name") && status.lag_bytes.unwrap() > 0);

    // When it is there again, what was written meanwhile is recorded.
    run(&psql, "ALTER TABLE keeper ADD COLUMN name varchar NOT NULL DEFAULT ''; ALTER TABLE keeper DROP COLUMN called")
        .await;
    eventually(async || zoo.recorder.log().position().await.is_ok()).await;
    assert_eq!(zoo.transactions(before).await.len(), 1);
    zoo.recorder.check().await.unwrap();
    eventually(async || zoo.recorder.log().tail_stats().healthy).await;
    let status = zoo.recorder.log_status().await.unwrap().unwrap();
    assert!(status.active && status.trouble.is_none());
}

mod odd {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "Odd \"Table\"", schema_name = "Else where")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub region: i32,
        #[sea_orm(primary_key, auto_increment = false, column_name = "The key")]
        pub key: String,
        #[sea_orm(column_name = "va'lue")]
        pub value: Option<String>,
    }

    impl ActiveModelBehavior for ActiveModel {}
}

const ODD: &str = r#"CREATE SCHEMA "Else where";
CREATE TABLE "Else where"."Odd ""Table""" (region int NOT NULL, "The key" text NOT NULL, "va'lue" text, other int,
  PRIMARY KEY (region, "The key")) PARTITION BY LIST (region);
CREATE TABLE "Else where".one PARTITION OF "Else where"."Odd ""Table""" FOR VALUES IN (1);
CREATE TABLE "Else where".two PARTITION OF "Else where"."Odd ""Table""" FOR VALUES IN (2);"#;

/// Partitions, composite keys, quoted names, other schemas; columns that the entity does not have.
#[tokio::test(flavor = "multi_thread")]
async fn tables_of_any_kind_are_recorded_and_put_back() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let database = database.captured_by(Capture::Log);
    let registry = || Registry::new().entity::<odd::Entity>();
    let recorder = database.recorder(registry(), async |db| run(db, ODD).await).await;
    let psql = database.plain().await;
    let table = r#""Else where"."Odd ""Table""""#;
    let before = recorder.log().position().await.unwrap();
    for sql in [
        format!("INSERT INTO {table} VALUES (1, 'a', 'x', 1), (2, 'b', NULL, 2)"),
        format!("UPDATE {table} SET \"va'lue\" = 'y' WHERE region = 1"),
        // Only what is no column of the entity's.
        format!("UPDATE {table} SET other = 7"),
        // To another partition.
        format!("UPDATE {table} SET region = 2 WHERE region = 1"),
        "TRUNCATE \"Else where\".one".to_owned(),
        format!("DELETE FROM {table} WHERE \"The key\" = 'b'"),
        format!("TRUNCATE {table}"),
    ] {
        run(&psql, &sql).await;
    }
    let end = recorder.log().position().await.unwrap();
    let mut follower = recorder.log().follow_all(before).await.unwrap();
    let mut told = Vec::new();
    while !follower.cursor().covers(&end) {
        let Step::Transactions { transactions, .. } = soon(follower.next()).await.unwrap() else { panic!() };
        for transaction in transactions {
            let changes: Vec<_> = transaction
                .changes
                .iter()
                .map(|change| {
                    let image = change.after.as_ref().or(change.before.as_ref()).unwrap();
                    format!(
                        "{} {}",
                        change.operation,
                        image.cells().map(|c| c.unwrap_or("-").to_owned()).collect::<Vec<_>>().join(" ")
                    )
                })
                .collect();
            told.push(changes.join(", "));
        }
    }
    assert_eq!(
        told,
        [
            "insert 1 \"a\" \"x\", insert 2 \"b\" -",
            "update 1 \"a\" \"y\"",
            "delete 1 \"a\" \"y\", insert 2 \"a\" \"y\"",
            "delete 2 \"b\" -",
            "delete 2 \"a\" \"y\"",
        ]
    );

    // A partition that comes later is prepared by whoever reads the log. What was changed before that is missing.
    let before = recorder.log().position().await.unwrap();
    let sql = format!(
        "BEGIN; CREATE TABLE \"Else where\".three PARTITION OF {table} FOR VALUES IN (3);
         INSERT INTO {table} VALUES (3, 'c', 'z', 1); DELETE FROM {table} WHERE region = 3; COMMIT"
    );
    run(&psql, &sql).await;
    assert_eq!(first_resync(&recorder, before).await, ResyncReason::Epoch);
    eventually(async || recorder.check().await.is_ok()).await;
    let before = recorder.log().position().await.unwrap();
    run(&psql, &format!("INSERT INTO {table} VALUES (3, 'c', 'z', 1)")).await;
    run(&psql, &format!("TRUNCATE {table}")).await;
    let mut follower = recorder.log().follow_all(before).await.unwrap();
    let mut changes = 0;
    while changes < 2 {
        let Step::Transactions { transactions, .. } = soon(follower.next()).await.unwrap() else { panic!() };
        changes += transactions.len();
    }

    // Removed, nothing of it is left.
    run(&psql, "ALTER TABLE \"Else where\".two REPLICA IDENTITY FULL").await;
    recorder.remove_capture().await.unwrap();
    let identities = "SELECT string_agg(relname || relreplident::text, ' ' ORDER BY relname) FROM pg_class WHERE relnamespace = '\"Else where\"'::regnamespace AND relkind = 'r'";
    assert_eq!(text(&psql, identities).await.unwrap(), "oned threed twod");
    for left in [
        "SELECT count(*)::text FROM pg_publication",
        "SELECT count(*)::text FROM pg_replication_slots WHERE database = current_database()",
        "SELECT count(*)::text FROM pg_trigger WHERE tgname LIKE '%tidewire%'",
        "SELECT count(*)::text FROM pg_proc WHERE proname LIKE 'tidewire%'",
    ] {
        assert_eq!(text(&psql, left).await.unwrap(), "0", "{left}");
    }
}

/// A partition that is gone when the log tells of it holds up nothing, and one with another name is still what it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_gone_stops_nothing() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let database = database.captured_by(Capture::Log);
    let recorder = database.recorder(Registry::new().entity::<odd::Entity>(), async |db| run(db, ODD).await).await;
    let psql = database.plain().await;
    let table = r#""Else where"."Odd ""Table""""#;
    let before = recorder.log().position().await.unwrap();
    let three = format!(
        "CREATE TABLE three PARTITION OF {table} FOR VALUES IN (3); INSERT INTO {table} VALUES (3, 'c', 'z', 1);"
    );
    run(&psql, &format!("BEGIN; {three} ALTER TABLE three RENAME TO third; COMMIT")).await;
    let Step::Transactions { transactions, .. } = first_news(&recorder, before).await else { panic!("it goes on") };
    assert_eq!(transactions.len(), 1);
    run(&psql, "DROP TABLE third").await;
    // What the log tells of is looked for when it is told, and not there.
    for gone in ["DROP TABLE three", "ALTER TABLE {table} DETACH PARTITION three"] {
        let before = recorder.log().position().await.unwrap();
        run(&psql, &format!("BEGIN; {three} {}; COMMIT", gone.replace("{table}", table))).await;
        assert_eq!(first_resync(&recorder, before).await, ResyncReason::Epoch, "{gone}");
    }
    recorder.log().position().await.unwrap();
    eventually(async || recorder.check().await.is_ok()).await;
}

/// The slot that takes another's place is made while transactions are open, and nobody waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_slot_holds_up_nobody() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database.captured_by(Capture::Log).alone().await).await;
    let psql = zoo.database.plain().await;
    let open = psql.begin().await.unwrap();
    run(&open, "INSERT INTO food (name) VALUES ('open')").await;
    let name = slot(&psql).await;
    drop_slot(&psql, &name).await;
    let making =
        "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually(async || text(&psql, making).await.unwrap() != "0").await;
    let writes = psql.execute_unprepared("INSERT INTO food (name) VALUES ('meanwhile')");
    tokio::time::timeout(Duration::from_secs(5), writes).await.expect("nobody waits").unwrap();
    open.commit().await.unwrap();
    eventually(async || zoo.recorder.log().position().await.is_ok()).await;
}

/// Who has fewer entities than are captured must not take the others out.
#[tokio::test(flavor = "multi_thread")]
async fn an_install_takes_nobodys_tables_out() {
    let Some(zoo) = zoo().await else { return };
    let error = refused(zoo.database.url(), Registry::new().entity::<food::Entity>()).await;
    assert!(
        error.to_string().contains("the publication tidewire has") && error.to_string().contains("keeper"),
        "{error}"
    );
    zoo.recorder.check().await.unwrap();
}

/// A publication and a slot are the database's, so another outbox in it may not take them.
#[tokio::test(flavor = "multi_thread")]
async fn another_outbox_of_the_database_takes_nothing() {
    let Some(zoo) = zoo().await else { return };
    let url = format!("{}?options=-csearch_path%3Dother", zoo.database.url());
    let psql = zoo.database.plain().await;
    run(&psql, "CREATE SCHEMA other").await;
    let other = TestDatabase::at(url).plain().await;
    install(&other).await.unwrap();
    zoo::create(&other).await;
    let error = refused(&format!("{}?options=-csearch_path%3Dother", zoo.database.url()), zoo::registry()).await;
    assert!(error.to_string().contains("another outbox of this database"), "{error}");
    zoo.recorder.check().await.unwrap();
}

/// Our own messages stand in the log in the database's encoding, unlike rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_another_encoding_is_read() {
    let Some(server) = PostgresServer::shared().await else { return };
    let name = format!("latin_{}", Uuid::new_v4().simple());
    let admin = TestDatabase::at(server.url("postgres")).plain().await;
    let create = format!("CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    admin.execute_unprepared(&create).await.unwrap();
    let zoo = Zoo::of(TestDatabase::at(server.url(&name)).captured_by(Capture::Log)).await;
    food::ActiveModel { name: Set("café".into()), ..Default::default() }
        .insert(&zoo.recorder.clone().acting_as(Actor::user("zoë")))
        .await
        .unwrap();
    run(&zoo.database.plain().await, "TRUNCATE food CASCADE").await;
    assert_eq!(zoo.transactions(Cursor::start()).await.len(), 2);
    zoo.assert_replays().await;
}

/// From triggers to the log while somebody writes, and back: nothing is missing, and nothing is there twice.
#[tokio::test(flavor = "multi_thread")]
async fn captures_change_places_without_a_gap() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database.captured_by(Capture::Triggers)).await;
    let before = zoo.recorder.log().position().await.unwrap();
    let psql = zoo.database.plain().await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = tokio::spawn({
        let stop = std::sync::Arc::clone(&stop);
        async move {
            let mut written = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                run(&psql, &format!("INSERT INTO food (name) VALUES ('{written}')")).await;
                written += 1;
            }
            written
        }
    });
    // The programs that read need not run meanwhile.
    zoo.recorder.close().await;
    for capture in [Capture::Log, Capture::Triggers, Capture::Log] {
        let mut options = RecorderOptions::default();
        options.capture = Some(capture);
        let installer = Recorder::connect_with(zoo.database.url(), zoo::registry(), options).await.unwrap();
        installer.install_capture().await.unwrap();
        installer.check().await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        installer.close().await;
        // Only the way to the log is open to writers.
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        eventually(async || writer.is_finished()).await;
    }
    let written = writer.await.unwrap();
    let node = node(&zoo, RecorderOptions::default()).await;
    let zoo = Zoo { recorder: node, database: zoo.database };
    assert_eq!(zoo.transactions(before).await.len(), written);
    zoo.assert_replays().await;
}

async fn refused(url: &str, registry: Registry) -> Error {
    let mut options = RecorderOptions::default();
    options.capture = Some(Capture::Log);
    let recorder = Recorder::connect_with(url, registry, options).await.unwrap();
    let error = recorder.install_capture().await.unwrap_err();
    recorder.close().await;
    assert_eq!(error.kind(), ErrorKind::Setup, "{error:?}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_captured_is_refused_with_what_to_do() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let db = database.plain().await;
    install(&db).await.unwrap();
    zoo::create(&db).await;
    let user = format!("u{}", Uuid::new_v4().simple());
    run(&db, &format!("CREATE ROLE {user} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {user}")).await;
    let theirs = database.url().replace("tidewire@", &format!("{user}@"));
    let error = refused(&theirs, zoo::registry()).await;
    assert!(error.to_string().contains(&format!("ALTER ROLE {user} REPLICATION")), "{error}");
    run(&db, &format!("ALTER ROLE {user} REPLICATION")).await;
    let error = refused(&theirs, zoo::registry()).await;
    assert!(error.to_string().contains("GRANT CREATE ON DATABASE"), "{error}");
    run(&db, &format!("DO $$ BEGIN EXECUTE 'GRANT CREATE ON DATABASE ' || current_database() || ' TO {user}'; END $$"))
        .await;
    let error = refused(&theirs, zoo::registry()).await;
    assert!(error.to_string().contains("does not own keeper"), "{error}");

    run(
        &db,
        "ALTER TABLE food ADD COLUMN old_name varchar; ALTER TABLE food DROP COLUMN name CASCADE; \
              ALTER TABLE food ADD COLUMN name varchar GENERATED ALWAYS AS (upper(old_name)) STORED",
    )
    .await;
    let error = refused(database.url(), zoo::registry()).await;
    assert!(
        error.to_string().contains("generated columns food.name") && error.to_string().contains("hooks, triggers"),
        "{error}"
    );

    // Servers that are set up otherwise.
    for (settings, problem) in [
        ("-c wal_level=replica", "wal_level = logical"),
        ("-c max_replication_slots=0", "max_replication_slots"),
        ("-c max_replication_slots=1", "max_replication_slots"),
    ] {
        let server = PostgresServer::with(settings).await.unwrap();
        if settings.ends_with('1') {
            let other = TestDatabase::postgres_on(&server).await.plain().await;
            run(&other, "SELECT pg_create_physical_replication_slot('other')").await;
        }
        let database = TestDatabase::postgres_on(&server).await;
        install(&database.plain().await).await.unwrap();
        zoo::create(&database.plain().await).await;
        let error = refused(database.url(), zoo::registry()).await;
        assert!(error.to_string().contains(problem) && error.to_string().contains("restart"), "{error}");
    }
}

/// A slot that something else reads: it is said who, and nothing is recorded until it is free.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_in_use_is_said_to_be() {
    let Some(zoo) = zoo().await else { return };
    zoo.populate().await;
    zoo.recorder.close().await;
    let psql = zoo.database.plain().await;
    let mut holder = tokio::process::Command::new(PostgresServer::program("pg_recvlogical").unwrap());
    holder.args(["--start", "-f", "-", "-o", "proto_version=1", "-o", "publication_names=tidewire", "-d"]);
    holder.args([zoo.database.url(), "--slot", &slot(&psql).await]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut holder = holder.kill_on_drop(true).spawn().unwrap();
    let active = "SELECT active::text FROM pg_replication_slots WHERE database = current_database()";
    eventually(async || text(&psql, active).await.unwrap() == "true").await;
    let node = node(&zoo, RecorderOptions::default()).await;
    let zoo = Zoo { recorder: node, database: zoo.database };
    food::ActiveModel { name: Set("x".into()), ..Default::default() }.insert(&zoo.recorder).await.unwrap();
    eventually(async || {
        let error = zoo.recorder.check().await.err().map(|error| error.to_string()).unwrap_or_default();
        error.contains("in use by the database's process") && error.contains("pg_recvlogical")
    })
    .await;
    holder.kill().await.unwrap();
    eventually(async || zoo.recorder.log().position().await.is_ok()).await;
    zoo.assert_replays().await;
}
