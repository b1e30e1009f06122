//! Bad input: each gets the right error, and the server goes on.

use serde_json::json;
use tidewire_graphql::{Api, Options, Subscribed};

use crate::support::{Zoo, request};

#[tokio::test]
async fn what_is_too_large_or_wrong_is_refused() {
    let zoo = Zoo::populated().await;
    let deep = |levels: usize| {
        let filter = "{ not: ".repeat(levels) + "{ tame: { eq: true } }" + &" }".repeat(levels);
        format!("{{ animal(filters: {filter}) {{ nodes {{ name }} }} }}")
    };
    let nested = "{ animal { nodes ".to_owned()
        + &"{ keeper { animal { nodes ".repeat(12)
        + "{ name }"
        + &"} } }".repeat(12)
        + "} }";
    let mut bomb = String::from("{ animal { nodes { ...f0 } } }");
    for level in 0..25 {
        bomb.push_str(&format!(" fragment f{level} on Animal {{ ...f{0} ...f{0} }}", level + 1));
    }
    bomb.push_str(" fragment f25 on Animal { name }");
    for (query, code) in [
        (deep(10_000), "LIMIT_EXCEEDED"),
        (deep(200), "LIMIT_EXCEEDED"),
        (nested, "LIMIT_EXCEEDED"),
        (bomb, "LIMIT_EXCEEDED"),
        (format!("{{ animal {{ nodes {{ name }} }} }} #{}", "x".repeat(10 << 20)), "LIMIT_EXCEEDED"),
        ("{".repeat(100_000), "LIMIT_EXCEEDED"),
        (String::new(), "GRAPHQL_PARSE_FAILED"),
        ("{ animal".into(), "GRAPHQL_PARSE_FAILED"),
        ("🦀".into(), "GRAPHQL_PARSE_FAILED"),
        ("{ animal { nodes { nme } } }".into(), "GRAPHQL_VALIDATION_FAILED"),
        ("{ animal(filters: { nme: { eq: \"x\" } }) { nodes { name } } }".into(), "GRAPHQL_VALIDATION_FAILED"),
        ("{ animal(filters: { tame: { eq: \"x\" } }) { nodes { name } } }".into(), "GRAPHQL_VALIDATION_FAILED"),
        ("{ animal(orderBy: { name: UP }) { nodes { name } } }".into(), "GRAPHQL_VALIDATION_FAILED"),
        ("fragment a on Animal { ...a } { animal { nodes { ...a } } }".into(), "GRAPHQL_VALIDATION_FAILED"),
        ("{ animal(filters: { born: { gt: \"soon\" } }) { nodes { name } } }".into(), "BAD_USER_INPUT"),
        ("{ animal(filters: { price: { between: [\"1\"] } }) { nodes { name } } }".into(), "BAD_USER_INPUT"),
        ("{ animal(filters: { id: { eq: \"1\" } }) { nodes { name } } }".into(), "BAD_USER_INPUT"),
        ("{ animal(pagination: { page: { page: -1, limit: 1 } }) { nodes { name } } }".into(), "BAD_USER_INPUT"),
        ("{ animal(pagination: { offset: { offset: 0, limit: 0 } }) { nodes { name } } }".into(), "BAD_USER_INPUT"),
        (
            "{ animal(pagination: { cursor: { cursor: \"WzFd\", limit: 1 } }) { nodes { name } } }".into(),
            "BAD_USER_INPUT",
        ),
        (
            "{ animal(pagination: { cursor: { cursor: \"%%\", limit: 1 } }) { nodes { name } } }".into(),
            "BAD_USER_INPUT",
        ),
        ("query A { __typename } query B { __typename }".into(), "BAD_USER_INPUT"),
    ] {
        let error = zoo.error(&query, json!({})).await;
        let start: String = query.chars().take(100).collect();
        assert_eq!(error["extensions"]["code"], code, "{start}: {error}");
        assert!(error["message"].as_str().unwrap().len() < 300, "{start}: {error}");
    }
    // Variables are held against their types too.
    let query = "query ($filter: AnimalFilterInput, $n: Int!) { animal(filters: $filter, pagination: { page: { page: $n, limit: 1 } }) { nodes { name } } }";
    let mut deep = json!({ "tame": { "eq": true } });
    for _ in 0..100 {
        deep = json!({ "not": deep });
    }
    for (variables, code) in [
        (json!({}), "GRAPHQL_VALIDATION_FAILED"),
        (json!({ "n": "x" }), "GRAPHQL_VALIDATION_FAILED"),
        (json!({ "n": 0.5 }), "GRAPHQL_VALIDATION_FAILED"),
        (json!({ "n": null }), "GRAPHQL_VALIDATION_FAILED"),
        (json!({ "n": 0, "filter": { "nme": { "eq": "x" } } }), "GRAPHQL_VALIDATION_FAILED"),
        (json!({ "n": 0, "filter": [] }), "GRAPHQL_VALIDATION_FAILED"),
        (json!({ "n": 0, "filter": deep }), "BAD_USER_INPUT"),
    ] {
        let error = zoo.error(query, variables.clone()).await;
        assert_eq!(error["extensions"]["code"], code, "{variables}: {error}");
    }
    // And it still works.
    assert_eq!(
        zoo.data("{ food(filters: { name: { eq: \"meat\" } }) { nodes { name } } }").await["food"]["nodes"][0]["name"],
        "meat"
    );
}

