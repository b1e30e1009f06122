//! Reads of the outbox that several share.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use tokio::sync::OnceCell;

use crate::{cursor::Cursor, database::Read};

/// How many are kept: those who come back together stand at many places.
const CAPACITY: usize = 1_024;

/// How large a chunk may be that is kept, and how large all of them together.
const MAX_CHUNK_BYTES: usize = 8 << 20;
const MAX_BYTES: usize = 64 << 20;

/// For how long one is kept: those who come back together do so within seconds.
pub(super) const KEPT: Duration = Duration::from_secs(10);

/// Recent reads of the outbox by where they began.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    recent: Mutex<VecDeque<Chunk>>,
    /// How many there were.
    pub(super) reads: AtomicU64,
}

#[derive(Debug)]
struct Chunk {
    start: Cursor,
    cell: Arc<Cell>,
    /// How large it is, once it has been read.
    bytes: usize,
}

/// What was read, or is being read.
pub(super) type Cell = OnceCell<Arc<Read>>;

impl Chunks {
    fn recent(&self) -> MutexGuard<'_, VecDeque<Chunk>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The read that began at a cursor, or else the one that began the shortest way before it, or else a new one. Only where cursors are numbers does a
    /// read that began elsewhere have just what follows the cursor, see [`rest`].
    pub(super) fn nearest(&self, after: &Cursor) -> (Cursor, Arc<Cell>) {
        let recent = self.recent();
        let begins_before = |start: &Cursor| {
            after.is_number() && start.is_number() && start.position().0 == after.position().0 && after.covers(start)
        };
        let found = recent.iter().find(|chunk| chunk.start == *after).or_else(|| {
            recent.iter().filter(|chunk| begins_before(&chunk.start)).max_by_key(|chunk| chunk.start.position().1)
        });
        if let Some(found) = found {
            return (found.start.clone(), Arc::clone(&found.cell));
        }
        drop(recent);
        (after.clone(), self.begin(after))
    }

    /// A read that begins at a cursor, which somebody may be at already.
    pub(super) fn begin(&self, after: &Cursor) -> Arc<Cell> {
        let mut recent = self.recent();
        if let Some(chunk) = recent.iter().find(|chunk| chunk.start == *after) {
            return Arc::clone(&chunk.cell);
        }
        if recent.len() == CAPACITY {
            recent.pop_front();
        }
        let cell = Arc::default();
        recent.push_back(Chunk { start: after.clone(), cell: Arc::clone(&cell), bytes: 0 });
        cell
    }

    /// Makes room for what a cell has got.
    pub(super) fn keep(&self, cell: &Arc<Cell>, read: &Read) {
        let mut recent = self.recent();
        if let Some(chunk) = recent.iter_mut().find(|chunk| Arc::ptr_eq(&chunk.cell, cell)) {
            chunk.bytes = size(read);
        }
        let mut bytes: usize = recent.iter().map(|chunk| chunk.bytes).sum();
        while bytes > MAX_BYTES {
            bytes -= recent.pop_front().map_or(bytes, |oldest| oldest.bytes);
        }
    }

    pub(super) fn forget(&self, cell: &Arc<Cell>) {
        self.recent().retain(|chunk| !Arc::ptr_eq(&chunk.cell, cell));
    }

    /// What was removed from the outbox is given to nobody from here either.
    pub(super) fn clear(&self) {
        self.recent().clear();
    }
}

/// Whether a read is kept for those who may come. A resync is true of the moment only, and so is it that nothing follows; and what is large is not kept.
pub(super) fn is_kept(read: &Read) -> bool {
    (1..=MAX_CHUNK_BYTES).contains(&size(read))
}

fn size(read: &Read) -> usize {
    match read {
        Read::Transactions { transactions, .. } => transactions.iter().map(|transaction| transaction.size()).sum(),
        Read::Resync(_) => 0,
    }
}

/// What a read that began before a cursor, which is a number, has found after it. `None` where it did not get that far.
pub(super) fn rest(read: &Read, after: &Cursor) -> Option<Read> {
    let Read::Transactions { transactions, reached_end, end } = read else { return None };
    if after.covers(end) {
        return None;
    }
    let seen = transactions.partition_point(|transaction| after.covers(&transaction.cursor));
    Some(Read::Transactions {
        transactions: transactions[seen..].to_vec(),
        reached_end: *reached_end,
        end: end.clone(),
    })
}
