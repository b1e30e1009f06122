//! Clocks, medians, and what the measurements share.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use sea_orm::{ActiveModelTrait, ConnectionTrait, Set};
use tempfile::TempDir;
use tidewire_outbox::{Recorder, RecorderOptions};
use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;

pub(crate) fn one_thread() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

pub(crate) fn threads() -> Result<Runtime> {
    Ok(Builder::new_multi_thread().enable_all().build()?)
}

/// The processor time of this process, all threads.
pub(crate) fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The processor time of another process and of its children, all threads, where Linux tells.
pub(crate) fn cpu_of(process: u32) -> Result<Duration> {
    let mut nanos = 0;
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        // What ends while we look is left out.
        let Ok(stat) = fs::read_to_string(folder.join("stat")) else { continue };
        let own = folder.file_name().is_some_and(|name| *name == *process.to_string());
        // The state and the parent stand behind the name, which stands in brackets.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        if !own && parent != Some(process) {
            continue;
        }
        let Ok(threads) = fs::read_dir(folder.join("task")) else { continue };
        for thread in threads.flatten() {
            let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            nanos += text.split(' ').next().and_then(|ran| ran.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(Duration::from_nanos(nanos))
}

/// A process's resident memory, in bytes.
pub(crate) fn resident(process: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a line of its memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
}

/// What something took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
}

pub(crate) async fn cost<T>(work: impl Future<Output = Result<T>>) -> Result<Cost> {
    let (wall, before) = (Instant::now(), cpu());
    work.await?;
    Ok(Cost { wall: wall.elapsed(), cpu: cpu() - before })
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The share of the values that are not above the answer is at least `share`.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (share * values.len() as f64).ceil() as usize;
    values[index.clamp(1, values.len()) - 1]
}

/// A row of the table in `docs/BENCHMARKS.md`.
pub(crate) fn row(cells: &[&str]) {
    println!("| {} |", cells.join(" | "));
}

pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Makes the demo in an empty database, with one project.
pub(crate) async fn fill(recorder: &Recorder) -> Result<()> {
    use migration::MigratorTrait;
    migration::Migrator::up(recorder.unrecorded(), None).await.context("the database must be empty")?;
    recorder.install_capture().await?;
    let (name, email) = (Set("Ada".into()), Set("ada@example.org".into()));
    entity::user::ActiveModel { name, email, ..Default::default() }.insert(recorder).await?;
    entity::project::ActiveModel { name: Set("Harbour".into()), ..Default::default() }.insert(recorder).await?;
    Ok(())
}

/// A database of the demo with one project, gone with the value.
pub(crate) struct Demo {
    pub(crate) url: String,
    pub(crate) recorder: Recorder,
    _folder: TempDir,
}

impl Demo {
    pub(crate) async fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let url = format!("sqlite://{}?mode=rwc", folder.path().join("demo.db").display());
        let recorder = connect(&url).await?;
        fill(&recorder).await?;
        Ok(Self { url, recorder, _folder: folder })
    }

    /// Removes all tasks and what was recorded of them, so that every round finds the same.
    pub(crate) async fn clear(&self) -> Result<()> {
        let plain = self.recorder.unrecorded();
        plain.execute_unprepared("DELETE FROM task").await?;
        self.recorder.log().prune(None, Some(1), 100_000).await?;
        Ok(())
    }
}

pub(crate) async fn connect(url: &str) -> Result<Recorder> {
    let mut options = RecorderOptions::default();
    // What is measured from memory must fit into it.
    options.log.ring_max_bytes = 1 << 30;
    options.log.ring_max_transactions = 1 << 20;
    Ok(Recorder::connect_with(url, entity::registry(), options).await?)
}

/// A task as people write them.
pub(crate) fn task(number: usize) -> entity::task::ActiveModel {
    entity::task::ActiveModel {
        id: Set(Uuid::now_v7()),
        project_id: Set(1),
        title: Set(format!("Paint the buoy at pier {number}")),
        body: Set("Two coats, and a third where the gulls sit.".into()),
        priority: Set(i32::try_from(number % 4).unwrap_or(0)),
        ..Default::default()
    }
}
