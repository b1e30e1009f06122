//! What a plan answers is what the resolvers answer, byte for byte.

use std::{fmt::Write as _, sync::Arc};

use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use sea_orm::{ActiveModelTrait, ConnectionTrait, IntoActiveModel, NotSet};
use serde_json::json;
use tidewire_graphql::{Api, Options, Policy, Request, Viewer};
use tidewire_outbox::{Catalog, EntityMeta, Kind, RelationMeta};
use tidewire_testkit::{on_every_target, zoo::arbitrary};

use crate::support::{Zoo, id, request};

/// Writes documents at random that the schema allows.
struct Author<'a> {
    catalog: &'a Catalog,
    /// The name of an entity to leave alone.
    but_not: &'static str,
    random: ChaCha8Rng,
    document: String,
    fragments: Vec<String>,
    aliases: u32,
}

impl Author<'_> {
    fn one_in(&mut self, n: u32) -> bool {
        self.random.random_range(0..n) == 0
    }

    fn push(&mut self, text: &str) {
        self.document.push_str(text);
        self.document.push(' ');
    }

    /// An alias now and then; a field with arguments gets one always, so that two of one name don't disagree.
    fn alias(&mut self, always: bool) {
        if always || self.one_in(6) {
            self.aliases += 1;
            let _ = write!(self.document, "a{}: ", self.aliases);
        }
    }

    fn directive(&mut self) {
        match self.random.random_range(0..30) {
            0 => self.push("@include(if: $yes)"),
            1 => self.push("@skip(if: $yes)"),
            2 => self.push("@skip(if: false)"),
            _ => {}
        }
    }

    fn query(mut self) -> String {
        self.push("{");
        for _ in 0..self.random.random_range(1..3) {
            let catalog = self.catalog;
            let entities: Vec<_> = catalog.entities().iter().filter(|entity| entity.name != self.but_not).collect();
            let entity = entities.choose(&mut self.random).expect("there are entities");
            self.alias(true);
            if entity.name == "animal" && self.one_in(5) {
                let _ = write!(self.document, "animalByPk(id: \"{}\") ", id(self.random.random_range(0..5)));
                self.object(entity, 0);
            } else {
                self.push(&camel(entity.name));
                self.arguments(entity, true);
                self.connection(entity, 0);
            }
        }
        self.push("}");
        self.document.push_str(&self.fragments.join(" "));
        let declared =
            ["$yes: Boolean!", "$no: Boolean", "$limit: Int! = 3", "$text: String"].into_iter().filter(|variable| {
                let name = variable.split(':').next().unwrap_or_default();
                self.document.contains(name)
            });
        let declared = declared.collect::<Vec<_>>().join(", ");
        if declared.is_empty() { self.document } else { format!("query ({declared}) {}", self.document) }
    }

    fn arguments(&mut self, entity: &EntityMeta, root: bool) {
        let mut arguments = Vec::new();
        if self.one_in(3) {
            arguments.push(format!("filters: {}", self.filter(entity, 0)));
        }
        if root && self.one_in(4) && !entity.relations.is_empty() {
            let catalog = self.catalog;
            let relation = entity.relations.choose(&mut self.random).expect("just looked");
            let inner = self.filter(catalog.entity(relation.target), 1);
            arguments.push(format!("having: {{ {}: {inner} }}", camel(&relation.name)));
        }
        if self.one_in(2) {
            let mut order = Vec::new();
            for _ in 0..self.random.random_range(1..3) {
                let column = entity.columns.choose(&mut self.random).expect("a column");
                let entry = format!("{}: {}", camel(column.name), if self.one_in(2) { "ASC" } else { "DESC" });
                if !order.iter().any(|known: &String| known.split(':').next() == entry.split(':').next()) {
                    order.push(entry);
                }
            }
            arguments.push(format!("orderBy: {{ {} }}", order.join(", ")));
        }
        match self.random.random_range(0..7) {
            0 => arguments.push("pagination: { page: { limit: $limit, page: 0 } }".into()),
            1 => arguments.push("pagination: { page: { limit: 2, page: 1 } }".into()),
            2 => arguments.push("pagination: { offset: { limit: 2, offset: 1 } }".into()),
            3 => arguments.push("pagination: { cursor: { limit: 2 } }".into()),
            _ => {}
        }
        if !arguments.is_empty() {
            let _ = write!(self.document, "({}) ", arguments.join(", "));
        }
    }

    fn filter(&mut self, entity: &EntityMeta, depth: u32) -> String {
        if depth < 2 && self.one_in(3) {
            let (a, b) = (self.filter(entity, depth + 1), self.filter(entity, depth + 1));
            return match self.random.random_range(0..3) {
                0 => format!("{{ and: [{a}, {b}] }}"),
                1 => format!("{{ or: [{a}, {b}] }}"),
                _ => format!("{{ not: {a} }}"),
            };
        }
        let column = entity.columns.choose(&mut self.random).expect("a column");
        let operand = match &column.kind {
            Kind::Bytes => return "{}".into(),
            Kind::Json => "{ is_null: $no }",
            Kind::Boolean => "{ eq: $yes }",
            Kind::Enum(_) => "{ is_in: [lion, seaotter] }",
            Kind::Integer { .. } => "{ lte: 2 }",
            Kind::Float | Kind::Double => "{ gt: 4.5 }",
            Kind::Text => ["{ contains: \"e\" }", "{ eq: $text }", "{ like: \"_i%\" }", "{ ci_eq: \"LEO\" }"]
                .choose(&mut self.random)
                .expect("four"),
            Kind::Uuid => "{ gte: \"02020202-0202-0202-0202-020202020202\" }",
            Kind::Decimal => "{ between: [\"0.1\", \"100\"] }",
            Kind::Date => "{ lt: \"2023-01-01\" }",
            Kind::Time => "{ ne: \"10:00:00\" }",
            _ => "{ gt: \"2026-11-21T10:00:00Z\" }",
        };
        format!("{{ {}: {operand} }}", camel(column.name))
    }

    fn connection(&mut self, entity: &EntityMeta, depth: u32) {
        self.push("{");
        for _ in 0..self.random.random_range(1..4) {
            match self.random.random_range(0..9) {
                0..=3 => {
                    self.push("nodes");
                    self.object(entity, depth);
                }
                4 => {
                    self.push("edges { cursor node");
                    self.object(entity, depth);
                    self.push("}");
                }
                5 => self.push("pageInfo { hasNextPage startCursor hasPreviousPage endCursor __typename }"),
                6 => self.push("paginationInfo { pages current total offset }"),
                7 => {
                    self.alias(true);
                    self.aggregate(entity);
                }
                _ => self.push("__typename"),
            }
        }
        self.push("}");
    }

    fn aggregate(&mut self, entity: &EntityMeta) {
        self.push("aggregate { count");
        for column in entity.columns.iter().filter(|column| column.kind.is_numeric()) {
            if self.one_in(2) {
                let name = camel(column.name);
                let _ = write!(
                    self.document,
                    "min {{ {name} }} max {{ m: {name} }} sum {{ {name} }} avg {{ {name} __typename }} "
                );
            }
        }
        self.push("}");
    }

    /// The fields of an object, some of them in fragments.
    fn object(&mut self, entity: &EntityMeta, depth: u32) {
        self.push("{");
        for _ in 0..self.random.random_range(1..5) {
            match self.random.random_range(0..12) {
                0 => {
                    self.push("...");
                    self.directive();
                    self.object(entity, depth);
                }
                1 => {
                    let _ = write!(self.document, "... on {} ", upper(entity.name));
                    self.object(entity, depth);
                }
                2 => {
                    let name = format!("f{}", self.fragments.len());
                    self.fragments.push(String::new());
                    let place = self.fragments.len() - 1;
                    let outer = std::mem::take(&mut self.document);
                    self.object(entity, depth + 1);
                    let body = std::mem::replace(&mut self.document, outer);
                    self.fragments[place] = format!("fragment {name} on {} {body}", upper(entity.name));
                    let _ = write!(self.document, "...{name} ");
                }
                3..=6 if depth < 3 && !entity.relations.is_empty() => self.relation(entity, depth),
                7 => self.push("__typename"),
                _ => {
                    let column = entity.columns.choose(&mut self.random).expect("a column");
                    self.alias(false);
                    self.push(&camel(column.name));
                    self.directive();
                }
            }
        }
        // An object of which nothing is left is `{}` by the specification and by plans, and null by async-graphql's resolvers.
        self.push("t: __typename }");
    }

    fn relation(&mut self, entity: &EntityMeta, depth: u32) {
        let catalog = self.catalog;
        let relation: &RelationMeta = entity.relations.choose(&mut self.random).expect("just looked");
        let target = catalog.entity(relation.target);
        self.alias(true);
        self.push(&camel(&relation.name));
        if relation.many {
            self.arguments(target, false);
            self.connection(target, depth + 1);
        } else {
            self.object(target, depth + 1);
        }
    }
}

fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| name + &upper(word))
}

fn upper(name: &str) -> String {
    name.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}

on_every_target! {
    async fn a_plan_answers_as_the_resolvers_do(database: TestDatabase) {
        // GIVEN a zoo, with rows of everything
        let mut options = Options::default();
        // Each list has one here.
        options.max_aliases = options.max_fields;
        let zoo = Zoo::of(database, options).await;
        zoo.populate().await;
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        // SeaORM cannot bind some of its types on PostgreSQL.
        let but_not = if zoo.database.is("postgres:") { "everything" } else { "" };
        for _ in 0..if but_not.is_empty() { 8 } else { 0 } {
            use proptest::strategy::{Strategy as _, ValueTree as _};
            let row = arbitrary::everything().new_tree(&mut runner).unwrap().current();
            let row = if zoo.database.is("mysql:") { arbitrary::for_mariadb(row) } else { row };
            let mut row = row.into_active_model().reset_all();
            row.id = NotSet;
            // JSON has no form for infinity, and these columns may not be null.
            row.float = sea_orm::Set(0.1);
            row.double = sea_orm::Set(-1e-300);
            row.insert(&zoo.recorder).await.unwrap();
        }
        let variables = || json!({ "yes": true, "text": "leo" });

        let mut compared = 0;
        for seed in 0..400 {
            // WHEN a document is answered both ways
            let random = ChaCha8Rng::seed_from_u64(seed);
            let author = Author {
                but_not,
                catalog: zoo.recorder.catalog(),
                random,
                document: String::new(),
                fragments: Vec::new(),
                aliases: 0,
            };
            let document = author.query();
            let planned = zoo.api.execute(request(&document, variables())).await.json;
            let resolved = zoo.api.execute_resolved(request(&document, variables())).await.json;

            // THEN the answers are the same
            if planned.contains("LIMIT_EXCEEDED") {
                continue;
            }
            compared += 1;
            assert!(zoo.api.is_planned(request(&document, variables())), "{seed}: {document}\n{planned}");
            assert!(!planned.contains("\"errors\""), "{seed}: {document}\n{planned}");
            if planned != resolved {
                let at = planned.chars().zip(resolved.chars()).take_while(|(a, b)| a == b).count();
                let around = |text: &str| text.chars().skip(at.saturating_sub(100)).take(200).collect::<String>();
                panic!("{seed}: {document}\nplanned:  {}\nresolved: {}", around(&planned), around(&resolved));
            }
        }
        assert!(compared > 350, "{compared}");
    }
}

