//! What goes wrong outside the program: disks that fill up, files that cannot be written, locks that others hold, and signals.

use std::time::Duration;

use sea_orm::{ConnectionTrait, Database};
use serde_json::{Value, json};
use tidewire_testkit::{WebSocketClient, soon};
use tokio::process::Command;

use crate::binary::{Running, TIDEWIRE, Workplace};

const COMMENTS: &str =
    "subscription ($after: String) { commentChanges(after: $after) { cursor changes { node { id } } } }";

/// Adds a comment to the first task; gives its id, or the code of the error. `None` where nobody answered.
async fn try_add(server: &Running, body: &str) -> Option<Result<Value, Value>> {
    let document =
        "mutation ($task: String!, $body: String!) { commentCreateOne(data: { taskId: $task, body: $body }) { id } }";
    let first = "{ task(pagination: { page: { page: 0, limit: 1 } }) { nodes { id } } }";
    let mut tasks = server.try_ask(first, json!({})).await.ok()?;
    let task = tasks["data"]["task"]["nodes"][0]["id"].take();
    let mut answer = server.try_ask(document, json!({ "task": task, "body": body })).await.ok()?;
    Some(match answer.get_mut("errors") {
        Some(errors) => Err(errors[0]["extensions"]["code"].take()),
        None => Ok(answer["data"]["commentCreateOne"]["id"].take()),
    })
}

async fn add(server: &Running, body: &str) -> Result<Value, Value> {
    try_add(server, body).await.expect("the server answers")
}

/// The cursor from which a subscription to comments goes on.
async fn position(server: &Running) -> String {
    let mut socket = WebSocketClient::connect(&server.websocket()).await;
    socket.subscribe("1", COMMENTS, json!({})).await;
    let cursor = socket.event("commentChanges").await["cursor"].as_str().unwrap().to_owned();
    socket.close().await;
    cursor
}

/// The ids of the comments that a subscription tells of after a cursor, until it has told of the last one.
async fn delivered(server: &Running, after: &str, last: &Value) -> Vec<Value> {
    let mut socket = WebSocketClient::connect(&server.websocket()).await;
    socket.subscribe("1", COMMENTS, json!({ "after": after })).await;
    let mut ids = Vec::new();
    while ids.last() != Some(last) {
        let mut event = socket.event("commentChanges").await;
        ids.extend(event["changes"].as_array_mut().unwrap().iter_mut().map(|change| change["node"]["id"].take()));
    }
    ids
}

