//! Who may come in, and for how long.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};
use tidewire_axum::{ApiKey, Authentication, Jwks, ServerOptions, TokenKey};
use tidewire_testkit::{WebSocketClient, eventually, soon};
use tokio_tungstenite::{connect_async, tungstenite::client::IntoClientRequest};

use crate::{
    support::{Running, add_food},
    tokens::{
        Headers, Published, Publisher, RSA_PUBLIC, RSA_SHORT, SECRET, Signer, ada, bearer, from_now, guarded, with,
    },
};

const QUERY: &str = "{ __typename }";
const CHANGES: &str = "subscription { foodChanges { changes { node { name } actor } } }";

/// As long as a token lives whose end is waited for, in seconds. Whoever uses it has to be in before.
const SHORT: i64 = 6;

fn header(name: &'static str, value: impl Into<String>) -> Headers {
    Headers::from([(name, value.into())])
}

/// A socket whose first message has this payload.
async fn hello(server: &Running, payload: Value) -> WebSocketClient {
    let mut client = WebSocketClient::open(&server.websocket(), Some("graphql-transport-ws")).await;
    client.send(json!({ "type": "connection_init", "payload": payload })).await;
    client
}

async fn acknowledged(server: &Running, payload: Value) -> WebSocketClient {
    let mut client = hello(server, payload).await;
    assert_eq!(client.next().await, json!({ "type": "connection_ack" }));
    client
}

/// What an upgrade with these headers is answered with, where it is not accepted.
async fn upgrade(server: &Running, headers: &Headers) -> Result<(), u16> {
    let mut request = server.websocket().into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "graphql-transport-ws".parse().unwrap());
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    match soon(connect_async(request)).await {
        Ok(_) => Ok(()),
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_token_or_a_key_is_shown_in_many_ways() {
    let (key, hash) = ApiKey::generate().unwrap();
    let mut authentication = guarded();
    authentication.api_keys.push(ApiKey::new("billing", ["writer"], &hash).unwrap());
    let server = Running::start(with(authentication)).await;
    let token = Signer::secret().sign("any", &ada(60));

    let cases = [
        ("authorization", format!("Bearer {token}"), "user:ada"),
        ("authorization", format!("bearer  {token} "), "user:ada"),
        ("authorization", format!("ApiKey {key}"), "service:billing"),
        ("x-api-key", key.clone(), "service:billing"),
    ];
    let mut watcher = acknowledged(&server, json!({ "token": token })).await;
    watcher.subscribe("1", CHANGES, json!({})).await;
    watcher.event("foodChanges").await;
    let mut written = 0;
    let mut write = || {
        written += 1;
        format!("mutation {{ foodCreateOne(data: {{ name: \"fish {written}\" }}) {{ name }} }}")
    };
    for (name, value, actor) in cases {
        let headers = header(name, value);
        let answer = server.ask(&write(), &headers).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::OK, Value::Null), "{answer:?}");
        assert_eq!(watcher.event("foodChanges").await["changes"][0]["actor"], actor);
        assert_eq!(upgrade(&server, &headers).await, Ok(()));
    }
    for (payload, actor) in [
        (json!({ "authorization": format!("Bearer {token}") }), "user:ada"),
        (json!({ "Authorization": format!("Bearer {token}"), "other": 1 }), "user:ada"),
        (json!({ "token": token }), "user:ada"),
        (json!({ "token": format!("Bearer {token}"), "authorization": null }), "user:ada"),
        (json!({ "authorization": format!("ApiKey {key}") }), "service:billing"),
        (json!({ "X-API-Key": key }), "service:billing"),
    ] {
        let mut client = acknowledged(&server, payload).await;
        client.subscribe("w", &write(), json!({})).await;
        assert!(client.payload().await["data"]["foodCreateOne"]["name"].is_string());
        assert_eq!(watcher.event("foodChanges").await["changes"][0]["actor"], actor);
    }
    // Cookies, and parameters of a URL, are no way in.
    assert_eq!(
        server.ask(QUERY, &header("cookie", format!("authorization=Bearer {token}"))).await.code(),
        "UNAUTHENTICATED"
    );
}

