//! Whatever policies, viewers and writes there are: a viewer is told all that its policies allow, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use sea_orm::{ActiveModelTrait, ConnectionTrait, EntityTrait, Set, Unchanged};
use serde_json::{Map, Value, json};
use tidewire_graphql::{Policy, Request, Viewer};
use tidewire_testkit::{
    TestDatabase, soon,
    zoo::animal::{self, Species},
};

use crate::support::{Events, LiveCopy, Zoo, id, request};

const COLUMNS: [&str; 4] = ["name", "keeperId", "weight", "tame"];
const NAMES: [&str; 4] = ["leo", "Leo", "$sub", "o'tto"];
const ROLES: [&str; 3] = ["a", "b", "anonymous"];

/// An animal as the model knows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    name: String,
    keeper: Option<i32>,
    weight: Option<f64>,
    tame: bool,
}

impl Row {
    pub(crate) fn random(random: &mut ChaCha8Rng) -> Self {
        Self {
            name: (*NAMES.choose(random).unwrap()).into(),
            keeper: *[None, Some(1), Some(2), Some(3)].choose(random).unwrap(),
            weight: *[None, Some(0.5), Some(4.25), Some(10.0)].choose(random).unwrap(),
            tame: random.random(),
        }
    }

    /// The columns that may be seen, and the key.
    fn json(&self, key: u8, columns: &BTreeSet<&str>) -> Value {
        let all = json!({ "name": self.name, "keeperId": self.keeper, "weight": self.weight, "tame": self.tame });
        let mut row: Map<_, _> = all.as_object().unwrap().clone();
        row.retain(|name, _| columns.contains(name.as_str()));
        row.insert("id".into(), json!(id(key)));
        row.into()
    }
}

/// A rule of a policy: what the model makes of it, and how it is written.
#[derive(Debug, Clone)]
pub(crate) enum Rule {
    Own,
    Named,
    Tame,
    HeavierThan(f64),
    NoKeeper,
    Not(Box<Rule>),
    Any(Vec<Rule>),
    All(Vec<Rule>),
}

impl Rule {
    pub(crate) fn random(random: &mut ChaCha8Rng, depth: u32) -> Self {
        let parts =
            |random: &mut ChaCha8Rng| (0..random.random_range(0..3)).map(|_| Self::random(random, depth + 1)).collect();
        match random.random_range(0..if depth < 2 { 10 } else { 6 }) {
            0 | 1 => Self::Own,
            2 => Self::Named,
            3 => Self::Tame,
            4 => Self::HeavierThan(*[0.5, 3.0].choose(random).unwrap()),
            5 => Self::NoKeeper,
            6 => Self::Not(Self::random(random, depth + 1).into()),
            7 | 8 => Self::Any(parts(random)),
            _ => Self::All(parts(random)),
        }
    }

    pub(crate) fn json(&self) -> Value {
        let parts = |parts: &[Self]| parts.iter().map(Self::json).collect::<Vec<_>>();
        match self {
            Self::Own => json!({ "keeperId": { "eq": "$org.sub" } }),
            Self::Named => json!({ "name": { "is_in": "$names" } }),
            Self::Tame => json!({ "tame": { "eq": true } }),
            Self::HeavierThan(weight) => json!({ "weight": { "gt": weight } }),
            Self::NoKeeper => json!({ "keeperId": { "is_null": true } }),
            Self::Not(inner) => json!({ "not": inner.json() }),
            Self::Any(any) => json!({ "or": parts(any) }),
            Self::All(all) => json!({ "and": parts(all) }),
        }
    }

    /// Whether the viewer has the claims that the rule asks for.
    fn applies(&self, viewer: &Known) -> bool {
        match self {
            Self::Own => viewer.sub.is_some(),
            Self::Named => viewer.names.is_some(),
            Self::Not(inner) => inner.applies(viewer),
            Self::Any(parts) | Self::All(parts) => parts.iter().all(|part| part.applies(viewer)),
            Self::Tame | Self::HeavierThan(_) | Self::NoKeeper => true,
        }
    }

