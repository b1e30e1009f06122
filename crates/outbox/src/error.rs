use std::{error::Error as StdError, fmt, time::Duration};

use sea_orm::{DbErr, RuntimeErr};

/// What went wrong, coarse enough to decide what to do next.
///
/// Retry is decided from the kind and never from the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The entities as registered cannot be synced (no primary key, a column type without a mapping, a relation to nowhere).
    Registry,
    /// The database as found cannot be captured (missing tables, triggers that write other synced tables, an unsupported server).
    Setup,
    /// A statement was refused because its changes could not be recorded. Nothing was written.
    Refused,
    /// A cursor text is not one of ours.
    Cursor,
    /// A lease is held no more: somebody else may hold it. What was to be written under it must not be.
    Lost,
    /// A filter cannot be expressed, in SQL or in memory.
    Filter,
    /// The outbox holds something that cannot be read back.
    Corrupt,
    /// Another connection holds a lock that we need. Trying again may succeed.
    Busy,
    /// The database cannot be written: its disk is full, or its file or server is read-only. Reading goes on.
    Unwritable,
    /// An earlier statement of the transaction failed, and with it the transaction: PostgreSQL runs nothing more in it, and MariaDB has rolled it
    /// back after a deadlock.
    Aborted,
    /// The database failed. Trying again may succeed.
    Database,
    /// The database cannot be reached, or the connection broke. Trying again may succeed; a write whose commit was under way may have happened.
    Unavailable,
}

/// An error of this crate: a kind to act on, a message for a person, and the cause where there is one.
///
/// Messages name tables, columns and statement kinds. They never carry SQL text or row contents (promise I11).
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Of a database that lacks tables or columns which entities have.
    pub(crate) fn lacking(missing: &[String]) -> Self {
        let missing = missing.join(", ");
        Self::new(
            ErrorKind::Setup,
            format!(
                "the database lacks {missing}, which the registered entities have. Run the migrations, or generate the entities anew"
            ),
        )
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call may succeed later without a change of code, data or configuration.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Busy | ErrorKind::Unwritable | ErrorKind::Database | ErrorKind::Unavailable)
    }
}

