//! The time from the program's start in an empty folder to its first answer, and the memory that it then holds.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::process::Command;

use crate::measure::{median, resident, row};

const ROUNDS: usize = 5;

pub(crate) async fn run(tidewire: &Path) -> Result<()> {
    let tidewire = tidewire.canonicalize().context("the program is not there")?;
    let (mut times, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let folder = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let began = Instant::now();
        let mut process = Command::new(&tidewire)
            .current_dir(folder.path())
            .env("TIDEWIRE_SERVER__LISTEN", &address)
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let client = reqwest::Client::new();
        let body = json!({ "query": "{ task(pagination: { page: { page: 0, limit: 10 } }) { nodes { title project { name } } } }" });
        while client.post(format!("http://{address}/graphql")).json(&body).send().await.is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        times.push(began.elapsed().as_secs_f64());
        tokio::time::sleep(Duration::from_millis(500)).await;
        memory.push(resident(process.id().context("it runs")?)? / 1024.0 / 1024.0);
        process.kill().await?;
    }
    println!("### Start and memory\n");
    row(&["what", "measured", "aim"]);
    row(&["---", "---:", "---:"]);
    row(&["empty folder to first answer (migrated, 200 tasks seeded), s", &format!("{:.2}", median(times)), "< 1"]);
    row(&["resident memory, idle, MiB", &format!("{:.0}", median(memory)), "< 50"]);
    println!();
    Ok(())
}