    /// Whether a row passes; none where SQL says that it is unknown.
    fn holds(&self, row: &Row, viewer: &Known) -> Option<bool> {
        let decided = |parts: &[Self], decisive: bool| {
            let parts: Vec<_> = parts.iter().map(|part| part.holds(row, viewer)).collect();
            if parts.contains(&Some(decisive)) { Some(decisive) } else { (!parts.contains(&None)).then_some(!decisive) }
        };
        match self {
            Self::Own => row.keeper.map(|keeper| Some(keeper) == viewer.sub),
            Self::Named => Some(viewer.names.as_ref().is_some_and(|names| names.contains(&row.name.as_str()))),
            Self::Tame => Some(row.tame),
            Self::HeavierThan(weight) => row.weight.map(|heavy| heavy > *weight),
            Self::NoKeeper => Some(row.keeper.is_none()),
            Self::Not(inner) => inner.holds(row, viewer).map(|holds| !holds),
            Self::Any(parts) => decided(parts, true),
            Self::All(parts) => decided(parts, false),
        }
    }
}

pub(crate) struct Grant {
    role: &'static str,
    rule: Rule,
    columns: BTreeSet<&'static str>,
}

impl Grant {
    pub(crate) fn random(random: &mut ChaCha8Rng) -> Self {
        let columns = COLUMNS.into_iter().filter(|_| random.random_ratio(2, 3)).collect();
        Self { role: ROLES.choose(random).unwrap(), rule: Rule::random(random, 0), columns }
    }

    pub(crate) fn policy(&self) -> Policy {
        let policy =
            json!({ "entity": "animal", "role": self.role, "read": self.rule.json(), "readable": self.columns });
        serde_json::from_value(policy).unwrap()
    }
}

/// What the model knows of a viewer.
pub(crate) struct Known {
    pub(crate) viewer: Viewer,
    sub: Option<i32>,
    names: Option<Vec<&'static str>>,
    /// The rules that apply and the columns that may be seen; none where nothing may.
    rights: Option<(Vec<Rule>, BTreeSet<&'static str>)>,
}

impl Known {
    pub(crate) fn random(random: &mut ChaCha8Rng, grants: &[Grant]) -> Self {
        let mut roles: Vec<_> = ROLES.into_iter().filter(|_| random.random()).collect();
        if roles.is_empty() {
            roles.push("anonymous");
        }
        let sub = *[None, Some(1), Some(2)].choose(random).unwrap();
        let names: Option<Vec<_>> =
            random.random_ratio(2, 3).then(|| NAMES.into_iter().filter(|_| random.random()).collect());
        let mut viewer = Viewer::with_roles(roles.iter().copied());
        // Claims come as issuers write them: numbers as texts, one for a list, and some of the wrong type.
        viewer = match sub {
            Some(sub) if random.random() => viewer.claim("org", json!({ "sub": sub })),
            Some(sub) => viewer.claim("org", json!({ "sub": sub.to_string() })),
            None if random.random() => viewer.claim("org", json!({ "sub": "nobody" })),
            None => viewer,
        };
        viewer = match &names {
            Some(names) if names.len() == 1 => viewer.claim("names", names[0]),
            Some(names) => viewer.claim("names", json!(names)),
            None => viewer.claim("names", json!({ "first": "leo" })),
        };
        let mut known = Self { viewer, sub, names, rights: None };
        for grant in grants.iter().filter(|grant| roles.contains(&grant.role)) {
            if grant.rule.applies(&known) {
                let (rules, columns) = known.rights.get_or_insert_with(|| (Vec::new(), COLUMNS.into()));
                rules.push(grant.rule.clone());
                columns.retain(|column| grant.columns.contains(column));
            }
        }
        known
    }

    fn sees(&self, row: &Row) -> bool {
        let rules = self.rights.iter().flat_map(|(rules, _)| rules);
        rules.into_iter().any(|rule| rule.holds(row, self) == Some(true))
    }

    fn columns(&self) -> &BTreeSet<&'static str> {
        &self.rights.as_ref().expect("it has rights").1
    }

    fn selection(&self) -> String {
        self.columns().iter().fold("id".to_owned(), |fields, column| fields + " " + column)
    }

    /// What a change is to this viewer: event, node, row before, changed fields.
    fn told(&self, key: u8, before: Option<&Row>, after: Option<&Row>) -> Option<Value> {
        let seen = |row: Option<&Row>| row.filter(|row| self.sees(row)).map(|row| row.json(key, self.columns()));
        let order = || ["id", "name", "keeperId", "weight", "tame"].into_iter();
        match (seen(before), seen(after)) {
            (None, None) => None,
            (None, Some(node)) => {
                let fields: Vec<_> = order().filter(|field| node.get(field).is_some()).collect();
                Some(json!({ "event": "ENTER", "node": node, "previous": null, "changedFields": fields }))
            }
            (Some(previous), None) => {
                let previous = if after.is_some() { Value::Null } else { previous };
                Some(json!({ "event": "LEAVE", "node": null, "previous": previous, "changedFields": [] }))
            }
            (Some(previous), Some(node)) => {
                let fields: Vec<_> = order().filter(|field| node.get(field) != previous.get(field)).collect();
                (!fields.is_empty())
                    .then(|| json!({ "event": "UPDATE", "node": node, "previous": previous, "changedFields": fields }))
            }
        }
    }

