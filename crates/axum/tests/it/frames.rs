//! The WebSocket below the protocol: how it is opened, and frames of every size.

use futures_util::future::join_all;
use serde_json::{Value, json};
use tidewire_axum::ServerOptions;
use tidewire_testkit::{WebSocketClient, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Running, add_food};

/// The answer to a request for a WebSocket with these headers, up to the empty line.
async fn ask(server: &Running, version: &str, headers: &str) -> String {
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let request = format!("GET /graphql HTTP/{version}\r\nhost: {}\r\n{headers}\r\n", server.address);
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    soon(async {
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(socket.read_u8().await.unwrap());
        }
    })
    .await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn only_a_request_for_a_websocket_opens_one() {
    const KEY: &str = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    const ALL: &str = "connection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\nsec-websocket-version: 13\r\n";
    let server = Running::start(ServerOptions::default()).await;
    let answer =
        ask(&server, "1.1", &format!("{ALL}{KEY}sec-websocket-protocol: graphql-ws, graphql-transport-ws\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    // The key and the answer are RFC 6455's own example.
    for line in
        ["sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n", "sec-websocket-protocol: graphql-transport-ws\r\n"]
    {
        assert!(answer.contains(line), "{answer}");
    }
    for (version, headers, status) in [
        ("1.1", ALL.to_owned(), "400"),
        ("1.0", format!("{ALL}{KEY}"), "400"),
        ("1.1", format!("{ALL}{KEY}").replace("13", "8"), "426"),
        ("1.1", format!("{ALL}{KEY}").replace("WebSocket", "h2c"), "400"),
        ("1.1", format!("{ALL}{KEY}").replace(", Upgrade", ""), "400"),
    ] {
        let answer = ask(&server, version, &headers).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{headers} -> {answer}");
    }
}

#[tokio::test]
async fn frames_of_every_size_arrive_whole() {
    let server = Running::start(ServerOptions::default()).await;
    let mut client = WebSocketClient::connect(&server.websocket()).await;
    // Around each size from which on a frame's head has another form.
    for target in [120, 125, 126, 127, 200, 65_534, 65_535, 65_536, 65_537, 200_000] {
        let around = r#"{"id":"1","type":"next","payload":{"data":{"":"Query"}}}"#.len();
        let name = "a".repeat(target - around);
        client.subscribe("1", &format!("{{ {name}: __typename }}"), json!({})).await;
        let payload = client.payload().await;
        assert_eq!(payload["data"][&name], "Query");
        assert_eq!(client.next().await, json!({ "id": "1", "type": "complete" }));
    }
}

/// What is answered by tungstenite comes between frames that are written past it, and never inside one.
#[tokio::test]
async fn answers_to_pings_stand_between_frames() {
    const EVENTS: usize = 300;
    let server = Running::start(ServerOptions::default()).await;
    let clients = (0..4).map(async |_| {
        let mut client = WebSocketClient::connect(&server.websocket()).await;
        client.subscribe("1", "subscription { foodChanges { sequence changes { node { name } } } }", json!({})).await;
        client.payload().await;
        client
    });
    let clients = join_all(clients).await;
    let body = "x".repeat(3_000);
    let writing = async {
        for number in 0..EVENTS {
            add_food(&server.recorder, &format!("{number} {body}")).await;
        }
    };
    let reading = clients.into_iter().map(async |mut client: WebSocketClient| {
        let mut names = Vec::new();
        while names.len() < EVENTS {
            client.send_raw(Message::Ping(vec![7; 100].into())).await;
            let event = client.event("foodChanges").await;
            let changes = event["changes"].as_array().unwrap().iter();
            names.extend(changes.map(|change: &Value| change["node"]["name"].as_str().unwrap().to_owned()));
        }
        assert!(names.iter().enumerate().all(|(number, name)| *name == format!("{number} {body}")));
    });
    tokio::join!(writing, join_all(reading));
}
