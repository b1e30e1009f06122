//! The boundary to one database: everything above it is the same for all.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use sea_orm::{
    DatabaseConnection, DbBackend, DbErr, ExecResult, QueryResult, Statement, TransactionOptions, sea_query::Value,
};
use tokio::sync::{Notify, watch};

use crate::{
    capture::{Capture, LogStatus},
    change::Transaction,
    context::Context,
    cursor::Cursor,
    error::Result,
    filter::{Filter, Semantics},
    image::Image,
    registry::{EntityId, Kind},
    sql::{Dialect, Select},
};

/// One database with an outbox.
///
/// The implementer promises:
/// - what `execute` and a session's `execute` change is recorded in the same transaction, or they fail and nothing changed (I1, I2);
/// - `read` gives each committed transaction once, whole, with each row's changes in their true order, and never one whose forerunner could
///   still come (I3);
/// - a snapshot's rows and its cursor are of the same moment (I5);
/// - the doorbell rings after each commit of this process that recorded something. It may ring for nothing; a missed ring costs latency only.
///
/// Not promised: an order between rows of transactions that did not touch the same row.
#[async_trait]
pub(crate) trait Database: Send + Sync + fmt::Debug + 'static {
    /// Reads and unrecorded writes.
    fn connection(&self) -> &DatabaseConnection;

    fn dialect(&self) -> &'static dyn Dialect;

    /// Reads the JSON that selects give.
    fn packed(&self) -> &'static dyn Packed;

    /// Rung after commits of this process, and, once it [listens](Self::listen), after those of others that ring.
    fn doorbell(&self) -> &Arc<Notify>;

    /// Begins to listen for the doorbells of other processes, where there are any. Called when the tail starts.
    fn listen(&self) {}

    /// Whether every write of every process rings here now, so that looking for what was not rung for may be rare.
    fn hears_all(&self) -> bool {
        false
    }

    /// Tries whether doorbells of other processes are heard; `false` where there are none, or they are turned off.
    async fn check_doorbell(&self) -> Result<bool> {
        Ok(false)
    }

    /// Connects for writing if that has not happened, so that what is wrong with the database is known early.
    async fn check(&self) -> Result<()>;

    /// How the database says that it is captured.
    async fn capture(&self) -> Result<Capture>;

    /// Puts in place what a capture needs in the database itself, or brings it up to date, and removes what another needed.
    async fn install_capture(&self, capture: Capture) -> Result<()>;

    /// Where the database's own log is what is captured: reads it, or waits until no other node does, until told to stop.
    async fn run_capture(self: Arc<Self>, _stop: watch::Receiver<bool>) {}

    /// How far the database's own log has been read, where it is what is captured.
    async fn log_status(&self) -> Result<Option<LogStatus>> {
        Ok(None)
    }

    /// What keeps changes from being recorded, as far as the latest look at the outbox showed it. Costs no look at the database.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// What comparisons mean here.
    async fn semantics(&self) -> Result<Arc<Semantics>>;

    /// Runs a statement in a transaction of its own if it writes; reads go to the readers.
    async fn execute(&self, statement: Statement, text: Text, context: &Context) -> Result<Executed, DbErr>;

    /// Streams a statement's rows.
    async fn stream(&self, statement: Statement, context: &Context) -> Result<Rows<'static>, DbErr>;

    /// Opens a transaction.
    async fn begin(&self, context: &Context, options: TransactionOptions) -> Result<Arc<dyn Session>, DbErr>;

    /// Opens a transaction for Tidewire's own tables alone, however the database is captured.
    async fn begin_own(&self) -> Result<Arc<dyn Session>, DbErr> {
        self.begin(&Context::default(), TransactionOptions::default()).await
    }

    /// Where a reader that has seen everything stands now.
    async fn position(&self) -> Result<Cursor>;

    /// The transactions that the cursor's holder has not seen, oldest first, about `limit` changes of them (but at least one transaction).
    ///
    /// With `until`, only what that cursor's holder has seen of them, where the database can tell: so a reader ends where another stands.
    async fn read(&self, after: &Cursor, until: Option<&Cursor>, limit: usize) -> Result<Read>;

    /// Answers selects as JSON (see [`Select`]), all from one snapshot, with the snapshot's cursor if asked.
    async fn fetch(&self, selects: &[Select], with_cursor: bool) -> Result<Fetched>;

    /// Opens a snapshot of the rows that pass a filter.
    async fn snapshot(&self, entity: EntityId, filter: Filter) -> Result<Box<dyn SnapshotSource>>;

    /// Whether the cursor belongs to the history that the log has, as far as the latest read showed it. Costs no look at the database.
    fn continues(&self, cursor: &Cursor) -> bool;

    /// Removes the oldest changes that are older than `before`, or more than `keep` from the end, about `limit` of them. Whole
    /// transactions only.
    async fn prune(&self, before: Option<DateTime<Utc>>, keep: Option<u64>, limit: usize) -> Result<Pruned>;

    /// What the outbox holds.
    async fn stats(&self) -> Result<Stats>;

    /// Closes all connections after what is running has ended.
    async fn close(&self);
}

/// Reads the JSON that a database makes of its values, as [`Select`]s give it.
pub trait Packed: Send + Sync {
    /// Appends the canonical form (see [`cell`](crate::cell)) of a cell of this kind; answers `false`, having written nothing, for NULL.
    fn write_canonical(&self, kind: &Kind, packed: &str, out: &mut String) -> bool;
}

