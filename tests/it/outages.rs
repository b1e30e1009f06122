//! PostgreSQL goes away, in all the ways in which it does, and comes back.

use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, Database};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tidewire_testkit::{PostgresServer, Proxy, Side, WebSocketClient, eventually, soon};

use crate::binary::{Running, Workplace};

const LABELS: &str = "subscription ($after: String) { labelChanges(after: $after) { cursor sequence upToDate resync changes { node { name } } } }";
const ADD: &str = "mutation ($name: String!, $id: String) {
    labelCreateOne(mutationId: $id, data: { projectId: 1, name: $name, color: \"#0b6e8f\" }) { id } }";

/// A seeded database on a server of its own, and a network that leads there.
struct Place {
    place: Workplace,
    server: PostgresServer,
    proxy: Proxy,
    direct: String,
    url: String,
}

impl Place {
    async fn new(settings: &[&str]) -> Option<Self> {
        let server = PostgresServer::own(settings).await?;
        let direct = server.create().await;
        let proxy = Proxy::to(server.port()).await;
        let url = proxy.url(&direct);
        let place = Workplace::new();
        place.succeed(&["migrate", "up", "--database", &direct]).await;
        place.succeed(&["seed", "--rows", "20", "--database", &direct]).await;
        Some(Self { place, server, proxy, direct, url })
    }

    /// A node behind the network.
    async fn serve(&self) -> Running {
        Running::start(self.place.command(&["serve", "--listen", "127.0.0.1:0", "--database", &self.url])).await
    }

    async fn plain(&self) -> sea_orm::DatabaseConnection {
        Database::connect(&self.direct).await.unwrap()
    }

    /// How many labels have a name.
    async fn count(&self, name: &str) -> i64 {
        let text = format!("SELECT count(*) FROM label WHERE name = '{name}'");
        let statement = sea_orm::Statement::from_string(sea_orm::DbBackend::Postgres, text);
        self.plain().await.query_one_raw(statement).await.unwrap().unwrap().try_get_by_index(0).unwrap()
    }
}

/// The code of the error, if there is one.
async fn add(server: &Running, name: &str) -> Result<(), String> {
    add_with(server, name, None).await
}

async fn add_with(server: &Running, name: &str, id: Option<&str>) -> Result<(), String> {
    let answer = server.ask(ADD, json!({ "name": name, "id": id })).await;
    match answer["errors"][0]["extensions"]["code"].as_str() {
        None => Ok(()),
        Some(code) => Err(code.to_owned()),
    }
}

/// Subscribes, again where the database is away at this moment; gives the first event too, before which nothing is told of that is yet to be written.
async fn subscribe(server: &Running, after: Option<&Value>) -> (WebSocketClient, Value) {
    soon(async {
        loop {
            let mut socket = WebSocketClient::connect(&server.websocket()).await;
            socket.subscribe("1", LABELS, json!({ "after": after })).await;
            let mut message = socket.next().await;
            if message["type"] == "next" {
                return (socket, message["payload"]["data"]["labelChanges"].take());
            }
            assert_eq!(message["payload"][0]["extensions"]["code"], "UNAVAILABLE", "{message}");
        }
    })
    .await
}

/// Reads on until a label of this name has been told of; gives the names on the way.
async fn names_until(socket: &mut WebSocketClient, last: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    while names.last().is_none_or(|name| name != last) {
        let event = socket.event("labelChanges").await;
        assert_eq!(event["resync"], Value::Null, "{event}");
        let told = event["changes"].as_array().unwrap().iter();
        names.extend(told.map(|change| change["node"]["name"].as_str().unwrap().to_owned()));
    }
    names
}

/// Waits for an empty event that says whether all is known.
async fn told_up_to_date(socket: &mut WebSocketClient, is: bool) {
    loop {
        let event = socket.event("labelChanges").await;
        if event["changes"] == json!([]) && event["upToDate"] == is {
            return;
        }
    }
}

async fn ready(server: &Running, status: u16) {
    eventually(async || server.get("/readyz").await.0 == status).await;
}

/// Readiness turns false, subscribers are told and stay, writes are refused in time with a code to retry on, and all goes on by itself.
async fn goes_and_comes_back(gone: impl AsyncFnOnce(&mut Place), back: impl AsyncFnOnce(&mut Place)) {
    let Some(mut place) = Place::new(&[]).await else { return };
    let node = place.serve().await;
    let (mut socket, _) = subscribe(&node, None).await;
    add(&node, "before").await.unwrap();
    names_until(&mut socket, "before").await;

    gone(&mut place).await;
    let began = Instant::now();
    ready(&node, 503).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(node.get("/healthz").await.0, 200);
    eventually(async || node.get("/metrics").await.1.contains("tidewire_tail_healthy 0")).await;
    told_up_to_date(&mut socket, false).await;
    let began = Instant::now();
    let refused = add(&node, "away").await.unwrap_err();
    assert!(["UNAVAILABLE", "BUSY"].contains(&&*refused), "{refused}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());

    back(&mut place).await;
    let began = Instant::now();
    ready(&node, 200).await;
    told_up_to_date(&mut socket, true).await;
    add(&node, "after").await.unwrap();
    let names = names_until(&mut socket, "after").await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(names, ["after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_for_a_while_is_missed_and_found_again() {
    goes_and_comes_back(
        async |place| place.server.stop(),
        async |place| {
            tokio::time::sleep(Duration::from_secs(11)).await;
            place.server.start().await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_is_missed_and_found_again() {
    goes_and_comes_back(async |place| place.server.kill(), async |place| place.server.start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_turns_everybody_away_is_noticed() {
    goes_and_comes_back(
        async |place| {
            place.proxy.refuse(true);
            place.proxy.cut();
        },
        async |place| place.proxy.refuse(false),
    )
    .await;
}

/// Nothing says that a stalled network is one.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_swallows_everything_is_noticed() {
    goes_and_comes_back(async |place| place.proxy.stall(true), async |place| place.proxy.stall(false)).await;
}

/// What was not committed has not happened; what was committed and not answered is answered when it is asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_at_a_commit_is_settled_by_the_mutation_id() {
    let Some(place) = Place::new(&[]).await else { return };
    let node = place.serve().await;
    let (mut socket, _) = subscribe(&node, None).await;
    for (number, (words, side, happened)) in [
        ("INSERT INTO \"label\"", Side::Before, 0),
        ("INSERT INTO \"label\"", Side::After, 0),
        ("COMMIT", Side::Before, 0),
        ("COMMIT", Side::After, 1),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("label {number}");
        // Statements may be prepared already, and then are not said again: so each connection is new.
        place.proxy.cut();
        place.proxy.cut_at(words, side);
        // The first may come upon a connection that has just been cut.
        while place.proxy.is_armed() {
            let Err(refused) = add_with(&node, &name, Some(&name)).await else { panic!("{words} was never said") };
            assert_eq!(refused, "UNAVAILABLE", "cut {side:?} {words}");
        }
        assert_eq!(place.count(&name).await, happened, "cut {side:?} {words}");
        // WHEN it is tried again, THEN it has happened once
        add_with(&node, &name, Some(&name)).await.unwrap();
        assert_eq!(place.count(&name).await, 1, "cut {side:?} {words}");
        assert_eq!(names_until(&mut socket, &name).await, [name]);
    }
}

/// Rolling restart: nodes end and start, the database is restarted at once and the network cut, and a client that goes from node to node with
/// its cursor is told of each write once.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_loses_nothing() {
    let Some(mut place) = Place::new(&[]).await else { return };
    let mut nodes = vec![place.serve().await, place.serve().await, place.serve().await];
    let (mut socket, first) = subscribe(&nodes[0], None).await;
    let mut cursor = first["cursor"].clone();

    // GIVEN writers that write beside the nodes, and are answered or not
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let direct = place.direct.clone();
            tokio::spawn(async move {
                let recorder = tidewire_outbox::Recorder::connect(&direct, entity::registry()).await.unwrap();
                let mut written = 0;
                for number in 0..150 {
                    let text = format!("INSERT INTO label (project_id, name) VALUES (1, 'w{writer} {number}')");
                    written += u32::from(recorder.execute_unprepared(&text).await.is_ok());
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                written
            })
        })
        .collect();

    // WHEN one node after the other is told to end and another takes its place, and the client moves on
    let mut seen = Vec::new();
    for round in 0..9 {
        let old = nodes.remove(0);
        nodes.push(place.serve().await);
        old.signal("TERM");
        assert!(old.ended().await, "round {round}");
        match round {
            3 => place.proxy.cut(),
            5 => {
                place.server.stop();
                place.server.start().await;
            }
            _ => {}
        }
        drop(socket);
        eventually(async || nodes[round % 3].get("/readyz").await.0 == 200).await;
        let first;
        (socket, first) = subscribe(&nodes[round % 3], Some(&cursor)).await;
        take(&first, &mut seen, &mut cursor);
        let until = Instant::now() + Duration::from_millis(150);
        while Instant::now() < until {
            let Ok(event) = tokio::time::timeout_at(until.into(), socket.event("labelChanges")).await else { break };
            take(&event, &mut seen, &mut cursor);
        }
    }
    let mut written = 0;
    for writer in writers {
        written += soon(writer).await.unwrap();
    }
    add(&nodes[1], "the end").await.unwrap();
    while seen.last().is_none_or(|name| name != "the end") {
        let event = socket.event("labelChanges").await;
        take(&event, &mut seen, &mut cursor);
    }

    // THEN it was told of every row that is there, once, and each writer's in their order
    assert!(written > 300, "{written} written");
    let rows = place.plain().await;
    let statement = sea_orm::Statement::from_string(
        sea_orm::DbBackend::Postgres,
        "SELECT name FROM label WHERE name LIKE 'w%' OR name = 'the end'",
    );
    let mut stored: Vec<String> =
        rows.query_all_raw(statement).await.unwrap().iter().map(|row| row.try_get_by_index(0).unwrap()).collect();
    let mut told = seen.clone();
    told.sort_unstable();
    stored.sort_unstable();
    assert_eq!(told, stored);
    for writer in 0..4 {
        let prefix = format!("w{writer} ");
        let numbers: Vec<u32> = seen.iter().filter_map(|name| name.strip_prefix(&prefix)?.parse().ok()).collect();
        assert!(numbers.is_sorted(), "{numbers:?}");
    }
}

fn take(event: &Value, seen: &mut Vec<String>, cursor: &mut Value) {
    assert_eq!(event["resync"], Value::Null, "{event}");
    let told = event["changes"].as_array().unwrap().iter();
    seen.extend(told.map(|change| change["node"]["name"].as_str().unwrap().to_owned()));
    *cursor = event["cursor"].clone();
}

/// Each says what is wrong, and what to do where that is known.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_database_is_said_at_the_start() {
    let Some(place) = Place::new(&["max_connections=10", "superuser_reserved_connections=0"]).await else { return };
    let plain = place.plain().await;
    let name = place.direct.rsplit('/').next().unwrap();
    plain
        .execute_unprepared(
            "CREATE ROLE poor LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO poor; REVOKE SELECT ON task FROM poor",
        )
        .await
        .unwrap();
    let port = place.server.port();
    let poor = format!("postgres://poor@127.0.0.1:{port}/{name}");
    for (url, says) in [
        (format!("postgres://tidewire@127.0.0.1:{port}/nowhere"), "database \"nowhere\" does not exist"),
        (format!("postgres://nobody@127.0.0.1:{port}/{name}"), "role \"nobody\" does not exist"),
        (poor.clone(), "SELECT on \"task\""),
        (poor, "lacks DELETE on tidewire_outbox"),
        ("postgres://tidewire@127.0.0.1:1/x".to_owned(), "cannot be reached"),
        ("postgres://tidewire@127.0.0.1:port/x".to_owned(), "postgres://user:password@host/database"),
        ("mongodb://127.0.0.1/x".to_owned(), "must start with"),
    ] {
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--database", &url];
        let mut command = place.place.command(&arguments);
        command.env("TIDEWIRE_DATABASE__MIGRATE", "false");
        let output = soon(command.output()).await.unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(says), "{url}: {text}");
    }

    // All connections are taken.
    let mut taken = Vec::new();
    while let Ok(one) = PgConnection::connect(&place.direct).await {
        taken.push(one);
    }
    let (success, text) = place.place.run(&["doctor", "--database", &place.direct]).await;
    assert!(!success && text.contains("too many clients"), "{text}");
}

/// A password that is wrong is said, and never shown.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_said_and_not_shown() {
    let Some(place) = Place::new(&[]).await else { return };
    place.plain().await.execute_unprepared("CREATE ROLE shy LOGIN PASSWORD 'right'").await.unwrap();
    place.server.require_passwords().await;
    let name = place.direct.rsplit('/').next().unwrap();
    let url = format!("postgres://shy:hunter2@127.0.0.1:{}/{name}", place.server.port());
    let (success, text) = place.place.run(&["serve", "--database", &url]).await;
    assert!(!success && text.contains("password authentication failed for user \"shy\""), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_says_that_it_is_one() {
    let Some(primary) = PostgresServer::own(&[]).await else { return };
    let url = primary.create().await;
    let place = Workplace::new();
    place.succeed(&["migrate", "up", "--database", &url]).await;
    let standby = primary.standby().await;
    let name = url.rsplit('/').next().unwrap();
    let url = standby.url(name);
    let mut command = place.command(&["serve", "--listen", "127.0.0.1:0", "--database", &url]);
    command.env("TIDEWIRE_DATABASE__MIGRATE", "false");
    let output = soon(command.output()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("the database is a standby"), "{text}");
}
