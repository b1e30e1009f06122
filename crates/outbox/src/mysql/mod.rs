//! MariaDB.
//!
//! MySQL speaks the same protocol and is refused when it is connected to: it has no `@@last_gtid` by which triggers tell transactions apart, no `RETURNING`, no
//! limit inside `GROUP_CONCAT`, and nobody has tried.

mod binlog;
mod cascade;
mod dialect;
mod epoch;
mod hooks;
mod layout;
mod log;
mod packed;
pub(crate) mod schema;
mod session;
mod settle;
mod statement;
mod triggers;

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use sea_orm::{
    DatabaseConnection, DbErr, ExecResult, QueryResult, RuntimeErr, Statement, StreamTrait, TransactionOptions,
};
use sqlx::{
    ConnectOptions, Connection, Executor, MySqlConnection, Row,
    mysql::{MySqlConnectOptions, MySqlPool, MySqlPoolOptions},
};
use tokio::sync::{Notify, watch};

use self::{
    dialect::MysqlDialect,
    hooks::{Hooks, Program, Progress, Schema},
    session::{Capturing, Held, MysqlSession},
    settle::Settling,
    statement::Effect,
};
use crate::{
    capture::{self, Capture, LogStatus},
    context::Context,
    cursor::Cursor,
    database::{Database, Executed, Fetched, Packed, Pruned, Read, Rows, Session, SnapshotSource, Stats, Text},
    error::{Error, ErrorKind, Result},
    filter::{Filter, Semantics},
    history::History,
    recorder::RecorderOptions,
    registry::{Catalog, EntityId},
    sql::{Dialect, Select},
};

/// How many statements a connection keeps prepared before it forgets them all, and how many at most while it is in use.
///
/// To forget one is a message without an answer, and sqlx leaves small messages to Nagle's algorithm: the next waits until the server has acknowledged
/// it, up to 40 ms later. So nothing is forgotten in between, for the sake of one statement more, but when a connection comes back to the pool.
const STATEMENTS: [usize; 2] = [256, 512];

/// How long a caller waits for a connection before it is told that the database is busy.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// How old what is known of the log's history may be.
const HISTORY: Duration = Duration::from_secs(1);

/// The oldest version that has what is needed: `SKIP LOCKED`.
const OLDEST: (u32, u32) = (10, 6);

pub(crate) struct Mysql {
    catalog: Arc<Catalog>,
    connection: DatabaseConnection,
    pool: MySqlPool,
    doorbell: Arc<Notify>,
    settling: Settling,
    /// The log's history, and when it was looked at.
    history: RwLock<Option<(Arc<History>, Instant)>>,
    /// How the options want it captured.
    wanted: Option<Capture>,
    captured: Mutex<Option<Capture>>,
    binlog: binlog::Shared,
    hooks: Hooks,
    semantics: OnceLock<Arc<Semantics>>,
}

impl fmt::Debug for Mysql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mysql")
    }
}

impl Mysql {
    /// Opens a database by its URL.
    pub(crate) async fn connect(url: &str, options: &RecorderOptions, catalog: Arc<Catalog>) -> Result<Self> {
        let wrong = || {
            Error::new(
                ErrorKind::Setup,
                "the database URL is not one of MariaDB's: `mysql://user:password@host/database`",
            )
        };
        let connect: MySqlConnectOptions = url.parse().map_err(|_| wrong())?;
        if connect.get_database().is_none_or(str::is_empty) {
            return Err(wrong());
        }
        // A pool would go on trying for long; what is wrong with the first connection is said at once.
        let mut conn = connect.clone().disable_statement_logging().connect().await.map_err(database_error)?;
        check_server(&mut conn).await?;
        let pool = Self::pool(connect, options);
        Ok(Self::assemble(DatabaseConnection::from(pool.clone()), pool, options, catalog))
    }

    /// Uses the options of a connection that the caller has; what is to be read back whole needs connections of our own making.
    pub(crate) fn with_connection(
        connection: &DatabaseConnection,
        options: &RecorderOptions,
        catalog: Arc<Catalog>,
    ) -> Self {
        let connect = connection.get_mysql_connection_pool().connect_options();
        let pool = Self::pool((*connect).clone(), options);
        Self::assemble(connection.clone(), pool, options, catalog)
    }

