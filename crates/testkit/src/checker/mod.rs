//! The proof of promises I1, I3, I4 and I5: random writers in two processes, one of which is killed in mid-write again and again, and
//! subscribers that come and go. In the end each subscriber's rebuilt rows are the tables' rows, and on the way nothing was lost, repeated,
//! out of order or split.

mod control;
pub mod domain;
mod subscriber;
mod writer;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sea_orm::{ActiveModelTrait, ConnectionTrait, DbBackend, Set};
use serde_json::Value;
use tidewire_outbox::Recorder;
use tokio::{
    process::Command,
    sync::watch,
    time::{sleep, timeout},
};

use self::domain::{Rows, parent};
pub use self::{
    control::{Control, Mistake},
    subscriber::{Delivered, LogSubscriber, SocketSubscriber, Subscriber, Told},
    writer::{capture, write, writer},
};

/// The key of the row that tells subscribers that there is nothing more to come.
const END: i64 = -1;

/// How long subscribers may take to come to the end once nothing is written any more.
const CATCH_UP: Duration = Duration::from_secs(300);

/// What to check.
pub struct Checker<'a> {
    /// Opened on the database that the writers write, for looking at it and for the last row.
    pub recorder: &'a Recorder,
    /// Makes the command of a writer process, from a seed.
    pub writer: &'a dyn Fn(u64) -> Command,
    /// How many changes to wait for.
    pub changes: u64,
    /// Readers that make a well-known mistake, which must be found.
    pub controls: Vec<Control>,
    /// Told when the writers have ended, whoever has accidents happen; the run waits until the other end is gone.
    pub accidents: Option<watch::Sender<bool>>,
    /// Makes the run's choices repeatable, as far as processes can be.
    pub seed: u64,
}

impl fmt::Debug for Checker<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checker").field("changes", &self.changes).field("seed", &self.seed).finish_non_exhaustive()
    }
}

/// What a run saw.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Changes in the log.
    pub changes: u64,
    /// Times that a writer was killed.
    pub kills: u64,
    /// Times that subscribers connected.
    pub connections: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl Checker<'_> {
    /// Runs until there are as many changes as asked for, and every subscriber has seen them.
    ///
    /// # Panics
    /// When a subscriber was told something that does not follow, or ends with other rows than the tables have.
    pub async fn run(&self, subscribers: Vec<Box<dyn Subscriber>>) -> Report {
        let began = Instant::now();
        let connections = Arc::new(AtomicU64::new(0));
        let followers: Vec<_> = subscribers
            .into_iter()
            .zip(self.seed..)
            .map(|(subscriber, seed)| {
                let view = View { rows: Rows::new(), changes: 0, follows_all: subscriber.follows_all() };
                tokio::spawn(follow(subscriber, view, ChaCha8Rng::seed_from_u64(seed), Arc::clone(&connections)))
            })
            .collect();
        let controls: Vec<_> = self.controls.iter().cloned().map(|control| tokio::spawn(control.read())).collect();
        let kills = self.write().await;
        if let Some(accidents) = &self.accidents {
            let _ = accidents.send(true);
            accidents.closed().await;
        }
        let end = parent::ActiveModel { id: Set(END), name: Set("the end".into()), n: Set(0), note: Set(None) };
        // What lies idle may have been cut; it is found out after a while.
        while let Err(error) = end.clone().insert(self.recorder).await {
            assert!(tidewire_outbox::Error::from(error).is_transient(), "the last row cannot be written");
            sleep(Duration::from_millis(100)).await;
        }
        // By then all of it is in the outbox.
        self.recorder.log().position().await.unwrap();
        let changes = self.count().await;
        for (control, reading) in self.controls.iter().zip(controls) {
            control.assert_wrong(crate::soon(reading).await.unwrap(), changes);
        }
        let tables = domain::tables(self.recorder.unrecorded()).await;
        for follower in followers {
            // Those who come and go take their time to come to the end; one that waits in vain for an event says so itself.
            let (view, subscriber) =
                timeout(CATCH_UP, follower).await.expect("a subscriber never came to the end").unwrap();
            view.assert_is(&tables, &*subscriber, changes);
        }
        let connections = connections.load(Ordering::Relaxed);
        Report { changes, kills, connections, elapsed: began.elapsed() }
    }

    /// How many changes there are. Counted, and not told from numbers: those may have holes.
    async fn count(&self) -> u64 {
        let count = match self.recorder.get_database_backend() {
            // Triggers there also tell that a row lies elsewhere now.
            DbBackend::Postgres => "SELECT count(*) FROM tidewire_outbox WHERE before IS DISTINCT FROM after",
            _ => "SELECT count(*) FROM tidewire_outbox",
        };
        loop {
            match writer::number(self.recorder.unrecorded(), count.into()).await {
                Ok(count) => return u64::try_from(count).unwrap(),
                // The server may be away for a while.
                Err(error) if tidewire_outbox::Error::from(error.clone()).is_transient() => {
                    sleep(Duration::from_millis(50)).await;
                }
                Err(_) => panic!("the outbox cannot be counted"),
            }
        }
    }

    /// Lets the writers write until there are enough changes; answers how often one was killed.
    async fn write(&self) -> u64 {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut seed = self.seed;
        let mut start = || {
            seed += 1;
            (self.writer)(seed).spawn().unwrap()
        };
        let mut steady = start();
        let mut victim = start();
        let mut kills = 0;
        loop {
            sleep(Duration::from_millis(random.random_range(50..400))).await;
            victim.kill().await.unwrap();
            kills += 1;
            victim = start();
            assert_eq!(steady.try_wait().unwrap(), None, "the steady writer ended");
            if self.count().await >= self.changes {
                steady.kill().await.unwrap();
                victim.kill().await.unwrap();
                return kills + 2;
            }
        }
    }
}