    fn result(&self, rows: &BTreeMap<u8, Row>) -> Value {
        let seen = rows.iter().filter(|(_, row)| self.sees(row));
        json!({ "nodes": seen.clone().map(|(key, row)| row.json(*key, self.columns())).collect::<Vec<_>>(), "aggregate": { "count": seen.count() } })
    }
}

/// Makes one write, and says which row it was about.
pub(crate) async fn write(zoo: &Zoo, rows: &mut BTreeMap<u8, Row>, random: &mut ChaCha8Rng) -> u8 {
    let key = random.random_range(1..7);
    let known = rows.get(&key).cloned();
    if known.is_some() && random.random_ratio(1, 5) {
        animal::Entity::delete_by_id(id(key)).exec(&zoo.recorder).await.unwrap();
        rows.remove(&key);
        return key;
    }
    let mut row = known.clone().unwrap_or_else(|| Row::random(random));
    let other = Row::random(random);
    match random.random_range(0..6) {
        0 => row.name = other.name,
        1 | 2 => row.keeper = other.keeper,
        3 => row.weight = other.weight,
        4 => row.tame = other.tame,
        _ => row = other,
    }
    let model = animal::ActiveModel {
        id: if known.is_some() { Unchanged(id(key)) } else { Set(id(key)) },
        name: Set(row.name.clone()),
        species: Set(Species::Lion),
        keeper_id: Set(row.keeper),
        weight: Set(row.weight),
        tame: Set(row.tame),
        // A column that nobody is granted.
        price: Set(Some(random.random_range(0..3).into())),
        ..Default::default()
    };
    if known.is_some() { model.update(&zoo.recorder).await } else { model.insert(&zoo.recorder).await }.unwrap();
    rows.insert(key, row);
    key
}

/// A viewer with what it has subscribed to.
struct Subscriber {
    known: Known,
    changes: Events,
    json: Events,
    live: Events,
    patches: Events,
    copy: LiveCopy,
    /// What it was to be told, change by change.
    expected: Vec<(u8, Value)>,
}

impl Subscriber {
    /// Subscribes, or shows that the viewer may not.
    async fn open(zoo: &Zoo, known: Known, rows: &BTreeMap<u8, Row>) -> Option<Self> {
        let subscribe = async |query: &str| zoo.subscribe_as(&known.viewer, query, json!({})).await;
        if known.rights.is_none() {
            for query in [
                "{ animalChanges { cursor } }",
                "{ changes(entities: \"animal\") { cursor } }",
                "{ animal { aggregate { count } } }",
                "{ animalLive { aggregate { count } } }",
            ] {
                let refused = subscribe(&format!("subscription {query}")).await.err().expect("it is refused");
                assert_eq!(refused["extensions"]["code"], "FORBIDDEN");
            }
            return None;
        }
        let fields = known.selection();
        let changes = format!(
            "subscription {{ animalChanges(snapshot: true) {{ changes {{ event key {{ id }} node {{ {fields} }} previous {{ {fields} }} changedFields }} }} }}"
        );
        let mut changes = subscribe(&changes).await.unwrap();
        let snapshot = changes.next().await;
        let nodes: Vec<_> =
            snapshot["changes"].as_array().unwrap().iter().map(|change| change["node"].clone()).collect();
        assert_eq!(json!(nodes), known.result(rows)["nodes"]);
        let mut json =
            subscribe("subscription { changes { upToDate changes { entity key row previous changedFields } } }")
                .await
                .unwrap();
        while json.next().await["upToDate"] != true {}
        let live = subscribe(&format!("subscription {{ animal {{ nodes {{ {fields} }} aggregate {{ count }} }} }}"))
            .await
            .unwrap();
        let patches = format!(
            "subscription {{ animalLive {{ sequence reset removals {{ id }} upserts {{ index key {{ id }} node {{ {fields} }} }} aggregate {{ count }} }} }}"
        );
        let patches = subscribe(&patches).await.unwrap();
        Some(Self { known, changes, json, live, patches, copy: LiveCopy::default(), expected: Vec::new() })
    }

