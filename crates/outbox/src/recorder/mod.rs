//! The connection that captures.

mod transaction;

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use futures_util::{Stream, future::BoxFuture};
use sea_orm::{
    AccessMode, Condition, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, ExecResult, IsolationLevel,
    QueryResult, Statement, StreamTrait, TransactionError, TransactionOptions, TransactionSession, TransactionTrait,
};
use tokio::{sync::watch, task::JoinHandle};

pub use self::transaction::{RecorderTransaction, Remembered};
use crate::{
    capture::{Capture, LogStatus},
    context::{Actor, Context, MutationId, Origin},
    cursor::Cursor,
    database::{Database, Packed, Text},
    error::{Error, ErrorKind, Result},
    filter::Filter,
    log::Log,
    registry::{Catalog, EntityMeta, Registry},
    sql::Select,
};

/// A SeaORM connection that records what it writes.
///
/// It implements the traits that every SeaORM operation goes through, so whatever SeaORM can do, it can do, and every change of a synced
/// entity is in the outbox when the call returns: in the same transaction as the row, or neither (promises I1 and I2). A statement whose
/// changes could not be recorded is refused with an error that names its kind and table.
///
/// Cloning is cheap; clones share their connections. [`acting_as`](Self::acting_as), [`from`](Self::from) and
/// [`mutation`](Self::mutation) give a clone that writes in another's name.
///
/// ```no_run
/// # mod task { use sea_orm::entity::prelude::*;
/// # #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)] #[sea_orm(table_name = "task")]
/// # pub struct Model { #[sea_orm(primary_key)] pub id: i32, pub title: String, pub done: bool }
/// # #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)] pub enum Relation {}
/// # impl ActiveModelBehavior for ActiveModel {} }
/// use sea_orm::{ActiveModelTrait, EntityTrait, Set, sea_query::Expr};
/// use tidewire_outbox::{Actor, Recorder, Registry};
///
/// # async fn example() -> Result<(), sea_orm::DbErr> {
/// let registry = Registry::new().entity::<task::Entity>();
/// let db = Recorder::connect("sqlite://tasks.db?mode=rwc", registry).await?.acting_as(Actor::service("billing"));
/// task::ActiveModel { title: Set("buy milk".into()), done: Set(false), ..Default::default() }.insert(&db).await?;
/// task::Entity::update_many().col_expr(task::Column::Done, Expr::value(true)).exec(&db).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Recorder {
    database: Arc<dyn Database>,
    catalog: Arc<Catalog>,
    log: Log,
    context: Context,
    /// As the options want it.
    capture: Option<Capture>,
    capturing: Arc<Capturing>,
}

/// The task that reads the database's own log. It ends with the last clone of its recorder.
#[derive(Debug, Default)]
struct Capturing(Mutex<Option<(watch::Sender<bool>, JoinHandle<()>)>>);

/// How many connections read at once, unless [`RecorderOptions::max_readers`] says otherwise.
const DEFAULT_MAX_READERS: u32 = 8;

/// How to open a [`Recorder`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RecorderOptions {
    /// How many connections read at once. On SQLite one more writes. Default 8.
    pub max_readers: u32,
    /// How changes are captured. [`Recorder::check`] and the first write fail where the database says otherwise. Default: as the database
    /// says, which is by hooks until [`Recorder::install_capture`] has put something else in place.
    pub capture: Option<Capture>,
    /// The database's own address, where the URL leads to a pooler that lends connections for a transaction (PgBouncer's
    /// `pool_mode = transaction`). Doorbells of other processes are heard over it. Only PostgreSQL has a use for it. Default none.
    pub direct_url: Option<String>,
    /// Under capture by the database's own log: how much of it the database may keep for us before that is given up, in bytes; `None` for no
    /// limit. Then all who follow start over. Only PostgreSQL keeps any for us. Default 16 GiB.
    pub max_kept_log: Option<u64>,
    /// How the log is followed.
    pub log: crate::LogOptions,
}

impl Default for RecorderOptions {
    fn default() -> Self {
        Self {
            max_readers: DEFAULT_MAX_READERS,
            capture: None,
            direct_url: None,
            max_kept_log: Some(16 << 30),
            log: crate::LogOptions::default(),
        }
    }
}

