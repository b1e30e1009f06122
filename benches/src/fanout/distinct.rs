//! Ten thousand subscriptions over sockets of their own: how soon the one that wants a change has it, where all want something else; and what
//! those weigh to which nothing happens.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use sea_orm::{EntityTrait, Set};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::client::Client;
use crate::{
    measure::{Demo, quantile, row, task},
    server::{Kind, Running},
};

const SUBSCRIBERS: usize = 10_000;
const WRITES: usize = 4_000;
/// Between two writes: 200 a second.
const PAUSE: Duration = Duration::from_millis(5);

const ONE: &str = "subscription ($n: Int!) { taskChanges(filters: { priority: { eq: $n } }) { cursor sequence upToDate resync \
     changes { event operation node { id title body status priority done position updatedAt } changedFields actor at } } }";
const ALL: &str = "subscription { taskChanges(filters: { priority: { lt: 0 } }) { cursor sequence upToDate resync \
     changes { event operation node { id title body status priority done position updatedAt } changedFields actor at } } }";
const LIVE: &str = "subscription ($n: Int!) { task(filters: { priority: { eq: $n } }, pagination: { page: { limit: 50, page: 0 } }) \
     { nodes { id title } } }";

pub(crate) async fn run() -> Result<()> {
    println!("### {SUBSCRIBERS} subscriptions that all want something else\n");
    latency().await?;
    weights().await
}

/// From the commit to the one client that wants the change.
async fn latency() -> Result<()> {
    let demo = Demo::new().await?;
    let server = Running::start(Kind::Tidewire, &demo.url).await?;
    let began = Instant::now();
    let written: Arc<[AtomicU64]> = (0..SUBSCRIBERS).map(|_| AtomicU64::new(0)).collect();
    let times = Arc::new(Mutex::new(Vec::new()));
    let mut clients = connect(&server).await?;
    for (number, client) in clients.iter_mut().enumerate() {
        let (written, times) = (Arc::clone(&written), Arc::clone(&times));
        let came = move |_| {
            let now = began.elapsed().as_nanos() as u64;
            // Whoever has it before the writer has noted the time had it at once.
            let took = match written[number].load(Ordering::Relaxed) {
                0 => 0,
                written => now.saturating_sub(written),
            };
            times.lock().unwrap_or_else(PoisonError::into_inner).push(took as f64 / 1e6);
        };
        client.watch(ONE, &json!({ "n": number }), came).await?;
    }
    // Everybody has been told where they stand.
    sleep(Duration::from_secs(3)).await;
    let cpu = server.cpu().await?;
    let mut ticks = interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for write in 0..WRITES {
        ticks.tick().await;
        // Not one after the other, and nobody twice before all.
        let number = write * 7_919 % SUBSCRIBERS;
        let mut row = task(write);
        row.priority = Set(i32::try_from(number)?);
        entity::task::Entity::insert(row).exec_without_returning(&demo.recorder).await?;
        written[number].store(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
    let count = || times.lock().unwrap_or_else(PoisonError::into_inner).len();
    let waiting = async {
        while count() < WRITES {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(60), waiting).await.with_context(|| format!("{} of {WRITES} came", count()))?;
    let cpu = (server.cpu().await? - cpu).as_secs_f64() * 1e6 / WRITES as f64;
    let mut times = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
    row(&["p50, ms", "p99, ms", "longest, ms", "aim of p99", "the server's CPU, µs a change"]);
    row(&["---:", "---:", "---:", "---:", "---:"]);
    let longest = quantile(&mut times, 1.0);
    row(&[
        &format!("{:.2}", quantile(&mut times, 0.5)),
        &format!("{:.2}", quantile(&mut times, 0.99)),
        &format!("{longest:.2}"),
        "< 100",
        &format!("{cpu:.0}"),
    ]);
    println!();
    Ok(())
}

/// What an idle subscription weighs beyond its socket.
async fn weights() -> Result<()> {
    row(&["idle subscriptions", "bytes each, beyond the socket", "aim"]);
    row(&["---", "---:", "---:"]);
    for (name, query, distinct, aim) in [
        ("to changes, all in one group", ALL, false, "<= 1,024"),
        ("to changes, each in a group of its own", ONE, true, ""),
        ("live queries, each in a group of its own, no rows", LIVE, true, "<= 4,096"),
    ] {
        let demo = Demo::new().await?;
        let server = Running::start(Kind::Tidewire, &demo.url).await?;
        let mut clients = connect(&server).await?;
        sleep(Duration::from_secs(1)).await;
        let before = server.memory()?;
        for (number, client) in clients.iter_mut().enumerate() {
            let variables = if distinct { json!({ "n": number }) } else { Value::Null };
            client.watch(query, &variables, |_| ()).await?;
        }
        sleep(Duration::from_secs(8)).await;
        row(&[name, &format!("{:.0}", (server.memory()? - before) / SUBSCRIBERS as f64), aim]);
    }
    println!();
    Ok(())
}

async fn connect(server: &Running) -> Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(SUBSCRIBERS);
    for _ in 0..SUBSCRIBERS {
        clients.push(Client::connect(server.address).await?);
    }
    Ok(clients)
}
