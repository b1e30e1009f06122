//! Authentication, as settings turn it on.

use std::{fs::File, io::Write};

use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tidewire_testkit::{WebSocketClient, soon};

use crate::binary::{Running, Workplace};

/// Signs tokens; stands in no log and no answer.
const SECRET: &str = "xyzzy is a secret that has more than 32 bytes";

async fn post(server: &Running, show: impl FnOnce(RequestBuilder) -> RequestBuilder) -> (StatusCode, Value) {
    let request = reqwest::Client::new().post(server.http()).json(&json!({ "query": "{ __typename }" }));
    let response = soon(show(request).send()).await.unwrap();
    (response.status(), soon(response.json()).await.unwrap())
}

/// The key that `tidewire key create` printed, and what it printed for the settings.
async fn key(place: &Workplace, arguments: &[&str]) -> (String, String) {
    let printed = place.succeed(&[&["key", "create"], arguments].concat()).await;
    let key = printed.lines().find(|line| line.starts_with("tidewire_")).unwrap().to_owned();
    let (_, settings) = printed.split_once("For the settings:\n").unwrap();
    assert!(!settings.contains(&key), "{settings}");
    (key, settings.to_owned())
}

#[tokio::test]
async fn a_service_comes_in_with_the_key_that_was_made_for_it() {
    let place = Workplace::new();
    place.seed(5).await;
    let (first, first_settings) = key(&place, &["--name", "billing", "--role", "writer", "--role", "reader"]).await;
    let (second, second_settings) = key(&place, &["--name", "say \"hello\""]).await;
    assert_ne!(first, second);
    place.settings(&format!("[auth]\nrequired = true\nmetrics_role = \"reader\"\n{first_settings}{second_settings}"));
    let (healthy, text) = place.run(&["doctor"]).await;
    assert!(healthy && text.contains("ok     clients are known by 2 API keys; others are refused"), "{text}");

    let server = place.serve().await;
    let (status, answer) = post(&server, |request| request).await;
    assert_eq!(
        (status, &answer["errors"][0]["extensions"]["code"]),
        (StatusCode::UNAUTHORIZED, &json!("UNAUTHENTICATED"))
    );
    for key in [&first, &second] {
        assert_eq!(post(&server, |request| request.header("x-api-key", key)).await.0, StatusCode::OK);
    }
    assert_eq!(server.get("/metrics").await.0, 401);
    assert_eq!(server.get("/readyz").await.0, 200);
}

#[tokio::test]
async fn changes_are_explained_to_the_role_that_may_ask() {
    let place = Workplace::new();
    place.seed(5).await;
    let (operator, settings) = key(&place, &["--name", "operations", "--role", "operator"]).await;
    let (other, others) = key(&place, &["--name", "billing", "--role", "writer"]).await;
    let ask = async |server: &Running, key: &str| -> Value {
        let query =
            "{ explainChanges(after: \"\", subscription: \"subscription { taskChanges { cursor } }\") { resync } }";
        let request = reqwest::Client::new().post(server.http()).json(&json!({ "query": query }));
        soon(soon(request.header("x-api-key", key).send()).await.unwrap().json()).await.unwrap()
    };
    place.settings(&format!("[auth]\nexplain_role = \"operator\"\n{settings}{others}"));
    let server = place.serve().await;
    assert_eq!(ask(&server, &operator).await, json!({ "data": { "explainChanges": { "resync": "MALFORMED" } } }));
    assert_eq!(ask(&server, &other).await["errors"][0]["extensions"]["code"], "FORBIDDEN");
    place.settings(&format!("[auth]\n{settings}{others}"));
    let server = place.serve().await;
    assert_eq!(ask(&server, &operator).await["errors"][0]["extensions"]["code"], "GRAPHQL_VALIDATION_FAILED");
}