    async fn check(&mut self, zoo: &Zoo, rows: &BTreeMap<u8, Row>, versions: &BTreeSet<String>) {
        for (key, expected) in &self.expected {
            let mut change = self.changes.changes().await[0].take();
            let row_key = change.as_object_mut().unwrap().remove("key").unwrap();
            assert_eq!(row_key, json!({ "id": id(*key) }));
            assert_eq!(change, *expected);
            let json = self.json.changes().await;
            assert_eq!(json.as_array().unwrap().len(), 1);
            assert_eq!((&json[0]["entity"], &json[0]["key"]), (&json!("animal"), &json!({ "id": id(*key) })));
            for (field, name) in [("row", "node"), ("previous", "previous"), ("changedFields", "changedFields")] {
                assert_eq!(json[0][field], expected[name], "{json}");
            }
        }
        let result = self.known.result(rows);
        let query = format!("{{ animal {{ nodes {{ {} }} aggregate {{ count }} }} }}", self.known.selection());
        let as_viewer = || Request { viewer: self.known.viewer.clone().into(), ..request(&query, json!({})) };
        for answer in [zoo.api.execute(as_viewer()).await.json, zoo.api.execute_resolved(as_viewer()).await.json] {
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["data"]["animal"], result, "{answer}");
        }
        // A live query may skip states. What it shows has been so, and it ends with what is.
        loop {
            let shown = soon(self.live.next()).await;
            for node in shown["nodes"].as_array().unwrap() {
                assert!(versions.contains(&node.to_string()), "{node} was never to be seen");
            }
            if shown == result {
                break;
            }
        }
        loop {
            let patch = soon(self.patches.next()).await;
            self.copy.apply(&patch);
            for node in self.copy.nodes() {
                assert!(versions.contains(&node.to_string()), "{node} was never to be seen");
            }
            if self.copy.nodes() == *result["nodes"].as_array().unwrap() {
                assert_eq!(patch["aggregate"], result["aggregate"]);
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_that_no_policy_allows() {
    leak(TestDatabase::sqlite(), 0..24).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_that_no_policy_allows_on_postgres() {
    let Some(database) = TestDatabase::postgres().await else { return };
    leak(database, 0..4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_that_no_policy_allows_on_mariadb() {
    let Some(database) = TestDatabase::mariadb().await else { return };
    leak(database, 0..4).await;
}

async fn leak(database: TestDatabase, seeds: std::ops::Range<u64>) {
    let mut zoo = Zoo::populated_in(database).await;
    if zoo.database.is("mysql:") {
        // Where texts that differ in case would be equal to the database; the model knows them by their bytes.
        zoo.recorder
            .unrecorded()
            .execute_unprepared(
                "ALTER TABLE animal MODIFY name varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL",
            )
            .await
            .unwrap();
    }
    let mut told = 0;
    for seed in seeds {
        // GIVEN policies and viewers, and animals that only this test writes
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        animal::Entity::delete_many().exec(&zoo.recorder).await.unwrap();
        let grants: Vec<_> = (0..4).map(|_| Grant::random(&mut random)).collect();
        zoo.api = tidewire_graphql::Api::builder(zoo.recorder.clone())
            .policies(grants.iter().map(Grant::policy))
            .finish()
            .unwrap();
        let mut rows = BTreeMap::new();
        for _ in 0..8 {
            write(&zoo, &mut rows, &mut random).await;
        }
        let mut subscribers = Vec::new();
        for _ in 0..8 {
            let known = Known::random(&mut random, &grants);
            subscribers.extend(Subscriber::open(&zoo, known, &rows).await);
        }
        let mut versions: Vec<BTreeSet<String>> = Vec::new();
        let version = |known: &Known, rows: &BTreeMap<u8, Row>| -> Vec<String> {
            known.result(rows)["nodes"].as_array().unwrap().iter().map(Value::to_string).collect()
        };
        for subscriber in &subscribers {
            versions.push(version(&subscriber.known, &rows).into_iter().collect());
        }

        // WHEN rows are written
        for _ in 0..40 {
            let before = rows.clone();
            let key = write(&zoo, &mut rows, &mut random).await;
            for (subscriber, versions) in subscribers.iter_mut().zip(&mut versions) {
                let change = subscriber.known.told(key, before.get(&key), rows.get(&key));
                subscriber.expected.extend(change.map(|change| (key, change)));
                versions.extend(version(&subscriber.known, &rows));
            }
        }

        // THEN each is told what its rights make of it
        for (subscriber, versions) in subscribers.iter_mut().zip(&versions) {
            told += subscriber.expected.len();
            subscriber.check(&zoo, &rows, versions).await;
        }
    }
    assert!(told > 50, "{told}");
}
