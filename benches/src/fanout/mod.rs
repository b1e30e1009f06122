//! Events to 1, 1,000 and 10,000 subscribers: Tidewire against a WebSocket that broadcasts bytes of the same size.
//!
//! Two questions. What does one delivery cost the server's processor while rows are written at a steady pace (by this process, so the
//! server's time is reading the outbox and delivering)? And how fast does one server thread deliver what it has in memory?

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use sea_orm::EntityTrait;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::{
    measure::{Demo, median, micros, row, task},
    server::{Kind, Running, SUBSCRIPTION},
};

use self::client::Client;

pub(crate) mod client;
pub(crate) mod distinct;
pub(crate) mod storm;

/// Subscribers; changes a second while measuring cost; changes for each subscriber while measuring speed.
const SIZES: [(usize, usize, usize); 3] = [(1, 2_000, 50_000), (1_000, 400, 500), (10_000, 40, 50)];
const PACED: Duration = Duration::from_secs(4);
const ROUNDS: usize = 5;

pub(crate) async fn run() -> Result<()> {
    println!("### Fan-out: one server thread against a WebSocket that broadcasts the same bytes\n");
    row(&[
        "subscribers",
        "limit, CPU µs a delivery",
        "Tidewire, CPU µs a delivery",
        "ratio",
        "limit, deliveries/s",
        "Tidewire, deliveries/s",
        "ratio",
    ]);
    row(&["---:", "---:", "---:", "---:", "---:", "---:", "---:"]);
    for (subscribers, rate, burst) in SIZES {
        let (mut costs, mut speeds) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for _ in 0..ROUNDS {
            for (index, kind) in [Kind::Limit, Kind::Tidewire].into_iter().enumerate() {
                costs[index].push(paced(kind, subscribers, rate).await?);
                speeds[index].push(at_once(kind, subscribers, burst).await?);
            }
        }
        let ratio = |of: &[Vec<f64>; 2]| median(of[1].iter().zip(&of[0]).map(|(ours, limit)| ours / limit).collect());
        row(&[
            &subscribers.to_string(),
            &format!("{:.2}", median(costs[0].clone())),
            &format!("{:.2}", median(costs[1].clone())),
            &format!("{:.2}", ratio(&costs)),
            &format!("{:.0}", median(speeds[0].clone())),
            &format!("{:.0}", median(speeds[1].clone())),
            &format!("{:.2}", ratio(&speeds)),
        ]);
    }
    println!();
    Ok(())
}

/// The server's processor time for one delivery, in µs, while changes come at a pace.
async fn paced(kind: Kind, subscribers: usize, rate: usize) -> Result<f64> {
    let demo = Demo::new().await?;
    let server = Running::start(kind, &demo.url).await?;
    let received = Arc::new(AtomicU64::new(0));
    let _clients = connect(&server, subscribers, None, &received).await?;
    let writing = match kind {
        Kind::Limit => {
            server.post(&format!("/pace/{rate}")).await?;
            tokio::spawn(async { Ok(()) })
        }
        Kind::Tidewire => {
            let recorder = demo.recorder.clone();
            tokio::spawn(async move { write_at(&recorder, rate).await })
        }
    };
    sleep(Duration::from_millis(500)).await;
    let (cpu, before) = (server.cpu().await?, received.load(Ordering::Relaxed));
    sleep(PACED).await;
    let (cpu, after) = (server.cpu().await? - cpu, received.load(Ordering::Relaxed));
    if writing.is_finished() {
        writing.await??;
    } else {
        writing.abort();
    }
    Ok(micros(cpu) / (after - before) as f64)
}

/// Writes tasks at a pace, each a transaction of its own, until it is stopped.
async fn write_at(recorder: &tidewire_outbox::Recorder, rate: usize) -> Result<()> {
    let mut ticks = interval(Duration::from_millis(5));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut due, mut number) = (0, 0);
    loop {
        ticks.tick().await;
        due += rate * 5;
        for _ in 0..due / 1_000 {
            number += 1;
            entity::task::Entity::insert(task(number)).exec_without_returning(recorder).await?;
        }
        due %= 1_000;
    }
}

/// How many deliveries a second one server thread makes of changes that it has in memory.
async fn at_once(kind: Kind, subscribers: usize, changes: usize) -> Result<f64> {
    let demo = Demo::new().await?;
    let server = Running::start(kind, &demo.url).await?;
    let received = Arc::new(AtomicU64::new(0));
    let expected = (subscribers * changes) as u64;
    if kind == Kind::Limit {
        let _clients = connect(&server, subscribers, None, &received).await?;
        let began = Instant::now();
        server.post(&format!("/burst/{changes}")).await?;
        wait_for(&received, expected).await?;
        return Ok(expected as f64 / began.elapsed().as_secs_f64());
    }
    // One subscriber makes the tail run, so that what is written next is in memory; those who are measured resume before it.
    let warm = Arc::new(AtomicU64::new(0));
    let after = demo.recorder.log().position().await?.to_string();
    let _warm = connect(&server, 1, Some(&after), &warm).await?;
    write_all(&demo.recorder, changes).await?;
    wait_for(&warm, changes as u64).await?;
    let (_clients, began) = connect_timed(&server, subscribers, Some(&after), &received).await?;
    wait_for(&received, expected).await?;
    Ok(expected as f64 / began.elapsed().as_secs_f64())
}

/// Writes tasks, each in a transaction of its own: one event each.
async fn write_all(recorder: &tidewire_outbox::Recorder, changes: usize) -> Result<()> {
    for number in 0..changes {
        entity::task::Entity::insert(task(number)).exec_without_returning(recorder).await?;
    }
    Ok(())
}

async fn connect(
    server: &Running,
    subscribers: usize,
    after: Option<&str>,
    received: &Arc<AtomicU64>,
) -> Result<Vec<Client>> {
    Ok(connect_timed(server, subscribers, after, received).await?.0)
}

/// Connects everybody, then lets all ask at once; says when that was.
async fn connect_timed(
    server: &Running,
    subscribers: usize,
    after: Option<&str>,
    received: &Arc<AtomicU64>,
) -> Result<(Vec<Client>, Instant)> {
    let mut clients = Vec::new();
    for _ in 0..subscribers {
        clients.push(Client::connect(server.address).await?);
    }
    let began = Instant::now();
    for client in &mut clients {
        client.subscribe(SUBSCRIPTION, after, received).await?;
    }
    Ok((clients, began))
}

async fn wait_for(received: &AtomicU64, expected: u64) -> Result<()> {
    let waiting = async {
        while received.load(Ordering::Relaxed) < expected {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(120), waiting)
        .await
        .with_context(|| format!("{} of {expected} events came", received.load(Ordering::Relaxed)))
}
