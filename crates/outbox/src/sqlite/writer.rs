//! The one connection of this process that writes.
//!
//! SQLite has one writer at a time. Writers of one process queue here, first come first served, where SQLite itself would let them
//! sleep and try again; writers of other processes are waited for by SQLite's busy timeout.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use sea_orm::{DbErr, RuntimeErr, Statement, sea_query::Value};
use sea_query_sqlx::SqlxValues;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection as _, Either, Executor, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteQueryResult, SqliteRow},
};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{coalesce, others, schema, triggers};
use crate::{
    capture::Capture,
    context::Context,
    cursor::Epoch,
    error::{Error, ErrorKind, Result},
    registry::Catalog,
};

/// How long a writer waits for its turn within this process before it gives up.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the writing connection looks whether the schema is still the one that it knows.
const COMPARE_SCHEMA: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Writer {
    connection: Arc<Mutex<Option<Connection>>>,
    options: SqliteConnectOptions,
    catalog: Arc<Catalog>,
}

/// The writing connection, held by one writer at a time.
#[derive(Debug)]
pub(super) struct Connection {
    sqlite: SqliteConnection,
    /// Set while a transaction may be open, so that whoever comes next ends one that was abandoned.
    open: bool,
    /// What the context table holds for the running transaction.
    context: Option<Context>,
    has_triggers: bool,
    capture: Capture,
    catalog: Arc<Catalog>,
    /// SQLite's number for the schema that was looked at, and when it was last compared.
    schema: i64,
    compared: Instant,
}

/// The right to write, until dropped. A transaction that is still open then is rolled back at once, so that it does not keep other
/// processes waiting.
pub(super) struct Turn(Option<OwnedMutexGuard<Option<Connection>>>);

/// What a text's own statements gave.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) result: SqliteQueryResult,
    pub(super) rows: Vec<SqliteRow>,
}

/// A batch that failed, with what its statements gave before that.
struct Failed {
    outcome: Outcome,
    error: DbErr,
}

impl Writer {
    pub(super) fn new(options: SqliteConnectOptions, catalog: Arc<Catalog>) -> Self {
        Self { connection: Arc::default(), options, catalog }
    }

    /// Waits for the right to write. The first to come opens the connection and puts the triggers in place.
    pub(super) async fn turn(&self) -> Result<Turn> {
        let lock = tokio::time::timeout(TURN_TIMEOUT, Arc::clone(&self.connection).lock_owned());
        let mut guard = lock.await.map_err(|_| {
            Error::new(
                ErrorKind::Busy,
                format!(
                    "waited {} s for another write of this process to end. Is a transaction open in the same task?",
                    TURN_TIMEOUT.as_secs()
                ),
            )
        })?;
        if let Some(connection) = &mut *guard {
            connection.recover().await?;
            if connection.has_outlived_schema().await? {
                *guard = None;
            }
        }
        if guard.is_none() {
            *guard = Some(Connection::open(&self.options, Arc::clone(&self.catalog)).await?);
        }
        Ok(Turn(Some(guard)))
    }

    /// Ends the connection. A later writer opens it anew.
    pub(super) async fn close(&self) {
        if let Some(connection) = self.connection.lock().await.take() {
            let _ = connection.sqlite.close().await;
        }
    }
}

impl Turn {
    pub(super) fn connection(&mut self) -> &mut Connection {
        self.0.as_mut().and_then(|guard| guard.as_mut()).expect("a turn holds an open connection")
    }
}

impl Turn {
    /// Ends the connection; the next turn opens another, which looks at the schema anew.
    pub(super) fn reopen(mut self) {
        if let Some(guard) = &mut self.0 {
            **guard = None;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(mut guard) = self.0.take() else { return };
        let open = guard.as_ref().is_some_and(|connection| connection.open);
        // Without a runtime the next turn does it.
        if open && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Some(connection) = guard.as_mut()
                    && let Err(error) = connection.rollback().await
                {
                    tracing::warn!(%error, "an abandoned transaction could not be rolled back; the next write tries again");
                }
            });
        }
    }
}

