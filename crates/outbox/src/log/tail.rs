use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{LogOptions, Shared, upstream::Upstream};
use crate::{
    cursor::Cursor,
    database::{Database, Read},
    error::{Error, ErrorKind, backoff},
};

/// How soon the tail looks again after it found something.
const POLL_MIN: Duration = Duration::from_millis(2);
/// How long it waits at most after failures.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// How long the outbox may not be readable before anybody is told: a connection that broke is soon replaced.
const OUTAGE: Duration = Duration::from_secs(2);
/// How long a look may take before it is tried again on another connection, since a network may swallow what it carries: at first, and, where
/// looks are slow, at most.
const LOOK_MIN: Duration = Duration::from_secs(5);
const LOOK_MAX: Duration = Duration::from_secs(60);

/// The one reader per process that turns outbox rows into the ring.
#[derive(Debug)]
pub(super) struct Tail {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Tail {
    pub(super) fn start(
        database: Arc<dyn Database>,
        upstream: Arc<dyn Upstream>,
        shared: Arc<Shared>,
        options: LogOptions,
        at: Cursor,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(run(database, upstream, shared, options, at, stopped));
        Self { stop, task }
    }

    pub(super) async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}

async fn run(
    database: Arc<dyn Database>,
    upstream: Arc<dyn Upstream>,
    shared: Arc<Shared>,
    options: LogOptions,
    mut at: Cursor,
    mut stopped: watch::Receiver<bool>,
) {
    let doorbell = Arc::clone(database.doorbell());
    let mut wait = POLL_MIN;
    let mut trouble: Option<Trouble> = None;
    loop {
        tokio::select! {
            // Notify to be fast, poll to be right: a doorbell may be lost, and not everybody rings.
            _ = timeout(upstream.rest(wait), doorbell.notified()) => {}
            // An error means that the log is gone, which ends this too.
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        let before = at.clone();
        let looked = tokio::select! {
            looked = advance(&*database, &*upstream, &shared, &mut at, trouble) => looked,
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        match looked {
            Ok(found) => {
                wait = if found { POLL_MIN } else { (wait + wait / 2).min(options.poll_max) };
                trouble = None;
                if shared.set_healthy(true) {
                    tracing::info!("the outbox can be read again");
                }
            }
            Err(error) => {
                // Whoever wanted the ring to move still does.
                shared.wanted.store(true, Ordering::Release);
                // Who came further on the way has reason to try again at once, however long the way is.
                let Trouble { since, failures } = trouble.filter(|_| at == before).unwrap_or_else(Trouble::now);
                if trouble.is_none() {
                    tracing::warn!(%error, "the outbox could not be read; trying again");
                }
                if since.elapsed() >= OUTAGE {
                    shared.set_healthy(false);
                }
                trouble = Some(Trouble { since, failures: failures + 1 });
                tokio::select! {
                    () = sleep(backoff(POLL_MIN, RETRY_MAX, failures)) => {}
                    _ = stopped.wait_for(|stop| *stop) => return,
                }
            }
        }
    }
}

/// Since when the outbox cannot be read, and how often that was tried.
#[derive(Debug, Clone, Copy)]
struct Trouble {
    since: Instant,
    failures: u32,
}

impl Trouble {
    fn now() -> Self {
        Self { since: Instant::now(), failures: 0 }
    }
}

/// A look at the outbox. One that takes long is an outage, though it goes on for a while; it may be dropped at any time.
async fn look(
    upstream: &dyn Upstream,
    shared: &Shared,
    at: &Cursor,
    fresh: bool,
    trouble: Option<Trouble>,
) -> crate::Result<Read> {
    let Trouble { since, failures } = trouble.unwrap_or_else(Trouble::now);
    let most = backoff(LOOK_MIN, LOOK_MAX, failures);
    let read = timeout(most, upstream.read(at, fresh));
    tokio::pin!(read);
    let read = tokio::select! {
        read = &mut read => read,
        () = sleep_until(since + OUTAGE) => {
            shared.set_healthy(false);
            read.await
        }
    };
    read.unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "the database did not answer in time")))
}

/// Reads to the end of the outbox; answers whether there was anything new.
async fn advance(
    database: &dyn Database,
    upstream: &dyn Upstream,
    shared: &Shared,
    at: &mut Cursor,
    trouble: Option<Trouble>,
) -> crate::Result<bool> {
    let mut found = false;
    loop {
        // Before the read: who asks during it may stand at a later moment than the read's.
        let wanted = shared.wanted.swap(false, Ordering::AcqRel);
        match look(upstream, shared, at, wanted, trouble).await? {
            Read::Transactions { transactions, reached_end, end } => {
                found |= !transactions.is_empty();
                let changes: usize = transactions.iter().map(|transaction| transaction.changes.len()).sum();
                shared.transactions.fetch_add(transactions.len() as u64, Ordering::Relaxed);
                shared.changes.fetch_add(changes as u64, Ordering::Relaxed);
                // Also without transactions: what was in flight may have ended without a change, and retention passes who waits for it. And a
                // follower may have read to a later moment by itself, and wait for the ring to come there.
                let moved = *at != end;
                *at = end.clone();
                let told = transactions.clone();
                let next = publish(shared, moved || wanted, |ring| ring.extend(transactions, end));
                shared.board.tell(next - told.len() as u64, &told, at);
                if reached_end {
                    return Ok(found);
                }
            }
            Read::Resync(reason) => {
                tracing::warn!(?reason, "the log does not continue where it was read to; those who follow start over");
                *at = database.position().await?;
                let next = publish(shared, true, |ring| ring.restart(at.clone()));
                shared.board.restart(next, at);
                found = true;
            }
        }
    }
}

/// Changes the ring; answers the place that the next transaction will have.
fn publish(shared: &Shared, wake: bool, change: impl FnOnce(&mut super::Ring)) -> u64 {
    let next = {
        let mut ring = shared.ring.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut ring);
        ring.next_place()
    };
    if wake {
        shared.next_place.send_replace(next);
    }
    next
}