/// I1: a change that was answered is there, one that was refused is not; and the server goes on.
#[tokio::test]
async fn a_full_disk_refuses_writes_and_loses_nothing() {
    // GIVEN a server whose files cannot grow beyond 2 MiB
    let place = Workplace::new();
    place.seed(20).await;
    let mut command = Command::new("sh");
    let script = format!("trap '' XFSZ; ulimit -f 4096; exec {TIDEWIRE} serve --listen 127.0.0.1:0");
    command.args(["-c", &script]).current_dir(place.path()).kill_on_drop(true);
    let server = Running::start(command).await;
    let after = position(&server).await;

    // WHEN rows are added until they no longer fit
    let body = "x".repeat(50_000);
    let mut added = Vec::new();
    let refused = loop {
        match add(&server, &body).await {
            Ok(id) => added.push(id),
            Err(code) => break code,
        }
        assert!(added.len() < 1000, "the limit does not hold");
    };
    // THEN the answer says so, and reading goes on
    assert_eq!(refused, "UNWRITABLE");
    assert_eq!(delivered(&server, &after, added.last().unwrap()).await, added);
    assert_eq!(server.get("/healthz").await.0, 200);
    server.signal("KILL");
    assert!(!server.ended().await);

    // WHEN there is room again
    let server = place.serve().await;
    added.push(add(&server, "there is room").await.unwrap());
    // THEN what was answered is there, and nothing else
    assert_eq!(delivered(&server, &after, added.last().unwrap()).await, added);
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_named_at_the_start() {
    let place = Workplace::new();
    place.seed(1).await;
    let url = format!("sqlite://{}?mode=ro", place.file().display());
    let (success, text) = place.run(&["serve", "--listen", "127.0.0.1:0", "--database", &url]).await;
    assert!(!success && text.contains("the database cannot be written: "), "{text}");
    let (success, text) = place.run(&["serve", "--listen", "127.0.0.1:0", "--database", "sqlite://missing.db"]).await;
    assert!(!success && text.contains("missing.db"), "{text}");
    std::fs::write(place.path().join("text.db"), "this is no database, however long it is".repeat(100)).unwrap();
    let (success, text) = place.run(&["serve", "--listen", "127.0.0.1:0", "--database", "sqlite://text.db"]).await;
    assert!(!success && text.contains("not a database"), "{text}");
}

#[tokio::test]
async fn a_locked_database_refuses_writes_after_a_while_and_goes_on_reading() {
    let place = Workplace::new();
    place.seed(5).await;
    let server = place.serve().await;
    let after = position(&server).await;

    // GIVEN another program that writes and does not finish
    let other = Database::connect(format!("sqlite://{}", place.file().display())).await.unwrap();
    other.execute_unprepared("BEGIN IMMEDIATE; UPDATE user SET name = 'nobody'").await.unwrap();
    // THEN writes are refused in time, and reading goes on
    let refused = soon(add(&server, "blocked")).await.unwrap_err();
    assert_eq!(refused, "BUSY");
    server.data("{ task { paginationInfo { total } } }", json!({})).await;

    // WHEN it is done, THEN so are we
    other.execute_unprepared("ROLLBACK").await.unwrap();
    let id = add(&server, "free").await.unwrap();
    assert_eq!(delivered(&server, &after, &id).await, std::slice::from_ref(&id));
}

/// Stopping is not an accident: what was accepted is finished, and clients are told to come back.
#[tokio::test]
async fn a_server_that_stops_finishes_what_it_accepted() {
    let place = Workplace::new();
    place.seed(5).await;
    let server = place.serve().await;
    let after = position(&server).await;
    let mut socket = WebSocketClient::connect(&server.websocket()).await;
    socket.subscribe("1", COMMENTS, json!({ "after": after })).await;
    socket.event("commentChanges").await;

    // WHEN mutations are on their way and the signal comes
    let writes = async {
        let mut ids = Vec::new();
        while let Some(added) = try_add(&server, "on its way").await {
            ids.push(added.unwrap());
        }
        ids
    };
    let signal = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.signal("TERM");
    };
    let (mut added, ()) = tokio::join!(writes, signal);
    // THEN the socket is closed with the code for a restart, on which clients connect again, and the program ends well
    assert_eq!(socket.closed().await, Some(1012));
    assert!(server.ended().await);

    // AND what was answered is there, and nothing else
    let server = place.serve().await;
    added.push(add(&server, "after it").await.unwrap());
    assert!(added.len() > 1);
    assert_eq!(delivered(&server, &after, added.last().unwrap()).await, added);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn idle_memory_is_small() {
    let place = Workplace::new();
    place.seed(200).await;
    let server = place.serve().await;
    server.data("{ task { nodes { id title comment { nodes { body } } } } }", json!({})).await;
    let idle = server.resident();
    // The promise is 50 MiB for the release build; a build without optimisation is somewhat larger.
    assert!(idle < 80 << 20, "{} MiB", idle >> 20);
}

/// I7: what clients do not read waits in the log, and not in the server's memory.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn clients_that_never_read_cost_no_memory() {
    let place = Workplace::new();
    place.seed(5).await;
    let server = place.serve().await;
    let idle = server.resident();

    // GIVEN forty clients that subscribe and read no more
    let mut clients = Vec::new();
    for _ in 0..40 {
        let mut socket = WebSocketClient::connect(&server.websocket()).await;
        let query = "subscription { commentChanges { cursor changes { node { id body } } } }";
        socket.subscribe("1", query, json!({})).await;
        clients.push(socket);
    }

    // WHEN they are sent a gigabyte
    let task = server.data("{ task(pagination: { page: { page: 0, limit: 1 } }) { nodes { id } } }", json!({})).await;
    let task = task["task"]["nodes"][0]["id"].clone();
    let comment = json!({ "taskId": task, "body": "x".repeat(50_000) });
    let comments = vec![comment; 10];
    let create = "mutation ($data: [CommentInsertInput!]!) { commentCreateBatch(data: $data) { id } }";
    for _ in 0..50 {
        server.data(create, json!({ "data": comments })).await;
    }

    // THEN the server holds the newest of it once: its ring, the newest events, and what the sockets' buffers take
    let grown = server.resident().saturating_sub(idle);
    assert!(grown < 200 << 20, "{} MiB", grown >> 20);
    assert_eq!(server.get("/readyz").await.0, 200);
    drop(clients);
}
