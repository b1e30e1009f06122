//! The connections that statements run on: opened, lent, and given up when they are no good any more.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Postgres as Sqlx, Row, SqlSafeStr, Transaction,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPool, PgPoolOptions},
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};

use super::{code, database_error, triggers};
use crate::{
    context::Context,
    error::{Error, ErrorKind, Result},
    recorder::RecorderOptions,
    registry::Catalog,
};

/// How many statements each connection keeps prepared.
const STATEMENT_CACHE: usize = 256;
/// How long a caller waits for a connection before it is told that the database is busy.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// For how long an idle connection is believed to be there.
const TRUSTED: Duration = Duration::from_millis(500);
/// How long a caller waits before it looks whether there is a database at all, and for how long the answer holds.
const DOUBT: Duration = Duration::from_secs(1);
/// How long a new connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The connections to one database.
///
/// Where a pooler lends connections for a transaction, nothing may outlive one: no setting, no prepared statement. There every statement
/// runs in a transaction, unnamed, and with the whole context of the write.
#[derive(Debug)]
pub(super) struct Connections {
    pool: PgPool,
    /// What needs a connection of its own for longer than a transaction runs on: the same, or a few that go past the pooler.
    direct_pool: PgPool,
    /// What is not the recorder's runs on. What the caller sets there must not reach the recorder's statements, so these are others; but not where the
    /// caller gave the pool, or only the way through a pooler is known.
    plain_pool: PgPool,
    /// Without a pooler in between; none where only one is known.
    direct: Option<PgConnectOptions>,
    /// Whether a pooler is in between.
    pub(super) pooled: bool,
    /// What was last found when the database was asked for, and when.
    found: Mutex<Option<Found>>,
}

/// When the database was asked for, and why there was none.
#[derive(Debug)]
struct Found {
    at: Instant,
    trouble: Option<(ErrorKind, String)>,
}

fn parse(url: &str) -> Result<PgConnectOptions> {
    let options: PgConnectOptions = url.parse().map_err(|_| {
        Error::new(
            ErrorKind::Setup,
            "the database URL is not one of PostgreSQL's: `postgres://user:password@host/database`",
        )
    })?;
    Ok(options.disable_statement_logging())
}

impl Connections {
    pub(super) async fn open(url: &str, options: &RecorderOptions, catalog: &Arc<Catalog>) -> Result<Self> {
        let mut connect = parse(url)?.statement_cache_capacity(STATEMENT_CACHE);
        let direct = options.direct_url.as_deref().map(parse).transpose()?;
        let mut pooled = direct.is_some();
        // A pool would go on trying for long; what is wrong with the first connection is said at once.
        let mut first = match connect_once(&connect).await {
            // sqlx asks for digits of floats that PostgreSQL gives anyway, and PgBouncer refuses to be asked.
            Err(error) if code(&error).as_deref() == Some("08P01") => {
                pooled = true;
                connect = connect.extra_float_digits(None);
                connect_once(&connect).await.map_err(database_error)?
            }
            first => first.map_err(database_error)?,
        };
        if !pooled {
            pooled = is_pooled(&mut first, &connect).await.map_err(database_error)?;
        }
        let _ = first.close().await;
        if pooled {
            tracing::info!("the database is reached through a pooler; statements run in transactions of their own");
        }
        let learns = pooled.then(|| Arc::clone(catalog));
        let kept = PgPoolOptions::new()
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // Snapshots and the tail take some too.
            .max_connections(options.max_readers.saturating_add(6))
            .test_before_acquire(false)
            .before_acquire(|conn, state| Box::pin(async move { Ok(still_there(conn, state.idle_for).await) }))
            .after_connect(move |conn, _| {
                let learns = learns.clone();
                Box::pin(async move {
                    match learns {
                        Some(catalog) => learn(conn, &catalog).await,
                        None => greet(conn).await,
                    }
                })
            });
        let pool = kept.clone().connect_with(connect.clone()).await.map_err(database_error)?;
        let (direct_pool, plain_pool) = match (&direct, pooled) {
            (Some(direct), true) => {
                let few = PgPoolOptions::new().acquire_timeout(ACQUIRE_TIMEOUT).max_connections(4);
                (few.clone().connect_lazy_with(direct.clone()), few.connect_lazy_with(direct.clone()))
            }
            (None, true) => (pool.clone(), pool.clone()),
            (_, false) => (pool.clone(), kept.connect_lazy_with(connect.clone())),
        };
        let direct = direct.or_else(|| (!pooled).then_some(connect));
        Ok(Self { pool, direct_pool, plain_pool, direct, pooled, found: Mutex::default() })
    }

