//! Capture by the database's own log: MariaDB's binary log.
//!
//! Who writes pays for no outbox. One node at a time, by a lease, reads the log as a replica does, from the last transaction that the outbox has (by its
//! GTID), and *appends* whole transactions to the outbox in the order of the log, several in one of its own, together with the place up to which it has
//! read. The lease's token is compared in that same transaction, so a node that was paused appends nothing, and one that begins repeats nothing.
//! Everything above the outbox is the same.
//!
//! ```text
//! writers ── commit ──> binary log ── as a replica ──> Changes ──> Appender ── one transaction ──> tidewire_outbox
//!                                                                                             └──> tidewire_binlog: GTIDs, file, place
//! ```
//!
//! *Numbers.* There is one who appends, so the outbox's numbers are in the order of the log, and none below one that is visible is still to come: each
//! transaction of ours settles its numbers itself (`tidewire_log.settled`). Without holes there is nothing for a barrier to find out.
//!
//! *Snapshots.* A change is in its table before it is in the outbox. But the server tells where in the log a consistent snapshot stands
//! (`Binlog_snapshot_position`): it shows the transactions before that place and no others. So whoever takes a snapshot waits until the log has been read
//! to its place, and then has seen the outbox up to the last number of a transaction that begins before it. Each row of the outbox says where its
//! transaction begins (the first half of `tx`).
//!
//! *In whose name.* A transaction with another context than the default writes it to a row of `tidewire_told`, which the log shows in its place;
//! with what is rolled back it vanishes. What says nothing is recorded as the default actor, also where another program wrote it.
//!
//! *Foreign keys* act below the log. The triggers that record that under capture by triggers ([`cascade`](super::cascade)) are here too, and write to
//! `tidewire_followed`, where the log shows it in its place; what has been read is removed from there.
//!
//! *What the log does not tell.* `TRUNCATE` names no rows, statement format none at all, an XA transaction's rows lie back in the log when it commits,
//! and files are removed without asking us. The log of changes begins anew then, and all who follow start over.

mod append;
mod changes;
mod connect;
mod events;
mod place;
mod server;
mod statement;
mod stream;
mod table;
mod value;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{Executor, MySqlConnection, Row};
use tokio::{sync::watch, time::timeout};

use self::{
    append::Appender,
    stream::{Stopped, Stream},
};
pub(super) use self::{
    place::Place,
    server::{UNLOCK, check},
};
use super::{Mysql, database_error, schema};
use crate::{
    capture::{Capture, LogStatus},
    context::Context,
    database::Database,
    error::{Error, ErrorKind, Result, backoff},
    lease::Lease,
};

/// The lease of the node that reads the log, and how long it may be silent.
const LEASE: &str = "capture";
const LEASE_TTL: Duration = Duration::from_secs(4);

/// How long a reader waits for the log to be read to a place: while its reading is in trouble, while nobody reads it, and while somebody does, who may
/// have much of others to pass over. And how often it looks at most.
const ARRIVE_TROUBLED: Duration = Duration::from_secs(1);
const ARRIVE_UNREAD: Duration = Duration::from_secs(10);
const ARRIVE_TIMEOUT: Duration = Duration::from_secs(60);
const ARRIVE_POLL: Duration = Duration::from_millis(20);

/// How long it waits for a reader in its own process, which sees everything, before it writes a mark.
const MARK_AFTER: Duration = Duration::from_millis(200);

/// How many failures in a row are no trouble, where they may pass by themselves.
const PATIENCE: u32 = 5;

/// How long to wait after failures: at first, and at most.
const RETRY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(5)];

/// What a process knows of capture by the log.
#[derive(Debug)]
pub(super) struct Shared {
    /// The place up to which this process has read and appended, if it is the one that does.
    appended: watch::Sender<u64>,
    reading: AtomicBool,
    trouble: Mutex<Option<String>>,
    /// The place behind which this process has last written a mark.
    marked: tokio::sync::Mutex<Place>,
    /// The place behind which the server could not go on in the middle of a transaction.
    refused: AtomicU64,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            appended: watch::Sender::new(0),
            reading: AtomicBool::new(false),
            trouble: Mutex::default(),
            marked: tokio::sync::Mutex::default(),
            refused: AtomicU64::new(u64::MAX),
        }
    }
}

impl Shared {
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn note_trouble(&self, trouble: Option<&str>) {
        let mut known = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() != trouble {
            *known = trouble.map(str::to_owned);
        }
    }
}