impl Connection {
    async fn open(options: &SqliteConnectOptions, catalog: Arc<Catalog>) -> Result<Self> {
        let mut sqlite = options.connect().await.map_err(super::database_error)?;
        let found = schema::inspect(&mut sqlite, &catalog).await?;
        let mut setup = String::from(triggers::CONTEXT_TABLE);
        // With recursive triggers a REPLACE fires delete triggers. Triggers of the application's own may not be made for recursion.
        setup.push_str(if found.has_triggers {
            "PRAGMA recursive_triggers = OFF;"
        } else {
            "PRAGMA recursive_triggers = ON;"
        });
        for entity in catalog.entities() {
            setup.push_str(&triggers::triggers(entity));
        }
        sqlite.execute(AssertSqlSafe(setup)).await.map_err(super::database_error)?;
        begin_epoch(&mut sqlite).await?;
        let schema = schema_version(&mut sqlite).await.map_err(super::database_error)?;
        Ok(Self {
            sqlite,
            open: false,
            context: None,
            has_triggers: found.has_triggers,
            capture: found.capture,
            catalog,
            schema,
            compared: Instant::now(),
        })
    }

    /// Whether someone has changed the schema since this connection looked at it: there may be triggers now.
    async fn has_outlived_schema(&mut self) -> Result<bool, DbErr> {
        if self.compared.elapsed() < COMPARE_SCHEMA {
            return Ok(false);
        }
        self.compared = Instant::now();
        Ok(schema_version(&mut self.sqlite).await.map_err(exec_error)? != self.schema)
    }

    /// How the database is captured.
    pub(super) fn capture(&self) -> Capture {
        self.capture
    }

    /// The connection for a look at the schema or a change of it.
    pub(super) fn sqlite(&mut self) -> &mut SqliteConnection {
        &mut self.sqlite
    }

    /// Whether the application has triggers that concern synced tables.
    pub(super) fn has_triggers(&self) -> bool {
        self.has_triggers
    }

    /// Whether the triggers see the rows that `REPLACE` removes.
    pub(super) fn replace_is_seen(&self) -> bool {
        !self.has_triggers
    }

    /// Rolls back what an abandoned writer left open.
    async fn recover(&mut self) -> Result<(), DbErr> {
        if self.open {
            self.rollback().await?;
        }
        Ok(())
    }

    /// Runs a text of so many statements in a transaction of its own: one message to SQLite, as a plain statement is.
    pub(super) async fn autocommit(
        &mut self,
        statement: Statement,
        statements: usize,
        context: &Context,
    ) -> Result<Outcome, DbErr> {
        self.open = true;
        let mut batch = Batch::new(statement);
        self.open_with(&mut batch, context);
        batch.own(statements);
        let release = if self.capture == Capture::Triggers { &[others::RELEASE, "COMMIT"][..] } else { &["COMMIT"] };
        match self.run(batch, release).await {
            Ok(outcome) => {
                self.open = false;
                Ok(outcome)
            }
            Err(error) => {
                self.rollback().await?;
                Err(error)
            }
        }
    }

    fn open_with(&self, batch: &mut Batch, context: &Context) {
        batch.before("BEGIN IMMEDIATE");
        if self.capture == Capture::Triggers {
            batch.before(others::HOLD);
        }
        batch.set_context(context, true);
    }

    /// Opens a transaction.
    pub(super) async fn begin(&mut self, context: &Context) -> Result<(), DbErr> {
        self.open = true;
        let mut batch = Batch::new(Statement::from_string(sea_orm::DbBackend::Sqlite, ""));
        self.open_with(&mut batch, context);
        if let Err(Failed { error, .. }) = batch.run(&mut self.sqlite).await {
            self.rollback().await?;
            return Err(error);
        }
        self.context = Some(context.clone());
        Ok(())
    }

    /// Runs a text of so many statements inside the open transaction.
    pub(super) async fn write(
        &mut self,
        statement: Statement,
        statements: usize,
        context: &Context,
    ) -> Result<Outcome, DbErr> {
        let mut batch = Batch::new(statement);
        // With triggers about, each statement notes where it began, so that its steps can be told from earlier ones.
        if self.has_triggers || self.context.as_ref() != Some(context) {
            self.context = None;
            batch.set_context(context, false);
        }
        batch.own(statements);
        match self.run(batch, &[]).await {
            Ok(outcome) => {
                self.context = Some(context.clone());
                Ok(outcome)
            }
            Err(error) => {
                self.context = None;
                self.notice_end().await?;
                Err(error)
            }
        }
    }

