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

use sea_orm::DatabaseConnection;
use tidewire_outbox::Registry;

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
}
