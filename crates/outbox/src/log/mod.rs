//! Following the log: the tail, the ring, and those who read along.
//!
//! Each process has at most one tail. It reads the outbox where it ends, decodes each transaction once, and puts it into the ring. Whoever
//! follows walks the ring at their own pace; there is no queue per follower. One who falls so far behind that the ring has moved on reads the
//! outbox until they are back in the ring, and one whose place has been removed by retention is told to start over.

mod board;
mod chunks;
mod follow;
mod places;
#[cfg(feature = "relay-nats")]
mod relay;
mod ring;
mod shape;
mod snapshot;
mod tail;
mod upstream;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::sync::{OnceCell, watch};

#[cfg(feature = "relay-nats")]
pub use self::relay::RelayOptions;
use self::{
    board::Board,
    chunks::Chunks,
    places::Places,
    ring::Ring,
    snapshot::Snapshots,
    tail::Tail,
    upstream::{Direct, Upstream},
};
pub use self::{
    board::{Audience, News, Route, Seat, Wants},
    follow::{Follower, Step},
    shape::{Batch, Event, EventKind, Events, Shape, Start, classify},
    snapshot::Snapshot,
};
use crate::{
    change::Transaction,
    cursor::Cursor,
    database::{Database, Pruned, Read, Stats},
    error::Result,
    filter::{self, Filter, Predicate, Semantics},
    registry::{Catalog, EntityMeta},
    sql::Select,
};

/// How the log is followed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LogOptions {
    /// The longest that the tail waits before it looks for what other processes wrote. It looks sooner while there is something to see,
    /// and at once after a write of its own process. Default 25 ms.
    pub poll_max: Duration,
    /// The same, while it is told of every write: on PostgreSQL captured by hooks or by its log, while the doorbells of other processes are
    /// heard. Then it looks only for the sake of a doorbell that was lost. (Under capture by triggers any program may write, and other
    /// programs don't ring, so there `poll_max` holds.) Default 1 s.
    pub poll_max_rung: Duration,
    /// How often this process tells others of its commits, at most: the longest that a doorbell waits, and what keeps a busy process from
    /// sending one for each commit. Zero: others are neither told nor listened to. Only PostgreSQL has doorbells between processes. Default
    /// 5 ms.
    pub doorbell_interval: Duration,
    /// How many bytes of recent transactions are kept in memory. Default 32 MiB.
    pub ring_max_bytes: usize,
    /// How many recent transactions are kept in memory. Default 65,536.
    pub ring_max_transactions: usize,
    /// How many changes a reader takes from the outbox at once. Default 1,000.
    pub chunk_changes: usize,
    /// How many snapshots may be open at once; who wants one more waits. Default 4.
    pub max_snapshots: usize,
    /// How long the reader of a snapshot may take over one part of it. Default 10 s.
    pub snapshot_patience: Duration,
    /// Where this process passes what it reads on to others, or takes what they read. Default none.
    #[cfg(feature = "relay-nats")]
    pub relay: Option<RelayOptions>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            poll_max: Duration::from_millis(25),
            poll_max_rung: Duration::from_secs(1),
            doorbell_interval: Duration::from_millis(5),
            ring_max_bytes: 32 << 20,
            ring_max_transactions: 1 << 16,
            chunk_changes: 1_000,
            max_snapshots: 4,
            snapshot_patience: Duration::from_secs(10),
            #[cfg(feature = "relay-nats")]
            relay: None,
        }
    }
}

/// The changes that a database has recorded, from all its recorders. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    database: Arc<dyn Database>,
    catalog: Arc<Catalog>,
    options: LogOptions,
    /// Set once the tail runs.
    shared: OnceCell<Arc<Shared>>,
    running: Mutex<Running>,
    chunks: Chunks,
    snapshots: Snapshots,
}

/// What runs in the background once somebody follows.
#[derive(Debug, Default)]
struct Running {
    tail: Option<Tail>,
    upstream: Option<Arc<dyn Upstream>>,
    #[cfg(feature = "relay-nats")]
    relay: Option<relay::Running>,
}

/// What the tail shares with those who follow.
#[derive(Debug)]
struct Shared {
    ring: RwLock<Ring>,
    /// The place that the next transaction will have; changes with each one.
    next_place: watch::Sender<u64>,
    /// Whether the outbox can be read.
    healthy: watch::Sender<bool>,
    stopped: AtomicBool,
    transactions: AtomicU64,
    changes: AtomicU64,
    places: Places,
    board: Arc<Board>,
    /// Set by a follower that stands at a moment which the ring has yet to reach.
    wanted: AtomicBool,
}

