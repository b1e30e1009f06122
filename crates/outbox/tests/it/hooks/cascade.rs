//! Writes that rows of others follow.

use std::time::Duration;

use sea_orm::{ConnectionTrait, EntityTrait, Set, TransactionSession, TransactionTrait};
use tidewire_outbox::{Actor, Operation, Recorder};
use tidewire_testkit::{
    TestDatabase, eventually,
    zoo::{self, keeper},
};
use uuid::Uuid;

use super::{Shop, waiting};
use crate::support::{Zoo, run};

#[tokio::test(flavor = "multi_thread")]
async fn cascades_from_tables_that_nobody_syncs_are_recorded() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database).await;
    run(
        zoo.recorder.unrecorded(),
        "CREATE TABLE house (id int PRIMARY KEY, name text UNIQUE);
         ALTER TABLE keeper ADD COLUMN house text REFERENCES house (name) ON DELETE CASCADE ON UPDATE CASCADE;
         INSERT INTO house VALUES (1, 'a'), (2, 'b')",
    )
    .await;
    zoo.recorder.check().await.unwrap();
    zoo.populate().await;
    run(&zoo.recorder, "UPDATE keeper SET house = CASE WHEN id > 1 THEN 'a' ELSE 'b' END").await;
    let before = zoo.recorder.log().position().await.unwrap();
    let ada = zoo.recorder.clone().acting_as(Actor::user("ada"));
    let done = ada
        .execute_unprepared("WITH x AS (SELECT 'a' AS n) DELETE FROM house AS h USING x WHERE h.name = x.n")
        .await
        .unwrap();
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
    let Some(database) = TestDatabase::postgres().await else { return };
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

/// What happens to a row is what the statement did, and not what it would do if it were asked again.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_chosen_by_chance_are_recorded() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database).await;
    zoo.populate().await;
    let keepers = (10..110).map(|id| keeper::ActiveModel {
        id: Set(id),
        email: Set(id.to_string()),
        name: Set("k".into()),
        boss_id: Set(Some(id / 10)),
    });
    run(&zoo.recorder, "INSERT INTO keeper (id, email, name) SELECT n, n, n FROM generate_series(4, 9) n").await;
    keeper::Entity::insert_many(keepers).exec(&zoo.recorder).await.unwrap();
    for sql in [
        "UPDATE food SET id = id + 100 WHERE random() < 0.5",
        "DELETE FROM keeper WHERE random() < 0.5",
        "DELETE FROM keeper k USING animal a WHERE a.keeper_id = k.id AND random() < 0.5",
    ] {
        run(&zoo.recorder, sql).await;
        zoo.assert_replays().await;
    }
}

/// A row of the statement's own that a trigger keeps may still follow another.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_trigger_keeps_is_followed() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database).await;
    zoo.populate().await;
    run(
        zoo.recorder.unrecorded(),
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF OLD.name = 'bo' THEN RETURN NULL; END IF; RETURN OLD; END $$;
         CREATE TRIGGER keep BEFORE DELETE ON keeper FOR EACH ROW EXECUTE FUNCTION keep();",
    )
    .await;
    zoo.recorder.check().await.unwrap();
    assert_eq!(zoo.recorder.execute_unprepared("DELETE FROM keeper").await.unwrap().rows_affected(), 2);
    zoo.assert_replays().await;
}

/// Rows that several foreign keys lead to pass on what each of them changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_follows_twice_passes_on_both() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database).await;
    run(
        zoo.recorder.unrecorded(),
        "CREATE TABLE house (id int PRIMARY KEY, name text UNIQUE);
         CREATE TABLE flat (id int UNIQUE REFERENCES house (id) ON UPDATE CASCADE, name text UNIQUE REFERENCES house (name) ON UPDATE CASCADE);
         INSERT INTO house VALUES (1, 'a'); INSERT INTO flat VALUES (1, 'a');",
    )
    .await;
    zoo.populate().await;
    run(&zoo.recorder, "UPDATE keeper SET boss_id = NULL; UPDATE keeper SET boss_id = 1, name = 'a' WHERE id = 2")
        .await;
    run(
        zoo.recorder.unrecorded(),
        "ALTER TABLE keeper ADD FOREIGN KEY (boss_id) REFERENCES flat (id) ON UPDATE CASCADE;
         CREATE TABLE named (name text UNIQUE REFERENCES flat (name) ON UPDATE CASCADE); INSERT INTO named VALUES ('a');
         INSERT INTO food (id, name) VALUES (7, 'x');",
    )
    .await;
    run(zoo.recorder.unrecorded(), "DELETE FROM food WHERE id = 7").await;
    run(&zoo.recorder, "INSERT INTO food (id, name) VALUES (7, 'a')").await;
    run(&zoo.recorder, "DELETE FROM food WHERE id <> 7").await;
    run(zoo.recorder.unrecorded(), "ALTER TABLE food ADD FOREIGN KEY (name) REFERENCES flat (name) ON UPDATE CASCADE")
        .await;
    zoo.recorder.check().await.unwrap();
    let before = zoo.recorder.log().position().await.unwrap();
    run(&zoo.recorder, "UPDATE house SET id = 3, name = 'b'").await;
    let changes: usize = zoo.transactions(before).await.iter().map(|transaction| transaction.changes.len()).sum();
    assert_eq!(changes, 2);
    zoo.assert_replays().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_moves_with_what_no_entity_has_is_refused() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database).await;
    run(
        zoo.recorder.unrecorded(),
        "ALTER TABLE food ADD COLUMN code bigint UNIQUE;
         ALTER TABLE chip ADD FOREIGN KEY (serial) REFERENCES food (code) ON UPDATE CASCADE",
    )
    .await;
    zoo.recorder.check().await.unwrap();
    let error = zoo.recorder.execute_unprepared("UPDATE food SET code = 8").await.unwrap_err().to_string();
    assert!(error.contains("UPDATE on food changes keys of chip with columns of food that no entity has"), "{error}");
}

