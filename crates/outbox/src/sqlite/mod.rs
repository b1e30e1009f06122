//! SQLite.

mod coalesce;
mod dialect;
mod log;
mod others;
mod packed;
pub(crate) mod schema;
mod session;
mod statement;
mod triggers;
mod writer;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, QueryResult, Statement, StreamTrait, TransactionOptions};
use sqlx::{
    ConnectOptions,
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteQueryResult, SqliteSynchronous,
    },
};
use tempfile::TempDir;
use tokio::sync::{Notify, OnceCell};

use self::{
    dialect::SqliteDialect,
    session::SqliteSession,
    statement::{Plan, Plans},
    writer::Writer,
};
use crate::{
    capture::{self, Capture},
    context::Context,
    cursor::Cursor,
    database::{Database, Executed, Fetched, Packed, Pruned, Read, Rows, Session, SnapshotSource, Stats, Text},
    error::{Error, ErrorKind, Result},
    filter::{Filter, Semantics},
    recorder::RecorderOptions,
    registry::{Catalog, EntityId, Kind},
    sql::{Dialect, Select},
};

/// How many statements each connection keeps prepared.
const STATEMENT_CACHE: usize = 512;
/// How long SQLite waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct Sqlite {
    catalog: Arc<Catalog>,
    connection: DatabaseConnection,
    readers: SqlitePool,
    /// For connections beside the readers' pool.
    options: SqliteConnectOptions,
    writer: Writer,
    plans: Arc<Plans>,
    doorbell: Arc<Notify>,
    semantics: OnceCell<Arc<Semantics>>,
    epochs: log::Epochs,
    /// How the options want it captured.
    wanted: Option<Capture>,
    /// Where the file of an in-memory database lies; removed with this.
    _folder: Option<TempDir>,
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sqlite")
    }
}

impl Sqlite {
    /// Opens a database by its URL, in WAL mode, so that readers and the writer don't wait for each other.
    ///
    /// An in-memory database lives in a file in a temporary folder instead: readers and the writer are different connections, and what
    /// SQLite shares in memory it locks by whole tables.
    pub(crate) async fn connect(url: &str, settings: &RecorderOptions, catalog: Arc<Catalog>) -> Result<Self> {
        let mut options: SqliteConnectOptions = url.parse().map_err(|error| {
            Error::new(ErrorKind::Setup, "the database URL is not one of SQLite's")
                .with_source(Box::new(error) as Box<dyn std::error::Error + Send + Sync>)
        })?;
        let folder = if options.get_filename().as_os_str().is_empty() || is_in_memory(url) {
            let folder = tempfile::tempdir().map_err(|error| {
                Error::new(ErrorKind::Setup, "there is no folder for a temporary database").with_source(error)
            })?;
            options = SqliteConnectOptions::new().filename(folder.path().join("memory.db")).create_if_missing(true);
            Some(folder)
        } else {
            None
        };
        let options = options
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .statement_cache_capacity(STATEMENT_CACHE)
            .disable_statement_logging();
        let readers = SqlitePoolOptions::new()
            .max_connections(settings.max_readers)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_with(options.clone())
            .await
            .map_err(database_error)?;
        Ok(Self::assemble(options, readers, settings.capture, catalog, folder))
    }

    /// Uses a pool that the caller has. Its options serve the writer too.
    pub(crate) fn with_pool(pool: &SqlitePool, catalog: Arc<Catalog>) -> Result<Self> {
        let options = pool.connect_options();
        if options.get_filename().to_string_lossy().contains("sqlx-in-memory") {
            return Err(Error::new(
                ErrorKind::Setup,
                "the recorder writes on a connection of its own, which an in-memory database does not share well. \
                 Give its URL to `Recorder::connect` instead",
            ));
        }
        let options = options.as_ref().clone().statement_cache_capacity(STATEMENT_CACHE).disable_statement_logging();
        Ok(Self::assemble(options, pool.clone(), None, catalog, None))
    }

    fn assemble(
        options: SqliteConnectOptions,
        readers: SqlitePool,
        wanted: Option<Capture>,
        catalog: Arc<Catalog>,
        folder: Option<TempDir>,
    ) -> Self {
        Self {
            writer: Writer::new(options.clone(), Arc::clone(&catalog)),
            options,
            connection: DatabaseConnection::from(readers.clone()),
            readers,
            plans: Arc::new(Plans::new(Arc::clone(&catalog))),
            catalog,
            doorbell: Arc::default(),
            semantics: OnceCell::new(),
            epochs: log::Epochs::default(),
            wanted,
            _folder: folder,
        }
    }
}

/// Triggers beside the application's own fire in no promised order, and could record a row's steps out of theirs.
fn others_can_be_recorded(connection: &writer::Connection) -> Result<()> {
    if !connection.has_triggers() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Setup,
        "the database has triggers of its own that concern synced tables, and SQLite promises no order among triggers, so what other programs \
         write could be recorded out of order. Capture it by `hooks`, which record this program's writes with what those triggers do",
    ))
}

fn is_in_memory(url: &str) -> bool {
    url.contains(":memory:") || url.contains("mode=memory")
}

#[async_trait]
impl Database for Sqlite {
    fn connection(&self) -> &DatabaseConnection {
        &self.connection
    }

