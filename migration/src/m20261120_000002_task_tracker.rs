use sea_orm_migration::{prelude::*, schema::*, sea_orm::DbBackend, sea_query::extension::postgres::Type};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum User {
    Table,
    Id,
    Email,
    Name,
    CreatedAt,
}

#[derive(DeriveIden)]
enum Project {
    Table,
    Id,
    Name,
    Description,
    Archived,
    CreatedAt,
}

#[derive(DeriveIden)]
enum Member {
    Table,
    UserId,
    ProjectId,
    Role,
    Since,
}

#[derive(DeriveIden)]
enum Task {
    Table,
    Id,
    ProjectId,
    AssigneeId,
    Title,
    Body,
    Status,
    Priority,
    Done,
    Position,
    Estimate,
    Due,
    Metadata,
    CreatedAt,
    UpdatedAt,
}

#[derive(DeriveIden)]
enum Comment {
    Table,
    Id,
    TaskId,
    AuthorId,
    Body,
    CreatedAt,
}

#[derive(DeriveIden)]
enum Label {
    Table,
    Id,
    ProjectId,
    Name,
    Color,
}

#[derive(DeriveIden)]
enum TaskLabel {
    Table,
    TaskId,
    LabelId,
}

#[derive(DeriveIden)]
enum Attachment {
    Table,
    Id,
    TaskId,
    Name,
    MediaType,
    Content,
    CreatedAt,
}

const ROLES: [&str; 3] = ["owner", "editor", "viewer"];
const STATUSES: [&str; 4] = ["open", "in_progress", "blocked", "closed"];

