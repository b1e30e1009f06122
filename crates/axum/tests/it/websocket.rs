//! `graphql-transport-ws`, spoken well and badly.

use std::time::Duration;

use serde_json::json;
use tidewire_axum::ServerOptions;
use tidewire_testkit::{WebSocketClient, eventually, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Running, add_food};

const CHANGES: &str = "subscription { foodChanges { sequence changes { node { name } } } }";

async fn open(server: &Running) -> WebSocketClient {
    WebSocketClient::open(&server.websocket(), Some("graphql-transport-ws")).await
}

async fn still_serves(server: &Running) {
    let mut client = WebSocketClient::connect(&server.websocket()).await;
    client.subscribe("1", "{ __typename }", json!({})).await;
    assert_eq!(client.payload().await, json!({ "data": { "__typename": "Query" } }));
    assert_eq!(client.next().await, json!({ "id": "1", "type": "complete" }));
    client.close().await;
}

#[tokio::test]
async fn operations_of_all_kinds_run_side_by_side() {
    let server = Running::start(ServerOptions::default()).await;
    let mut client = WebSocketClient::connect(&server.websocket()).await;
    client.subscribe("s", CHANGES, json!({})).await;
    assert_eq!(client.event("foodChanges").await, json!({ "sequence": 0, "changes": [] }));
    client.subscribe("m", "mutation { foodCreateOne(data: { name: \"fish\" }) { name } }", json!({})).await;
    // The answer, the end of the mutation, and the event come in whatever order.
    let mut messages = Vec::new();
    while messages.len() < 3 {
        messages.push(client.next().await);
    }
    messages.sort_by_key(ToString::to_string);
    assert_eq!(
        messages,
        [
            json!({ "id": "m", "type": "next", "payload": { "data": { "foodCreateOne": { "name": "fish" } } } }),
            json!({ "id": "m", "type": "complete" }),
            json!({ "id": "s", "type": "next", "payload": { "data": { "foodChanges": { "sequence": 1, "changes": [{ "node": { "name": "fish" } }] } } } }),
        ]
    );
    client.subscribe("w", "{ nope }", json!({})).await;
    let error = client.next().await;
    assert_eq!((&error["type"], &error["id"]), (&json!("error"), &json!("w")));
    assert_eq!(error["payload"][0]["extensions"]["code"], "GRAPHQL_VALIDATION_FAILED");
    client.send(json!({ "type": "ping", "payload": { "a": 1 } })).await;
    assert_eq!(client.next().await, json!({ "type": "pong" }));

    // What has ended may be begun again under the same id.
    client.send(json!({ "type": "complete", "id": "s" })).await;
    client.subscribe("s", CHANGES, json!({})).await;
    assert_eq!(client.event("foodChanges").await["sequence"], 0);
    client.close().await;
}

#[tokio::test]
async fn violations_are_answered_by_their_close_codes() {
    let mut options = ServerOptions::default();
    options.init_timeout = Duration::from_millis(200);
    options.max_body_bytes = 50_000;
    let server = Running::start(options).await;
    let init = json!({ "type": "connection_init" });
    let subscribe = json!({ "type": "subscribe", "id": "1", "payload": { "query": CHANGES } });

    let mut no_init = open(&server).await;
    assert_eq!(no_init.closed().await, Some(4408));
    let mut before_init = open(&server).await;
    before_init.send(subscribe.clone()).await;
    assert_eq!(before_init.closed().await, Some(4401));
    let mut twice = WebSocketClient::connect(&server.websocket()).await;
    twice.send(init).await;
    assert_eq!(twice.closed().await, Some(4429));
    let mut same_id = WebSocketClient::connect(&server.websocket()).await;
    same_id.send(subscribe.clone()).await;
    same_id.send(subscribe).await;
    assert_eq!(same_id.closed().await, Some(4409));
    let mut binary = WebSocketClient::connect(&server.websocket()).await;
    binary.send_raw(Message::binary(vec![1, 2, 3])).await;
    assert_eq!(binary.closed().await, Some(4400));
    for text in ["nonsense", "{}", r#"{"type":"start","id":"1"}"#, r#"{"type":"subscribe","id":1}"#] {
        let mut wrong = WebSocketClient::connect(&server.websocket()).await;
        wrong.send_raw(Message::text(text)).await;
        assert_eq!(wrong.closed().await, Some(4400), "{text}");
    }
    let mut long = WebSocketClient::connect(&server.websocket()).await;
    long.send_raw(Message::text("x".repeat(60_000))).await;
    assert!(matches!(long.closed().await, Some(1009) | None));
    let mut old = WebSocketClient::open(&server.websocket(), None).await;
    assert_eq!(old.closed().await, Some(4406));
    still_serves(&server).await;
}

