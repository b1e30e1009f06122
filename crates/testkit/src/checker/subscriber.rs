use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tidewire_outbox::{Cursor, Follower, Recorder, Step};
use tokio::time::sleep;

use super::domain::object;
use crate::WebSocketClient;

/// One event, as a subscriber was given it.
#[derive(Debug, Default)]
pub struct Delivered {
    /// What to resume after, unless the event is part of a snapshot that goes on.
    pub cursor: Option<String>,
    /// The event's number on this connection, where there are numbers.
    pub sequence: Option<u64>,
    /// Its changes.
    pub changes: Vec<Told>,
}

/// A change, as a subscriber was told it.
#[derive(Debug)]
pub struct Told {
    /// The entity's name.
    pub entity: String,
    /// The row's key, as JSON text.
    pub key: String,
    /// The row before, if the subscriber had it.
    pub before: Option<Value>,
    /// The row now, if the subscriber has it.
    pub after: Option<Value>,
    /// The mutation that made the change.
    pub mutation_id: Option<String>,
}

/// Someone who follows, over whatever transport. The checker connects and drops it as it likes.
#[async_trait]
pub trait Subscriber: Send {
    /// Connects, and goes on after a cursor if there is one.
    async fn connect(&mut self, after: Option<&str>);

    /// The next event.
    async fn next(&mut self) -> Delivered;

    /// Goes away without a word.
    async fn disconnect(&mut self);

    /// Whether it follows a row. One that follows all rows is held to whole transactions.
    fn follows(&self, _entity: &str, _row: &Value) -> bool {
        true
    }

    /// Whether it follows all rows of all entities.
    fn follows_all(&self) -> bool {
        true
    }
}

/// Follows in this process.
#[derive(Debug)]
pub struct LogSubscriber {
    recorder: Recorder,
    follower: Option<Follower>,
    ready: Vec<Delivered>,
}

impl LogSubscriber {
    /// Follows a recorder's log.
    pub fn new(recorder: &Recorder) -> Self {
        Self { recorder: recorder.clone(), follower: None, ready: Vec::new() }
    }
}

#[async_trait]
impl Subscriber for LogSubscriber {
    async fn connect(&mut self, after: Option<&str>) {
        let after = after.map_or_else(Cursor::start, |cursor| cursor.parse().unwrap());
        self.follower = loop {
            match self.recorder.log().follow_all(after.clone()).await {
                Err(error) if error.is_transient() => sleep(Duration::from_millis(50)).await,
                follower => break Some(follower.unwrap()),
            }
        };
    }

    async fn next(&mut self) -> Delivered {
        let catalog = self.recorder.catalog();
        loop {
            if let Some(delivered) = self.ready.pop() {
                return delivered;
            }
            let step = match self.follower.as_mut().unwrap().next().await {
                // The same call may be made again.
                Err(error) if error.is_transient() => {
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
                step => step.unwrap(),
            };
            match step {
                Step::Transactions { transactions, .. } => {
                    for transaction in transactions.iter().rev() {
                        let changes = transaction.changes.iter().map(|change| {
                            let meta = catalog.entity(change.entity);
                            let row = |image: &Option<tidewire_outbox::Image>| {
                                let image = image.as_ref()?;
                                Some(object(meta.columns.iter().map(|column| column.name).zip(image.cells())))
                            };
                            let key = object(meta.key_columns().map(|column| column.name).zip(change.key(meta)));
                            Told {
                                entity: meta.name.to_owned(),
                                key: key.to_string(),
                                before: row(&change.before),
                                after: row(&change.after),
                                mutation_id: change.mutation_id.as_deref().map(str::to_owned),
                            }
                        });
                        self.ready.push(Delivered {
                            cursor: Some(transaction.cursor.to_string()),
                            sequence: None,
                            changes: changes.collect(),
                        });
                    }
                }
                other => panic!("the log does not go on: {other:?}"),
            }
        }
    }

    async fn disconnect(&mut self) {
        self.follower = None;
        self.ready.clear();
    }
}

/// Subscribes over a WebSocket: to all changes, or to the rows of `parent` that pass a filter, beginning with a snapshot.
#[derive(Debug)]
pub struct SocketSubscriber {
    /// Of the nodes, which it visits in turn.
    urls: Vec<String>,
    visits: usize,
    after: Option<String>,
    shape: bool,
    client: Option<WebSocketClient>,
}

const ALL: &str = "subscription ($after: String) { changes(after: $after) {
    cursor sequence resync changes { entity key row previous mutationId } } }";
const SHAPE: &str = "subscription ($after: String) { changes: parentChanges(filters: { n: { gte: 0 } }, after: $after, snapshot: true) {
    cursor sequence resync changes { key { id } row: node { id name n note } previous { id name n note } mutationId } } }";
/// The cursor before everything.
fn start() -> String {
    Cursor::start().to_string()
}

impl SocketSubscriber {
    /// Subscribes to all changes, at one node after the other.
    pub fn all(urls: &[String]) -> Self {
        Self { urls: urls.to_vec(), visits: 0, after: None, shape: false, client: None }
    }

    /// Subscribes to the parents whose `n` is not negative.
    pub fn shape(urls: &[String]) -> Self {
        Self { shape: true, ..Self::all(urls) }
    }
}

#[async_trait]
impl Subscriber for SocketSubscriber {
    async fn connect(&mut self, after: Option<&str>) {
        self.after = after.map(str::to_owned);
        let url = &self.urls[self.visits % self.urls.len()];
        self.visits += 1;
        let mut client = WebSocketClient::connect(url).await;
        let after = match after {
            None if self.shape => Value::Null,
            None => start().into(),
            Some(after) => after.into(),
        };
        let query = if self.shape { SHAPE } else { ALL };
        client.subscribe("1", query, json!({ "after": after })).await;
        self.client = Some(client);
    }

    async fn next(&mut self) -> Delivered {
        let event = loop {
            let mut message = self.client.as_mut().unwrap().next().await;
            if message["type"] == "next" {
                break message["payload"]["data"]["changes"].take();
            }
            // A node whose database is away cannot begin.
            assert_eq!(message["payload"][0]["extensions"]["code"], "UNAVAILABLE", "{message}");
            sleep(Duration::from_millis(100)).await;
            let after = self.after.clone();
            self.connect(after.as_deref()).await;
        };
        assert_eq!(event["resync"], Value::Null, "{event}");
        let row = |value: &Value| value.is_object().then(|| value.clone());
        let changes = event["changes"].as_array().unwrap().iter().map(|change| Told {
            entity: change["entity"].as_str().unwrap_or("parent").to_owned(),
            key: change["key"].to_string(),
            before: row(&change["previous"]),
            after: row(&change["row"]),
            mutation_id: change["mutationId"].as_str().map(str::to_owned),
        });
        Delivered {
            cursor: event["cursor"].as_str().map(str::to_owned),
            sequence: event["sequence"].as_u64(),
            changes: changes.collect(),
        }
    }

    async fn disconnect(&mut self) {
        self.client = None;
    }

    fn follows(&self, entity: &str, row: &Value) -> bool {
        !self.shape || (entity == "parent" && row["n"].as_i64().unwrap() >= 0)
    }

    fn follows_all(&self) -> bool {
        !self.shape
    }
}
