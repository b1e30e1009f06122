use std::{fmt, sync::Arc};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use sea_orm::{
    AccessMode, DbBackend, DbErr, IsolationLevel, QueryResult, RuntimeErr, Statement, TransactionOptions, Values,
};
use sea_query_sqlx::SqlxValues;
use sqlx::{
    AssertSqlSafe, Either, Executor, PgConnection, Postgres as Sqlx, Row, Transaction,
    postgres::{PgQueryResult, PgRow},
    query::Query,
};
use tokio::sync::Mutex;

use super::{
    connections::Connections, database_error, dialect::PostgresDialect, doorbell::Doorbell, hooks::Schema,
    statement::Scripts, wal,
};
use crate::{
    context::Context,
    database::{Abandoned, Executed, Rows, Session, Text, savepoint},
    error::{Error, ErrorKind, Result},
    registry::Catalog,
    sql::{self, Select, Sql},
};

/// A transaction on a connection of its own. Dropped unfinished, it is rolled back before the connection serves another.
pub(super) struct PostgresSession {
    open: Mutex<Open>,
    abandoned: Abandoned,
    capture: Capturing,
    catalog: Arc<Catalog>,
    doorbell: Arc<Doorbell>,
}

/// How a transaction's writes are recorded.
#[derive(Clone)]
pub(super) enum Capturing {
    Hooks(Arc<Schema>),
    Triggers(Arc<Scripts>),
    /// By the database's own log, where the context is told too.
    Log(Arc<Scripts>),
}

impl Capturing {
    fn is_log(&self) -> bool {
        matches!(self, Self::Log(_))
    }
}

struct Open {
    transaction: Option<Transaction<'static, Sqlx>>,
    /// What the transaction's settings say, where that is known; or what it said last to the log.
    context: Option<Context>,
    /// Set while a text runs that takes several statements: given up in the middle, it has written what is not recorded.
    unfinished: bool,
    /// Whether the connection is lent by a pooler, which knows nothing of what it was told before.
    pooled: bool,
}

impl fmt::Debug for PostgresSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PostgresSession")
    }
}

pub(super) async fn begin(
    connections: &Connections,
    options: &TransactionOptions,
) -> Result<Transaction<'static, Sqlx>, DbErr> {
    let mut sql = String::from("BEGIN");
    if let Some(level) = options.isolation_level {
        sql.push_str(match level {
            IsolationLevel::RepeatableRead => " ISOLATION LEVEL REPEATABLE READ",
            IsolationLevel::ReadCommitted => " ISOLATION LEVEL READ COMMITTED",
            IsolationLevel::ReadUncommitted => " ISOLATION LEVEL READ UNCOMMITTED",
            IsolationLevel::Serializable => " ISOLATION LEVEL SERIALIZABLE",
        });
    }
    if let Some(AccessMode::ReadOnly) = options.access_mode {
        sql.push_str(" READ ONLY");
    }
    Ok(connections.begin(sql).await?)
}

/// What a connection answered.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) result: PgQueryResult,
    pub(super) rows: Vec<PgRow>,
}

impl Answer {
    pub(super) fn extend(&mut self, other: Self) {
        self.result.extend([other.result]);
        self.rows.extend(other.rows);
    }
}

impl From<Answer> for Executed {
    fn from(answer: Answer) -> Self {
        Self { result: answer.result.into(), rows: answer.rows.into_iter().map(QueryResult::from).collect() }
    }
}

/// How to run a statement: whether its rows are wanted, and whether it is kept prepared.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    pub(super) rows: bool,
    pub(super) prepared: bool,
}

/// A statement of SeaORM's as one of sqlx's, kept prepared or not.
pub(super) fn query(sql: &str, values: Option<Values>, prepared: bool) -> Query<'_, Sqlx, SqlxValues> {
    let values = values.unwrap_or_else(|| Values(Vec::new()));
    sqlx::query_with(AssertSqlSafe(sql), SqlxValues(values)).persistent(prepared)
}

