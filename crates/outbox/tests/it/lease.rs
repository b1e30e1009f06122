//! Leases: of all who would do something, one does it, and one who has lost the right writes nothing.

use std::time::{Duration, Instant};

use sea_orm::{ActiveModelTrait, EntityTrait, PaginatorTrait, Set, TransactionSession, TransactionTrait};
use tidewire_outbox::{ErrorKind, Lease, Recorder};
use tidewire_testkit::{
    Target, on_every_target, soon,
    zoo::{self, food},
};

use crate::support::{Zoo, run};

/// Long enough that nothing ends by itself while a busy machine runs the test.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

async fn foods(recorder: &Recorder) -> u64 {
    food::Entity::find().count(recorder.unrecorded()).await.unwrap()
}

/// Makes the lease end now, as if its holder had been paused for long. The holder does not know.
async fn expire(recorder: &Recorder) {
    run(recorder.unrecorded(), "UPDATE tidewire_lease SET expires = 1").await;
}

on_every_target! {
    async fn one_of_two_holds_a_lease_until_it_is_released(database: TestDatabase) {
        let zoo = Zoo::of(database).await;
        let other = Recorder::connect(zoo.database.url(), tidewire_testkit::zoo::registry()).await.unwrap();
        let first = Lease::try_acquire(&zoo.recorder, "it", LONG).await.unwrap().unwrap();
        assert!(Lease::try_acquire(&other, "it", LONG).await.unwrap().is_none());
        // Not even the same process has it twice; another name is another lease.
        assert!(Lease::try_acquire(&zoo.recorder, "it", LONG).await.unwrap().is_none());
        Lease::try_acquire(&other, "another", LONG).await.unwrap().unwrap();

        let waiting = tokio::spawn({
            let other = other.clone();
            async move { Lease::acquire(&other, "it", LONG).await.unwrap() }
        });
        let token = first.token();
        first.release().await.unwrap();
        let second = soon(waiting).await.unwrap();
        assert!(second.token() > token && !second.is_lost());
        other.close().await;
    }
}

on_every_target! {
    async fn a_holder_that_was_paused_writes_nothing(database: TestDatabase) {
        let zoo = Zoo::of(database).await;
        let meat = || food::ActiveModel { name: Set("meat".into()), ..Default::default() };

        // GIVEN a holder that wrote
        let paused = Lease::acquire(&zoo.recorder, "it", LONG).await.unwrap();
        let transaction = paused.begin(&zoo.recorder).await.unwrap();
        meat().insert(&transaction).await.unwrap();
        transaction.commit().await.unwrap();
        assert_eq!(foods(&zoo.recorder).await, 1);

        // WHEN it is paused beyond the end of its lease, and later another holds it
        expire(&zoo.recorder).await;
        assert_eq!(paused.begin(&zoo.recorder).await.unwrap_err().kind(), ErrorKind::Lost);
        let other = Lease::acquire(&zoo.recorder, "it", LONG).await.unwrap();

        // THEN it writes nothing, though it does not know yet
        assert!(!paused.is_lost() && paused.token() < other.token());
        let transaction = zoo.recorder.begin().await.unwrap();
        assert_eq!(paused.fence(&transaction).await.unwrap_err().kind(), ErrorKind::Lost);
        drop(transaction);
        assert_eq!(paused.begin(&zoo.recorder).await.unwrap_err().kind(), ErrorKind::Lost);
        // What it gives back is not the other's.
        paused.release().await.unwrap();
        other.begin(&zoo.recorder).await.unwrap();
    }
}

on_every_target! {
    async fn nobody_takes_a_lease_while_a_fenced_transaction_is_open(database: TestDatabase) {
        // GIVEN a fenced transaction of a holder whose lease ends meanwhile
        let zoo = Zoo::of(database).await;
        let other = Recorder::connect(zoo.database.url(), tidewire_testkit::zoo::registry()).await.unwrap();
        let ends_by_itself = !zoo.database.is("postgres:");
        let lease = Lease::acquire(&zoo.recorder, "it", if ends_by_itself { SHORT } else { LONG }).await.unwrap();
        let transaction = lease.begin(&zoo.recorder).await.unwrap();
        food::ActiveModel { name: Set("meat".into()), ..Default::default() }.insert(&transaction).await.unwrap();
        // Elsewhere nobody else writes the row until the transaction ends, the holder included.
        if !ends_by_itself {
            expire(&zoo.recorder).await;
        }

        // WHEN another waits for it
        let waiting = tokio::spawn({
            let other = other.clone();
            async move {
                loop {
                    // SQLite's one writer is busy.
                    match Lease::acquire(&other, "it", LONG).await {
                        Ok(_lease) => return foods(&other).await,
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}"),
                    }
                }
            }
        });
        tokio::time::sleep(SHORT * 4).await;
        assert!(!waiting.is_finished());

        // THEN it has it once the transaction has ended, and sees what was written
        transaction.commit().await.unwrap();
        drop(lease);
        assert_eq!(soon(waiting).await.unwrap(), 1);
        other.close().await;
    }
}

on_every_target! {
    async fn a_lease_is_renewed_and_its_holder_is_told_when_it_is_lost(database: TestDatabase) {
        let zoo = Zoo::of(database).await;
        let lease = Lease::acquire(&zoo.recorder, "it", Duration::from_secs(2)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!lease.is_lost());
        assert!(Lease::try_acquire(&zoo.recorder, "it", LONG).await.unwrap().is_none());

        // One whose holder died is free when its time is over.
        let began = Instant::now();
        drop(lease);
        let next = soon(Lease::acquire(&zoo.recorder, "it", Duration::from_secs(2))).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));

        expire(&zoo.recorder).await;
        soon(next.lost()).await;
        assert!(next.is_lost());
    }
}

/// Whoever needs all that has been written waits longer while a node is at reading it than where none is.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_read_slowly_is_waited_for() {
    for target in [Target::PostgresLog, Target::MariadbLog] {
        let Some(database) = target.database().await else { continue };
        let zoo = Zoo::of(database).await;
        let before = zoo.recorder.log().position().await.unwrap();
        zoo.recorder.close().await;
        let other = Recorder::connect(zoo.database.url(), zoo::registry()).await.unwrap();
        run(&zoo.database.plain().await, "INSERT INTO food (name) VALUES ('meat')").await;
        // The reader of the log, as others see it.
        let reader = Lease::acquire(&other, "capture", Duration::from_secs(4)).await.unwrap();
        let position = tokio::spawn({
            let other = other.clone();
            async move { other.log().position().await }
        });
        tokio::time::sleep(Duration::from_secs(12)).await;
        assert!(!position.is_finished(), "{target:?}");
        other.start_capture().await.unwrap();
        reader.release().await.unwrap();
        let position = soon(position).await.unwrap().unwrap();
        assert!(position.covers(&before) && !before.covers(&position), "{target:?}");
        other.close().await;
    }
}