/// A row may be referred to by values that no row of the other table could have.
#[tokio::test(flavor = "multi_thread")]
async fn types_on_both_sides_may_differ() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database).await;
    run(
        zoo.recorder.unrecorded(),
        "CREATE TABLE house (id bigint PRIMARY KEY); INSERT INTO house VALUES (1), (5000000000);
         ALTER TABLE keeper ADD COLUMN house int REFERENCES house ON DELETE CASCADE",
    )
    .await;
    zoo.recorder.check().await.unwrap();
    zoo.populate().await;
    run(&zoo.recorder, "UPDATE keeper SET house = 1 WHERE id > 1").await;
    assert_eq!(zoo.recorder.execute_unprepared("DELETE FROM house").await.unwrap().rows_affected(), 2);
    zoo.assert_replays().await;
}

/// A lock that a trigger waits for: the statement that fires it stands still until it is let go.
pub(super) const GATE: &str = "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
       PERFORM pg_advisory_xact_lock_shared(7); IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW; END $$;";

/// Who would refer to a row that follows, while the statement runs, waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn who_refers_to_a_row_that_follows_waits() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database).await;
    let plain = zoo.recorder.unrecorded();
    run(
        plain,
        &format!(
            "CREATE TABLE house (name text PRIMARY KEY);
             CREATE TABLE flat (name text UNIQUE REFERENCES house ON UPDATE CASCADE);
             INSERT INTO house VALUES ('a'); INSERT INTO flat VALUES ('a');
             ALTER TABLE food ADD FOREIGN KEY (name) REFERENCES flat (name) ON UPDATE CASCADE;
             {GATE} CREATE TRIGGER gate BEFORE UPDATE ON house FOR EACH ROW EXECUTE FUNCTION gate()"
        ),
    )
    .await;
    zoo.recorder.check().await.unwrap();
    let gate = plain.begin().await.unwrap();
    run(&gate, "SELECT pg_advisory_xact_lock(7)").await;
    let update = zoo.recorder.execute_unprepared("UPDATE house SET name = 'b'");
    let (update, ()) = tokio::join!(update, async {
        eventually(async || waiting(plain).await == 1).await;
        let late = zoo.recorder.clone();
        let late = tokio::spawn(async move { late.execute_unprepared("INSERT INTO food (name) VALUES ('a')").await });
        eventually(async || late.is_finished() || waiting(plain).await == 2).await;
        gate.commit().await.unwrap();
        // By now there is no such flat.
        late.await.unwrap().unwrap_err();
    });
    update.unwrap();
    zoo.assert_replays().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_followed_is_told_at_the_check() {
    let Some(shop) = Shop::new().await else { return };
    run(
        shop.recorder.unrecorded(),
        "ALTER TABLE \"Sales\".\"Order Line\" ADD COLUMN region text, ADD COLUMN at timestamptz,
           ADD FOREIGN KEY (region, at) REFERENCES reading_north (region, at) ON DELETE CASCADE",
    )
    .await;
    let error = shop.recorder.check().await.unwrap_err().to_string();
    assert!(error.contains("reading_north is a part of reading"), "{error}");

    // Foreign keys act on rows that the role does not see.
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database).await;
    let user = format!("u{}", Uuid::new_v4().simple());
    run(
        zoo.recorder.unrecorded(),
        &format!(
            "CREATE ROLE {user} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {user};
             ALTER TABLE visit ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON visit USING (number = 1)"
        ),
    )
    .await;
    zoo.recorder.check().await.unwrap();
    let theirs = zoo.database.url().replace("tidewire@", &format!("{user}@"));
    let theirs = Recorder::connect(&theirs, zoo::registry()).await.unwrap();
    let error = theirs.check().await.unwrap_err().to_string();
    assert!(error.contains("rows of visit follow others by a foreign key, and row level security"), "{error}");
}
