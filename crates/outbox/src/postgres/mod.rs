//! PostgreSQL.

mod dialect;
mod hooks;
mod log;
mod packed;
pub(crate) mod schema;
mod session;
mod statement;
mod triggers;
mod wal;

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use sea_orm::{DatabaseConnection, DbErr, Statement, StreamTrait, TransactionOptions};
use sqlx::{
    ConnectOptions,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPool, PgPoolOptions},
};
use tokio::sync::{Notify, watch};

use self::{
    dialect::PostgresDialect,
    hooks::Hooks,
    session::{Capturing, PostgresSession},
    statement::Scripts,
};
use crate::{
    capture::{self, Capture, LogStatus},
    context::Context,
    cursor::{Cursor, Epoch},
    database::{Database, Executed, Fetched, Packed, Pruned, Read, Rows, Session, SnapshotSource, Stats, Text},
    error::{Error, ErrorKind, Result},
    filter::{Filter, Semantics},
    recorder::RecorderOptions,
    registry::{Catalog, EntityId},
    sql::{Dialect, Select},
};

/// How many statements each connection keeps prepared.
const STATEMENT_CACHE: usize = 256;

/// How long a caller waits for a connection before it is told that the database is busy.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Postgres {
    catalog: Arc<Catalog>,
    connection: DatabaseConnection,
    pool: PgPool,
    doorbell: Arc<Notify>,
    epoch: RwLock<Option<Epoch>>,
    /// How the options want it captured.
    wanted: Option<Capture>,
    captured: Mutex<Option<Capture>>,
    hooks: Hooks,
    scripts: Arc<Scripts>,
    semantics: OnceLock<Arc<Semantics>>,
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
        let connect: PgConnectOptions = url.parse().map_err(|_| {
            Error::new(
                ErrorKind::Setup,
                "the database URL is not one of PostgreSQL's: `postgres://user:password@host/database`",
            )
        })?;
        let connect = connect.statement_cache_capacity(STATEMENT_CACHE).disable_statement_logging();
        // A pool would go on trying for long; what is wrong with the first connection is said at once.
        connect.connect().await.map(drop).map_err(database_error)?;
        let pool = PgPoolOptions::new()
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // Snapshots and the tail take some too.
            .max_connections(options.max_readers.saturating_add(6))
            .test_before_acquire(false)
            .after_connect(|conn, _| Box::pin(async move { greet(conn).await }))
            .connect_with(connect)
            .await
            .map_err(database_error)?;
        Ok(Self::with_pool(&pool, options, catalog))
    }

    /// Uses a pool that the caller has.
    pub(crate) fn with_pool(pool: &PgPool, options: &RecorderOptions, catalog: Arc<Catalog>) -> Self {
        Self {
            hooks: Hooks::new(Arc::clone(&catalog)),
            scripts: Arc::default(),
            catalog,
            connection: DatabaseConnection::from(pool.clone()),
            pool: pool.clone(),
            doorbell: Arc::default(),
            epoch: RwLock::default(),
            wanted: options.capture,
            captured: Mutex::default(),
            semantics: OnceLock::new(),
            log: wal::Shared::new(options),
        }
    }

    /// The log's epoch, as this process knows it.
    async fn epoch(&self) -> Result<Epoch> {
        match self.known_epoch() {
            Some(epoch) => Ok(epoch),
            None => self.look_for_epoch().await,
        }
    }

    /// The log's epoch as it is. Reads find out when it changes.
    async fn look_for_epoch(&self) -> Result<Epoch> {
        let mut conn = self.acquire().await?;
        let epoch = Epoch(schema::epoch(&mut conn).await?);
        self.set_epoch(epoch);
        Ok(epoch)
    }

    fn known_epoch(&self) -> Option<Epoch> {
        *self.epoch.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_epoch(&self, epoch: Epoch) {
        *self.epoch.write().unwrap_or_else(PoisonError::into_inner) = Some(epoch);
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
            Capture::Hooks => Capturing::Hooks(self.hooks.schema(&self.pool).await?),
            Capture::Triggers => Capturing::Triggers(Arc::clone(&self.scripts)),
            Capture::Log => Capturing::Log(Arc::clone(&self.scripts)),
        })
    }

    async fn acquire(&self) -> Result<PoolConnection<sqlx::Postgres>> {
        self.pool.acquire().await.map_err(database_error)
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

/// What every connection of ours is told: the actor of writes that name none, so that they cost no statement of their own; and that nothing is
/// compiled for a statement, which takes PostgreSQL some 80 ms where it takes a statement for a large one. It did for each window of the
/// outbox, before there were statistics: reading 100,000 changes took ten times as long.
async fn greet(conn: &mut sqlx::PgConnection) -> Result<(), sqlx::Error> {
    let sql = "SELECT set_config('tidewire.actor', $1, false), set_config('jit', 'off', false)";
    sqlx::query(sql).bind(Context::default().actor.as_str()).execute(conn).await?;
    Ok(())
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
        &self.doorbell
    }

    async fn check(&self) -> Result<()> {
        let captured = self.captured().await?;
        let mut conn = self.acquire().await?;
        schema::check(&mut conn, &self.catalog, captured).await?;
        drop(conn);
        if captured == Capture::Hooks {
            self.hooks.check(&self.pool).await?;
        }
        self.epoch().await.map(drop)
    }

    async fn capture(&self) -> Result<Capture> {
        let mut conn = self.acquire().await?;
        schema::capture(&mut conn).await
    }

    async fn install_capture(&self, capture: Capture) -> Result<()> {
        let mut conn = self.acquire().await?;
        if capture == Capture::Log {
            wal::install(self, &mut conn).await?;
            *self.captured.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return Ok(());
        }
        let was_log = schema::capture(&mut conn).await? == Capture::Log;
        if was_log {
            wal::finish(self).await;
        }
        match capture {
            Capture::Triggers => triggers::install(&mut conn, &self.catalog).await?,
            Capture::Hooks | Capture::Log => triggers::remove(&mut conn, &self.catalog).await?,
        }
        let said = sqlx::query("UPDATE tidewire_log SET capture = $1 WHERE capture <> $1");
        said.bind(capture.to_string()).execute(&mut *conn).await.map_err(database_error)?;
        *self.captured.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if was_log {
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
        let mut conn = self.acquire().await?;
        wal::status(&mut conn).await.map(Some)
    }

    fn trouble(&self) -> Option<String> {
        self.log.trouble()
    }

    async fn semantics(&self) -> Result<Arc<Semantics>> {
        Ok(Arc::clone(
            self.semantics.get_or_init(|| Arc::new(Semantics { exact_decimals: true, ..Semantics::default() })),
        ))
    }

    async fn execute(&self, statement: Statement, text: Text, context: &Context) -> Result<Executed, DbErr> {
        match self.capturing().await {
            Ok(Capturing::Hooks(schema)) => {
                let program = schema.program(&statement.sql)?;
                if program.as_ref().is_some_and(|program| program.needs_transaction(text)) {
                    return self.in_transaction(statement, text, context).await;
                }
                let mut conn = self.acquire().await?;
                let answer = schema.run(&mut conn, program.as_deref(), statement, text, context).await?;
                if program.is_some_and(|program| !program.is_plain()) {
                    self.doorbell.notify_one();
                }
                Ok(answer.into())
            }
            Ok(Capturing::Triggers(scripts) | Capturing::Log(scripts)) => {
                let writes = scripts.writes(&statement.sql)?;
                if writes && *context != Context::default() {
                    return self.in_transaction(statement, text, context).await;
                }
                let answer = session::run_as_it_is(&mut *self.acquire().await?, statement, text).await?;
                if writes {
                    self.doorbell.notify_one();
                }
                Ok(answer.into())
            }
            // Before there is an outbox one can read.
            Err(error) => match self.scripts.writes(&statement.sql)? {
                true => Err(error.into()),
                false => Ok(session::run_as_it_is(&mut *self.acquire().await?, statement, text).await?.into()),
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
        let connection = self.connection.clone();
        let rows = async_stream::try_stream! {
            let mut rows = connection.stream_raw(statement).await?;
            while let Some(row) = rows.next().await {
                yield row?;
            }
        };
        Ok(rows.boxed())
    }

    async fn begin(&self, context: &Context, options: TransactionOptions) -> Result<Arc<dyn Session>, DbErr> {
        let capturing = self.capturing().await?;
        let transaction = session::begin(&self.pool, &options).await?;
        let session =
            PostgresSession::new(transaction, capturing, Arc::clone(&self.catalog), Arc::clone(&self.doorbell));
        session.set_context(context).await?;
        Ok(Arc::new(session))
    }

    async fn begin_own(&self) -> Result<Arc<dyn Session>, DbErr> {
        let transaction = session::begin(&self.pool, &TransactionOptions::default()).await?;
        let capturing = Capturing::Triggers(Arc::clone(&self.scripts));
        let (catalog, doorbell) = (Arc::clone(&self.catalog), Arc::clone(&self.doorbell));
        Ok(Arc::new(PostgresSession::new(transaction, capturing, catalog, doorbell)))
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
        match (cursor.position().0, self.known_epoch()) {
            (Some(of), Some(epoch)) => of == epoch,
            (of, _) => of.is_none(),
        }
    }

    async fn prune(&self, before: Option<DateTime<Utc>>, keep: Option<u64>, limit: usize) -> Result<Pruned> {
        log::prune(self, before, keep, limit).await
    }

    async fn stats(&self) -> Result<Stats> {
        log::stats(self).await
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

pub(crate) fn database_error(error: sqlx::Error) -> Error {
    DbErr::Query(sea_orm::RuntimeErr::SqlxError(Arc::new(error))).into()
}