#[tokio::test]
async fn a_socket_has_so_many_operations_and_the_server_so_many_sockets() {
    let mut options = ServerOptions::default();
    options.max_operations = 2;
    options.max_connections = 2;
    let server = Running::start(options).await;
    let mut client = WebSocketClient::connect(&server.websocket()).await;
    for id in ["1", "2"] {
        client.subscribe(id, CHANGES, json!({})).await;
        client.event("foodChanges").await;
    }
    client.subscribe("3", CHANGES, json!({})).await;
    let error = client.next().await;
    assert_eq!((&error["id"], &error["payload"][0]["extensions"]["code"]), (&json!("3"), &json!("LIMIT_EXCEEDED")));
    let second = WebSocketClient::connect(&server.websocket()).await;
    let third = tokio_tungstenite::connect_async(server.websocket()).await;
    assert!(third.unwrap_err().to_string().contains("503"));
    second.close().await;
    client.close().await;
    eventually(async || tokio_tungstenite::connect_async(server.websocket()).await.is_ok()).await;
}

#[tokio::test]
async fn a_client_that_half_closes_or_vanishes_is_forgotten() {
    let server = Running::start(ServerOptions::default()).await;
    let metric = async |name: &str| {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("tidewire_{name} "))).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let mut half = WebSocketClient::connect(&server.websocket()).await;
    half.subscribe("1", CHANGES, json!({})).await;
    half.event("foodChanges").await;
    half.tcp().shutdown().await.unwrap();
    let mut vanished = WebSocketClient::connect(&server.websocket()).await;
    vanished.subscribe("1", CHANGES, json!({})).await;
    vanished.event("foodChanges").await;
    drop(vanished);
    eventually(async || metric("websockets").await == 0 && metric("subscriptions").await == 0).await;
    still_serves(&server).await;
}

/// I7: a client that never reads keeps nobody waiting, and is dropped in the end; memory stays bounded, since nothing is taken from the
/// log for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_is_dropped() {
    let mut options = ServerOptions::default();
    options.write_timeout = Duration::from_millis(300);
    let server = Running::start(options).await;
    let mut lazy = WebSocketClient::connect(&server.websocket()).await;
    lazy.subscribe("1", CHANGES, json!({})).await;
    let mut busy = WebSocketClient::connect(&server.websocket()).await;
    busy.subscribe("1", CHANGES, json!({})).await;
    busy.event("foodChanges").await;
    let name = "x".repeat(100_000);
    let mut seen = 0;
    for n in 0..200 {
        add_food(&server.recorder, &format!("{n}{name}")).await;
        while seen <= n {
            seen += busy.event("foodChanges").await["changes"].as_array().unwrap().len();
        }
    }
    let vanished = async {
        // What was under way still comes, then the connection ends without a close.
        while lazy.tcp().peek(&mut [0; 1]).await.is_ok_and(|read| read > 0) {
            if lazy.closed().await.is_none() {
                break;
            }
        }
    };
    soon(vanished).await;
    still_serves(&server).await;
}

#[tokio::test]
async fn a_server_that_stops_tells_its_clients_to_come_back() {
    let mut server = Running::start(ServerOptions::default()).await;
    let mut client = WebSocketClient::connect(&server.websocket()).await;
    client.subscribe("1", CHANGES, json!({})).await;
    client.event("foodChanges").await;
    server.stop();
    assert_eq!(client.closed().await, Some(1012));
    server.stopped().await;
}
