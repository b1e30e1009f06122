//! Doorbells between the processes of one database.
//!
//! A `NOTIFY` inside the user's transaction would make every commit wait for a lock that the whole cluster shares. So nobody's transaction
//! notifies. After commits of this process one task sends a `NOTIFY` on a connection of its own, at most one in an interval; a process
//! whose tail runs listens on another.
//!
//! ```text
//! commit, commit, commit ──> ring ──(one NOTIFY an interval)──> every listening process ──> its tail looks
//! ```
//!
//! The channel is named for the outbox's table, so that several outboxes in one database keep apart; the payload says who rang, since nobody
//! needs to be told of their own commits. A ring may be lost at any place, and costs nothing but the time until the tail looks by itself.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::database_error;
use crate::error::{Error, ErrorKind, Result, backoff};

/// How long connecting, and each step on the connections of this module, may take.
const STEP: Duration = Duration::from_secs(5);
/// How long a ring takes at most, when it is tried whether rings are heard.
const ECHO: Duration = Duration::from_secs(2);
/// How often a silent connection is asked whether it still is one: a firewall or a vanished host says nothing.
const ALIVE: Duration = Duration::from_secs(15);
/// How long to wait after failures: at first, and at most.
const RETRY: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];

/// What is wrong where rings are not heard.
const POOLED: &str = "doorbells are off: the connection goes through a pooler, where LISTEN hears nothing. Give the database's own address as \
                      `direct_url`; without it, writes of other processes are found by looking";

/// Wakes the tail of this process, and those of others.
pub(super) struct Doorbell {
    local: Arc<Notify>,
    commits: Arc<Notify>,
    line: Option<Arc<Line>>,
    hears: Arc<AtomicBool>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    ringing: Option<JoinHandle<()>>,
    listening: Option<JoinHandle<()>>,
}

/// How others are reached.
struct Line {
    /// A pooler may be in between: what is sent needs no session.
    ring: PgConnectOptions,
    /// Without a pooler in between; none where only one is known.
    listen: Option<PgConnectOptions>,
    interval: Duration,
    /// Who rings.
    id: String,
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorbell").field("hears", &self.hears()).finish_non_exhaustive()
    }
}

impl Doorbell {
    /// Rings over `ring` and listens over `listen`. With an interval of zero others are neither rung nor heard.
    pub(super) fn new(ring: PgConnectOptions, listen: Option<PgConnectOptions>, interval: Duration) -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let (ring, listen) = (named(ring), listen.map(named));
        Self {
            local: Arc::default(),
            commits: Arc::default(),
            line: (!interval.is_zero()).then(|| Arc::new(Line { ring, listen, interval, id })),
            hears: Arc::default(),
            stop: watch::Sender::new(false),
            tasks: Mutex::default(),
        }
    }

    /// Rung for this process's tail.
    pub(super) fn local(&self) -> &Arc<Notify> {
        &self.local
    }

    /// Something has been committed by this process.
    pub(super) fn ring(&self) {
        self.local.notify_one();
        let Some(line) = &self.line else { return };
        self.commits.notify_one();
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if tasks.ringing.is_none() {
            let ringing = ring(Arc::clone(line), Arc::clone(&self.commits), self.stop.subscribe());
            tasks.ringing = Some(tokio::spawn(ringing));
        }
    }

    /// Begins to listen, if that has not happened.
    pub(super) fn listen(&self) {
        let Some(line) = &self.line else { return };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if line.listen.is_none() {
            tracing::warn!("{POOLED}");
        } else if tasks.listening.is_none() {
            let ear = Ear { line: Arc::clone(line), local: Arc::clone(&self.local), hears: Arc::clone(&self.hears) };
            tasks.listening = Some(tokio::spawn(ear.run(self.stop.subscribe())));
        }
    }

    /// Whether rings of other processes are heard now.
    pub(super) fn hears(&self) -> bool {
        self.hears.load(Ordering::Acquire)
    }

    /// Tries whether rings are heard; `false` where they are turned off.
    pub(super) async fn check(&self) -> Result<bool> {
        match &self.line {
            Some(line) => line.listener().await.map(|_| true),
            None => Ok(false),
        }
    }

    /// Rings for what has not been rung for, and ends.
    pub(super) async fn close(&self) {
        let _ = self.stop.send(true);
        let Tasks { ringing, listening } =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in [ringing, listening].into_iter().flatten() {
            let _ = timeout(STEP, task).await;
        }
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
    }
}

/// So that an operator who looks at the database's connections sees what these are for.
fn named(options: PgConnectOptions) -> PgConnectOptions {
    let name = format!("{} doorbell", options.get_application_name().unwrap_or("tidewire"));
    options.application_name(&name)
}

/// Sends at most one ring an interval: the first at once, one more if there were commits in between.
async fn ring(line: Arc<Line>, commits: Arc<Notify>, mut stopped: watch::Receiver<bool>) {
    let mut connection = None;
    loop {
        tokio::select! {
            // What was committed before the end is rung for.
            biased;
            () = commits.notified() => {}
            _ = stopped.wait_for(|stop| *stop) => break,
        }
        let mut failures = 0;
        while let Err(error) = line.send(&mut connection).await {
            connection = None;
            if failures == 0 {
                tracing::debug!(%error, "other processes could not be told of a commit; trying again");
            }
            failures += 1;
            tokio::select! {
                () = sleep(backoff(RETRY[0], RETRY[1], failures)) => {}
                _ = stopped.wait_for(|stop| *stop) => return,
            }
        }
        tokio::select! {
            () = sleep(line.interval) => {}
            _ = stopped.wait_for(|stop| *stop) => {}
        }
    }
    if let Some(connection) = connection {
        let _ = timeout(STEP, connection.close()).await;
    }
}