/// The enumerations that are types of their own where the database has such types.
fn types() -> [(&'static str, &'static [&'static str]); 2] {
    [("member_role", &ROLES), ("task_status", &STATUSES)]
}

fn now(column: impl IntoIden) -> ColumnDef {
    timestamp_with_time_zone(column).default(Expr::current_timestamp()).take()
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let cascade = |from: (DynIden, DynIden), to: (DynIden, DynIden), on_delete| {
            let mut key = ForeignKey::create();
            key.from(from.0, from.1).to(to.0, to.1).on_delete(on_delete).on_update(ForeignKeyAction::Cascade).take()
        };
        let column = |table: DynIden, column: DynIden| (table, column);
        macro_rules! column {
            ($table:ident :: $column:ident) => {
                column($table::Table.into_iden(), $table::$column.into_iden())
            };
        }
        use ForeignKeyAction::{Cascade, SetNull};

        if manager.get_database_backend() == DbBackend::Postgres {
            for (name, values) in types() {
                let values = values.iter().map(|value| Alias::new(*value));
                manager.create_type(Type::create().as_enum(Alias::new(name)).values(values).to_owned()).await?;
            }
        }
        let user = Table::create()
            .table(User::Table)
            .col(big_integer(User::Id).primary_key().auto_increment())
            .col(string_uniq(User::Email))
            .col(string(User::Name))
            .col(now(User::CreatedAt))
            .take();
        let project = Table::create()
            .table(Project::Table)
            .col(big_integer(Project::Id).primary_key().auto_increment())
            .col(string(Project::Name))
            .col(text_null(Project::Description))
            .col(boolean(Project::Archived).default(false))
            .col(now(Project::CreatedAt))
            .take();
        let member = Table::create()
            .table(Member::Table)
            .col(big_integer(Member::UserId))
            .col(big_integer(Member::ProjectId))
            .col(enumeration(Member::Role, "member_role", ROLES))
            .col(now(Member::Since))
            .primary_key(Index::create().col(Member::UserId).col(Member::ProjectId))
            .foreign_key(&mut cascade(column!(Member::UserId), column!(User::Id), Cascade))
            .foreign_key(&mut cascade(column!(Member::ProjectId), column!(Project::Id), Cascade))
            .take();
        let task = Table::create()
            .table(Task::Table)
            .col(uuid(Task::Id).primary_key())
            .col(big_integer(Task::ProjectId))
            .col(big_integer_null(Task::AssigneeId))
            .col(string(Task::Title))
            .col(text(Task::Body).default(""))
            .col(enumeration(Task::Status, "task_status", STATUSES).default("open"))
            .col(integer(Task::Priority).default(0))
            .col(boolean(Task::Done).default(false))
            .col(decimal_len(Task::Position, 20, 10).default(0))
            .col(double_null(Task::Estimate))
            .col(date_null(Task::Due))
            .col(json_binary_null(Task::Metadata))
            .col(now(Task::CreatedAt))
            .col(now(Task::UpdatedAt))
            .foreign_key(&mut cascade(column!(Task::ProjectId), column!(Project::Id), Cascade))
            .foreign_key(&mut cascade(column!(Task::AssigneeId), column!(User::Id), SetNull))
            .take();
        let comment = Table::create()
            .table(Comment::Table)
            .col(big_integer(Comment::Id).primary_key().auto_increment())
            .col(uuid(Comment::TaskId))
            .col(big_integer_null(Comment::AuthorId))
            .col(text(Comment::Body))
            .col(now(Comment::CreatedAt))
            .foreign_key(&mut cascade(column!(Comment::TaskId), column!(Task::Id), Cascade))
            .foreign_key(&mut cascade(column!(Comment::AuthorId), column!(User::Id), SetNull))
            .take();
        let label = Table::create()
            .table(Label::Table)
            .col(big_integer(Label::Id).primary_key().auto_increment())
            .col(big_integer(Label::ProjectId))
            .col(string(Label::Name))
            .col(string(Label::Color).default("#888888"))
            .foreign_key(&mut cascade(column!(Label::ProjectId), column!(Project::Id), Cascade))
            .index(Index::create().name("label_name").unique().col(Label::ProjectId).col(Label::Name))
            .take();
        let task_label = Table::create()
            .table(TaskLabel::Table)
            .col(uuid(TaskLabel::TaskId))
            .col(big_integer(TaskLabel::LabelId))
            .primary_key(Index::create().col(TaskLabel::TaskId).col(TaskLabel::LabelId))
            .foreign_key(&mut cascade(column!(TaskLabel::TaskId), column!(Task::Id), Cascade))
            .foreign_key(&mut cascade(column!(TaskLabel::LabelId), column!(Label::Id), Cascade))
            .take();
        let attachment = Table::create()
            .table(Attachment::Table)
            .col(big_integer(Attachment::Id).primary_key().auto_increment())
            .col(uuid(Attachment::TaskId))
            .col(string(Attachment::Name))
            .col(string(Attachment::MediaType).default("application/octet-stream"))
            .col(blob(Attachment::Content))
            .col(now(Attachment::CreatedAt))
            .foreign_key(&mut cascade(column!(Attachment::TaskId), column!(Task::Id), Cascade))
            .take();
        for table in [user, project, member, task, comment, label, task_label, attachment] {
            manager.create_table(table).await?;
        }

        // One index for each foreign key that does not lead its table's primary key: relations are read, and cascades run, along them.
        for (name, (table, column)) in [
            ("member_project_id", column!(Member::ProjectId)),
            ("task_project_id", column!(Task::ProjectId)),
            ("task_assignee_id", column!(Task::AssigneeId)),
            ("comment_task_id", column!(Comment::TaskId)),
            ("comment_author_id", column!(Comment::AuthorId)),
            ("task_label_label_id", column!(TaskLabel::LabelId)),
            ("attachment_task_id", column!(Attachment::TaskId)),
        ] {
            manager.create_index(Index::create().name(name).table(table).col(column).take()).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [
            Attachment::Table.into_iden(),
            TaskLabel::Table.into_iden(),
            Label::Table.into_iden(),
            Comment::Table.into_iden(),
            Task::Table.into_iden(),
            Member::Table.into_iden(),
            Project::Table.into_iden(),
            User::Table.into_iden(),
        ] {
            manager.drop_table(Table::drop().table(table).take()).await?;
        }
        if manager.get_database_backend() == DbBackend::Postgres {
            for (name, _) in types() {
                manager.drop_type(Type::drop().name(Alias::new(name)).to_owned()).await?;
            }
        }
        Ok(())
    }
}