    fn dialect(&self) -> &'static dyn Dialect {
        &SqliteDialect
    }

    fn packed(&self) -> &'static dyn Packed {
        &SqliteDialect
    }

    fn doorbell(&self) -> &Arc<Notify> {
        &self.doorbell
    }

    async fn check(&self) -> Result<()> {
        let mut turn = self.writer.turn().await?;
        let connection = turn.connection();
        let found = connection.capture();
        if let Some(wanted) = self.wanted.filter(|wanted| *wanted != found) {
            return Err(capture::mismatch(found, wanted));
        }
        if found == Capture::Triggers {
            others_can_be_recorded(connection)?;
            others::check(connection.sqlite(), &self.catalog).await?;
        }
        Ok(())
    }

    async fn capture(&self) -> Result<Capture> {
        let mut reader = self.readers.acquire().await.map_err(database_error)?;
        schema::capture(&mut reader).await
    }

    async fn install_capture(&self, capture: Capture) -> Result<()> {
        let mut turn = self.writer.turn().await?;
        let connection = turn.connection();
        match capture {
            Capture::Hooks => others::remove(connection.sqlite()).await?,
            Capture::Triggers => {
                others_can_be_recorded(connection)?;
                others::install(connection.sqlite(), &self.catalog).await?;
            }
            Capture::Log => {
                let problem =
                    "SQLite's log tells no rows: capture by `hooks`, or by `triggers` where other programs write";
                return Err(Error::new(ErrorKind::Setup, problem));
            }
        }
        connection.maintain(&format!("UPDATE tidewire_log SET capture = '{capture}'")).await?;
        // What the connection does depends on it.
        turn.reopen();
        Ok(())
    }

    async fn semantics(&self) -> Result<Arc<Semantics>> {
        self.semantics
            .get_or_try_init(|| async {
                let mut reader = self.readers.acquire().await.map_err(database_error)?;
                Ok(Arc::new(schema::inspect(&mut reader, &self.catalog).await?.semantics))
            })
            .await
            .cloned()
    }

    async fn execute(&self, statement: Statement, text: Text, context: &Context) -> Result<Executed, DbErr> {
        match self.plans.get(&statement.sql, true) {
            Plan::Refuse(why) => Err(refused(why)),
            Plan::Read => {
                if text == Text::Many {
                    let result = self.connection.execute_unprepared(&statement.sql).await?;
                    return Ok(Executed { result, rows: Vec::new() });
                }
                let rows = self.connection.query_all_raw(statement).await?;
                Ok(Executed { result: SqliteQueryResult::default().into(), rows })
            }
            Plan::Write { statements } => {
                let mut turn = self.writer.turn().await?;
                // Only the connection knows what REPLACE does here.
                if let Plan::Refuse(why) = self.plans.get(&statement.sql, turn.connection().replace_is_seen()) {
                    return Err(refused(why));
                }
                let outcome = turn.connection().autocommit(statement, statements, context).await?;
                drop(turn);
                self.doorbell.notify_one();
                Ok(Executed {
                    result: outcome.result.into(),
                    rows: outcome.rows.into_iter().map(QueryResult::from).collect(),
                })
            }
        }
    }

    async fn stream(&self, statement: Statement, context: &Context) -> Result<Rows<'static>, DbErr> {
        let rows = if self.plans.get(&statement.sql, true) == Plan::Read {
            let connection = self.connection.clone();
            async_stream::try_stream! {
                let mut rows = connection.stream_raw(statement).await?;
                while let Some(row) = rows.next().await {
                    yield row?;
                }
            }
            .boxed()
        } else {
            let executed = self.execute(statement, Text::One, context).await?;
            futures_util::stream::iter(executed.rows.into_iter().map(Ok)).boxed()
        };
        Ok(rows)
    }

    async fn begin(&self, context: &Context, _options: TransactionOptions) -> Result<Arc<dyn Session>, DbErr> {
        // Always immediate: a transaction that reads first and writes later would fail where another wrote in between.
        let mut turn = self.writer.turn().await?;
        turn.connection().begin(context).await?;
        Ok(Arc::new(SqliteSession::new(
            turn,
            Arc::clone(&self.catalog),
            Arc::clone(&self.plans),
            Arc::clone(&self.doorbell),
        )))
    }

    async fn position(&self) -> Result<Cursor> {
        log::position(self).await
    }

    async fn read(&self, after: &Cursor, _until: Option<&Cursor>, limit: usize) -> Result<Read> {
        log::read(self, after, limit).await
    }

    async fn fetch(&self, selects: &[Select], with_cursor: bool) -> Result<Fetched> {
        log::fetch(self, selects, with_cursor).await
    }

    async fn snapshot(&self, entity: EntityId, filter: Filter) -> Result<Box<dyn SnapshotSource>> {
        log::snapshot(self, entity, filter).await
    }

    fn continues(&self, cursor: &Cursor) -> bool {
        self.epochs.continues(cursor)
    }

    async fn prune(&self, before: Option<DateTime<Utc>>, keep: Option<u64>, limit: usize) -> Result<Pruned> {
        log::prune(self, before, keep, limit).await
    }

    async fn stats(&self) -> Result<Stats> {
        log::stats(self).await
    }

    async fn close(&self) {
        self.writer.close().await;
        self.readers.close().await;
    }
}

impl Packed for SqliteDialect {
    fn write_canonical(&self, kind: &Kind, packed: &str, out: &mut String) -> bool {
        packed::write_canonical(kind, packed, out)
    }
}

pub(super) fn refused(why: String) -> DbErr {
    Error::new(ErrorKind::Refused, why).into()
}

pub(crate) fn database_error(error: sqlx::Error) -> Error {
    DbErr::Query(sea_orm::RuntimeErr::SqlxError(Arc::new(error))).into()
}
