//! The commands, as scripts call them.

use sea_orm::ConnectionTrait;
use serde_json::{Value, json};
use tidewire_outbox::Recorder;
use tidewire_testkit::soon;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader, Lines};

use crate::binary::{Running, Workplace};

#[tokio::test]
async fn migrations_go_up_and_down_and_say_where_they_are() {
    let place = Workplace::new();
    let status = place.succeed(&["migrate", "status"]).await;
    assert!(status.contains("pending") && !status.contains("has run"), "{status}");
    place.succeed(&["migrate", "up"]).await;
    let status = place.succeed(&["migrate", "status"]).await;
    assert!(status.contains("has run") && !status.contains("pending"), "{status}");
    assert!(place.succeed(&["migrate", "up"]).await.starts_with("0 "));

    // All the way down, and up again.
    for _ in status.lines() {
        place.succeed(&["migrate", "down"]).await;
    }
    let status = place.succeed(&["migrate", "status"]).await;
    assert!(!status.contains("has run"), "{status}");
    place.seed(10).await;
}

#[tokio::test]
async fn seeding_gives_the_same_rows_each_time_and_only_to_an_empty_database() {
    let (one, other) = (Workplace::new(), Workplace::new());
    one.seed(50).await;
    other.seed(50).await;
    let rows =
        "{ task { nodes { id title body status priority due metadata project { name } comment { nodes { body } } } } }";
    let first = one.serve().await.data(rows, json!({})).await;
    assert_eq!(first["task"]["nodes"].as_array().unwrap().len(), 50);
    assert_eq!(first, other.serve().await.data(rows, json!({})).await);

    let (success, text) = one.run(&["seed", "--rows", "5"]).await;
    assert!(!success && text.contains("error: "), "{text}");
}

#[tokio::test]
async fn the_doctor_says_what_is_wrong() {
    let place = Workplace::new();
    let (healthy, text) = place.run(&["doctor"]).await;
    assert!(!healthy && text.contains("WRONG  there is no outbox. `tidewire migrate up` creates it"), "{text}");
    place.seed(5).await;
    let (healthy, text) = place.run(&["doctor"]).await;
    assert!(healthy && !text.contains("WRONG"), "{text}");
    let (healthy, text) = place.run(&["doctor", "--database", "sqlite:///nowhere/at/all.db"]).await;
    assert!(!healthy && text.contains("cannot be opened"), "{text}");
    let (healthy, text) = place.run(&["doctor", "--database", "oracle://user:hunter2@host/db"]).await;
    assert!(!healthy && !text.contains("hunter2"), "{text}");
}

/// Without its relay a server works, and its operator is told.
#[cfg(feature = "relay-nats")]
#[tokio::test]
async fn the_doctor_and_the_metrics_look_at_the_relay() {
    let Some(mut nats) = tidewire_testkit::NatsServer::own().await else { return };
    let Some(postgres) = tidewire_testkit::PostgresServer::shared().await else { return };
    let place = Workplace::new();
    place.settings(&format!("[database]\nurl = {:?}\n[relay]\nurl = {:?}\n", postgres.create().await, nats.url()));
    place.succeed(&["migrate", "up"]).await;
    let (healthy, text) = place.run(&["doctor"]).await;
    assert!(healthy && text.contains("ok     the relay can be used"), "{text}");

    nats.kill();
    let (healthy, text) = place.run(&["doctor"]).await;
    assert!(healthy && text.contains("note   NATS cannot be reached: each process reads the database"), "{text}");
    let servers = [place.serve().await, place.serve().await];
    let mut subscribers = Vec::new();
    for server in &servers {
        let mut subscriber = tidewire_testkit::WebSocketClient::connect(&server.websocket()).await;
        subscriber.subscribe("1", "subscription { changes { cursor } }", json!({})).await;
        subscribers.push(subscriber);
        assert_eq!(server.get("/readyz").await, (200, "ready\n".to_owned()));
    }

    nats.start().await;
    tidewire_testkit::eventually(async || {
        let metrics = [servers[0].get("/metrics").await.1, servers[1].get("/metrics").await.1];
        let says = |gauge: &str| metrics.iter().filter(|text| text.contains(&format!("tidewire_{gauge} 1\n"))).count();
        says("relay_publishing") == 1 && says("relay_live") == 1
    })
    .await;
}