/// Runs one statement.
pub(super) async fn run(conn: &mut PgConnection, sql: &str, values: Values, how: How) -> Result<Answer, DbErr> {
    let query = query(sql, Some(values), how.prepared);
    let mut steps = conn.fetch_many(query);
    let mut answer = Answer::default();
    while let Some(step) = steps.try_next().await.map_err(exec_error)? {
        match step {
            Either::Left(done) => answer.result.extend([done]),
            Either::Right(row) if how.rows => answer.rows.push(row),
            Either::Right(_) => {}
        }
    }
    Ok(answer)
}

/// Runs a text as it came.
pub(super) async fn run_as_it_is(
    conn: &mut PgConnection,
    statement: Statement,
    text: Text,
    named: bool,
) -> Result<Answer, DbErr> {
    if text == Text::Many {
        return run_raw(conn, &statement.sql).await;
    }
    let values = statement.values.unwrap_or_else(|| Values(Vec::new()));
    run(conn, &statement.sql, values, How { rows: true, prepared: named }).await
}

/// Runs a text of any number of statements that take no values.
pub(super) async fn run_raw(conn: &mut PgConnection, sql: &str) -> Result<Answer, DbErr> {
    let result = conn.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.map_err(exec_error)?;
    Ok(Answer { result, rows: Vec::new() })
}

pub(super) fn exec_error(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(Arc::new(error)))
}

impl Open {
    fn connection(&mut self) -> Result<&mut PgConnection, DbErr> {
        match &mut self.transaction {
            Some(transaction) => Ok(transaction),
            None => Err(Error::new(ErrorKind::Database, "the transaction has ended").into()),
        }
    }

    async fn control(&mut self, sql: String) -> Result<(), DbErr> {
        self.connection()?.execute(AssertSqlSafe(sql)).await.map_err(exec_error)?;
        Ok(())
    }

    async fn rollback_to(&mut self, level: u32) -> Result<(), DbErr> {
        // Settings are rolled back too, and so is what was told to the log.
        self.context = None;
        self.control(format!("ROLLBACK TO SAVEPOINT {}", savepoint(level))).await?;
        // No savepoint is made within a text.
        self.unfinished = false;
        Ok(())
    }

    async fn release(&mut self, level: u32) -> Result<(), DbErr> {
        self.control(format!("RELEASE SAVEPOINT {}", savepoint(level))).await
    }

    /// Tells the triggers, or the log, in whose name the next statement writes.
    async fn set_context(&mut self, context: &Context, into_log: bool) -> Result<(), DbErr> {
        if self.context.as_ref() == Some(context) {
            return Ok(());
        }
        if into_log {
            wal::tell_context(self.connection()?, context).await.map_err(exec_error)?;
            self.context = Some(context.clone());
            return Ok(());
        }
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let sql = "SELECT set_config('tidewire.actor', $1, true), set_config('tidewire.origin', $2, true), \
                   set_config('tidewire.mutation_id', $3, true)";
        sqlx::query(sql)
            .persistent(!self.pooled)
            .bind(context.actor.as_str())
            .bind(text(context.origin.as_ref().map(|origin| origin.as_str())))
            .bind(text(context.mutation_id.as_ref().map(|id| id.as_str())))
            .execute(self.connection()?)
            .await
            .map_err(exec_error)?;
        self.context = Some(context.clone());
        Ok(())
    }
}

impl PostgresSession {
    pub(super) fn new(
        transaction: Transaction<'static, Sqlx>,
        capture: Capturing,
        catalog: Arc<Catalog>,
        doorbell: Arc<Doorbell>,
        pooled: bool,
    ) -> Self {
        let open = Open { transaction: Some(transaction), context: None, unfinished: false, pooled };
        Self { open: Mutex::new(open), abandoned: Abandoned::default(), capture, catalog, doorbell }
    }

    /// Tells triggers, or the log, in whose name is written. Hooks say it with each write.
    pub(super) async fn set_context(&self, context: &Context) -> Result<(), DbErr> {
        if let Capturing::Hooks(_) = self.capture {
            return Ok(());
        }
        let mut open = self.open.lock().await;
        // A new transaction has what the connection was told when it was opened.
        if *context == Context::default() && !open.pooled {
            open.context = Some(context.clone());
            return Ok(());
        }
        open.set_context(context, self.capture.is_log()).await
    }

