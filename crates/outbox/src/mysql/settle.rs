//! When a missing number is known to stay missing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, Executor, MySqlPool, Row};
use tokio::sync::Mutex;

use super::{
    database_error,
    log::{Moment, moment, within},
    session::Held,
    triggers::BARRIER,
};
use crate::{cursor::Epoch, error::Result};

/// How often the barrier is looked at while a grace period runs.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How often `settled` is brought up to date where nothing is missing.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// A look takes long where much is unsettled. It is left alone for so many times as long as it took.
const REST: u32 = 10;

/// How many holes are looked into by one statement.
const HOLES_AT_ONCE: usize = 1_000;

/// Grace periods, one at a time, of this process. Those of other processes are no business of this one: all come to true conclusions.
///
/// A number below one that is visible had been drawn when that one was. Whoever drew it held a row of the barrier, and holds it until its transaction
/// ends, or is prepared (`XA PREPARE`), when InnoDB lets go of shared locks. So once each row of the barrier has been free at some moment after the
/// sight, all those have ended or are prepared. What is prepared has all its rows in the outbox already, where a dirty read sees them. So of what a
/// snapshot from after the grace period lacks, that alone which a still later dirty read shows can come, and the rest never comes.
///
/// ```text
/// sight (target) ── each row of the barrier free once ── snapshot: what is missing ── dirty read of that: the lowest that may still come
/// ```
///
/// `settled` in `tidewire_log` says up to where that has been found, for all nodes.
#[derive(Debug, Default)]
pub(super) struct Settling(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    grace: Option<Grace>,
    /// When the last look ended, and how long it took; none before the first.
    looked: Option<(Instant, Duration)>,
}

#[derive(Debug)]
struct Grace {
    /// In which the target was given. Another gives its numbers again, to transactions that have just begun.
    epoch: Epoch,
    /// What was the highest visible number when it began.
    target: u64,
    /// The rows of the barrier that have been free since, as bits.
    free: u64,
}

const ALL: u64 = u64::MAX >> (64 - BARRIER);

impl Settling {
    /// Takes a step if it is time for one, which it is sooner for a reader to whom something is missing; beside whatever the caller goes on to do.
    pub(super) fn step_beside(&self, pool: &MySqlPool, missing: bool) {
        let Ok(mut state) = Arc::clone(&self.0).try_lock_owned() else { return };
        if !state.is_due(missing) {
            return;
        }
        let pool = pool.clone();
        tokio::spawn(async move {
            if let Err(error) = state.step(&pool).await {
                tracing::debug!(%error, "which numbers stay missing could not be looked at; trying again");
            }
        });
    }

    /// Takes a step.
    pub(super) async fn step(&self, pool: &MySqlPool) -> Result<()> {
        self.0.lock().await.step(pool).await
    }
}

impl State {
    fn is_due(&self, missing: bool) -> bool {
        let every = if missing || self.grace.is_some() { LOOK_EVERY } else { NOTE_EVERY };
        self.looked.is_none_or(|(ended, took)| ended.elapsed() >= every.max(took * REST))
    }

    async fn step(&mut self, pool: &MySqlPool) -> Result<()> {
        let began = Instant::now();
        let result = self.look(pool).await;
        self.looked = Some((Instant::now(), began.elapsed()));
        result
    }

    async fn look(&mut self, pool: &MySqlPool) -> Result<()> {
        let free = free(pool).await?;
        // Asked of the database: a cursor may come from outside, and what it says is believed for its holder alone.
        let Moment { epoch, numbers: seen, settled } = moment(pool).await?;
        // Where another is to be begun, that comes first.
        let Some(epoch) = epoch else { return Ok(()) };
        if seen.holes.is_empty() {
            self.grace = None;
            return note(pool, epoch, settled, seen.highest).await;
        }
        let Some(grace) = self.grace.as_mut().filter(|grace| grace.epoch == epoch) else {
            self.grace = Some(Grace { epoch, target: seen.highest, free: 0 });
            return Ok(());
        };
        grace.free |= free;
        if grace.free & ALL != ALL {
            return Ok(());
        }
        let target = grace.target;
        self.grace = Some(Grace { epoch, target: seen.highest, free: 0 });
        let missing: Vec<_> = seen.holes.into_iter().filter(|(low, _)| *low <= target).collect();
        let prepared = lowest_written(pool, &missing).await?;
        note(pool, epoch, settled, prepared.map_or(target, |lowest| target.min(lowest - 1))).await
    }
}

/// The rows of the barrier that are free, as bits. Nobody waits for this, and it waits for nobody; what it locks is free again when the statement has
/// ended.
async fn free(pool: &MySqlPool) -> Result<u64> {
    let rows = sqlx::query("SELECT n FROM tidewire_barrier FOR UPDATE SKIP LOCKED")
        .fetch_all(pool)
        .await
        .map_err(database_error)?;
    Ok(rows.iter().fold(0, |free, row| free | 1 << row.get::<i32, _>(0).unsigned_abs()))
}

/// The lowest number in these ranges, which are in order, that has been written, committed or not.
async fn lowest_written(pool: &MySqlPool, ranges: &[(u64, u64)]) -> Result<Option<u64>> {
    for part in ranges.chunks(HOLES_AT_ONCE) {
        let text = format!(
            "SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED; SELECT MIN(seq) FROM tidewire_outbox WHERE {}",
            within("seq", part)
        );
        // Dropped on the way, the connection would keep the level for what comes next.
        let mut held = Held::new(pool).await?;
        let row = held.connection().fetch_one(sqlx::raw_sql(AssertSqlSafe(text))).await.map_err(database_error)?;
        held.free();
        if let Some(lowest) = row.get::<Option<i64>, _>(0) {
            return Ok(Some(lowest.cast_unsigned()));
        }
    }
    Ok(None)
}

async fn note(pool: &MySqlPool, epoch: Epoch, before: u64, settled: u64) -> Result<()> {
    if settled <= before {
        return Ok(());
    }
    sqlx::query("UPDATE tidewire_log SET settled = ? WHERE settled < ? AND epoch = ?")
        .bind(settled.cast_signed())
        .bind(settled.cast_signed())
        .bind(epoch.0.cast_signed())
        .execute(pool)
        .await
        .map(drop)
        .map_err(database_error)
}
