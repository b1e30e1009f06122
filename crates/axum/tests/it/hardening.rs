//! What clients may not do, and clients who mean harm.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{HeaderMap, Request, StatusCode},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tidewire_axum::{Persisted, Quota, Rate, Server, ServerOptions, Tls};
use tidewire_testkit::{WebSocketClient, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{self, ClientConfig, RootCertStore, pki_types::CertificateDer},
};
use tokio_tungstenite::tungstenite::{Error, client::IntoClientRequest};
use tower::ServiceExt;

use crate::support::{Running, zoo};

/// The routes, asked as by a client at an address.
struct Routes {
    router: Router,
    _rest: (tidewire_testkit::TestDatabase, tidewire_outbox::Recorder),
}

impl Routes {
    async fn new(options: ServerOptions) -> Self {
        let (database, recorder, api) = zoo().await;
        Self { router: Server::new(api, options).router(), _rest: (database, recorder) }
    }

    async fn send(&self, mut request: Request<Body>) -> (StatusCode, HeaderMap, String) {
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([192, 0, 2, 1], 4711))));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn post(&self, headers: &[(&str, &str)], body: impl ToString) -> (StatusCode, HeaderMap, String) {
        let mut request = Request::post("/graphql").header("host", "db.example");
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
    }

    async fn get(&self, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, String) {
        let request = Request::get("/graphql?query=%7B__typename%7D").header("host", "db.example");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        self.send(request.body(Body::empty()).unwrap()).await
    }
}

fn typename() -> Value {
    json!({ "query": "{ __typename }" })
}

/// The status that an upgrade with this origin is refused with, if it is.
async fn refused(server: &Running, origin: Option<&str>) -> Option<u16> {
    let mut request = server.websocket().into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "graphql-transport-ws".parse().unwrap());
    if let Some(origin) = origin {
        request.headers_mut().insert("origin", origin.parse().unwrap());
    }
    match tokio_tungstenite::connect_async(request).await {
        Ok(_) => None,
        Err(Error::Http(response)) => Some(response.status().as_u16()),
        Err(other) => panic!("{other}"),
    }
}

/// Cross-site WebSocket hijacking: browsers let any page open a WebSocket to any server.
#[tokio::test]
async fn a_page_of_another_origin_gets_no_websocket() {
    let mut options = ServerOptions::default();
    options.origins = vec!["https://app.example".into()];
    let server = Running::start(options).await;
    let own = format!("http://{}", server.address);
    for (origin, status) in [
        (None, None),
        (Some(own.as_str()), None),
        (Some("https://app.example"), None),
        (Some("https://evil.example"), Some(403)),
        (Some("http://app.example"), Some(403)),
        (Some("null"), Some(403)),
    ] {
        assert_eq!(refused(&server, origin).await, status, "{origin:?}");
    }
    let mut listed = ServerOptions::default();
    listed.same_host = false;
    let server = Running::start(listed).await;
    assert_eq!(refused(&server, Some(&format!("http://{}", server.address))).await, Some(403));
    assert_eq!(refused(&server, None).await, None);
}