impl Recorder {
    /// Opens a database by its URL.
    ///
    /// A SQLite file is put into WAL mode. `sqlite::memory:` gives a private database in a temporary file that is removed with the last
    /// clone.
    ///
    /// # Errors
    /// [`ErrorKind::Registry`] for entities that cannot be synced, [`ErrorKind::Setup`] for a URL of no supported database,
    /// [`ErrorKind::Database`] where it cannot be reached. Whether the tables are there is known with the first write, or by
    /// [`check`](Self::check): so migrations can run over [`unrecorded`](Self::unrecorded) first.
    pub async fn connect(url: &str, registry: Registry) -> Result<Self> {
        Self::connect_with(url, registry, RecorderOptions::default()).await
    }

    /// As [`connect`](Self::connect), with options.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_with(url: &str, registry: Registry, options: RecorderOptions) -> Result<Self> {
        let catalog = registry.catalog()?;
        choose_cryptography();
        if url.starts_with("sqlite:") {
            #[cfg(feature = "relay-nats")]
            if options.log.relay.is_some() {
                let problem = "a relay is for processes on several machines, which SQLite has none of; leave it out";
                return Err(Error::new(ErrorKind::Setup, problem));
            }
            let database = crate::sqlite::Sqlite::connect(url, &options, Arc::clone(&catalog)).await?;
            return Ok(Self::assemble(Arc::new(database), catalog, options));
        }
        if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            let database = crate::postgres::Postgres::connect(url, &options, Arc::clone(&catalog)).await?;
            return Ok(Self::assemble(Arc::new(database), catalog, options));
        }
        if let Some(rest) = url.strip_prefix("mysql:").or_else(|| url.strip_prefix("mariadb:")) {
            let url = format!("mysql:{rest}");
            let database = crate::mysql::Mysql::connect(&url, &options, Arc::clone(&catalog)).await?;
            return Ok(Self::assemble(Arc::new(database), catalog, options));
        }
        Err(Error::new(
            ErrorKind::Setup,
            "the database URL must start with `sqlite:`, `postgres:`, `mysql:` or `mariadb:`; other databases are not supported yet",
        ))
    }

    /// Records over a connection that the caller has opened. On SQLite it writes on one more connection, opened with the same options;
    /// on MariaDB it opens connections of its own with them.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn new(connection: &DatabaseConnection, registry: Registry) -> Result<Self> {
        let catalog = registry.catalog()?;
        choose_cryptography();
        let database: Arc<dyn Database> = match connection.get_database_backend() {
            DbBackend::Sqlite => {
                let pool = connection.get_sqlite_connection_pool();
                Arc::new(crate::sqlite::Sqlite::with_pool(pool, Arc::clone(&catalog))?)
            }
            DbBackend::Postgres => {
                let (pool, options) = (connection.get_postgres_connection_pool(), RecorderOptions::default());
                Arc::new(crate::postgres::Postgres::with_pool(pool, &options, Arc::clone(&catalog)))
            }
            DbBackend::MySql => {
                let options = RecorderOptions::default();
                Arc::new(crate::mysql::Mysql::with_connection(connection, &options, Arc::clone(&catalog)))
            }
            other => {
                let problem = format!("{} is not supported yet; SQLite, PostgreSQL and MariaDB are", other.as_str());
                return Err(Error::new(ErrorKind::Setup, problem));
            }
        };
        Ok(Self::assemble(database, catalog, RecorderOptions::default()))
    }

    fn assemble(database: Arc<dyn Database>, catalog: Arc<Catalog>, options: RecorderOptions) -> Self {
        let log = Log::new(Arc::clone(&database), Arc::clone(&catalog), options.log);
        let capturing = Arc::default();
        Self { database, catalog, log, context: Context::default(), capture: options.capture, capturing }
    }

    /// The same connection, writing in this actor's name.
    #[must_use]
    pub fn acting_as(mut self, actor: Actor) -> Self {
        self.context.actor = actor;
        self
    }

    /// The same connection, writing what this replica already has.
    #[must_use]
    pub fn from(mut self, origin: Origin) -> Self {
        self.context.origin = Some(origin);
        self
    }

    /// The same connection, writing for this mutation of a client's.
    #[must_use]
    pub fn mutation(mut self, id: MutationId) -> Self {
        self.context.mutation_id = Some(id);
        self
    }

    /// The plain connection. What it writes is not recorded, and nobody who follows the log will know of it: for migrations, and for
    /// statements that the recorder refuses and that change no synced row.
    ///
    /// On PostgreSQL it has connections of its own, so what is set there (`SET search_path`) is set for nothing else; but not where the recorder was made
    /// of the caller's pool, or the only way leads through a pooler.
    pub fn unrecorded(&self) -> &DatabaseConnection {
        self.database.connection()
    }

    /// The changes that this database has recorded, from all its recorders.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The entities that are recorded.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Answers selects as JSON, all from one snapshot, one text per select. [`packed`](Self::packed) reads what is in it.
    ///
    /// # Errors
    /// [`ErrorKind::Database`] and [`ErrorKind::Busy`] as they come.
    pub async fn fetch(&self, selects: &[Select]) -> Result<Vec<String>> {
        Ok(self.database.fetch(selects, false).await?.parts)
    }

    /// As [`fetch`](Self::fetch), with the cursor of the snapshot: following the log after it continues these rows exactly.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub async fn fetch_at(&self, selects: &[Select]) -> Result<(Vec<String>, Cursor)> {
        let fetched = self.database.fetch(selects, true).await?;
        let cursor = fetched.cursor.expect("a fetch with a cursor gives one");
        Ok((fetched.parts, cursor))
    }

    /// Reads the cells in what [`fetch`](Self::fetch) answers.
    pub fn packed(&self) -> &'static dyn Packed {
        self.database.packed()
    }

    /// Writes a filter as a SeaQuery condition on the rows of an entity's own table, for SeaORM queries on this connection.
    ///
    /// # Errors
    /// [`ErrorKind::Filter`] for a filter that nests too deeply.
    pub fn condition(&self, entity: &EntityMeta, filter: &Filter) -> Result<Condition> {
        filter.check_depth()?;
        Ok(crate::sql::condition(self.database.dialect(), entity, filter))
    }

    /// Makes sure that writes can be recorded: connects, and looks for tables and columns.
    ///
    /// # Errors
    /// [`ErrorKind::Setup`] naming what is missing or cannot be captured; [`ErrorKind::Busy`] and [`ErrorKind::Database`] as they come.
    pub async fn check(&self) -> Result<()> {
        self.database.check().await
    }

    /// How the database is captured.
    ///
    /// # Errors
    /// [`ErrorKind::Setup`] where it has no outbox; [`ErrorKind::Database`] as it comes.
    pub async fn capture(&self) -> Result<Capture> {
        self.database.capture().await
    }

    /// Puts in place what capture needs in the database itself, or brings it up to date, for the capture of the options or else the one that
    /// the database has. Call it after migrations.
    ///
    /// # Errors
    /// [`ErrorKind::Setup`] where this database cannot be captured in that way; [`ErrorKind::Database`] where a table is missing, or the user
    /// may not do what it takes.
    pub async fn install_capture(&self) -> Result<()> {
        let capture = match self.capture {
            Some(capture) => capture,
            None => self.database.capture().await?,
        };
        self.change_capture(capture).await
    }

    /// Removes what [`install_capture`](Self::install_capture) put in place. The database is captured by hooks from then on, which need
    /// nothing in it: what other programs write is not recorded any more.
    ///
    /// # Errors
    /// As [`install_capture`](Self::install_capture).
    pub async fn remove_capture(&self) -> Result<()> {
        self.change_capture(Capture::Hooks).await
    }

    async fn change_capture(&self, capture: Capture) -> Result<()> {
        if capture != Capture::Log {
            // What the database's own log has yet to tell is read before that is given up.
            self.start_capture().await?;
        }
        self.database.install_capture(capture).await
    }

    /// Takes part in reading the database's own log where that is what is captured, and does nothing where it is not: one process at a time
    /// reads it, by a lease, and the others stand by. Call it in long-lived programs; at least one must run, or nothing is recorded until one
    /// does. It goes on in the background until [`close`](Self::close), or until the last clone of this recorder is dropped.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub async fn start_capture(&self) -> Result<()> {
        if self.database.capture().await? != Capture::Log {
            return Ok(());
        }
        let mut running = self.capturing.0.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_ref().is_none_or(|(_, task)| task.is_finished()) {
            let (stop, stopped) = watch::channel(false);
            *running = Some((stop, tokio::spawn(Arc::clone(&self.database).run_capture(stopped))));
        }
        Ok(())
    }

    /// How far the database's own log has been read; `None` where it is captured in another way.
    ///
    /// # Errors
    /// As [`capture`](Self::capture).
    pub async fn log_status(&self) -> Result<Option<LogStatus>> {
        self.database.log_status().await
    }

    pub(crate) fn database(&self) -> &Arc<dyn Database> {
        &self.database
    }

    /// Closes the connections once what is running on them has ended.
    pub async fn close(&self) {
        self.log.stop().await;
        let running = self.capturing.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, task)) = running {
            let _ = stop.send(true);
            let _ = task.await;
        }
        self.database.close().await;
    }
}

