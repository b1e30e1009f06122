//! Capture by the database's own log: PostgreSQL's logical replication.
//!
//! Who writes pays for no outbox. One node at a time, by a lease, reads a replication slot (`pgoutput`, whole transactions in the order of
//! their commits) and *appends* them to the outbox, several in one transaction of its own, together with the place in the log up to which it
//! has read. Everything above the outbox is the same. The lease's token is compared in that same statement, so a node that was paused appends
//! nothing; a node that begins goes on from the place in the outbox, so nothing is appended twice; and the slot is told to forget only what
//! the outbox has.
//!
//! ```text
//! writers ── commit ──> WAL ── walsender ──> Changes ──> Appender ── one transaction ──> tidewire_outbox (xid: ours, source: theirs)
//!                                                                                   └──> tidewire_log.lsn
//! ```
//!
//! *Snapshots.* A change is in its table before it is in the outbox, so a snapshot may show a transaction that the outbox lacks at that
//! moment. A cursor that comes with rows says so ([`Cursor::shown`](crate::Cursor)): it names the snapshot S and the end L of the log right
//! after it. Its holder has seen every transaction that S shows. When the outbox has been read to L, it is given what S did not show of the
//! outbox, without the transactions whose own ids (`source`) S showed; after that its cursor is like any other. This is exact:
//!
//! - A transaction that S shows had committed, so its commit lies before L. Once the outbox has been read to L it is in the outbox: either S
//!   showed it there, or it is left out by its id. It is never given, before or after.
//! - A transaction that S does not show is given once, if S does not show its rows in the outbox either. That is so because the appender
//!   commits only when all that it appends is visible: whatever snapshot shows a row of the outbox also shows the transaction that it tells
//!   of. (The log has a commit before other sessions see it, by long where a standby must confirm it.)
//!
//! *In whose name.* A transaction with another context than the default tells it in a message of its own in the log, which holds for the
//! changes after it; messages of savepoints that are rolled back vanish as their changes do. What says nothing is recorded as the default
//! actor, also where another program wrote it: the log does not tell who did.
//!
//! *What the log does not tell.* `TRUNCATE` removes rows that it does not name, so a trigger tells them, as messages. Where it was bypassed, and
//! where the slot has lost its place or was dropped, changes are missing: the log of changes begins anew, and all who follow start over. So they are where
//! a row was changed while its table's replica identity was not FULL, as a new partition's is until it is prepared; and where the publication
//! is another than was installed, since what it left out meanwhile was never told.

mod append;
mod changes;
mod connect;
mod image;
mod pgoutput;
mod slot;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use pgwire_replication::{Lsn, ReplicationClient, ReplicationEvent};
use sqlx::{PgConnection, Row};
use tokio::{
    sync::watch,
    time::{timeout, timeout_at},
};

pub(super) use self::slot::check;
use self::{
    append::Appender,
    changes::{Changes, Notice, Rows, Told, prefix},
};
use super::{Postgres, database_error, epoch, schema};
use crate::{
    capture::{Capture, LogStatus},
    context::Context,
    database::Database,
    error::{Error, ErrorKind, Result, backoff},
    lease::Lease,
    recorder::RecorderOptions,
};

/// What cannot go through a pooler.
pub(super) const WHAT: &str = "capture by the database's own log";

/// The lease of the node that reads the log, and how long it may be silent.
const LEASE: &str = "capture";
const LEASE_TTL: Duration = Duration::from_secs(4);

/// How much is appended in one statement, in rows and in bytes of images; and how many transactions.
const MAX_ROWS: usize = 2_000;
const MAX_BYTES: usize = 4 << 20;
const MAX_TRANSACTIONS: usize = 2_000;

/// How soon after one append the next may come. What is written all the while is appended together then, which costs the server a fraction; what is written
/// alone is appended at once.
const PACE: Duration = Duration::from_millis(5);

/// How far the log may grow without a change of ours before its place is noted all the same.
const IDLE_BYTES: u64 = 256 << 10;

/// How long a reader waits for the log to be read to a place: while its reading is in trouble, while nobody reads it, and while somebody does, who may
/// have much of others to pass over. And how often it looks at most.
const ARRIVE_TROUBLED: Duration = Duration::from_secs(1);
const ARRIVE_UNREAD: Duration = Duration::from_secs(10);
const ARRIVE_TIMEOUT: Duration = Duration::from_secs(60);
const ARRIVE_POLL: Duration = Duration::from_millis(20);