/// The statement that tells the log in whose name a transaction writes from here on. A row per session, so that nobody waits for another; the number
/// makes each a change, which the log would otherwise leave out.
pub(super) fn tell(context: &Context) -> String {
    let [actor, origin, mutation] = super::session::values(context);
    format!(
        "INSERT INTO tidewire_told (session, n, actor, origin, mutation_id, at) VALUES (CONNECTION_ID(), 0, {actor}, {origin}, {mutation}, UTC_TIMESTAMP())
         ON DUPLICATE KEY UPDATE n = n + 1, actor = VALUES(actor), origin = VALUES(origin), mutation_id = VALUES(mutation_id), at = VALUES(at)"
    )
}

/// Forgets what sessions have told that have long ended.
pub(super) async fn tidy(conn: &mut MySqlConnection) -> Result<()> {
    const OLD: &str = "SELECT session FROM tidewire_told WHERE at < UTC_TIMESTAMP() - INTERVAL 1 DAY LIMIT 1000 FOR UPDATE SKIP LOCKED";
    conn.execute("START TRANSACTION").await.map_err(database_error)?;
    for row in conn.fetch_all(OLD).await.map_err(database_error)? {
        let remove = sqlx::query("DELETE FROM tidewire_told WHERE session = ?").bind(row.get::<u64, _>(0));
        remove.execute(&mut *conn).await.map_err(database_error)?;
    }
    conn.execute("COMMIT").await.map(drop).map_err(database_error)
}

/// Puts in place what is needed.
pub(super) async fn install(database: &Mysql) -> Result<()> {
    server::install(database).await
}

/// Waits until what has been written so far is in the outbox, because the log is to be read no more, and locks writers out. Where nobody reads it,
/// what is missing is said to be missing.
pub(super) async fn finish(database: &Mysql, conn: &mut MySqlConnection) -> Result<()> {
    let Err(error) = arrive(database).await else {
        server::lock_tables(conn, &database.catalog).await?;
        return arrive(database).await;
    };
    tracing::error!(%error, "the binary log is given up unread: changes are missing, and all who follow start over");
    let mut other = database.pool.begin().await.map_err(database_error)?;
    server::break_off(&mut other).await?;
    other.commit().await.map_err(database_error)?;
    server::lock_tables(conn, &database.catalog).await
}

/// How far the log has been read.
pub(super) async fn status(conn: &mut MySqlConnection) -> Result<LogStatus> {
    server::status(conn).await
}

/// Where in the log a consistent snapshot stands that is open on a connection.
pub(super) async fn place_of(snapshot: &mut MySqlConnection) -> Result<Place> {
    Ok(server::end(snapshot).await?.1)
}

/// What a snapshot that stands at a place has seen of the outbox, which it has itself shown up to a number: up to which one. Waits until the log has
/// been read to that place.
pub(super) async fn seen(database: &Mysql, place: Place, shown: u64) -> Result<u64> {
    arrive_at(database, place).await?;
    let mut conn = database.pool.acquire().await.map_err(database_error)?;
    server::newest_before(&mut conn, place, shown).await
}

/// Waits until the log has been read into the outbox up to its end as it is now.
///
/// # Errors
/// [`ErrorKind::Busy`] where that takes too long: perhaps no node reads it.
pub(super) async fn arrive(database: &Mysql) -> Result<()> {
    let (_, place) = server::end(&mut *database.pool.acquire().await.map_err(database_error)?).await?;
    arrive_at(database, place).await
}

async fn arrive_at(database: &Mysql, wanted: Place) -> Result<()> {
    let began = Instant::now();
    // When somebody was last known to read it.
    let mut read = began;
    let mut appended = database.binlog.appended.subscribe();
    let mut pause = Duration::from_millis(1);
    let mut marked = false;
    loop {
        if *appended.borrow_and_update() >= wanted.number() {
            return Ok(());
        }
        let row = sqlx::query("SELECT place, trouble FROM tidewire_binlog")
            .fetch_one(&database.pool)
            .await
            .map_err(database_error)?;
        if row.get::<i64, _>(0).cast_unsigned() >= wanted.number() {
            return Ok(());
        }
        database.binlog.note_trouble(row.get(1));
        if let Some(trouble) = database.binlog.trouble().filter(|_| began.elapsed() > ARRIVE_TROUBLED) {
            return Err(Error::new(ErrorKind::Busy, trouble));
        }
        let is_late = read.elapsed() > ARRIVE_UNREAD;
        if is_late && began.elapsed() < ARRIVE_TIMEOUT && Lease::is_held(database, LEASE).await? {
            read = Instant::now();
        } else if is_late {
            return Err(Error::new(
                ErrorKind::Busy,
                "the binary log has not been read up to now. Is a program running that reads it (`tidewire serve`, or one that calls \
                 `Recorder::start_capture`)?",
            ));
        }
        if !marked && (!database.binlog.reading.load(Ordering::Relaxed) || began.elapsed() > MARK_AFTER) {
            mark(database, wanted).await?;
            marked = true;
        }
        let _ = timeout(pause, appended.wait_for(|at| *at >= wanted.number())).await;
        pause = (pause * 2).min(ARRIVE_POLL);
    }
}

