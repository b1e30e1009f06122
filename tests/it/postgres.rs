//! The program on PostgreSQL: what other programs write is seen, and any number of nodes serve one database.

use sea_orm::{ConnectionTrait, Database};
use serde_json::{Value, json};
use tidewire_testkit::{TestDatabase, WebSocketClient};

use crate::binary::{Running, Workplace};

const LABELS: &str = "subscription ($after: String) { labelChanges(after: $after) \
     { cursor sequence resync changes { event operation node { name } previous { name } actor } } }";

async fn add(server: &Running, name: &str) {
    let mutation =
        "mutation ($name: String!) { labelCreateOne(data: { projectId: 1, name: $name, color: \"#0b6e8f\" }) { id } }";
    server.data(mutation, json!({ "name": name })).await;
}

async fn subscribe(server: &Running, after: Option<&Value>) -> WebSocketClient {
    let mut socket = WebSocketClient::connect(&server.websocket()).await;
    socket.subscribe("1", LABELS, json!({ "after": after })).await;
    socket
}

/// The next event that has changes.
async fn changes(socket: &mut WebSocketClient) -> Value {
    loop {
        let event = socket.event("labelChanges").await;
        assert_eq!(event["resync"], Value::Null, "{event}");
        if event["changes"].as_array().is_some_and(|changes| !changes.is_empty()) {
            return event;
        }
    }
}

struct Place {
    place: Workplace,
    url: String,
}

impl Place {
    /// A seeded database; `None` where PostgreSQL is not installed.
    async fn new() -> Option<Self> {
        let database = TestDatabase::postgres().await?;
        let place = Self { place: Workplace::new(), url: database.url().to_owned() };
        place.succeed(&["migrate", "up"]).await;
        place.succeed(&["seed", "--rows", "20"]).await;
        Some(place)
    }

    async fn succeed(&self, arguments: &[&str]) -> String {
        self.place.succeed(&[arguments, &["--database", &self.url]].concat()).await
    }

    /// Has what anybody writes recorded.
    async fn install_triggers(&self) {
        self.place.settings("[database]\ncapture = \"triggers\"");
        self.succeed(&["capture", "install"]).await;
    }

    async fn serve(&self) -> Running {
        Running::start(self.place.command(&["serve", "--listen", "127.0.0.1:0", "--database", &self.url])).await
    }
}

#[tokio::test]
async fn what_other_programs_write_reaches_subscribers() {
    let Some(place) = Place::new().await else { return };
    place.install_triggers().await;
    let server = place.serve().await;
    let mut socket = subscribe(&server, None).await;
    socket.event("labelChanges").await;

    // GIVEN a program that knows nothing of Tidewire
    let psql = Database::connect(&place.url).await.unwrap();
    psql.execute_unprepared("UPDATE label SET name = 'by hand' WHERE id = 1").await.unwrap();
    let event = changes(&mut socket).await;
    assert_eq!(event["changes"][0]["node"]["name"], "by hand");
    assert_eq!(event["changes"][0]["operation"], "UPDATE");
    assert_eq!(event["changes"][0]["actor"], "database:tidewire");

    // A cascade is seen, and so is what is truncated.
    psql.execute_unprepared("DELETE FROM project WHERE id = 2").await.unwrap();
    let gone = changes(&mut socket).await["changes"].as_array().unwrap().len();
    assert!(gone > 1);
    psql.execute_unprepared("TRUNCATE label CASCADE").await.unwrap();
    let event = changes(&mut socket).await;
    assert!(event["changes"].as_array().unwrap().iter().all(|change| change["operation"] == "DELETE"), "{event}");

    // What is rolled back is not.
    psql.execute_unprepared("BEGIN; INSERT INTO label (project_id, name) VALUES (1, 'never'); ROLLBACK").await.unwrap();
    add(&server, "after it").await;
    assert_eq!(changes(&mut socket).await["changes"][0]["node"]["name"], "after it");
}

#[tokio::test]
async fn refusals_have_the_codes_that_they_have_on_sqlite() {
    let Some(place) = Place::new().await else { return };
    let server = place.serve().await;
    let mutation = "mutation ($project: Int!, $name: String!) { labelCreateOne(data: { projectId: $project, name: $name }) { id } }";
    for (project, name, code) in
        [(1, "new", None), (1, "new", Some("ALREADY_EXISTS")), (99, "new", Some("REFERENCE_VIOLATION"))]
    {
        let answer = server.ask(mutation, json!({ "project": project, "name": name })).await;
        assert_eq!(answer["errors"][0]["extensions"]["code"].as_str(), code, "{answer}");
    }
    // Another transaction holds the row: the answer comes when it is done.
    let other = Database::connect(&place.url).await.unwrap();
    other.execute_unprepared("BEGIN; UPDATE label SET name = 'held' WHERE id = 1").await.unwrap();
    let update = "mutation { labelUpdate(data: { name: \"ours\" }, filter: { id: { eq: 1 } }) { name } }";
    let (answer, ()) = tokio::join!(server.data(update, json!({})), async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        other.execute_unprepared("COMMIT").await.unwrap();
    });
    assert_eq!(answer["labelUpdate"], json!([{ "name": "ours" }]));
}

