use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "comment")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub task_id: Uuid,
    /// Whoever wrote it; nobody, once that user is gone.
    pub author_id: Option<i64>,
    #[sea_orm(column_type = "Text")]
    pub body: String,
    #[sea_orm(default_expr = "Expr::current_timestamp()")]
    pub created_at: DateTimeUtc,
    #[sea_orm(belongs_to, from = "task_id", to = "id", on_delete = "Cascade", on_update = "Cascade")]
    pub task: BelongsTo<super::task::Entity>,
    #[sea_orm(
        belongs_to,
        relation_enum = "Author",
        from = "author_id",
        to = "id",
        on_delete = "SetNull",
        on_update = "Cascade"
    )]
    pub author: BelongsTo<Option<super::user::Entity>>,
}

impl ActiveModelBehavior for ActiveModel {}
