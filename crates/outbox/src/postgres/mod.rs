//! PostgreSQL.

mod connections;
mod dialect;
mod doorbell;
mod epoch;
mod hooks;
mod log;
mod order;
mod packed;
pub(crate) mod schema;
mod semantics;
mod session;
mod statement;
mod trigger;
mod triggers;
mod wal;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt};
use sea_orm::{DatabaseConnection, DbErr, QueryResult, Statement, TransactionOptions};
use sqlx::{PgConnection, postgres::PgPool};
use tokio::sync::{Notify, OnceCell, watch};

use self::{
    connections::Connections,
    dialect::PostgresDialect,
    doorbell::Doorbell,
    hooks::Hooks,
    session::{Capturing, PostgresSession},
    statement::Scripts,
};
use crate::{
    capture::{self, Capture, LogStatus},
    context::Context,
    cursor::Cursor,
    database::{Database, Executed, Fetched, Packed, Pruned, Read, Rows, Session, SnapshotSource, Stats, Text},
    error::{Error, Result},
    filter::{Filter, Semantics},
    history::History,
    recorder::RecorderOptions,
    registry::{Catalog, EntityId},
    sql::{Dialect, Select},
};

pub(crate) struct Postgres {
    catalog: Arc<Catalog>,
    connection: DatabaseConnection,
    connections: Connections,
    doorbell: Arc<Doorbell>,
    history: RwLock<Option<Arc<History>>>,
    /// How the options want it captured.
    wanted: Option<Capture>,
    captured: Mutex<Option<Capture>>,
    hooks: Hooks,
    scripts: Arc<Scripts>,
    semantics: OnceCell<Arc<Semantics>>,
    /// Capture by the database's own log.
    log: wal::Shared,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Postgres")
    }
}

impl Postgres {
    /// Opens a database by its URL.
    pub(crate) async fn connect(url: &str, options: &RecorderOptions, catalog: Arc<Catalog>) -> Result<Self> {
        Ok(Self::assemble(Connections::open(url, options, &catalog).await?, options, catalog))
    }

    /// Uses a pool that the caller has.
    pub(crate) fn with_pool(pool: &PgPool, options: &RecorderOptions, catalog: Arc<Catalog>) -> Self {
        Self::assemble(Connections::of(pool), options, catalog)
    }

    fn assemble(connections: Connections, options: &RecorderOptions, catalog: Arc<Catalog>) -> Self {
        let (ring, listen) = (connections.options(), connections.direct());
        Self {
            hooks: Hooks::new(Arc::clone(&catalog)),
            scripts: Arc::default(),
            catalog,
            connection: DatabaseConnection::from(connections.plain_pool().clone()),
            doorbell: Arc::new(Doorbell::new(ring, listen, options.log.doorbell_interval)),
            connections,
            history: RwLock::default(),
            wanted: options.capture,
            captured: Mutex::default(),
            semantics: OnceCell::new(),
            log: wal::Shared::new(options),
        }
    }

    /// The log's history, as this process knows it. Reads find out when it is another.
    async fn history(&self) -> Result<Arc<History>> {
        match self.known_history() {
            Some(history) => Ok(history),
            None => self.look_for_history().await,
        }
    }

    /// The log's history as it is.
    async fn look_for_history(&self) -> Result<Arc<History>> {
        let mut conn = self.connections.lend().await?;
        let history = self.look_for_history_on(&mut conn).await?;
        conn.done().await.map_err(database_error)?;
        Ok(history)
    }

    async fn look_for_history_on(&self, conn: &mut PgConnection) -> Result<Arc<History>> {
        let history = Arc::new(epoch::look(conn).await?);
        *self.history.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&history));
        Ok(history)
    }

    fn known_history(&self) -> Option<Arc<History>> {
        self.history.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What keeps the database's log from being read, as the latest look at the outbox showed it.
    fn note_trouble(&self, trouble: Option<&str>) {
        self.log.note_trouble(trouble);
    }

    /// How it is captured, which has to be known before the first write.
    async fn captured(&self) -> Result<Capture> {
        let known = *self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(captured) = known {
            return Ok(captured);
        }
        let found = self.capture().await?;
        if let Some(wanted) = self.wanted.filter(|wanted| *wanted != found) {
            return Err(capture::mismatch(found, wanted));
        }
        *self.captured.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        Ok(found)
    }

    /// How writes are recorded from now on.
    async fn capturing(&self) -> Result<Capturing> {
        Ok(match self.captured().await? {
            Capture::Hooks => Capturing::Hooks(self.hooks.schema(&self.connections).await?),
            Capture::Triggers => Capturing::Triggers(Arc::clone(&self.scripts)),
            Capture::Log => Capturing::Log(Arc::clone(&self.scripts)),
        })
    }

    /// Runs a text as it came.
    async fn run_as_it_is(&self, statement: Statement, text: Text) -> Result<Executed, DbErr> {
        let (mut conn, named) = (self.connections.lend().await?, self.connections.named());
        let answer = session::run_as_it_is(&mut conn, statement, text, named).await?;
        conn.done().await.map_err(session::exec_error)?;
        Ok(answer.into())
    }

    /// Runs a text in a transaction of its own.
    async fn in_transaction(&self, statement: Statement, text: Text, context: &Context) -> Result<Executed, DbErr> {
        let session = self.begin(context, TransactionOptions::default()).await?;
        // On an error the session is dropped, which rolls it back.
        let executed = session.execute(statement, text, context).await?;
        session.commit().await?;
        Ok(executed)
    }
}

