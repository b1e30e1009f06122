//! Capture by hooks on MariaDB: what its tables and its statements have of their own.

use std::time::Duration;

use sea_orm::{
    ActiveModelTrait, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, EntityTrait, IsolationLevel, QuerySelect,
    Set, Statement, TransactionSession, TransactionTrait, sea_query::OnConflict,
};
use tidewire_outbox::{Actor, Capture, Cursor, Error, ErrorKind, Operation, Recorder, Registry};
use tidewire_testkit::{
    Replica, Target, TestDatabase, eventually,
    zoo::{food, keeper},
};

use crate::support::{Zoo, operations, run, transactions};

/// Quoted names with capitals and spaces, an enumeration, a generated column.
mod line {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
    #[sea_orm(rs_type = "String", db_type = "Enum", enum_name = "mood")]
    pub(super) enum Mood {
        #[sea_orm(string_value = "so so")]
        SoSo,
        #[sea_orm(string_value = "Fine")]
        Fine,
    }

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "Order Line")]
    pub struct Model {
        #[sea_orm(primary_key, column_name = "Id")]
        pub id: i64,
        #[sea_orm(column_name = "select")]
        pub select: String,
        #[sea_orm(column_name = "It's `odd`")]
        pub odd: i32,
        pub mood: Mood,
        #[sea_orm(column_name = "Order Line")]
        pub named_like_the_table: Option<Json>,
        /// The database's own: twice the odd one.
        pub doubled: Option<i32>,
        pub tripled: Option<i32>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// A partitioned table with a composite key.
mod reading {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "reading")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub region: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub at: DateTime,
        pub value: Option<f64>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

const TABLES: &str = r#"
CREATE TABLE `Order Line` (
  doubled int GENERATED ALWAYS AS (`It's ``odd``` * 2) STORED, tripled int GENERATED ALWAYS AS (`It's ``odd``` * 3) VIRTUAL,
  `Id` bigint AUTO_INCREMENT PRIMARY KEY,
  `select` varchar(60) CHARACTER SET latin1 NOT NULL UNIQUE, `It's ``odd``` int NOT NULL DEFAULT 7,
  mood enum('so so', 'Fine') NOT NULL DEFAULT 'Fine', `Order Line` json, `not the entity's` varchar(20) DEFAULT 'unseen');
CREATE TABLE reading (region varchar(20), at datetime(6), value double, PRIMARY KEY (region, at)) PARTITION BY KEY (region) PARTITIONS 3;
CREATE TABLE plain (id int AUTO_INCREMENT PRIMARY KEY, note text);
"#;

struct Shop {
    recorder: Recorder,
    /// The same tables, which nobody records.
    other: DatabaseConnection,
    _databases: [TestDatabase; 2],
}

impl Shop {
    /// `None` where MariaDB is not installed.
    async fn new() -> Option<Self> {
        let database = Target::MariadbHooks.database().await?;
        let registry = Registry::new().entity::<line::Entity>().entity::<reading::Entity>();
        let recorder = database.recorder(registry, async |db| run(db, TABLES).await).await;
        let second = database.another().await;
        let other = second.plain().await;
        run(&other, TABLES).await;
        Some(Self { recorder, other, _databases: [database, second] })
    }

    /// Holds the tables against their changes, and answers how many there were of each operation since a cursor.
    async fn since(&self, after: &Cursor) -> [usize; 3] {
        let catalog = self.recorder.catalog();
        let mut replica = Replica::default();
        for transaction in transactions(&self.recorder, Cursor::start()).await {
            replica.apply(catalog, &transaction);
        }
        let db = self.recorder.unrecorded();
        replica.assert_equals::<line::Entity>(catalog, db).await;
        replica.assert_equals::<reading::Entity>(catalog, db).await;
        operations(&transactions(&self.recorder, after.clone()).await)
    }
}

/// Statements in their order, and what is recorded of each.
const STATEMENTS: &[(&str, [usize; 3])] = &[
    ("INSERT INTO `Order Line` (`select`) VALUES ('a'), ('b') -- two", [2, 0, 0]),
    ("insert into `Order Line` SET `select` = 'ü', `It's ``odd``` = 1", [1, 0, 0]),
    ("INSERT INTO `Order Line` (`select`) SELECT concat(`select`, '2') FROM `Order Line`", [3, 0, 0]),
    ("INSERT INTO `Order Line` (`Id`, `select`) VALUES (100, 'd'), (101, 'd2')", [2, 0, 0]),
    ("INSERT INTO `Order Line` (`select`) VALUES ('after d')", [1, 0, 0]),
    ("INSERT IGNORE INTO `Order Line` (`select`) VALUES ('a'), ('e')", [1, 0, 0]),
    ("INSERT IGNORE INTO `Order Line` (`select`) VALUES ('a')", [0, 0, 0]),
    // One new, one changed, one left as it is.
    (
        "INSERT INTO `Order Line` (`select`, `It's ``odd```) VALUES ('a', 70), ('b', 7), ('f', 9) ON DUPLICATE KEY UPDATE `It's ``odd``` = VALUES(`It's ``odd```)",
        [1, 1, 0],
    ),
    (
        "INSERT INTO `Order Line` (`select`, `It's ``odd```) VALUES ('g', 1), ('g', 2), ('g', 3) ON DUPLICATE KEY UPDATE `It's ``odd``` = `Order Line`.`It's ``odd``` + VALUE(`It's ``odd```), mood = 'so so'",
        [1, 2, 0],
    ),
    (
        "INSERT INTO `Order Line` (`Id`, `select`) VALUES (1, 'other') ON DUPLICATE KEY UPDATE mood = DEFAULT, `select` = concat(`select`, '!')",
        [0, 1, 0],
    ),
    ("INSERT INTO `Order Line` (`Id`, `select`) VALUES (100, 'x') ON DUPLICATE KEY UPDATE `ID` = 300", [1, 0, 1]),
    (
        "INSERT INTO `Order Line` (`select`) SELECT `select` FROM `Order Line` WHERE `Id` = 2 ON DUPLICATE KEY UPDATE mood = 'so so'",
        [0, 1, 0],
    ),
    ("UPDATE `Order Line` SET mood = 'so so' WHERE `select` = 'b2' # ;", [0, 1, 0]),
    (
        "UPDATE `Order Line` AS `T` SET `Order Line` = '{\"null\": null, \"b\": [1, 2.50]}' WHERE `T`.`Id` > 100 ORDER BY `Id` DESC LIMIT 2",
        [0, 2, 0],
    ),
    ("UPDATE LOW_PRIORITY IGNORE `Order Line` SET `select` = 'only one' WHERE `Id` IN (1, 2)", [0, 1, 0]),
    // The entity does not have the column, so nobody would see the change.
    ("UPDATE `Order Line` SET `not the entity's` = 'y' WHERE `Id` = 300", [0, 0, 0]),
    ("UPDATE `Order Line` SET `ID` = `Id` + 1000, mood = 'Fine' WHERE `Id` IN (1, 2)", [2, 0, 2]),
    ("UPDATE `Order Line` SET `Id` = `Id` + 1 WHERE `Id` > 1000 ORDER BY `Id` DESC", [2, 0, 2]),
    ("UPDATE `Order Line` SET mood = 'so so' WHERE `select` = 'nobody'", [0, 0, 0]),
    (
        "UPDATE `Order Line` SET `It's ``odd``` = (SELECT count(*) FROM plain) WHERE `Id` IN (SELECT 3 FROM DUAL)",
        [0, 1, 0],
    ),
    ("REPLACE INTO `Order Line` (`Id`, `select`) VALUES (500, 'fresh'), (3, 'b2')", [2, 0, 2]),
    ("DELETE FROM `Order Line` WHERE `Id` > 3 ORDER BY `Id` LIMIT 1", [0, 0, 1]),
    ("DELETE FROM `Order Line` WHERE `Id` = 3", [0, 0, 1]),
    ("INSERT INTO plain (note) VALUES ('x'); UPDATE plain SET note = 'y'; DELETE FROM plain", [0, 0, 0]),
    (
        "INSERT INTO reading VALUES ('north', '2026-01-01 00:00:00.25', 1.5), ('it\\'s south', '2026-01-01', 0.1), ('west', '2026-01-01', NULL)",
        [3, 0, 0],
    ),
    ("UPDATE reading SET value = 2 WHERE region <> 'west'", [0, 2, 0]),
    // From one partition to the other.
    ("UPDATE reading SET region = 'south-east' WHERE region = 'north'", [1, 0, 1]),
    (
        "UPDATE reading AS r SET region = concat(r.region, '\\\\\\''), value = r.value WHERE r.region = 'west'",
        [1, 0, 1],
    ),
    (
        "INSERT INTO reading VALUES ('south-east', '2026-01-01 00:00:00.25', 8), ('x', '2026-01-02', 10) ON DUPLICATE KEY UPDATE value = VALUES(value) + coalesce(reading.value, 100)",
        [1, 1, 0],
    ),
    (
        "DELETE r FROM reading AS r JOIN reading s ON s.region = r.region LEFT JOIN plain p ON TRUE WHERE s.value > 5",
        [0, 0, 2],
    ),
    (
        "DELETE FROM reading USING reading, `Order Line` l WHERE l.`Id` > 0 AND l.mood = 'so so' AND reading.region LIKE 'it%'",
        [0, 0, 1],
    ),
    (
        "UPDATE reading r JOIN `Order Line` l ON l.`Id` > 0 SET r.value = 77, l.mood = 'so so' WHERE l.mood = 'Fine'",
        [0, 10, 0],
    ),
    ("DELETE FROM reading", [0, 0, 1]),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_mariadb_can_say_is_recorded_and_answered_as_without_a_recorder() {
    let Some(shop) = Shop::new().await else { return };
    for (sql, effect) in STATEMENTS {
        let before = shop.recorder.log().position().await.unwrap();
        let statement = || Statement::from_string(DbBackend::MySql, *sql);
        let single = !sql.contains("; UPDATE");
        let recorded = match single {
            true => shop.recorder.execute_raw(statement()).await,
            false => shop.recorder.execute_unprepared(sql).await,
        };
        let recorded = recorded.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let plain = match single {
            true => shop.other.execute_raw(statement()).await.unwrap(),
            false => shop.other.execute_unprepared(sql).await.unwrap(),
        };
        assert_eq!(
            (recorded.rows_affected(), recorded.last_insert_id()),
            (plain.rows_affected(), plain.last_insert_id()),
            "{sql}"
        );
        assert_eq!(shop.since(&before).await, *effect, "{sql}");
    }

    // SeaORM's own statements
    let before = shop.recorder.log().position().await.unwrap();
    let row =
        line::ActiveModel { select: Set("sea".into()), mood: Set(line::Mood::SoSo), odd: Set(3), ..Default::default() };
    let row = row.insert(&shop.recorder).await.unwrap();
    assert_eq!((row.doubled, row.tripled), (Some(6), Some(9)));
    let mut active = <line::ActiveModel as From<line::Model>>::from(row.clone());
    active.odd = Set(4);
    assert_eq!(active.update(&shop.recorder).await.unwrap().doubled, Some(8));
    line::Entity::delete_by_id(row.id).exec(&shop.recorder).await.unwrap();
    assert_eq!(shop.since(&before).await, [1, 1, 1]);
}

/// What a statement answers in rows.
async fn answer(db: &impl ConnectionTrait, sql: &str, values: &[sea_orm::Value]) -> Result<Vec<Vec<String>>, DbErr> {
    let statement = Statement::from_sql_and_values(DbBackend::MySql, sql, values.to_vec());
    let rows = db.query_all_raw(statement).await?;
    let texts = |row: &sea_orm::QueryResult| {
        let value = |name: &String| {
            row.try_get::<Option<String>>("", name)
                .map(|text| format!("{text:?}"))
                .or_else(|_| row.try_get::<Option<f64>>("", name).map(|value| format!("{value:?}")))
                .or_else(|_| row.try_get::<Option<i64>>("", name).map(|value| format!("{value:?}")))
                .or_else(|_| row.try_get::<Option<chrono::NaiveDateTime>>("", name).map(|value| format!("{value:?}")))
                .unwrap()
        };
        row.column_names().iter().map(|name| format!("{name} {}", value(name))).collect()
    };
    Ok(rows.iter().map(texts).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_returned_as_without_a_recorder() {
    let Some(shop) = Shop::new().await else { return };
    let north = || vec![sea_orm::Value::from("north"), 1.5.into()];
    for (sql, values) in [
        ("INSERT INTO reading VALUES (?, '2026-01-01', ?), ('b', '2026-01-02', 2) RETURNING *", north()),
        (
            "INSERT INTO reading VALUES (?, '2026-01-01', ?) ON DUPLICATE KEY UPDATE value = 5 RETURNING value AS v, reading.region",
            north(),
        ),
        ("INSERT IGNORE INTO reading VALUES (?, '2026-01-01', ?) RETURNING region", north()),
        ("INSERT INTO plain (note) VALUES ('x') RETURNING id, note", vec![]),
        (
            "INSERT INTO `Order Line` (`select`) VALUES ('z'), ('a') RETURNING `Id`, `Id` * ? AS n, upper(`select`) AS s",
            vec![2.into()],
        ),
        ("REPLACE INTO `Order Line` (`Id`, `select`) VALUES (?, 'zz') RETURNING doubled, `select`", vec![1.into()]),
        ("DELETE FROM reading WHERE value = ? RETURNING region, value + ? AS n", vec![5.0.into(), 1.into()]),
        ("DELETE FROM reading WHERE value = ? RETURNING *", vec![99.0.into()]),
    ] {
        let expected = answer(&shop.other, sql, &values).await;
        let answered = answer(&shop.recorder, sql, &values).await;
        assert_eq!(answered.as_ref().ok(), expected.as_ref().ok(), "{sql}: {:?}", answered.as_ref().err());
        assert!(answered.is_ok(), "{sql}");
    }
    shop.since(&Cursor::start()).await;

    // What the server has numbered last is what it would say.
    assert_eq!(numbers(&shop.other).await, [3, 3, 50, 3, 60, 3]);
    assert_eq!(numbers(&shop.recorder).await, [3, 3, 50, 3, 60, 3]);
}

/// The numbers that inserts say they were given, and those that the server says afterwards.
async fn numbers<C>(db: &C) -> [u64; 6]
where
    C: TransactionTrait,
    C::Transaction: ConnectionTrait + TransactionSession,
{
    let transaction = db.begin().await.unwrap();
    let insert = async |sql: &str| {
        transaction.execute_raw(Statement::from_string(DbBackend::MySql, sql)).await.unwrap().last_insert_id()
    };
    let last = async || {
        let last = Statement::from_string(DbBackend::MySql, "SELECT CAST(last_insert_id() AS UNSIGNED)");
        transaction.query_one_raw(last).await.unwrap().unwrap().try_get_by_index::<u64>(0).unwrap()
    };
    let drawn = insert("INSERT INTO `Order Line` (`select`) VALUES ('one'), ('two')").await;
    let said = last().await;
    let given = insert("INSERT INTO `Order Line` (`Id`, `select`) VALUES (50, 'three')").await;
    let still = last().await;
    // Among these is the number that was drawn last.
    insert("DELETE FROM `Order Line` WHERE `Id` = 3").await;
    let back = insert("INSERT INTO `Order Line` (`Id`, `select`) VALUES (3, 'back'), (60, 'new')").await;
    let numbers = [drawn, said, given, still, back, last().await];
    transaction.rollback().await.unwrap();
    numbers
}

/// Upserts that meet each other, and rows that come and go under them: each change has the image that the row really had.
#[tokio::test(flavor = "multi_thread")]
async fn upserts_under_contention_have_the_images_that_the_rows_had() {
    let Some(database) = Target::MariadbHooks.database().await else { return };
    let zoo = Zoo::of(database).await;
    let upsert = async |db: &Recorder, names: &[String], worker: i32, round: i32, locks: bool| -> Result<(), DbErr> {
        let rows = names.iter().map(|name| keeper::ActiveModel {
            email: Set(name.clone()),
            name: Set(format!("{worker} {round}")),
            ..Default::default()
        });
        let clause = OnConflict::column(keeper::Column::Email).update_column(keeper::Column::Name).to_owned();
        let transaction = db.begin().await?;
        if locks {
            keeper::Entity::find().lock_exclusive().all(&transaction).await?;
        }
        keeper::Entity::insert_many(rows).on_conflict(clause).exec_without_returning(&transaction).await?;
        transaction.commit().await
    };
    let workers = (0..4).map(|worker| {
        let db = zoo.recorder.clone();
        async move {
            for round in 0..100 {
                let names: Vec<String> = (0..3).map(|n| format!("{}@zoo", (worker * 7 + round * 3 + n) % 11)).collect();
                let done = match round % 5 {
                    0 => db
                        .execute_unprepared(&format!("DELETE FROM keeper WHERE email = '{}'", names[0]))
                        .await
                        .map(drop),
                    1 => {
                        let replace = format!(
                            "REPLACE INTO keeper (email, name) VALUES ('{}', 'replaced {worker} {round}')",
                            names[1]
                        );
                        db.execute_unprepared(&replace).await.map(drop)
                    }
                    _ => upsert(&db, &names, worker, round, round % 7 == 0).await,
                };
                if let Err(error) = done {
                    assert_eq!(Error::from(error).kind(), ErrorKind::Busy);
                }
            }
        }
    });
    futures_util::future::join_all(workers).await;

    // THEN each change follows from the one before (which the replica demands), and the last ones are the table
    let replica = zoo.assert_replays().await;
    assert!(replica.changes > 400, "{}", replica.changes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_recorded_is_refused_by_name() {
    let Some(database) = Target::MariadbHooks.database().await else { return };
    let zoo = Zoo::of(database).await;
    zoo.populate().await;
    let plain = zoo.recorder.unrecorded();
    for sql in [
        "CREATE TABLE plain (id int PRIMARY KEY, food_id bigint)",
        "ALTER TABLE keeper ADD COLUMN chief int, ADD UNIQUE (chief), ADD COLUMN under int",
        "ALTER TABLE keeper ADD FOREIGN KEY (under) REFERENCES keeper (chief) ON UPDATE CASCADE",
        "CREATE VIEW named AS SELECT * FROM food",
        "CREATE VIEW over_view AS SELECT id FROM named",
        "CREATE TABLE journal (id int)",
        "CREATE TRIGGER t AFTER INSERT ON journal FOR EACH ROW UPDATE food SET name = 'x'",
        "CREATE FUNCTION add_food(n varchar(20)) RETURNS int DETERMINISTIC BEGIN INSERT INTO food (name) VALUES (n); RETURN 1; END",
        "CREATE FUNCTION calls_it() RETURNS int DETERMINISTIC RETURN add_food('x')",
        "CREATE FUNCTION harmless() RETURNS int DETERMINISTIC RETURN (SELECT count(*) FROM food)",
    ] {
        run(plain, sql).await;
    }
    zoo.recorder.check().await.unwrap();
    let before = zoo.recorder.log().position().await.unwrap();
    for (sql, essence) in [
        ("COMMIT", "COMMIT would steer the transaction"),
        ("DELETE FROM food; ROLLBACK", "ROLLBACK would steer"),
        ("UPDATE keeper SET name = 'hunter2", "cannot be read"),
        ("DELETE FROM tidewire_outbox", "tidewire_outbox: Tidewire's own tables"),
        ("TRUNCATE food", "TRUNCATE may commit"),
        ("DELETE /*! FROM food */", "cannot be read"),
        ("INSERT INTO named (name) VALUES ('hunter2')", "it is a view over"),
        ("UPDATE over_view SET id = 7", "it is a view over"),
        ("INSERT INTO journal VALUES (1)", "its trigger t may write"),
        ("SELECT add_food('hunter2')", "the function add_food may write"),
        ("SELECT calls_it()", "the function calls_it may write"),
        ("SET @a = add_food('hunter2')", "the function add_food may write"),
        ("DO add_food('hunter2')", "the function add_food may write"),
        ("CALL p()", "CALL may commit"),
        ("EXECUTE IMMEDIATE 'DELETE FROM food'", "EXECUTE may commit"),
        ("HANDLER food OPEN", "HANDLER may commit"),
        ("ANALYZE DELETE FROM food", "ANALYZE may commit"),
        ("SET STATEMENT max_statement_time = 1 FOR DELETE FROM food", "SET STATEMENT"),
        ("IF 1 THEN DELETE FROM food; END IF", "cannot be told"),
        ("LOAD DATA INFILE 'x' INTO TABLE food", "LOAD writes cannot be told"),
        ("UPDATE food PARTITION (p) SET name = 'x'", "UPDATE of several tables on food"),
        ("UPDATE food, (SELECT 1 AS id) x SET food.name = 'hunter2'", "UPDATE of several tables on food"),
        ("UPDATE food JOIN keeper ON TRUE SET food.id = 7", "joined with others may not change keys"),
        ("DELETE food FROM food JOIN keeper k ON TRUE WHERE k.id IN (SELECT 1)", "may have no subquery"),
        ("UPDATE keeper SET chief = chief + 100", "UPDATE on keeper changes what rows of the same table refer to"),
        (
            "INSERT INTO food (id, name) VALUES (1, 'x') ON DUPLICATE KEY UPDATE id = 9",
            "INSERT on food may not change what other rows refer to",
        ),
        ("INSERT IGNORE INTO food (id, name) VALUES (1, 'x') ON DUPLICATE KEY UPDATE name = 'y'", "both IGNORE and"),
        ("UPDATE food SET name = 'x', id = length(name)", "cannot be told beforehand"),
        ("ALTER TABLE food ADD COLUMN secret text DEFAULT 'hunter2'", "ALTER may commit"),
        ("SET sql_mode = 'ANSI_QUOTES'", "SET sql_mode"),
        ("PREPARE x FROM 'DELETE FROM food'", "PREPARE may commit"),
    ] {
        let transaction = zoo.recorder.begin().await.unwrap();
        for error in [
            zoo.recorder.execute_unprepared(sql).await.map(drop).expect_err(sql),
            transaction.execute_unprepared(sql).await.map(drop).expect_err(sql),
        ] {
            // Messages name kinds and tables, and never values.
            let text = error.to_string();
            assert_eq!(Error::from(error).kind(), ErrorKind::Refused, "{sql}: {text}");
            assert!(text.contains(essence) && !text.contains("hunter2"), "{sql}: {text}");
        }
    }
    // What is no matter of the recorder's runs as it is.
    for sql in [
        "INSERT INTO plain VALUES (1, 1), (2, 2); UPDATE plain SET food_id = 3; DELETE FROM plain",
        "SELECT harmless()",
        "SELECT count(*) FROM food INTO @count",
        "EXPLAIN DELETE FROM food",
        "SELECT * FROM food FOR UPDATE",
        "SET @mine = 1",
        "BEGIN_NOTHING",
    ] {
        let done = zoo.recorder.execute_unprepared(sql).await.map(drop);
        assert_eq!(done.is_ok(), sql != "BEGIN_NOTHING", "{sql}: {done:?}");
    }
    assert_eq!(zoo.transactions(before).await.len(), 0);
    zoo.assert_replays().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_database_from_hooks_is_told_at_the_check() {
    for (prepare, essence) in [
        (
            vec!["CREATE TRIGGER feed AFTER UPDATE ON food FOR EACH ROW UPDATE keeper SET name = 'x'"],
            "the trigger feed of food may write synced tables",
        ),
        (
            vec![
                "CREATE TABLE audit (id int)",
                "CREATE TRIGGER g AFTER INSERT ON audit FOR EACH ROW DELETE FROM food",
                "CREATE TRIGGER f BEFORE INSERT ON chip FOR EACH ROW INSERT INTO audit VALUES (1)",
            ],
            "the trigger f of chip",
        ),
        (vec!["ALTER TABLE everything ENGINE = Aria"], "everything is a table of Aria"),
    ] {
        let Some(database) = Target::MariadbHooks.database().await else { return };
        let zoo = Zoo::of(database).await;
        for sql in prepare {
            run(zoo.recorder.unrecorded(), sql).await;
        }
        let error = zoo.recorder.check().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Setup);
        assert!(error.to_string().contains(essence) && error.to_string().contains("triggers"), "{error}");
        let refused = zoo.recorder.execute_unprepared("DELETE FROM food").await.unwrap_err().to_string();
        assert!(refused.contains(essence), "{refused}");
        zoo.recorder.close().await;
    }
}

/// Triggers that only change the row that they are asked about, or write elsewhere, are seen in what is recorded.
#[tokio::test(flavor = "multi_thread")]
async fn triggers_that_change_their_own_row_are_recorded() {
    let Some(database) = Target::MariadbHooks.database().await else { return };
    let zoo = Zoo::of(database).await;
    for sql in [
        "CREATE TABLE audit (id bigint AUTO_INCREMENT PRIMARY KEY, of bigint)",
        "CREATE TRIGGER shout BEFORE INSERT ON food FOR EACH ROW SET NEW.name = upper(NEW.name)",
        "CREATE TRIGGER shout_again BEFORE UPDATE ON food FOR EACH ROW SET NEW.name = upper(NEW.name)",
        "CREATE TRIGGER note AFTER INSERT ON food FOR EACH ROW INSERT INTO audit (of) VALUES (NEW.id)",
    ] {
        run(zoo.recorder.unrecorded(), sql).await;
    }
    zoo.recorder.check().await.unwrap();
    let before = zoo.recorder.log().position().await.unwrap();
    let stored =
        food::ActiveModel { name: Set("hay".into()), ..Default::default() }.insert(&zoo.recorder).await.unwrap();
    assert_eq!(stored.name, "HAY");
    run(&zoo.recorder, "INSERT INTO food (id, name) VALUES (1, 'a'), (2, 'b') ON DUPLICATE KEY UPDATE name = 'straw'")
        .await;
    run(&zoo.recorder, "UPDATE food SET name = 'straw' WHERE id = 1; UPDATE food SET name = 'grass' WHERE id = 1")
        .await;
    let changes: Vec<_> =
        zoo.transactions(before).await.iter().flat_map(|t| t.changes.clone()).map(|c| c.operation).collect();
    assert_eq!(changes, [Operation::Insert, Operation::Update, Operation::Insert, Operation::Update]);
    zoo.assert_replays().await;
}

/// What somebody changes in the schema is known soon after.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_schema_is_found() {
    let Some(database) = Target::MariadbHooks.database().await else { return };
    let zoo = Zoo::of(database).await;
    zoo.populate().await;
    run(zoo.recorder.unrecorded(), "CREATE VIEW late AS SELECT * FROM food").await;
    eventually(async || zoo.recorder.execute_unprepared("UPDATE late SET name = name").await.is_err()).await;
    run(zoo.recorder.unrecorded(), "CREATE TRIGGER later AFTER INSERT ON chip FOR EACH ROW DELETE FROM food").await;
    eventually(async || zoo.recorder.execute_unprepared("UPDATE chip SET serial = serial").await.is_err()).await;
    zoo.assert_replays().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cascades_from_tables_that_nobody_syncs_are_recorded() {
    let Some(database) = Target::MariadbHooks.database().await else { return };
    let zoo = Zoo::of(database).await;
    run(
        zoo.recorder.unrecorded(),
        "CREATE TABLE house (id int PRIMARY KEY, name varchar(20) UNIQUE);
         ALTER TABLE keeper ADD COLUMN house varchar(20), ADD FOREIGN KEY (house) REFERENCES house (name) ON DELETE CASCADE ON UPDATE CASCADE;
         INSERT INTO house VALUES (1, 'a'), (2, 'b')",
    )
    .await;
    zoo.recorder.check().await.unwrap();
    zoo.populate().await;
    run(&zoo.recorder, "UPDATE keeper SET house = CASE WHEN id > 1 THEN 'a' ELSE 'b' END").await;
    let before = zoo.recorder.log().position().await.unwrap();
    let ada = zoo.recorder.clone().acting_as(Actor::user("ada"));
    let done = ada.execute_unprepared("DELETE FROM house WHERE name = 'a'").await.unwrap();
    assert_eq!(done.rows_affected(), 1);
    let changes: Vec<_> = zoo.transactions(before).await.iter().flat_map(|t| t.changes.clone()).collect();
    // Two keepers go; an animal loses its own. The first keeper's employees are the two.
    let count = |operation| changes.iter().filter(|change| change.operation == operation).count();
    assert_eq!([count(Operation::Delete), count(Operation::Update)], [2, 1]);
    assert!(changes.iter().all(|change| change.actor.as_deref() == Some("user:ada")));
    // A column that the entity does not have.
    run(&zoo.recorder, "UPDATE house SET name = 'c'").await;
    zoo.assert_replays().await;
}

/// Whoever is about to refer to a row that goes is waited for, and goes with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cascade_takes_along_who_came_at_the_last_moment() {
    let Some(database) = Target::MariadbHooks.database().await else { return };
    let zoo = Zoo::of(database).await;
    zoo.populate().await;
    let late = zoo.recorder.begin().await.unwrap();
    run(&late, "INSERT INTO chip (serial, animal_id) SELECT 77, id FROM animal WHERE name = 'otto'").await;
    let (deleted, ()) =
        tokio::join!(zoo.recorder.execute_unprepared("DELETE FROM animal WHERE name = 'otto'"), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            late.commit().await.unwrap();
        });
    assert_eq!(deleted.unwrap().rows_affected(), 1);
    zoo.assert_replays().await;
}

/// A statement that is dropped between its rows and their record takes its transaction with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_was_left_halfway_is_not_committed() {
    let Some(database) = Target::MariadbHooks.database().await else { return };
    let zoo = Zoo::of(database).await;
    zoo.populate().await;
    let mut halfway = 0;
    for round in 0..60_u64 {
        let transaction = zoo.recorder.begin().await.unwrap();
        run(&transaction, "UPDATE food SET name = concat(name, '.') WHERE id = 1").await;
        let write = transaction.execute_unprepared("UPDATE keeper SET name = concat(name, '.')");
        let done = tokio::time::timeout(Duration::from_micros(round * 100), write).await;
        match transaction.commit().await {
            Ok(()) => assert!(done.is_err() || done.unwrap().is_ok()),
            Err(error) => {
                assert!(done.is_err());
                assert_eq!(Error::from(error).kind(), ErrorKind::Aborted);
                halfway += 1;
            }
        }
    }
    assert!(halfway > 0);
    zoo.assert_replays().await;
}

/// What a transaction's own snapshot does not show it is not told by a `SELECT` inside a statement: then the statement is refused, and not half recorded.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_snapshot_hides_are_not_written_unseen() {
    let Some(database) = Target::MariadbHooks.database().await else { return };
    let zoo = Zoo::of(database).await;
    zoo.populate().await;
    let late = zoo.recorder.begin().await.unwrap();
    food::Entity::find().all(&late).await.unwrap();
    run(&zoo.recorder, "INSERT INTO food (id, name) VALUES (77, 'late'); INSERT INTO diet (animal_id, food_id) SELECT id, 77 FROM animal").await;
    let update = "UPDATE diet SET grams = 5 WHERE food_id IN (SELECT id FROM food WHERE name = 'late')";
    let error = Error::from(late.execute_unprepared(update).await.unwrap_err());
    assert!(error.kind() == ErrorKind::Refused && error.to_string().contains("diet"), "{error}");
    assert_eq!(Error::from(late.commit().await.unwrap_err()).kind(), ErrorKind::Aborted);
    zoo.assert_replays().await;

    // In a transaction of its own it is seen; and where the snapshot is each statement's own.
    run(&zoo.recorder, update).await;
    let fresh = zoo.recorder.begin_with_config(Some(IsolationLevel::ReadCommitted), None).await.unwrap();
    food::Entity::find().all(&fresh).await.unwrap();
    run(&zoo.recorder, "UPDATE food SET name = 'later' WHERE id = 77").await;
    run(&fresh, "UPDATE diet SET grams = 6 WHERE food_id IN (SELECT id FROM food WHERE name = 'later')").await;
    let replace =
        Error::from(fresh.execute_unprepared("REPLACE INTO food (id, name) VALUES (77, 'x')").await.unwrap_err());
    assert!(replace.to_string().contains("REPEATABLE READ"), "{replace}");
    fresh.commit().await.unwrap();
    zoo.assert_replays().await;
}

/// Nothing but the outbox's own tables is needed in the database, and triggers that are left there are found.
#[tokio::test(flavor = "multi_thread")]
async fn captures_are_changed_and_not_mixed() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    let zoo = Zoo::of(database.captured_by(Capture::Triggers)).await;
    zoo.populate().await;
    run(zoo.recorder.unrecorded(), "UPDATE tidewire_log SET capture = 'hooks'").await;
    let mixed = Recorder::connect(zoo.database.url(), tidewire_testkit::zoo::registry()).await.unwrap();
    let error = mixed.check().await.unwrap_err();
    assert!(error.to_string().contains("the triggers that record food are installed too"), "{error}");
    mixed.remove_capture().await.unwrap();
    mixed.check().await.unwrap();
    run(&mixed, "UPDATE food SET name = 'by hooks' WHERE id = 1").await;
    zoo.assert_replays().await;
    mixed.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_may_only_be_read_is_said_to_be_so() {
    for target in [Target::MariadbHooks, Target::MariadbTriggers] {
        let Some(database) = target.database().await else { return };
        let zoo = Zoo::of(database).await;
        zoo.populate().await;
        // Whoever runs the server may write all the same, so nobody else is disturbed.
        let admin = zoo.recorder.unrecorded();
        let name = format!("u{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        run(
            admin,
            &format!(
                "CREATE USER {name}; GRANT ALL ON *.* TO {name}; REVOKE SUPER, READ ONLY ADMIN ON *.* FROM {name}"
            ),
        )
        .await;
        let url = zoo.database.url().replace("//root@", &format!("//{name}@"));
        let recorder = Recorder::connect(&url, tidewire_testkit::zoo::registry()).await.unwrap();
        let write = async || food::Entity::delete_by_id(2).exec(&recorder).await;
        run(admin, "SET GLOBAL read_only = 1").await;
        let refused = write().await.map(drop);
        run(admin, "SET GLOBAL read_only = 0").await;
        assert_eq!(Error::from(refused.unwrap_err()).kind(), ErrorKind::Unwritable);
        write().await.unwrap();
        zoo.assert_replays().await;
    }
}
