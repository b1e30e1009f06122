//! I1 and I2: every kind of write is recorded, together with its rows or not at all.

use futures_util::TryStreamExt;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DbBackend, DbErr, EntityTrait, ExprTrait, IntoActiveModel,
    ModelTrait, QueryFilter, Set, Statement, StreamTrait, TransactionSession, TransactionTrait,
    sea_query::{Expr, OnConflict},
};
use tidewire_outbox::{Actor, MutationId, Origin, Recorder};
use tidewire_testkit::{
    eventually, on_every_target,
    zoo::{animal, chip, diet, food, keeper, visit},
};

use crate::support::{Zoo, id, operations, run};

/// What a write does to a populated zoo: how many inserts, updates and deletes.
type Effect = [usize; 3];

/// A kind of write.
#[derive(Debug, Clone, Copy)]
enum Write {
    Insert,
    InsertMany,
    InsertWithoutReturning,
    InsertIgnored,
    UpsertNew,
    UpsertExisting,
    UpsertMany,
    SaveNew,
    SaveExisting,
    UpdateModel,
    UpdateOne,
    UpdateMany,
    UpdateManyReturning,
    UpdateNothing,
    UpdateToTheSame,
    UpdateKey,
    UpdateKeyCascading,
    DeleteModel,
    DeleteById,
    DeleteMany,
    DeleteCascading,
    DeleteSettingNull,
    NestedSave,
    RawStatements,
    RawWithValues,
    RawReturning,
    RawStreamed,
    RawReplace,
    RawInsertSelect,
    RawUpdateFrom,
    RawWith,
    RawInsertOrIgnore,
    RawUpsertKey,
}

use Write::*;

const ALL: &[(Write, Effect)] = &[
    (Insert, [1, 0, 0]),
    (InsertMany, [2, 0, 0]),
    (InsertWithoutReturning, [1, 0, 0]),
    (InsertIgnored, [1, 0, 0]),
    (UpsertNew, [1, 0, 0]),
    (UpsertExisting, [0, 1, 0]),
    (UpsertMany, [1, 1, 0]),
    (SaveNew, [1, 0, 0]),
    (SaveExisting, [0, 1, 0]),
    (UpdateModel, [0, 1, 0]),
    (UpdateOne, [0, 1, 0]),
    (UpdateMany, [0, 4, 0]),
    (UpdateManyReturning, [0, 2, 0]),
    (UpdateNothing, [0, 0, 0]),
    (UpdateToTheSame, [0, 0, 0]),
    (UpdateKey, [1, 0, 1]),
    // The food under its new key, and the two diets that go with it.
    (UpdateKeyCascading, [3, 0, 3]),
    (DeleteModel, [0, 0, 1]),
    (DeleteById, [0, 0, 1]),
    (DeleteMany, [0, 0, 3]),
    // An animal, its two visits, its chip, its diet.
    (DeleteCascading, [0, 0, 5]),
    // A keeper; two others lose their boss, two animals their keeper.
    (DeleteSettingNull, [0, 4, 1]),
    (NestedSave, [3, 0, 0]),
    (RawStatements, [1, 1, 1]),
    (RawWithValues, [0, 1, 0]),
    (RawReturning, [0, 2, 0]),
    (RawStreamed, [0, 0, 1]),
    // SQLite replaces by deleting: a food with its diet, and the food anew.
    (RawReplace, [1, 0, 3]),
    (RawInsertSelect, [3, 0, 0]),
    (RawUpdateFrom, [0, 2, 0]),
    (RawWith, [0, 0, 1]),
    (RawInsertOrIgnore, [1, 0, 0]),
    (RawUpsertKey, [1, 0, 1]),
];

fn food(name: &str) -> food::ActiveModel {
    food::ActiveModel { name: Set(name.into()), ..Default::default() }
}

fn by_name() -> OnConflict {
    OnConflict::column(food::Column::Name)
}