#[async_trait]
impl ConnectionTrait for Recorder {
    fn get_database_backend(&self) -> DbBackend {
        self.database.dialect().backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        Ok(self.database.execute(statement, Text::One, &self.context).await?.result)
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let statement = Statement::from_string(self.database.dialect().backend(), sql);
        Ok(self.database.execute(statement, Text::Many, &self.context).await?.result)
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        Ok(self.database.execute(statement, Text::One, &self.context).await?.rows.into_iter().next())
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        Ok(self.database.execute(statement, Text::One, &self.context).await?.rows)
    }
}

impl StreamTrait for Recorder {
    type Stream<'a> = Pin<Box<dyn Stream<Item = Result<QueryResult, DbErr>> + Send + 'a>>;

    fn get_database_backend(&self) -> DbBackend {
        ConnectionTrait::get_database_backend(self)
    }

    fn stream_raw<'a>(&'a self, statement: Statement) -> BoxFuture<'a, Result<Self::Stream<'a>, DbErr>> {
        Box::pin(async move { Ok(self.database.stream(statement, &self.context).await? as _) })
    }
}

#[async_trait]
impl TransactionTrait for Recorder {
    type Transaction = RecorderTransaction;

    async fn begin(&self) -> Result<RecorderTransaction, DbErr> {
        self.begin_with_options(TransactionOptions::default()).await
    }