impl Shared {
    /// Whether the outbox can be read, as it turns out; answers whether it was otherwise.
    fn set_healthy(&self, healthy: bool) -> bool {
        let changed = self.healthy.send_if_modified(|known| std::mem::replace(known, healthy) != healthy);
        if changed {
            self.board.doubt();
        }
        changed
    }
}

/// What the tail of this process has done and holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TailStats {
    /// Whether it runs. It starts with the first who follows.
    pub running: bool,
    /// The number of the newest change that it has read, or that was there when it started.
    pub newest_seq: Option<u64>,
    /// When the newest change that it has read was written.
    pub newest_at: Option<DateTime<Utc>>,
    /// Transactions that it has read.
    pub transactions: u64,
    /// Changes in them.
    pub changes: u64,
    /// Transactions in the ring.
    pub ring_transactions: u64,
    /// Bytes in the ring.
    pub ring_bytes: u64,
    /// Whether the outbox can be read, and shows nothing that keeps changes from being recorded.
    pub healthy: bool,
    /// Whether every other process tells it of its writes. Otherwise it looks for them, often.
    pub rung: bool,
    /// How often the outbox was read for followers whose place was not in the ring.
    pub outbox_reads: u64,
    /// Who follows.
    pub followers: u64,
    /// Those of them whose place is not in the ring: they read the outbox.
    pub followers_behind: u64,
    /// How many transactions in the ring the slowest of the others has yet to take: the depth of the longest queue.
    pub queue_depth: u64,
    /// How often the tail has asked the database for what is new.
    pub reads: u64,
    /// What it has by way of other processes, where there is a relay.
    pub relay: Option<RelayStats>,
}

/// What a relay between processes has done for the tail of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RelayStats {
    /// Whether this process is the one that reads the database for the others.
    pub publishing: bool,
    /// Whether the tail hears from the process that is, and so need not ask the database itself.
    pub live: bool,
    /// Stretches of the log that this process has given to others.
    pub published: u64,
    /// Stretches of the log that the tail took from another process, where it would else have read the database.
    pub taken: u64,
    /// How often what came did not continue what the tail had, so that it read the database.
    pub fallbacks: u64,
}

