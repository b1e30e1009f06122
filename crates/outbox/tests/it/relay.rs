//! The relay between processes of one database. Recorders here share nothing but the database and NATS, as processes do.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream;
use sea_orm::{EntityTrait, TransactionSession, TransactionTrait};
use tidewire_outbox::{
    Capture, Cursor, ErrorKind, Follower, Recorder, RecorderOptions, Registry, RelayOptions, RelayStats, Step,
    Transaction,
};
use tidewire_testkit::{NatsServer, TestDatabase, eventually, soon, zoo};

use crate::support::{Zoo, animal, run};

const PATIENCE: Duration = Duration::from_millis(400);

/// A zoo, and NATS; nothing where one of them is not installed.
async fn zoo() -> Option<(Zoo, NatsServer)> {
    let nats = NatsServer::own().await?;
    Some((Zoo::of(TestDatabase::postgres().await?.captured_by(Capture::Hooks)).await, nats))
}

fn options(nats: &NatsServer, publish: bool) -> RecorderOptions {
    let mut relay = RelayOptions::new(nats.url());
    relay.patience = PATIENCE;
    relay.publish = publish;
    let mut options = RecorderOptions::default();
    options.log.relay = Some(relay);
    options
}

/// A process whose tail runs, and somebody who follows it.
struct Node {
    recorder: Recorder,
    follower: Follower,
}

impl Node {
    async fn new(zoo: &Zoo, nats: &NatsServer, publish: bool) -> Self {
        Self::of(zoo, zoo::registry(), options(nats, publish)).await
    }

    async fn of(zoo: &Zoo, registry: Registry, options: RecorderOptions) -> Self {
        let recorder = Recorder::connect_with(zoo.database.url(), registry, options).await.unwrap();
        recorder.check().await.unwrap();
        let now = recorder.log().position().await.unwrap();
        let follower = recorder.log().follow_all(now).await.unwrap();
        Self { recorder, follower }
    }

    /// Which publishes or hears another, and does not give up on that, however slow this machine is.
    async fn patient(zoo: &Zoo, nats: &NatsServer, publish: bool) -> Self {
        let mut options = options(nats, publish);
        options.log.relay.as_mut().unwrap().patience = Duration::from_secs(16);
        let node = Self::of(zoo, zoo::registry(), options).await;
        eventually(async || node.relay().publishing || node.relay().live).await;
        node
    }

    /// Which publishes, once it does.
    async fn publisher(zoo: &Zoo, nats: &NatsServer) -> Self {
        let node = Self::new(zoo, nats, true).await;
        eventually(async || node.relay().publishing).await;
        node
    }

    /// Which hears another publish, once it does, and has no more to ask.
    async fn live(zoo: &Zoo, nats: &NatsServer) -> Self {
        let node = Self::new(zoo, nats, false).await;
        eventually(async || node.relay().live).await;
        node
    }

    fn relay(&self) -> RelayStats {
        self.recorder.log().tail_stats().relay.unwrap()
    }

    fn reads(&self) -> u64 {
        self.recorder.log().tail_stats().reads
    }

    /// Waits for so many changes.
    async fn take(&mut self, changes: usize) -> Vec<Arc<Transaction>> {
        let mut all = Vec::new();
        let mut missing = changes;
        while missing > 0 {
            match soon(self.follower.next()).await.unwrap() {
                Step::Transactions { transactions, .. } => {
                    let came: usize = transactions.iter().map(|transaction| transaction.changes.len()).sum();
                    missing = missing.checked_sub(came).expect("no more came than was written");
                    all.extend(transactions);
                }
                other => panic!("{other:?}"),
            }
        }
        all
    }
}

async fn feed(zoo: &Zoo, name: &str) {
    run(&zoo.recorder, &format!("INSERT INTO food (name) VALUES ('{name}')")).await;
}

