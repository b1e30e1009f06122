//! The history of the demo's database. It does not use the entities: a migration describes the tables as they were when it was written.

mod m20261120_000001_outbox;
mod m20261120_000002_task_tracker;

pub use sea_orm_migration::{MigrationStatus, MigrationTrait, MigratorTrait};

/// Runs the migrations.
#[derive(Debug)]
pub struct Migrator;

#[sea_orm_migration::async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m20261120_000001_outbox::Migration), Box::new(m20261120_000002_task_tracker::Migration)]
    }
}
