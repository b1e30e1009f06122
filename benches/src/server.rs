//! What serves: Tidewire, or the limit, an axum WebSocket that sends ready-made bytes.

use std::{net::SocketAddr, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::{
        Path, State,
        ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade},
    },
    response::Response,
    routing::{get, post},
};
use clap::ValueEnum;
use futures_util::{SinkExt, StreamExt};
use tidewire_axum::{Server, ServerOptions};
use tidewire_graphql::Api;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
    sync::broadcast,
    time::{MissedTickBehavior, interval},
};

use crate::measure;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Tidewire,
    Limit,
}

/// What subscribers ask for; one task is one event.
pub(crate) const SUBSCRIPTION: &str = "subscription ($after: String) { taskChanges(after: $after) { cursor sequence upToDate resync \
     changes { event operation node { id title body status priority done position updatedAt } changedFields actor at } } }";

/// The first process argument's server, on a free port that it prints.
pub(crate) async fn serve(kind: Kind, database: &str) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let router = match kind {
        Kind::Tidewire => {
            let recorder = measure::connect(database).await?;
            Server::new(Api::builder(recorder).finish()?, ServerOptions::default()).router()
        }
        Kind::Limit => Router::new()
            .route("/graphql", get(upgrade))
            .route("/burst/{count}", post(burst))
            .route("/pace/{rate}", post(pace))
            .with_state(Limit { live: broadcast::Sender::new(1 << 16), frame: sample() }),
    };
    let cpu = || async { measure::cpu().as_nanos().to_string() };
    axum::serve(listener, router.route("/cpu", get(cpu))).await?;
    Ok(())
}

/// A frame of the size and kind that Tidewire sends.
fn sample() -> Utf8Bytes {
    let frame = r#"{"id":"1","type":"next","payload":{"data":{"taskChanges":{"cursor":"AbkH2NodGUhHAAAAAAAAA3Hd9fCL","sequence":123456,"upToDate":true,"resync":null,"changes":[{"event":"ENTER","operation":"INSERT","node":{"id":"019dab12-7a40-7c3e-8f51-0a1b2c3d4e5f","title":"Paint the buoy at pier 123","body":"Two coats, and a third where the gulls sit.","status":"open","priority":3,"done":false,"position":"0","updatedAt":"2026-11-20 16:43:00.123456 UTC"},"changedFields":[],"actor":null,"at":"2026-11-20 16:43:00.123 UTC"}]}}}}"#;
    Utf8Bytes::from(frame)
}

#[derive(Clone)]
struct Limit {
    live: broadcast::Sender<Arc<[Utf8Bytes]>>,
    frame: Utf8Bytes,
}

async fn upgrade(State(limit): State<Limit>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.protocols(["graphql-transport-ws"]).on_upgrade(async move |socket| {
        let _ = send_all(limit, socket).await;
    })
}

/// Sends what is broadcast, as much in one write as there is.
async fn send_all(limit: Limit, socket: WebSocket) -> Result<(), axum::Error> {
    let mut live = limit.live.subscribe();
    let (mut sink, mut stream) = socket.split();
    // The client's greeting and its operation.
    stream.next().await;
    sink.send(Message::text(r#"{"type":"connection_ack"}"#)).await?;
    stream.next().await;
    while let Ok(frames) = live.recv().await {
        for frame in &*frames {
            sink.feed(Message::Text(frame.clone())).await?;
        }
        while let Ok(frames) = live.try_recv() {
            for frame in &*frames {
                sink.feed(Message::Text(frame.clone())).await?;
            }
        }
        sink.flush().await?;
    }
    Ok(())
}

/// Broadcasts so many frames at once.
async fn burst(State(limit): State<Limit>, Path(count): Path<usize>) {
    let _ = limit.live.send(vec![limit.frame.clone(); count].into());
}

/// Broadcasts so many frames a second, in steps of two milliseconds, from now on.
async fn pace(State(limit): State<Limit>, Path(rate): Path<usize>) {
    tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(2));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut due = 0;
        loop {
            ticks.tick().await;
            due += rate * 2;
            let _ = limit.live.send(vec![limit.frame.clone(); due / 1_000].into());
            due %= 1_000;
        }
    });
}

/// A server in a process of its own, on a processor of its own where the machine lets us say so.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    process: Child,
}

impl Running {
    pub(crate) async fn start(kind: Kind, database: &str) -> Result<Self> {
        let program = std::env::current_exe()?;
        let pinned = std::process::Command::new("taskset").arg("--version").stdout(Stdio::null()).status().is_ok();
        let mut command = if pinned {
            let mut command = Command::new("taskset");
            command.args(["-c", "0"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        let kind = kind.to_possible_value().context("every kind has a name")?;
        command.args(["serve", kind.get_name(), database]).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn()?;
        let mut lines = BufReader::new(process.stdout.take().context("the output is piped")?).lines();
        let address = lines.next_line().await?.context("the server says where it listens")?.parse()?;
        Ok(Self { address, process })
    }

    /// The processor time that the server has used.
    pub(crate) async fn cpu(&self) -> Result<Duration> {
        let text = reqwest::get(format!("http://{}/cpu", self.address)).await?.text().await?;
        Ok(Duration::from_nanos(text.parse()?))
    }

    /// The server's resident memory, in bytes.
    pub(crate) fn memory(&self) -> Result<f64> {
        measure::resident(self.process.id().context("it runs")?)
    }

    pub(crate) async fn post(&self, path: &str) -> Result<()> {
        reqwest::Client::new().post(format!("http://{}{path}", self.address)).send().await?.error_for_status()?;
        Ok(())
    }
}
