//! The relay: one process reads the database for all.
//!
//! Every tail asks the database what is new. Where there are more processes than the database should be asked by, one of them, by a lease,
//! *publishes* what its own tail has read, as stretches of the log; the tails of the others take those instead of asking.
//!
//! ```text
//!               ┌─ tail ── ring ── publisher ──┐ previous, transactions, next
//! database <────┤                              v
//!     ^         └───────────────── NATS JetStream ──> inbox ── tail ── ring     (any number of these)
//!     └ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ where a stretch is missing ─ ─ ─ ┘
//! ```
//!
//! *The relay is never the truth.* A stretch says what the database had shown to whoever read it: of all that `next` has seen, the transactions
//! that `previous` has not, in order. That holds whoever sent it and whenever it comes. So a tail takes a stretch exactly if it stands at
//! `previous`, as an equal cursor, and then stands at `next`. With anything else (a stretch was lost, trimmed, repeated or out of order; two
//! publish; NATS has forgotten what it had confirmed; this tail began elsewhere) it reads the database, up to some `next` that has come, and is
//! back on the way. Nothing is ever lost, repeated or out of order by that; the database is only asked more.
//!
//! *Silence.* The publisher sends a stretch of nothing (a *beat*) while nothing happens, but only if its tail has looked at the database just
//! before. A tail that has heard nothing for as long as its patience asks the database as if there were no relay, and takes part in the search
//! for a new publisher. So NATS or the publisher being away costs latency once, of the patience, and then nothing but reads. A lost stretch
//! is found out by the next beat, since its cursor is one that the tail does not have.
//!
//! *Moments.* Who waits for a moment of the database's (a snapshot's cursor, a position) is ahead of the relay. Then the tail asks the
//! database, as it does without a relay, and joins the relay again at the next stretch.
//!
//! *One publisher.* The lease says who publishes. That one who has lost it and does not know yet cannot come in between is the stream's
//! work: each message names the one that it expects to be the last. The lease's token is in each message, so a publisher that finds another's message in
//! the way knows which of them is the later. Tails take nothing of a token that they have seen succeeded.

mod inbox;
mod line;
mod publisher;
mod stretch;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use self::{
    inbox::{Inbox, Next},
    line::Line,
    publisher::Publisher,
};
use super::{Direct, Inner, Shared, TailStats, Upstream};
use crate::{
    cursor::Cursor,
    database::{Database, Read},
    error::{Error, ErrorKind, Result, backoff},
    lease::Lease,
    log::RelayStats,
    registry::Catalog,
};

/// The lease of the publisher, and how long it may be silent.
const LEASE: &str = "relay";
const LEASE_TTL: Duration = Duration::from_secs(4);
/// How long to wait after failures: at first, and at most.
const RETRY: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// Where processes of one database pass on to each other what one of them reads.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RelayOptions {
    /// The NATS servers: `nats://user:password@host:4222`, `tls://…`, several separated by commas.
    pub url: String,
    /// The name of the JetStream stream. It is created where it is not there. Default `tidewire`.
    pub stream: String,
    /// The subject that is published to. Each database needs one of its own. Default `tidewire.log`.
    pub subject: String,
    /// How long NATS keeps what was published. Who was away for longer reads the database. Default 60 s.
    pub max_age: Duration,
    /// How much NATS keeps, in bytes. Default 256 MiB.
    pub max_bytes: u64,
    /// After how much silence the database is asked instead. Default 1 s.
    pub patience: Duration,
    /// Whether this process may be the one that reads the database for the others. Default `true`.
    pub publish: bool,
}

impl RelayOptions {
    /// The usual options, for these servers.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            stream: "tidewire".into(),
            subject: "tidewire.log".into(),
            max_age: Duration::from_secs(60),
            max_bytes: 256 << 20,
            patience: Duration::from_secs(1),
            publish: true,
        }
    }

    /// How often the publisher sends something.
    fn beat(&self) -> Duration {
        self.patience / 4
    }
}

/// Starts it where the options say so; gives the tail its upstream.
pub(super) fn start(direct: Direct, log: &Inner, shared: &Arc<Shared>) -> (Arc<dyn Upstream>, Option<Running>) {
    let Some(options) = log.options.relay.clone() else { return (Arc::new(direct), None) };
    let relay = Arc::new(Relay {
        direct,
        database: Arc::clone(&log.database),
        catalog: Arc::clone(&log.catalog),
        schema: stretch::schema_of(&log.catalog),
        inbox: Mutex::new(Inbox::new(log.options.ring_max_bytes, options.patience)),
        options,
        publishing: AtomicBool::new(false),
        looked: Mutex::default(),
        published: AtomicU64::new(0),
        taken: AtomicU64::new(0),
        fallbacks: AtomicU64::new(0),
    });
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(run(Arc::clone(&relay), Arc::clone(shared), stopped));
    (relay, Some(Running { stop, task }))
}

/// The task that receives and, when its turn has come, publishes. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Running {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    pub(super) async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}

/// Tries whether the relay can be used; says what it found.
///
/// # Errors
/// [`ErrorKind::Unavailable`] where NATS does not answer; [`ErrorKind::Setup`] where it has no JetStream, or the stream is another's.
pub(super) async fn check(options: &RelayOptions) -> Result<()> {
    Line::connect(options).await?.ensure().await
}

#[derive(Debug)]
struct Relay {
    direct: Direct,
    database: Arc<dyn Database>,
    catalog: Arc<Catalog>,
    schema: u64,
    options: RelayOptions,
    inbox: Mutex<Inbox>,
    publishing: AtomicBool,
    /// When the tail last read the database.
    looked: Mutex<Option<Instant>>,
    published: AtomicU64,
    taken: AtomicU64,
    fallbacks: AtomicU64,
}

