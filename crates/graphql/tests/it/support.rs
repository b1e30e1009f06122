use std::collections::VecDeque;

use futures_util::{FutureExt, StreamExt, stream::BoxStream};
use sea_orm::{ConnectionTrait, EntityTrait, Set};
use serde_json::{Value, json};
use tidewire_graphql::{Api, Frame, Options, Policy, Request, Subscribed, Viewer, async_graphql::Variables};
use tidewire_outbox::Recorder;
use tidewire_testkit::{
    TestDatabase, soon,
    zoo::{self, animal, chip, diet, food, keeper, visit},
};
use uuid::Uuid;

/// An API over a zoo.
pub(crate) struct Zoo {
    pub(crate) api: Api,
    pub(crate) recorder: Recorder,
    pub(crate) database: TestDatabase,
}

impl Zoo {
    pub(crate) async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        Self::of(TestDatabase::sqlite(), options).await
    }

    /// In a database that is there and empty.
    pub(crate) async fn of(database: TestDatabase, options: Options) -> Self {
        let recorder = database.recorder(zoo::registry(), zoo::create).await;
        let api = Api::builder(recorder.clone()).options(options).finish().unwrap();
        Self { api, recorder, database }
    }

    /// A populated zoo whose API keeps to policies.
    pub(crate) async fn guarded(database: TestDatabase, policies: impl IntoIterator<Item = Policy>) -> Self {
        let mut zoo = Self::populated_in(database).await;
        zoo.api = Api::builder(zoo.recorder.clone()).policies(policies).finish().unwrap();
        zoo
    }

    /// Three keepers (ada leads bo and cy), four animals (leo and otto are ada's, sid is bo's, stray nobody's), three foods, four diets,
    /// three visits and a chip.
    pub(crate) async fn populated() -> Self {
        Self::populated_in(TestDatabase::sqlite()).await
    }

    pub(crate) async fn populated_in(database: TestDatabase) -> Self {
        let zoo = Self::of(database, Options::default()).await;
        zoo.populate().await;
        zoo
    }

    pub(crate) async fn populate(&self) {
        let db = &self.recorder;
        let keepers = [(1, "ada", None), (2, "bo", Some(1)), (3, "cy", Some(1))];
        let keepers = keepers.map(|(id, name, boss)| keeper::ActiveModel {
            id: Set(id),
            email: Set(format!("{name}@zoo.example")),
            name: Set(name.into()),
            boss_id: Set(boss),
        });
        keeper::Entity::insert_many(keepers).exec(db).await.unwrap();
        use animal::Species::{Lion, SeaOtter, Sloth};
        let animals = [
            (1, "leo", Lion, Some(1), Some(190.5), Some("1500.25"), false),
            (2, "otto", SeaOtter, Some(1), Some(30.0), Some("99.90"), true),
            (3, "sid", Sloth, Some(2), Some(4.25), None, true),
            (4, "stray", Lion, None, None, Some("0.10"), false),
        ];
        let animals = animals.map(|(n, name, species, keeper, weight, price, tame)| animal::ActiveModel {
            id: Set(id(n)),
            name: Set(name.into()),
            species: Set(species),
            keeper_id: Set(keeper),
            weight: Set(weight),
            born: Set(Some(format!("202{n}-01-0{n}").parse().unwrap())),
            price: Set(price.map(|price| price.parse().unwrap())),
            tame: Set(tame),
            notes: Set((n == 1).then(|| json!({ "likes": ["meat", 1.5], "é": null }))),
            seen_at: Set(Some(format!("2026-11-2{n}T10:00:00.5Z").parse().unwrap())),
        });
        animal::Entity::insert_many(animals).exec(db).await.unwrap();
        let foods =
            ["meat", "fish", "leaves"].map(|name| food::ActiveModel { name: Set(name.into()), ..Default::default() });
        food::Entity::insert_many(foods).exec(db).await.unwrap();
        let diets = [(1, 1, 5_000), (2, 2, 900), (3, 3, 300), (1, 2, 10)];
        let diets = diets.map(|(animal, food, grams)| diet::ActiveModel {
            animal_id: Set(id(animal)),
            food_id: Set(food),
            grams: Set(grams),
        });
        diet::Entity::insert_many(diets).exec(db).await.unwrap();
        let visits = [(1, 1, "fine"), (1, 2, "well \"fed\"\n"), (3, 1, "asleep")];
        let visits = visits.map(|(animal, number, report)| visit::ActiveModel {
            animal_id: Set(id(animal)),
            number: Set(number),
            at: Set("2026-11-20T10:00:00".parse().unwrap()),
            report: Set(Some(report.into())),
            picture: Set((number == 2).then(|| vec![0, 171, 255])),
        });
        visit::Entity::insert_many(visits).exec(db).await.unwrap();
        let chip = chip::ActiveModel { serial: Set(9_007_199_254_740_993), animal_id: Set(id(2)) };
        chip::Entity::insert(chip).exec(db).await.unwrap();
        if self.database.is("postgres:") {
            // The keepers were given keys that the sequence does not know of.
            db.execute_unprepared("SELECT setval('keeper_id_seq', 3)").await.unwrap();
        }
    }

    /// Runs a document; gives the whole response.
    pub(crate) async fn run(&self, query: &str, variables: Value) -> Value {
        serde_json::from_str(&self.api.execute(request(query, variables)).await.json).unwrap()
    }

    /// Runs a document that must succeed; gives its data.
    #[track_caller]
    pub(crate) fn data(&self, query: &str) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        async move {
            let mut response = self.run(query, json!({})).await;
            assert!(response.get("errors").is_none(), "{caller}: {response}");
            response["data"].take()
        }
    }

    /// Runs a document that must fail; gives its first error.
    #[track_caller]
    pub(crate) fn error(&self, query: &str, variables: Value) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        async move {
            let mut response = self.run(query, variables).await;
            assert!(response["errors"][0].is_object(), "{caller}: {response}");
            response["errors"][0].take()
        }
    }

    pub(crate) async fn subscribe(&self, query: &str, variables: Value) -> Events {
        self.subscribe_as(&Viewer::default(), query, variables).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// What a viewer is answered.
    pub(crate) async fn run_as(&self, viewer: &Viewer, query: &str, variables: Value) -> Value {
        let request = Request { viewer: viewer.clone().into(), ..request(query, variables) };
        serde_json::from_str(&self.api.execute(request).await.json).unwrap()
    }

    /// What a viewer's subscription gives, or the first error of the answer to it.
    pub(crate) async fn subscribe_as(&self, viewer: &Viewer, query: &str, variables: Value) -> Result<Events, Value> {
        let request = Request { viewer: viewer.clone().into(), ..request(query, variables) };
        match self.api.subscribe(request).await {
            Subscribed::Stream(frames) => Ok(Events(frames, VecDeque::new())),
            Subscribed::Single(response) => {
                let mut response: Value = serde_json::from_str(&response.json).unwrap();
                Err(response["errors"][0].take())
            }
        }
    }
}

