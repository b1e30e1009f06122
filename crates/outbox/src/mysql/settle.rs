//! When a missing number is known to stay missing.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{MySqlPool, Row};

use super::{database_error, triggers::BARRIER};
use crate::error::Result;

/// How often the barrier is looked at while a grace period runs.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How often `settled` is brought up to date where nothing is missing.
const NOTE_EVERY: Duration = Duration::from_secs(1);

/// Grace periods, one at a time, of this process. Those of other processes are no business of this one: all come to true conclusions.
///
/// A number below one that is visible had been drawn when that one was. Whoever drew it held a row of the barrier, and holds it until its transaction
/// ends. So once each row of the barrier has been free at some moment after the sight, all those have ended; what a later snapshot still lacks never
/// comes. `settled` in `tidewire_log` says up to where that has been found, for all nodes.
#[derive(Debug, Default)]
pub(super) struct Settling(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    grace: Option<Grace>,
    looked: Option<Instant>,
}

#[derive(Debug)]
struct Grace {
    /// What was the highest visible number when it began.
    target: u64,
    /// The rows of the barrier that have been free since, as bits.
    free: u64,
}

const ALL: u64 = u64::MAX >> (64 - BARRIER);

impl Settling {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is time for a step.
    pub(super) fn is_due(&self, missing: bool) -> bool {
        let state = self.state();
        let every = if missing { LOOK_EVERY } else { NOTE_EVERY };
        state.looked.is_none_or(|looked| looked.elapsed() >= every)
    }

    /// Takes a step.
    pub(super) async fn step(&self, pool: &MySqlPool) -> Result<()> {
        self.state().looked = Some(Instant::now());
        // Asked of the database: a cursor may come from outside, and what it says is believed for its holder alone.
        let (seen, settled) = super::log::moment(pool).await?;
        if seen.holes.is_empty() {
            self.state().grace = None;
            return if seen.highest > settled { note(pool, seen.highest).await } else { Ok(()) };
        }
        let target = self.state().grace.get_or_insert(Grace { target: seen.highest, free: 0 }).target;
        // Nobody waits for this, and it waits for nobody; what it locks is free again when the statement has ended.
        let rows = sqlx::query("SELECT n FROM tidewire_barrier FOR UPDATE SKIP LOCKED")
            .fetch_all(pool)
            .await
            .map_err(database_error)?;
        let free = rows.iter().fold(0, |free, row| free | 1 << row.get::<i32, _>(0).unsigned_abs());
        let over = {
            let mut state = self.state();
            // Another may have begun meanwhile, by another task of this process.
            let grace = state.grace.as_mut().filter(|grace| grace.target == target);
            let over = grace.is_some_and(|grace| {
                grace.free |= free;
                grace.free & ALL == ALL
            });
            if over {
                state.grace = None;
            }
            over
        };
        if over && target > settled { note(pool, target).await } else { Ok(()) }
    }
}

async fn note(pool: &MySqlPool, settled: u64) -> Result<()> {
    sqlx::query("UPDATE tidewire_log SET settled = ? WHERE settled < ?")
        .bind(settled.cast_signed())
        .bind(settled.cast_signed())
        .execute(pool)
        .await
        .map(drop)
        .map_err(database_error)
}
