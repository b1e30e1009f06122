use sea_orm::{ActiveValue, Set, entity::prelude::*};

/// How far a task has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Enum", enum_name = "task_status")]
pub enum Status {
    #[sea_orm(string_value = "open")]
    Open,
    #[sea_orm(string_value = "in_progress")]
    InProgress,
    #[sea_orm(string_value = "blocked")]
    Blocked,
    #[sea_orm(string_value = "closed")]
    Closed,
}

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "task")]
pub struct Model {
    /// A UUID of version 7, which sorts by time. A client that works offline chooses it; else it is made on insert.
    #[sea_orm(primary_key, auto_increment = false, default_expr = "Expr::cust(\"NULL\")")]
    pub id: Uuid,
    pub project_id: i64,
    pub assignee_id: Option<i64>,
    pub title: String,
    #[sea_orm(column_type = "Text", default_value = "")]
    pub body: String,
    #[sea_orm(default_value = "open")]
    pub status: Status,
    #[sea_orm(default_value = 0)]
    pub priority: i32,
    #[sea_orm(default_value = false)]
    pub done: bool,
    /// Where it stands in its list; a decimal, so that there is always room between two tasks.
    #[sea_orm(column_type = "Decimal(Some((20, 10)))", default_value = 0)]
    pub position: Decimal,
    /// Hours.
    pub estimate: Option<f64>,
    pub due: Option<Date>,
    pub metadata: Option<Json>,
    #[sea_orm(default_expr = "Expr::current_timestamp()")]
    pub created_at: DateTimeUtc,
    #[sea_orm(default_expr = "Expr::current_timestamp()")]
    pub updated_at: DateTimeUtc,
    #[sea_orm(belongs_to, from = "project_id", to = "id", on_delete = "Cascade", on_update = "Cascade")]
    pub project: BelongsTo<super::project::Entity>,
    #[sea_orm(
        belongs_to,
        relation_enum = "Assignee",
        from = "assignee_id",
        to = "id",
        on_delete = "SetNull",
        on_update = "Cascade"
    )]
    pub assignee: BelongsTo<Option<super::user::Entity>>,
    #[sea_orm(has_many)]
    pub comments: HasMany<super::comment::Entity>,
    #[sea_orm(has_many)]
    pub attachments: HasMany<super::attachment::Entity>,
    #[sea_orm(has_many, via = "task_label")]
    pub labels: HasMany<super::label::Entity>,
}

#[async_trait::async_trait]
impl ActiveModelBehavior for ActiveModel {
    /// A task gets its key and its times here, whoever writes it.
    async fn before_save<C: ConnectionTrait>(mut self, _db: &C, insert: bool) -> Result<Self, DbErr> {
        let now = chrono::Utc::now();
        if insert {
            if self.id.is_not_set() {
                self.id = Set(Uuid::now_v7());
            }
            if self.created_at.is_not_set() {
                self.created_at = Set(now);
            }
        }
        if !matches!(self.updated_at, ActiveValue::Set(_)) {
            self.updated_at = Set(now);
        }
        Ok(self)
    }
}