impl Line {
    /// One message and one transaction, so that it goes through a pooler, and one that waits for no disk.
    async fn send(&self, connection: &mut Option<PgConnection>) -> Result<()> {
        let text = format!(
            "SELECT set_config('synchronous_commit', 'off', true), pg_notify('tidewire_' || o.id, '{}')
             FROM (SELECT to_regclass('tidewire_outbox')::oid AS id) o WHERE o.id IS NOT NULL",
            self.id
        );
        let connection = match connection {
            Some(connection) => connection,
            none => none.insert(in_time(self.ring.connect()).await?),
        };
        in_time(connection.execute(sqlx::raw_sql(AssertSqlSafe(text)))).await.map(drop)
    }

    /// A connection that hears rings, which has been tried: through a pooler that lends connections for a transaction, `LISTEN` succeeds
    /// and nothing is ever heard.
    async fn listener(&self) -> Result<PgListener> {
        let pooled = || Error::new(ErrorKind::Setup, POOLED);
        let listen = self.listen.as_ref().ok_or_else(pooled)?;
        let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(STEP).connect_lazy_with(listen.clone());
        let mut listener = in_time(PgListener::connect_with(&pool)).await?;
        listener.eager_reconnect(false);
        let outbox = sqlx::raw_sql("SELECT to_regclass('tidewire_outbox')::oid::text");
        let outbox: Option<String> = in_time((&mut listener).fetch_one(outbox)).await?.get(0);
        let outbox = outbox.ok_or_else(|| Error::new(ErrorKind::Setup, "the database has no outbox"))?;
        let channel = format!("tidewire_{outbox}");
        in_time(listener.listen(&channel)).await?;
        let echo = format!("{} {}", self.id, uuid::Uuid::new_v4().simple());
        let mut other = in_time(listen.connect()).await?;
        let text = format!("SELECT pg_notify('{channel}', '{echo}')");
        in_time(other.execute(sqlx::raw_sql(AssertSqlSafe(text)))).await?;
        let heard = timeout(ECHO, async {
            while let Some(ring) = listener.try_recv().await.map_err(database_error)? {
                if ring.payload() == echo {
                    return Ok(true);
                }
            }
            Ok::<_, Error>(false)
        });
        let heard = matches!(heard.await, Ok(Ok(true)));
        let _ = timeout(STEP, other.close()).await;
        if heard {
            return Ok(listener);
        }
        Err(pooled())
    }
}

async fn in_time<T>(step: impl Future<Output = sqlx::Result<T>>) -> Result<T> {
    match timeout(STEP, step).await {
        Ok(done) => done.map_err(database_error),
        Err(_) => Err(Error::new(ErrorKind::Database, "the database did not answer in time")),
    }
}

/// Listens, and rings the local bell.
struct Ear {
    line: Arc<Line>,
    local: Arc<Notify>,
    hears: Arc<AtomicBool>,
}

impl Ear {
    async fn run(self, mut stopped: watch::Receiver<bool>) {
        let mut failures = 0;
        loop {
            let heard = tokio::select! {
                error = self.listen() => error,
                _ = stopped.wait_for(|stop| *stop) => return,
            };
            // The tail looks more often from now on, and begins with what may have been missed.
            if self.hears.swap(false, Ordering::AcqRel) {
                failures = 0;
            }
            self.local.notify_one();
            if failures == 0 {
                tracing::warn!(error = %heard, "doorbells of other processes are not heard; looking more often, and trying again");
            }
            failures += 1;
            tokio::select! {
                () = sleep(backoff(RETRY[0], RETRY[1], failures)) => {}
                _ = stopped.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Listens until that fails.
    async fn listen(&self) -> Error {
        match self.listen_on().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn listen_on(&self) -> Result<std::convert::Infallible> {
        let mut listener = self.line.listener().await?;
        self.hears.store(true, Ordering::Release);
        // What was committed before is not rung for again.
        self.local.notify_one();
        tracing::debug!("doorbells of other processes are heard");
        let interval = self.line.interval;
        let mut rung = Instant::now();
        let mut due: Option<Instant> = None;
        loop {
            let ring = tokio::select! {
                ring = timeout(ALIVE, listener.try_recv()) => ring,
                // However many ring, the tail is woken once an interval.
                () = sleep_until(due.unwrap_or(rung)), if due.is_some() => {
                    (rung, due) = (Instant::now(), None);
                    self.local.notify_one();
                    continue;
                }
            };
            match ring {
                Ok(Ok(Some(ring))) if ring.payload().starts_with(&self.line.id) => {}
                Ok(Ok(Some(_))) if due.is_some() => {}
                Ok(Ok(Some(_))) => due = Some(rung + interval),
                Ok(Ok(None)) => return Err(Error::new(ErrorKind::Database, "the connection was lost")),
                Ok(Err(error)) => return Err(database_error(error)),
                Err(_) => in_time((&mut listener).execute("SELECT 1")).await.map(drop)?,
            }
        }
    }
}
