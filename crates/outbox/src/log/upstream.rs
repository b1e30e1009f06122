use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;

use super::{LogOptions, TailStats};
use crate::{
    cursor::Cursor,
    database::{Database, Read},
    error::Result,
};

/// Where a tail has its transactions from.
///
/// Whatever it is, what it gives is what [`Database::read`] would have given: so followers, cursors and the ring need not know.
#[async_trait]
pub(super) trait Upstream: Send + Sync + fmt::Debug {
    /// How long the tail may rest before it looks again, if the doorbell does not ring, where it would wait for so long by itself.
    fn rest(&self, wait: Duration) -> Duration;

    /// What follows a cursor. A `fresh` answer is of this moment or later, as somebody waits for it; any other may be of a little before.
    async fn read(&self, after: &Cursor, fresh: bool) -> Result<Read>;

    /// Adds what is known of it.
    fn describe(&self, stats: &mut TailStats);
}

/// The database itself.
#[derive(Debug)]
pub(super) struct Direct {
    database: Arc<dyn Database>,
    poll_max_rung: Duration,
    chunk_changes: usize,
    reads: AtomicU64,
}

impl Direct {
    pub(super) fn new(database: Arc<dyn Database>, options: &LogOptions) -> Self {
        let LogOptions { poll_max_rung, chunk_changes, .. } = *options;
        Self { database, poll_max_rung, chunk_changes, reads: AtomicU64::new(0) }
    }

    /// With `until`, only what that cursor's holder has seen of it.
    pub(super) async fn read_until(&self, after: &Cursor, until: Option<&Cursor>) -> Result<Read> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.database.read(after, until, self.chunk_changes).await
    }
}

#[async_trait]
impl Upstream for Direct {
    fn rest(&self, wait: Duration) -> Duration {
        if self.database.hears_all() { self.poll_max_rung } else { wait }
    }

    async fn read(&self, after: &Cursor, _fresh: bool) -> Result<Read> {
        self.read_until(after, None).await
    }

    fn describe(&self, stats: &mut TailStats) {
        stats.reads = self.reads.load(Ordering::Relaxed);
    }
}
