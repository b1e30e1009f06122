//! Capture by PostgreSQL's triggers: nobody's names and settings come in its way, and what it could not record is refused.

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, IsolationLevel, Statement, TransactionTrait, entity::prelude::*,
};
use tidewire_outbox::{Capture, Cursor, Operation, Recorder, Registry};
use tidewire_testkit::TestDatabase;

use crate::support::{Zoo, run};

async fn zoo() -> Option<Zoo> {
    let zoo = Zoo::of(TestDatabase::postgres().await?.captured_by(Capture::Triggers)).await;
    zoo.populate().await;
    Some(zoo)
}

async fn text(db: &DatabaseConnection, sql: &str) -> String {
    let row = db.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await.unwrap().unwrap();
    row.try_get_by_index(0).unwrap()
}

/// A role that may write the tables and make temporary ones.
async fn writer(zoo: &Zoo) -> (DatabaseConnection, String) {
    let psql = zoo.database.plain().await;
    let role = format!("w{}", Uuid::new_v4().simple());
    run(&psql, &format!("CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")).await;
    run(&psql, &format!("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")).await;
    let url = zoo.database.url().replace("tidewire@", &format!("{role}@"));
    (TestDatabase::at(url).plain().await, role)
}

/// I2: the triggers run as the installer, so a writer's own relations and functions are not mistaken for what they name.
#[tokio::test(flavor = "multi_thread")]
async fn a_writers_own_names_come_in_nobodys_way() {
    let Some(zoo) = zoo().await else { return };
    let (writer, role) = writer(&zoo).await;
    run(
        &writer,
        &format!(
            "CREATE TEMP TABLE tidewire_outbox (entity text, operation text, before text, after text, actor text, origin text, mutation_id text,
               was_at tid, is_at tid);
             CREATE TEMP TABLE food (id int, name text);
             CREATE FUNCTION pg_temp.rise() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN EXECUTE ''ALTER ROLE {role} SUPERUSER''; RETURN NEW; END';
             CREATE TRIGGER rise BEFORE INSERT ON pg_temp.tidewire_outbox FOR EACH ROW EXECUTE FUNCTION pg_temp.rise();
             INSERT INTO public.food (name) VALUES ('new'); UPDATE public.food SET name = name || '!'; TRUNCATE public.food CASCADE"
        ),
    )
    .await;
    let psql = zoo.database.plain().await;
    assert_eq!(text(&psql, &format!("SELECT rolsuper::text FROM pg_roles WHERE rolname = '{role}'")).await, "false");
    zoo.assert_replays().await;
}

/// Values have one form in the outbox, whatever the writer's session likes.
#[tokio::test(flavor = "multi_thread")]
async fn a_writers_settings_change_no_image() {
    let Some(zoo) = zoo().await else { return };
    let psql = zoo.database.plain().await;
    for setting in
        ["bytea_output = escape", "extra_float_digits = 0", "DateStyle = 'SQL, DMY'", "IntervalStyle = iso_8601"]
    {
        run(
            &psql,
            &format!(
                "BEGIN; SET LOCAL {setting}; UPDATE visit SET picture = picture || '\\x5c00'::bytea;
                             UPDATE animal SET weight = weight / 3; COMMIT"
            ),
        )
        .await;
        zoo.assert_replays().await;
    }
}

