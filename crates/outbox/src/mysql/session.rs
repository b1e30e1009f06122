use std::{fmt, sync::Arc};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use sea_orm::{
    AccessMode, DbBackend, DbErr, IsolationLevel, QueryResult, RuntimeErr, Statement, TransactionOptions, Values,
};
use sea_query_sqlx::SqlxValues;
use sqlx::{
    AssertSqlSafe, Either, Executor, MySql as Sqlx, MySqlConnection, MySqlPool,
    mysql::{MySqlDatabaseError, MySqlQueryResult, MySqlRow},
    pool::PoolConnection,
};
use tokio::sync::{Mutex, Notify};

use super::{
    binlog, database_error,
    dialect::MysqlDialect,
    executed,
    hooks::{Progress, Schema},
    log, statement,
};
use crate::{
    context::Context,
    database::{Abandoned, Executed, Rows, Session, Text, savepoint},
    error::{Error, ErrorKind, Result},
    registry::Catalog,
    sql::{self, Select, Sql},
};

/// A connection that is not as the pool's others are: it has a transaction open, or acts in somebody's name. Dropped, it is closed.
pub(super) struct Held(Option<PoolConnection<Sqlx>>);

impl Held {
    pub(super) async fn new(pool: &MySqlPool) -> Result<Self> {
        Ok(Self(Some(pool.acquire().await.map_err(database_error)?)))
    }

    pub(super) fn connection(&mut self) -> &mut MySqlConnection {
        self.0.as_mut().expect("held until it is freed")
    }

    /// It is as all others again.
    pub(super) fn free(mut self) {
        self.0.take();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.0 {
            connection.close_on_drop();
        }
    }
}

/// A transaction on a connection of its own. Dropped unfinished, the connection is closed, which rolls it back.
pub(super) struct MysqlSession {
    open: Mutex<Open>,
    abandoned: Abandoned,
    capture: Capturing,
    catalog: Arc<Catalog>,
    doorbell: Arc<Notify>,
}

/// How a transaction's writes are recorded.
#[derive(Clone)]
pub(super) enum Capturing {
    Hooks(Arc<Schema>),
    Triggers,
    Log,
}

struct Open {
    held: Option<Held>,
    /// Whether the binary log is told.
    by_log: bool,
    /// In whose name the connection's variables say that it writes, or what it said last to the log, where that is known. Hooks say it with each write.
    context: Option<Context>,
    /// What hooks have done.
    progress: Progress,
}

impl fmt::Debug for MysqlSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MysqlSession")
    }
}

/// A text as an expression, whatever stands in it.
pub(super) fn expression(text: &str) -> String {
    format!("CONVERT(X'{}' USING utf8mb4)", data_encoding::HEXLOWER.encode(text.as_bytes()))
}

/// Actor, origin and mutation id as expressions.
pub(super) fn values(context: &Context) -> [String; 3] {
    let maybe = |text: Option<&str>| text.map_or_else(|| "NULL".to_owned(), expression);
    [
        expression(context.actor.as_str()),
        maybe(context.origin.as_ref().map(|origin| origin.as_str())),
        maybe(context.mutation_id.as_ref().map(|id| id.as_str())),
    ]
}

/// The statement that tells triggers in whose name a session writes.
pub(super) fn set_context(context: &Context) -> String {
    let [actor, origin, mutation] = values(context);
    format!("SET @tidewire_actor = {actor}, @tidewire_origin = {origin}, @tidewire_mutation = {mutation}")
}

fn begin(options: &TransactionOptions) -> String {
    let level = options.isolation_level.map_or("", |level| match level {
        IsolationLevel::RepeatableRead => "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; ",
        IsolationLevel::ReadCommitted => "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; ",
        IsolationLevel::ReadUncommitted => "SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED; ",
        IsolationLevel::Serializable => "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; ",
    });
    let access = match options.access_mode {
        Some(AccessMode::ReadOnly) => " READ ONLY",
        Some(AccessMode::ReadWrite) | None => "",
    };
    format!("{level}START TRANSACTION{access}")
}

