//! GraphQL over HTTP, by its specification.

use axum::{
    Router,
    body::Body,
    http::{Request, Response, StatusCode},
};
use http_body_util::BodyExt;
use tidewire_axum::{Server, ServerOptions};
use tower::ServiceExt;

use crate::support::{add_food, zoo};

const JSON: &str = "application/json";
const RESPONSE: &str = "application/graphql-response+json";

struct Client {
    router: Router,
    _rest: (tidewire_testkit::TestDatabase, tidewire_outbox::Recorder),
}

impl Client {
    async fn new() -> Self {
        let (database, recorder, api) = zoo().await;
        let mut options = ServerOptions::default();
        options.max_body_bytes = 100_000;
        options.actor_header = Some("x-user".parse().unwrap());
        Self { router: Server::new(api, options).router(), _rest: (database, recorder) }
    }

    async fn send(&self, request: Request<Body>) -> (StatusCode, String, String) {
        let response: Response<_> = self.router.clone().oneshot(request).await.unwrap();
        let content_type =
            response.headers().get("content-type").map_or("", |value| value.to_str().unwrap()).to_owned();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, content_type, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn post(&self, accept: &str, content_type: &str, body: &str) -> (StatusCode, String, String) {
        let request = Request::post("/graphql").header("accept", accept).header("content-type", content_type);
        self.send(request.body(Body::from(body.to_owned())).unwrap()).await
    }

    async fn get(&self, accept: &str, query: &str) -> (StatusCode, String, String) {
        let request = Request::get(format!("/graphql?{query}")).header("accept", accept);
        self.send(request.body(Body::empty()).unwrap()).await
    }
}

const FOODS: &str = r#"{"data":{"food":{"nodes":[{"name":"meat"}]}}}"#;

#[tokio::test]
async fn a_query_is_answered_in_the_form_that_the_client_accepts() {
    let client = Client::new().await;
    let body = r#"{"query":"{ food { nodes { name } } }"}"#;
    for (accept, answered) in [
        (RESPONSE, RESPONSE),
        (JSON, JSON),
        ("*/*", JSON),
        ("application/*;q=0.5", JSON),
        ("application/json;q=0.9, application/graphql-response+json", RESPONSE),
        ("application/graphql-response+json; charset=utf-8, application/json; charset=utf-8", RESPONSE),
        ("text/html, application/json", JSON),
    ] {
        let (status, content_type, answer) = client.post(accept, JSON, body).await;
        assert_eq!((status, answer.as_str()), (StatusCode::OK, FOODS), "{accept}");
        assert_eq!(content_type, format!("{answered}; charset=utf-8"), "{accept}");
    }
    let (status, ..) = client.post("text/html", JSON, body).await;
    assert_eq!(status, StatusCode::NOT_ACCEPTABLE);
}

#[tokio::test]
async fn a_query_may_come_by_get_and_a_mutation_may_not() {
    let client = Client::new().await;
    let (status, _, answer) = client
        .get(RESPONSE, "query=query%20A(%24n%3AString)%7Bfood(filters%3A%7Bname%3A%7Beq%3A%24n%7D%7D)%7Bnodes%7Bname%7D%7D%7D&variables=%7B%22n%22%3A%22meat%22%7D&operationName=A&extensions=%7B%7D")
        .await;
    assert_eq!((status, answer.as_str()), (StatusCode::OK, FOODS));
    for accept in [RESPONSE, JSON, "text/event-stream"] {
        let (status, _, answer) = client.get(accept, "query=mutation%7BfoodDelete%7D").await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{accept}");
        assert!(answer.contains("OPERATION_NOT_ALLOWED"), "{answer}");
    }
    let (_, _, answer) = client.get(JSON, "query=%7Bfood%7Bnodes%7Bname%7D%7D%7D").await;
    assert_eq!(answer, FOODS, "nothing was deleted");
    for query in
        ["", "variables=%7B%7D", "query=%7B__typename%7D&variables=x", "query=%7B__typename%7D&variables=%5B%5D"]
    {
        assert_eq!(client.get(RESPONSE, query).await.0, StatusCode::BAD_REQUEST, "{query}");
    }
    let request = Request::put("/graphql").body(Body::empty()).unwrap();
    assert_eq!(client.send(request).await.0, StatusCode::METHOD_NOT_ALLOWED);
    let request = Request::options("/graphql").body(Body::empty()).unwrap();
    assert_eq!(client.send(request).await.0, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn the_status_tells_whether_the_request_was_understood() {
    let client = Client::new().await;
    for (body, new, old) in [
        // Understood, though it fails.
        (r#"{"query":"{ food(pagination: { page: { page: 0, limit: 0 } }) { nodes { name } } }"}"#, 200, 200),
        (
            r#"{"query":"{ food { nodes { name } } }","variables":null,"operationName":null,"extensions":null}"#,
            200,
            200,
        ),
        // A well-formed request whose document is wrong.
        (r#"{"query":"{ food { nodes { nme } } }"}"#, 400, 200),
        (r#"{"query":"{ food"}"#, 400, 200),
        (r#"{"query":"subscription { food { nodes { name } } }"}"#, 400, 200),
        (r#"{"query":"query A { __typename } query B { __typename }"}"#, 400, 200),
        // Not a request at all.
        (r#"{"query":1}"#, 400, 400),
        (r#"{"qery":"{ __typename }"}"#, 400, 400),
        (r#"{"query":"{ __typename }","variables":[]}"#, 400, 400),
        (r#"{"query":"{ __typename }","variables":"x"}"#, 400, 400),
        (r#"{"query":"{ __typename }","extensions":[]}"#, 400, 400),
        ("[]", 400, 400),
        ("", 400, 400),
        ("\u{0}", 400, 400),
    ] {
        for (accept, expected) in [(RESPONSE, new), (JSON, old)] {
            let (status, content_type, answer) = client.post(accept, JSON, body).await;
            assert_eq!(status.as_u16(), expected, "{accept}: {body}: {answer}");
            assert!(content_type.starts_with(accept), "{content_type}");
            let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
            // Only an answer to a request that was understood has data, if only null.
            assert_eq!(answer.get("data").is_some(), new == 200, "{body}: {answer}");
        }
    }
    let query = r#"{"query":"{ __typename }"}"#;
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", ""] {
        let (status, ..) = client.post(JSON, content_type, query).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
    }
    let (status, ..) = client.post(JSON, "application/json; charset=UTF-8", query).await;
    assert_eq!(status, StatusCode::OK);
    let (status, _, answer) = client.post(JSON, JSON, &format!(r#"{{"query":"{}"}}"#, "x".repeat(10 << 20))).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(answer.contains("LIMIT_EXCEEDED"), "{answer}");
}

#[tokio::test]
async fn a_header_names_the_actor() {
    let client = Client::new().await;
    let (_, recorder) = &client._rest;
    let before = recorder.log().position().await.unwrap();
    let request = Request::post("/graphql").header("content-type", JSON).header("x-user", "ada");
    let body = r#"{"query":"mutation { foodCreateOne(data: { name: \"fish\" }) { name } }"}"#;
    let (_, _, answer) = client.send(request.body(Body::from(body)).unwrap()).await;
    assert_eq!(answer, r#"{"data":{"foodCreateOne":{"name":"fish"}}}"#);
    let mut follower = recorder.log().follow_all(before).await.unwrap();
    let tidewire_outbox::Step::Transactions { transactions, .. } = follower.next().await.unwrap() else { panic!() };
    assert_eq!(transactions[0].changes[0].actor.as_deref(), Some("user:ada"));
}

#[tokio::test]
async fn health_and_metrics_tell_how_it_goes() {
    let client = Client::new().await;
    let (_, recorder) = &client._rest;
    let get = async |path: &str| client.send(Request::get(path).body(Body::empty()).unwrap()).await;
    assert_eq!(get("/healthz").await.2, "ok\n");
    assert_eq!(get("/readyz").await.2, "ready\n");
    add_food(recorder, "fish").await;
    let (status, content_type, metrics) = get("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(content_type.starts_with("application/openmetrics-text"), "{content_type}");
    for line in ["tidewire_captured_changes_total 2", "tidewire_outbox_changes 2", "tidewire_subscriptions 0", "# EOF"]
    {
        assert!(metrics.lines().any(|known| known == line), "{line}\n{metrics}");
    }
    recorder.close().await;
    assert_eq!(get("/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get("/healthz").await.0, StatusCode::OK);
}