/// I3: a statement's triggers fire when all of its rows have been written, so what the application's do to them is recorded first.
#[tokio::test(flavor = "multi_thread")]
async fn a_rows_changes_are_in_their_true_order_whatever_triggers_do() {
    let Some(zoo) = zoo().await else { return };
    let psql = zoo.database.plain().await;
    run(
        &psql,
        "CREATE FUNCTION others() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF TG_TABLE_NAME = 'keeper' THEN
             -- As another was before, behind an update that changes nothing; twice; and a third that goes and comes again.
             UPDATE keeper SET name = name WHERE id = 2;
             UPDATE keeper SET name = 'bo' WHERE id = 2;
             UPDATE keeper SET name = 'cy?' WHERE id = 3;
             UPDATE keeper SET name = name WHERE id = 3;
             UPDATE keeper SET name = 'cy??' WHERE id = 3;
             DELETE FROM keeper WHERE id = 4;
             INSERT INTO keeper (id, email, name) VALUES (4, 'again', 'again');
           ELSE
             INSERT INTO food (id, name) VALUES (12, 'again');
           END IF;
           RETURN NULL; END $$;
         CREATE TRIGGER others AFTER UPDATE ON keeper FOR EACH ROW WHEN (NEW.id = 1 AND NEW.name <> OLD.name) EXECUTE FUNCTION others();
         CREATE TRIGGER others AFTER DELETE ON food FOR EACH ROW WHEN (OLD.id = 11) EXECUTE FUNCTION others();
         INSERT INTO keeper (id, email, name) VALUES (4, 'd', 'di');
         INSERT INTO food (id, name) VALUES (11, 'x'), (12, 'y')",
    )
    .await;
    let before = zoo.recorder.log().position().await.unwrap();
    run(&psql, "UPDATE keeper SET name = name || '!'").await;
    run(&psql, "DELETE FROM food WHERE id > 10").await;
    zoo.assert_replays().await;
    let transactions = zoo.transactions(before).await;
    for transaction in &transactions {
        assert!(transaction.changes.is_sorted_by_key(|change| change.seq));
    }
    let operations: Vec<_> = transactions[1].changes.iter().map(|change| change.operation).collect();
    assert_eq!(operations, [Operation::Delete, Operation::Delete, Operation::Insert]);
}

/// I3: a file that takes another's place has rows where that had others, in the same transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_written_anew_keeps_its_order() {
    let Some(zoo) = zoo().await else { return };
    let psql = zoo.database.plain().await;
    // A table is emptied and filled again, as it was before.
    run(&psql, "BEGIN; CREATE TEMP TABLE kept AS TABLE chip; TRUNCATE chip; INSERT INTO chip TABLE kept; COMMIT").await;
    zoo.assert_replays().await;
    // A row comes back to its place, in another file. What makes it needful to look is a row that went after another had come.
    run(&psql, "UPDATE food SET name = name || '1' WHERE name = 'fish'; UPDATE food SET name = name || '2' WHERE name = 'fish1'").await;
    run(
        &psql,
        "BEGIN; UPDATE food SET name = 'a' WHERE name = 'fish12'; CLUSTER food USING food_pkey; UPDATE food SET name = 'b' WHERE name = 'a';
         UPDATE food SET name = 'c' WHERE name = 'b'; INSERT INTO food (id, name) VALUES (77, 'x'); DELETE FROM food WHERE id = 77; COMMIT",
    )
    .await;
    zoo.assert_replays().await;
}

/// Whoever could make a trigger of what records would record rows that never were.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_makes_triggers_of_what_records() {
    let Some(zoo) = zoo().await else { return };
    let psql = zoo.database.plain().await;
    let (writer, _) = writer(&zoo).await;
    let function =
        "SELECT tgfoid::regproc::text FROM pg_trigger WHERE tgname = '!tidewire' AND tgrelid = 'food'::regclass";
    let function = text(&psql, function).await;
    let forge = format!(
        "CREATE TEMP TABLE forged (LIKE public.food);
         CREATE TRIGGER forge AFTER INSERT ON forged FOR EACH ROW EXECUTE FUNCTION public.{function}()"
    );
    let error = refused(&writer, &forge).await;
    assert!(error.contains("permission denied for function"), "{error}");
}

mod part {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "part")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i32,
    }

    impl ActiveModelBehavior for ActiveModel {}
}

const PARTS: &str = "CREATE TABLE part (id int PRIMARY KEY) PARTITION BY LIST (id);
    CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1); CREATE TABLE part_2 PARTITION OF part FOR VALUES IN (2)";

async fn parts(capture: Capture) -> Option<(Recorder, TestDatabase)> {
    let database = TestDatabase::postgres().await?.captured_by(capture);
    let recorder = database.recorder(Registry::new().entity::<part::Entity>(), async |db| run(db, PARTS).await).await;
    Some((recorder, database))
}

async fn refused(db: &impl ConnectionTrait, sql: &str) -> String {
    db.execute_unprepared(sql).await.unwrap_err().to_string()
}

async fn operations(recorder: &Recorder, database: TestDatabase) -> Vec<Operation> {
    let zoo = Zoo { recorder: recorder.clone(), database };
    let transactions = zoo.transactions(Cursor::start()).await;
    transactions.iter().flat_map(|transaction| &transaction.changes).map(|change| change.operation).collect()
}