#[tokio::test]
async fn who_shows_nothing_is_refused_or_anonymous() {
    let server = Running::start(with(guarded())).await;
    let answer = server.ask(QUERY, &Headers::new()).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::UNAUTHORIZED, json!("UNAUTHENTICATED")));
    assert_eq!(answer.header("www-authenticate"), "Bearer");
    let events = server.ask(QUERY, &header("accept", "text/event-stream")).await;
    assert_eq!(events.status, StatusCode::UNAUTHORIZED);
    for payload in [Value::Null, json!({}), json!({ "other": "x" }), json!("x")] {
        assert_eq!(hello(&server, payload).await.closed().await, Some(4401));
    }
    // Before it has said who it is, a socket may do nothing.
    let mut early = WebSocketClient::open(&server.websocket(), Some("graphql-transport-ws")).await;
    early.subscribe("1", QUERY, json!({})).await;
    assert_eq!(early.closed().await, Some(4401));
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(server.get(path, &Headers::new()).await.status, StatusCode::OK, "{path}");
    }

    let mut lenient = guarded();
    lenient.required = false;
    let server = Running::start(with(lenient)).await;
    assert_eq!(server.ask(QUERY, &Headers::new()).await.status, StatusCode::OK);
    acknowledged(&server, Value::Null).await.close().await;
    // But a bad token is not as good as none.
    assert_eq!(server.ask(QUERY, &bearer("bad")).await.code(), "UNAUTHENTICATED");
    assert_eq!(hello(&server, json!({ "token": "bad" })).await.closed().await, Some(4403));
}

#[tokio::test]
async fn a_header_of_a_proxys_counts_for_nothing_beside_tokens() {
    let mut options = with(guarded());
    options.actor_header = Some("x-user".parse().unwrap());
    let server = Running::start(options).await;
    assert_eq!(server.ask(QUERY, &header("x-user", "ada")).await.code(), "UNAUTHENTICATED");
}

/// Every one of them is refused over HTTP, at the upgrade, and by the payload of `connection_init`; no answer repeats any of it.
async fn all_refused(server: &Running, cases: Vec<(&str, String)>) {
    for (reason, token) in cases {
        let answer = server.ask(QUERY, &bearer(&token)).await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::UNAUTHORIZED, json!("UNAUTHENTICATED")),
            "{reason}: {token}"
        );
        assert!(answer.message().contains(reason), "{reason}: {}", answer.message());
        assert!(token.len() < 4 || !answer.body.contains(&token), "{}", answer.body);
        assert!(!answer.body.contains("ada"), "{}", answer.body);
        assert_eq!(upgrade(server, &bearer(&token)).await, Err(401), "{reason}");
        assert_eq!(hello(server, json!({ "token": token })).await.closed().await, Some(4403), "{reason}");
    }
}

#[tokio::test]
async fn tokens_that_say_the_wrong_thing_are_refused() {
    let server = Running::start(with(guarded())).await;
    let with = |name: &str, value: Value| {
        let mut claims = ada(60);
        claims[name] = value;
        Signer::secret().sign("any", &claims)
    };
    let without = |name: &str| {
        let mut claims = ada(60);
        claims.as_object_mut().unwrap().remove(name);
        Signer::secret().sign("any", &claims)
    };
    all_refused(
        &server,
        vec![
            ("has expired", with("exp", json!(from_now(-5)))),
            ("has expired", with("exp", json!(0))),
            ("not valid yet", with("nbf", json!(from_now(100)))),
            ("when it expires", without("exp")),
            ("when it expires", with("exp", json!(null))),
            ("when it expires", with("exp", json!(from_now(60).to_string()))),
            ("when it expires", with("exp", json!(-1))),
            ("signed as this server accepts it", with("nbf", json!("now"))),
            ("another audience", with("aud", json!("other"))),
            ("another audience", with("aud", json!(["other", "tidewire "]))),
            ("another audience", with("aud", json!({ "tidewire": 1 }))),
            ("another audience", without("aud")),
            ("another issuer", with("iss", json!("TESTS"))),
            ("another issuer", without("iss")),
            ("subject", with("sub", json!(7))),
            ("subject", with("sub", json!("x".repeat(256)))),
            ("subject", with("sub", json!("a\u{0}b"))),
        ],
    )
    .await;
    assert_eq!(server.ask(QUERY, &bearer(&with("aud", json!(["other", "tidewire"])))).await.status, StatusCode::OK);
    assert_eq!(server.ask(QUERY, &bearer(&with("exp", json!(from_now(60) as f64 + 0.5)))).await.status, StatusCode::OK);
}

