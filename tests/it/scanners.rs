//! What those look for who scan servers for the usual weaknesses of GraphQL: with `production = true` they find nothing. The names are those of
//! the tests of graphql-cop.

use serde_json::{Value, json};
use tidewire_testkit::{eventually, soon};

use crate::binary::{Running, Workplace};

/// A server as strangers would meet it, and what it says.
struct Scanned {
    _place: Workplace,
    server: Running,
    client: reqwest::Client,
}

impl Scanned {
    async fn start() -> Self {
        let place = Workplace::new();
        place.settings("[server]\nproduction = true\n");
        place.seed(20).await;
        let server = place.serve().await;
        Self { _place: place, server, client: reqwest::Client::new() }
    }

    async fn text(request: reqwest::RequestBuilder) -> (u16, String) {
        let response = soon(request.send()).await.unwrap();
        (response.status().as_u16(), soon(response.text()).await.unwrap())
    }

    async fn send(&self, body: &Value) -> Value {
        let (_, text) = Self::text(self.client.post(self.server.http()).json(body)).await;
        serde_json::from_str(&text).unwrap()
    }

    async fn ask(&self, query: &str) -> Value {
        self.send(&json!({ "query": query })).await
    }

    /// Refused as a whole, with this code.
    async fn refuses(&self, query: &str, code: &str) {
        let answer = self.ask(query).await;
        let start: String = query.chars().take(60).collect();
        assert!(answer.get("data").is_none(), "{start}: {answer}");
        assert_eq!(answer["errors"].as_array().unwrap().len(), 1, "{start}: {answer}");
        assert_eq!(answer["errors"][0]["extensions"]["code"], code, "{start}: {answer}");
    }
}

#[tokio::test]
async fn what_overloads_a_server_is_refused() {
    let scanned = Scanned::start().await;
    // Alias overloading
    let aliases: String = (0..=100).map(|n| format!("alias{n}:__typename ")).collect();
    scanned.refuses(&format!("query cop {{ {aliases} }}"), "LIMIT_EXCEEDED").await;
    let aliases: String = (0..=100).map(|n| format!("alias{n}:title ")).collect();
    scanned.refuses(&format!("query cop {{ task {{ nodes {{ {aliases} }} }} }}"), "LIMIT_EXCEEDED").await;
    // Array-based query batching
    let batch = vec![json!({ "query": "query cop { __typename }" }); 10];
    let answer = scanned.send(&json!(batch)).await;
    assert_eq!(answer["errors"][0]["extensions"]["code"], "LIMIT_EXCEEDED", "{answer}");
    // Directive overloading
    scanned.refuses("query cop { __typename @aa@aa@aa@aa@aa@aa@aa@aa@aa@aa }", "LIMIT_EXCEEDED").await;
    // Circular fragments
    let circular = "query cop { ...A } fragment A on Query { __typename ...B } fragment B on Query { ...A }";
    scanned.refuses(circular, "GRAPHQL_VALIDATION_FAILED").await;
    // Circular introspection: `types` of `fields` of `types`, deeper and deeper
    let deep =
        format!("query cop {{ __schema {{ types {{ {} name {} }} }} }}", "fields { type { ".repeat(5), "} }".repeat(5));
    let answer = scanned.ask(&deep).await;
    assert!(answer["data"]["__schema"]["types"].is_null(), "{answer}");
    // Field duplication
    scanned.refuses(&format!("query cop {{ {} }}", "__typename \n".repeat(500)), "LIMIT_EXCEEDED").await;
    // Lists inside lists
    let lists = "query cop { task { nodes { comment { nodes { task { comment { nodes { id } } } } } } } }";
    scanned.refuses(lists, "LIMIT_EXCEEDED").await;
    assert_eq!(scanned.ask("query cop { __typename }").await, json!({ "data": { "__typename": "Query" } }));
}

#[tokio::test]
async fn what_tells_of_the_schema_or_the_server_is_not_there() {
    let scanned = Scanned::start().await;
    // Introspection
    for query in [
        "query cop { __schema { types { name fields { name } } } }",
        "{ __type(name: \"Task\") { name fields { name } } }",
        "{ ...a } fragment a on Query { s: __schema { queryType { name } } }",
        "mutation { __schema { queryType { name } } }",
    ] {
        let answer = scanned.ask(query).await.to_string();
        for name in ["taskByPk", "Task\"", "projectId"] {
            assert!(!answer.contains(name), "{query}: {answer}");
        }
    }
    // Field suggestions, for fields, arguments, types, enumerations and inputs
    for query in [
        "query cop { __schema { directive } }",
        "{ tsk { nodes { title } } }",
        "{ task { nodes { titel } } }",
        "{ task(filterz: {}) { nodes { title } } }",
        "{ task(filters: { titel: { eq: \"a\" } }) { nodes { title } } }",
        "{ task(filters: { title: { equ: \"a\" } }) { nodes { title } } }",
        "{ task(orderBy: { title: ASCC }) { nodes { title } } }",
        "query ($a: TaskFilterInpt) { task(filters: $a) { nodes { title } } }",
        "{ ... on Queri { __typename } }",
        "mutation { taskCreateOn { id } }",
    ] {
        let answer = scanned.ask(query).await.to_string();
        assert!(!answer.contains("Did you mean"), "{query}: {answer}");
    }
    // Trace and debug data, unhandled errors
    for query in
        ["query cop { __typename }", "qwerty cop { abc }", "{ task(filters: { id: { eq: 1 } }) { nodes { id } } }", ""]
    {
        let answer = scanned.ask(query).await.to_string();
        for word in ["tracing", "exception", "stacktrace", "panicked", ".rs", "SELECT", "sqlite"] {
            assert!(!answer.contains(word), "{query}: {answer}");
        }
    }
    // GraphiQL, playgrounds and the like
    for path in
        ["/", "/graphiql", "/graphiql/", "/playground", "/console", "/graphql", "/altair", "/voyager", "/page.js"]
    {
        let request =
            scanned.client.get(format!("http://{}{path}", scanned.server.address)).header("accept", "text/html");
        let (status, text) = Scanned::text(request).await;
        assert!(status >= 400 && !text.contains('<'), "{path}: {status} {text}");
    }
}