/// Under policies too, which the one puts into a statement and the other into many.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_answers_as_the_resolvers_do_under_policies() {
    let rules = [
        ("keeper", json!({ "id": { "lte": 2 } })),
        ("animal", json!({ "or": [{ "tame": { "eq": true } }, { "keeperId": { "eq": "$sub" } }] })),
        ("chip", json!({ "serial": { "gt": 9 } })),
        ("food", json!({ "name": { "ne": "fish" } })),
        ("diet", json!({ "grams": { "is_in": [5_000, 10, 300] } })),
        ("visit", json!({ "number": { "eq": 1 } })),
        ("everything", json!({ "id": { "is_null": true } })),
    ];
    let mut zoo = Zoo::populated().await;
    let (mut answered, mut refused) = (0, 0);
    for round in 0..24_u64 {
        // GIVEN policies that hide rows and, now and then, a column or an entity
        let mut random = ChaCha8Rng::seed_from_u64(1_000 + round);
        let mut policies: Vec<Policy> = Vec::new();
        for (entity, rule) in &rules {
            let meta = zoo.recorder.catalog().find(entity).unwrap();
            let hidden =
                if random.random_ratio(1, 4) { random.random_range(0..meta.columns.len()) } else { usize::MAX };
            let seen =
                meta.columns.iter().enumerate().filter(|(index, _)| *index != hidden).map(|(_, column)| column.name);
            let read = if random.random_ratio(1, 3) { &json!({}) } else { rule };
            let policy =
                json!({ "entity": entity, "role": "keeper", "read": read, "readable": seen.collect::<Vec<_>>() });
            if !random.random_ratio(1, 12) {
                policies.push(serde_json::from_value(policy).unwrap());
            }
        }
        zoo.api = Api::builder(zoo.recorder.clone()).policies(policies).finish().unwrap();
        let viewer = Arc::new(Viewer::with_roles(["keeper"]).claim("sub", random.random_range(1..3)));
        for seed in 0..25 {
            // WHEN a document is answered both ways
            let random = ChaCha8Rng::seed_from_u64(round * 1_000 + seed);
            let (document, fragments) = (String::new(), Vec::new());
            let author =
                Author { but_not: "", catalog: zoo.recorder.catalog(), random, document, fragments, aliases: 0 };
            let document = author.query();
            let variables = json!({ "yes": true, "text": "leo" });
            let as_viewer = || Request { viewer: Arc::clone(&viewer), ..request(&document, variables.clone()) };
            let planned = zoo.api.execute(as_viewer()).await.json;
            let resolved = zoo.api.execute_resolved(as_viewer()).await.json;

            // THEN the answers are the same. Which of the errors below one null are told is left to chance.
            let is_refused = planned.contains("\"FORBIDDEN\"");
            assert_eq!(is_refused, resolved.contains("\"FORBIDDEN\""), "{round} {seed}: {document}");
            if is_refused {
                let data = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap()["data"].take();
                assert_eq!(data(&planned), data(&resolved), "{round} {seed}: {document}");
                refused += 1;
            } else {
                assert_eq!(planned, resolved, "{round} {seed}: {document}");
                answered += 1;
            }
        }
    }
    assert!(answered > 150 && refused > 50, "{answered} {refused}");
}

