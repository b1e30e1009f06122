use std::{
    fmt,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use tokio::sync::watch;

use super::{Log, Ring, Shared, places::Place};
use crate::{
    change::Transaction,
    cursor::Cursor,
    database::{Read, ResyncReason},
    error::Result,
};

/// How many transactions a follower takes from the ring at once.
const TAKE: usize = 256;

/// One reader's walk through the log.
pub struct Follower {
    log: Log,
    shared: Arc<Shared>,
    news: watch::Receiver<u64>,
    healthy: watch::Receiver<bool>,
    cursor: Cursor,
    /// The place in the ring of the next transaction, while the reader is in the ring.
    place: Place,
    /// What the reader was last told of whether it has seen everything.
    up_to_date: Option<bool>,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("cursor", &self.cursor)
            .field("place", &self.place.get())
            .finish_non_exhaustive()
    }
}

/// What comes next in the log.
#[derive(Debug, Clone)]
pub enum Step {
    /// Transactions, in order.
    Transactions {
        /// May be empty, where the only news is that there is none.
        transactions: Vec<Arc<Transaction>>,
        /// Where the reader stands now.
        cursor: Cursor,
        /// Whether the reader has now seen everything that there is, as far as this process knows. `false` without transactions: the outbox
        /// can no longer be read, so there may be more. The reader need do nothing; another step tells when it is up to date again.
        up_to_date: bool,
    },
    /// The reader cannot go on from where it stands and must start over from a snapshot.
    Resync(ResyncReason),
    /// The log has been stopped; nothing more will come.
    Ended,
}

impl Follower {
    pub(super) fn new(log: Log, shared: Arc<Shared>, cursor: Cursor) -> Self {
        let (news, healthy) = (shared.next_place.subscribe(), shared.healthy.subscribe());
        let place = shared.places.add();
        Self { log, shared, news, healthy, cursor, place, up_to_date: None }
    }

    /// Where the reader stands: the transactions that it has been given.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// The reader has started over from a snapshot: it goes on from that snapshot's cursor.
    pub fn restart(&mut self, at: Cursor) {
        self.cursor = at;
        self.place.set(None);
        self.up_to_date = None;
    }

    /// The number, in this process's log, of the transaction that comes next; `None` while the reader reads from the outbox.
    pub fn place(&self) -> Option<u64> {
        self.place.get()
    }

    /// How many transactions in the ring the reader has not been given yet; `None` while it reads from the outbox.
    pub fn behind(&self) -> Option<u64> {
        let ring = self.shared.ring.read().unwrap_or_else(PoisonError::into_inner);
        Some(ring.next_place().saturating_sub(self.place.get()?))
    }

    /// Waits for what comes next. The first answer comes at once, if only to say that the reader is up to date.
    ///
    /// May be dropped and called again without losing anything.
    ///
    /// # Errors
    /// Only while the reader reads from the outbox; the same call may be made again.
    pub async fn next(&mut self) -> Result<Step> {
        loop {
            // Seen before the look into the ring, so that nothing that comes after it is slept through.
            self.news.borrow_and_update();
            let healthy = *self.healthy.borrow_and_update();
            if self.shared.stopped.load(Ordering::Acquire) {
                return Ok(Step::Ended);
            }
            match self.look(healthy) {
                Look::Found(step) => return Ok(step),
                Look::Nothing => self.changed().await,
                Look::Behind => match &*self.log.chunk(&self.cursor, &self.ring_end()).await? {
                    Read::Resync(reason) => return Ok(Step::Resync(*reason)),
                    Read::Transactions { transactions, end, reached_end } => {
                        self.cursor = end.clone();
                        if !transactions.is_empty() {
                            return Ok(Step::Transactions {
                                transactions: transactions.clone(),
                                cursor: end.clone(),
                                up_to_date: false,
                            });
                        }
                        if let (Look::Behind, true) = (self.look_for_place(), *reached_end) {
                            // The outbox has nothing more and the tail has not come this far yet: it is about to.
                            self.shared.wanted.store(true, Ordering::Release);
                            self.log.inner.database.doorbell().notify_one();
                            self.changed().await;
                        }
                    }
                },
            }
        }
    }

    async fn changed(&mut self) {
        // The senders live as long as the log, which this keeps.
        tokio::select! {
            _ = self.news.changed() => {}
            _ = self.healthy.changed() => {}
        }
    }

    /// A cursor may come from outside, so whether it belongs to this history is looked at before its number is believed.
    fn find_place(&self, ring: &Ring) -> Option<u64> {
        if self.log.inner.database.continues(&self.cursor) { ring.place_after(&self.cursor) } else { None }
    }

    fn ring_end(&self) -> Cursor {
        self.shared.ring.read().unwrap_or_else(PoisonError::into_inner).end().clone()
    }

    fn look_for_place(&mut self) -> Look {
        let ring = self.shared.ring.read().unwrap_or_else(PoisonError::into_inner);
        self.place.set(self.find_place(&ring));
        if self.place.get().is_some() { Look::Nothing } else { Look::Behind }
    }

    fn look(&mut self, healthy: bool) -> Look {
        let ring = self.shared.ring.read().unwrap_or_else(PoisonError::into_inner);
        let Some((place, transactions)) = self
            .place
            .get()
            .or_else(|| self.find_place(&ring))
            .and_then(|place| Some((place, ring.from(place, TAKE)?)))
        else {
            self.place.set(None);
            self.up_to_date = None;
            return Look::Behind;
        };
        let next = place + transactions.len() as u64;
        let at_end = next == ring.next_place();
        let up_to_date = at_end && healthy;
        if transactions.is_empty() && self.up_to_date == Some(up_to_date) && self.cursor == *ring.end() {
            self.place.set(Some(place));
            return Look::Nothing;
        }
        self.place.set(Some(next));
        self.up_to_date = Some(up_to_date);
        self.cursor = match transactions.last() {
            // At the end of the ring the reader has also seen the numbers that no transaction got.
            _ if at_end => ring.end().clone(),
            Some(last) => last.cursor.clone(),
            None => self.cursor.clone(),
        };
        Look::Found(Step::Transactions { transactions, cursor: self.cursor.clone(), up_to_date })
    }
}

enum Look {
    Found(Step),
    /// The reader is at the end of the ring.
    Nothing,
    /// What the reader needs next is not in the ring.
    Behind,
}