#[async_trait]
impl Database for Postgres {
    fn connection(&self) -> &DatabaseConnection {
        &self.connection
    }

    fn dialect(&self) -> &'static dyn Dialect {
        &PostgresDialect
    }

    fn packed(&self) -> &'static dyn Packed {
        &PostgresDialect
    }

    fn doorbell(&self) -> &Arc<Notify> {
        self.doorbell.local()
    }

    fn listen(&self) {
        self.doorbell.listen();
    }

    /// What triggers record may have been written by any program, and those don't ring.
    fn hears_all(&self) -> bool {
        let captured = *self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        self.doorbell.hears() && matches!(captured, Some(Capture::Hooks | Capture::Log))
    }

    async fn check_doorbell(&self) -> Result<bool> {
        self.doorbell.check().await
    }

    async fn check(&self) -> Result<()> {
        let captured = self.captured().await?;
        if captured == Capture::Log {
            self.connections.need_direct(wal::WHAT)?;
        }
        let mut conn = self.connections.lend().await?;
        let checked = schema::check(&mut conn, &self.catalog, captured).await;
        drop(conn);
        // Also where that failed: what is found here refuses writes from now on.
        let hooked = match captured {
            Capture::Hooks => self.hooks.check(&self.connections).await,
            Capture::Triggers | Capture::Log => Ok(()),
        };
        checked.and(hooked)?;
        self.look_for_history().await.map(drop)
    }

    async fn capture(&self) -> Result<Capture> {
        let mut conn = self.connections.lend().await?;
        schema::capture(&mut conn).await
    }

    async fn install_capture(&self, capture: Capture) -> Result<()> {
        let was_log = self.capture().await? == Capture::Log;
        if capture == Capture::Log || was_log {
            self.connections.need_direct(wal::WHAT)?;
        }
        if capture == Capture::Log {
            let mut conn = self.connections.direct_pool().acquire().await.map_err(database_error)?;
            wal::install(self, &mut conn).await?;
            *self.captured.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return Ok(());
        }
        if was_log {
            wal::finish(self).await;
        }
        // All of it or nothing.
        let mut transaction = self.connections.begin("BEGIN".to_owned()).await?;
        match capture {
            Capture::Triggers => triggers::install(&mut transaction, &self.catalog).await?,
            Capture::Hooks | Capture::Log => triggers::remove(&mut transaction, &self.catalog).await?,
        }
        let said = sqlx::query("UPDATE tidewire_log SET capture = $1 WHERE capture <> $1").persistent(false);
        said.bind(capture.to_string()).execute(&mut *transaction).await.map_err(database_error)?;
        transaction.commit().await.map_err(database_error)?;
        *self.captured.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if was_log {
            let mut conn = self.connections.direct_pool().acquire().await.map_err(database_error)?;
            wal::remove(self, &mut conn).await?;
        }
        Ok(())
    }

    async fn run_capture(self: Arc<Self>, stop: watch::Receiver<bool>) {
        wal::run(self, stop).await;
    }

    async fn log_status(&self) -> Result<Option<LogStatus>> {
        if self.capture().await? != Capture::Log {
            return Ok(None);
        }
        let mut conn = self.connections.lend().await?;
        wal::status(&mut conn).await.map(Some)
    }

    fn trouble(&self) -> Option<String> {
        self.log.trouble()
    }

    async fn semantics(&self) -> Result<Arc<Semantics>> {
        let found = self.semantics.get_or_try_init(async || {
            let mut conn = self.connections.lend().await?;
            let found = semantics::semantics(&mut conn, &self.catalog).await?;
            conn.done().await.map_err(database_error)?;
            Ok::<_, Error>(Arc::new(found))
        });
        Ok(Arc::clone(found.await?))
    }

    async fn execute(&self, statement: Statement, text: Text, context: &Context) -> Result<Executed, DbErr> {
        match self.capturing().await {
            Ok(Capturing::Hooks(schema)) => {
                let program = schema.program(&statement.sql)?;
                if program.as_ref().is_some_and(|program| program.needs_transaction(text)) {
                    return self.in_transaction(statement, text, context).await;
                }
                let mut conn = self.connections.lend().await?;
                let named = self.connections.named();
                let answer = schema.run(&mut conn, program.as_deref(), statement, text, context, named).await?;
                conn.done().await.map_err(session::exec_error)?;
                if program.is_some_and(|program| !program.is_plain()) {
                    self.doorbell.ring();
                }
                Ok(answer.into())
            }
            Ok(Capturing::Triggers(scripts) | Capturing::Log(scripts)) => {
                let writes = scripts.writes(&statement.sql)?;
                // Behind a pooler a connection knows nothing of the last transaction's context, so it is told each time.
                if writes && (self.connections.pooled || *context != Context::default()) {
                    return self.in_transaction(statement, text, context).await;
                }
                let executed = self.run_as_it_is(statement, text).await?;
                if writes {
                    self.doorbell.ring();
                }
                Ok(executed)
            }
            // Before there is an outbox one can read.
            Err(error) => match self.scripts.writes(&statement.sql)? {
                true => Err(error.into()),
                false => self.run_as_it_is(statement, text).await,
            },
        }
    }

    async fn stream(&self, statement: Statement, context: &Context) -> Result<Rows<'static>, DbErr> {
        let reads = match self.capturing().await? {
            Capturing::Hooks(schema) => schema.program(&statement.sql)?.is_none_or(|program| program.is_plain()),
            Capturing::Triggers(scripts) | Capturing::Log(scripts) => !scripts.writes(&statement.sql)?,
        };
        if !reads {
            let executed = self.execute(statement, Text::One, context).await?;
            return Ok(futures_util::stream::iter(executed.rows.into_iter().map(Ok)).boxed());
        }
        let (mut conn, named) = (self.connections.lend().await?, self.connections.named());
        let rows = async_stream::try_stream! {
            {
                let mut rows = session::query(&statement.sql, statement.values, named).fetch(&mut *conn);
                while let Some(row) = rows.try_next().await.map_err(session::exec_error)? {
                    yield QueryResult::from(row);
                }
            }
            conn.done().await.map_err(session::exec_error)?;
        };
        Ok(rows.boxed())
    }

    async fn begin(&self, context: &Context, options: TransactionOptions) -> Result<Arc<dyn Session>, DbErr> {
        let capturing = self.capturing().await?;
        let transaction = session::begin(&self.connections, &options).await?;
        let (catalog, doorbell) = (Arc::clone(&self.catalog), Arc::clone(&self.doorbell));
        let session = PostgresSession::new(transaction, capturing, catalog, doorbell, self.connections.pooled);
        session.set_context(context).await?;
        Ok(Arc::new(session))
    }

    async fn begin_own(&self) -> Result<Arc<dyn Session>, DbErr> {
        let transaction = session::begin(&self.connections, &TransactionOptions::default()).await?;
        let capturing = Capturing::Triggers(Arc::clone(&self.scripts));
        let (catalog, doorbell) = (Arc::clone(&self.catalog), Arc::clone(&self.doorbell));
        let session = PostgresSession::new(transaction, capturing, catalog, doorbell, self.connections.pooled);
        Ok(Arc::new(session))
    }

    async fn position(&self) -> Result<Cursor> {
        log::position(self).await
    }

    async fn read(&self, after: &Cursor, until: Option<&Cursor>, limit: usize) -> Result<Read> {
        log::read(self, after, until, limit).await
    }

    async fn fetch(&self, selects: &[Select], with_cursor: bool) -> Result<Fetched> {
        log::fetch(self, selects, with_cursor).await
    }

    async fn snapshot(&self, entity: EntityId, filter: Filter) -> Result<Box<dyn SnapshotSource>> {
        log::snapshot(self, entity, filter).await
    }

    fn continues(&self, cursor: &Cursor) -> bool {
        self.known_history().is_none_or(|history| history.has(cursor))
    }

    async fn prune(&self, before: Option<DateTime<Utc>>, keep: Option<u64>, limit: usize) -> Result<Pruned> {
        log::prune(self, before, keep, limit).await
    }

    async fn stats(&self) -> Result<Stats> {
        log::stats(self).await
    }

    async fn close(&self) {
        self.doorbell.close().await;
        self.connections.close().await;
    }
}

pub(crate) fn database_error(error: sqlx::Error) -> Error {
    DbErr::Query(sea_orm::RuntimeErr::SqlxError(Arc::new(error))).into()
}

/// What the server calls an error (its SQLSTATE).
fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}