impl Write {
    async fn perform<C>(self, db: &C) -> Result<(), DbErr>
    where
        C: ConnectionTrait + TransactionTrait + StreamTrait,
    {
        let backend = ConnectionTrait::get_database_backend(db);
        match self {
            Insert => {
                let stored = food("leaves").insert(db).await?;
                assert!(stored.id > 0);
            }
            InsertMany => {
                food::Entity::insert_many([food("leaves"), food("ants")]).exec(db).await?;
            }
            InsertWithoutReturning => {
                assert_eq!(food::Entity::insert(food("leaves")).exec_without_returning(db).await?, 1);
            }
            InsertIgnored => {
                let rows = [food("meat"), food("leaves")];
                let clause = match backend {
                    DbBackend::MySql => by_name().do_nothing_on([food::Column::Id]).to_owned(),
                    _ => by_name().do_nothing().to_owned(),
                };
                food::Entity::insert_many(rows).on_conflict(clause).exec_without_returning(db).await?;
            }
            UpsertNew => {
                let clause = by_name().update_column(food::Column::Name).to_owned();
                food::Entity::insert(food("leaves")).on_conflict(clause).exec(db).await?;
            }
            UpsertExisting => {
                let row = diet::ActiveModel { animal_id: Set(id(1)), food_id: Set(1), grams: Set(7) };
                let clause = OnConflict::columns([diet::Column::AnimalId, diet::Column::FoodId])
                    .update_column(diet::Column::Grams)
                    .to_owned();
                let stored = diet::Entity::insert(row).on_conflict(clause).exec_with_returning(db).await?;
                assert_eq!(stored.grams, 7);
            }
            UpsertMany => {
                let rows = [(1, 7), (2, 8)].map(|(food, grams)| diet::ActiveModel {
                    animal_id: Set(id(1)),
                    food_id: Set(food),
                    grams: Set(grams),
                });
                let clause = OnConflict::columns([diet::Column::AnimalId, diet::Column::FoodId])
                    .update_column(diet::Column::Grams)
                    .to_owned();
                diet::Entity::insert_many(rows).on_conflict(clause).exec_without_returning(db).await?;
            }
            SaveNew => {
                food("leaves").save(db).await?;
            }
            SaveExisting => {
                let mut row = keeper::Entity::find_by_id(1).one(db).await?.unwrap().into_active_model();
                row.name = Set("Ada".into());
                row.save(db).await?;
            }
            UpdateModel => {
                let mut row = animal::Entity::find_by_id(id(1)).one(db).await?.unwrap().into_active_model();
                row.price = Set(Some("12.3400".parse().unwrap()));
                row.tame = Set(true);
                row.update(db).await?;
            }
            UpdateOne => {
                let row = keeper::ActiveModel { id: Set(2), name: Set("Bo".into()), ..Default::default() };
                keeper::Entity::update(row).exec(db).await?;
            }
            UpdateMany => {
                let done = animal::Entity::update_many()
                    .col_expr(animal::Column::Weight, Expr::col(animal::Column::Weight).add(1.5))
                    .exec(db)
                    .await?;
                assert_eq!(done.rows_affected, 4);
            }
            UpdateManyReturning => {
                let update = animal::Entity::update_many()
                    .col_expr(animal::Column::Tame, Expr::value(true))
                    .filter(animal::Column::KeeperId.eq(1));
                // MariaDB returns rows from inserts and deletes only.
                let rows = match backend {
                    DbBackend::MySql => update.exec(db).await?.rows_affected,
                    _ => update.exec_with_returning(db).await?.len() as u64,
                };
                assert_eq!(rows, 2);
            }
            UpdateNothing => {
                let none = food::Entity::update_many().col_expr(food::Column::Name, Expr::value("x"));
                none.filter(food::Column::Id.eq(99)).exec(db).await?;
            }
            UpdateToTheSame => {
                let same = food::Entity::update_many().col_expr(food::Column::Name, Expr::col(food::Column::Name));
                assert_eq!(same.exec(db).await?.rows_affected, 2);
            }
            UpdateKey => {
                let moved = visit::Entity::update_many().col_expr(visit::Column::Number, Expr::value(9));
                moved.filter(visit::Column::AnimalId.eq(id(2))).exec(db).await?;
            }
            UpdateKeyCascading => {
                let moved = food::Entity::update_many().col_expr(food::Column::Id, Expr::value(100));
                moved.filter(food::Column::Name.eq("meat")).exec(db).await?;
            }
            DeleteModel => {
                chip::Entity::find().one(db).await?.unwrap().delete(db).await?;
            }
            DeleteById => {
                visit::Entity::delete_by_id((id(1), 2)).exec(db).await?;
            }
            DeleteMany => {
                diet::Entity::delete_many().exec(db).await?;
            }
            DeleteCascading => {
                animal::Entity::delete_by_id(id(1)).exec(db).await?;
            }
            DeleteSettingNull => {
                keeper::Entity::delete_by_id(1).exec(db).await?;
            }
            NestedSave => {
                animal::ActiveModelEx::new()
                    .set_id(id(9))
                    .set_name("nana")
                    .set_species(animal::Species::Lion)
                    .set_tame(false)
                    .set_chip(chip::ActiveModelEx::new().set_serial(5))
                    .add_visit(
                        visit::ActiveModelEx::new().set_number(1).set_at("2026-11-20T10:00:00".parse::<chrono::NaiveDateTime>().unwrap()),
                    )
                    .insert(db)
                    .await?;
            }
            RawStatements => {
                let text = "INSERT INTO food (name) VALUES ('semi; colon'); -- a comment;\n\
                            UPDATE keeper SET name = 'x' WHERE id = 3; DELETE FROM chip";
                db.execute_unprepared(text).await?;
            }
            RawWithValues => {
                let values = ["O'Neil; DROP TABLE keeper".into(), 3.into()];
                let update = match backend {
                    DbBackend::Postgres => "UPDATE keeper SET name = $1 WHERE id = $2",
                    _ => "UPDATE keeper SET name = ? WHERE id = ?",
                };
                let done = db.execute_raw(Statement::from_sql_and_values(backend, update, values)).await?;
                assert_eq!(done.rows_affected(), 1);
            }
            RawReturning => {
                if backend == DbBackend::MySql {
                    run(db, "UPDATE animal SET tame = TRUE WHERE keeper_id = 1").await;
                    return Ok(());
                }
                let update = "UPDATE animal SET tame = TRUE WHERE keeper_id = 1 RETURNING name";
                let rows = db.query_all_raw(Statement::from_string(backend, update)).await?;
                let names: Vec<String> = rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect();
                assert_eq!(names, ["leo", "otto"]);
            }
            RawStreamed => {
                let delete = Statement::from_string(backend, "DELETE FROM chip RETURNING serial");
                let rows: Vec<_> = db.stream_raw(delete).await?.try_collect().await?;
                assert_eq!(rows.len(), 1);
            }
            RawReplace => {
                db.execute_unprepared("REPLACE INTO food (id, name) VALUES (1, 'offal')").await?;
            }
            RawInsertSelect => {
                run(db, "INSERT INTO diet (animal_id, food_id) SELECT id, 1 FROM animal WHERE name <> 'leo' AND name <> 'otto' UNION SELECT id, 2 FROM animal WHERE name = 'leo'").await;
            }
            RawUpdateFrom => run(db, match backend {
                DbBackend::MySql => "UPDATE animal JOIN keeper AS k ON k.id = keeper_id SET animal.name = concat(k.name, ' ', animal.name) WHERE k.id = 1",
                _ => "UPDATE animal SET name = k.name || ' ' || animal.name FROM keeper AS k WHERE k.id = keeper_id AND k.id = 1",
            }).await,
            RawWith => run(db, match backend {
                DbBackend::MySql => "DELETE FROM diet WHERE food_id IN (WITH gone AS (SELECT 'fish' AS name) SELECT id FROM food NATURAL JOIN gone)",
                _ => "WITH gone AS (SELECT 'fish' AS name) DELETE FROM diet WHERE food_id IN (SELECT id FROM food NATURAL JOIN gone)",
            }).await,
            RawInsertOrIgnore => run(db, match backend {
                DbBackend::MySql => "INSERT IGNORE INTO food (name) VALUES ('meat'), ('ants')",
                _ => "INSERT OR IGNORE INTO food (name) VALUES ('meat'), ('ants')",
            }).await,
            RawUpsertKey => run(db, match backend {
                DbBackend::MySql => "INSERT INTO chip (serial, animal_id) SELECT 5, animal_id FROM chip WHERE TRUE ON DUPLICATE KEY UPDATE serial = VALUES(serial)",
                _ => "INSERT INTO chip (serial, animal_id) SELECT 5, animal_id FROM chip WHERE TRUE ON CONFLICT (animal_id) DO UPDATE SET serial = excluded.serial",
            }).await,
        }
        Ok(())
    }
}

