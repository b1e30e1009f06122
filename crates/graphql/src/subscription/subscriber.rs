//! One subscriber's way through the log.
//!
//! Who has had everything is *live*: they wait for what their group finds to mean something, and cost nothing meanwhile. Who has yet to get
//! there, or was too slow, follows the log itself, from the ring or from the outbox, until they are.

use std::sync::{Arc, atomic::Ordering};

use futures_util::Stream;
use tidewire_outbox::{Cursor, Error, Follower, ResyncReason, Snapshot, Step};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Open, RETRY,
    changes::{ChangeGroup, Gone, Shared, Start},
    hits::Live,
};
use crate::{error::ApiError, frame::Frame};

/// How many events a live subscriber takes at once.
const TAKE: usize = 64;

/// Why a text that is no cursor cannot be continued.
pub(super) const MALFORMED: &str = "MALFORMED";

/// What a reason to start over is called on the wire.
pub(super) fn resync_word(reason: ResyncReason) -> &'static str {
    match reason {
        ResyncReason::Trimmed => "TRIMMED",
        ResyncReason::Epoch => "EPOCH",
        ResyncReason::Oversized => "OVERSIZED",
    }
}

/// One subscriber's events.
///
/// # Errors
/// Where the log cannot be read.
pub(super) async fn subscribe(
    group: Arc<ChangeGroup>,
    start: Start,
    open: Open,
) -> Result<impl Stream<Item = Vec<Frame>> + Send, ApiError> {
    let log = group.model.log();
    let next = match start.after {
        Some(Err(())) => Next::Resync(MALFORMED),
        None if start.snapshot => Next::OpenSnapshot,
        _ => Next::CatchUp,
    };
    let cursor = match start.after {
        Some(Ok(cursor)) => cursor,
        _ => log.position().await?,
    };
    let subscriber = Subscriber {
        told_cursor: cursor.clone(),
        cursor,
        next,
        ready: Vec::new(),
        sequence: 0,
        told: false,
        told_at: Instant::now(),
        wants_snapshot: start.snapshot,
        group,
        open,
    };
    Ok(futures_util::stream::unfold(subscriber, |mut subscriber| async move {
        let frames = subscriber.next_frames().await?;
        Some((frames, subscriber))
    }))
}

struct Subscriber {
    group: Arc<ChangeGroup>,
    next: Next,
    /// Everything before this has been given, or means nothing to the group.
    cursor: Cursor,
    /// What has yet to be handed over.
    ready: Vec<Frame>,
    sequence: u64,
    /// Whether the client was last told that it has seen everything.
    told: bool,
    told_at: Instant,
    /// The newest cursor that the client was told.
    told_cursor: Cursor,
    wants_snapshot: bool,
    open: Open,
}

/// What a subscriber does next.
enum Next {
    /// Say that the client must start over, and why.
    Resync(&'static str),
    OpenSnapshot,
    Snapshot(Box<Snapshot>),
    /// Begin to follow the log from the subscriber's cursor.
    CatchUp,
    Follow(Box<Follower>),
    Live(Live),
    End,
}

impl Subscriber {
    async fn next_frames(&mut self) -> Option<Vec<Frame>> {
        loop {
            if !self.ready.is_empty() {
                return Some(std::mem::take(&mut self.ready));
            }
            self.next = match std::mem::replace(&mut self.next, Next::End) {
                Next::Live(live) => self.live(live).await,
                Next::End => return None,
                // In a box: nearly all subscribers are live, and should weigh no more than that takes.
                other => Box::pin(self.get_there(other)).await,
            };
        }
    }

    /// A step of one who is not live yet.
    async fn get_there(&mut self, next: Next) -> Next {
        match next {
            Next::Resync(reason) => self.resync(reason).await,
            Next::OpenSnapshot => self.open_snapshot().await,
            Next::Snapshot(snapshot) => self.read_snapshot(snapshot).await,
            Next::CatchUp => self.catch_up().await,
            Next::Follow(follower) => self.follow(follower).await,
            Next::Live(_) | Next::End => next,
        }
    }

    fn send(&mut self, shared: Shared, up_to_date: bool) {
        self.open.0.events.fetch_add(1, Ordering::Relaxed);
        self.open.0.changes.fetch_add(shared.changes, Ordering::Relaxed);
        self.ready.push(Frame::new(shared.template, self.sequence, up_to_date));
        self.sequence += 1;
        self.told = up_to_date;
        self.told_at = Instant::now();
        if let Some(cursor) = shared.cursor {
            self.told_cursor = cursor;
        }
    }

    /// Tells where the client stands, and nothing else.
    async fn tell_cursor(&mut self, up_to_date: bool) {
        let event = self.group.write(Some(&self.cursor), None, &[]).await;
        self.send(event, up_to_date);
    }

    async fn resync(&mut self, reason: &'static str) -> Next {
        self.open.0.resyncs.fetch_add(1, Ordering::Relaxed);
        if self.wants_snapshot {
            let event = self.group.write(None, Some(reason), &[]).await;
            self.send(event, false);
            return Next::OpenSnapshot;
        }
        match self.group.model.log().position().await {
            Ok(now) => {
                let event = self.group.write(Some(&now), Some(reason), &[]).await;
                self.send(event, false);
                self.cursor = now;
                Next::CatchUp
            }
            Err(error) => again(&error, "the log could not be read", Next::Resync(reason)).await,
        }
    }

