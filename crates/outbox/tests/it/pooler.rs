//! Through a PgBouncer that lends connections for a transaction, to more clients than it has connections.

use std::collections::BTreeSet;

use futures_util::{TryStreamExt, future::join_all};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DbBackend, EntityTrait, QueryFilter, Set, Statement, StreamTrait,
    TransactionSession, TransactionTrait,
};
use tidewire_outbox::{
    Actor, Batch, Capture, Cursor, ErrorKind, MutationId, Origin, Recorder, RecorderOptions, Shape, Start, Step,
};
use tidewire_testkit::{
    PgBouncer, PostgresServer, TestDatabase, eventually, soon,
    zoo::{self, animal, food},
};

use crate::support::{Zoo, animal as new_animal, run};

struct Pooled {
    zoo: Zoo,
    url: String,
    direct: String,
    _bouncer: PgBouncer,
}

/// A zoo that was made directly, and the way to it through a pooler of three connections.
async fn pooled(capture: Capture) -> Option<Pooled> {
    let server = PostgresServer::shared().await?;
    let bouncer = PgBouncer::before(server, 3).await?;
    let direct = server.create().await;
    let zoo = Zoo::of(TestDatabase::at(&direct).captured_by(capture)).await;
    zoo.populate().await;
    Some(Pooled { zoo, url: bouncer.url(&direct), direct, _bouncer: bouncer })
}

