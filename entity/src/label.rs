use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "label")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    #[sea_orm(unique_key = "label_name")]
    pub project_id: i64,
    #[sea_orm(unique_key = "label_name")]
    pub name: String,
    /// As CSS writes it: `#1d76db`.
    #[sea_orm(default_value = "#888888")]
    pub color: String,
    #[sea_orm(belongs_to, from = "project_id", to = "id", on_delete = "Cascade", on_update = "Cascade")]
    pub project: BelongsTo<super::project::Entity>,
    #[sea_orm(has_many, via = "task_label")]
    pub tasks: HasMany<super::task::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
