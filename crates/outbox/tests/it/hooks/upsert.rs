//! Inserts that meet a row in the way.

use sea_orm::{
    ColumnTrait, ConnectionTrait, DbErr, EntityTrait, QueryFilter, QueryOrder, QuerySelect, Set, TransactionSession,
    TransactionTrait,
    sea_query::{Expr, OnConflict},
};
use tidewire_outbox::{Cursor, Operation, Recorder};
use tidewire_testkit::{TestDatabase, zoo::keeper};

use super::Shop;
use crate::support::{Zoo, run};

/// Upserts that meet each other, rows that come and go under them, and rows that the same transaction has locked before: each change has the image
/// that the row really had. (`RETURNING (xmax = 0)` takes the locked ones for updates of nothing.)
#[tokio::test(flavor = "multi_thread")]
async fn upserts_under_contention_have_the_images_that_the_rows_had() {
    let Some(database) = TestDatabase::postgres().await else { return };
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
            let lock = keeper::Entity::find()
                .filter(keeper::Column::Email.is_in(names.to_vec()))
                .order_by_asc(keeper::Column::Email);
            lock.lock_exclusive().all(&transaction).await?;
        }
        keeper::Entity::insert_many(rows).on_conflict(clause).exec_without_returning(&transaction).await?;
        transaction.commit().await
    };
    let operation = async |db: &Recorder, worker: i32, round: i32| -> Result<(), DbErr> {
        let first = (worker * 7 + round * 5) % 4;
        let names: Vec<String> = (first..first + 2).map(|n| format!("{n}@zoo.example")).collect();
        match (worker + round) % 5 {
            0 => {
                keeper::Entity::delete_many().filter(keeper::Column::Email.eq(&names[0])).exec(db).await?;
            }
            1 => {
                let update = keeper::Entity::update_many()
                    .col_expr(keeper::Column::Name, Expr::cust("name || '+'"))
                    .filter(keeper::Column::Email.eq(&names[1]));
                update.exec(db).await?;
            }
            kind => upsert(db, &names, worker, round, kind == 2).await?,
        }
        Ok(())
    };
    let workers = (0..6).map(|worker| {
        let (db, operation) = (zoo.recorder.clone(), &operation);
        async move {
            for round in 0..150 {
                // Who locks a row, and then inserts one before it that was not there, may meet another coming the other way.
                while let Err(error) = operation(&db, worker, round).await {
                    assert!(error.to_string().contains("deadlock"), "{error}");
                }
            }
        }
    });
    futures_util::future::join_all(workers).await;

    // THEN each change follows from the one before (which the replica demands), and the last ones are the table
    let replica = zoo.assert_replays().await;
    assert!(replica.changes > 900, "{}", replica.changes);
}

/// A trigger keeps a row from being updated after all. What the statement has noted of it is of no later statement.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_trigger_keeps_leaves_nothing_behind() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database).await;
    run(
        zoo.recorder.unrecorded(),
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER keep BEFORE UPDATE ON food FOR EACH ROW EXECUTE FUNCTION keep();",
    )
    .await;
    zoo.recorder.check().await.unwrap();
    let transaction = zoo.recorder.begin().await.unwrap();
    for sql in [
        "INSERT INTO food (id, name) VALUES (1, 'a')",
        "INSERT INTO food (id, name) VALUES (1, 'b') ON CONFLICT (id) DO UPDATE SET name = 'b'",
        // Another table's, and the same row anew
        "INSERT INTO keeper (id, email, name) VALUES (1, 'a', 'a') ON CONFLICT (id) DO UPDATE SET name = 'b'",
        "DELETE FROM food",
        "INSERT INTO food (id, name) VALUES (1, 'c') ON CONFLICT (id) DO UPDATE SET name = 'd'",
    ] {
        run(&transaction, sql).await;
    }
    transaction.commit().await.unwrap();
    let transactions = zoo.transactions(Cursor::start()).await;
    let operations: Vec<_> = transactions.iter().flat_map(|t| &t.changes).map(|change| change.operation).collect();
    assert_eq!(operations, [Operation::Insert, Operation::Insert, Operation::Delete, Operation::Insert]);
    zoo.assert_replays().await;
}

/// The same for a trigger that only a partition has.
#[tokio::test(flavor = "multi_thread")]
async fn a_partitions_trigger_is_known() {
    let Some(shop) = Shop::new().await else { return };
    run(
        shop.recorder.unrecorded(),
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER keep BEFORE UPDATE ON reading_north FOR EACH ROW EXECUTE FUNCTION keep();",
    )
    .await;
    shop.recorder.check().await.unwrap();
    run(&shop.recorder, "INSERT INTO reading VALUES ('north', '2026-01-01', 1)").await;
    let before = shop.recorder.log().position().await.unwrap();
    let upsert = "INSERT INTO reading VALUES ('north', '2026-01-01', 2), ('south', '2026-01-01', 3) ON CONFLICT (region, at) DO UPDATE SET value = 9";
    run(&shop.recorder, upsert).await;
    assert_eq!(shop.since(&before).await, [1, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upsert_whose_key_a_trigger_may_change_is_refused() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database).await;
    run(
        zoo.recorder.unrecorded(),
        "CREATE FUNCTION moves() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.id := NEW.id + 1; RETURN NEW; END $$;
         CREATE TRIGGER moves BEFORE UPDATE ON chip FOR EACH ROW EXECUTE FUNCTION moves();
         CREATE FUNCTION renumbers() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.serial := NEW.serial + 1; RETURN NEW; END $$;
         CREATE TRIGGER renumbers BEFORE UPDATE ON chip FOR EACH ROW EXECUTE FUNCTION renumbers();",
    )
    .await;
    zoo.recorder.check().await.unwrap();
    let upsert =
        "INSERT INTO chip (serial) VALUES (1) ON CONFLICT (serial) DO UPDATE SET animal_id = excluded.animal_id";
    let error = zoo.recorder.execute_unprepared(upsert).await.unwrap_err().to_string();
    assert!(error.contains("INSERT on chip may not update a row in the way"), "{error}");
}