#[tokio::test]
async fn settings_of_authentication_that_cannot_be_meant_are_named() {
    let place = Workplace::new();
    std::fs::write(place.path().join("short"), "too short\n").unwrap();
    for (settings, words) in [
        ("[auth]\nrequired = true\n", "`required` in [auth] is set, and no key"),
        ("[auth]\nmetrics_role = \"reader\"\n", "`metrics_role` in [auth] is set, and no key"),
        ("[auth]\nexplain_role = \"reader\"\n", "`explain_role` in [auth] is set, and no key"),
        ("[auth]\nexplain_role = \"anonymous\"\n", "`explain_role` in [auth] is \"anonymous\""),
        ("[auth]\nsecret = \"xyzzy\"\n", "`secret` in [auth]: the secret is too short"),
        ("[auth]\nsecret_file = \"short\"\n", "`secret_file` in [auth]: the secret is too short"),
        ("[auth]\nsecret_file = \"nowhere\"\n", "nowhere"),
        ("[auth]\nsecret = \"xyzzy\"\nsecret_file = \"short\"\n", "both set"),
        ("[auth]\npublic_key_files = [\"short\"]\n", "not the PEM"),
        ("[auth]\njwks_url = \"ftp://xyzzy@host\"\n", "`jwks_url` in [auth]: keys are published at"),
        ("[[auth.api_keys]]\nname = \"a\"\nroles = []\nsha256 = \"xyzzy\"\n", "64 hexadecimal digits"),
        (
            "server.actor_header = \"x-user\"\nauth.secret = \"xyzzy is a secret that has more than 32 bytes\"\n",
            "`actor_header` in [server] and keys in [auth] are both set",
        ),
    ] {
        place.settings(settings);
        for command in [&["serve", "--listen", "127.0.0.1:0"][..], &["doctor"]] {
            let (success, text) = place.run(command).await;
            assert!(!success && text.contains(words), "{settings}: {text}");
            assert!(!text.contains("xyzzy"), "{text}");
        }
    }
}

#[tokio::test]
async fn the_doctor_says_who_is_asked() {
    let place = Workplace::new();
    place.seed(1).await;
    let (healthy, text) = place.run(&["doctor"]).await;
    assert!(healthy && text.contains("note   there is no authentication"), "{text}");
    place.settings("[auth]\njwks_url = \"http://user:hunter2@127.0.0.1:9/keys\"\n");
    let (healthy, text) = place.run(&["doctor"]).await;
    assert!(!healthy && text.contains("WRONG  http://…@127.0.0.1:9/keys publishes no keys: "), "{text}");
    assert!(text.contains("note   `audiences` in [auth] is empty") && text.contains("is not encrypted"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

/// Nothing of a token is told to anybody, at the finest that the server can log.
#[tokio::test]
async fn secrets_and_tokens_are_not_in_the_log() {
    let place = Workplace::new();
    place.seed(1).await;
    place.settings(
        "logging.filter = \"trace,h2=info,hyper=info,hyper_util=info,tungstenite=info,tokio_tungstenite=info\"\n",
    );
    let log = place.path().join("log");
    let mut command = place.command(&["serve", "--listen", "127.0.0.1:0"]);
    command
        .env("TIDEWIRE_AUTH__SECRET", SECRET)
        .env("TIDEWIRE_AUTH__AUDIENCES", "a,b")
        .stderr(File::create(&log).unwrap());
    let server = Running::start(command).await;
    let token = "xyzzy.xyzzy.xyzzy";
    let (status, answer) = post(&server, |request| request.bearer_auth(token)).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let mut socket = WebSocketClient::open(&server.websocket(), Some("graphql-transport-ws")).await;
    socket.send(json!({ "type": "connection_init", "payload": { "token": token } })).await;
    assert_eq!(socket.closed().await, Some(4403));
    server.signal("TERM");
    assert!(server.ended().await);
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("refused a client"), "{log}");
    for text in log.lines().chain([answer.to_string().as_str()]) {
        assert!(!text.contains("xyzzy"), "{text}");
    }
}

/// Settings by which the tests of real clients sign their tokens.
pub(crate) fn for_clients(place: &Workplace) -> &'static str {
    let mut file = File::create(place.path().join("secret")).unwrap();
    writeln!(file, "{SECRET}").unwrap();
    place.settings("[auth]\nrequired = true\nsecret_file = \"secret\"\nleeway_s = 0\naudiences = [\"tidewire\"]\n");
    SECRET
}
