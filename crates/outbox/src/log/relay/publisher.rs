use std::sync::{Arc, PoisonError, atomic::Ordering};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Relay,
    line::{Line, Refusal},
    stretch::{Label, Stretch},
};
use crate::{
    change::Transaction,
    cursor::Cursor,
    error::{Error, ErrorKind, Result},
    log::Shared,
};

/// How much a stretch holds, about. One transaction may be larger.
const STRETCH_TRANSACTIONS: usize = 256;
const STRETCH_BYTES: usize = 256 << 10;
/// How long to wait before something is published again that was not.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(20);

/// Walks the ring and publishes what it finds. It needs no queue of its own: what has fallen out of the ring before its turn came is left out,
/// and those who miss it read the database.
pub(super) struct Publisher<'a> {
    relay: &'a Relay,
    line: &'a Line,
    token: u64,
    /// How many stretches have been published.
    number: u64,
    /// The sequence of the last message.
    last: u64,
}

impl<'a> Publisher<'a> {
    pub(super) fn new(relay: &'a Relay, line: &'a Line, token: u64) -> Self {
        Self { relay, line, token, number: 0, last: 0 }
    }

    /// Publishes until that fails.
    pub(super) async fn run(mut self, shared: &Shared) -> Result<()> {
        let mut news = shared.next_place.subscribe();
        self.last = self.line.last().await?.map_or(0, |last| last.sequence);
        let mut place = Place::end_of(shared);
        let mut beat = Instant::now();
        loop {
            let due = tokio::select! {
                biased;
                _ = news.changed() => false,
                () = sleep_until(beat) => true,
            };
            while let Some(stretch) = place.take(shared) {
                self.publish(&stretch).await?;
                beat = Instant::now() + self.relay.options.beat();
            }
            if due {
                if self.relay.knows() {
                    self.publish(&place.rest(shared)).await?;
                }
                beat = Instant::now() + self.relay.options.beat();
            }
        }
    }

    async fn publish(&mut self, stretch: &Stretch) -> Result<()> {
        let Some(epoch) = stretch.next.position().0 else { return Ok(()) };
        self.number += 1;
        let whole = stretch.write(self.relay.schema);
        let pieces = whole.chunks(self.line.part_bytes());
        let parts = pieces.len() as u32;
        for (part, piece) in (0..).zip(pieces) {
            let label = Label { epoch: epoch.0, token: self.token, number: self.number, part, parts };
            self.publish_part(label, piece).await?;
        }
        self.relay.published.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn publish_part(&mut self, label: Label, piece: &[u8]) -> Result<()> {
        let Label { epoch, token, number, part, .. } = label;
        let id = format!("{epoch:x}-{token}-{number}-{part}");
        let payload = label.write(piece);
        let began = Instant::now();
        loop {
            let failed = match self.line.publish(&id, payload.clone(), self.last).await {
                Ok(sequence) => {
                    self.last = sequence;
                    return Ok(());
                }
                Err(Refusal::Failed(error)) => {
                    // The stream may be gone.
                    self.line.ensure().await?;
                    error
                }
                Err(Refusal::Overtaken) => {
                    self.look_at_last(label).await?;
                    Error::new(
                        ErrorKind::Busy,
                        "others publish to the relay's subject. Give each database one of its own",
                    )
                }
            };
            if began.elapsed() > self.relay.options.patience * 2 {
                return Err(failed);
            }
            sleep(AGAIN).await;
        }
    }

    /// Another message than ours is the last: that of a publisher before us which was on its way, or of our successor.
    async fn look_at_last(&mut self, label: Label) -> Result<()> {
        let last = self.line.last().await?;
        let theirs = last.as_ref().and_then(|last| last.label);
        if theirs.is_some_and(|theirs| theirs.epoch == label.epoch && theirs.token > label.token) {
            return Err(Error::new(ErrorKind::Lost, "another process publishes to the relay now"));
        }
        self.last = last.map_or(0, |last| last.sequence);
        Ok(())
    }
}

/// Where the publisher stands in the ring.
struct Place {
    place: u64,
    at: Cursor,
}

impl Place {
    fn end_of(shared: &Shared) -> Self {
        let ring = shared.ring.read().unwrap_or_else(PoisonError::into_inner);
        Self { place: ring.next_place(), at: ring.end().clone() }
    }

    /// The next transactions, if there are any. Where they have fallen out of the ring, a stretch of nothing from where it goes on.
    fn take(&mut self, shared: &Shared) -> Option<Stretch> {
        let ring = shared.ring.read().unwrap_or_else(PoisonError::into_inner);
        let Some(mut transactions) = ring.from(self.place, STRETCH_TRANSACTIONS) else {
            (self.place, self.at) = (ring.next_place(), ring.end().clone());
            return Some(Stretch::new(self.at.clone(), self.at.clone(), Vec::new()));
        };
        transactions.truncate(fitting(&transactions));
        let last = transactions.last()?;
        self.place += transactions.len() as u64;
        let next = if self.place == ring.next_place() { ring.end() } else { &last.cursor };
        let previous = std::mem::replace(&mut self.at, next.clone());
        Some(Stretch::new(previous, next.clone(), transactions))
    }

    /// A stretch of nothing to where the ring ends, once all transactions have been taken.
    fn rest(&mut self, shared: &Shared) -> Stretch {
        let ring = shared.ring.read().unwrap_or_else(PoisonError::into_inner);
        let next = if self.place == ring.next_place() { ring.end().clone() } else { self.at.clone() };
        let previous = std::mem::replace(&mut self.at, next.clone());
        Stretch::new(previous, next, Vec::new())
    }
}

/// How many of these fit into a stretch: at least one.
fn fitting(transactions: &[Arc<Transaction>]) -> usize {
    let mut bytes = 0;
    let fits = transactions.iter().take_while(|transaction| {
        bytes += transaction.size();
        bytes <= STRETCH_BYTES
    });
    fits.count().max(1)
}