#[tokio::test]
async fn the_tail_prints_what_others_write() {
    let place = Workplace::new();
    place.seed(5).await;
    let server = place.serve().await;

    // GIVEN one tail from now on in JSON, and one of labels from the beginning for people
    let mut json = tail(&place, &["tail", "--json"]);
    let mut labels = tail(&place, &["tail", "--entity", "label", "--after", "start"]);
    let seeded = next(&mut labels).await;
    assert!(seeded.contains("  insert  label "), "{seeded}");
    // It cannot be seen from outside when a tail began, so something is written until it shows.
    let mutation = r##"mutation { labelCreateOne(data: { projectId: 1, name: "urgent", color: "#ff0000" }) { id } }"##;
    let first = loop {
        server.ask(mutation, Value::Null).await;
        server.ask(r#"mutation { labelDelete(filter: { name: { eq: "urgent" } }) }"#, Value::Null).await;
        if let Ok(line) = tokio::time::timeout(std::time::Duration::from_millis(200), json.0.next_line()).await {
            break line.unwrap().unwrap();
        }
    };
    // THEN both show it
    let change: Value = serde_json::from_str(&first).unwrap();
    assert_eq!(change["entity"], "label");
    let row = if change["operation"] == "insert" { &change["after"] } else { &change["before"] };
    assert_eq!(row["name"], "urgent");
    let cursor = change["cursor"].as_str().unwrap().to_owned();

    // WHEN it is begun anew after a cursor
    server.ask(mutation, Value::Null).await;
    let mut second: Value = serde_json::from_str(&next(&mut json).await).unwrap();
    let mut resumed = tail(&place, &["tail", "--json", "--after", &cursor]);
    // THEN it goes on with what came next
    let after: Value = serde_json::from_str(&next(&mut resumed).await).unwrap();
    while second["seq"] != after["seq"] {
        assert_eq!(second["cursor"], cursor, "a gap between {second} and {after}");
        second = serde_json::from_str(&next(&mut json).await).unwrap();
    }

    let (success, text) = place.run(&["tail", "--after", "rubbish"]).await;
    assert!(!success && text.contains("--after"), "{text}");
    let (success, text) = place.run(&["tail", "--entity", "nobody"]).await;
    assert!(!success && text.contains("there is no entity nobody; there are"), "{text}");
}

#[tokio::test]
async fn an_operator_is_told_why_a_subscriber_gets_a_change_or_does_not() {
    let place = Workplace::new();
    place.settings(
        r#"
        [[policy]]
        entity = "label"
        role = "member"
        read = { projectId = { eq = "$sub" } }
        readable = ["id", "projectId", "name"]
        "#,
    );
    place.seed(5).await;
    let url = format!("sqlite://{}", place.file().display());
    let recorder = Recorder::connect(&url, entity::registry()).await.unwrap();
    let after = recorder.log().position().await.unwrap().to_string();
    for sql in [
        "INSERT INTO label (project_id, name, color) VALUES (1, 'pressing', '#ff0000')",
        "UPDATE label SET name = 'resting' WHERE name = 'pressing'",
    ] {
        recorder.execute_unprepared(sql).await.unwrap();
    }

    let subscription = r#"subscription ($name: String!) { labelChanges(filters: { name: { eq: $name } }) { cursor } }"#;
    let explain = |more: &[&str]| {
        let subscriber =
            ["--subscription", subscription, "--variables", r#"{ "name": "pressing" }"#, "--role", "member"];
        let arguments = [&["explain", "--after", &after], &subscriber[..], more].concat();
        arguments.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run =
        async |arguments: Vec<String>| place.succeed(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await;

    // GIVEN somebody whose rights are right
    let text = run(explain(&["--actor", "1"])).await;
    for words in [
        "filter: name = \"pressing\"",
        "INSERT label {\"id\":",
        "after   passes the filter: name = \"pressing\" is true",
        "the role \"member\" lets the viewer see it: projectId = 1 is true",
        "hidden  color",
        "=> delivered as ENTER: the new row passes",
        "after   fails the filter: name = \"pressing\" is false",
        "=> delivered as LEAVE: the row passed, and does so no longer",
        "There are no more changes, up to ",
    ] {
        assert!(text.contains(words), "no {words} in {text}");
    }
    // and somebody whose are not
    let text = run(explain(&["--claims", r#"{ "sub": "2" }"#, "--limit", "1"])).await;
    assert!(text.contains("does not let the viewer see it: projectId = 2 is false"), "{text}");
    assert!(text.contains("=> not delivered: the policy hides the row"), "{text}");
    assert!(text.contains("There are more changes after "), "{text}");
    let text = run(explain(&[])).await;
    assert!(text.contains("The subscription is refused: FORBIDDEN: rows of Label may not be read"), "{text}");

    // THEN it can be read by programs
    let json: Value = serde_json::from_str(&run(explain(&["--actor", "1", "--json"])).await).unwrap();
    assert_eq!(json["transactions"][1]["changes"][0]["event"], "LEAVE");
    let cursor = json["transactions"][0]["cursor"].as_str().unwrap();
    let rest = place
        .succeed(&[
            "explain",
            "--cursor",
            cursor,
            "--subscription",
            "subscription { label { nodes { id } } }",
            "--role",
            "member",
            "--actor",
            "1",
        ])
        .await;
    assert!(rest.contains("=> the live query is read again, because the row passes"), "{rest}");
    assert!(!rest.contains("INSERT"), "{rest}");

    // and what cannot be explained is said
    let stale = place
        .succeed(&[
            "explain",
            "--after",
            "rubbish",
            "--subscription",
            "subscription { label { nodes { id } } }",
            "--role",
            "member",
            "--actor",
            "1",
        ])
        .await;
    assert!(stale.contains("told to start over: resync MALFORMED"), "{stale}");
    for (more, words) in
        [(["--variables", "xyzzy"], "`--variables` must be a JSON object"), (["--limit", "0"], "`--limit`")]
    {
        let arguments =
            [&["explain", "--after", "start", "--subscription", "{ label { nodes { id } } }"], &more[..]].concat();
        let (success, text) = place.run(&arguments).await;
        assert!(!success && text.contains(words) && !text.contains("xyzzy"), "{text}");
    }
}

/// A tail and its lines. The process goes with the value.
fn tail(place: &Workplace, arguments: &[&str]) -> (Lines<BufReader<impl AsyncRead + use<>>>, tokio::process::Child) {
    let mut process = place.command(arguments).stdout(std::process::Stdio::piped()).spawn().unwrap();
    (BufReader::new(process.stdout.take().unwrap()).lines(), process)
}

async fn next(tail: &mut (Lines<BufReader<impl AsyncRead + Unpin>>, tokio::process::Child)) -> String {
    soon(tail.0.next_line()).await.unwrap().unwrap()
}

/// The first command of the README.
#[tokio::test]
async fn without_a_command_it_serves_the_demo() {
    let place = Workplace::new();
    let mut command = place.command(&[]);
    command.env("TIDEWIRE_SERVER__LISTEN", "127.0.0.1:0");
    let server = Running::start(command).await;
    let tasks = server.data("{ task { paginationInfo { total } } }", Value::Null).await;
    assert!(tasks["task"]["paginationInfo"]["total"].as_u64().unwrap() >= 100, "{tasks}");
    for path in ["/", "/page.js", "/healthz", "/readyz", "/metrics"] {
        assert_eq!(server.get(path).await.0, 200, "{path}");
    }
    let (_, metrics) = server.get("/metrics").await;
    for metric in [
        "captured_changes",
        "tailed_changes",
        "delivered_changes",
        "tail_lag_changes",
        "tail_lag_seconds",
        "subscriptions",
        "queue_depth",
    ] {
        assert!(metrics.contains(&format!("\ntidewire_{metric}")), "no {metric} in {metrics}");
    }
    server.signal("TERM");
    assert!(server.ended().await);

    // A second start keeps what is there.
    let mut command = place.command(&[]);
    command.env("TIDEWIRE_SERVER__LISTEN", "127.0.0.1:0");
    let again = Running::start(command).await;
    assert_eq!(tasks, again.data("{ task { paginationInfo { total } } }", Value::Null).await);
}

#[tokio::test]
async fn settings_that_are_wrong_are_named() {
    let place = Workplace::new();
    std::fs::write(place.path().join("wrong.toml"), "[server]\nlisten_on = \"127.0.0.1:0\"\n").unwrap();
    let (success, text) = place.run(&["serve", "--config", "wrong.toml"]).await;
    assert!(!success && text.contains("listen_on"), "{text}");
    let (success, text) = place.run(&["serve", "--config", "missing.toml"]).await;
    assert!(!success && text.contains("missing.toml"), "{text}");
    let (success, text) = place.run(&["serve", "--listen", "nowhere"]).await;
    assert!(!success && text.contains("cannot listen on nowhere"), "{text}");
    // An address that is taken.
    place.seed(1).await;
    let server = place.serve().await;
    let (success, text) = place.run(&["serve", "--listen", &server.address]).await;
    assert!(!success && text.contains("`--listen` takes another address"), "{text}");
}
