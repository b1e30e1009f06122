//! Server-sent events.

use tidewire_axum::ServerOptions;
use tidewire_testkit::soon;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Running, add_food};

/// Reads until a text has come.
async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut all = String::new();
    let mut buffer = vec![0; 4096];
    while !all.contains(text) {
        let read = soon(stream.read(&mut buffer)).await.unwrap();
        assert!(read > 0, "the connection ended without {text}: {all}");
        all.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    all
}

async fn ask(server: &Running, query: &str) -> TcpStream {
    let body = serde_json::json!({ "query": query }).to_string();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = format!(
        "POST /graphql HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn each_event_is_a_next_and_the_end_of_an_operation_a_complete() {
    let server = Running::start(ServerOptions::default()).await;
    let mut query = ask(&server, "{ food { nodes { name } } }").await;
    let answer = read_until(&mut query, "event: complete\ndata: \n\n").await;
    assert!(answer.contains("content-type: text/event-stream"), "{answer}");
    assert!(
        answer.contains("event: next\ndata: {\"data\":{\"food\":{\"nodes\":[{\"name\":\"meat\"}]}}}\n\n"),
        "{answer}"
    );
    let mut wrong = ask(&server, "{ fod }").await;
    let answer = read_until(&mut wrong, "event: complete").await;
    assert!(
        answer.contains("event: next\ndata: {\"errors\":[") && answer.contains("GRAPHQL_VALIDATION_FAILED"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_stream_goes_on_until_the_client_leaves_or_the_server_stops() {
    let mut server = Running::start(ServerOptions::default()).await;
    let mut first = ask(&server, "subscription { foodChanges { changes { node { name } } } }").await;
    read_until(&mut first, "\"changes\":[]").await;
    let leaving = ask(&server, "subscription { food { nodes { name } } }").await;
    drop(leaving);
    add_food(&server.recorder, "fish\nand chips").await;
    let event = read_until(&mut first, "fish").await;
    assert!(
        event.contains(r#"data: {"data":{"foodChanges":{"changes":[{"node":{"name":"fish\nand chips"}}]}}}"#),
        "{event}"
    );
    server.stop();
    // It ends without a `complete`, so the client knows to come back.
    let mut rest = String::new();
    soon(first.read_to_string(&mut rest)).await.unwrap();
    assert!(!rest.contains("complete"), "{rest}");
    server.stopped().await;
}
