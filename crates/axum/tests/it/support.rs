use std::{collections::HashMap, net::SocketAddr};

use axum::http::{HeaderMap, Request, StatusCode, request::Builder};
use http_body_util::BodyExt;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;
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

/// What a request was answered with.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    fn error(&self) -> Value {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        body.pointer("/errors/0").cloned().unwrap_or_default()
    }

    /// The code of its first error.
    pub(crate) fn code(&self) -> Value {
        self.error().pointer("/extensions/code").cloned().unwrap_or_default()
    }

    pub(crate) fn message(&self) -> String {
        self.error()["message"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Running {
    /// Asks by POST, with these headers, and reads to the end of the answer.
    pub(crate) async fn ask(&self, query: &str, headers: &HashMap<&'static str, String>) -> Answer {
        let body = serde_json::json!({ "query": query }).to_string();
        self.send(Request::post("/graphql").header("content-type", "application/json"), headers, body).await
    }

    pub(crate) async fn get(&self, path: &str, headers: &HashMap<&'static str, String>) -> Answer {
        self.send(Request::get(path), headers, String::new()).await
    }

    async fn send(&self, mut request: Builder, headers: &HashMap<&'static str, String>, body: String) -> Answer {
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let url = format!("http://{}{}", self.address, request.uri_ref().unwrap().path());
        let request = request.uri(url);
        let client = Client::builder(TokioExecutor::new()).build_http::<String>();
        let (parts, body) = soon(client.request(request.body(body).unwrap())).await.unwrap().into_parts();
        let body = soon(body.collect()).await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }
}