/// In which kind of transaction a write happens, and how that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Autocommit,
    Committed,
    RolledBack,
    Dropped,
    SavepointReleased,
    SavepointRolledBack,
    SavepointDropped,
    DeepSavepoint,
}

const MODES: &[Mode] = &[
    Mode::Autocommit,
    Mode::Committed,
    Mode::RolledBack,
    Mode::Dropped,
    Mode::SavepointReleased,
    Mode::SavepointRolledBack,
    Mode::SavepointDropped,
    Mode::DeepSavepoint,
];

impl Mode {
    fn keeps(self) -> bool {
        matches!(self, Self::Autocommit | Self::Committed | Self::SavepointReleased | Self::DeepSavepoint)
    }

    async fn perform(self, write: Write, db: &Recorder) -> Result<(), DbErr> {
        if self == Self::Autocommit {
            return write.perform(db).await;
        }
        let transaction = db.begin().await?;
        match self {
            Self::Autocommit => unreachable!("done"),
            Self::Committed => {
                write.perform(&transaction).await?;
                transaction.commit().await
            }
            Self::RolledBack => {
                write.perform(&transaction).await?;
                transaction.rollback().await
            }
            Self::Dropped => write.perform(&transaction).await,
            Self::SavepointReleased => {
                let savepoint = transaction.begin().await?;
                write.perform(&savepoint).await?;
                savepoint.commit().await?;
                transaction.commit().await
            }
            Self::SavepointRolledBack => {
                let savepoint = transaction.begin().await?;
                write.perform(&savepoint).await?;
                savepoint.rollback().await?;
                transaction.commit().await
            }
            Self::SavepointDropped => {
                let savepoint = transaction.begin().await?;
                write.perform(&savepoint).await?;
                drop(savepoint);
                transaction.commit().await
            }
            Self::DeepSavepoint => {
                let outer = transaction.begin().await?;
                let inner = outer.begin().await?;
                write.perform(&inner).await?;
                inner.commit().await?;
                let undone = outer.begin().await?;
                run(&undone, "UPDATE food SET name = name || '!'").await;
                undone.rollback().await?;
                outer.commit().await?;
                transaction.commit().await
            }
        }
    }
}