    async fn open_snapshot(&mut self) -> Next {
        let Some((entity, filter)) = &self.group.shape else { return Next::CatchUp };
        let model = &self.group.model;
        let entity = model.catalog().entity(*entity);
        match model.log().snapshot(entity, filter.clone(), model.options.snapshot_rows).await {
            Ok(snapshot) => Next::Snapshot(Box::new(snapshot)),
            Err(error) => again(&error, "a snapshot could not be opened", Next::OpenSnapshot).await,
        }
    }

    async fn read_snapshot(&mut self, mut snapshot: Box<Snapshot>) -> Next {
        let group = Arc::clone(&self.group);
        let images = match snapshot.next().await {
            Ok(images) => images.unwrap_or_default(),
            Err(error) => {
                // The rows that were sent belong to a moment that is lost.
                return again(&error, "a snapshot could not be read to its end", Next::Resync("INTERRUPTED")).await;
            }
        };
        let cursor = snapshot.is_ended().then(|| snapshot.cursor().clone());
        let seen: Vec<_> = images.iter().filter_map(|image| group.row(image)).collect();
        self.send(group.write(cursor.as_ref(), None, &seen).await, false);
        match cursor {
            Some(cursor) => {
                self.cursor = cursor;
                Next::CatchUp
            }
            None => Next::Snapshot(snapshot),
        }
    }

    async fn catch_up(&mut self) -> Next {
        match self.group.model.log().follow_all(self.cursor.clone()).await {
            Ok(follower) => Next::Follow(Box::new(follower)),
            Err(error) => again(&error, "the log could not be read", Next::CatchUp).await,
        }
    }

    async fn follow(&mut self, mut follower: Box<Follower>) -> Next {
        let group = Arc::clone(&self.group);
        match follower.next().await {
            Ok(Step::Transactions { transactions, cursor, up_to_date }) => {
                // Before the events are written: whatever comes meanwhile is then found for this subscriber too.
                let live = follower.place().and_then(|place| group.hits.join(place));
                let mut events = Vec::new();
                for transaction in &transactions {
                    if let Some(event) = group.event(transaction).await {
                        events.push(event);
                    }
                }
                let last = events.len();
                for (index, event) in events.into_iter().enumerate() {
                    self.send(event, up_to_date && index + 1 == last);
                }
                self.cursor = cursor;
                // That it is up to date, or that it no longer may be: the outbox cannot be read.
                let unsure = transactions.is_empty() && !up_to_date && self.told;
                if last == 0 && (unsure || (up_to_date && !self.told)) {
                    self.tell_cursor(up_to_date).await;
                }
                match live {
                    Some(live) => Next::Live(live),
                    None => Next::Follow(follower),
                }
            }
            Ok(Step::Resync(reason)) => Next::Resync(resync_word(reason)),
            Ok(Step::Ended) => Next::End,
            Err(error) => again(&error, "the log could not be read", Next::Follow(follower)).await,
        }
    }

    fn left_behind(&self) -> Next {
        self.open.0.left_behind.fetch_add(1, Ordering::Relaxed);
        Next::CatchUp
    }

    async fn live(&mut self, mut live: Live) -> Next {
        let group = Arc::clone(&self.group);
        let log = group.model.log();
        let Some(hits) = live.take(TAKE) else { return self.left_behind() };
        if !hits.is_empty() {
            let (last, caught_up) = (hits.len() - 1, live.is_at_end() && log.is_healthy());
            for (index, (number, hit)) in hits.iter().enumerate() {
                match group.hit(*number, hit).await {
                    Ok(event) => {
                        if let Some(cursor) = &event.cursor {
                            self.cursor.clone_from(cursor);
                        }
                        self.send(event, caught_up && index == last);
                    }
                    Err(Gone) => return self.left_behind(),
                }
            }
            return Next::Live(live);
        }
        let caught_up = log.is_healthy();
        let deadline = self.told_at + group.model.options.cursor_interval;
        if caught_up == self.told && Instant::now() < deadline {
            let _ = timeout_at(deadline, live.news()).await;
            return Next::Live(live);
        }
        // Looked at in this order: what was heard by then has been found, or is still to be taken.
        let heard = log.heard();
        if !live.is_at_end() {
            return Next::Live(live);
        }
        if let Some((_, cursor)) = heard.filter(|(place, _)| *place >= live.place()) {
            self.cursor = cursor;
        }
        // Nothing for this client for a while. If the log has gone on, it should know where to resume.
        if caught_up != self.told || (caught_up && self.cursor != self.told_cursor) {
            Box::pin(self.tell_cursor(caught_up)).await;
        }
        self.told_at = Instant::now();
        Next::Live(live)
    }
}

/// Waits for a while after a failure, and then does this.
async fn again(error: &Error, problem: &str, next: Next) -> Next {
    tracing::warn!(%error, "{problem}; trying again");
    sleep(RETRY).await;
    next
}