/// A subscriber's life: connects, takes some events, is cut off, and goes on from the last cursor that it had, until it sees the last row.
async fn follow(
    mut subscriber: Box<dyn Subscriber>,
    mut view: View,
    mut random: ChaCha8Rng,
    connections: Arc<AtomicU64>,
) -> (View, Box<dyn Subscriber>) {
    let mut cursor: Option<String> = None;
    loop {
        connections.fetch_add(1, Ordering::Relaxed);
        subscriber.connect(cursor.as_deref()).await;
        if cursor.is_none() {
            // Cut off within its snapshot, it starts over.
            view.rows.clear();
            view.changes = 0;
        }
        let events = random.random_range(1..3_000);
        let deadline = Instant::now() + Duration::from_millis(random.random_range(10..1_500));
        for number in 0..events {
            let event = subscriber.next().await;
            assert!(
                event.sequence.is_none_or(|sequence| sequence == number),
                "event {number} has another number: {event:?}"
            );
            cursor = event.cursor.clone().or(cursor);
            if view.take(event) {
                return (view, subscriber);
            }
            if Instant::now() > deadline {
                break;
            }
        }
        subscriber.disconnect().await;
        sleep(Duration::from_millis(random.random_range(0..300))).await;
    }
}

/// What a subscriber knows.
struct View {
    rows: Rows,
    changes: u64,
    follows_all: bool,
}

impl View {
    /// Takes an event, which must follow from what is known. Answers whether it was the last.
    fn take(&mut self, event: Delivered) -> bool {
        if self.follows_all {
            assert_whole(&event);
        }
        let mut ended = false;
        for told in event.changes {
            let Told { entity, key, before, after, .. } = told;
            ended |= entity == "parent" && key == format!("{{\"id\":{END}}}");
            self.changes += 1;
            let place = (entity, key);
            let known = self.rows.remove(&place);
            assert_eq!(before, known, "{place:?} was another before, at change {}", self.changes);
            assert!(before.is_some() || after.is_some(), "{place:?} neither was nor is");
            assert_ne!(before, after, "{place:?} did not change");
            if let Some(after) = after {
                self.rows.insert(place, after);
            }
        }
        ended
    }

    fn assert_is(&self, tables: &Rows, subscriber: &dyn Subscriber, changes: u64) {
        let expected: Vec<(&(String, String), &Value)> =
            tables.iter().filter(|((entity, _), row)| subscriber.follows(entity, row)).collect();
        let known: Vec<_> = self.rows.iter().collect();
        assert_eq!(known, expected, "what a subscriber has at the end is not what the tables have");
        assert!(!self.follows_all || self.changes == changes, "a subscriber had {} of {changes} changes", self.changes);
    }
}

/// A transaction of several changes comes whole, and none comes with another.
fn assert_whole(event: &Delivered) {
    let Some(id) = event.changes.first().and_then(|told| told.mutation_id.as_ref()) else {
        assert!(event.changes.iter().all(|told| told.mutation_id.is_none()), "two transactions in one: {event:?}");
        return;
    };
    assert!(
        event.changes.iter().all(|told| told.mutation_id.as_ref() == Some(id)),
        "two transactions in one: {event:?}"
    );
    let ledger = event.changes.iter().find(|told| told.entity == "ledger");
    let row = ledger.and_then(|told| told.after.as_ref());
    let said = row.and_then(|row| row["changes"].as_u64());
    assert_eq!(said, Some(event.changes.len() as u64), "the transaction {id} was split");
}