impl Pooled {
    async fn recorder(&self, direct: Option<&str>) -> Recorder {
        let mut options = RecorderOptions::default();
        options.direct_url = direct.map(str::to_owned);
        Recorder::connect_with(&self.url, zoo::registry(), options).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_recorded_in_its_own_name_by_hooks() {
    everything_is_recorded_in_its_own_name(Capture::Hooks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_recorded_in_its_own_name_by_triggers() {
    everything_is_recorded_in_its_own_name(Capture::Triggers).await;
}

/// Whoever writes what through whichever connection: each change has its own context, and every change is told once.
async fn everything_is_recorded_in_its_own_name(capture: Capture) {
    let Some(pooled) = pooled(capture).await else { return };
    let recorders = [pooled.recorder(None).await, pooled.recorder(None).await];
    recorders[0].check().await.unwrap();
    let start = recorders[0].log().position().await.unwrap();
    let writers = (0..12_usize).map(|writer| {
        let plain = recorders[writer % 2].clone();
        async move {
            let named = plain.clone().acting_as(Actor::user(writer)).from(Origin::new(format!("o{writer}")));
            for number in 0..15 {
                let name = |kind: &str| Set(format!("{kind} {writer} {number}"));
                // One that names nobody, one with a context, and a transaction.
                food::ActiveModel { name: name("app"), ..Default::default() }.insert(&plain).await.unwrap();
                let mutation = named.clone().mutation(MutationId::new(format!("m{writer}")));
                food::ActiveModel { name: name("user"), ..Default::default() }.insert(&mutation).await.unwrap();
                let transaction = named.begin().await.unwrap();
                food::ActiveModel { name: name("transaction"), ..Default::default() }
                    .insert(&transaction)
                    .await
                    .unwrap();
                let nested = transaction.begin().await.unwrap();
                food::ActiveModel { name: name("never"), ..Default::default() }.insert(&nested).await.unwrap();
                nested.rollback().await.unwrap();
                let found = food::Entity::find().filter(food::Column::Name.starts_with("transaction"));
                assert!(!found.all(&transaction).await.unwrap().is_empty());
                transaction.commit().await.unwrap();
            }
        }
    });
    soon(join_all(writers)).await;

    let mut follower = recorders[1].log().follow_all(start).await.unwrap();
    let mut told = BTreeSet::new();
    while told.len() < 12 * 15 * 3 {
        let Step::Transactions { transactions, .. } = soon(follower.next()).await.unwrap() else { panic!() };
        for change in transactions.iter().flat_map(|transaction| &transaction.changes) {
            let name = change.after.as_ref().unwrap().cell(1).unwrap().trim_matches('"').to_owned();
            let [kind, writer, _] = name.split(' ').collect::<Vec<_>>()[..] else { panic!("{name}") };
            let (actor, origin) = match kind {
                "app" => ("service:app".to_owned(), None),
                _ => (format!("user:{writer}"), Some(format!("o{writer}"))),
            };
            let mutation = (kind == "user").then(|| format!("m{writer}"));
            assert_eq!(change.actor.as_deref(), Some(&*actor), "{name}");
            assert_eq!(change.origin.as_deref(), origin.as_deref(), "{name}");
            assert_eq!(change.mutation_id.as_deref(), mutation.as_deref(), "{name}");
            assert!(kind != "never" && told.insert(name), "told again, or never written");
        }
    }
    pooled.zoo.assert_replays().await;
}

/// Rows of types that only the database knows, snapshots, queries, retention.
#[tokio::test(flavor = "multi_thread")]
async fn reading_works_as_it_does_without() {
    let Some(pooled) = pooled(Capture::Hooks).await else { return };
    let recorder = pooled.recorder(None).await;
    new_animal(9, "ola", None).insert(&recorder).await.unwrap();
    assert_eq!(animal::Entity::find().all(&recorder).await.unwrap().len(), 5);
    let mut events = recorder.log().follow(Shape::of::<animal::Entity>(), Start::Snapshot).await.unwrap();
    let Batch::Events { events: rows, .. } = soon(events.next()).await.unwrap() else { panic!() };
    assert_eq!(rows.len(), 5);
    recorder.log().stats().await.unwrap();
    let end = recorder.log().position().await.unwrap();
    // What was in flight anywhere on the server is kept until it has ended.
    eventually(async || recorder.log().prune(None, Some(1), 1_000).await.unwrap().changes > 0).await;
    assert!(end.covers(&Cursor::start()));
    recorder.install_capture().await.unwrap();
    recorder.check().await.unwrap();
}

/// `LISTEN` cannot go through. That is said, and a direct address mends it.
#[tokio::test(flavor = "multi_thread")]
async fn doorbells_go_the_direct_way() {
    let Some(pooled) = pooled(Capture::Hooks).await else { return };
    let without = pooled.recorder(None).await;
    let error = without.log().check_doorbell().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Setup && error.to_string().contains("`direct_url`"), "{error}");
    let with = pooled.recorder(Some(&pooled.direct)).await;
    assert!(with.log().check_doorbell().await.unwrap());

    // Rung through the pooler, heard past it.
    with.check().await.unwrap();
    let mut follower = with.log().follow_all(with.log().position().await.unwrap()).await.unwrap();
    eventually(async || with.log().tail_stats().rung).await;
    run(&without, "INSERT INTO food (name) VALUES ('rung')").await;
    loop {
        let Step::Transactions { transactions, .. } = soon(follower.next()).await.unwrap() else { panic!() };
        if !transactions.is_empty() {
            return;
        }
    }
}

/// The database's own log cannot go through either. Whoever tries is told what to do, and holds up nobody who can.
#[tokio::test(flavor = "multi_thread")]
async fn the_databases_log_is_read_the_direct_way() {
    let Some(pooled) = pooled(Capture::Log).await else { return };
    let refused = |error: tidewire_outbox::Error| {
        assert!(error.kind() == ErrorKind::Setup && error.to_string().contains("`direct_url`"), "{error}");
    };
    let without = pooled.recorder(None).await;
    refused(without.check().await.unwrap_err());
    refused(without.install_capture().await.unwrap_err());
    refused(without.log().position().await.unwrap_err());
    without.start_capture().await.unwrap();

    // GIVEN a node that has both addresses, and no other that reads the log
    let with = pooled.recorder(Some(&pooled.direct)).await;
    pooled.zoo.recorder.close().await;
    with.check().await.unwrap();
    with.start_capture().await.unwrap();
    let mut follower = with.log().follow_all(with.log().position().await.unwrap()).await.unwrap();

    // WHEN it writes through the pooler, in somebody's name
    let named = with.clone().acting_as(Actor::user(7));
    food::ActiveModel { name: Set("by log".into()), ..Default::default() }.insert(&named).await.unwrap();

    // THEN it is told, and the snapshot of now has it
    let change = loop {
        let Step::Transactions { transactions, .. } = soon(follower.next()).await.unwrap() else { panic!() };
        if let Some(transaction) = transactions.first() {
            break transaction.changes[0].clone();
        }
    };
    assert_eq!(change.actor.as_deref(), Some("user:7"));
    assert_eq!(change.after.unwrap().cell(1), Some("\"by log\""));
    with.install_capture().await.unwrap();
    let mut events = with.log().follow(Shape::of::<food::Entity>(), Start::Snapshot).await.unwrap();
    let Batch::Events { events: rows, .. } = soon(events.next()).await.unwrap() else { panic!() };
    assert_eq!(rows.len(), 3);
}

/// What a statement does beside what it answers is kept, however it is run.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_transaction_of_the_callers_writes_is_kept() {
    for capture in [Capture::Hooks, Capture::Triggers] {
        let Some(pooled) = pooled(capture).await else { return };
        let plain = pooled.zoo.recorder.unrecorded();
        run(
            plain,
            "CREATE TABLE plain (id int);
             CREATE FUNCTION add_plain(int) RETURNS int LANGUAGE sql AS 'INSERT INTO plain VALUES ($1) RETURNING id'",
        )
        .await;
        let recorder = pooled.recorder(None).await;
        let statement = |sql: &str| Statement::from_string(DbBackend::Postgres, sql);
        let rows = recorder.stream_raw(statement("INSERT INTO plain VALUES (1), (2) RETURNING id")).await.unwrap();
        assert_eq!(rows.try_collect::<Vec<_>>().await.unwrap().len(), 2);
        let rows = recorder.stream_raw(statement("SELECT add_plain(3) AS id")).await.unwrap();
        assert_eq!(rows.try_collect::<Vec<_>>().await.unwrap().len(), 1);
        assert_eq!(recorder.query_all_raw(statement("SELECT add_plain(4) AS id")).await.unwrap().len(), 1);
        let kept = statement("SELECT sum(id) AS sum FROM plain");
        let sum: i64 = plain.query_one_raw(kept).await.unwrap().unwrap().try_get("", "sum").unwrap();
        assert_eq!(sum, 10, "{capture}");
    }
}
