//! Nodes on one PostgreSQL: how soon a client has what was committed on its own or on another, and what doorbells cost.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::try_join_all;
use sea_orm::{ConnectionTrait, EntityTrait, Set};
use tidewire_axum::{Server, ServerOptions};
use tidewire_graphql::Api;
use tidewire_outbox::{Recorder, RecorderOptions};
use tokio::net::TcpListener;

use crate::{
    latency::{next, subscribe},
    measure::{fill, median, quantile, row, task},
};

const WRITERS: usize = 8;
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(3);

/// In an empty database.
pub(crate) async fn run(database: &str) -> Result<()> {
    let recorder = node(database, true).await?;
    fill(&recorder).await?;
    recorder.close().await;
    println!("### Nodes: from a commit to a client\n");
    row(&["writes", "from", "told by", "p50, ms", "p99, ms", "longest, ms"]);
    row(&["---", "---", "---", "---:", "---:", "---:"]);
    for (pause, writes) in [(3, 1_500), (100, 150)] {
        for way in [Way::OneNode, Way::Doorbell, Way::Looking] {
            latency(database, way, Duration::from_millis(pause), writes).await?;
        }
    }
    println!("\n### Nodes: {WRITERS} writers at once, while another node follows\n");
    throughput(database).await
}

/// From where to where, and how it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    OneNode,
    Doorbell,
    Looking,
}

/// A recorder shares nothing with another but the database, as nodes do.
async fn node(database: &str, doorbell: bool) -> Result<Recorder> {
    let mut options = RecorderOptions::default();
    if !doorbell {
        options.log.doorbell_interval = Duration::ZERO;
    }
    Ok(Recorder::connect_with(database, entity::registry(), options).await?)
}

async fn latency(database: &str, way: Way, pause: Duration, writes: usize) -> Result<()> {
    let doorbell = way != Way::Looking;
    let reader = node(database, doorbell).await?;
    let writer = if way == Way::OneNode { reader.clone() } else { node(database, doorbell).await? };
    reader.check().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("ws://{}/graphql", listener.local_addr()?);
    let server = Server::new(Api::builder(reader.clone()).finish()?, ServerOptions::default());
    let serving = tokio::spawn(async move { axum::serve(listener, server.router()).await });
    let mut socket = subscribe(&url).await?;
    let mut latencies = Vec::new();
    for number in 0..writes {
        let title = format!("{way:?} {number}");
        let mut row = task(number);
        row.title = Set(title.clone());
        entity::task::Entity::insert(row).exec_without_returning(&writer).await?;
        let committed = Instant::now();
        while next(&mut socket).await?["payload"]["data"]["taskChanges"]["changes"][0]["node"]["title"] != title {}
        latencies.push(committed.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(pause).await;
    }
    serving.abort();
    let (from, told) = match way {
        Way::OneNode => ("the same node", "the commit itself"),
        Way::Doorbell => ("another node", "doorbell"),
        Way::Looking => ("another node", "looking only"),
    };
    row(&[
        &format!("{} ms apart", pause.as_millis()),
        from,
        told,
        &format!("{:.2}", quantile(&mut latencies, 0.5)),
        &format!("{:.2}", quantile(&mut latencies, 0.99)),
        &format!("{:.2}", quantile(&mut latencies, 1.0)),
    ]);
    writer.close().await;
    reader.close().await;
    Ok(())
}

/// Rounds with and without take turns, so that a noisy machine disturbs both alike.
async fn throughput(database: &str) -> Result<()> {
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        for doorbell in [false, true] {
            let rate = write(database, doorbell).await?;
            // The first warms up.
            if round > 0 {
                rates[usize::from(doorbell)].push(rate);
            }
        }
    }
    let ratio = median(rates[1].iter().zip(&rates[0]).map(|(on, off)| on / off).collect());
    let [off, on] = rates.map(median);
    row(&["doorbell off, commits/s", "on, commits/s", "ratio"]);
    row(&["---:", "---:", "---:"]);
    row(&[&format!("{off:.0}"), &format!("{on:.0}"), &format!("{ratio:.2}")]);
    println!();
    Ok(())
}

async fn write(database: &str, doorbell: bool) -> Result<f64> {
    let (writer, reader) = (node(database, doorbell).await?, node(database, doorbell).await?);
    reader.check().await?;
    writer.unrecorded().execute_unprepared("TRUNCATE task CASCADE; TRUNCATE tidewire_outbox").await?;
    let mut follower = reader.log().follow_all(reader.log().position().await?).await?;
    let following = tokio::spawn(async move { while follower.next().await.is_ok() {} });
    let began = Instant::now();
    let writers = (0..WRITERS).map(|_| async {
        let mut commits = 0_u32;
        while began.elapsed() < ROUND {
            entity::task::Entity::insert(task(1)).exec_without_returning(&writer).await?;
            commits += 1;
        }
        Ok::<_, anyhow::Error>(commits)
    });
    let commits: u32 = try_join_all(writers).await?.into_iter().sum();
    let rate = f64::from(commits) / began.elapsed().as_secs_f64();
    following.abort();
    writer.close().await;
    reader.close().await;
    Ok(rate)
}
