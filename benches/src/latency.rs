//! From the commit of a write to a client that has its event.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::{SinkExt, StreamExt};
use sea_orm::{EntityTrait, Set};
use serde_json::{Value, json};
use tidewire_axum::{Server, ServerOptions};
use tidewire_graphql::Api;
use tidewire_outbox::Recorder;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::measure::{Demo, connect, quantile, row, task};

const WRITES: usize = 2_000;
const PAUSE: Duration = Duration::from_millis(3);

pub(crate) async fn run() -> Result<()> {
    println!("### Latency: from commit to client\n");
    row(&["who writes", "p50, ms", "p99, ms", "longest, ms"]);
    row(&["---", "---:", "---:", "---:"]);
    let demo = Demo::new().await?;
    measure("the server's own process", &demo, &demo.recorder).await?;
    // A recorder of its own shares nothing with the server's: the server finds its writes as it would another process's, by looking.
    let other = connect(&demo.url).await?;
    measure("another process", &demo, &other).await?;
    println!();
    Ok(())
}

async fn measure(name: &str, demo: &Demo, writer: &Recorder) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("ws://{}/graphql", listener.local_addr()?);
    let server = Server::new(Api::builder(demo.recorder.clone()).finish()?, ServerOptions::default());
    let serving = tokio::spawn(async move { axum::serve(listener, server.router()).await });
    let mut socket = subscribe(&url).await?;
    let mut latencies = Vec::new();
    for number in 0..WRITES {
        let title = format!("{name} {number}");
        let mut row = task(number);
        row.title = Set(title.clone());
        entity::task::Entity::insert(row).exec_without_returning(writer).await?;
        let committed = Instant::now();
        while next(&mut socket).await?["payload"]["data"]["taskChanges"]["changes"][0]["node"]["title"] != title {}
        latencies.push(committed.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(PAUSE).await;
    }
    serving.abort();
    let longest = quantile(&mut latencies, 1.0);
    row(&[
        name,
        &format!("{:.2}", quantile(&mut latencies, 0.5)),
        &format!("{:.2}", quantile(&mut latencies, 0.99)),
        &format!("{longest:.2}"),
    ]);
    Ok(())
}

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub(crate) async fn subscribe(url: &str) -> Result<Socket> {
    let mut request = url.into_client_request()?;
    request.headers_mut().insert("sec-websocket-protocol", "graphql-transport-ws".parse()?);
    let (mut socket, _) = connect_async(request).await?;
    socket.send(Message::text(r#"{"type":"connection_init"}"#)).await?;
    next(&mut socket).await?;
    let payload = json!({ "query": "subscription { taskChanges { changes { node { title } } } }" });
    socket.send(Message::text(json!({ "id": "1", "type": "subscribe", "payload": payload }).to_string())).await?;
    next(&mut socket).await?;
    Ok(socket)
}

pub(crate) async fn next(socket: &mut Socket) -> Result<Value> {
    loop {
        if let Message::Text(text) = socket.next().await.context("the server has gone")?? {
            return Ok(serde_json::from_str(&text)?);
        }
    }
}