#[tokio::test]
async fn tokens_that_nobody_of_ours_signed_are_refused() {
    let mut authentication = guarded();
    let ed25519 = Signer::ed25519();
    authentication.keys.push(TokenKey::pem(RSA_PUBLIC).unwrap().id("rsa"));
    authentication.keys.push(TokenKey::pem(&ed25519.pem()).unwrap().id("ed"));
    let server = Running::start(with(authentication)).await;
    for good in
        [Signer::rsa().sign("rsa", &ada(60)), ed25519.sign("ed", &ada(60)), Signer::secret().sign("x", &ada(60))]
    {
        assert_eq!(server.ask(QUERY, &bearer(&good)).await.status, StatusCode::OK);
    }
    let good = Signer::secret().sign("any", &ada(60));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (first, payload) = signed.split_once('.').unwrap();
    let none = |alg: &str| Signer::secret().sign_as(&json!({ "alg": alg, "typ": "JWT" }), &ada(60));
    let unsigned = |token: String| format!("{}.", token.rsplit_once('.').unwrap().0);
    // The public key, which everybody knows, taken for a secret.
    let confused = Signer::Secret(RSA_PUBLIC.to_vec());
    all_refused(
        &server,
        vec![
            ("signed as this server accepts it", none("none")),
            ("signed as this server accepts it", unsigned(none("none"))),
            ("signed as this server accepts it", unsigned(none("None"))),
            ("signature is wrong", unsigned(good.clone())),
            ("signature is wrong", confused.sign("rsa", &ada(60))),
            ("signature is wrong", confused.sign_as(&json!({ "alg": "HS256" }), &ada(60))),
            ("another algorithm", confused.sign_as(&json!({ "alg": "HS384", "kid": "rsa" }), &ada(60))),
            ("another algorithm", Signer::rsa().sign_as(&json!({ "alg": "PS256", "kid": "rsa" }), &ada(60))),
            ("signature is wrong", Signer::ed25519().sign("ed", &ada(60))),
            ("another algorithm", ed25519.sign("rsa", &ada(60))),
            ("another algorithm", Signer::p256().sign("p256", &ada(60))),
            ("signature is wrong", Signer::Secret(b"another secret of 32 bytes or more".to_vec()).sign("x", &ada(60))),
            ("signature is wrong", format!("{first}.{payload}x.{signature}")),
            (
                "signed as this server accepts it",
                Signer::secret().sign_as(&json!({ "alg": "HS256", "crit": ["b64"], "b64": false }), &ada(60)),
            ),
            ("signed as this server accepts it", format!("{good}.{signature}")),
            ("signed as this server accepts it", signed.to_owned()),
            ("signed as this server accepts it", "a.b.c".into()),
            ("signed as this server accepts it", "..".into()),
            ("signed as this server accepts it", Signer::secret().sign_as(&json!({ "alg": "HS256" }), &json!([1]))),
            ("longer than", "x".repeat(9000)),
        ],
    )
    .await;
}

