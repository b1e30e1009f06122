use sea_orm::entity::prelude::*;

/// A visit of the vet's, numbered per animal.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "visit")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub animal_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    pub number: i32,
    pub at: DateTime,
    pub report: Option<String>,
    pub picture: Option<Vec<u8>>,
    #[sea_orm(belongs_to, from = "animal_id", to = "id", on_delete = "Cascade", on_update = "Cascade")]
    pub animal: BelongsTo<super::animal::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