/// Who owns a table makes partitions of it, with the triggers that it has.
#[tokio::test(flavor = "multi_thread")]
async fn the_owner_makes_partitions_whoever_installs() {
    let Some((recorder, database)) = parts(Capture::Triggers).await else { return };
    let psql = database.plain().await;
    let role = format!("o{}", Uuid::new_v4().simple());
    run(
        &psql,
        &format!("CREATE ROLE {role} LOGIN; GRANT ALL ON SCHEMA public TO {role}; ALTER TABLE part OWNER TO {role}"),
    )
    .await;
    assert!(recorder.check().await.unwrap_err().to_string().contains("capture install"));
    recorder.install_capture().await.unwrap();
    recorder.check().await.unwrap();
    let owner = TestDatabase::at(database.url().replace("tidewire@", &format!("{role}@"))).plain().await;
    run(&owner, "CREATE TABLE part_3 PARTITION OF part FOR VALUES IN (3); INSERT INTO part VALUES (3)").await;
    assert_eq!(operations(&recorder, database).await, [Operation::Insert]);
}

/// I2: what `TRUNCATE` removes is recorded, or it is refused.
#[tokio::test(flavor = "multi_thread")]
async fn truncate_tells_what_it_removes_or_is_refused() {
    for capture in [Capture::Triggers, Capture::Log] {
        let Some((recorder, database)) = parts(capture).await else { return };
        let psql = database.plain().await;
        run(&psql, "INSERT INTO part VALUES (1), (2)").await;
        for level in [IsolationLevel::RepeatableRead, IsolationLevel::Serializable] {
            let transaction = psql.begin_with_config(Some(level), None).await.unwrap();
            let error = refused(&transaction, "TRUNCATE part").await;
            assert!(error.contains("what TRUNCATE removes cannot be recorded"), "{error}");
        }
        // A partition by its own name; and a whole with one that nobody has prepared.
        run(&psql, "TRUNCATE part_1").await;
        run(&psql, "CREATE TABLE part_3 PARTITION OF part FOR VALUES IN (3)").await;
        if capture == Capture::Triggers {
            let error = refused(&psql, "TRUNCATE part").await;
            assert!(error.contains("partition part_3") || error.contains("partition public.part_3"), "{error}");
            assert!(recorder.check().await.unwrap_err().to_string().contains("capture install"));
        }
        recorder.install_capture().await.unwrap();
        recorder.check().await.unwrap();
        run(&psql, "TRUNCATE part").await;
        use Operation::{Delete, Insert};
        assert_eq!(operations(&recorder, database).await, [Insert, Insert, Delete, Delete], "{capture}");
    }
}

/// The installer may not see all rows where policies are forced on owners: then `TRUNCATE` is refused, where they would go untold.
#[tokio::test(flavor = "multi_thread")]
async fn truncate_is_refused_where_policies_hide_rows() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let role = format!("o{}", Uuid::new_v4().simple());
    let admin = database.plain().await;
    run(&admin, &format!("CREATE ROLE {role} LOGIN; GRANT ALL ON SCHEMA public TO {role}")).await;
    let theirs =
        TestDatabase::at(database.url().replace("tidewire@", &format!("{role}@"))).captured_by(Capture::Triggers);
    let zoo = Zoo::of(theirs).await;
    zoo.populate().await;
    let psql = zoo.database.plain().await;
    run(&psql, "ALTER TABLE chip ENABLE ROW LEVEL SECURITY; ALTER TABLE chip FORCE ROW LEVEL SECURITY").await;
    let error = refused(&psql, "TRUNCATE chip").await;
    assert!(error.contains("row-level security policy"), "{error}");
    run(&psql, "ALTER TABLE chip NO FORCE ROW LEVEL SECURITY; TRUNCATE chip").await;
    zoo.assert_replays().await;
}

/// What comes and goes untold is refused at the check.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_cannot_be_captured_are_refused() {
    for capture in [Capture::Hooks, Capture::Triggers] {
        let Some(database) = TestDatabase::postgres().await else { return };
        let zoo = Zoo::of(database.captured_by(capture)).await;
        let psql = zoo.database.plain().await;
        for (sql, problem, back) in [
            ("ALTER TABLE chip SET UNLOGGED", "chip is not logged", "ALTER TABLE chip SET LOGGED"),
            ("CREATE TABLE child () INHERITS (food)", "other tables inherit from food", "DROP TABLE child"),
        ] {
            run(&psql, sql).await;
            let error = zoo.recorder.check().await.unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
            run(&psql, back).await;
            zoo.recorder.check().await.unwrap();
        }
    }
}
