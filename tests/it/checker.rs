use std::time::Duration;

use tidewire_axum::{Server, ServerOptions};
use tidewire_graphql::Api;
use tidewire_outbox::{Capture, Recorder, RecorderOptions};
use tidewire_testkit::{
    TestDatabase,
    checker::{Checker, LogSubscriber, SocketSubscriber, Subscriber, capture, domain, write, writer},
};
use tokio::{net::TcpListener, sync::oneshot};

/// I1, I3, I4, I5: whatever the writers do and however they die, every subscriber sees every change once, in order, in whole transactions.
#[tokio::test(flavor = "multi_thread")]
async fn subscribers_see_every_change_once_in_order_and_whole() {
    check(TestDatabase::sqlite(), 100_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_see_every_change_once_in_order_and_whole_on_postgres() {
    if let Some(database) = TestDatabase::postgres().await {
        check(database.captured_by(Capture::Triggers), 50_000).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_see_every_change_once_in_order_and_whole_on_postgres_by_hooks() {
    if let Some(database) = TestDatabase::postgres().await {
        check(database.captured_by(Capture::Hooks), 50_000).await;
    }
}

/// The same, where those who read the database's log are killed in the middle of it, and others take over.
#[tokio::test(flavor = "multi_thread")]
async fn subscribers_see_every_change_once_in_order_and_whole_by_the_log_of_postgres() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let database = database.captured_by(Capture::Log);
    let url = database.url().to_owned();
    database.recorder(domain::registry(), domain::create).await.close().await;
    let killer = tokio::spawn(async move {
        let start = |number| writer("checker::checker_capture", &url, number).spawn().unwrap();
        let mut readers = [start(0), start(1)];
        for number in 0.. {
            tokio::time::sleep(Duration::from_millis(700 + number * 331 % 3_000)).await;
            readers[number as usize % 2].kill().await.unwrap();
            readers[number as usize % 2] = start(number);
        }
    });
    check_with(&database, 50_000, Recorder::connect_with(database.url(), domain::registry(), options()).await.unwrap())
        .await;
    killer.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_see_every_change_once_in_order_and_whole_on_mariadb() {
    if let Some(database) = TestDatabase::mariadb().await {
        check(database, 50_000).await;
    }
}

async fn check(database: TestDatabase, changes: u64) {
    let recorder = database.recorder_with(domain::registry(), options(), domain::create).await;
    check_with(&database, changes, recorder).await;
}

/// Of a server that remembers so little that those who were away must read from the outbox.
fn options() -> RecorderOptions {
    let mut options = RecorderOptions::default();
    options.log.ring_max_transactions = 50;
    options.log.chunk_changes = 64;
    options
}

async fn check_with(database: &TestDatabase, changes: u64, recorder: Recorder) {
    // GIVEN a database and a server
    let server = serve(recorder.clone()).await;
    let url = format!("ws://{}/graphql", server.address);

    // WHEN two processes write, one of them killed again and again, and subscribers come and go
    let checker = Checker {
        recorder: &recorder,
        writer: &|seed| writer("checker::checker_writer", database.url(), seed),
        changes,
        seed: 1,
    };
    let subscribers: Vec<Box<dyn Subscriber>> = vec![
        Box::new(SocketSubscriber::all(&url)),
        Box::new(SocketSubscriber::shape(&url)),
        Box::new(LogSubscriber::new(&recorder)),
    ];
    let report = checker.run(subscribers).await;

    // THEN (checked on the way and at the end) all is well
    println!("{report:?}");
    assert!(report.changes >= changes && report.kills > 10 && report.connections > 10, "{report:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the checker, as a process of its own"]
async fn checker_writer() {
    write().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the checker, as a process of its own"]
async fn checker_capture() {
    capture().await;
}

struct Running {
    address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn serve(recorder: Recorder) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let api = Api::builder(recorder).finish().unwrap();
    let mut options = ServerOptions::default();
    options.shutdown_timeout = Duration::from_secs(5);
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(Server::new(api, options).serve(listener, async {
        let _ = stopped.await;
    }));
    Running { address, stop, task }
}

impl Running {
    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}