on_every_target! {
    async fn every_write_is_recorded_as_it_is_stored_or_not_at_all(database: TestDatabase) {
        for &(write, effect) in ALL {
            if database.is("postgres:") && matches!(write, RawReplace | RawInsertOrIgnore) {
                // Not of its language.
                continue;
            }
            // A server's database costs more than a file, so the modes that leave nothing behind share one.
            let (leaving, last): (Vec<Mode>, Vec<Mode>) = if database.is("sqlite:") {
                (Vec::new(), MODES.to_vec())
            } else {
                let leaving = MODES.iter().copied().filter(|mode| !mode.keeps()).collect();
                (leaving, vec![Mode::Autocommit, Mode::DeepSavepoint])
            };
            for last in last {
                // GIVEN a populated zoo
                let zoo = Zoo::of(database.another().await).await;
                zoo.populate().await;
                for &mode in leaving.iter().filter(|_| last == Mode::Autocommit) {
                    is_recorded(&zoo, write, effect, mode).await;
                }
                is_recorded(&zoo, write, effect, last).await;
                zoo.recorder.close().await;
            }
        }
    }
}

async fn is_recorded(zoo: &Zoo, write: Write, effect: Effect, mode: Mode) {
    let before = zoo.recorder.log().position().await.unwrap();

    // WHEN a write happens
    mode.perform(write, &zoo.recorder).await.unwrap_or_else(|error| panic!("{write:?}, {mode:?}: {error}"));

    // THEN the log has just that, as one transaction
    zoo.assert_replays().await;
    let transactions = zoo.transactions(before).await;
    let expected = if mode.keeps() { effect } else { [0; 3] };
    assert_eq!(transactions.len(), usize::from(expected != [0; 3]), "{write:?}, {mode:?}");
    assert_eq!(operations(&transactions), expected, "{write:?}, {mode:?}");
}