    /// A pool that the caller has.
    pub(super) fn of(pool: &PgPool) -> Self {
        let direct = (*pool.connect_options()).clone();
        Self {
            pool: pool.clone(),
            direct_pool: pool.clone(),
            plain_pool: pool.clone(),
            direct: Some(direct),
            pooled: false,
            found: Mutex::default(),
        }
    }

    /// Connections that are whole, as the database's log needs them.
    pub(super) fn direct_pool(&self) -> &PgPool {
        &self.direct_pool
    }

    /// Connections for SeaORM's own, whole too.
    pub(super) fn plain_pool(&self) -> &PgPool {
        &self.plain_pool
    }

    /// How a connection is opened: through the pooler, if there is one.
    pub(super) fn options(&self) -> PgConnectOptions {
        (*self.pool.connect_options()).clone()
    }

    pub(super) fn direct(&self) -> Option<PgConnectOptions> {
        self.direct.clone()
    }

    /// What cannot go through a pooler.
    ///
    /// # Errors
    /// [`ErrorKind::Setup`] where no other way is known.
    pub(super) fn need_direct(&self, what: &str) -> Result<()> {
        if self.direct.is_some() {
            return Ok(());
        }
        let problem = format!("{what} cannot go through a pooler. Give the database's own address as `direct_url`");
        Err(Error::new(ErrorKind::Setup, problem))
    }

    /// Whether statements may be prepared under a name, to be run again on the same connection.
    pub(super) fn named(&self) -> bool {
        !self.pooled
    }

    /// A connection for a statement or a few.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] where none becomes free in time, and why there is no database where there is none.
    pub(super) async fn lend(&self) -> Result<Lent> {
        if self.pooled {
            return Ok(Lent::Within(self.begin("BEGIN".to_owned()).await?));
        }
        self.acquire().await.map(Lent::Whole)
    }

    async fn acquire(&self) -> Result<PoolConnection<Sqlx>> {
        tokio::select! {
            lent = self.pool.acquire() => lent.map_err(database_error),
            error = self.gone() => Err(error),
        }
    }

    /// A transaction. sqlx knows of it once `BEGIN` is answered: had the caller gone before, the connection would serve others with the transaction
    /// open. So a task sees it through, and rolls back what nobody takes.
    pub(super) async fn begin(&self, sql: String) -> Result<Transaction<'static, Sqlx>> {
        let connection = self.acquire().await?;
        let begin = tokio::spawn(Transaction::begin(connection, Some(AssertSqlSafe(sql).into_sql_str())));
        tokio::select! {
            // Only a runtime that ends stops the task.
            begun = begin => begun.unwrap_or(Err(sqlx::Error::PoolClosed)).map_err(database_error),
            error = self.gone() => Err(error),
        }
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
        self.direct_pool.close().await;
        self.plain_pool.close().await;
    }

    /// Resolves when it is known that the database cannot be reached: a pool would go on trying, and say in the end that it was busy.
    async fn gone(&self) -> Error {
        loop {
            sleep(DOUBT).await;
            let mut found = self.found.lock().await;
            if found.as_ref().is_none_or(|found| found.at.elapsed() > DOUBT) {
                let trouble = self.look().await.err().map(|error| (error.kind(), error.to_string()));
                *found = Some(Found { at: Instant::now(), trouble });
            }
            if let Some(Found { trouble: Some((kind, message)), .. }) = &*found {
                return Error::new(*kind, message.clone());
            }
        }
    }

    /// Whether there is a database that answers. One that has no room for another connection does.
    async fn look(&self) -> Result<()> {
        let connect = self.options();
        match connect_once(&connect).await {
            Ok(conn) => {
                tokio::spawn(conn.close());
                Ok(())
            }
            Err(error) if code(&error).as_deref() == Some("53300") => Ok(()),
            Err(error) => Err(database_error(error)),
        }
    }
}