    fn pool(connect: MySqlConnectOptions, options: &RecorderOptions) -> MySqlPool {
        let connect = connect
            .statement_cache_capacity(STATEMENTS[1])
            .charset("utf8mb4")
            .collation("utf8mb4_bin")
            .timezone(Some("+00:00".to_owned()))
            .disable_statement_logging();
        MySqlPoolOptions::new()
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // Snapshots and the tail take some too.
            .max_connections(options.max_readers.saturating_add(6))
            .test_before_acquire(false)
            .after_connect(|conn, _| Box::pin(async move { greet(conn).await }))
            .after_release(|conn, _| {
                Box::pin(async move {
                    if conn.cached_statements_size() >= STATEMENTS[0] {
                        conn.clear_cached_statements().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(connect)
    }

    fn assemble(
        connection: DatabaseConnection,
        pool: MySqlPool,
        options: &RecorderOptions,
        catalog: Arc<Catalog>,
    ) -> Self {
        Self {
            hooks: Hooks::new(Arc::clone(&catalog)),
            catalog,
            connection,
            pool,
            doorbell: Arc::default(),
            settling: Settling::default(),
            history: RwLock::default(),
            wanted: options.capture,
            captured: Mutex::default(),
            binlog: binlog::Shared::default(),
            semantics: OnceLock::new(),
        }
    }

    /// The log's history as this process knows it. Reads find out when the server was started again; whether the table was made anew is looked at once
    /// in a while.
    async fn history(&self) -> Result<Arc<History>> {
        match self.known_history() {
            Some((history, looked)) if looked.elapsed() < HISTORY => Ok(history),
            Some(_) => self.look_for_history().await,
            None => {
                let mut conn = self.pool.acquire().await.map_err(database_error)?;
                check_server(&mut conn).await?;
                schema::check_installed(&mut conn).await?;
                drop(conn);
                self.look_for_history().await
            }
        }
    }

    /// The log's history as it is.
    async fn look_for_history(&self) -> Result<Arc<History>> {
        let history = Arc::new(epoch::look(&self.pool).await?);
        let known = Some((Arc::clone(&history), Instant::now()));
        *self.history.write().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(history)
    }

    fn known_history(&self) -> Option<(Arc<History>, Instant)> {
        self.history.read().unwrap_or_else(PoisonError::into_inner).clone()
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

    /// As a new transaction is to be recorded.
    async fn capturing(&self) -> Result<Capturing> {
        Ok(match self.captured().await? {
            Capture::Hooks => Capturing::Hooks(self.hooks.schema(&self.pool).await?),
            Capture::Triggers => Capturing::Triggers,
            Capture::Log => Capturing::Log,
        })
    }

    /// What hooks have to do for a text. `None` where it is sent as it came.
    async fn hooked(&self, sql: &str, effect: Effect) -> Result<Option<(Arc<Schema>, Arc<Program>)>> {
        let captured = match effect {
            Effect::Write => Some(self.captured().await?),
            // Reading goes on where capture is not in place.
            Effect::Read => self.captured().await.ok(),
        };
        if captured != Some(Capture::Hooks) {
            return Ok(None);
        }
        let schema = self.hooks.schema(&self.pool).await?;
        if effect == Effect::Read && !schema.has_functions() {
            return Ok(None);
        }
        let program = schema.program(sql)?;
        Ok((!program.is_plain()).then_some((schema, program)))
    }

    /// Runs a text that writes synced rows, in a transaction of its own.
    async fn record(
        &self,
        (schema, program): (Arc<Schema>, Arc<Program>),
        statement: Statement,
        text: Text,
        context: &Context,
    ) -> Result<Executed, DbErr> {
        let mut held = Held::new(&self.pool).await?;
        let conn = held.connection();
        let mut progress = Progress::new();
        let begin = format!("START TRANSACTION; {}", progress.enter());
        conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(begin))).await.map_err(session::exec_error)?;
        progress.commits = program.is_single();
        let done = schema.run(conn, &program, statement, text, context, &mut progress).await;
        let end = match done {
            Ok(_) if progress.committed => "",
            Ok(_) => "COMMIT",
            Err(_) => "ROLLBACK",
        };
        let ended = match end {
            "" => Ok(()),
            end => conn.execute(sqlx::raw_sql(end)).await.map(drop).map_err(session::exec_error),
        };
        if ended.is_ok() {
            held.free();
        }
        let executed = done?;
        ended?;
        self.doorbell.notify_one();
        Ok(executed)
    }

    fn effect(sql: &str) -> Result<Effect, DbErr> {
        statement::effect(sql).map_err(|why| Error::new(ErrorKind::Refused, why).into())
    }
}

/// What every connection of ours is told: how values and answers are meant, and the actor of writes that name none, so that they cost no statement of
/// their own.
async fn greet(conn: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    let text = format!(
        "SET SESSION sql_mode = 'STRICT_TRANS_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION,PIPES_AS_CONCAT',
         group_concat_max_len = 4294967295;
         SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ; {}; {}",
        epoch::LEARN,
        session::set_context(&Context::default())
    );
    conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(text))).await.map(drop)
}

/// Refuses a server that lacks what is needed, or that nobody has tried.
async fn check_server(conn: &mut MySqlConnection) -> Result<()> {
    let version: String = sqlx::query_scalar("SELECT VERSION()").fetch_one(&mut *conn).await.map_err(database_error)?;
    let refused = |why: String| Err(Error::new(ErrorKind::Setup, why));
    if !version.to_ascii_lowercase().contains("mariadb") {
        return refused(format!(
            "the server is MySQL {version}, which is not supported; MariaDB {}.{} and later are",
            OLDEST.0, OLDEST.1
        ));
    }
    let mut numbers = version.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < OLDEST {
        return refused(format!("the server is MariaDB {version}; {}.{} and later are supported", OLDEST.0, OLDEST.1));
    }
    let row =
        sqlx::query("SHOW GLOBAL VARIABLES LIKE 'wsrep_on'").fetch_optional(conn).await.map_err(database_error)?;
    if row.is_some_and(|row| row.get::<String, _>(1).eq_ignore_ascii_case("on")) {
        return refused(
            "the server is a node of a Galera cluster, whose nodes number changes side by side: that is not supported"
                .into(),
        );
    }
    Ok(())
}

/// Looks whether the binary log tells this database's transactions apart, by a lease that nobody asks for.
async fn check_binary_log(conn: &mut MySqlConnection) -> Result<()> {
    const TRY: &str =
        "INSERT INTO tidewire_lease VALUES ('tidewire/tried', '', 0, 0) ON DUPLICATE KEY UPDATE token = token + 1";
    const UNDO: &str = "DELETE FROM tidewire_lease WHERE name = 'tidewire/tried'";
    let mut seen = Vec::new();
    for text in [TRY, UNDO] {
        conn.execute(text).await.map_err(database_error)?;
        let id: Option<String> =
            sqlx::query_scalar("SELECT @@last_gtid").fetch_one(&mut *conn).await.map_err(database_error)?;
        seen.push(id);
    }
    if seen[0] == seen[1] {
        return Err(Error::new(
            ErrorKind::Setup,
            "capture needs the binary log: it tells transactions apart. Start the server with `log_bin`, without a filter \
             that leaves this database out",
        ));
    }
    Ok(())
}

#[async_trait]
impl Database for Mysql {
    fn connection(&self) -> &DatabaseConnection {
        &self.connection
    }

    fn dialect(&self) -> &'static dyn Dialect {
        &MysqlDialect
    }

    fn packed(&self) -> &'static dyn Packed {
        &MysqlDialect
    }

