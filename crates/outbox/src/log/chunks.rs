//! Reads of the outbox that several share.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use tokio::sync::OnceCell;

use crate::{cursor::Cursor, database::Read};

/// How many are kept.
const CAPACITY: usize = 16;

/// How large a chunk may be that is kept.
const MAX_BYTES: usize = 8 << 20;

/// For how long one is kept: those who come back together do so within seconds.
pub(super) const KEPT: Duration = Duration::from_secs(10);

/// Recent reads of the outbox by where they began.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    recent: Mutex<VecDeque<(Cursor, Arc<Cell>)>>,
    /// How many there were.
    pub(super) reads: AtomicU64,
}

/// What was read, or is being read.
pub(super) type Cell = OnceCell<Arc<Read>>;

impl Chunks {
    fn recent(&self) -> MutexGuard<'_, VecDeque<(Cursor, Arc<Cell>)>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The read that began at a cursor, or else the one that began the shortest way before it, or else a new one. Only where cursors are numbers does a
    /// read that began elsewhere have just what follows the cursor, see [`rest`].
    pub(super) fn nearest(&self, after: &Cursor) -> (Cursor, Arc<Cell>) {
        let recent = self.recent();
        let begins_before = |start: &Cursor| {
            after.is_number() && start.is_number() && start.position().0 == after.position().0 && after.covers(start)
        };
        let found = recent.iter().find(|(start, _)| start == after).or_else(|| {
            recent.iter().filter(|(start, _)| begins_before(start)).max_by_key(|(start, _)| start.position().1)
        });
        if let Some(found) = found {
            return found.clone();
        }
        drop(recent);
        (after.clone(), self.begin(after))
    }

    /// A read that begins at a cursor, which somebody may be at already.
    pub(super) fn begin(&self, after: &Cursor) -> Arc<Cell> {
        let mut recent = self.recent();
        if let Some((_, cell)) = recent.iter().find(|(start, _)| start == after) {
            return Arc::clone(cell);
        }
        if recent.len() == CAPACITY {
            recent.pop_front();
        }
        let cell = Arc::default();
        recent.push_back((after.clone(), Arc::clone(&cell)));
        cell
    }

    pub(super) fn forget(&self, after: &Cursor, cell: &Arc<Cell>) {
        self.recent().retain(|(start, other)| start != after || !Arc::ptr_eq(other, cell));
    }

    /// What was removed from the outbox is given to nobody from here either.
    pub(super) fn clear(&self) {
        self.recent().clear();
    }
}

/// Whether a read is kept for those who may come. A resync is true of the moment only, and so is it that nothing follows; and what is large is not kept.
pub(super) fn is_kept(read: &Read) -> bool {
    match read {
        Read::Transactions { transactions, .. } if !transactions.is_empty() => {
            transactions.iter().map(|transaction| transaction.size()).sum::<usize>() <= MAX_BYTES
        }
        _ => false,
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
