//! A client that was away for 100,000 changes, against a plain `SELECT` of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::Result;
use futures_util::TryStreamExt;
use sea_orm::EntityTrait;
use sqlx::{Connection, Row, SqliteConnection};
use tidewire_outbox::{Cursor, Step};

use crate::{
    fanout::client::Client,
    measure::{Demo, connect, median, row, task},
    server::{Kind, Running, SUBSCRIPTION},
};

const CHANGES: usize = 100_000;
const ROUNDS: usize = 5;

pub(crate) async fn run() -> Result<()> {
    let demo = Demo::new().await?;
    // Transactions of ten, as applications write them.
    for chunk in 0..CHANGES / 10 {
        let rows = (0..10).map(|number| task(chunk * 10 + number));
        entity::task::Entity::insert_many(rows).exec_without_returning(&demo.recorder).await?;
    }
    let (mut select, mut follow, mut socket) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        select.push(selected(&demo).await?);
        follow.push(followed(&demo).await?);
        socket.push(resumed(&demo).await?);
    }
    println!("### Resume: 100,000 changes that are not in memory\n");
    row(&["how", "seconds", "ratio"]);
    row(&["---", "---:", "---:"]);
    let base = median(select.clone());
    for (name, times) in [
        ("`SELECT` of the outbox's rows", select),
        ("followed in process, decoded", follow),
        ("resumed over a WebSocket", socket),
    ] {
        let time = median(times);
        row(&[name, &format!("{time:.2}"), &format!("{:.2}", time / base)]);
    }
    println!();
    Ok(())
}

/// Every column of every row is fetched, and nothing is done with it.
async fn selected(demo: &Demo) -> Result<f64> {
    let mut connection = SqliteConnection::connect(&demo.url).await?;
    let began = Instant::now();
    let mut bytes = 0;
    {
        let sql = "SELECT seq, tx, entity, operation, key, before, after, actor, origin, mutation_id, at FROM tidewire_outbox ORDER BY seq";
        let mut rows = sqlx::query(sql).fetch(&mut connection);
        while let Some(row) = rows.try_next().await? {
            bytes += row.try_get::<Option<&str>, _>("key")?.map_or(0, str::len);
            bytes += row.try_get::<Option<&str>, _>("after")?.map_or(0, str::len);
        }
    }
    assert!(bytes > CHANGES * 100, "{bytes}");
    connection.close().await?;
    Ok(began.elapsed().as_secs_f64())
}

async fn followed(demo: &Demo) -> Result<f64> {
    let recorder = connect(&demo.url).await?;
    let began = Instant::now();
    let mut follower = recorder.log().follow_all(Cursor::start()).await?;
    let mut changes = 0;
    while changes < CHANGES {
        if let Step::Transactions { transactions, .. } = follower.next().await? {
            changes += transactions.iter().map(|transaction| transaction.changes.len()).sum::<usize>();
        }
    }
    let took = began.elapsed().as_secs_f64();
    recorder.close().await;
    Ok(took)
}

/// The server is new, so nothing is in its memory.
async fn resumed(demo: &Demo) -> Result<f64> {
    let server = Running::start(Kind::Tidewire, &demo.url).await?;
    let received = Arc::new(AtomicU64::new(0));
    let mut client = Client::connect(server.address).await?;
    let began = Instant::now();
    client.subscribe(SUBSCRIPTION, Some(&Cursor::start().to_string()), &received).await?;
    // Each event is a transaction of ten.
    while received.load(Ordering::Relaxed) < (CHANGES / 10) as u64 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    Ok(began.elapsed().as_secs_f64())
}
