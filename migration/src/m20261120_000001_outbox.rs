use sea_orm_migration::prelude::*;

/// The outbox comes first, so that everything after it can be recorded.
#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        Ok(tidewire_outbox::install(manager.get_connection()).await?)
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        Ok(tidewire_outbox::uninstall(manager.get_connection()).await?)
    }
}
