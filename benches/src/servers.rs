//! Writes on a database server: through the recorder by each of its captures, and without it.

use std::{
    fmt::Write as _,
    future::pending,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use entity::task;
use futures_util::future::try_join_all;
use migration::MigratorTrait;
use sea_orm::{
    ActiveModelTrait, ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, EntityTrait,
    IntoActiveModel, Set,
};
use tidewire_outbox::{Actor, Capture, Recorder, RecorderOptions, Step};

use crate::measure::{Cost, cost, cpu_of, median, micros, one_thread, quantile, row, task as new_task};

const ROUNDS: usize = 15;
const SINGLES: usize = 300;
const BULK: usize = 1_000;
const WRITERS: usize = 8;
const FOLLOWED: usize = 500;
const PAUSE: Duration = Duration::from_millis(3);

pub(crate) const POSTGRES: &[Capture] = &[Capture::Hooks, Capture::Triggers, Capture::Log];
pub(crate) const MARIADB: &[Capture] = &[Capture::Hooks, Capture::Triggers];

/// A way to write: with a capture, or plainly. Each has a database of its own, so that no table is larger than another.
struct Way {
    name: String,
    plain: DatabaseConnection,
    recorder: Option<Recorder>,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Insert,
    InsertInAName,
    Update,
    InsertMany,
    InsertAtOnce,
}

impl Work {
    const ALL: [Self; 5] = [Self::Insert, Self::InsertInAName, Self::Update, Self::InsertMany, Self::InsertAtOnce];

    fn name(self) -> &'static str {
        match self {
            Self::Insert => "insert of one row, autocommit",
            Self::InsertInAName => "the same, in a person's name",
            Self::Update => "update of one row, autocommit",
            Self::InsertMany => "insert of 1,000 rows, one statement",
            Self::InsertAtOnce => "insert of one row, 8 writers at once",
        }
    }

    fn statements(self) -> usize {
        match self {
            Self::Insert | Self::InsertInAName | Self::Update => SINGLES,
            Self::InsertMany => 1,
            Self::InsertAtOnce => SINGLES * WRITERS,
        }
    }

    async fn on(self, db: &impl ConnectionTrait, meter: Meter) -> Result<Cost> {
        match self {
            Self::Insert | Self::InsertInAName => meter.cost(insert(db)).await,
            Self::Update => {
                task::Entity::insert_many((0..SINGLES).map(new_task)).exec_without_returning(db).await?;
                let rows = task::Entity::find().all(db).await?;
                let update = async {
                    for row in rows {
                        let mut row = row.into_active_model();
                        row.done = Set(true);
                        row.update(db).await?;
                    }
                    Ok(())
                };
                meter.cost(update).await
            }
            Self::InsertMany => {
                let rows: Vec<_> = (0..BULK).map(new_task).collect();
                meter.cost(async { Ok(task::Entity::insert_many(rows).exec_without_returning(db).await?) }).await
            }
            Self::InsertAtOnce => meter.cost(try_join_all((0..WRITERS).map(|_| insert(db)))).await,
        }
    }
}

/// Measures this process, and a server on the same machine where its process is known.
#[derive(Debug, Clone, Copy)]
struct Meter {
    server: Option<u32>,
}

impl Meter {
    fn server(self) -> Result<Duration> {
        self.server.map_or(Ok(Duration::ZERO), cpu_of)
    }

    /// With the server's processor time beside one's own.
    async fn cost<T>(self, work: impl Future<Output = Result<T>>) -> Result<Cost> {
        let before = self.server()?;
        let mut cost = cost(work).await?;
        cost.cpu += self.server()?.saturating_sub(before);
        Ok(cost)
    }
}

async fn insert(db: &impl ConnectionTrait) -> Result<()> {
    for number in 0..SINGLES {
        new_task(number).insert(db).await?;
    }
    Ok(())
}

impl Way {
    async fn plain(server: &str) -> Result<Self> {
        let mut options = ConnectOptions::new(create(server, "bench_plain").await?);
        // As the recorder's.
        options.max_connections(14).sqlx_logging(false).test_before_acquire(false);
        let plain = Database::connect(options).await?;
        migration::Migrator::up(&plain, None).await?;
        fill(&plain).await?;
        Ok(Self { name: "plain".into(), plain, recorder: None })
    }

    async fn captured(server: &str, capture: Capture) -> Result<Self> {
        let name = capture.to_string();
        let url = create(server, &format!("bench_{name}")).await?;
        let recorder = connect(&url, capture).await?;
        migration::Migrator::up(recorder.unrecorded(), None).await?;
        recorder.install_capture().await?;
        recorder.check().await?;
        if capture == Capture::Log {
            read_log(url);
        }
        fill(&recorder).await?;
        Ok(Self { name, plain: recorder.unrecorded().clone(), recorder: Some(recorder) })
    }

    async fn run(&self, work: Work, meter: Meter) -> Result<Cost> {
        match &self.recorder {
            None => work.on(&self.plain, meter).await,
            Some(recorder) if work == Work::InsertInAName => {
                work.on(&recorder.clone().acting_as(Actor::user("ada")), meter).await
            }
            Some(recorder) => work.on(recorder, meter).await,
        }
    }