/// What a subscription gives, and what of it has come already.
pub(crate) struct Events(BoxStream<'static, Vec<Frame>>, VecDeque<Frame>);

impl Events {
    /// The data of the next event, of the one field that there is.
    pub(crate) async fn next(&mut self) -> Value {
        if self.1.is_empty() {
            self.1 = soon(self.0.next()).await.expect("the stream goes on").into();
        }
        self.take()
    }

    /// The data of the next event, if there is one.
    pub(crate) fn at_hand(&mut self) -> Option<Value> {
        if self.1.is_empty() {
            self.1 = self.0.next().now_or_never()?.expect("the stream goes on").into();
        }
        Some(self.take())
    }

    fn take(&mut self) -> Value {
        let mut json = Vec::new();
        self.1.pop_front().expect("no batch is empty").write(&mut json);
        let mut response: Value = serde_json::from_slice(&json).unwrap();
        let data = response["data"].as_object_mut().unwrap_or_else(|| panic!("{json:?}"));
        data.values_mut().next().unwrap().take()
    }

    /// Goes on to the next event that has changes.
    pub(crate) async fn eventful(&mut self) -> Value {
        loop {
            let event = self.next().await;
            if event["changes"].as_array().is_some_and(|changes| !changes.is_empty()) {
                return event;
            }
        }
    }

    /// The changes of the next event that has some.
    pub(crate) async fn changes(&mut self) -> Value {
        self.eventful().await["changes"].take()
    }
}

/// A client's copy of the rows of a live query that comes as patches.
#[derive(Debug, Default)]
pub(crate) struct LiveCopy {
    /// Key and node.
    pub(crate) rows: Vec<(Value, Value)>,
    patches: u64,
}

impl LiveCopy {
    /// Applies a patch, as the protocol says.
    pub(crate) fn apply(&mut self, patch: &Value) {
        assert_eq!(patch["sequence"], self.patches, "{patch}");
        self.patches += 1;
        assert_eq!(patch["reset"], self.patches == 1, "{patch}");
        let upserts = patch["upserts"].as_array().unwrap();
        if patch["reset"] == true {
            self.rows.clear();
        }
        for key in patch["removals"].as_array().unwrap() {
            assert!(self.rows.iter().any(|(known, _)| known == key), "{key} is not here to be removed");
            self.rows.retain(|(known, _)| known != key);
        }
        self.rows.retain(|(known, _)| upserts.iter().all(|upsert| upsert["key"] != *known));
        for upsert in upserts {
            let place = usize::try_from(upsert["index"].as_u64().unwrap()).unwrap();
            self.rows.insert(place, (upsert["key"].clone(), upsert["node"].clone()));
        }
    }

    pub(crate) fn nodes(&self) -> Vec<Value> {
        self.rows.iter().map(|(_, node)| node.clone()).collect()
    }
}

pub(crate) fn request(query: &str, variables: Value) -> Request {
    Request { query: query.to_owned(), variables: Variables::from_json(variables), ..Request::default() }
}

/// The key of the nth animal.
pub(crate) fn id(n: u8) -> Uuid {
    Uuid::from_bytes([n; 16])
}