/// Runs one statement.
pub(super) async fn run(conn: &mut MySqlConnection, statement: Statement) -> Result<Executed, DbErr> {
    let values = statement.values.unwrap_or_else(|| Values(Vec::new()));
    let (result, rows) = answer(conn, &statement.sql, values, true).await?;
    Ok(executed(result, rows))
}

/// Runs one statement. One without values need not be prepared; what was prepared stays so, since to forget it holds up the next message.
pub(super) async fn answer(
    conn: &mut MySqlConnection,
    sql: &str,
    values: Values,
    prepared: bool,
) -> Result<(MySqlQueryResult, Vec<MySqlRow>), DbErr> {
    let mut steps = match prepared || !values.0.is_empty() {
        true => conn.fetch_many(sqlx::query_with(AssertSqlSafe(sql), SqlxValues(values))),
        false => conn.fetch_many(sqlx::raw_sql(AssertSqlSafe(sql))),
    };
    let mut result = MySqlQueryResult::default();
    let mut rows = Vec::new();
    while let Some(step) = steps.try_next().await.map_err(exec_error)? {
        match step {
            Either::Left(done) => result.extend([done]),
            Either::Right(row) => rows.push(row),
        }
    }
    drop(steps);
    Ok((result, rows))
}

pub(super) fn exec_error(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(Arc::new(error)))
}

/// Whether the server has ended the transaction on its own: by a deadlock, or with the connection.
fn ends_transaction(error: &DbErr) -> bool {
    const DEADLOCK: u16 = 1213;
    let (DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))) = error else {
        return false;
    };
    match error.as_database_error() {
        Some(error) => error.try_downcast_ref::<MySqlDatabaseError>().is_some_and(|error| error.number() == DEADLOCK),
        None => matches!(**error, sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed),
    }
}

impl Open {
    fn connection(&mut self) -> Result<&mut MySqlConnection, DbErr> {
        match &mut self.held {
            Some(held) => Ok(held.connection()),
            None => {
                Err(Error::new(ErrorKind::Aborted, "the transaction has ended, or the server has rolled it back")
                    .into())
            }
        }
    }

    async fn control(&mut self, sql: String) -> Result<(), DbErr> {
        let result = self.connection()?.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.map_err(exec_error);
        self.noticed(result.map(drop))
    }

    /// What comes after a transaction that the server has ended must not be written outside of one.
    fn noticed<T>(&mut self, result: Result<T, DbErr>) -> Result<T, DbErr> {
        if result.as_ref().is_err_and(ends_transaction) {
            self.held = None;
        }
        result
    }

    async fn rollback_to(&mut self, level: u32) -> Result<(), DbErr> {
        let savepoint = savepoint(level);
        if self.by_log {
            // What was said since is taken back too.
            self.context = None;
        }
        self.control(format!("ROLLBACK TO SAVEPOINT {savepoint}; RELEASE SAVEPOINT {savepoint}")).await
    }

    async fn set_context(&mut self, context: &Context) -> Result<(), DbErr> {
        if self.context.as_ref() != Some(context) {
            let tell = if self.by_log { binlog::tell(context) } else { set_context(context) };
            self.control(tell).await?;
            self.context = Some(context.clone());
        }
        Ok(())
    }

    /// Ends the transaction, and makes the connection as all others are.
    async fn end(&mut self, how: &str) -> Result<(), DbErr> {
        let mut text = how.to_owned();
        if !self.by_log && self.context != Some(Context::default()) {
            text.push_str("; ");
            text.push_str(&set_context(&Context::default()));
        }
        self.control(text).await?;
        if let Some(held) = self.held.take() {
            held.free();
        }
        Ok(())
    }
}

impl MysqlSession {
    pub(super) async fn begin(
        pool: &MySqlPool,
        capture: Capturing,
        context: &Context,
        options: &TransactionOptions,
        catalog: Arc<Catalog>,
        doorbell: Arc<Notify>,
    ) -> Result<Self, DbErr> {
        let mut held = Held::new(pool).await?;
        let mut text = begin(options);
        let mut told = Context::default();
        // Hooks say it with each write, and the log is told with the first.
        if matches!(capture, Capturing::Triggers) && *context != told {
            text = format!("{}; {text}", set_context(context));
            told = context.clone();
        }
        held.connection().execute(sqlx::raw_sql(AssertSqlSafe(text))).await.map_err(exec_error)?;
        let mut progress = Progress::new();
        progress.open_gaps =
            matches!(options.isolation_level, Some(IsolationLevel::ReadCommitted | IsolationLevel::ReadUncommitted));
        let by_log = matches!(capture, Capturing::Log);
        let open = Open { held: Some(held), by_log, context: Some(told), progress };
        Ok(Self { open: Mutex::new(open), abandoned: Abandoned::default(), capture, catalog, doorbell })
    }