/// Triggers of the application's own, which rewrite what was written, write elsewhere, and undo.
const TRIGGERS: &str = "
CREATE TRIGGER one AFTER INSERT ON food WHEN NEW.name NOT IN ('meat', 'fish') BEGIN UPDATE food SET name = lower(NEW.name) || '.' WHERE id = NEW.id; END;
CREATE TRIGGER two AFTER UPDATE ON animal WHEN NEW.tame IS OLD.tame BEGIN UPDATE animal SET tame = NOT tame WHERE id = NEW.id; END;
CREATE TRIGGER three AFTER DELETE ON diet BEGIN UPDATE keeper SET name = name || '-'; END;
CREATE TRIGGER four AFTER UPDATE OF boss_id ON keeper BEGIN INSERT INTO food (name) VALUES ('for ' || NEW.name || NEW.id); END;
CREATE TRIGGER five BEFORE UPDATE ON diet BEGIN UPDATE food SET name = name || '~' WHERE id = NEW.food_id; END;
CREATE TRIGGER six AFTER INSERT ON chip WHEN NEW.serial = 5 BEGIN DELETE FROM chip WHERE serial = 5; END;
CREATE TRIGGER seven AFTER UPDATE ON food WHEN NEW.id <> OLD.id BEGIN UPDATE food SET name = name || '?' WHERE id = NEW.id; END;
CREATE TRIGGER eight AFTER UPDATE OF report ON visit BEGIN UPDATE visit SET report = OLD.report WHERE animal_id = NEW.animal_id AND number = NEW.number; END;";

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_recorded_as_the_applications_triggers_leave_them() {
    for &(write, _) in ALL {
        for &mode in MODES {
            // GIVEN a zoo with triggers
            let zoo = Zoo::with(async |db| run(db, TRIGGERS).await).await;
            zoo.populate().await;
            let before = zoo.recorder.log().position().await.unwrap();

            // WHEN a write happens
            let done = mode.perform(write, &zoo.recorder).await;

            // THEN what is recorded is what is stored in the end
            if matches!(write, RawReplace) {
                let refused = done.expect_err("REPLACE hides rows where there are triggers").to_string();
                assert!(refused.contains("REPLACE on food") && refused.contains("on_conflict"), "{refused}");
                continue;
            }
            done.unwrap_or_else(|error| panic!("{write:?}, {mode:?}: {error}"));
            zoo.assert_replays().await;

            // AND each row changes once in a statement, however many steps the triggers took
            let transactions = zoo.transactions(before).await;
            assert!(mode.keeps() || transactions.is_empty(), "{write:?}, {mode:?}");
            let single = !matches!(write, NestedSave | RawStatements);
            for transaction in transactions.iter().filter(|_| single) {
                let catalog = zoo.recorder.catalog();
                let mut keys: Vec<_> = transaction
                    .changes
                    .iter()
                    .map(|change| (change.entity, change.key(catalog.entity(change.entity)).collect::<Vec<_>>()))
                    .collect();
                keys.sort();
                let all = keys.len();
                keys.dedup();
                assert_eq!(keys.len(), all, "{write:?}, {mode:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_trigger_that_undoes_a_write_leaves_no_change() {
    let zoo = Zoo::with(async |db| run(db, TRIGGERS).await).await;
    zoo.populate().await;
    let before = zoo.recorder.log().position().await.unwrap();
    // An insert that is deleted at once, and an update that is taken back.
    run(&zoo.recorder, "INSERT INTO chip (serial, animal_id) SELECT 5, id FROM animal WHERE name = 'sid'").await;
    run(&zoo.recorder, "UPDATE visit SET report = 'better'").await;
    assert_eq!(zoo.transactions(before).await.len(), 0);
    zoo.assert_replays().await;
}

/// A trigger that someone adds while a recorder is open is found within a second.
#[tokio::test]
async fn a_trigger_that_comes_later_is_captured() {
    let zoo = Zoo::new().await;
    zoo.populate().await;
    run(&zoo.database.plain().await, TRIGGERS).await;
    let replace = async || zoo.recorder.execute_unprepared("REPLACE INTO food (id, name) VALUES (77, 'x')").await;
    eventually(async || replace().await.is_err()).await;
    let before = zoo.recorder.log().position().await.unwrap();
    UpdateKeyCascading.perform(&zoo.recorder).await.unwrap();
    assert_eq!(zoo.transactions(before).await.len(), 1);
    zoo.assert_replays().await;
}

on_every_target! {
    async fn context_is_recorded_with_each_change(database: TestDatabase) {
        // GIVEN recorders that write in several names
        let zoo = Zoo::of(database).await;
        let before = zoo.recorder.log().position().await.unwrap();
        let ada = zoo.recorder.clone().acting_as(Actor::user("ada")).from(Origin::new("phone"));

        // WHEN they write, in turn and within one transaction
        food("a").insert(&zoo.recorder).await.unwrap();
        food("b").insert(&ada).await.unwrap();
        let mut transaction = ada.clone().mutation(MutationId::new("m1")).begin().await.unwrap();
        food("c").insert(&transaction).await.unwrap();
        transaction.set_mutation(None);
        let transaction = transaction.acting_as(Actor::service("billing"));
        food("d").insert(&transaction).await.unwrap();
        // A name that was set inside what is rolled back holds for what comes after it too.
        let inner = transaction.begin().await.unwrap().acting_as(Actor::user("bo"));
        food("undone").insert(&inner).await.unwrap();
        inner.rollback().await.unwrap();
        let inner = transaction.begin().await.unwrap().acting_as(Actor::user("bo"));
        food("e").insert(&inner).await.unwrap();
        inner.commit().await.unwrap();
        transaction.commit().await.unwrap();

        // THEN each change says who answers for it
        let said: Vec<_> = zoo
            .transactions(before)
            .await
            .iter()
            .flat_map(|transaction| transaction.changes.clone())
            .map(|change| {
                assert!((chrono::Utc::now() - change.at).num_seconds().abs() < 60, "{}", change.at);
                [change.actor, change.origin, change.mutation_id]
                    .map(|text| text.map_or("-".into(), |text| text.to_string()))
            })
            .collect();
        let said: Vec<_> = said.iter().map(|parts| parts.join(" ")).collect();
        assert_eq!(
            said,
            ["service:app - -", "user:ada phone -", "user:ada phone m1", "service:billing phone -", "user:bo phone -"]
        );
    }
}

#[tokio::test]
async fn what_cannot_be_recorded_is_refused_and_changes_nothing() {
    let zoo = Zoo::new().await;
    zoo.populate().await;
    let before = zoo.recorder.log().position().await.unwrap();
    let transaction = zoo.recorder.begin().await.unwrap();
    for sql in [
        "DROP TABLE keeper",
        "ALTER TABLE keeper ADD COLUMN secret TEXT DEFAULT 'hunter2'",
        "CREATE TRIGGER x AFTER INSERT ON food BEGIN DELETE FROM food; END",
        "DELETE FROM tidewire_outbox",
        "DELETE FROM TideWire_Outbox",
        "CREATE TEMP TABLE food (name TEXT)",
        "UPDATE OR ROLLBACK keeper SET name = 'hunter2'",
        "INSERT OR FAIL INTO food (name) VALUES ('hunter2')",
        "ATTACH 'other.db' AS other",
        "PRAGMA foreign_keys = OFF",
        "VACUUM",
        "COMMIT",
        "DELETE FROM food; ROLLBACK",
        "UPDATE keeper SET name = 'hunter2",
    ] {
        for error in [
            zoo.recorder.execute_unprepared(sql).await.map(drop).unwrap_err(),
            transaction.execute_unprepared(sql).await.map(drop).unwrap_err(),
        ] {
            // Messages name kinds and tables, and never values.
            let error = error.to_string();
            assert!(error.contains("tidewire: ") && !error.contains("hunter2"), "{sql}: {error}");
        }
    }
    transaction.rollback().await.unwrap();
    assert_eq!(zoo.transactions(before).await.len(), 0);
    zoo.assert_replays().await;
}
