//! What rows hold goes to those who ask for it, and nowhere else (promise I11).

use std::fs::File;

use serde_json::{Value, json};
use tidewire_testkit::{TestDatabase, WebSocketClient};

use crate::binary::{Running, Workplace};

/// Stands in every value that is written, compared or refused here.
const SECRET: &str = "xyzzy";

/// Everything that Tidewire and what it is made of can say. What carries the bytes is left out: there, frames are the subject.
const FILTER: &str = "trace,h2=info,hyper=info,hyper_util=info,tungstenite=info,tokio_tungstenite=info,rustls=info,polling=info,mio=info";

const UPSERT: &str = "mutation ($name: String!, $id: String) {
    labelCreateOne(mutationId: $id, data: { projectId: 1, name: $name }, onConflict: { target: [PROJECT_ID, NAME], update: [COLOR] }) { id }
}";

/// Writes, reads and refusals of all kinds.
async fn traffic(server: &Running) {
    let label = "mutation ($project: Int!, $name: String!, $color: String) {
        labelCreateOne(data: { projectId: $project, name: $name, color: $color }) { id name }
    }";
    let add = async |project: u32, name: &str, color: &str| {
        server.ask(label, json!({ "project": project, "name": name, "color": color })).await
    };
    let mut socket = WebSocketClient::connect(&server.websocket()).await;
    let changes = "subscription ($name: String!) { labelChanges(filters: { name: { contains: $name } }) {
        changes { node { name } previous { name } } } }";
    socket.subscribe("1", changes, json!({ "name": SECRET })).await;
    socket.event("labelChanges").await;
    let live = "subscription ($name: String!) { label(filters: { name: { starts_with: $name } }) { nodes { name task { nodes { id } } } } }";
    socket.subscribe("2", live, json!({ "name": SECRET })).await;

    let first = add(1, SECRET, SECRET).await;
    assert_eq!(first["data"]["labelCreateOne"]["name"], SECRET, "{first}");
    // It is there already; its project is not; it is longer than any column; it holds what a text of the database's cannot.
    for (project, name) in [(1, SECRET), (999_999, SECRET), (1, &*SECRET.repeat(1 << 16)), (1, &format!("{SECRET}\0"))]
    {
        let refused = add(project, name, SECRET).await;
        let error = refused["errors"][0]["message"].as_str().unwrap_or_default();
        assert!(!error.contains(SECRET), "{error}");
    }
    for id in ["once", SECRET] {
        server.ask(UPSERT, json!({ "name": SECRET, "id": id })).await;
    }
    let change = "mutation ($name: String!, $from: String!) {
        labelUpdate(data: { name: $name }, filter: { name: { eq: $from } }, ifMatch: { color: $from }) { id }
    }";
    for from in [SECRET, "another"] {
        server.ask(change, json!({ "name": format!("{SECRET}!"), "from": from })).await;
    }
    for filter in
        [r#"{ name: { like: "%xyzzy%" } }"#, r#"{ name: { is_in: ["xyzzy", "b"] } }"#, r#"{ id: { eq: "xyzzy" } }"#]
    {
        server.ask(&format!("{{ label(filters: {filter}) {{ nodes {{ name }} }} }}"), Value::Null).await;
    }
    // No document at all, one that is none, several, and one that nobody knows; from a page of no origin.
    for body in [
        r#"{ "query": "xyzzy" "#,
        r#"{ "query": "{ label(filters: { name: { eq: \"xyzzy\" } ) }" }"#,
        r#"[{ "query": "xyzzy" }]"#,
        r#"{ "documentId": "xyzzy", "variables": { "name": "xyzzy" } }"#,
    ] {
        for origin in [None, Some(SECRET)] {
            let request =
                reqwest::Client::new().post(server.http()).header("content-type", "application/json").body(body);
            let request = origin.into_iter().fold(request, |request, origin| request.header("origin", origin));
            let answer = request.send().await.unwrap().text().await.unwrap();
            assert!(answer.contains("errors") && !answer.contains(SECRET), "{answer}");
        }
    }
    socket.subscribe("3", "subscription { labelChanges(after: \"xyzzy\") { cursor } }", Value::Null).await;
    loop {
        if socket.next().await["id"] == "3" {
            break;
        }
    }
    socket.close().await;
    let remove = "mutation ($name: String!) { labelDelete(filter: { name: { contains: $name } }) }";
    let removed = server.ask(remove, json!({ "name": SECRET })).await;
    assert!(removed["data"]["labelDelete"].as_u64() >= Some(1), "{removed}");
}

async fn nothing_is_told(database: Option<TestDatabase>) {
    let place = Workplace::new();
    let database = database.map(|database| (format!("database.url = {:?}\n", database.url()), database));
    let url = database.as_ref().map(|(url, _)| url.as_str()).unwrap_or_default();
    place.settings(&format!("logging.filter = {FILTER:?}\n{url}"));
    place.succeed(&["migrate", "up"]).await;
    place.succeed(&["seed", "--rows", "20"]).await;
    let log = place.path().join("log");
    let mut command = place.command(&["serve", "--listen", "127.0.0.1:0"]);
    command.stderr(File::create(&log).unwrap());
    let server = Running::start(command).await;
    traffic(&server).await;
    let (_, metrics) = server.get("/metrics").await;
    server.signal("TERM");
    assert!(server.ended().await);
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("DEBUG") && metrics.contains("tidewire_"), "the server says less than it can: {log}");
    for line in log.lines().chain(metrics.lines()) {
        assert!(!line.contains(SECRET), "{line}");
    }
}

#[tokio::test]
async fn what_rows_hold_is_not_in_the_log() {
    nothing_is_told(None).await;
}

#[tokio::test]
async fn what_rows_hold_is_not_in_the_log_on_postgres() {
    if let Some(database) = TestDatabase::postgres().await {
        nothing_is_told(Some(database)).await;
    }
}

#[tokio::test]
async fn what_rows_hold_is_not_in_the_log_on_mariadb() {
    if let Some(database) = TestDatabase::mariadb().await {
        nothing_is_told(Some(database)).await;
    }
}