/// What does not change from one way to another: numbers, images, and in whose name.
fn told(transactions: &[Arc<Transaction>]) -> Vec<String> {
    let changes = transactions.iter().flat_map(|transaction| &*transaction.changes);
    let cells = |image: &Option<tidewire_outbox::Image>| {
        image.as_ref().map(|image| image.cells().map(|cell| cell.map(str::to_owned)).collect::<Vec<_>>())
    };
    changes
        .map(|change| {
            let (before, after) = (cells(&change.before), cells(&change.after));
            let names = (&change.actor, &change.origin, &change.mutation_id);
            format!(
                "{} {:?} {} {before:?} {after:?} {names:?} {}",
                change.seq, change.entity, change.operation, change.at
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_process_reads_the_others_need_not_ask_for() {
    let Some((zoo, nats)) = zoo().await else { return };
    let mut publisher = Node::patient(&zoo, &nats, true).await;
    let mut others = [Node::patient(&zoo, &nats, false).await, Node::patient(&zoo, &nats, false).await];
    // The first stretch may not continue what they have.
    feed(&zoo, "first").await;
    for node in &mut others {
        node.take(1).await;
    }
    let before = others.each_ref().map(Node::reads);

    // WHEN rows of every kind are written
    zoo.populate().await;
    for number in 0..200 {
        feed(&zoo, &number.to_string()).await;
    }

    // THEN all see the same
    let count = 16 + 200;
    let expected = told(&publisher.take(1 + count).await).split_off(1);
    for (node, before) in others.iter_mut().zip(before) {
        assert_eq!(told(&node.take(count).await), expected);
        // AND the database was not asked, but perhaps once more to join
        let (asked, taken) = (node.reads() - before, node.relay().taken);
        assert!(asked <= 2 && taken > 0, "the database was asked {asked} times, {taken} stretches were taken");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missing_while_nats_is_away_or_has_forgotten_everything() {
    let Some((zoo, mut nats)) = zoo().await else { return };
    let mut publisher = Node::publisher(&zoo, &nats).await;
    let mut other = Node::live(&zoo, &nats).await;
    for round in 0..4 {
        feed(&zoo, &format!("with {round}")).await;
        match round % 2 {
            0 => nats.kill(),
            _ => nats.kill_and_forget(),
        }
        feed(&zoo, &format!("without {round}")).await;
        let expected = told(&publisher.take(2).await);
        assert_eq!(told(&other.take(2).await), expected);
        eventually(async || !other.relay().live).await;
        assert!(other.recorder.log().tail_stats().healthy);
        nats.start().await;
        eventually(async || other.relay().live && publisher.relay().publishing).await;
    }
    let taken = other.relay().taken;
    // The first may be read from the database, to join.
    while other.relay().taken == taken {
        feed(&zoo, "again").await;
        other.take(1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_goes_is_succeeded() {
    let Some((zoo, nats)) = zoo().await else { return };
    let first = Node::publisher(&zoo, &nats).await;
    let mut second = Node::new(&zoo, &nats, true).await;
    let mut other = Node::live(&zoo, &nats).await;
    eventually(async || second.relay().live).await;
    assert!(!second.relay().publishing);
    feed(&zoo, "before").await;
    first.recorder.close().await;
    feed(&zoo, "between").await;
    eventually(async || second.relay().publishing).await;
    eventually(async || other.relay().live).await;
    feed(&zoo, "after").await;
    let expected = told(&second.take(3).await);
    assert_eq!(told(&other.take(3).await), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_larger_than_a_message_comes_in_parts_or_is_read() {
    let Some((zoo, nats)) = zoo().await else { return };
    let mut publisher = Node::patient(&zoo, &nats, true).await;
    let mut other = Node::patient(&zoo, &nats, false).await;
    feed(&zoo, "first").await;
    other.take(1).await;
    publisher.take(1).await;
    // GIVEN transactions of some three and of some twenty times what NATS takes
    for (rows, taken) in [(3, true), (20, false)] {
        let before = (other.relay().taken, other.reads());
        let transaction = zoo.recorder.begin().await.unwrap();
        for number in 0..rows {
            let row = animal((rows + number) as u8, &"x".repeat(1 << 20), None);
            zoo::animal::Entity::insert(row).exec_without_returning(&transaction).await.unwrap();
        }
        transaction.commit().await.unwrap();
        // THEN they come, whole, by the one way or the other
        let expected = told(&publisher.take(rows).await);
        let transactions = other.take(rows).await;
        assert_eq!(transactions.len(), 1);
        assert_eq!(told(&transactions), expected);
        assert!(!taken || other.relay().taken > before.0, "it was not taken");
        assert!(taken || other.reads() > before.1, "the database was not asked");
    }
}

/// What else may be on the subject: other programs', other databases', what was there before.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_belong_there_changes_nothing() {
    let Some((zoo, nats)) = zoo().await else { return };
    let client = async_nats::connect(nats.url()).await.unwrap();
    let stream = jetstream::new(client.clone());
    let mut publisher = Node::publisher(&zoo, &nats).await;
    let mut other = Node::live(&zoo, &nats).await;
    // GIVEN another database with the same subject
    let foreign = Zoo::of(zoo.database.another().await).await;
    let _foreign = Node::publisher(&foreign, &nats).await;
    let mut expected = Vec::new();
    for round in 0..5 {
        // WHEN noise, everything that was ever sent, and the other's changes come in between, and the stream is emptied
        feed(&foreign, &format!("foreign {round}")).await;
        feed(&zoo, &format!("ours {round}")).await;
        expected.extend(told(&publisher.take(1).await));
        client.publish("tidewire.log", "noise".into()).await.unwrap();
        let kept = stream.get_stream("tidewire").await.unwrap();
        let last = kept.cached_info().state.last_sequence;
        for sequence in kept.cached_info().state.first_sequence.max(last.saturating_sub(30))..=last {
            if let Ok(message) = kept.get_raw_message(sequence).await {
                client.publish("tidewire.log", message.payload).await.unwrap();
            }
        }
        if round == 3 {
            kept.purge().await.unwrap();
        }
    }
    // THEN everybody is told what is theirs, once
    assert_eq!(told(&other.take(5).await), expected);
    feed(&zoo, "the end").await;
    let end = other.take(1).await;
    assert_eq!(told(&end), told(&publisher.take(1).await));
}

/// Rows travel without the names of their columns.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_with_other_entities_reads_the_database() {
    let Some((zoo, nats)) = zoo().await else { return };
    let _publisher = Node::publisher(&zoo, &nats).await;
    let registry = Registry::new().entity::<zoo::keeper::Entity>();
    let mut other = Node::of(&zoo, registry, options(&nats, false)).await;
    eventually(async || other.relay().live).await;
    feed(&zoo, "not theirs").await;
    run(&zoo.recorder, "INSERT INTO keeper (id, email, name) VALUES (7, 'x', 'y')").await;
    let transactions = other.take(1).await;
    let name = other.recorder.catalog().entity(transactions[0].changes[0].entity).name;
    assert_eq!(name, "keeper");
    assert_eq!(other.relay().taken, 0);
}

/// Who waits for a moment that the relay has yet to tell of need not wait for the relay.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_and_what_follows_fit_together_on_a_relay() {
    let Some((zoo, nats)) = zoo().await else { return };
    let _publisher = Node::publisher(&zoo, &nats).await;
    let other = Node::live(&zoo, &nats).await;
    for round in 0..20 {
        feed(&zoo, &format!("before {round}")).await;
        let position = other.recorder.log().position().await.unwrap();
        let mut follower = other.recorder.log().follow_all(position.clone()).await.unwrap();
        feed(&zoo, &format!("after {round}")).await;
        let first = loop {
            match soon(follower.next()).await.unwrap() {
                Step::Transactions { transactions, .. } if transactions.is_empty() => {}
                Step::Transactions { transactions, .. } => break transactions,
                step => panic!("{step:?}"),
            }
        };
        let image = first[0].changes[0].image();
        let meta = other.recorder.catalog().find("food").unwrap();
        let name = image.cell(meta.column_index("name").unwrap()).unwrap();
        assert_eq!(name, format!("\"after {round}\""));
    }
    // AND from the start everything comes, once
    let mut all = other.recorder.log().follow_all(Cursor::start()).await.unwrap();
    let mut count = 0;
    while count < 40 {
        if let Step::Transactions { transactions, .. } = soon(all.next()).await.unwrap() {
            count += transactions.len();
        }
    }
    assert_eq!(count, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_has_a_relay_too() {
    let Some(nats) = NatsServer::own().await else { return };
    let Some(database) = TestDatabase::mariadb().await else { return };
    let zoo = Zoo::of(database).await;
    let mut publisher = Node::publisher(&zoo, &nats).await;
    let mut other = Node::live(&zoo, &nats).await;
    for number in 0..50 {
        feed(&zoo, &number.to_string()).await;
    }
    let expected = told(&publisher.take(50).await);
    assert_eq!(told(&other.take(50).await), expected);
    assert!(other.relay().taken > 0, "{:?}", other.relay());
}

#[tokio::test]
async fn sqlite_has_none() {
    let mut options = RecorderOptions::default();
    options.log.relay = Some(RelayOptions::new("nats://127.0.0.1:1"));
    let refused = Recorder::connect_with("sqlite::memory:", zoo::registry(), options).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Setup);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_relay_is_told() {
    let Some((zoo, mut nats)) = zoo().await else { return };
    let check = async |nats: &NatsServer, subject: &str| {
        let mut options = options(nats, true);
        options.log.relay.as_mut().unwrap().subject = subject.into();
        let recorder = Recorder::connect_with(zoo.database.url(), zoo::registry(), options).await.unwrap();
        recorder.log().check_relay().await
    };
    assert!(check(&nats, "tidewire.log").await.unwrap());
    assert_eq!(check(&nats, "another").await.unwrap_err().kind(), ErrorKind::Setup);
    assert!(!zoo.recorder.log().check_relay().await.unwrap());
    nats.kill();
    assert_eq!(check(&nats, "tidewire.log").await.unwrap_err().kind(), ErrorKind::Unavailable);
}

/// Not a test: the numbers in docs/BENCHMARKS.md.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures for a minute"]
async fn measure_what_a_relay_saves_and_costs() {
    let Some((postgres, nats)) = zoo().await else { return };
    measure("PostgreSQL", &postgres, &nats).await;
    let (Some(mariadb), Some(nats)) = (TestDatabase::mariadb().await, NatsServer::own().await) else { return };
    measure("MariaDB", &Zoo::of(mariadb).await, &nats).await;
}

async fn measure(name: &str, zoo: &Zoo, nats: &NatsServer) {
    const NODES: usize = 8;
    for by_relay in [false, true] {
        for pause in [Duration::from_millis(100), Duration::from_millis(5)] {
            let publisher = if by_relay { Some(Node::publisher(zoo, nats).await) } else { None };
            let mut readers = Vec::new();
            for _ in 0..NODES {
                readers.push(match by_relay {
                    true => Node::live(zoo, nats).await,
                    false => Node::of(zoo, zoo::registry(), RecorderOptions::default()).await,
                });
            }
            feed(zoo, &format!("{by_relay} {pause:?}")).await;
            for reader in &mut readers {
                reader.take(1).await;
            }
            let before: u64 = readers.iter().map(Node::reads).sum();
            let began = std::time::Instant::now();
            let readers: Vec<_> = readers
                .into_iter()
                .map(|mut reader| {
                    tokio::spawn(async move {
                        let mut late = Vec::new();
                        while began.elapsed() < Duration::from_secs(6) {
                            let Ok(step) =
                                tokio::time::timeout(Duration::from_millis(100), reader.follower.next()).await
                            else {
                                continue;
                            };
                            let Step::Transactions { transactions, .. } = step.unwrap() else { panic!() };
                            let now = chrono::Utc::now();
                            late.extend(transactions.iter().map(|transaction| now - transaction.changes[0].at));
                        }
                        (reader, late)
                    })
                })
                .collect();
            let mut written = 0;
            while began.elapsed() < Duration::from_secs(5) {
                feed(zoo, &format!("{by_relay} {pause:?} {written}")).await;
                written += 1;
                tokio::time::sleep(pause).await;
            }
            let (mut reads, mut late) = (0, Vec::new());
            for reader in readers {
                let (reader, its) = reader.await.unwrap();
                reads += reader.reads();
                late.extend(its);
                reader.recorder.close().await;
            }
            late.sort();
            assert_eq!(late.len(), written * NODES);
            println!(
                "{name}, relay {by_relay}, {written} commits in 5 s, {NODES} readers: {} reads of theirs; p50 {:?} p99 {:?}",
                reads - before,
                late[late.len() / 2].to_std().unwrap(),
                late[late.len() * 99 / 100].to_std().unwrap(),
            );
            if let Some(publisher) = publisher {
                publisher.recorder.close().await;
            }
        }
    }
}