    async fn open(&self) -> Result<tokio::sync::MutexGuard<'_, Open>, DbErr> {
        let mut open = self.open.lock().await;
        if open.progress.halfway {
            // Rows may have been written and not recorded: the connection is closed, which rolls them back.
            open.held = None;
        }
        open.connection()?;
        if let Some(level) = self.abandoned.take() {
            open.rollback_to(level).await?;
        }
        Ok(open)
    }
}

#[async_trait]
impl Session for MysqlSession {
    async fn execute(&self, statement: Statement, text: Text, context: &Context) -> Result<Executed, DbErr> {
        if let Capturing::Hooks(schema) = &self.capture {
            let program = schema.program(&statement.sql)?;
            let mut open = self.open().await?;
            let Open { held, progress, .. } = &mut *open;
            let conn = held.as_mut().expect("it is open").connection();
            let result = schema.run(conn, &program, statement, text, context, progress).await;
            return open.noticed(result);
        }
        let effect = statement::effect(&statement.sql).map_err(|why| Error::new(ErrorKind::Refused, why))?;
        let mut open = self.open().await?;
        if effect == statement::Effect::Write {
            open.set_context(context).await?;
        }
        let conn = open.connection()?;
        let result = if text == Text::Many {
            let result = conn.execute(sqlx::raw_sql(AssertSqlSafe(statement.sql))).await.map_err(exec_error);
            result.map(|result| executed(result, Vec::new()))
        } else {
            run(conn, statement).await
        };
        open.noticed(result)
    }

    async fn stream<'a>(&'a self, statement: Statement, context: &'a Context) -> Result<Rows<'a>, DbErr> {
        // The connection is one, so the rows are read whole before anything else can run on it.
        let executed = self.execute(statement, Text::One, context).await?;
        Ok(futures_util::stream::iter(executed.rows.into_iter().map(Ok)).boxed())
    }

    async fn fetch(&self, select: &Select) -> Result<String> {
        let mut sql = Sql::default();
        sql.push("SELECT (");
        sql::write(&MysqlDialect, &self.catalog, select, &mut sql);
        sql.push(")");
        let statement = Statement::from_sql_and_values(DbBackend::MySql, sql.text, sql.values);
        let mut open = self.open().await?;
        let values = statement.values.unwrap_or_else(|| Values(Vec::new()));
        let row = sqlx::query_with(AssertSqlSafe(statement.sql), SqlxValues(values))
            .fetch_one(open.connection()?)
            .await
            .map_err(database_error)?;
        log::answer(&row, 0)
    }

    async fn savepoint(&self, level: u32) -> Result<(), DbErr> {
        self.open().await?.control(format!("SAVEPOINT {}", savepoint(level))).await
    }

    async fn release(&self, level: u32) -> Result<(), DbErr> {
        self.open().await?.control(format!("RELEASE SAVEPOINT {}", savepoint(level))).await
    }

    async fn rollback_to(&self, level: u32) -> Result<(), DbErr> {
        self.open().await?.rollback_to(level).await
    }

    fn abandon(&self, level: u32) {
        self.abandoned.add(level);
    }

    async fn commit(&self) -> Result<(), DbErr> {
        self.open().await?.end("COMMIT").await?;
        self.doorbell.notify_one();
        Ok(())
    }

    async fn rollback(&self) -> Result<(), DbErr> {
        let mut open = self.open.lock().await;
        if open.held.is_none() {
            return Ok(());
        }
        open.end("ROLLBACK").await
    }

    async fn own(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let mut open = self.open().await?;
        let result = run(open.connection()?, statement).await;
        Ok(open.noticed(result)?.rows)
    }
}
