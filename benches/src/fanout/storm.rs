//! Ten thousand clients that come back at once, each with the cursor of the last event that it had: how long until all have what they missed, and
//! how often the database is asked for it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use sea_orm::EntityTrait;
use tidewire_outbox::{Cursor, Recorder, Step};

use super::{client::Client, wait_for};
use crate::{
    measure::{self, Demo, row, task},
    server::{Kind, Running, SUBSCRIPTION},
};

const CLIENTS: usize = 10_000;
/// How many transactions whoever has been away longest has missed. A client has missed each number of them that is less, too.
const MISSED: usize = 200;
/// How many connect at a time: no more than this process's one thread serves soon, which also counts what comes.
const ARRIVING: usize = 64;

pub(crate) async fn run(database: Option<&str>) -> Result<()> {
    let demo;
    let (url, recorder) = match database {
        Some(url) => {
            let recorder = measure::connect(url).await?;
            measure::fill(&recorder).await?;
            (url.to_owned(), recorder)
        }
        None => {
            demo = Demo::new().await?;
            (demo.url.clone(), demo.recorder.clone())
        }
    };
    println!("### {CLIENTS} clients come back at once\n");
    row(&[
        "they come back to",
        "changes delivered",
        "s until all have them",
        "aim",
        "reads of the outbox",
        "the server's CPU, s",
    ]);
    row(&["---", "---:", "---:", "---:", "---:", "---:"]);
    let cursors = missed(&recorder).await?;
    // Whoever comes back to the server that they left finds what they missed in its memory; another has to read it.
    let server = Running::start(Kind::Tidewire, &url).await?;
    come_back("a server that was just started", &server, &cursors).await?;
    come_back("the same server once more", &server, &cursors).await?;
    let cursors = missed(&recorder).await?;
    come_back("a server that ran while they were away", &server, &cursors).await?;
    println!();
    Ok(())
}

/// Writes what clients miss; answers where each of them stands, in the order of the changes, as another node of the database has told them.
async fn missed(recorder: &Recorder) -> Result<Vec<Cursor>> {
    let start = recorder.log().position().await?;
    let mut follower = recorder.log().follow_all(start.clone()).await?;
    let mut cursors = vec![start];
    for number in 0..MISSED {
        entity::task::Entity::insert(task(number)).exec_without_returning(recorder).await?;
        while cursors.len() < number + 2 {
            match follower.next().await? {
                Step::Transactions { transactions, .. } => {
                    cursors.extend(transactions.iter().map(|one| one.cursor.clone()));
                }
                other => anyhow::bail!("{other:?}"),
            }
        }
    }
    // Whoever has seen the last has missed nothing.
    cursors.pop();
    Ok(cursors)
}

async fn come_back(name: &str, server: &Running, cursors: &[Cursor]) -> Result<()> {
    let (reads, cpu) = (reads(server).await?, server.cpu().await?);
    let received = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut expected = 0;
    // No order: neighbours have not missed the same.
    let coming: Vec<usize> = (0..CLIENTS).map(|client| client * 7_919 % cursors.len()).collect();
    for at in &coming {
        expected += (cursors.len() - at) as u64;
    }
    let clients: Vec<Client> = stream::iter(coming)
        .map(|at| {
            let received = Arc::clone(&received);
            async move {
                let mut client = Client::connect(server.address).await?;
                client.subscribe(SUBSCRIPTION, Some(&cursors[at].to_string()), &received).await?;
                anyhow::Ok(client)
            }
        })
        .buffer_unordered(ARRIVING)
        .try_collect()
        .await?;
    wait_for(&received, expected).await?;
    let took = began.elapsed();
    ensure!(received.load(Ordering::Relaxed) == expected, "some came twice");
    row(&[
        name,
        &expected.to_string(),
        &format!("{:.2}", took.as_secs_f64()),
        "< 10",
        &(self::reads(server).await? - reads).to_string(),
        &format!("{:.2}", (server.cpu().await? - cpu).as_secs_f64()),
    ]);
    drop(clients);
    // The server notices that they have gone.
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(())
}

/// How often the server has read the outbox for those who came back.
async fn reads(server: &Running) -> Result<u64> {
    let text = reqwest::get(format!("http://{}/metrics", server.address)).await?.text().await?;
    let values: HashMap<&str, &str> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    Ok(values.get("tidewire_outbox_reads_total").context("the metric is there")?.parse()?)
}