/// How often the slot is looked at.
const WATCH: Duration = Duration::from_secs(5);

/// How many failures in a row are no trouble, where they may pass by themselves.
const PATIENCE: u32 = 5;

/// How long to wait after failures: at first, and at most.
const RETRY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(5)];

/// What a process knows of capture by the log.
#[derive(Debug)]
pub(super) struct Shared {
    /// The place that this process has appended to, if it is the one that does.
    appended: watch::Sender<u64>,
    trouble: Mutex<Option<String>>,
    /// The place of this process's last mark in the log.
    marked: tokio::sync::Mutex<u64>,
    max_kept: Option<u64>,
}

impl Shared {
    pub(super) fn new(options: &RecorderOptions) -> Self {
        Self {
            appended: watch::Sender::new(0),
            trouble: Mutex::default(),
            marked: tokio::sync::Mutex::default(),
            max_kept: options.max_kept_log,
        }
    }

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

/// Tells the log in whose name a transaction writes from here on. (Messages come as they are, whatever the database's encoding is.)
///
/// A message's place in the log is its end, and a change's is its beginning. So a message and the change right behind it have the same place,
/// and where one of them is of a savepoint, they may be told in either order. The mark keeps them apart.
pub(super) async fn tell_context(conn: &mut PgConnection, context: &Context) -> Result<(), sqlx::Error> {
    let tell = "SELECT pg_logical_emit_message(true, $1, convert_to($2, 'UTF8'))::text, pg_logical_emit_message(true, $3, '')::text";
    let tell =
        sqlx::query(tell).persistent(false).bind(prefix::CONTEXT).bind(Told::of(context).text()).bind(prefix::MARK);
    tell.execute(conn).await.map(drop)
}

/// Puts in place what is needed.
pub(super) async fn install(database: &Postgres, conn: &mut PgConnection) -> Result<()> {
    slot::install(database.connections.direct_pool(), conn, &database.catalog).await
}

/// Waits until what has been written so far is in the outbox, because the log is to be read no more. Where nobody reads it, what is
/// missing is said to be missing.
pub(super) async fn finish(database: &Postgres) {
    if let Err(error) = arrive(database, None).await {
        tracing::error!(%error, "the database's log is given up unread: changes are missing, and all who follow start over");
        let Ok(mut conn) = database.connections.direct_pool().acquire().await else { return };
        let _ = epoch::break_off(&mut conn).await;
    }
}

/// Takes out what [`install`] put in place.
pub(super) async fn remove(database: &Postgres, conn: &mut PgConnection) -> Result<()> {
    slot::remove(conn, &database.catalog).await
}

/// How far the log has been read.
pub(super) async fn status(conn: &mut PgConnection) -> Result<LogStatus> {
    slot::status(conn).await
}

/// Waits until the log has been read into the outbox up to a place, or up to its end as it is now.
///
/// # Errors
/// [`ErrorKind::Busy`] where that takes too long: perhaps no node reads it. [`ErrorKind::Setup`] through a pooler.
pub(super) async fn arrive(database: &Postgres, place: Option<u64>) -> Result<()> {
    database.connections.need_direct(WHAT)?;
    let began = Instant::now();
    // When somebody was last known to read it.
    let mut read = began;
    let mut appended = database.log.appended.subscribe();
    let mut pause = Duration::from_millis(1);
    let mut wanted = place;
    let mut marked = false;
    loop {
        let row =
            sqlx::query("SELECT lsn, trouble, (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint FROM tidewire_log")
                .fetch_one(database.connections.direct_pool())
                .await
                .map_err(database_error)?;
        let number = |index| row.get::<i64, _>(index).cast_unsigned();
        let place = *wanted.get_or_insert(number(2));
        if number(0) >= place {
            return Ok(());
        }
        database.log.note_trouble(row.get(1));
        if let Some(trouble) = database.log.trouble().filter(|_| began.elapsed() > ARRIVE_TROUBLED) {
            return Err(Error::new(ErrorKind::Busy, trouble));
        }
        let is_late = read.elapsed() > ARRIVE_UNREAD;
        if is_late && began.elapsed() < ARRIVE_TIMEOUT && Lease::is_held(database, LEASE).await? {
            read = Instant::now();
        } else if is_late {
            return Err(Error::new(
                ErrorKind::Busy,
                "the database's log has not been read up to now. Is a program running that reads it (`tidewire serve`, \
                 or one that calls `Recorder::start_capture`)?",
            ));
        }
        if !std::mem::replace(&mut marked, true) {
            mark(database, place).await?;
        }
        let _ = timeout(pause, appended.wait_for(|at| *at >= place)).await;
        pause = (pause * 2).min(ARRIVE_POLL);
    }
}

/// Writes a mark into the log behind a place, if this process has not: it makes the log be read that far, however little is written.
async fn mark(database: &Postgres, place: u64) -> Result<()> {
    let mut marked = database.log.marked.lock().await;
    if *marked < place {
        let mark = "SELECT (pg_logical_emit_message(true, $1, '') - '0/0'::pg_lsn)::bigint";
        let at: i64 = sqlx::query_scalar(mark)
            .bind(prefix::MARK)
            .fetch_one(database.connections.direct_pool())
            .await
            .map_err(database_error)?;
        *marked = at.cast_unsigned();
    }
    Ok(())
}

/// Reads the log when this node's turn has come, and looks after the slot whoever reads it, until told to stop.
pub(super) async fn run(database: Arc<Postgres>, stop: watch::Receiver<bool>) {
    if let Err(error) = database.connections.need_direct(WHAT) {
        tracing::error!(%error, "this node leaves the database's log to others");
        return;
    }
    // The look goes on between turns: a log that cannot be read is the one that grows.
    tokio::select! {
        () = take_turns(&database, stop) => {}
        () = watch_slot(&database) => {}
    }
}

async fn take_turns(database: &Arc<Postgres>, mut stop: watch::Receiver<bool>) {
    let mut failures = 0_u32;
    loop {
        let began = Instant::now();
        let ended = turn(database, stop.clone()).await;
        if *stop.borrow() || stop.has_changed().is_err() {
            return;
        }
        // Whatever ran for a while had got over what was wrong before.
        failures = if began.elapsed() > RETRY[1] * 2 { 1 } else { failures + 1 };
        match ended {
            Ok(()) => return,
            Err(error) => report(database, &error, failures).await,
        }
        let pause = backoff(RETRY[0], RETRY[1], failures);
        // An error means that the recorder is gone, which ends this too.
        let _ = timeout(pause, stop.wait_for(|stop| *stop)).await;
    }
}

/// Says what is wrong: in this process's log, and where it does not pass by itself, to all who look at the outbox.
async fn report(database: &Postgres, error: &Error, failures: u32) {
    let passes = error.is_transient() || error.kind() == ErrorKind::Lost;
    if failures == 1 && passes {
        tracing::warn!(%error, "the database's log could not be read; trying again");
    } else if failures == if passes { PATIENCE } else { 1 } {
        tracing::error!(%error, "the database's log cannot be read");
    }
    if passes && failures < PATIENCE {
        return;
    }
    database.note_trouble(Some(&error.to_string()));
    let note =
        sqlx::query("UPDATE tidewire_log SET trouble = $1 WHERE trouble IS DISTINCT FROM $1 AND capture = 'log'");
    let _ = note.bind(error.to_string()).execute(database.connections.direct_pool()).await;
}

/// Looks from time to time whether the log can go on being read: that it never fills the server's disk, and leaves nothing out.
async fn watch_slot(database: &Postgres) {
    loop {
        tokio::time::sleep(WATCH).await;
        if let Err(error) = look_at_slot(database).await {
            tracing::debug!(%error, "the replication slot could not be looked at");
        }
    }
}

/// Prepares partitions that were made since the last look; and drops the slot, so that whoever reads it begins anew, where it must not go on.
async fn look_at_slot(database: &Postgres) -> Result<()> {
    let mut conn = database.connections.direct_pool().acquire().await.map_err(database_error)?;
    if schema::capture(&mut conn).await? != Capture::Log {
        return Ok(());
    }
    let slot = slot::find(&mut conn).await?;
    if !slot.usable {
        return Ok(());
    }
    if database.log.max_kept.is_some_and(|max| slot.kept > max) {
        tracing::error!(
            slot = slot.name,
            kept_bytes = slot.kept,
            limit_bytes = database.log.max_kept,
            "the database keeps more of its log for us than it may: the slot is given up, and all who follow start over"
        );
        return slot.drop(&mut conn).await;
    }
    if !slot::is_published(&mut conn).await? {
        tracing::error!(
            slot = slot.name,
            "the publication is another than was installed: the slot is given up, and all who follow start over"
        );
        return slot.drop(&mut conn).await;
    }
    slot::prepare_parts(&mut conn, &database.catalog).await
}

/// One turn at reading the log: waits for the lease, and reads until it is lost, something fails, or it is time to stop. `Ok` where there is
/// nothing more to do: the node stops, or the database is captured in another way now.
async fn turn(database: &Arc<Postgres>, mut stop: watch::Receiver<bool>) -> Result<()> {
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
    // The next may begin at once.
    let _ = lease.release().await;
    ended
}

/// Reads the log from where the outbox ends. Only a change of capture ends it without an error.
async fn read_log(database: &Postgres, lease: &Lease) -> Result<()> {
    let mut appender = Appender::new(database, lease).await?;
    let conn = appender.connection();
    if schema::capture(conn).await? != Capture::Log {
        return Ok(());
    }
    // Rows that are appended are of an epoch that has begun.
    epoch::look(conn).await?;
    let mut slot = slot::find(conn).await?;
    let (begin, _) = begin_at(conn).await?;
    let published = slot::is_published(conn).await?;
    if !slot.usable || slot.confirmed > begin || !published {
        if slot.usable && published {
            tracing::error!(slot = slot.name, "somebody else has read from the replication slot");
        }
        slot.drop(conn).await?;
        slot::install(database.connections.direct_pool(), conn, &database.catalog).await?;
        slot = slot::find(conn).await?;
    }
    let entities = slot::entities(conn, &database.catalog).await?;
    slot.release(conn).await?;
    let (begin, token) = begin_at(conn).await?;
    let near = sqlx::query_scalar::<_, i64>("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        .fetch_one(&mut *conn)
        .await
        .map_err(database_error)?;
    let client = ReplicationClient::connect(connect::configuration(database, &slot.name, begin)?)
        .await
        .map_err(connect::stream_error)?;
    let changes = Changes::new(Arc::clone(&database.catalog), entities, token, near.cast_unsigned());
    tracing::info!(slot = slot.name, "this node reads the database's log");
    Stream {
        database,
        client,
        changes,
        appender,
        read_to: begin,
        at: None,
        transactions: 0,
        finished: tokio::time::Instant::now(),
    }
    .run(begin)
    .await
}

/// Where the outbox ends.
/// From where the log is to be read, and the token of messages in it.
async fn begin_at(conn: &mut PgConnection) -> Result<(u64, String)> {
    let found: (i64, String) =
        sqlx::query_as("SELECT lsn, token FROM tidewire_log").fetch_one(conn).await.map_err(database_error)?;
    Ok((found.0.cast_unsigned(), found.1))
}

/// One stream of the log into the outbox.
struct Stream<'a> {
    database: &'a Postgres,
    client: ReplicationClient,
    changes: Changes,
    appender: Appender<'a>,
    /// The end of the last transaction that was read.
    read_to: u64,
    /// When that was committed.
    at: Option<DateTime<Utc>>,
    /// How many have been read and not appended yet.
    transactions: usize,
    /// When something was last appended.
    finished: tokio::time::Instant,
}

impl Stream<'_> {
    async fn run(mut self, begin: u64) -> Result<()> {
        let mut noted = begin;
        loop {
            // What is there already goes into one transaction of ours.
            let event = match self.client.recv().now_or_never() {
                Some(event) => event,
                None if self.transactions > 0 && !self.changes.is_open() => {
                    match timeout_at(self.finished + PACE, self.client.recv()).await {
                        Ok(event) => event,
                        Err(_) => {
                            noted = self.finish().await?;
                            self.client.recv().await
                        }
                    }
                }
                None => self.client.recv().await,
            };
            let Some(event) = event.map_err(connect::stream_error)? else {
                return Err(Error::new(ErrorKind::Database, "the database ended the stream of its log"));
            };
            match event {
                ReplicationEvent::Begin { xid, commit_time_micros, .. } => {
                    let source = self.changes.begin(xid, commit_time_micros);
                    self.appender.note_source(source);
                    self.at = DateTime::from_timestamp_micros(commit_time_micros.saturating_add(EPOCH_MICROS));
                }
                ReplicationEvent::Commit { end_lsn, .. } => {
                    self.changes.commit();
                    self.read_to = end_lsn.as_u64();
                    self.transactions += 1;
                    if self.transactions >= MAX_TRANSACTIONS || self.is_full() {
                        noted = self.finish().await?;
                    }
                }
                ReplicationEvent::Message { transactional: true, prefix, content, .. } => {
                    self.changes.told(&prefix, &content)?;
                    self.make_room().await?;
                }
                ReplicationEvent::XLogData { data, .. } => {
                    let mut notice = self.changes.read(&data)?;
                    if let Some(Notice::New { id }) = notice {
                        self.learn(id).await?;
                        notice = self.changes.read(&data)?;
                    }
                    if let Some(notice) = notice {
                        self.take(notice).await?;
                    }
                    self.make_room().await?;
                }
                ReplicationEvent::KeepAlive { wal_end, .. } => {
                    // All before it has been sent, and none of it concerned us. The place is noted first: so the slot is never told of
                    // more than the outbox knows, and somebody else's reading of it is found out.
                    let idle = self.transactions == 0 && !self.changes.is_open();
                    if idle && wal_end.as_u64() > noted + IDLE_BYTES {
                        self.read_to = wal_end.as_u64();
                        noted = self.finish().await?;
                    }
                }
                _ => {}
            }
        }
    }