/// Writes a mark into the log behind a place, if this process has not: it makes the log be read that far, however little is written.
async fn mark(database: &Mysql, place: Place) -> Result<()> {
    let mut marked = database.binlog.marked.lock().await;
    let mut conn = database.pool.acquire().await.map_err(database_error)?;
    let (_, now) = server::end(&mut conn).await?;
    // A log that begins anew begins with small numbers.
    if *marked < place || now < *marked {
        conn.execute("UPDATE tidewire_mark SET n = n + 1").await.map_err(database_error)?;
        *marked = now;
    }
    Ok(())
}

/// Reads the log when this node's turn has come, until told to stop.
pub(super) async fn run(database: Arc<Mysql>, mut stop: watch::Receiver<bool>) {
    let mut failures = 0_u32;
    loop {
        let began = Instant::now();
        let ended = turn(&database, stop.clone()).await;
        if *stop.borrow() || stop.has_changed().is_err() {
            return;
        }
        // Whatever ran for a while had got over what was wrong before.
        failures = if began.elapsed() > RETRY[1] * 2 { 1 } else { failures + 1 };
        match ended {
            Ok(()) => return,
            Err(error) => report(&database, &error, failures).await,
        }
        let pause = backoff(RETRY[0], RETRY[1], failures);
        // An error means that the recorder is gone, which ends this too.
        let _ = timeout(pause, stop.wait_for(|stop| *stop)).await;
    }
}

/// Says what is wrong: in this process's log, and where it does not pass by itself, to all who look at the outbox.
async fn report(database: &Mysql, error: &Error, failures: u32) {
    let passes = error.is_transient() || error.kind() == ErrorKind::Lost;
    if failures == 1 && passes {
        tracing::warn!(%error, "the binary log could not be read; trying again");
    } else if failures == if passes { PATIENCE } else { 1 } {
        tracing::error!(%error, "the binary log cannot be read");
    }
    if passes && failures < PATIENCE {
        return;
    }
    database.binlog.note_trouble(Some(&error.to_string()));
    let note = sqlx::query("UPDATE tidewire_binlog SET trouble = ? WHERE NOT trouble <=> ?");
    let _ = note.bind(error.to_string()).bind(error.to_string()).execute(&database.pool).await;
}

/// One turn at reading the log: waits for the lease, and reads until it is lost, something fails, or it is time to stop. `Ok` where there is
/// nothing more to do: the node stops, or the database is captured in another way now.
async fn turn(database: &Arc<Mysql>, mut stop: watch::Receiver<bool>) -> Result<()> {
    let dynamic: Arc<dyn Database> = Arc::clone(database) as _;
    let lease = tokio::select! {
        lease = Lease::acquire_on(&dynamic, LEASE, LEASE_TTL) => lease?,
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    };
    let ended = tokio::select! {
        ended = read_log(database, &lease) => ended,
        () = lease.lost() => Err(lease.lost_error()),
        _ = stop.wait_for(|stop| *stop) => Ok(()),
    };
    database.binlog.reading.store(false, Ordering::Relaxed);
    database.binlog.appended.send_replace(0);
    // The next may begin at once.
    let _ = lease.release().await;
    ended
}

/// Reads the log from where the outbox ends. Only a change of capture ends it without an error.
async fn read_log(database: &Mysql, lease: &Lease) -> Result<()> {
    let mut appender = Appender::new(database, lease).await?;
    let conn = appender.connection();
    if schema::capture(conn).await? != Capture::Log {
        return Ok(());
    }
    server::require(conn, &database.catalog).await?;
    // Rows that are appended are of an epoch that has begun.
    database.look_for_history().await?;
    let (position, prepared) = server::position(conn).await?;
    if !server::has(conn, &position).await? {
        return begin_anew(appender, "the server's binary log is another one").await;
    }
    let stream = Stream::open(database, appender, position, prepared).await?;
    tracing::info!("this node reads the binary log");
    database.binlog.reading.store(true, Ordering::Relaxed);
    match stream.run().await {
        Stopped::Failed(error) => Err(error),
        Stopped::Lost(why) => begin_anew(Appender::new(database, lease).await?, &why).await,
    }
}

/// Begins the log of changes anew where the binary log ends now.
async fn begin_anew(mut appender: Appender<'_>, why: &str) -> Result<()> {
    tracing::error!(why, "the server does not have the place in its binary log any more: all who follow start over");
    appender.begin_anew().await?;
    Err(Error::new(ErrorKind::Database, "the binary log is read anew"))
}
