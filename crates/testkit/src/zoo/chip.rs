use sea_orm::entity::prelude::*;

/// The one chip that an animal may carry.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "chip")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub serial: i64,
    #[sea_orm(unique)]
    pub animal_id: Uuid,
    #[sea_orm(belongs_to, from = "animal_id", to = "id", on_delete = "Cascade")]
    pub animal: BelongsTo<super::animal::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