#[tokio::test]
async fn credentials_that_are_ambiguous_or_unknown_are_refused() {
    let mut authentication = guarded();
    let (_, hash) = ApiKey::generate().unwrap();
    authentication.api_keys.push(ApiKey::new("billing", ["writer"], &hash).unwrap());
    let server = Running::start(with(authentication)).await;
    let token = Signer::secret().sign("any", &ada(60));
    let (other, _) = ApiKey::generate().unwrap();
    let both = Headers::from([("authorization", format!("Bearer {token}")), ("x-api-key", other.clone())]);
    for (reason, headers) in [
        ("more than one", both),
        ("API key is not known", header("x-api-key", other.clone())),
        ("API key is not known", header("x-api-key", hash.clone())),
        ("API key is not known", header("x-api-key", "")),
        ("API key is not known", header("authorization", format!("ApiKey {token}"))),
        ("credentials are", header("authorization", "Basic YTpi")),
        ("credentials are", header("authorization", token.clone())),
        ("signed as this server", header("authorization", format!("Bearer {other}"))),
    ] {
        let answer = server.ask(QUERY, &headers).await;
        assert_eq!(answer.code(), "UNAUTHENTICATED", "{reason}");
        assert!(answer.message().contains(reason), "{reason}: {}", answer.message());
        assert!(!answer.body.contains(&other), "{}", answer.body);
    }
    for payload in [
        json!({ "token": token, "authorization": format!("Bearer {token}") }),
        json!({ "authorization": 7 }),
        json!({ "authorization": token }),
        json!({ "x-api-key": other }),
    ] {
        assert_eq!(hello(&server, payload).await.closed().await, Some(4403));
    }
    let metrics = server.get("/metrics", &Headers::new()).await.body;
    assert!(metrics.contains("tidewire_refused_credentials_total 12\n"), "{metrics}");
}

#[test]
fn keys_that_are_none_are_refused_without_repeating_them() {
    let short = TokenKey::secret(&SECRET[..31]).unwrap_err().to_string();
    assert!(short.contains("32 random bytes"), "{short}");
    let private = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert!(TokenKey::pem(private).unwrap_err().to_string().contains("private"));
    assert!(TokenKey::pem(RSA_SHORT).unwrap_err().to_string().contains("2048"));
    for garbage in [&b""[..], b"hello", SECRET, b"-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----\n"] {
        assert!(TokenKey::pem(garbage).is_err());
    }
    for hash in ["", "xyz", &"0".repeat(63), &"g".repeat(64)] {
        assert!(ApiKey::new("a", ["b"], hash).is_err());
    }
    for url in ["", "keys", "ftp://host/keys", "https://"] {
        assert!(Jwks::new(url).is_err(), "{url}");
    }
    // Nothing of a key is shown by `Debug`.
    let mut authentication = guarded();
    authentication.api_keys.push(ApiKey::new("billing", ["writer"], &"ab".repeat(32)).unwrap());
    authentication.jwks = Some(Jwks::new("https://host/hidden").unwrap());
    let shown = format!("{:?}", with(authentication));
    for hidden in ["only tests know", "abab", "171, 171", "hidden"] {
        assert!(!shown.contains(hidden), "{shown}");
    }
}

fn published_at(publisher: &Publisher, pause: Duration) -> Authentication {
    let mut authentication = guarded();
    authentication.keys.clear();
    // So long that only what tokens ask for is fetched.
    let jwks = Jwks::new(&publisher.url()).unwrap();
    authentication.jwks = Some(jwks.timed(Duration::from_secs(3600), pause, Duration::from_millis(500)));
    authentication
}