    async fn begin_with_config(
        &self,
        isolation_level: Option<IsolationLevel>,
        access_mode: Option<AccessMode>,
    ) -> Result<RecorderTransaction, DbErr> {
        self.begin_with_options(TransactionOptions { isolation_level, access_mode, sqlite_transaction_mode: None })
            .await
    }

    async fn begin_with_options(&self, options: TransactionOptions) -> Result<RecorderTransaction, DbErr> {
        let session = self.database.begin(&self.context, options).await?;
        Ok(RecorderTransaction::outermost(session, self.database.dialect().backend(), self.context.clone()))
    }

    async fn transaction<F, T, E>(&self, callback: F) -> Result<T, TransactionError<E>>
    where
        F: for<'c> FnOnce(&'c RecorderTransaction) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>> + Send,
        T: Send,
        E: std::fmt::Display + std::fmt::Debug + Send,
    {
        run(self.begin().await?, callback).await
    }

    async fn transaction_with_config<F, T, E>(
        &self,
        callback: F,
        isolation_level: Option<IsolationLevel>,
        access_mode: Option<AccessMode>,
    ) -> Result<T, TransactionError<E>>
    where
        F: for<'c> FnOnce(&'c RecorderTransaction) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>> + Send,
        T: Send,
        E: std::fmt::Display + std::fmt::Debug + Send,
    {
        run(self.begin_with_config(isolation_level, access_mode).await?, callback).await
    }
}

/// Commits when the callback succeeds, rolls back when it does not.
async fn run<F, T, E>(transaction: RecorderTransaction, callback: F) -> Result<T, TransactionError<E>>
where
    F: for<'c> FnOnce(&'c RecorderTransaction) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>> + Send,
    T: Send,
    E: std::fmt::Display + std::fmt::Debug + Send,
{
    match callback(&transaction).await {
        Ok(value) => {
            transaction.commit().await?;
            Ok(value)
        }
        Err(error) => {
            transaction.rollback().await?;
            Err(TransactionError::Transaction(error))
        }
    }
}

/// What this crate uses brings more than one implementation of TLS's cryptography along, and rustls wants to be told which to take. This crate's is
/// ring; a program that has chosen another before keeps it.
fn choose_cryptography() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