/// Every refusal names what there is too much of, and the setting that says so.
#[tokio::test]
async fn each_limit_is_named_by_its_refusal() {
    let mut options = Options::default();
    options.max_document_bytes = 5_000;
    options.max_tokens = 1_000;
    options.max_fields = 200;
    options.max_variables_bytes = 1_000;
    let zoo = Zoo::with(options).await;
    let many = |count: usize, text: &dyn Fn(usize) -> String| (0..count).map(text).collect::<Vec<_>>().join(" ");
    let spread = |inside: &str| format!("{{ ...f }} fragment f on Query {{ {inside} }}");
    for (setting, query, variables) in [
        ("max_document_bytes", format!("{{ __typename }} # {}", "x".repeat(5_000)), json!({})),
        ("max_tokens", format!("{{ {} }}", "a ".repeat(999)), json!({})),
        ("max_nesting", "{ a ".repeat(65), json!({})),
        (
            "max_nesting",
            format!("{{ ...f0 }} {}", many(70, &|n| format!("fragment f{n} on Query {{ ...f{} }}", n + 1))),
            json!({}),
        ),
        ("max_definitions", many(101, &|n| format!("query q{n} {{ a }}")), json!({})),
        ("max_depth", format!("{}{}", "{ a ".repeat(21), "}".repeat(21)), json!({})),
        ("max_fields", format!("{{ animal {{ nodes {{ {} }} }} }}", "name ".repeat(199)), json!({})),
        ("max_root_fields", format!("{{ {} }}", "__typename ".repeat(51)), json!({})),
        ("max_root_fields", spread(&"__typename ".repeat(51)), json!({})),
        ("max_aliases", format!("{{ animal {{ nodes {{ {} }} }} }}", many(101, &|n| format!("a{n}: name"))), json!({})),
        ("max_directives", format!("{{ __typename {} }}", "@include(if: true) ".repeat(9)), json!({})),
        ("max_directives", format!("query {} {{ __typename }}", "@a ".repeat(9)), json!({})),
        ("max_operation_directives", format!("{{ {} }}", "__typename @a @b @c ".repeat(40)), json!({})),
        ("max_variables_bytes", "{ __typename }".into(), json!({ "a": ["x".repeat(500), { "b": "x".repeat(500) }] })),
    ] {
        let error = zoo.error(&query, variables).await;
        assert_eq!(error["extensions"]["code"], "LIMIT_EXCEEDED", "{setting}: {error}");
        assert!(error["message"].as_str().unwrap().contains(&format!("(`{setting}`)")), "{setting}: {error}");
    }
    assert_eq!(zoo.data("{ __typename }").await["__typename"], "Query");
}