/// Where a column holds what GraphQL has no form for, both ways say so, with nulls and paths as the specification has them.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_is_null_with_an_error_at_its_path() {
    let zoo = Zoo::populated().await;
    zoo.database
        .plain()
        .await
        .execute_unprepared("UPDATE animal SET species = 'unicorn' WHERE name = 'sid'")
        .await
        .unwrap();
    let bo = "{ keeper(orderBy: { id: ASC }) { nodes { name animal { nodes { name species } } } } }";
    let response = zoo.run(bo, json!({})).await;
    // `species`, `animal`, `nodes` and all around them may not be null.
    assert_eq!(response["data"], json!(null));
    assert_eq!(response["errors"][0]["path"], json!(["keeper", "nodes", 1, "animal", "nodes", 0, "species"]));
    assert_eq!(response["errors"][0]["extensions"]["code"], "INTERNAL");

    let visits = "{ visit(orderBy: { animalId: ASC, number: ASC }) { nodes { number animal { name species } } } sid: animalByPk(id: \"03030303-0303-0303-0303-030303030303\") { species } }";
    let text = zoo.api.execute(request(visits, json!({}))).await.json;
    assert!(text.find("\"visit\"") < text.find("\"sid\""), "{text}");
    let response: serde_json::Value = serde_json::from_str(&text).unwrap();
    let leo = json!({ "name": "leo", "species": "lion" });
    assert_eq!(
        response["data"],
        json!({
            "visit": { "nodes": [{ "number": 1, "animal": leo }, { "number": 2, "animal": leo }, { "number": 1, "animal": null }] },
            "sid": null,
        })
    );
    let mut paths: Vec<_> =
        response["errors"].as_array().unwrap().iter().map(|error| error["path"].to_string()).collect();
    paths.sort();
    assert_eq!(paths, [r#"["sid","species"]"#, r#"["visit","nodes",2,"animal","species"]"#]);
}
