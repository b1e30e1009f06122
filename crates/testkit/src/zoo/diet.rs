use sea_orm::entity::prelude::*;

/// What an animal eats, and how much.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "diet")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub animal_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    pub food_id: i64,
    #[sea_orm(default_value = 100)]
    pub grams: i32,
    #[sea_orm(belongs_to, from = "animal_id", to = "id", on_delete = "Cascade", on_update = "Cascade")]
    pub animal: BelongsTo<super::animal::Entity>,
    #[sea_orm(belongs_to, from = "food_id", to = "id", on_delete = "Cascade", on_update = "Cascade")]
    pub food: BelongsTo<super::food::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