/// A connection, or as much of one as a pooler lends.
pub(super) enum Lent {
    Whole(PoolConnection<Sqlx>),
    Within(Transaction<'static, Sqlx>),
}

impl Lent {
    /// Keeps what was written.
    pub(super) async fn done(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Whole(_) => Ok(()),
            Self::Within(transaction) => transaction.commit().await,
        }
    }
}

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match self {
            Self::Whole(conn) => conn,
            Self::Within(transaction) => transaction,
        }
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match self {
            Self::Whole(conn) => conn,
            Self::Within(transaction) => transaction,
        }
    }
}

async fn connect_once(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let late = || sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time"));
    timeout(CONNECT_TIMEOUT, options.connect()).await.unwrap_or_else(|_| Err(late()))
}

/// Whether two connections are lent the same one by a pooler, or one of them different ones. (On a busy pooler they may not be, by chance:
/// a `direct_url` says so for certain.)
async fn is_pooled(first: &mut PgConnection, options: &PgConnectOptions) -> Result<bool, sqlx::Error> {
    let mut second = connect_once(options).await?;
    let mut pooled = false;
    for _ in 0..3 {
        let before = backend(first).await?;
        second.execute("BEGIN").await?;
        let other = backend(&mut second).await?;
        let after = backend(first).await?;
        second.execute("ROLLBACK").await?;
        pooled |= other == before || before != after;
    }
    let _ = second.close().await;
    Ok(pooled)
}

/// Which of the server's processes answers.
async fn backend(conn: &mut PgConnection) -> Result<String, sqlx::Error> {
    let row = conn.fetch_one(sqlx::raw_sql("SELECT pg_backend_pid()::text")).await?;
    row.try_get(0)
}

/// Whether a connection that has not been used for a while still is one; asking each time would cost each statement a round trip.
async fn still_there(conn: &mut PgConnection, idle: Duration) -> bool {
    idle < TRUSTED || matches!(timeout(CONNECT_TIMEOUT, conn.ping()).await, Ok(Ok(())))
}

/// What every connection of ours is told: the actor of writes that name none, so that they cost no statement of their own; how images are written,
/// whatever the role's own way is (numbers and dates sqlx tells it); and that nothing is compiled for a statement, which takes PostgreSQL some 80 ms
/// where it takes a statement for a large one. It did for each window of the outbox, before there were statistics: reading 100,000 changes took ten
/// times as long.
async fn greet(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    let sql = "SELECT set_config('tidewire.actor', $1, false), set_config('bytea_output', 'hex', false),
               set_config('IntervalStyle', 'postgres', false), set_config('jit', 'off', false)";
    sqlx::query(sql).bind(Context::default().actor.as_str()).execute(conn).await?;
    Ok(())
}

/// Lets the connection learn the types of the tables' columns. sqlx looks up those that it does not know between preparing a statement
/// and running it, which makes the server forget one without a name; it remembers what it found.
async fn learn(conn: &mut PgConnection, catalog: &Catalog) -> Result<(), sqlx::Error> {
    for entity in catalog.entities() {
        let text = format!("SELECT * FROM {} WHERE false", triggers::qualified(entity));
        let mut transaction = conn.begin().await?;
        // It fails, having learnt; or there is no such table yet.
        let _ = sqlx::query(AssertSqlSafe(text)).persistent(false).execute(&mut *transaction).await;
        transaction.rollback().await?;
    }
    Ok(())
}