    /// Runs a batch with the caller's statements, then what makes one change of each row, then what else is to follow.
    async fn run(&mut self, mut batch: Batch, then: &[&str]) -> Result<Outcome, DbErr> {
        let coalesce = if self.has_triggers { coalesce::STATEMENTS } else { &[] };
        let after = || coalesce.iter().chain(then);
        after().for_each(|sql| batch.after(sql));
        match batch.run(&mut self.sqlite).await {
            Ok(outcome) => Ok(outcome),
            Err(Failed { outcome, error }) if coalesce::is_unordered(&error) => {
                coalesce::settle(&mut self.sqlite, &self.catalog).await?;
                for sql in after() {
                    self.control((*sql).to_owned()).await?;
                }
                Ok(outcome)
            }
            Err(Failed { error, .. }) => Err(error),
        }
    }

    /// Runs a statement that only reads, or that writes Tidewire's own tables.
    pub(super) async fn read(&mut self, statement: Statement) -> Result<Vec<SqliteRow>, DbErr> {
        let values = statement.values.unwrap_or_else(|| sea_orm::sea_query::Values(Vec::new()));
        self.sqlite
            .fetch_all(sqlx::query_with(AssertSqlSafe(statement.sql), SqlxValues(values)))
            .await
            .map_err(exec_error)
    }

    /// Runs statements of ours in a transaction of their own; answers how many rows the last one touched.
    pub(super) async fn maintain(&mut self, sql: &str) -> Result<u64, DbErr> {
        self.open = true;
        let mut run = async || {
            self.control("BEGIN IMMEDIATE".into()).await?;
            let mut touched = 0;
            let mut steps = self.sqlite.fetch_many(AssertSqlSafe(sql.to_owned()));
            while let Some(step) = steps.try_next().await.map_err(exec_error)? {
                if let Either::Left(result) = step {
                    touched = result.rows_affected();
                }
            }
            drop(steps);
            self.commit().await?;
            Ok(touched)
        };
        let done = run().await;
        if done.is_err() {
            self.rollback().await?;
        }
        done
    }

    /// Ends the transaction and keeps its changes.
    pub(super) async fn commit(&mut self) -> Result<(), DbErr> {
        if self.capture == Capture::Triggers {
            self.control(others::RELEASE.to_owned()).await?;
        }
        self.control("COMMIT".into()).await?;
        self.open = false;
        Ok(())
    }

    /// Ends the transaction, if one is open, without its changes.
    pub(super) async fn rollback(&mut self) -> Result<(), DbErr> {
        self.context = None;
        // SQLite ends a transaction by itself after some errors (a full disk); then there is nothing left to roll back.
        match self.control("ROLLBACK".into()).await {
            Err(DbErr::Exec(RuntimeErr::SqlxError(error)))
                if error.to_string().contains("no transaction is active") => {}
            other => other?,
        }
        self.open = false;
        Ok(())
    }

    /// Whether SQLite has ended the transaction by itself, as it does when a disk is full or a table's constraint says ROLLBACK. What
    /// came next would be a transaction of its own each.
    async fn notice_end(&mut self) -> Result<(), DbErr> {
        // BEGIN fails where a transaction is open; there is no other way to ask.
        if self.sqlite.execute("BEGIN").await.is_ok() {
            self.rollback().await?;
        }
        Ok(())
    }

    /// Whether a transaction is open.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Rolls back to a savepoint and ends it.
    pub(super) async fn rollback_to(&mut self, savepoint: &str) -> Result<(), DbErr> {
        // The context table is rolled back too.
        self.context = None;
        self.control(format!("ROLLBACK TO {savepoint}; RELEASE {savepoint}")).await
    }

    /// Runs a statement that steers the transaction.
    pub(super) async fn control(&mut self, sql: String) -> Result<(), DbErr> {
        self.sqlite.execute(AssertSqlSafe(sql)).await.map_err(exec_error)?;
        Ok(())
    }
}

/// Statements that go to SQLite as one message, with one list of values.
struct Batch {
    text: String,
    own: String,
    values: Vec<Value>,
    /// How many statements stand before the caller's own.
    before: usize,
    /// How many are the caller's.
    owned: usize,
    /// How many there are in all.
    statements: usize,
}