#[tokio::test]
async fn published_keys_rotate() {
    let (rsa, p256, ed25519) = (Signer::rsa(), Signer::p256(), Signer::ed25519());
    let publisher = Publisher::start(Published::Keys(vec![rsa.jwk("1"), p256.jwk("2")])).await;
    let server = Running::start(with(published_at(&publisher, Duration::ZERO))).await;
    let allowed = async |signer: &Signer, kid: &str| {
        server.ask(QUERY, &bearer(&signer.sign(kid, &ada(60)))).await.status == StatusCode::OK
    };
    assert!(allowed(&rsa, "1").await && allowed(&p256, "2").await);
    // A name is for one key.
    assert!(!allowed(&p256, "1").await && !allowed(&rsa, "2").await);
    // A key that appears is found by the token that needs it, and one that goes is gone with that look.
    publisher.publish(Published::Keys(vec![json!({ "kty": "none" }), p256.jwk("2"), ed25519.jwk("3")]));
    assert!(allowed(&rsa, "1").await, "nobody has looked yet");
    assert!(allowed(&ed25519, "3").await);
    assert!(!allowed(&rsa, "1").await);
    assert!(allowed(&p256, "2").await);
    // Who publishes a secret has made it known to everybody.
    publisher.publish(Published::Keys(vec![p256.jwk("2"), Signer::secret().jwk("4")]));
    assert!(!allowed(&Signer::secret(), "4").await);
}