    async fn open(&self) -> Result<tokio::sync::MutexGuard<'_, Open>, DbErr> {
        let open = self.back().await?;
        if open.unfinished {
            let problem = "a statement of the transaction was given up in the middle. Roll it back";
            return Err(Error::new(ErrorKind::Aborted, problem).into());
        }
        Ok(open)
    }

    /// The transaction without what was abandoned in it.
    async fn back(&self) -> Result<tokio::sync::MutexGuard<'_, Open>, DbErr> {
        let mut open = self.open.lock().await;
        open.connection()?;
        if let Some(level) = self.abandoned.level() {
            open.rollback_to(level).await?;
            // Not before: whoever waits for the answer may be gone by then.
            self.abandoned.rolled_back(level);
            open.release(level).await?;
        }
        Ok(open)
    }
}

#[async_trait]
impl Session for PostgresSession {
    async fn execute(&self, statement: Statement, text: Text, context: &Context) -> Result<Executed, DbErr> {
        match &self.capture {
            Capturing::Hooks(schema) => {
                let program = schema.program(&statement.sql)?;
                let mut open = self.open().await?;
                let named = !open.pooled;
                open.unfinished = program.as_ref().is_some_and(|program| program.needs_transaction(text));
                let run = schema.run(open.connection()?, program.as_deref(), statement, text, context, named);
                let answer = run.await;
                open.unfinished = false;
                Ok(answer?.into())
            }
            Capturing::Triggers(scripts) | Capturing::Log(scripts) => {
                let writes = scripts.writes(&statement.sql)?;
                let mut open = self.open().await?;
                if writes {
                    open.set_context(context, self.capture.is_log()).await?;
                }
                let named = !open.pooled;
                Ok(run_as_it_is(open.connection()?, statement, text, named).await?.into())
            }
        }
    }

    async fn stream<'a>(&'a self, statement: Statement, context: &'a Context) -> Result<Rows<'a>, DbErr> {
        // The connection is one, so the rows are read whole before anything else can run on it.
        let executed = self.execute(statement, Text::One, context).await?;
        Ok(futures_util::stream::iter(executed.rows.into_iter().map(Ok)).boxed())
    }

    async fn fetch(&self, select: &Select) -> Result<String> {
        let mut sql = Sql::default();
        sql.push("SELECT (");
        sql::write(&PostgresDialect, &self.catalog, select, &mut sql);
        sql.push(")::text");
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql.text, sql.values);
        let mut open = self.open().await?;
        let row = query(&statement.sql, statement.values, !open.pooled)
            .fetch_one(open.connection()?)
            .await
            .map_err(database_error)?;
        row.try_get(0).map_err(database_error)
    }

    async fn savepoint(&self, level: u32) -> Result<(), DbErr> {
        self.open().await?.control(format!("SAVEPOINT {}", savepoint(level))).await
    }

    async fn release(&self, level: u32) -> Result<(), DbErr> {
        self.open().await?.release(level).await
    }

    async fn rollback_to(&self, level: u32) -> Result<(), DbErr> {
        let mut open = self.back().await?;
        open.rollback_to(level).await?;
        open.release(level).await
    }

    fn abandon(&self, level: u32) {
        self.abandoned.add(level);
    }

    async fn commit(&self) -> Result<(), DbErr> {
        let transaction = self.open().await?.transaction.take();
        if let Some(transaction) = transaction {
            transaction.commit().await.map_err(exec_error)?;
            self.doorbell.ring();
        }
        Ok(())
    }

    async fn rollback(&self) -> Result<(), DbErr> {
        let transaction = self.open.lock().await.transaction.take();
        match transaction {
            Some(transaction) => transaction.rollback().await.map_err(exec_error),
            None => Ok(()),
        }
    }

    async fn own(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let mut open = self.open().await?;
        let named = !open.pooled;
        let answer = run_as_it_is(open.connection()?, statement, Text::One, named).await?;
        Ok(Executed::from(answer).rows)
    }
}