/// A list counts as its page, or as what a list without one may have; lists inside lists multiply.
#[tokio::test]
async fn an_answer_is_no_larger_than_the_pages_that_are_asked_for() {
    let mut options = Options::default();
    options.max_complexity = Some(1_000);
    let zoo = Zoo::with(options).await;
    let page = |limit: u32| format!("pagination: {{ page: {{ page: 0, limit: {limit} }} }}");
    let nested = |outer: u32, inner: u32| {
        format!(
            "{{ keeper({}) {{ nodes {{ animal({}) {{ ...some }} }} }} }} fragment some on AnimalConnection {{ nodes {{ name id }} }}",
            page(outer),
            page(inner)
        )
    };
    zoo.data(&nested(10, 30)).await;
    zoo.data("{ animal { nodes { name } } }").await;
    let by_variable = "query ($page: PaginationInput, $n: Int! = 400) {
        animal(pagination: $page) { nodes { name } } food(pagination: { offset: { offset: 0, limit: $n } }) { nodes { name } } }";
    let small = json!({ "page": { "cursor": { "limit": 10 } }, "n": 10 });
    assert!(zoo.run(by_variable, small).await.get("errors").is_none());
    for (query, variables) in [
        (nested(10, 40), json!({})),
        (nested(1_000_000, 1_000_000), json!({})),
        ("{ keeper { nodes { animal { nodes { name } } } } }".into(), json!({})),
        (by_variable.into(), json!({ "page": { "page": { "page": 0, "limit": 200 } } })),
    ] {
        let error = zoo.error(&query, variables).await;
        assert_eq!(error["extensions"]["code"], "LIMIT_EXCEEDED", "{error}");
        assert!(error["message"].as_str().unwrap().contains("1000 fields (`max_complexity`)"), "{error}");
    }
    let patches = |limit| format!("subscription {{ animalLive({}) {{ upserts {{ node {{ name }} }} }} }}", page(limit));
    let viewer = tidewire_graphql::Viewer::default();
    assert!(zoo.subscribe_as(&viewer, &patches(300), json!({})).await.is_ok());
    let refused = zoo.subscribe_as(&viewer, &patches(500), json!({})).await.err().expect("it is refused");
    assert_eq!(refused["extensions"]["code"], "LIMIT_EXCEEDED");
}

#[tokio::test]
async fn introspection_can_be_turned_off() {
    let zoo = Zoo::populated().await;
    let query = "{ __schema { queryType { name } } __type(name: \"Animal\") { name } }";
    assert_eq!(zoo.data(query).await["__type"]["name"], "Animal");
    let mut options = Options::default();
    options.introspection = false;
    options.suggestions = false;
    let api = Api::builder(zoo.recorder.clone()).options(options).finish().unwrap();
    let answer = api.execute(request(query, json!({}))).await.json;
    assert!(!answer.contains("Animal\""), "{answer}");
    let answer = api.execute(request("{ animl { nodes { name } } }", json!({}))).await.json;
    assert!(!answer.contains("Did you mean"), "{answer}");
}

/// The specification allows a subscription one field.
#[tokio::test]
async fn a_subscription_has_one_field() {
    let zoo = Zoo::new().await;
    let query = "subscription { foodChanges { cursor } keeperChanges { cursor } }";
    match zoo.api.subscribe(request(query, json!({}))).await {
        Subscribed::Single(response) => {
            assert!(response.json.contains("GRAPHQL_VALIDATION_FAILED"), "{}", response.json);
        }
        Subscribed::Stream(_) => panic!("two fields were accepted"),
    }
}