impl Log {
    pub(crate) fn new(database: Arc<dyn Database>, catalog: Arc<Catalog>, options: LogOptions) -> Self {
        let inner = Inner {
            database,
            catalog,
            snapshots: Snapshots::new(options.max_snapshots),
            options,
            shared: OnceCell::new(),
            running: Mutex::default(),
            chunks: Chunks::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Where a reader that has seen everything stands now.
    ///
    /// # Errors
    /// [`ErrorKind::Database`](crate::ErrorKind::Database) and its kind as they come.
    pub async fn position(&self) -> Result<Cursor> {
        let position = self.inner.database.position().await?;
        // Whoever asks may want those who follow to come there.
        if let Some(shared) = self.inner.shared.get() {
            shared.wanted.store(true, Ordering::Release);
            self.inner.database.doorbell().notify_one();
        }
        Ok(position)
    }

    /// The entities whose changes it holds.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.inner.catalog
    }

    /// Follows all changes of all entities after a cursor. Starts the tail if it does not run yet.
    ///
    /// # Errors
    /// As [`position`](Self::position).
    pub async fn follow_all(&self, after: Cursor) -> Result<Follower> {
        Ok(Follower::new(self.clone(), self.shared().await?, after))
    }

    /// Makes somebody hear of the changes that they want, from the seat's place on and for as long as it is kept. Starts the tail if it does not
    /// run yet.
    ///
    /// # Errors
    /// As [`position`](Self::position).
    pub async fn attend(&self, wants: Wants, audience: Weak<dyn Audience>) -> Result<Seat> {
        Ok(self.shared().await?.board.seat(wants, audience))
    }

    /// How far everybody has heard what they want: the place of the next transaction, and the cursor of one who has seen all before it. None
    /// while nobody follows.
    pub fn heard(&self) -> Option<(u64, Cursor)> {
        Some(self.inner.shared.get()?.board.heard())
    }

    /// Whether the log has been stopped: nothing more is told.
    pub fn is_stopped(&self) -> bool {
        self.inner.shared.get().is_some_and(|shared| shared.stopped.load(Ordering::Acquire))
    }

    /// Whether the outbox can be read: otherwise there may be changes that nobody here has been told of.
    pub fn is_healthy(&self) -> bool {
        self.inner.shared.get().is_none_or(|shared| *shared.healthy.borrow())
    }

    /// The transaction at a place in this process's log, while it is in the ring.
    pub fn transaction(&self, place: u64) -> Option<Arc<Transaction>> {
        let ring = self.inner.shared.get()?.ring.read().unwrap_or_else(PoisonError::into_inner);
        ring.from(place, 1)?.pop()
    }

    /// Makes a filter ready to be asked of changes, with the meaning that it has in this database.
    ///
    /// # Errors
    /// [`ErrorKind::Filter`](crate::ErrorKind::Filter) where only the database could answer it.
    pub async fn predicate(&self, entity: &EntityMeta, filter: &Filter) -> Result<Predicate> {
        let semantics: Arc<Semantics> = self.inner.database.semantics().await?;
        Predicate::compile(filter, entity, &semantics)
    }

    /// The rows that certainly come after another in the order of a select, given that one's canonical cells in the columns of
    /// [`Select::sorting`]. None where the database alone could tell.
    ///
    /// # Errors
    /// As [`position`](Self::position).
    pub async fn after(&self, select: &Select, cells: &[Option<String>]) -> Result<Option<Predicate>> {
        let entity = self.inner.catalog.entity(select.entity);
        let semantics = self.inner.database.semantics().await?;
        Ok(filter::after(&select.sorting(entity), cells, entity, &semantics))
    }

    /// The rows that pass a filter at one moment, so many at once, in the order of their key, with the cursor of that moment. Waits while
    /// as many snapshots are open as may be.
    ///
    /// # Errors
    /// As [`position`](Self::position).
    pub async fn snapshot(&self, entity: &EntityMeta, filter: Filter, rows: usize) -> Result<Snapshot> {
        filter.check_depth()?;
        let permit = self.inner.snapshots.permit().await;
        let source = self.inner.database.snapshot(entity.id, filter).await?;
        Ok(Snapshot::start(source, rows, self.inner.options.snapshot_patience, permit))
    }

    /// Removes old changes, about `limit` of them in one go: those written before `before`, and those more than `keep` from the end. A reader
    /// whose cursor is older is then answered by a resync. Mutation ids from before `before` are forgotten too: a retry that comes later
    /// takes effect again.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`](crate::ErrorKind::Busy) and [`ErrorKind::Database`](crate::ErrorKind::Database) as they come.
    pub async fn prune(&self, before: Option<DateTime<Utc>>, keep: Option<u64>, limit: usize) -> Result<Pruned> {
        let pruned = self.inner.database.prune(before, keep, limit).await?;
        self.inner.chunks.clear();
        Ok(pruned)
    }

    /// What the outbox holds.
    ///
    /// # Errors
    /// As [`position`](Self::position).
    pub async fn stats(&self) -> Result<Stats> {
        self.inner.database.stats().await
    }

    /// What the tail of this process has done; all zero while nobody follows.
    pub fn tail_stats(&self) -> TailStats {
        let Some(shared) = self.inner.shared.get() else {
            return TailStats { healthy: self.inner.database.trouble().is_none(), ..TailStats::default() };
        };
        let places = shared.places.all();
        let ring = shared.ring.read().unwrap_or_else(PoisonError::into_inner);
        let behind = places.iter().filter(|place| place.is_none()).count();
        let slowest = places.iter().flatten().min().copied().unwrap_or(ring.next_place());
        let mut stats = TailStats {
            running: true,
            newest_seq: Some(ring.end().position().1),
            newest_at: ring.newest_at(),
            transactions: shared.transactions.load(Ordering::Relaxed),
            changes: shared.changes.load(Ordering::Relaxed),
            ring_transactions: ring.len() as u64,
            ring_bytes: ring.bytes() as u64,
            healthy: *shared.healthy.borrow() && self.inner.database.trouble().is_none(),
            rung: self.inner.database.hears_all(),
            outbox_reads: self.inner.chunks.reads.load(Ordering::Relaxed),
            followers: places.len() as u64,
            followers_behind: behind as u64,
            queue_depth: ring.next_place().saturating_sub(slowest),
            ..TailStats::default()
        };
        drop(ring);
        if let Some(upstream) = &self.running().upstream {
            upstream.describe(&mut stats);
        }
        stats
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries whether the doorbells of other processes are heard: `false` where there are none, or they are turned off.
    ///
    /// # Errors
    /// [`ErrorKind::Setup`](crate::ErrorKind::Setup) where a pooler in between keeps them from being heard; others as
    /// [`position`](Self::position).
    pub async fn check_doorbell(&self) -> Result<bool> {
        self.inner.database.check_doorbell().await
    }

    /// Tries whether the relay can be used; `false` where there is none.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) where NATS does not answer, and
    /// [`ErrorKind::Setup`](crate::ErrorKind::Setup) where its stream is another's. Then the tail reads the database.
    #[cfg(feature = "relay-nats")]
    pub async fn check_relay(&self) -> Result<bool> {
        match &self.inner.options.relay {
            Some(options) => relay::check(options).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// Stops the tail. Whoever follows is told that the log has ended.
    pub async fn stop(&self) {
        if let Some(shared) = self.inner.shared.get() {
            shared.stopped.store(true, Ordering::Release);
            shared.next_place.send_modify(|_| {});
            let (place, at) = shared.board.heard();
            shared.board.restart(place, &at);
        }
        #[cfg(feature = "relay-nats")]
        {
            let relay = self.running().relay.take();
            if let Some(relay) = relay {
                relay.stop().await;
            }
        }
        let tail = self.running().tail.take();
        if let Some(tail) = tail {
            tail.stop().await;
        }
    }

    async fn shared(&self) -> Result<Arc<Shared>> {
        self.inner
            .shared
            .get_or_try_init(|| async {
                let at = self.position().await?;
                let options = &self.inner.options;
                let ring = Ring::new(at.clone(), options.ring_max_bytes, options.ring_max_transactions);
                let shared = Arc::new(Shared {
                    ring: RwLock::new(ring),
                    next_place: watch::Sender::new(0),
                    healthy: watch::Sender::new(true),
                    stopped: AtomicBool::new(false),
                    transactions: AtomicU64::new(0),
                    changes: AtomicU64::new(0),
                    places: Places::default(),
                    board: Arc::new(Board::new(at.clone())),
                    wanted: AtomicBool::new(false),
                });
                self.inner.database.listen();
                self.start(&shared, at);
                Ok(shared)
            })
            .await
            .cloned()
    }

    fn start(&self, shared: &Arc<Shared>, at: Cursor) {
        let Inner { database, options, .. } = &*self.inner;
        let direct = Direct::new(Arc::clone(database), options);
        #[cfg(feature = "relay-nats")]
        let (upstream, relay) = relay::start(direct, &self.inner, shared);
        #[cfg(not(feature = "relay-nats"))]
        let upstream: Arc<dyn Upstream> = Arc::new(direct);
        let tail = Tail::start(Arc::clone(database), Arc::clone(&upstream), Arc::clone(shared), options.clone(), at);
        *self.running() = Running {
            tail: Some(tail),
            upstream: Some(upstream),
            #[cfg(feature = "relay-nats")]
            relay,
        };
    }

    /// Reads the outbox after a cursor, as far as the ring goes. Those who come back at the same time, as after a reconnect storm, share reads: who
    /// asks for the same place, and who asks for one that another has read past.
    async fn chunk(&self, after: &Cursor, ring_end: &Cursor) -> Result<Arc<Read>> {
        let (start, cell) = self.inner.chunks.nearest(after);
        let chunk = self.read(&start, &cell, ring_end).await;
        if start == *after {
            return chunk;
        }
        match chunk.ok().and_then(|chunk| chunks::rest(&chunk, after)) {
            Some(rest) => Ok(Arc::new(rest)),
            None => self.read(after, &self.inner.chunks.begin(after), ring_end).await,
        }
    }

    /// Reads what a cell is for, unless somebody has or is at it.
    async fn read(&self, after: &Cursor, cell: &Arc<chunks::Cell>, ring_end: &Cursor) -> Result<Arc<Read>> {
        let until = Some(ring_end).filter(|end| end.covers(after));
        let read = || async {
            self.inner.chunks.reads.fetch_add(1, Ordering::Relaxed);
            let chunk = self.inner.database.read(after, until, self.inner.options.chunk_changes).await?;
            if chunks::is_kept(&chunk) {
                self.inner.chunks.keep(cell, &chunk);
                let (log, cell) = (Arc::downgrade(&self.inner), Arc::clone(cell));
                tokio::spawn(async move {
                    tokio::time::sleep(chunks::KEPT).await;
                    log.upgrade().inspect(|log| log.chunks.forget(&cell));
                });
            }
            Ok(Arc::new(chunk))
        };
        let chunk = cell.get_or_try_init(read).await.cloned();
        if !chunk.as_deref().is_ok_and(chunks::is_kept) {
            self.inner.chunks.forget(cell);
        }
        chunk
    }
}