/// An open snapshot, on a connection of its own, so that readers never wait for one. Dropped, it is closed.
#[async_trait]
pub(crate) trait SnapshotSource: Send {
    /// Where a reader stands that has these rows.
    fn cursor(&self) -> &Cursor;

    /// The next rows in the order of their key, up to `limit` of them. Fewer than that only at the end.
    async fn next(&mut self, limit: usize) -> Result<Vec<Image>>;
}

/// An open transaction, with the savepoints inside it. Dropped unfinished, it is rolled back.
#[async_trait]
pub(crate) trait Session: Send + Sync + fmt::Debug {
    async fn execute(&self, statement: Statement, text: Text, context: &Context) -> Result<Executed, DbErr>;

    /// Streams a statement's rows. No other statement runs in the session until the stream ends.
    async fn stream<'a>(&'a self, statement: Statement, context: &'a Context) -> Result<Rows<'a>, DbErr>;

    async fn fetch(&self, select: &Select) -> Result<String>;

    async fn savepoint(&self, level: u32) -> Result<(), DbErr>;

    async fn release(&self, level: u32) -> Result<(), DbErr>;

    async fn rollback_to(&self, level: u32) -> Result<(), DbErr>;

    /// Rolls back to the savepoint before whatever comes next; for a drop, which cannot wait.
    fn abandon(&self, level: u32);

    async fn commit(&self) -> Result<(), DbErr>;

    async fn rollback(&self) -> Result<(), DbErr>;

    /// Runs a statement on Tidewire's own tables.
    async fn own(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr>;
}

/// A statement on Tidewire's own tables, with the database's own placeholders in place of question marks.
pub(crate) fn own<const N: usize>(backend: DbBackend, sql: &str, values: [Value; N]) -> Statement {
    if backend != DbBackend::Postgres {
        return Statement::from_sql_and_values(backend, sql, values);
    }
    let mut text = String::with_capacity(sql.len() + 8);
    for (number, part) in sql.split('?').enumerate() {
        if number > 0 {
            text.push_str(&format!("${number}"));
        }
        text.push_str(part);
    }
    Statement::from_sql_and_values(backend, text, values)
}

/// The name of the savepoint at a level.
pub(crate) fn savepoint(level: u32) -> String {
    format!("tidewire_{level}")
}

/// The lowest savepoint that was dropped and not yet rolled back; 0 for none. Levels end inside out, so the lowest undoes those above it.
#[derive(Debug, Default)]
pub(crate) struct Abandoned(AtomicU32);

impl Abandoned {
    pub(crate) fn add(&self, level: u32) {
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |pending| {
            Some(if pending == 0 { level } else { pending.min(level) })
        });
    }

    /// The level to roll back to before whatever comes next. It stays until [`rolled_back`](Self::rolled_back).
    pub(crate) fn level(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Acquire)).filter(|level| *level > 0)
    }

    /// Forgets what has been undone, unless a lower level was dropped meanwhile.
    pub(crate) fn rolled_back(&self, level: u32) {
        let _ = self.0.compare_exchange(level, 0, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The level to roll back to before whatever comes next.
    pub(crate) fn take(&self) -> Option<u32> {
        Some(self.0.swap(0, Ordering::AcqRel)).filter(|level| *level > 0)
    }
}

pub(crate) type Rows<'a> = BoxStream<'a, Result<QueryResult, DbErr>>;

/// Whether a text is one prepared statement or any number of plain ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Text {
    One,
    Many,
}

/// What running a statement gave.
#[derive(Debug)]
pub(crate) struct Executed {
    pub(crate) result: ExecResult,
    pub(crate) rows: Vec<QueryResult>,
}

/// What [`Database::read`] answers.
#[derive(Debug)]
pub(crate) enum Read {
    /// Transactions, and whether there were no more after them.
    Transactions { transactions: Vec<Arc<Transaction>>, reached_end: bool, end: Cursor },
    /// The cursor's history cannot be continued.
    Resync(ResyncReason),
}

/// Why a reader must start over from a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResyncReason {
    /// Changes after the cursor have been removed by retention.
    Trimmed,
    /// The cursor belongs to a history that the log no longer has (a restored backup).
    Epoch,
    /// A single transaction is larger than a reader may be given at once.
    Oversized,
}

/// What [`Database::fetch`] answers: one JSON text per select.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) parts: Vec<String>,
    pub(crate) cursor: Option<Cursor>,
}

/// What a round of pruning did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// How many changes it removed.
    pub changes: u64,
    /// Whether more remain to be removed.
    pub more: bool,
}

/// What the outbox holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// How many changes it holds, at most: counted by their numbers, which may have holes.
    pub changes: u64,
    /// The number of the oldest.
    pub oldest_seq: Option<u64>,
    /// The number of the newest.
    pub newest_seq: Option<u64>,
    /// When the oldest was written.
    pub oldest_at: Option<DateTime<Utc>>,
    /// When the newest was written.
    pub newest_at: Option<DateTime<Utc>>,
    /// How many changes were ever recorded, at most: the number that was given last.
    pub recorded: u64,
    /// Up to which number retention has removed changes.
    pub trimmed_through: u64,
}