    /// Removes all tasks, and what was recorded of them once all of it is: every round finds the same, and disturbs no other.
    async fn clear(&self) -> Result<()> {
        let [tasks, outbox] = match self.plain.get_database_backend() {
            DbBackend::MySql => {
                ["SET foreign_key_checks = 0; TRUNCATE task; SET foreign_key_checks = 1", "DELETE FROM tidewire_outbox"]
            }
            _ => ["TRUNCATE task CASCADE", "TRUNCATE tidewire_outbox"],
        };
        self.plain.execute_unprepared(tasks).await?;
        if let Some(recorder) = &self.recorder {
            recorder.log().position().await?;
        }
        self.plain.execute_unprepared(outbox).await?;
        Ok(())
    }
}

/// An empty database; its URL.
async fn create(server: &str, name: &str) -> Result<String> {
    let Some((base, _)) = server.rsplit_once('/') else { bail!("the URL names no database") };
    let admin = Database::connect(server).await.context("the server cannot be reached")?;
    admin.execute_unprepared(&format!("DROP DATABASE IF EXISTS {name}")).await?;
    admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await?;
    Ok(format!("{base}/{name}"))
}

async fn connect(url: &str, capture: Capture) -> Result<Recorder> {
    let mut options = RecorderOptions::default();
    options.capture = Some(capture);
    Ok(Recorder::connect_with(url, entity::registry(), options).await?)
}

async fn fill(db: &impl ConnectionTrait) -> Result<()> {
    let project = entity::project::ActiveModel { name: Set("Harbour".into()), ..Default::default() };
    project.insert(db).await?;
    Ok(())
}

/// Reads a database's log on a thread of its own, as another node would, until the process ends.
fn read_log(url: String) {
    let read = async move {
        let recorder = connect(&url, Capture::Log).await?;
        recorder.start_capture().await?;
        pending().await
    };
    std::thread::spawn(move || -> Result<()> { one_thread()?.block_on(read) });
}

/// Compares the captures of a server, in databases of their own there. With the id of its process, processor time too.
pub(crate) async fn run(title: &str, server: &str, captures: &[Capture], process: Option<u32>) -> Result<()> {
    let mut ways = vec![Way::plain(server).await?];
    for &capture in captures {
        ways.push(Way::captured(server, capture).await?);
    }
    let mut costs = Vec::new();
    for work in Work::ALL {
        costs.push((work, measured(work, &ways, Meter { server: process }).await?));
    }
    println!("### Writes on {title}: the recorder against plain SeaORM\n");
    table(&ways, &costs, |cost| micros(cost.wall));
    if process.is_some() {
        println!("\nProcessor time, the server's and ours:\n");
        table(&ways, &costs, |cost| micros(cost.cpu));
    }
    println!("\n### {title}: from a commit to a follower in the same process\n");
    row(&["capture", "p50, ms", "p99, ms", "longest, ms"]);
    row(&["---", "---:", "---:", "---:"]);
    for way in &ways[1..] {
        follow(way).await?;
    }
    println!();
    Ok(())
}

/// What some work cost by each way. Rounds of all ways take turns, so that a noisy machine disturbs all alike.
async fn measured(work: Work, ways: &[Way], meter: Meter) -> Result<Vec<Vec<Cost>>> {
    let mut all = vec![Vec::new(); ways.len()];
    // The first round warms up caches of all.
    for round in 0..=ROUNDS {
        for (way, costs) in ways.iter().zip(&mut all) {
            way.clear().await?;
            let cost = way.run(work, meter).await?;
            if round > 0 {
                costs.push(cost);
            }
        }
    }
    Ok(all)
}

fn table(ways: &[Way], all: &[(Work, Vec<Vec<Cost>>)], of: impl Fn(&Cost) -> f64) {
    let mut head = vec!["write".to_owned()];
    head.extend(ways.iter().map(|way| format!("{}, µs", way.name)));
    head.extend(ways[1..].iter().map(|way| format!("{}, ratio", way.name)));
    row(&head.iter().map(String::as_str).collect::<Vec<_>>());
    row(&[&["---"][..], &vec!["---:"; head.len() - 1]].concat());
    for (work, costs) in all {
        let costs: Vec<Vec<f64>> = costs.iter().map(|costs| costs.iter().map(&of).collect()).collect();
        let (plain, recorded) = (&costs[0], &costs[1..]);
        let mut line = work.name().to_owned();
        for costs in &costs {
            let _ = write!(line, " | {:.0}", median(costs.clone()) / work.statements() as f64);
        }
        for costs in recorded {
            // Each round's ratio: what disturbed it disturbed both.
            let ratios = costs.iter().zip(plain).map(|(this, plain)| this / plain).collect();
            let _ = write!(line, " | {:.2}", median(ratios));
        }
        row(&[&line]);
    }
}

async fn follow(way: &Way) -> Result<()> {
    let Some(recorder) = &way.recorder else { return Ok(()) };
    way.clear().await?;
    let mut follower = recorder.log().follow_all(recorder.log().position().await?).await?;
    let mut latencies = Vec::new();
    for number in 0..FOLLOWED {
        new_task(number).insert(recorder).await?;
        let committed = Instant::now();
        loop {
            match follower.next().await? {
                Step::Transactions { transactions, .. } if transactions.is_empty() => {}
                Step::Transactions { .. } => break,
                other => bail!("the follower cannot go on: {other:?}"),
            }
        }
        latencies.push(committed.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(PAUSE).await;
    }
    row(&[
        &way.name,
        &format!("{:.2}", quantile(&mut latencies, 0.5)),
        &format!("{:.2}", quantile(&mut latencies, 0.99)),
        &format!("{:.2}", quantile(&mut latencies, 1.0)),
    ]);
    Ok(())
}
