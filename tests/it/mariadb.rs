//! The program on MariaDB: what other programs write is seen, cascades among it.

use sea_orm::{ConnectionTrait, Database};
use serde_json::{Value, json};
use tidewire_testkit::{TestDatabase, WebSocketClient};

use crate::binary::{Running, Workplace};

const LABELS: &str =
    "subscription { labelChanges { cursor resync changes { event operation node { name } previous { name } actor } } }";

struct Place {
    place: Workplace,
    url: String,
}

impl Place {
    /// A seeded database; `None` where MariaDB is not installed.
    async fn new() -> Option<Self> {
        let database = TestDatabase::mariadb().await?;
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

#[tokio::test]
async fn what_other_programs_write_reaches_subscribers() {
    let Some(place) = Place::new().await else { return };
    place.install_triggers().await;
    let server = place.serve().await;
    let mut socket = WebSocketClient::connect(&server.websocket()).await;
    socket.subscribe("1", LABELS, json!({})).await;
    socket.event("labelChanges").await;

    // GIVEN a program that knows nothing of Tidewire
    let other = Database::connect(&place.url).await.unwrap();
    other.execute_unprepared("UPDATE label SET name = 'by hand' WHERE id = 1").await.unwrap();
    let event = changes(&mut socket).await;
    assert_eq!(event["changes"][0]["node"]["name"], "by hand");
    assert_eq!(event["changes"][0]["operation"], "UPDATE");
    assert_eq!(event["changes"][0]["actor"], "database:root");

    // A cascade is seen, and its transaction is one.
    other.execute_unprepared("DELETE FROM project WHERE id = 2").await.unwrap();
    let gone = changes(&mut socket).await;
    assert!(gone["changes"].as_array().unwrap().len() > 1, "{gone}");

    // What is rolled back is not.
    other
        .execute_unprepared("BEGIN; INSERT INTO label (project_id, name) VALUES (1, 'never'); ROLLBACK")
        .await
        .unwrap();
    let add = "mutation { labelCreateOne(data: { projectId: 1, name: \"after it\", color: \"#0b6e8f\" }) { id } }";
    server.data(add, json!({})).await;
    assert_eq!(changes(&mut socket).await["changes"][0]["node"]["name"], "after it");

    // Refusals have the codes that they have elsewhere.
    for (mutation, code) in [
        (add, "ALREADY_EXISTS"),
        ("mutation { labelCreateOne(data: { projectId: 99, name: \"x\" }) { id } }", "REFERENCE_VIOLATION"),
    ] {
        let answer = server.ask(mutation, json!({})).await;
        assert_eq!(answer["errors"][0]["extensions"]["code"], code, "{answer}");
    }
}

#[tokio::test]
async fn capture_is_installed_removed_and_missed() {
    let Some(place) = Place::new().await else { return };
    assert!(place.succeed(&["capture", "status"]).await.contains("8 entities are recorded by hooks"));
    place.succeed(&["doctor"]).await;
    place.install_triggers().await;
    assert!(place.succeed(&["capture", "status"]).await.contains("8 entities are recorded by triggers"));
    place.succeed(&["capture", "remove"]).await;
    let (healthy, text) = place.place.run(&["doctor", "--database", &place.url]).await;
    assert!(!healthy && text.contains("captured by hooks, and the settings say triggers"), "{text}");
    place.succeed(&["capture", "install"]).await;
    let other = Database::connect(&place.url).await.unwrap();
    let drift = async |sql: &str| {
        other.execute_unprepared(sql).await.unwrap();
        let (healthy, text) = place.place.run(&["doctor", "--database", &place.url]).await;
        assert!(!healthy && text.contains("`tidewire capture install`"), "{sql}: {text}");
        place.succeed(&["capture", "install"]).await;
        place.succeed(&["capture", "install"]).await;
        place.succeed(&["doctor"]).await;
    };
    // Somebody's trigger that would come before ours; one of ours that is gone; a foreign key that does more than it did.
    drift(
        "CREATE TABLE seen (name varchar(255));
         SET @ours = (SELECT trigger_name FROM information_schema.triggers WHERE trigger_schema = DATABASE() AND event_object_table = 'label'
           AND action_timing = 'AFTER' AND event_manipulation = 'INSERT');
         EXECUTE IMMEDIATE CONCAT('CREATE TRIGGER first AFTER INSERT ON label FOR EACH ROW PRECEDES ', @ours, ' INSERT INTO seen VALUES (NEW.name)')",
    )
    .await;
    drift(
        "SET @ours = (SELECT trigger_name FROM information_schema.triggers WHERE trigger_schema = DATABASE() AND event_object_table = 'task'
           AND action_timing = 'AFTER' AND event_manipulation = 'UPDATE');
         EXECUTE IMMEDIATE CONCAT('DROP TRIGGER ', @ours)",
    )
    .await;
    drift(
        "SET @mine = (SELECT constraint_name FROM information_schema.key_column_usage WHERE table_schema = DATABASE() AND table_name = 'label'
           AND referenced_table_name = 'project');
         EXECUTE IMMEDIATE CONCAT('ALTER TABLE label DROP FOREIGN KEY `', @mine, '`');
         ALTER TABLE label ADD FOREIGN KEY (project_id) REFERENCES project (id) ON DELETE RESTRICT",
    )
    .await;
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named_without_its_password() {
    let place = Workplace::new();
    let (success, text) = place.run(&["serve", "--database", "mysql://someone:hunter2@127.0.0.1:1/x"]).await;
    assert!(!success && text.contains("cannot be opened") && !text.contains("hunter2"), "{text}");
}