#[tokio::test]
async fn pages_of_listed_origins_read_answers_and_others_are_refused() {
    let mut options = ServerOptions::default();
    options.origins = vec!["https://app.example".into()];
    let routes = Routes::new(options).await;
    let preflight = async |origin: &str| {
        let request = Request::options("/graphql")
            .header("host", "db.example")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type");
        routes.send(request.body(Body::empty()).unwrap()).await.1
    };
    let headers = preflight("https://app.example").await;
    assert_eq!(headers["access-control-allow-origin"], "https://app.example");
    assert_eq!(headers["access-control-allow-headers"], "authorization,content-type");
    assert!(!headers.contains_key("access-control-allow-credentials"));
    assert!(!preflight("https://evil.example").await.contains_key("access-control-allow-origin"));

    let (status, headers, _) = routes.post(&[("origin", "https://app.example")], typename()).await;
    assert_eq!(
        (status, &headers["access-control-allow-origin"]),
        (StatusCode::OK, &"https://app.example".parse().unwrap())
    );
    assert_eq!(routes.post(&[("origin", "https://db.example")], typename()).await.0, StatusCode::OK);
    let (status, headers, body) = routes.post(&[("origin", "https://evil.example")], typename()).await;
    assert!(status == StatusCode::FORBIDDEN && body.contains("FORBIDDEN"), "{body}");
    assert!(!headers.contains_key("access-control-allow-origin"));
    for (headers, status) in [
        // A browser's own address bar, a script of the page itself, an event source, an image, a program.
        (vec![("sec-fetch-site", "none")], 200),
        (vec![("sec-fetch-site", "same-origin")], 200),
        (vec![("origin", "https://evil.example"), ("accept", "text/event-stream")], 403),
        (vec![("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], 403),
        (vec![("sec-fetch-site", "same-site")], 403),
        (vec![], 200),
    ] {
        assert_eq!(routes.get(&headers).await.0, status, "{headers:?}");
    }
}

#[tokio::test]
async fn only_plain_json_of_one_request_is_read() {
    let routes = Routes::new(ServerOptions::default()).await;
    for (header, status) in [
        (("content-type", "application/x-www-form-urlencoded"), 415),
        (("content-type", "text/plain"), 415),
        (("content-type", "multipart/form-data; boundary=x"), 415),
        (("content-encoding", "gzip"), 415),
        (("content-encoding", "br"), 415),
        (("content-encoding", "identity"), 200),
    ] {
        let (answered, _, body) = routes.post(&[header], typename()).await;
        assert_eq!(answered, status, "{header:?}: {body}");
    }
    let batch = json!([typename(), typename()]);
    let (status, _, body) = routes.post(&[], &batch).await;
    assert!(
        status == StatusCode::BAD_REQUEST && body.contains("LIMIT_EXCEEDED") && body.contains("max_batch"),
        "{body}"
    );

    let mut options = ServerOptions::default();
    options.max_batch = 3;
    let routes = Routes::new(options).await;
    let mixed = json!([typename(), { "query": "{ nope }" }, {}]);
    let (status, _, body) = routes.post(&[], mixed).await;
    let answers: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &answers[0]), (StatusCode::OK, &json!({ "data": { "__typename": "Query" } })));
    assert_eq!(answers[1]["errors"][0]["extensions"]["code"], "GRAPHQL_VALIDATION_FAILED");
    assert_eq!(answers[2]["errors"][0]["extensions"]["code"], "BAD_REQUEST");
    let (status, _, body) = routes.post(&[], json!([{}, {}, {}, {}])).await;
    assert!(status == StatusCode::BAD_REQUEST && body.contains("more than 3 requests (`max_batch`)"), "{body}");
}

#[tokio::test]
async fn browsers_are_told_to_take_answers_for_what_they_are() {
    let routes = Routes::new(ServerOptions::default()).await;
    let page = routes.send(Request::get("/").body(Body::empty()).unwrap()).await.1;
    for directive in ["default-src 'self'", "frame-ancestors 'none'", "form-action 'none'"] {
        assert!(page["content-security-policy"].to_str().unwrap().contains(directive), "{page:?}");
    }
    let answer = routes.post(&[], typename()).await.1;
    assert_eq!(answer["cache-control"], "no-store");
    let nothing = routes.send(Request::get("/nothing").body(Body::empty()).unwrap()).await.1;
    for headers in [page, answer, nothing] {
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["referrer-policy"], "no-referrer");
    }
}

fn quota(connections: Option<usize>, operations: Option<usize>, rate: Option<(f64, u32)>) -> Quota {
    Quota { connections, operations, rate: rate.map(|(per_second, burst)| Rate { per_second, burst }) }
}

#[tokio::test]
async fn a_client_that_asks_too_often_is_told_when_to_come_back() {
    let mut options = ServerOptions::default();
    options.quotas.address = quota(None, None, Some((0.01, 2)));
    options.quotas.trusted_proxies = vec!["192.0.2.0/24".parse().unwrap()];
    options.max_batch = 10;
    let routes = Routes::new(options).await;
    let ask = async |client: &str| routes.post(&[("x-forwarded-for", client)], typename()).await;
    for _ in 0..2 {
        assert_eq!(ask("198.51.100.1").await.0, StatusCode::OK);
    }
    let (status, headers, body) = ask("198.51.100.1").await;
    assert!(status == StatusCode::TOO_MANY_REQUESTS && body.contains("LIMIT_EXCEEDED"), "{body}");
    let wait: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((95..=200).contains(&wait), "{wait}");
    assert_eq!(ask("198.51.100.2").await.0, StatusCode::OK, "another client of the same proxy");
    let (_, _, body) =
        routes.post(&[("x-forwarded-for", "198.51.100.3")], json!([typename(), typename(), typename()])).await;
    assert_eq!((body.matches("\"data\"").count(), body.matches("LIMIT_EXCEEDED").count()), (2, 1), "{body}");
}