/// How long to wait after so many failures in a row before the next attempt: twice as long each time.
pub(crate) fn backoff(first: Duration, most: Duration, failures: u32) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(failures)).min(most)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)?;
        if let Some(source) = &self.source {
            write!(f, " ({source})")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// What stands before our messages in SeaORM's errors, with the kind in between: `tidewire: refused: …`.
const MARK: &str = "tidewire: ";

/// The kinds that are not found again in the database's own error.
const MARKED: [(ErrorKind, &str); 10] = [
    (ErrorKind::Registry, "registry: "),
    (ErrorKind::Setup, "setup: "),
    (ErrorKind::Refused, "refused: "),
    (ErrorKind::Cursor, "cursor: "),
    (ErrorKind::Lost, "lost: "),
    (ErrorKind::Filter, "filter: "),
    (ErrorKind::Corrupt, "corrupt: "),
    (ErrorKind::Busy, "busy: "),
    (ErrorKind::Unavailable, "unavailable: "),
    (ErrorKind::Aborted, "aborted: "),
];

/// SeaORM's traits can only answer with its own error, so ours travels as text in `DbErr::Custom`; turned back, it has its kind again.
impl From<Error> for DbErr {
    fn from(error: Error) -> Self {
        let kind = MARKED.iter().find(|(kind, _)| *kind == error.kind).map_or("", |(_, text)| text);
        match error.source {
            Some(source) => match source.downcast::<DbErr>() {
                Ok(db) => *db,
                Err(source) => DbErr::Custom(format!("{MARK}{kind}{}: {source}", error.message)),
            },
            None => DbErr::Custom(format!("{MARK}{kind}{}", error.message)),
        }
    }
}

/// Our own error in one of SeaORM's.
fn marked(error: &DbErr) -> Option<Error> {
    let DbErr::Custom(text) = error else { return None };
    let text = text.strip_prefix(MARK)?;
    let (kind, message) = MARKED
        .iter()
        .find_map(|(kind, mark)| Some((*kind, text.strip_prefix(mark)?)))
        .unwrap_or((ErrorKind::Database, text));
    Some(Error::new(kind, message))
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        if let Some(ours) = marked(&error) {
            return ours;
        }
        let mysql = mysql_error(&error);
        if let Some(why) = mysql.and_then(|(number, message)| message.strip_prefix(MARK).filter(|_| number == SIGNAL)) {
            return Self::new(ErrorKind::Refused, why.to_owned()).with_source(error);
        }
        let kind = match code(&error).as_deref() {
            _ if mysql.is_some() => mysql.map_or(ErrorKind::Database, |(number, _)| mysql_kind(number)),
            // The database's states, five characters each: serialisation failures, deadlocks, locks that are not to be had, and no room
            // for one more connection.
            Some("40001" | "40P01" | "55P03" | "53300") => ErrorKind::Busy,
            // A server that starts or stops, and connections that broke.
            Some("57P01" | "57P02" | "57P03" | "08000" | "08001" | "08003" | "08004" | "08006") => {
                ErrorKind::Unavailable
            }
            // What the user may not do, who it is, and which database: only a person mends that.
            Some("42501" | "28000" | "28P01" | "3D000") => ErrorKind::Setup,
            // A read-only transaction or server, and a full disk.
            Some("25006" | "53100") => ErrorKind::Unwritable,
            Some("25P02") => ErrorKind::Aborted,
            Some(state) if state.len() == 5 => ErrorKind::Database,
            // SQLite's numbers; the low byte of an extended one is the primary one.
            Some(number) => match number.parse::<u32>().unwrap_or_default() {
                // SQLITE_BUSY and SQLITE_LOCKED.
                code if matches!(code & 0xff, 5 | 6) => ErrorKind::Busy,
                // SQLITE_READONLY and SQLITE_FULL; and of SQLITE_IOERR those of writing: WRITE, FSYNC, DIR_FSYNC, TRUNCATE, SHMSIZE.
                code if matches!(code & 0xff, 8 | 13) || matches!(code, 778 | 1034 | 1290 | 1546 | 4874) => {
                    ErrorKind::Unwritable
                }
                _ => ErrorKind::Database,
            },
            None => match sqlx_error(&error) {
                Some(sqlx::Error::PoolTimedOut) => ErrorKind::Busy,
                // A pooler in between closes connections in its own words.
                Some(sqlx::Error::Io(_) | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed) => {
                    ErrorKind::Unavailable
                }
                // Who hangs up when asked for TLS has answered with nothing, which sqlx takes for a zero. Its kind is that of other mistakes too.
                Some(sqlx::Error::Protocol(what)) if what.contains("SSLRequest: 0x00") => ErrorKind::Unavailable,
                _ if matches!(error, DbErr::ConnectionAcquire(_)) => ErrorKind::Busy,
                _ => ErrorKind::Database,
            },
        };
        if let (ErrorKind::Setup, Some(refusal)) = (kind, sqlx_error(&error).and_then(sqlx::Error::as_database_error)) {
            // Names of users, tables and databases, and no values.
            return Self::new(kind, format!("the database refuses: {}", refusal.message())).with_source(error);
        }
        let message = match kind {
            ErrorKind::Busy if is_out_of_connections(&error) => "no connection became free in time",
            ErrorKind::Busy => "the database is busy: another connection holds what this one needs",
            ErrorKind::Unwritable => "the database cannot be written",
            ErrorKind::Unavailable => "the database cannot be reached",
            ErrorKind::Aborted => "an earlier statement of the transaction failed, and with it the transaction",
            _ => "the database failed",
        };
        Self::new(kind, message).with_source(error)
    }
}

/// MariaDB's number of an error that a trigger raised; ours have the mark before their text.
const SIGNAL: u16 = 1644;

fn is_out_of_connections(error: &DbErr) -> bool {
    matches!(error, DbErr::ConnectionAcquire(_)) || matches!(sqlx_error(error), Some(sqlx::Error::PoolTimedOut))
}

fn sqlx_error(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => Some(error),
        _ => None,
    }
}

fn mysql_kind(number: u16) -> ErrorKind {
    match number {
        // Deadlocks, locks that are not to be had, no room for one more connection, and a server that stops.
        1213 | 1205 | 1040 | 1203 | 1226 | 1053 => ErrorKind::Busy,
        // A read-only server or transaction, and a full disk or table space; 3 is of the files below the tables.
        1290 | 1836 | 1792 | 1021 | 1026 | 1114 | 3 => ErrorKind::Unwritable,
        // Who it is, and what they may not do: only a person mends that.
        1044 | 1045 | 1142 | 1143 | 1227 | 1370 | 1419 => ErrorKind::Setup,
        _ => ErrorKind::Database,
    }
}

/// The number and the message of MariaDB's; its states say too little.
fn mysql_error(error: &DbErr) -> Option<(u16, &str)> {
    let error = sqlx_error(error)?.as_database_error()?.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()?;
    Some((error.number(), error.message()))
}

/// The code that the database gave.
fn code(error: &DbErr) -> Option<String> {
    Some(sqlx_error(error)?.as_database_error()?.code()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_kind_through_seaorm() {
        for (kind, _) in MARKED {
            let back = Error::from(DbErr::from(Error::new(kind, "so it is")));
            assert_eq!((back.kind(), back.to_string()), (kind, "so it is".to_owned()));
        }
        let back = Error::from(DbErr::from(Error::new(ErrorKind::Setup, "no table").with_source("because")));
        assert_eq!((back.kind(), back.to_string()), (ErrorKind::Setup, "no table: because".to_owned()));
    }
}