    fn is_full(&self) -> bool {
        self.changes.rows.len() >= MAX_ROWS || self.changes.rows.bytes >= MAX_BYTES
    }

    /// Adds what has been read of a large transaction, so that it need not be held whole.
    async fn make_room(&mut self) -> Result<()> {
        if self.is_full() {
            let rows = std::mem::take(&mut self.changes.rows);
            self.appender.add(&rows).await?;
        }
        Ok(())
    }

    /// Appends what has been read, and tells those who wait for it.
    async fn finish(&mut self) -> Result<u64> {
        let rows = std::mem::take(&mut self.changes.rows);
        let something = rows.len() > 0 || self.appender.is_open();
        let now = self.appender.finish(&rows, self.read_to, self.at).await?;
        self.changes.set_near(now);
        self.transactions = 0;
        self.finished = tokio::time::Instant::now();
        self.client.update_applied_lsn(Lsn::from_u64(self.read_to));
        self.database.log.appended.send_replace(self.read_to);
        if something {
            self.database.doorbell.ring();
        }
        Ok(self.read_to)
    }

    /// Looks which entity's a table is that the log tells of.
    async fn learn(&mut self, table: u32) -> Result<()> {
        if let Some(source) = self.changes.source() {
            self.appender.see(source).await?;
        }
        let mut conn = self.database.connections.direct_pool().acquire().await.map_err(database_error)?;
        let entities = slot::entities(&mut conn, &self.database.catalog).await?;
        self.changes.learn(entities, table);
        Ok(())
    }

