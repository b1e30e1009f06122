use sea_orm::entity::prelude::*;

/// Keepers look after animals, and answer to other keepers.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "keeper")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i32,
    #[sea_orm(unique)]
    pub email: String,
    pub name: String,
    pub boss_id: Option<i32>,
    #[sea_orm(self_ref, relation_enum = "Boss", from = "boss_id", to = "id", on_delete = "SetNull")]
    pub boss: HasOne<Entity>,
    #[sea_orm(has_many)]
    pub animals: HasMany<super::animal::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