#[tokio::test]
async fn a_client_has_so_many_connections_and_operations() {
    let mut options = ServerOptions::default();
    options.quotas.address = quota(Some(2), Some(3), None);
    options.actor_header = Some("x-user".parse().unwrap());
    let server = Running::start(options).await;
    let changes = "subscription { foodChanges { sequence } }";
    let mut first = WebSocketClient::connect(&server.websocket()).await;
    let mut second = WebSocketClient::connect(&server.websocket()).await;
    assert_eq!(refused(&server, None).await, Some(429));
    for id in ["1", "2"] {
        first.subscribe(id, changes, json!({})).await;
        first.event("foodChanges").await;
    }
    second.subscribe("1", changes, json!({})).await;
    second.event("foodChanges").await;
    second.subscribe("2", changes, json!({})).await;
    let error = second.next().await;
    let extensions = &error["payload"][0]["extensions"];
    assert_eq!(
        (&error["type"], &error["id"], &extensions["code"]),
        (&json!("error"), &json!("2"), &json!("LIMIT_EXCEEDED"))
    );
    assert!(extensions["retryAfterMs"].as_u64() >= Some(5_000), "{error}");
    // What has ended makes room.
    first.send(json!({ "type": "complete", "id": "1" })).await;
    first.subscribe("1", "{ __typename }", json!({})).await;
    first.payload().await;
    second.subscribe("2", changes, json!({})).await;
    second.event("foodChanges").await;
}

