//! A zoo: every kind of relation, and a table with every column type.
#![allow(missing_docs, reason = "columns are named for what they hold, and SeaORM's macros write undocumented items")]

pub mod animal;
pub mod arbitrary;
pub mod chip;
pub mod diet;
pub mod everything;
pub mod food;
pub mod keeper;
pub mod specimen;
pub mod visit;
pub mod wide;

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use sea_orm::{ActiveModelTrait, ConnectionTrait, DatabaseConnection, DbBackend, IntoActiveModel, Statement};
use tidewire_outbox::{Recorder, Registry};

/// All of the zoo's entities.
pub fn registry() -> Registry {
    Registry::new()
        .entity::<keeper::Entity>()
        .entity::<animal::Entity>()
        .entity::<chip::Entity>()
        .entity::<food::Entity>()
        .entity::<diet::Entity>()
        .entity::<visit::Entity>()
        .entity::<everything::Entity>()
}

/// Creates the zoo's tables.
pub async fn create(db: &DatabaseConnection) {
    db.get_schema_builder()
        .register(keeper::Entity)
        .register(animal::Entity)
        .register(chip::Entity)
        .register(food::Entity)
        .register(diet::Entity)
        .register(visit::Entity)
        .register(everything::Entity)
        .apply(db)
        .await
        .unwrap();
    if db.get_database_backend() == DbBackend::MySql {
        keep_fractions(db).await;
    }
}

/// Writes rows of every kind of value into [`mod@everything`], the same each time.
pub async fn fill(recorder: &Recorder) {
    let mut runner = TestRunner::deterministic();
    for id in 1..=64 {
        let row = arbitrary::everything().new_tree(&mut runner).unwrap().current();
        let row = everything::Model { id, ..row }.into_active_model().reset_all();
        row.insert(recorder).await.unwrap();
    }
}

/// Has MariaDB's columns keep fractions of seconds, where SeaORM's keep none.
pub async fn keep_fractions(db: &DatabaseConnection) {
    let columns = "SELECT CONCAT('ALTER TABLE ', table_name, ' MODIFY ', column_name, ' ', data_type, '(6) ', IF(is_nullable = 'YES', 'NULL', 'NOT NULL'))
        FROM information_schema.columns WHERE table_schema = DATABASE() AND datetime_precision = 0 AND data_type <> 'date'";
    for row in db.query_all_raw(Statement::from_string(DbBackend::MySql, columns)).await.unwrap() {
        let text: String = row.try_get_by_index(0).unwrap();
        db.execute_unprepared(&text).await.unwrap();
    }
}