    fn doorbell(&self) -> &Arc<Notify> {
        &self.doorbell
    }

    async fn check(&self) -> Result<()> {
        let captured = self.captured().await?;
        let mut conn = self.pool.acquire().await.map_err(database_error)?;
        schema::check(&mut conn, &self.catalog, captured).await?;
        drop(conn);
        if captured == Capture::Hooks {
            self.hooks.check(&self.pool).await?;
        }
        self.look_for_history().await.map(drop)
    }

    async fn capture(&self) -> Result<Capture> {
        let mut conn = self.pool.acquire().await.map_err(database_error)?;
        schema::capture(&mut conn).await
    }

    async fn install_capture(&self, capture: Capture) -> Result<()> {
        let was_log = self.capture().await? == Capture::Log;
        if capture == Capture::Log {
            binlog::install(self).await?;
        } else {
            // Dropped on an error, the connection is closed, and what it has locked is free.
            let mut held = Held::new(&self.pool).await?;
            let conn = held.connection();
            if capture == Capture::Triggers {
                check_binary_log(conn).await?;
            }
            if was_log {
                binlog::finish(self, conn).await?;
            }
            match capture {
                Capture::Hooks => triggers::remove(conn).await?,
                _ => triggers::install(conn, &self.catalog, capture).await?,
            }
            let said = sqlx::query("UPDATE tidewire_log SET capture = ?").bind(capture.to_string());
            said.execute(&self.pool).await.map_err(database_error)?;
            conn.execute(sqlx::raw_sql(binlog::UNLOCK)).await.map_err(database_error)?;
            held.free();
        }
        *self.captured.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    async fn run_capture(self: Arc<Self>, stop: watch::Receiver<bool>) {
        binlog::run(self, stop).await;
    }

    async fn log_status(&self) -> Result<Option<LogStatus>> {
        if self.capture().await? != Capture::Log {
            return Ok(None);
        }
        let mut conn = self.pool.acquire().await.map_err(database_error)?;
        binlog::status(&mut conn).await.map(Some)
    }

    fn trouble(&self) -> Option<String> {
        self.binlog.trouble()
    }

    async fn semantics(&self) -> Result<Arc<Semantics>> {
        Ok(Arc::clone(
            self.semantics
                .get_or_init(|| Arc::new(Semantics { exact_decimals: true, one_form: true, ..Semantics::default() })),
        ))
    }

    async fn execute(&self, statement: Statement, text: Text, context: &Context) -> Result<Executed, DbErr> {
        let effect = Self::effect(&statement.sql)?;
        if let Some(hooked) = self.hooked(&statement.sql, effect).await? {
            return self.record(hooked, statement, text, context).await;
        }
        if effect == Effect::Write && (text == Text::Many || *context != Context::default()) {
            let session = self.begin(context, TransactionOptions::default()).await?;
            // On an error the session is dropped, which rolls it back.
            let executed = session.execute(statement, text, context).await?;
            session.commit().await?;
            return Ok(executed);
        }
        let mut conn = self.pool.acquire().await.map_err(|error| DbErr::from(database_error(error)))?;
        let executed = if text == Text::Many {
            let result = conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(statement.sql))).await;
            executed(result.map_err(session::exec_error)?, Vec::new())
        } else {
            session::run(&mut conn, statement).await?
        };
        if effect == Effect::Write {
            self.doorbell.notify_one();
        }
        Ok(executed)
    }

    async fn stream(&self, statement: Statement, context: &Context) -> Result<Rows<'static>, DbErr> {
        let effect = Self::effect(&statement.sql)?;
        if effect == Effect::Write || self.hooked(&statement.sql, effect).await?.is_some() {
            let executed = self.execute(statement, Text::One, context).await?;
            return Ok(futures_util::stream::iter(executed.rows.into_iter().map(Ok)).boxed());
        }
        let connection = DatabaseConnection::from(self.pool.clone());
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
        let (catalog, doorbell) = (Arc::clone(&self.catalog), Arc::clone(&self.doorbell));
        Ok(Arc::new(MysqlSession::begin(&self.pool, capturing, context, &options, catalog, doorbell).await?))
    }

    async fn begin_own(&self) -> Result<Arc<dyn Session>, DbErr> {
        let (catalog, doorbell) = (Arc::clone(&self.catalog), Arc::clone(&self.doorbell));
        let (context, options) = (Context::default(), TransactionOptions::default());
        let session = MysqlSession::begin(&self.pool, Capturing::Triggers, &context, &options, catalog, doorbell);
        Ok(Arc::new(session.await?))
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
        self.known_history().is_none_or(|(history, _)| history.has(cursor))
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

fn executed(result: sqlx::mysql::MySqlQueryResult, rows: Vec<sqlx::mysql::MySqlRow>) -> Executed {
    Executed { result: ExecResult::from(result), rows: rows.into_iter().map(QueryResult::from).collect() }
}

pub(crate) fn database_error(error: sqlx::Error) -> Error {
    DbErr::Query(RuntimeErr::SqlxError(Arc::new(error))).into()
}