    async fn take(&mut self, notice: Notice) -> Result<()> {
        match notice {
            Notice::Lacks { table, columns } => {
                let entity = self
                    .database
                    .catalog
                    .find(table)
                    .ok_or_else(|| Error::new(ErrorKind::Corrupt, "a table of the log has no entity any more"))?;
                if let Some(source) = self.changes.source() {
                    self.appender.see(source).await?;
                }
                // A column that was added later is missing in what was written before.
                let now = slot::columns(
                    &mut *self.database.connections.direct_pool().acquire().await.map_err(database_error)?,
                    entity,
                )
                .await?;
                let gone: Vec<_> =
                    columns.into_iter().filter(|column| !now.iter().any(|name| name == column)).collect();
                if gone.is_empty() {
                    return Ok(());
                }
                Err(Error::new(
                    ErrorKind::Setup,
                    format!(
                        "the table {table} has no column {} any more, which its entity has. Run the migrations, or generate the \
                         entities anew; until then the database's log is not read",
                        gone.join(", ")
                    ),
                ))
            }
            Notice::New { .. } => {
                Err(Error::new(ErrorKind::Corrupt, "the database's log tells of a table that was looked for in vain"))
            }
            Notice::Gone { table } => {
                let why = "it was dropped or detached, and which entity's it was is not known any more";
                self.break_off(&table, why).await
            }
            Notice::Emptied { table } => {
                self.break_off(table, "it was truncated past its trigger, and the log does not tell which rows it had")
                    .await
            }
            Notice::Partial { table } => {
                self.break_off(table, "its replica identity was not FULL, and the log does not tell how a row was")
                    .await
            }
        }
    }

    async fn break_off(&mut self, table: &str, why: &str) -> Result<()> {
        if self.appender.break_off().await? {
            tracing::error!(table, why, "the log of changes begins anew: all who follow start over");
            // What was before it is of the history that ends.
            self.changes.rows = Rows::default();
        }
        Ok(())
    }
}

/// The database counts microseconds from the year 2000.
const EPOCH_MICROS: i64 = 946_684_800_000_000;