/// I4: a client moves from node to node with its cursor, and misses nothing.
#[tokio::test]
async fn a_cursor_resumes_on_any_node() {
    let Some(place) = Place::new().await else { return };
    let nodes = [place.serve().await, place.serve().await, place.serve().await];
    let mut socket = subscribe(&nodes[0], None).await;
    let mut cursor = socket.event("labelChanges").await["cursor"].clone();
    let mut seen = Vec::new();
    for round in 0..30 {
        // Written on one node, read on another.
        for number in 0..3 {
            add(&nodes[round % 3], &format!("label {round} {number}")).await;
        }
        socket.close().await;
        socket = subscribe(&nodes[(round + 1) % 3], Some(&cursor)).await;
        while seen.len() < round * 3 + 2 {
            let event = changes(&mut socket).await;
            cursor = event["cursor"].clone();
            for change in event["changes"].as_array().unwrap() {
                seen.push(change["node"]["name"].as_str().unwrap().to_owned());
            }
        }
    }
    let expected = (0..30).flat_map(|round| (0..3).map(move |number| format!("label {round} {number}")));
    assert_eq!(seen, expected.take(seen.len()).collect::<Vec<_>>());
}

/// By the database's own log: two nodes, of which one reads it, and the other when that is gone.
#[tokio::test]
async fn the_log_of_the_database_is_read_by_one_node_and_then_by_another() {
    let Some(place) = Place::new().await else { return };
    place.place.settings("[database]\ncapture = \"log\"");
    place.succeed(&["capture", "install"]).await;
    let status = place.succeed(&["capture", "status"]).await;
    assert!(status.contains("is read by nobody") && status.contains("8 entities are recorded by log"), "{status}");
    let (healthy, text) = place.place.run(&["doctor", "--database", &place.url]).await;
    assert!(!healthy && text.contains("Is a server running on this database?"), "{text}");

    let nodes = [place.serve().await, place.serve().await];
    let mut socket = subscribe(&nodes[1], None).await;
    socket.event("labelChanges").await;
    let psql = Database::connect(&place.url).await.unwrap();
    psql.execute_unprepared("UPDATE label SET name = 'by hand' WHERE id = 1").await.unwrap();
    let event = changes(&mut socket).await;
    assert_eq!(event["changes"][0]["node"]["name"], "by hand");
    assert_eq!(event["changes"][0]["actor"], "service:app");
    assert!(place.succeed(&["capture", "status"]).await.contains("is being read"));
    place.succeed(&["doctor"]).await;

    // The first is killed; the other goes on within seconds.
    let [first, second] = nodes;
    drop(first);
    add(&second, "after it").await;
    assert_eq!(changes(&mut socket).await["changes"][0]["node"]["name"], "after it");

    place.succeed(&["capture", "remove"]).await;
    let left = "SELECT 1 FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(psql.execute_unprepared(left).await.unwrap().rows_affected(), 0);
}

#[tokio::test]
async fn capture_is_installed_removed_and_missed() {
    let Some(place) = Place::new().await else { return };
    assert!(place.succeed(&["capture", "status"]).await.contains("8 entities are recorded by hooks"));
    place.install_triggers().await;
    place.install_triggers().await;
    place.succeed(&["doctor"]).await;
    assert!(place.succeed(&["capture", "status"]).await.contains("8 entities are recorded by triggers"));
    place.succeed(&["capture", "remove"]).await;
    let (healthy, text) = place.place.run(&["doctor", "--database", &place.url]).await;
    assert!(!healthy && text.contains("captured by hooks, and the settings say triggers"), "{text}");
    place.install_triggers().await;

    // A trigger that somebody disabled is missed as well.
    let psql = Database::connect(&place.url).await.unwrap();
    psql.execute_unprepared("ALTER TABLE task DISABLE TRIGGER ALL").await.unwrap();
    let (healthy, text) = place.place.run(&["doctor", "--database", &place.url]).await;
    assert!(!healthy && text.contains("record task are missing or out of date"), "{text}");

    // With hooks and triggers every write would be recorded twice.
    place.install_triggers().await;
    place.place.settings("");
    psql.execute_unprepared("UPDATE tidewire_log SET capture = 'hooks'").await.unwrap();
    let (healthy, text) = place.place.run(&["doctor", "--database", &place.url]).await;
    assert!(!healthy && text.contains("the triggers that record task are installed too"), "{text}");
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named_without_its_password() {
    let place = Workplace::new();
    let (success, text) = place.run(&["serve", "--database", "postgres://someone:hunter2@127.0.0.1:1/x"]).await;
    assert!(!success && text.contains("cannot be opened") && !text.contains("hunter2"), "{text}");
}