#[tokio::test]
async fn what_pages_of_other_sites_may_send_does_nothing() {
    let scanned = Scanned::start().await;
    let url = scanned.server.http();
    let get = |query: &str| scanned.client.get(format!("{url}?query={query}"));
    // Queries and mutations by GET
    for request in [
        get("query%20cop%7B__typename%7D"),
        get("mutation%20cop%7B__typename%7D"),
        get("mutation%20cop%7B__typename%7D").header("accept", "text/event-stream"),
    ] {
        let (status, text) = Scanned::text(request).await;
        assert!(status == 405 && !text.contains("data"), "{status} {text}");
    }
    // Forms
    let form = "query=query%20cop%20%7B__typename%7D";
    for kind in ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=a"] {
        let request = scanned.client.post(&url).header("content-type", kind).body(form);
        let (status, text) = Scanned::text(request).await;
        assert!(status == 415 && !text.contains("data"), "{kind}: {status} {text}");
    }
    let request = scanned.client.post(format!("{url}?query=%7B__typename%7D")).body("");
    assert_eq!(Scanned::text(request).await.0, 415);
    // Scripts, those of the server's own name among them, which a site can give to any address
    for origin in ["https://evil.example", "null", &format!("http://{}", scanned.server.address)] {
        let request = scanned.client.post(&url).header("origin", origin).json(&json!({ "query": "{ __typename }" }));
        let response = soon(request.send()).await.unwrap();
        assert_eq!(response.status().as_u16(), 403, "{origin}");
        assert!(!response.headers().contains_key("access-control-allow-origin"));
    }
}

/// What is risky is said, in the log of a server and by the doctor.
#[tokio::test]
async fn risks_are_told() {
    let place = Workplace::new();
    place.settings(
        "[server]\nproduction = true\norigins = [\"https://app.example\"]\ntrusted_proxies = [\"10.0.0.1\"]\n\
         [auth]\nsecret = \"as many bytes as a secret has to have\"\naudiences = [\"us\"]\n",
    );
    place.succeed(&["migrate", "up"]).await;
    let doctor = place.succeed(&["doctor"]).await;
    assert!(!doctor.contains("note "), "{doctor}");
    place.settings("[server]\nproduction = true\norigins = [\"*\"]\npage = true\nlisten = \"0.0.0.0:0\"\n[graphql]\nintrospection = true\nmax_complexity = 0\n");
    let doctor = place.succeed(&["doctor"]).await;
    for setting in ["`origins`", "`page`", "`introspection`", "`max_complexity`", "`tls_certificate`"] {
        assert!(doctor.contains(setting), "{setting}: {doctor}");
    }
    place.settings("[server]\nlisten = \"0.0.0.0:0\"\n");
    let doctor = place.succeed(&["doctor"]).await;
    assert!(doctor.contains("`production` in [server] is not set"), "{doctor}");
    place.settings("[server]\norigins = [\"app.example\"]\n");
    let (success, text) = place.run(&["serve", "--listen", "127.0.0.1:0"]).await;
    assert!(!success && text.contains("app.example is no origin"), "{text}");
}

/// The program speaks TLS where its settings name a certificate, and reads that again when it is told to.
#[tokio::test]
async fn tls_comes_by_settings_and_its_certificate_again_by_a_signal() {
    let place = Workplace::new();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(place.path().join("certificate.pem"), made.cert.pem()).unwrap();
    std::fs::write(place.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    place.settings("[server]\ntls_certificate = \"certificate.pem\"\ntls_key = \"key.pem\"\n");
    let log = place.path().join("log");
    let mut command = place.command(&["serve", "--listen", "127.0.0.1:0"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::fs::File::create(&log).unwrap());
    let server = Running::start(command).await;
    assert!(server.address.starts_with("https://127.0.0.1:"), "{}", server.address);
    let says = async |text: &str| eventually(async || std::fs::read_to_string(&log).unwrap().contains(text)).await;
    server.signal("HUP");
    says("has been read again").await;
    std::fs::write(place.path().join("key.pem"), "nonsense").unwrap();
    server.signal("HUP");
    says("cannot be read again").await;
    server.signal("TERM");
    assert!(server.ended().await);
}
