use async_graphql::{Error as GraphqlError, ErrorExtensions};
use sea_orm::{DbErr, SqlErr};
use tidewire_outbox::{Error as OutboxError, ErrorKind};

/// What went wrong, as clients see it in `extensions.code`. The texts are part of the protocol and do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// The document is not GraphQL.
    ParseFailed,
    /// The document does not fit the schema, or a variable does not fit its type.
    ValidationFailed,
    /// A value is not what the field takes.
    BadUserInput,
    /// The document or request is larger, deeper or more complex than allowed.
    LimitExceeded,
    /// The operation is not allowed over this transport or method.
    OperationNotAllowed,
    /// A policy does not let the viewer do this.
    Forbidden,
    /// `ifMatch` found another row than the client has. `extensions.current` has the rows as they are.
    Conflict,
    /// A row with this unique key exists.
    AlreadyExists,
    /// A row that others refer to, or that refers to none.
    ReferenceViolation,
    /// A rule of the database or of the entity's own behaviour refuses the write.
    Rejected,
    /// A mutation id was used before, for something else.
    MutationIdReused,
    /// An earlier field of the mutation failed, and with it all of the mutation.
    RolledBack,
    /// The database is locked. Trying again may succeed.
    Busy,
    /// The database cannot be reached. Trying again may succeed; a write may have happened.
    Unavailable,
    /// The database takes no writes: its disk is full, or it is read-only. Reading goes on.
    Unwritable,
    /// A field that was added by hand failed, and gave no code of its own.
    ExecutionFailed,
    /// The server failed. Trying again may succeed.
    Internal,
}

impl Code {
    /// The text in `extensions.code`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ParseFailed => "GRAPHQL_PARSE_FAILED",
            Self::ValidationFailed => "GRAPHQL_VALIDATION_FAILED",
            Self::BadUserInput => "BAD_USER_INPUT",
            Self::LimitExceeded => "LIMIT_EXCEEDED",
            Self::OperationNotAllowed => "OPERATION_NOT_ALLOWED",
            Self::Forbidden => "FORBIDDEN",
            Self::Conflict => "CONFLICT",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::ReferenceViolation => "REFERENCE_VIOLATION",
            Self::Rejected => "REJECTED",
            Self::MutationIdReused => "MUTATION_ID_REUSED",
            Self::RolledBack => "ROLLED_BACK",
            Self::Busy => "BUSY",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unwritable => "UNWRITABLE",
            Self::ExecutionFailed => "EXECUTION_FAILED",
            Self::Internal => "INTERNAL",
        }
    }
}

/// An error for a client: a code, and a message that carries neither SQL nor row contents.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn bad_input(message: impl Into<String>) -> Self {
        Self::new(Code::BadUserInput, message)
    }

    /// What went wrong.
    pub fn code(&self) -> Code {
        self.code
    }
}

impl ApiError {
    /// As an error of async-graphql's, with its code. (An `ApiError` that `?` converts keeps its code too: it is found again as the source.)
    pub(crate) fn into_graphql(self) -> GraphqlError {
        GraphqlError::new(self.message).extend_with(|_, extensions| extensions.set("code", self.code.as_str()))
    }
}

impl From<OutboxError> for ApiError {
    fn from(error: OutboxError) -> Self {
        match error.kind() {
            ErrorKind::Busy => Self::new(Code::Busy, "the database is busy; try again"),
            ErrorKind::Unavailable => {
                tracing::warn!(%error, "a request failed");
                Self::new(
                    Code::Unavailable,
                    "the database cannot be reached now; try again, with the same `mutationId`: a write may have happened",
                )
            }
            ErrorKind::Unwritable => {
                tracing::error!(%error, "a write failed; is the disk full?");
                Self::new(Code::Unwritable, "the database takes no writes now; nothing was written")
            }
            ErrorKind::Aborted => {
                Self::new(Code::RolledBack, "not done, because an earlier field of the mutation failed")
            }
            ErrorKind::Refused => Self::new(Code::Rejected, error.to_string()),
            ErrorKind::Filter | ErrorKind::Cursor => Self::bad_input(error.to_string()),
            kind => {
                tracing::error!(?kind, %error, "a request failed");
                Self::new(Code::Internal, "the server could not answer; try again")
            }
        }
    }
}

/// A failed write. The database's message may hold values, so it goes to nobody but the log's level for debugging, and there without it too:
/// only its kind is told.
impl From<DbErr> for ApiError {
    fn from(error: DbErr) -> Self {
        match error.sql_err() {
            Some(SqlErr::UniqueConstraintViolation(_)) => {
                return Self::new(Code::AlreadyExists, "a row with this unique key exists");
            }
            Some(SqlErr::ForeignKeyConstraintViolation(_)) => {
                return Self::new(
                    Code::ReferenceViolation,
                    "the row refers to one that does not exist, or others refer to it",
                );
            }
            _ => {}
        }
        if let Some(rule) = broken_rule(&error) {
            return Self::new(Code::Rejected, rule);
        }
        match error {
            // What an entity's own behaviour says when it refuses a write is meant for whoever made it.
            DbErr::Custom(message) if !message.starts_with("tidewire: ") => Self::new(Code::Rejected, message),
            DbErr::Type(_) | DbErr::Json(_) | DbErr::TryIntoErr { .. } => {
                Self::bad_input("a value does not fit its column")
            }
            other => Self::from(OutboxError::from(other)),
        }
    }
}

/// What rule the database says was broken, by its code: PostgreSQL's of five characters, SQLite's extended number, or MariaDB's own.
fn broken_rule(error: &DbErr) -> Option<&'static str> {
    let (DbErr::Exec(sea_orm::RuntimeErr::SqlxError(error)) | DbErr::Query(sea_orm::RuntimeErr::SqlxError(error))) =
        error
    else {
        return None;
    };
    let error = error.as_database_error()?;
    if let Some(error) = error.try_downcast_ref::<sea_orm::sqlx::mysql::MySqlDatabaseError>() {
        return match error.number() {
            1048 | 1364 => Some("a column that must have a value has none"),
            4025 => Some("a value breaks a rule of its table"),
            _ => error
                .code()
                .is_some_and(|state| state.starts_with("23"))
                .then_some("a rule of the database refuses the write"),
        };
    }
    let code = error.code()?;
    match (&*code, code.parse::<u32>().unwrap_or_default()) {
        ("23502", _) | (_, 1299) => Some("a column that must have a value has none"),
        ("23514", _) | (_, 275) => Some("a value breaks a rule of its table"),
        (state, _) if state.len() == 5 => state.starts_with("23").then_some("a rule of the database refuses the write"),
        (_, code) if code & 0xff == 19 => Some("a rule of the database refuses the write"),
        _ => None,
    }
}