#[async_trait]
impl Upstream for Relay {
    fn rest(&self, wait: Duration) -> Duration {
        if self.publishing() {
            return self.direct.rest(wait).min(self.options.beat());
        }
        if self.inbox().is_live() { self.options.patience } else { self.direct.rest(wait) }
    }

    async fn read(&self, after: &Cursor, fresh: bool) -> Result<Read> {
        let (next, had_come) = {
            let mut inbox = self.inbox();
            let next = if self.publishing() {
                inbox.clear();
                Next::Read { until: None, fallback: false }
            } else {
                inbox.next(after, fresh)
            };
            (next, inbox.len())
        };
        match next {
            // There may be more of them.
            Next::Take(transactions, end) => {
                self.taken.fetch_add(1, Ordering::Relaxed);
                Ok(Read::Transactions { transactions, reached_end: false, end })
            }
            Next::Nothing => Ok(Read::Transactions { transactions: Vec::new(), reached_end: true, end: after.clone() }),
            Next::Read { until, fallback } => {
                self.fallbacks.fetch_add(u64::from(fallback), Ordering::Relaxed);
                let read = self.direct.read_until(after, until.as_ref()).await?;
                *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                match &read {
                    Read::Transactions { reached_end, .. } => {
                        self.inbox().has_read(until, *reached_end, had_come);
                    }
                    Read::Resync(_) => self.inbox().restart(),
                }
                Ok(read)
            }
        }
    }

    fn describe(&self, stats: &mut TailStats) {
        self.direct.describe(stats);
        stats.relay = Some(RelayStats {
            publishing: self.publishing(),
            live: !self.publishing() && self.inbox().is_live(),
            published: self.published.load(Ordering::Relaxed),
            taken: self.taken.load(Ordering::Relaxed),
            fallbacks: self.fallbacks.load(Ordering::Relaxed),
        });
    }
}

impl Relay {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publishing(&self) -> bool {
        self.publishing.load(Ordering::Acquire)
    }

    /// Whether the tail has just read the database, so that "nothing happens" can be said.
    fn knows(&self) -> bool {
        let looked = *self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        looked.is_some_and(|looked| looked.elapsed() < self.options.patience) && self.database.trouble().is_none()
    }

    /// Receives until it is this process's turn to publish, and publishes until that ends.
    async fn turn(&self, shared: &Shared, mut stopped: watch::Receiver<bool>) -> Result<()> {
        let connecting = async {
            let line = Line::connect(&self.options).await?;
            line.ensure().await.map(|()| line)
        };
        // An error of the signal's means that the log is gone, which ends this too.
        let line = tokio::select! {
            line = connecting => line?,
            _ = stopped.wait_for(|stop| *stop) => return Ok(()),
        };
        let lease = tokio::select! {
            ended = self.receive(&line) => return ended,
            lease = self.candidate() => lease,
            _ = stopped.wait_for(|stop| *stop) => return Ok(()),
        };
        self.publishing.store(true, Ordering::Release);
        // From now on the tail reads the database again.
        self.database.doorbell().notify_one();
        let _publishing = Publishing(self);
        tracing::info!("this process reads the database for the others, by way of the relay");
        let ended = tokio::select! {
            ended = Publisher::new(self, &line, lease.token()).run(shared) => ended,
            () = lease.lost() => Err(lease.lost_error()),
            _ = stopped.wait_for(|stop| *stop) => Ok(()),
        };
        // The next may begin at once.
        let _ = lease.release().await;
        ended
    }

    /// Puts what comes into the inbox until that fails.
    async fn receive(&self, line: &Line) -> Result<()> {
        let mut incoming = line.subscribe().await?;
        loop {
            match timeout(self.options.patience * 2, incoming.next()).await {
                Ok(payload) => {
                    if self.inbox().accept(&payload?, &self.catalog, self.schema) {
                        self.database.doorbell().notify_one();
                    }
                }
                // Perhaps nobody publishes; perhaps the stream has been lost and is another one now.
                Err(_) => {
                    line.ensure().await?;
                    incoming = line.subscribe().await?;
                }
            }
        }
    }

    /// Waits until nobody is heard to publish, and takes the lease.
    async fn candidate(&self) -> Lease {
        if !self.options.publish {
            return std::future::pending().await;
        }
        loop {
            if !self.inbox().is_live() {
                match Lease::try_acquire_on(&self.database, LEASE, LEASE_TTL).await {
                    Ok(Some(lease)) => return lease,
                    Ok(None) => {}
                    Err(error) => tracing::debug!(%error, "the lease of the relay could not be had"),
                }
            }
            sleep(LEASE_TTL / 8).await;
        }
    }
}

/// However publishing ends, it has ended.
struct Publishing<'a>(&'a Relay);

impl Drop for Publishing<'_> {
    fn drop(&mut self) {
        self.0.publishing.store(false, Ordering::Release);
    }
}

async fn run(relay: Arc<Relay>, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let mut failures = 0_u32;
    loop {
        let began = Instant::now();
        let ended = relay.turn(&shared, stopped.clone()).await;
        if *stopped.borrow() || stopped.has_changed().is_err() {
            return;
        }
        failures = if began.elapsed() > RETRY[1] * 2 { 1 } else { failures + 1 };
        if let Err(error) = ended {
            if failures == 1 {
                tracing::warn!(%error, "the relay does not work; reading the database, and trying again");
            } else {
                tracing::debug!(%error, "the relay still does not work");
            }
        }
        let pause = backoff(RETRY[0], RETRY[1], failures);
        let _ = timeout(pause, stopped.wait_for(|stop| *stop)).await;
    }
}

fn unavailable(what: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Unavailable, what).with_source(error)
}
