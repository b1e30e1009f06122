use std::{slice, time::Duration};

use tidewire_axum::{Server, ServerOptions};
use tidewire_graphql::Api;
use tidewire_outbox::{Capture, Recorder, RecorderOptions};
#[cfg(feature = "relay-nats")]
use tidewire_testkit::NatsServer;
use tidewire_testkit::{
    PostgresServer, Proxy, TestDatabase,
    checker::{Checker, Control, LogSubscriber, Mistake, SocketSubscriber, Subscriber, capture, domain, write, writer},
};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};

/// I1, I3, I4, I5: whatever the writers do and however they die, every subscriber sees every change once, in order, in whole transactions.
#[tokio::test(flavor = "multi_thread")]
async fn subscribers_see_every_change_once_in_order_and_whole() {
    let database = TestDatabase::sqlite();
    let recorder = database.recorder_with(domain::registry(), forgetful(), domain::create).await;
    check(&database, &recorder, slice::from_ref(&recorder), Vec::new(), None, changes(100_000)).await;
}

/// On three nodes whose network is cut again and again, and a server that is restarted in the middle. Readers that make well-known mistakes
/// are found to.
#[tokio::test(flavor = "multi_thread")]
async fn subscribers_see_every_change_once_in_order_and_whole_on_postgres() {
    on_three_nodes(Capture::Triggers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_see_every_change_once_in_order_and_whole_on_postgres_by_hooks() {
    on_three_nodes(Capture::Hooks).await;
}

/// The same, where those who read the database's log are killed in the middle of it, and others take over.
#[tokio::test(flavor = "multi_thread")]
async fn subscribers_see_every_change_once_in_order_and_whole_by_the_log_of_postgres() {
    if let Some(database) = TestDatabase::postgres().await {
        by_the_log(database.captured_by(Capture::Log)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_see_every_change_once_in_order_and_whole_by_the_log_of_mariadb() {
    if let Some(database) = TestDatabase::mariadb().await {
        by_the_log(database.captured_by(Capture::Log)).await;
    }
}

async fn by_the_log(database: TestDatabase) {
    let url = database.url().to_owned();
    database.recorder(domain::registry(), domain::create_for_the_log).await.close().await;
    let killer = tokio::spawn(async move {
        let start = |number| writer("checker::checker_capture", &url, number).spawn().unwrap();
        let mut readers = [start(0), start(1)];
        for number in 0.. {
            tokio::time::sleep(Duration::from_millis(700 + number * 331 % 3_000)).await;
            readers[number as usize % 2].kill().await.unwrap();
            readers[number as usize % 2] = start(number);
        }
    });
    let recorder = Recorder::connect_with(database.url(), domain::registry(), forgetful()).await.unwrap();
    check(&database, &recorder, slice::from_ref(&recorder), Vec::new(), None, changes(50_000)).await;
    killer.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_see_every_change_once_in_order_and_whole_on_mariadb() {
    if let Some(database) = TestDatabase::mariadb().await {
        let recorder = database.recorder_with(domain::registry(), forgetful(), domain::create).await;
        check(&database, &recorder, slice::from_ref(&recorder), Vec::new(), None, changes(50_000)).await;
    }
}

/// Two of three nodes are told by NATS what a process reads that is killed again and again, as NATS is, which may forget all that it had
/// confirmed.
#[cfg(feature = "relay-nats")]
#[tokio::test(flavor = "multi_thread")]
async fn subscribers_see_every_change_once_in_order_and_whole_by_way_of_nats() {
    let (Some(server), Some(mut nats)) = (PostgresServer::own(&[]).await, NatsServer::own().await) else { return };
    let database = TestDatabase::at(server.create().await).captured_by(Capture::Hooks);
    let recorder = database.recorder_with(domain::registry(), forgetful(), domain::create).await;
    let mut nodes = Vec::new();
    for by_nats in [true, false, true] {
        let mut options = forgetful();
        options.log.relay = by_nats.then(|| relay(&nats.url(), false));
        nodes.push(Recorder::connect_with(database.url(), domain::registry(), options).await.unwrap());
    }
    let start = {
        let (url, nats) = (database.url().to_owned(), nats.url());
        move |number| {
            let mut command = writer("checker::checker_publisher", &url, number);
            command.env(NATS, &nats).env(DATABASE, &url).spawn().unwrap()
        }
    };
    let (accidents, mut calm) = watch::channel(false);
    let happening = tokio::spawn(async move {
        let mut publishers = [start(0), start(1)];
        let mut happened = 0;
        for number in 0_u64.. {
            let pause = Duration::from_millis(500 + number * 7_919 % 3_000);
            if tokio::time::timeout(pause, calm.wait_for(|calm| *calm)).await.is_ok() {
                break;
            }
            happened += 1;
            match number % 4 {
                0 | 2 => {
                    let one = (number as usize / 2) % 2;
                    publishers[one].kill().await.unwrap();
                    publishers[one] = start(number);
                    continue;
                }
                1 => nats.kill(),
                _ => nats.kill_and_forget(),
            }
            tokio::time::sleep(Duration::from_millis(number * 331 % 1_500)).await;
            nats.start().await;
        }
        for publisher in &mut publishers {
            publisher.kill().await.unwrap();
        }
        happened
    });
    check(&database, &recorder, &nodes, Vec::new(), Some(accidents), changes(50_000)).await;
    let happened = happening.await.unwrap();
    assert!(happened >= 4, "only {happened} accidents happened");
    for node in [&nodes[0], &nodes[2]] {
        let stats = node.log().tail_stats();
        println!("{stats:?}");
        let relay = stats.relay.unwrap();
        assert!(relay.taken > 100 && stats.reads > 100, "only NATS was used, or only the database: {stats:?}");
    }
}

#[cfg(feature = "relay-nats")]
const NATS: &str = "TIDEWIRE_TEST_CHECKER_NATS";
#[cfg(feature = "relay-nats")]
const DATABASE: &str = "TIDEWIRE_TEST_CHECKER_DATABASE";

#[cfg(feature = "relay-nats")]
fn relay(url: &str, publish: bool) -> tidewire_outbox::RelayOptions {
    let mut relay = tidewire_outbox::RelayOptions::new(url);
    relay.publish = publish;
    relay
}

#[cfg(feature = "relay-nats")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the checker, as a process of its own"]
async fn checker_publisher() {
    let (Ok(nats), Ok(url)) = (std::env::var(NATS), std::env::var(DATABASE)) else { return };
    let mut options = RecorderOptions::default();
    options.log.relay = Some(relay(&nats, true));
    let recorder = Recorder::connect_with(&url, domain::registry(), options).await.unwrap();
    recorder.check().await.unwrap();
    let _follower = recorder.log().follow_all(recorder.log().position().await.unwrap()).await.unwrap();
    std::future::pending::<()>().await;
}

/// On three nodes.
#[tokio::test(flavor = "multi_thread")]
async fn subscribers_see_every_change_once_in_order_and_whole_on_mariadb_by_hooks() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    let database = database.captured_by(Capture::Hooks);
    let recorder = database.recorder_with(domain::registry(), forgetful(), domain::create).await;
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Recorder::connect_with(database.url(), domain::registry(), forgetful()).await.unwrap());
    }
    check(&database, &recorder, &nodes, Vec::new(), None, changes(50_000)).await;
}

async fn on_three_nodes(capture: Capture) {
    let Some(mut server) = PostgresServer::own(&[]).await else { return };
    let database = TestDatabase::at(server.create().await).captured_by(capture);
    let proxy = Proxy::to(server.port()).await;
    let recorder = database.recorder_with(domain::registry(), forgetful(), domain::create).await;
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let url = proxy.url(database.url());
        nodes.push(Recorder::connect_with(&url, domain::registry(), forgetful()).await.unwrap());
    }
    let (accidents, mut calm) = watch::channel(false);
    let happening = tokio::spawn(async move {
        for number in 1_u64.. {
            // Not too regular.
            let pause = Duration::from_millis(500 + number * 7_919 % 3_000);
            if tokio::time::timeout(pause, calm.wait_for(|calm| *calm)).await.is_ok() {
                return (server, proxy);
            }
            proxy.cut();
            if number % 8 == 3 {
                server.stop();
                server.start().await;
            }
        }
        (server, proxy)
    });
    let controls = [Mistake::NumbersInOrder, Mistake::IdsInOrder]
        .map(|mistake| Control { mistake, url: database.url().to_owned() })
        .to_vec();
    check(&database, &recorder, &nodes, controls, Some(accidents), changes(50_000)).await;
    drop(happening.await.unwrap());
}

/// How many changes to check: `TIDEWIRE_CHECKER_CHANGES`, for a longer run, or so many.
fn changes(usual: u64) -> u64 {
    std::env::var("TIDEWIRE_CHECKER_CHANGES").ok().map_or(usual, |changes| changes.parse().unwrap())
}

/// A node that remembers so little that those who were away must read from the outbox.
fn forgetful() -> RecorderOptions {
    let mut options = RecorderOptions::default();
    options.log.ring_max_transactions = 50;
    options.log.chunk_changes = 64;
    options
}

async fn check(
    database: &TestDatabase,
    recorder: &Recorder,
    nodes: &[Recorder],
    controls: Vec<Control>,
    accidents: Option<watch::Sender<bool>>,
    changes: u64,
) {
    // GIVEN servers
    let mut servers = Vec::new();
    for node in nodes {
        servers.push(serve(node.clone()).await);
    }
    let urls: Vec<_> = servers.iter().map(|server| format!("ws://{}/graphql", server.address)).collect();

    // WHEN two processes write, one of them killed again and again, and subscribers come and go
    let checker = Checker {
        recorder,
        writer: &|seed| writer("checker::checker_writer", database.url(), seed),
        changes,
        controls,
        accidents,
        seed: 1,
    };
    let subscribers: Vec<Box<dyn Subscriber>> = vec![
        Box::new(SocketSubscriber::all(&urls)),
        Box::new(SocketSubscriber::shape(&urls)),
        Box::new(LogSubscriber::new(&nodes[0])),
    ];
    let report = checker.run(subscribers).await;

    // THEN (checked on the way and at the end) all is well
    println!("{report:?}");
    assert!(report.changes >= changes && report.kills > 10 && report.connections > 10, "{report:?}");
    for server in servers {
        server.stop().await;
    }
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
