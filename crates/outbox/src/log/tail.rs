use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{LogOptions, Shared};
use crate::{
    cursor::Cursor,
    database::{Database, Read},
};

/// How soon the tail looks again after it found something.
const POLL_MIN: Duration = Duration::from_millis(2);
/// How long it waits at most after failures.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// The one reader per process that turns outbox rows into the ring.
#[derive(Debug)]
pub(super) struct Tail {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Tail {
    pub(super) fn start(database: Arc<dyn Database>, shared: Arc<Shared>, options: LogOptions, at: Cursor) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(run(database, shared, options, at, stopped));
        Self { stop, task }
    }

    pub(super) async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}

async fn run(
    database: Arc<dyn Database>,
    shared: Arc<Shared>,
    options: LogOptions,
    mut at: Cursor,
    mut stopped: watch::Receiver<bool>,
) {
    let doorbell = Arc::clone(database.doorbell());
    let mut wait = POLL_MIN;
    let mut failures = 0_u32;
    loop {
        tokio::select! {
            // Notify to be fast, poll to be right: the doorbell knows of this process's writes only.
            _ = timeout(wait, doorbell.notified()) => {}
            // An error means that the log is gone, which ends this too.
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        match advance(&*database, &shared, &options, &mut at).await {
            Ok(true) => (wait, failures) = (POLL_MIN, 0),
            Ok(false) => {
                wait = (wait + wait / 2).min(options.poll_max);
                failures = 0;
            }
            Err(error) => {
                failures += 1;
                if failures == 1 {
                    tracing::warn!(%error, "the outbox could not be read; trying again");
                }
                let pause = (POLL_MIN * 2_u32.saturating_pow(failures.min(10))).min(RETRY_MAX);
                tokio::select! {
                    () = sleep(pause) => {}
                    _ = stopped.wait_for(|stop| *stop) => return,
                }
            }
        }
        if failures == 0 && !shared.healthy.swap(true, Ordering::Relaxed) {
            tracing::info!("the outbox can be read again");
        } else if failures > 0 {
            shared.healthy.store(false, Ordering::Relaxed);
        }
    }
}

/// Reads to the end of the outbox; answers whether there was anything new.
async fn advance(
    database: &dyn Database,
    shared: &Shared,
    options: &LogOptions,
    at: &mut Cursor,
) -> crate::Result<bool> {
    let mut found = false;
    loop {
        // Before the read: who asks during it may stand at a later moment than the read's.
        let wanted = shared.wanted.swap(false, Ordering::AcqRel);
        match database.read(at, None, options.chunk_changes).await? {
            Read::Transactions { transactions, reached_end, end } => {
                found |= !transactions.is_empty();
                let changes: usize = transactions.iter().map(|transaction| transaction.changes.len()).sum();
                shared.transactions.fetch_add(transactions.len() as u64, Ordering::Relaxed);
                shared.changes.fetch_add(changes as u64, Ordering::Relaxed);
                // Without transactions there is no news, but for a follower that read to a later moment by itself and waits for the ring
                // to come there. Where a moment is a snapshot, each look would be another one.
                if !transactions.is_empty() || !reached_end || !at.moves_by_itself() || wanted {
                    let moved = *at != end;
                    *at = end.clone();
                    publish(shared, moved, |ring| ring.extend(transactions, end));
                }
                if reached_end {
                    return Ok(found);
                }
            }
            Read::Resync(reason) => {
                tracing::warn!(?reason, "the log does not continue where it was read to; those who follow start over");
                *at = database.position().await?;
                publish(shared, true, |ring| ring.restart(at.clone()));
                found = true;
            }
        }
    }
}

fn publish(shared: &Shared, wake: bool, change: impl FnOnce(&mut super::Ring)) {
    let next = {
        let mut ring = shared.ring.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut ring);
        ring.next_place()
    };
    if wake {
        shared.next_place.send_replace(next);
    }
}
