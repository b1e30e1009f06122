//! Connections that were used a moment ago.
//!
//! A pool asks each connection that comes back whether it still is one: a round trip for every statement, beside the statement's own. So a few that
//! have just answered stay here instead and are lent again, the latest first. What nobody has asked for within [`TRUSTED`] goes back to the pool.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use sqlx::{Postgres, pool::PoolConnection, postgres::PgPool};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

/// For how long an idle connection is believed to be there.
pub(super) const TRUSTED: Duration = Duration::from_millis(500);

/// How many are kept; the others are the pool's, for whoever else takes from it.
const KEPT: usize = 4;

/// The connections, shared with what is lent.
#[derive(Clone)]
pub(super) struct Warm {
    pool: PgPool,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// With the moment since which each has been idle, the latest last.
    idle: Vec<(PoolConnection<Postgres>, Instant)>,
    /// Whether a task gives back what grows old.
    cooling: bool,
    closed: bool,
}

impl fmt::Debug for Warm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Warm")
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Warm {
    /// For connections of a pool.
    pub(super) fn new(pool: PgPool) -> Self {
        Self { pool, state: Arc::default() }
    }

    /// One that has answered a moment ago.
    pub(super) fn take(&self) -> Option<PoolConnection<Postgres>> {
        let latest = lock(&self.state).idle.pop();
        latest.filter(|(_, since)| since.elapsed() < TRUSTED).map(|(connection, _)| connection)
    }

    /// Keeps one that has answered, unless there are enough, or somebody may be waiting for it.
    pub(super) fn keep(&self, connection: PoolConnection<Postgres>) {
        let all_lent = self.pool.num_idle() == 0 && self.pool.size() >= self.pool.options().get_max_connections();
        let mut state = lock(&self.state);
        if all_lent || state.closed || state.idle.len() >= KEPT {
            return;
        }
        state.idle.push((connection, Instant::now()));
        if !state.cooling {
            state.cooling = true;
            tokio::spawn(cool(Arc::downgrade(&self.state)));
        }
    }

    /// Gives all of them back to the pool.
    pub(super) fn give_back(&self) {
        drop(std::mem::take(&mut lock(&self.state).idle));
    }

    /// Gives all of them back, and keeps no more.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.give_back();
    }
}

impl Drop for State {
    /// The pool takes connections back in a task of its own. Where the runtime is gone they are closed.
    fn drop(&mut self) {
        if Handle::try_current().is_err() {
            for (connection, _) in self.idle.drain(..) {
                drop(connection.detach());
            }
        }
    }
}

/// Gives back what has been idle for too long, until there is nothing.
async fn cool(state: Weak<Mutex<State>>) {
    loop {
        sleep(TRUSTED).await;
        let Some(state) = state.upgrade() else { return };
        let mut state = lock(&state);
        state.idle.retain(|(_, since)| since.elapsed() < TRUSTED);
        if state.idle.is_empty() {
            state.cooling = false;
            return;
        }
    }
}
