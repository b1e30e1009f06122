use std::sync::atomic::{AtomicU64, Ordering};

use crate::server::State;

/// What the server has done.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) requests: AtomicU64,
    pub(crate) websockets: AtomicU64,
    pub(crate) event_streams: AtomicU64,
    pub(crate) operations: AtomicU64,
    pub(crate) frames: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) refused: AtomicU64,
}

/// Counts something that is open, for as long as it lives.
pub(crate) struct Open {
    state: State,
    counter: fn(&Stats) -> &AtomicU64,
}

/// Counts one more, unless there are as many as may be.
pub(crate) fn open(state: &State, counter: fn(&Stats) -> &AtomicU64, limit: usize) -> Option<Open> {
    let count = counter(&state.0.stats);
    if count.fetch_add(1, Ordering::Relaxed) >= limit as u64 {
        count.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    Some(Open { state: state.clone(), counter })
}

impl Drop for Open {
    fn drop(&mut self) {
        (self.counter)(&self.state.0.stats).fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}