#[tokio::test]
async fn a_thousand_operations_on_one_socket_are_too_many() {
    let server = Running::start(ServerOptions::default()).await;
    let mut client = WebSocketClient::connect(&server.websocket()).await;
    for id in 0..1_000 {
        client.subscribe(&id.to_string(), "subscription { foodChanges { sequence } }", json!({})).await;
    }
    let (mut begun, mut refused) = (0, 0);
    while begun + refused < 1_000 {
        match client.next().await["type"].as_str() {
            Some("next") => begun += 1,
            Some("error") => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((begun, refused), (100, 900));
    client.close().await;
}

#[tokio::test]
async fn operations_may_be_named_by_their_hash_and_all_others_refused() {
    // sha256sum of `{ __typename }`
    let hash = "7f56e67dd21ab3f30d1ff8b7bed08893f0a0db86449836189b361dd1e56ddb4b";
    let known = Persisted::new([("typename".to_owned(), "{ __typename }".to_owned())]);
    let by_hash = |hash: &str| json!({ "extensions": { "persistedQuery": { "version": 1, "sha256Hash": hash } } });
    let unknown = json!({ "documentId": "sha256:00" });
    let other = json!({ "query": "{ food { nodes { name } } }" });
    let mut options = ServerOptions::default();
    options.persisted = Some(known.clone());
    let open = Routes::new(options.clone()).await;
    options.persisted = Some(known.only());
    let closed = Routes::new(options.clone()).await;
    let without = Routes::new(ServerOptions::default()).await;
    for (routes, body, code) in [
        (&open, by_hash(hash), ""),
        (&open, json!({ "documentId": format!("sha256:{hash}") }), ""),
        (&open, json!({ "documentId": "typename" }), ""),
        (&open, json!({ "query": "{ __typename }", "documentId": hash }), ""),
        (&open, unknown.clone(), "PERSISTED_QUERY_NOT_FOUND"),
        (&open, other.clone(), ""),
        (&open, json!({ "query": "{ food { nodes { name } } }", "documentId": hash }), "BAD_REQUEST"),
        (&open, json!({}), "BAD_REQUEST"),
        (&closed, by_hash(hash), ""),
        (&closed, typename(), ""),
        (&closed, unknown, "PERSISTED_QUERY_NOT_FOUND"),
        (&closed, other.clone(), "OPERATION_NOT_ALLOWED"),
        (&closed, json!({ "query": "{ food { nodes { name } } }", "documentId": hash }), "OPERATION_NOT_ALLOWED"),
        (&without, by_hash(hash), "PERSISTED_QUERY_NOT_FOUND"),
    ] {
        let (_, _, answer) = routes.post(&[], &body).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let found = answer["errors"][0]["extensions"]["code"].as_str().unwrap_or_default();
        assert_eq!(found, code, "{body}: {answer}");
    }
    let server = Running::start(options).await;
    let mut client = WebSocketClient::connect(&server.websocket()).await;
    client.send(json!({ "type": "subscribe", "id": "1", "payload": by_hash(hash) })).await;
    assert_eq!(client.payload().await["data"]["__typename"], "Query");
    client.next().await;
    client.send(json!({ "type": "subscribe", "id": "1", "payload": other })).await;
    assert_eq!(client.next().await["payload"][0]["extensions"]["code"], "OPERATION_NOT_ALLOWED");
}

/// Sends some bytes and gives what comes back until the server closes.
async fn dribble(server: &Running, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A connection that is reset is closed too.
    let _ = soon(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Slow-loris: a client that holds a place and says nothing, or never the last word.
#[tokio::test]
async fn clients_that_never_come_to_an_end_are_not_waited_for() {
    let mut options = ServerOptions::default();
    options.header_timeout = Duration::from_millis(200);
    options.body_timeout = Duration::from_millis(200);
    options.keep_alive = Duration::from_millis(100);
    let server = Running::start(options).await;
    let head = "POST /graphql HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    for silent in ["", "P", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nhost: x\r\nx-a: "] {
        let answer = dribble(&server, silent.as_bytes()).await;
        assert!(answer.is_empty() || answer.contains(" 408 "), "{silent}: {answer}");
    }
    let half = format!("{head}connection: close\r\ncontent-length: 100\r\n\r\n{{\"query\":");
    assert!(dribble(&server, half.as_bytes()).await.starts_with("HTTP/1.1 408 "));
    // One request was answered; the next never comes to an end.
    let second = format!("{head}content-length: 26\r\n\r\n{{\"query\":\"{{ __typename }}\"}}GET / HT");
    assert!(dribble(&server, second.as_bytes()).await.starts_with("HTTP/1.1 200 "));
    // Half a frame.
    let mut socket = WebSocketClient::connect(&server.websocket()).await;
    socket.tcp().write_all(&[0x81, 0xfe, 0x01, 0x00, 1, 2, 3, 4, 5]).await.unwrap();
    let mut rest = Vec::new();
    let _ = soon(socket.tcp().read_to_end(&mut rest)).await;
}

/// What is announced as too large is refused before it is there.
#[tokio::test]
async fn a_gibibyte_is_refused_when_it_is_announced() {
    let server = Running::start(ServerOptions::default()).await;
    let head = "POST /graphql HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 1073741824\r\n\r\n";
    assert!(dribble(&server, head.as_bytes()).await.starts_with("HTTP/1.1 413 "));
    let mut socket = WebSocketClient::connect(&server.websocket()).await;
    // A text frame with a length of 64 bits: 1 GiB.
    socket.tcp().write_all(&[0x81, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0, 1, 2, 3, 4]).await.unwrap();
    assert_eq!(socket.closed().await, Some(1009));
}

/// TLS from files, which may be replaced while the server runs.
#[tokio::test]
async fn the_server_speaks_tls_and_reads_its_certificate_again() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
    let issue = || {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        made.cert.der().clone()
    };
    let first = issue();
    let tls = Tls::load(&certificate, &key).unwrap();
    let mut options = ServerOptions::default();
    options.tls = Some(tls.clone());
    options.header_timeout = Duration::from_millis(500);
    let server = Running::start(options).await;
    assert!(ask_by_tls(&server, &first).await.unwrap().starts_with("HTTP/1.1 200 "));
    // Who does not come to terms is not waited for.
    assert_eq!(dribble(&server, b"").await, "");
    let second = issue();
    tls.reload().unwrap();
    assert!(ask_by_tls(&server, &first).await.is_err(), "another certificate is shown");
    assert!(ask_by_tls(&server, &second).await.unwrap().contains("__typename"));
    std::fs::write(&key, "nonsense").unwrap();
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("key.pem") && !error.contains("nonsense"), "{error}");
    assert!(ask_by_tls(&server, &second).await.is_ok(), "what was read before goes on");
}

/// Asks as a client that trusts one certificate.
async fn ask_by_tls(server: &Running, trusted: &CertificateDer<'static>) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(server.address).await?;
    let mut stream =
        soon(TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream)).await?;
    let body = typename().to_string();
    let head = "POST /graphql HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n";
    stream.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await?;
    Ok(answer)
}
