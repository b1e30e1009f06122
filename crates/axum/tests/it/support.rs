use std::net::SocketAddr;

use tidewire_axum::{Server, ServerOptions};
use tidewire_graphql::Api;
use tidewire_outbox::Recorder;
use tidewire_testkit::{TestDatabase, soon, zoo};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

/// A zoo with one food, and an API over it.
pub(crate) async fn zoo() -> (TestDatabase, Recorder, Api) {
    let database = TestDatabase::sqlite();
    let recorder = database.recorder(zoo::registry(), zoo::create).await;
    add_food(&recorder, "meat").await;
    let api = Api::builder(recorder.clone()).finish().unwrap();
    (database, recorder, api)
}

pub(crate) async fn add_food(recorder: &Recorder, name: &str) {
    use sea_orm::{ActiveModelTrait, Set};
    zoo::food::ActiveModel { name: Set(name.into()), ..Default::default() }.insert(recorder).await.unwrap();
}

/// A server that listens on a free port.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) recorder: Recorder,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<()>>,
    _database: TestDatabase,
}

impl Running {
    pub(crate) async fn start(options: ServerOptions) -> Self {
        let (database, recorder, api) = zoo().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(Server::new(api, options).serve(listener, async {
            let _ = stopped.await;
        }));
        Self { address, recorder, stop: Some(stop), task, _database: database }
    }

    pub(crate) fn websocket(&self) -> String {
        format!("ws://{}/graphql", self.address)
    }

    /// Tells the server to stop.
    pub(crate) fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits until it has.
    pub(crate) async fn stopped(self) {
        soon(self.task).await.unwrap().unwrap();
    }
}