#[tokio::test]
async fn keys_of_our_own_stand_beside_published_ones() {
    let (own, published, newer) = (Signer::ed25519(), Signer::ed25519(), Signer::ed25519());
    let publisher = Publisher::start(Published::Keys(vec![published.jwk("1")])).await;
    let mut authentication = published_at(&publisher, Duration::ZERO);
    authentication.keys.push(TokenKey::pem(&own.pem()).unwrap());
    let server = Running::start(with(authentication)).await;
    let status =
        async |signer: &Signer, kid: &str| server.ask(QUERY, &bearer(&signer.sign(kid, &ada(60)))).await.status;
    assert_eq!(status(&published, "1").await, StatusCode::OK);
    let asked = publisher.asked();
    assert_eq!(status(&own, "any").await, StatusCode::OK);
    assert_eq!(publisher.asked(), asked, "there was nothing to ask for");
    publisher.publish(Published::Keys(vec![newer.jwk("2")]));
    assert_eq!(status(&newer, "2").await, StatusCode::OK);
    assert_eq!(status(&published, "1").await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn keys_stay_while_nothing_good_is_published() {
    let (old, new) = (Signer::p256(), Signer::ed25519());
    let publisher = Publisher::start(Published::Keys(vec![old.jwk("old")])).await;
    let server = Running::start(with(published_at(&publisher, Duration::ZERO))).await;
    let (old_token, new_token) = (old.sign("old", &ada(60)), new.sign("new", &ada(60)));
    assert_eq!(server.ask(QUERY, &bearer(&old_token)).await.status, StatusCode::OK);
    let huge = format!("{{\"keys\":[{}{}]}}", " ".repeat(1 << 20), new.jwk("new"));
    for published in [
        Published::Status(StatusCode::INTERNAL_SERVER_ERROR),
        Published::Status(StatusCode::NOT_FOUND),
        Published::Text("<html>".into()),
        Published::Text("{\"keys\":{}}".into()),
        Published::Text("[".repeat(100_000)),
        Published::Text(huge),
        Published::Keys(vec![]),
        Published::Keys(vec![json!(null), json!({ "kty": "RSA", "kid": "new", "n": "!", "e": 1 })]),
        Published::Silence,
    ] {
        publisher.publish(published);
        let asked = publisher.asked();
        let answer = server.ask(QUERY, &bearer(&new_token)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert!(answer.message().contains("key that is not known"), "{}", answer.message());
        assert_eq!(publisher.asked(), asked + 1);
        assert_eq!(server.ask(QUERY, &bearer(&old_token)).await.status, StatusCode::OK);
    }
    publisher.publish(Published::Keys(vec![new.jwk("new")]));
    assert_eq!(server.ask(QUERY, &bearer(&new_token)).await.status, StatusCode::OK);
    assert_eq!(server.ask(QUERY, &bearer(&old_token)).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn unknown_keys_are_asked_for_once_by_all_and_not_again_soon() {
    let signer = Signer::p256();
    let publisher = Publisher::start(Published::Keys(vec![signer.jwk("1")])).await;
    let server = Running::start(with(published_at(&publisher, Duration::from_secs(3600)))).await;
    eventually(async || publisher.asked() == 1).await;
    let tokens: Vec<_> = (0..50).map(|kid| signer.sign(&format!("x{kid}"), &ada(60))).collect();
    let headers: Vec<_> = tokens.iter().map(|token| bearer(token)).collect();
    let refused = headers.iter().map(|headers| server.ask(QUERY, headers));
    for answer in futures_util::future::join_all(refused).await {
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(server.ask(QUERY, &bearer(&signer.sign("1", &ada(60)))).await.status, StatusCode::OK);
    assert_eq!(publisher.asked(), 1);
}

#[tokio::test]
async fn without_any_key_yet_the_client_is_told_to_come_back() {
    let signer = Signer::p256();
    let publisher = Publisher::start(Published::Status(StatusCode::BAD_GATEWAY)).await;
    let server = Running::start(with(published_at(&publisher, Duration::ZERO))).await;
    let token = signer.sign("1", &ada(60));
    let answer = server.ask(QUERY, &bearer(&token)).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::SERVICE_UNAVAILABLE, json!("UNAVAILABLE")));
    assert_eq!(answer.header("retry-after"), "5");
    assert_eq!(hello(&server, json!({ "token": token })).await.closed().await, Some(1013));
    publisher.publish(Published::Keys(vec![signer.jwk("1")]));
    assert_eq!(server.ask(QUERY, &bearer(&token)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn keys_are_looked_for_from_time_to_time() {
    let (old, new) = (Signer::p256(), Signer::p256());
    let publisher = Publisher::start(Published::Keys(vec![old.jwk("old")])).await;
    let mut authentication = published_at(&publisher, Duration::ZERO);
    let jwks = Jwks::new(&publisher.url()).unwrap();
    authentication.jwks =
        Some(jwks.timed(Duration::from_millis(100), Duration::from_secs(3600), Duration::from_secs(5)));
    let server = Running::start(with(authentication)).await;
    let token = old.sign("old", &ada(60));
    assert_eq!(server.ask(QUERY, &bearer(&token)).await.status, StatusCode::OK);
    publisher.publish(Published::Keys(vec![new.jwk("new")]));
    // Nobody shows a token of the new key; the old one is gone all the same.
    eventually(async || server.ask(QUERY, &bearer(&token)).await.status == StatusCode::UNAUTHORIZED).await;
    drop(server);
}

#[tokio::test]
async fn a_socket_ends_with_its_token() {
    let server = Running::start(with(guarded())).await;
    let token = Signer::secret().sign("any", &ada(SHORT));
    // One that is idle, and one that is busy all the time.
    let mut idle = acknowledged(&server, json!({ "token": token })).await;
    let mut busy = acknowledged(&server, json!({ "token": token })).await;
    busy.subscribe("1", CHANGES, json!({})).await;
    busy.event("foodChanges").await;
    let writing = async {
        for number in 0_u64.. {
            add_food(&server.recorder, &number.to_string()).await;
        }
    };
    let both = async { (idle.closed().await, busy.closed().await) };
    tokio::select! {
        () = writing => {}
        codes = both => assert_eq!(codes, (Some(4403), Some(4403))),
    }
    assert_eq!(hello(&server, json!({ "token": token })).await.closed().await, Some(4403));
}

#[tokio::test]
async fn a_socket_whose_client_does_not_read_ends_with_its_token() {
    let server = Running::start(with(guarded())).await;
    let mut client = acknowledged(&server, json!({ "token": Signer::secret().sign("any", &ada(SHORT)) })).await;
    client.subscribe("1", CHANGES, json!({})).await;
    let name = "x".repeat(1 << 16);
    let open = async || {
        let metrics = server.get("/metrics", &Headers::new()).await.body;
        metrics.contains("tidewire_websockets 1\n")
    };
    // Fill the socket. The default patience with its client is a minute, and this test's is shorter.
    for number in 0..400 {
        add_food(&server.recorder, &format!("{number} {name}")).await;
    }
    eventually(async || !open().await).await;
}

#[tokio::test]
async fn a_ping_with_a_newer_token_lets_a_socket_live_on() {
    let server = Running::start(with(guarded())).await;
    let mut client = acknowledged(&server, json!({ "token": Signer::secret().sign("any", &ada(SHORT)) })).await;
    client.subscribe("1", CHANGES, json!({})).await;
    client.event("foodChanges").await;
    let mut claims = ada(600);
    claims["iat"] = json!(from_now(0));
    claims["jti"] = json!("another");
    let newer = Signer::secret().sign("any", &claims);
    client.send(json!({ "type": "ping", "payload": { "authorization": format!("Bearer {newer}") } })).await;
    assert_eq!(client.next().await, json!({ "type": "pong" }));
    // A second socket with the first token tells when that is over.
    let mut other = acknowledged(&server, json!({ "token": Signer::secret().sign("any", &ada(SHORT)) })).await;
    assert_eq!(other.closed().await, Some(4403));
    add_food(&server.recorder, "fish").await;
    assert_eq!(client.event("foodChanges").await["changes"][0]["node"]["name"], "fish");
    // Any other ping is only that.
    for payload in [Value::Null, json!({}), json!({ "token": null, "a": 1 })] {
        client.send(json!({ "type": "ping", "payload": payload })).await;
        assert_eq!(client.next().await, json!({ "type": "pong" }));
    }
}

#[tokio::test]
async fn a_ping_with_the_token_of_another_viewer_ends_the_socket() {
    let server = Running::start(with(guarded())).await;
    let (mut other, mut more, mut claim) = (ada(600), ada(600), ada(600));
    other["sub"] = json!("bob");
    more["roles"] = json!(["reader", "admin"]);
    claim["org"] = json!(7);
    let tokens = [other, more, claim, ada(-5)].map(|claims| Signer::secret().sign("any", &claims));
    for token in tokens.into_iter().chain(["garbage".to_owned()]) {
        let mut client = acknowledged(&server, json!({ "token": Signer::secret().sign("any", &ada(60)) })).await;
        client.send(json!({ "type": "ping", "payload": { "token": token } })).await;
        assert_eq!(client.closed().await, Some(4403), "{token}");
    }
}

#[tokio::test]
async fn a_stream_of_events_ends_with_its_token() {
    let server = Running::start(with(guarded())).await;
    let mut headers = bearer(&Signer::secret().sign("any", &ada(SHORT)));
    headers.insert("accept", "text/event-stream".into());
    let answer = server.ask(CHANGES, &headers).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.body.starts_with("event: next\n") && !answer.body.contains("complete"), "{}", answer.body);
}

#[tokio::test]
async fn metrics_may_ask_for_a_role() {
    let mut authentication = guarded();
    authentication.metrics_role = Some("metrics".into());
    let (key, hash) = ApiKey::generate().unwrap();
    authentication.api_keys.push(ApiKey::new("prometheus", ["metrics"], &hash).unwrap());
    let server = Running::start(with(authentication)).await;
    let status = async |headers: Headers| server.get("/metrics", &headers).await.status;
    assert_eq!(status(Headers::new()).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(bearer("bad")).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(bearer(&Signer::secret().sign("any", &ada(60)))).await, StatusCode::FORBIDDEN);
    assert_eq!(status(header("authorization", format!("ApiKey {key}"))).await, StatusCode::OK);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(server.get(path, &Headers::new()).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn without_authentication_credentials_mean_nothing() {
    let server = Running::start(ServerOptions::default()).await;
    assert_eq!(server.ask(QUERY, &bearer("whatever")).await.status, StatusCode::OK);
    acknowledged(&server, json!({ "token": "whatever" })).await.close().await;
}