impl Batch {
    fn new(statement: Statement) -> Self {
        Self {
            text: String::new(),
            own: statement.sql,
            values: statement.values.map_or_else(Vec::new, |values| values.0),
            before: 0,
            owned: 0,
            statements: 0,
        }
    }

    fn before(&mut self, sql: &str) {
        self.text.push_str(sql);
        self.text.push(';');
        self.before += 1;
        self.statements += 1;
    }

    /// Tells the triggers the context. The values stand behind the caller's and are named by number, so the caller's placeholders keep
    /// their places.
    fn set_context(&mut self, context: &Context, begins: bool) {
        let first = self.values.len() + 1;
        let begin = if begins {
            "tx = coalesce((SELECT seq + 1 FROM sqlite_sequence WHERE name = 'tidewire_outbox'), 1), \
             at = CAST(unixepoch('subsec') * 1000 AS INTEGER), "
        } else {
            ""
        };
        self.before(&format!(
            "UPDATE tidewire_context SET {begin}since = coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'tidewire_outbox'), 0), \
             actor = ${}, origin = ${}, mutation_id = ${}",
            first,
            first + 1,
            first + 2
        ));
        self.values.push(Value::String(Some(context.actor.as_str().to_owned())));
        self.values.push(Value::String(context.origin.as_ref().map(|origin| origin.as_str().to_owned())));
        self.values.push(Value::String(context.mutation_id.as_ref().map(|id| id.as_str().to_owned())));
    }

    fn own(&mut self, statements: usize) {
        let own = std::mem::take(&mut self.own);
        self.text.push_str(&own);
        // A new line, in case the caller's text ends in a comment.
        self.text.push_str("\n;");
        self.owned = statements;
        self.statements += statements;
    }

    fn after(&mut self, sql: &str) {
        self.text.push_str(sql);
        self.text.push(';');
        self.statements += 1;
    }

    async fn run(self, sqlite: &mut SqliteConnection) -> Result<Outcome, Failed> {
        let values = SqlxValues(sea_orm::sea_query::Values(self.values));
        let mut steps = sqlite.fetch_many(sqlx::query_with(AssertSqlSafe(self.text), values));
        let mut outcome = Outcome::default();
        let mut index = 0;
        loop {
            let step = match impatiently(steps.try_next()).await {
                Ok(Some(step)) => step,
                Ok(None) => break,
                Err(error) => return Err(Failed { outcome, error: exec_error(error) }),
            };
            let own = (self.before..self.before + self.owned).contains(&index);
            match step {
                Either::Left(result) => {
                    if own {
                        outcome.result.extend([result]);
                    }
                    index += 1;
                }
                Either::Right(row) if own => outcome.rows.push(row),
                Either::Right(_) => {}
            }
        }
        drop(steps);
        if index != self.statements {
            let error =
                Error::new(ErrorKind::Refused, "a text held another number of statements than was read from it");
            return Err(Failed { outcome, error: error.into() });
        }
        Ok(outcome)
    }
}

/// How long to ask SQLite's thread again before sleeping until it answers.
const IMPATIENCE: Duration = Duration::from_micros(50);

/// Waits for a future that another thread is about to make ready.
///
/// SQLite runs on a thread of its own and tells of each statement's end. Sleeping until it does costs two switches of threads, which take
/// longer than a statement: asking again for a moment, while the runtime's other tasks go on, made a write of one row three times as fast.
async fn impatiently<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut since = None;
    std::future::poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() && since.get_or_insert_with(Instant::now).elapsed() < IMPATIENCE {
            cx.waker().wake_by_ref();
        }
        polled
    })
    .await
}

async fn schema_version(sqlite: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("PRAGMA main.schema_version").fetch_one(sqlite).await
}

/// Starts a new epoch: from here on, the log is this process's history.
async fn begin_epoch(sqlite: &mut SqliteConnection) -> Result<()> {
    sqlx::query(
        "INSERT INTO tidewire_epoch (epoch, since, at) VALUES
         (?, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'tidewire_outbox'), 0), unixepoch() * 1000)",
    )
    .bind(Epoch::fresh().0.cast_signed())
    .execute(sqlite)
    .await
    .map_err(super::database_error)?;
    Ok(())
}

pub(super) fn exec_error(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(Arc::new(error)))
}
