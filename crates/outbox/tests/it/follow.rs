//! I3, I4, I5 and I7: following, resuming, starting over.

use std::time::Duration;

use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, EntityTrait, ExprTrait, Set, TransactionTrait, sea_query::Expr,
};
use tidewire_outbox::{
    Batch, Cursor, ErrorKind, Event, Filter, Recorder, RecorderOptions, ResyncReason, Shape, Start, Step,
};
use tidewire_testkit::{
    Replica, TestDatabase, eventually, on_every_target, soon,
    zoo::{self, animal, food},
};

use crate::support::{Zoo, animal, id, run};

async fn add_food(db: &impl ConnectionTrait, name: &str) -> i64 {
    food::ActiveModel { name: Set(name.into()), ..Default::default() }.insert(db).await.unwrap().id
}

/// The names of the foods in the events up to the one that says that there are no more.
async fn names(events: &mut tidewire_outbox::Events<food::Entity>) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        match soon(events.next()).await.unwrap() {
            Batch::Events { events, up_to_date, .. } => {
                names.extend(events.into_iter().map(|event| match event {
                    Event::Enter(row) => format!("+{}", row.name),
                    Event::Update { before, after } => format!("{}>{}", before.name, after.name),
                    Event::Leave(row) => format!("-{}", row.name),
                }));
                if up_to_date {
                    return names;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

on_every_target! {
    async fn rows_enter_change_and_leave_a_shape(database: TestDatabase) {
        // GIVEN someone who follows the foods whose name begins with an m
        let zoo = Zoo::of(database).await;
        zoo.populate().await;
        let shape = || Shape::of::<food::Entity>().filter(food::Column::Name.starts_with("m"));
        let mut events = zoo.recorder.log().follow(shape(), Start::Snapshot).await.unwrap();
        assert_eq!(names(&mut events).await, ["+meat"]);

        // WHEN rows come, change and go, in and out of the shape
        for sql in [
            "INSERT INTO food (name) VALUES ('milk'), ('nuts')",
            "UPDATE food SET name = 'malt' WHERE name = 'milk'",
            "UPDATE food SET name = 'oats' WHERE name = 'malt'",
            "UPDATE food SET name = 'maize' WHERE name = 'nuts'",
            "UPDATE food SET name = 'fowl' WHERE name = 'fish'",
            "DELETE FROM food WHERE name = 'maize'",
        ] {
            run(&zoo.recorder, sql).await;
        }
        add_food(&zoo.recorder, "mud").await;

        // THEN they are told what it means to them
        let mut told = Vec::new();
        while told.last().is_none_or(|last| last != "+mud") {
            told.extend(names(&mut events).await);
        }
        assert_eq!(told, ["+milk", "milk>malt", "-malt", "+maize", "-maize", "+mud"]);
    }
}

#[tokio::test]
async fn a_shape_that_cannot_be_followed_is_refused() {
    let zoo = Zoo::new().await;
    let log = zoo.recorder.log();
    let shape = Shape::of::<food::Entity>().filter(Expr::col(food::Column::Name).eq(Expr::col(food::Column::Id)));
    assert_eq!(log.follow(shape, Start::Now).await.unwrap_err().kind(), ErrorKind::Filter);
    let shape = Shape::of::<food::Entity>().filter(animal::Column::Name.eq("x"));
    assert_eq!(log.follow(shape, Start::Now).await.unwrap_err().kind(), ErrorKind::Filter);
    let other = TestDatabase::sqlite();
    let registry = tidewire_outbox::Registry::new().entity::<food::Entity>();
    let other = other.recorder(registry, zoo::create).await;
    let shape = Shape::of::<animal::Entity>();
    assert_eq!(other.log().follow(shape, Start::Now).await.unwrap_err().kind(), ErrorKind::Registry);
}

on_every_target! {
    /// I5: while writers write, a snapshot and the log after its cursor fit together exactly, whenever it is taken.
    async fn a_snapshot_and_what_follows_it_fit_together(database: TestDatabase) {
        let zoo = Zoo::of(database).await;
        zoo.populate().await;
        let writer = {
            let db = zoo.recorder.clone();
            tokio::spawn(async move {
                for round in 0..600_u32 {
                    let n = u8::try_from(round % 50 + 10).unwrap();
                    match round % 3 {
                        0 => drop(animal(n, "new", None).insert(&db).await),
                        1 => run(&db, &format!("UPDATE animal SET weight = {round} WHERE weight < {n}")).await,
                        _ => drop(animal::Entity::delete_by_id(id(n.wrapping_add(1))).exec(&db).await),
                    }
                }
            })
        };
        let meta = zoo.recorder.catalog().of::<animal::Entity>().unwrap();
        let mut states = Vec::new();
        while !writer.is_finished() {
            // A few rows at a time, so that the writer writes between the parts.
            let mut snapshot = zoo.recorder.log().snapshot(meta, Filter::all(), 5).await.unwrap();
            let mut rows = Vec::new();
            while let Some(part) = snapshot.next().await.unwrap() {
                rows.extend(part);
            }
            states.push((rows, snapshot.cursor().clone()));
        }
        writer.await.unwrap();
        assert!(states.len() > 5);
        for (rows, cursor) in states {
            let mut replica = Replica::starting_with(meta, rows);
            for transaction in zoo.transactions(cursor).await {
                replica.apply(zoo.recorder.catalog(), &transaction);
            }
            replica.assert_equals::<animal::Entity>(zoo.recorder.catalog(), zoo.recorder.unrecorded()).await;
        }
    }
}

on_every_target! {
    async fn a_snapshot_that_nobody_reads_is_given_up(database: TestDatabase) {
        // GIVEN a log that allows one snapshot at a time, and little patience
        let mut options = RecorderOptions::default();
        options.log.max_snapshots = 1;
        options.log.snapshot_patience = Duration::from_millis(50);
        let recorder = database.recorder_with(zoo::registry(), options, zoo::create).await;
        for n in 0..10 {
            add_food(&recorder, &n.to_string()).await;
        }
        let meta = recorder.catalog().of::<food::Entity>().unwrap();

        // WHEN someone opens one and takes nothing
        let mut lazy = recorder.log().snapshot(meta, Filter::all(), 2).await.unwrap();
        let first = lazy.next().await.unwrap().unwrap();
        assert_eq!(first.len(), 2);

        // THEN the next in line has its turn, and the first is told
        let mut second = soon(recorder.log().snapshot(meta, Filter::all(), 100)).await.unwrap();
        assert_eq!(second.next().await.unwrap().unwrap().len(), 10);
        assert!(second.next().await.unwrap().is_none());
        let lost = async {
            loop {
                if let Err(error) = lazy.next().await {
                    return error;
                }
            }
        };
        assert_eq!(soon(lost).await.kind(), ErrorKind::Busy);
    }
}

on_every_target! {
    async fn a_cursor_resumes_in_another_process_and_from_the_table(database: TestDatabase) {
        // GIVEN a cursor, and changes after it that another process's ring never saw
        let zoo = Zoo::of(database).await;
        add_food(&zoo.recorder, "a").await;
        let cursor = zoo.recorder.log().position().await.unwrap();
        for name in ["b", "c", "d"] {
            add_food(&zoo.recorder, name).await;
        }
        let mut options = RecorderOptions::default();
        options.log.chunk_changes = 1;
        options.log.ring_max_transactions = 1;
        let other = Recorder::connect_with(zoo.database.url(), zoo::registry(), options).await.unwrap();

        // WHEN it is used there, and both write
        let mut events =
            other.log().follow(Shape::of::<food::Entity>(), cursor.to_string().parse::<Cursor>().unwrap()).await.unwrap();
        let mut told = names(&mut events).await;
        add_food(&other, "e").await;
        add_food(&zoo.recorder, "f").await;
        while told.len() < 5 {
            told.extend(names(&mut events).await);
        }

        // THEN nothing is missed and nothing repeated
        assert_eq!(told, ["+b", "+c", "+d", "+e", "+f"]);
        other.close().await;
    }
}

async fn first_resync(recorder: &Recorder, cursor: Cursor) -> ResyncReason {
    let mut follower = recorder.log().follow_all(cursor).await.unwrap();
    loop {
        match soon(follower.next()).await.unwrap() {
            Step::Resync(reason) => return reason,
            Step::Transactions { up_to_date: false, .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

on_every_target! {
    async fn a_cursor_whose_changes_were_trimmed_is_answered_by_a_resync(database: TestDatabase) {
        let zoo = Zoo::of(database.alone().await).await;
        let mut cursors = Vec::new();
        for n in 0..10 {
            cursors.push(zoo.recorder.log().position().await.unwrap());
            let transaction = sea_orm::TransactionTrait::begin(&zoo.recorder).await.unwrap();
            add_food(&transaction, &format!("{n}a")).await;
            add_food(&transaction, &format!("{n}b")).await;
            sea_orm::TransactionSession::commit(transaction).await.unwrap();
        }
        let log = zoo.recorder.log();
        // All of it is in the outbox, also where it is appended later.
        log.position().await.unwrap();

        // Five changes are to stay; a transaction is not cut in two, so it is six.
        let pruned = log.prune(None, Some(5), 3).await.unwrap();
        assert!(pruned.more && pruned.changes == 4, "{pruned:?}");
        while log.prune(None, Some(5), 3).await.unwrap().more {}
        let stats = log.stats().await.unwrap();
        assert_eq!((stats.changes, stats.oldest_seq, stats.trimmed_through), (6, Some(15), 14));

        for cursor in &cursors[..7] {
            assert_eq!(first_resync(&zoo.recorder, cursor.clone()).await, ResyncReason::Trimmed);
        }
        assert_eq!(first_resync(&zoo.recorder, Cursor::start()).await, ResyncReason::Trimmed);
        assert_eq!(zoo.transactions(cursors[7].clone()).await.len(), 3);

        // By age: all of it.
        let later = chrono::Utc::now() + chrono::TimeDelta::seconds(10);
        while log.prune(Some(later), None, 100).await.unwrap().more {}
        assert_eq!(log.stats().await.unwrap().changes, 0);
        assert_eq!(first_resync(&zoo.recorder, cursors[8].clone()).await, ResyncReason::Trimmed);
        let end = log.position().await.unwrap();
        add_food(&zoo.recorder, "new").await;
        assert_eq!(zoo.transactions(end).await.len(), 1);
    }
}

#[tokio::test]
async fn a_cursor_of_another_history_is_answered_by_a_resync() {
    // GIVEN a database with a backup, and changes after it that someone has seen
    let zoo = Zoo::new().await;
    add_food(&zoo.recorder, "a").await;
    let shared = zoo.recorder.log().position().await.unwrap();
    run(
        zoo.recorder.unrecorded(),
        &format!("VACUUM INTO '{}'", zoo.database.path().with_extension("backup").display()),
    )
    .await;
    add_food(&zoo.recorder, "b").await;
    let seen = zoo.recorder.log().position().await.unwrap();

    // WHEN the backup is restored and history takes another course
    let restored = TestDatabase::sqlite_from(&zoo.database.path().with_extension("backup"));
    let other = Recorder::connect(restored.url(), zoo::registry()).await.unwrap();

    // THEN a cursor from after the backup is told so, before and after its number is reached again
    assert_eq!(first_resync(&other, seen.clone()).await, ResyncReason::Epoch);
    add_food(&other, "x").await;
    add_food(&other, "y").await;
    assert_eq!(first_resync(&other, seen).await, ResyncReason::Epoch);

    // AND one from before it goes on
    let mut events = other.log().follow(Shape::of::<food::Entity>(), shared).await.unwrap();
    let mut told = Vec::new();
    while told.len() < 2 {
        told.extend(names(&mut events).await);
    }
    assert_eq!(told, ["+x", "+y"]);
}

on_every_target! {
    async fn a_follower_is_told_when_the_log_is_stopped(database: TestDatabase) {
        let zoo = Zoo::of(database).await;
        let mut follower = zoo.recorder.log().follow_all(Cursor::start()).await.unwrap();
        assert!(matches!(soon(follower.next()).await.unwrap(), Step::Transactions { up_to_date: true, .. }));
        let waiting = tokio::spawn(async move { follower.next().await });
        zoo.recorder.close().await;
        assert!(matches!(soon(waiting).await.unwrap().unwrap(), Step::Ended));
    }
}

on_every_target! {
    /// I7: what falls out of the ring is read from the outbox; the ring itself stays small.
    async fn a_follower_that_falls_behind_reads_the_outbox(database: TestDatabase) {
        let mut options = RecorderOptions::default();
        options.log.ring_max_bytes = 10_000;
        options.log.chunk_changes = 7;
        let recorder = database.recorder_with(zoo::registry(), options, zoo::create).await;
        let mut slow = recorder.log().follow(Shape::of::<food::Entity>(), Start::Now).await.unwrap();
        assert_eq!(names(&mut slow).await, [""; 0]);
        for n in 0..300 {
            add_food(&recorder, &n.to_string()).await;
        }
        eventually(async || recorder.log().tail_stats().changes == 300).await;
        let stats = recorder.log().tail_stats();
        assert!(stats.ring_bytes <= 10_000 && stats.ring_transactions < 100, "{stats:?}");
        let told = names(&mut slow).await;
        assert_eq!(told, (0..300).map(|n| format!("+{n}")).collect::<Vec<_>>());
    }
}

on_every_target! {
    /// A thousand who come back at once read the outbox a few times, not a thousand times.
    async fn those_who_return_together_share_their_reads(database: TestDatabase) {
        let zoo = Zoo::of(database).await;
        for n in 0..50 {
            add_food(&zoo.recorder, &n.to_string()).await;
        }
        let other = Recorder::connect(zoo.database.url(), zoo::registry()).await.unwrap();
        let followers = (0..1_000).map(|_| {
            let log = other.log().clone();
            tokio::spawn(async move {
                let mut events = log.follow(Shape::of::<food::Entity>(), Cursor::start()).await.unwrap();
                names(&mut events).await.len()
            })
        });
        for follower in followers.collect::<Vec<_>>() {
            assert_eq!(soon(follower).await.unwrap(), 50);
        }
        assert!(other.log().tail_stats().outbox_reads < 100, "{:?}", other.log().tail_stats());
    }
}

/// So do those who return from different places, where the places are numbers: whoever comes later finds what another has read past.
#[tokio::test]
async fn those_who_return_from_different_places_share_their_reads() {
    let zoo = Zoo::new().await;
    let start = zoo.recorder.log().position().await.unwrap();
    for n in 0..50 {
        add_food(&zoo.recorder, &n.to_string()).await;
    }
    let mut places = vec![start.clone()];
    places.extend(zoo.transactions(start).await.iter().map(|transaction| transaction.cursor.clone()));
    let other = Recorder::connect(zoo.database.url(), zoo::registry()).await.unwrap();
    let followers = (0..1_000).map(|n| n * 7 % 50).map(|missing| {
        let (log, place) = (other.log().clone(), places[50 - missing].clone());
        tokio::spawn(async move {
            let mut events = log.follow(Shape::of::<food::Entity>(), place).await.unwrap();
            (names(&mut events).await, missing)
        })
    });
    for follower in followers.collect::<Vec<_>>() {
        let (names, missing) = soon(follower).await.unwrap();
        assert_eq!(names, (50 - missing..50).map(|n| format!("+{n}")).collect::<Vec<_>>());
    }
    assert!(other.log().tail_stats().outbox_reads < 50, "{:?}", other.log().tail_stats());
}

/// One row that does not fit its model costs nobody the others.
#[tokio::test]
async fn a_row_that_does_not_fit_is_told_in_its_place() {
    let zoo = Zoo::new().await;
    zoo.populate().await;
    let start = zoo.recorder.log().position().await.unwrap();
    let mut events = zoo.recorder.log().follow(Shape::of::<animal::Entity>(), start).await.unwrap();
    run(
        &zoo.recorder,
        "UPDATE animal SET species = CASE name WHEN 'leo' THEN 'dragon' ELSE species END, tame = NOT tame",
    )
    .await;
    run(&zoo.recorder, "UPDATE animal SET weight = 7 WHERE name = 'otto'").await;
    let mut told = Vec::new();
    while told.len() < 5 {
        match soon(events.next()).await {
            Ok(Batch::Events { events, .. }) => told.extend(events.iter().map(|_| "event")),
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                told.push("error");
            }
        }
    }
    assert_eq!(told, ["error", "event", "event", "event", "event"]);
}

/// A transaction that was in flight and ended without a change is waited for no longer, so retention passes nobody who is up to date.
#[tokio::test(flavor = "multi_thread")]
async fn retention_passes_nobody_who_has_seen_everything() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database.alone().await).await;
    let psql = zoo.database.plain().await;
    let mut follower = zoo.recorder.log().follow_all(zoo.recorder.log().position().await.unwrap()).await.unwrap();
    // GIVEN a reader that saw a change while an older transaction was in flight, which then ended without one
    let open = psql.begin().await.unwrap();
    run(&open, "SELECT pg_current_xact_id()").await;
    add_food(&zoo.recorder, "one").await;
    while let Step::Transactions { transactions, .. } = soon(follower.next()).await.unwrap() {
        if !transactions.is_empty() {
            break;
        }
    }
    let then = follower.cursor().clone();
    open.rollback().await.unwrap();
    while *follower.cursor() == then {
        soon(follower.next()).await.unwrap();
    }
    // WHEN retention removes the change
    eventually(async || zoo.recorder.log().prune(None, Some(0), 100).await.unwrap().changes > 0).await;
    // THEN it is told what follows
    add_food(&zoo.recorder, "two").await;
    loop {
        match soon(follower.next()).await.unwrap() {
            Step::Transactions { transactions, .. } if transactions.is_empty() => {}
            Step::Transactions { .. } => break,
            other => panic!("{other:?}"),
        }
    }
}

/// I7: what is read at once is bounded in bytes too.
#[tokio::test(flavor = "multi_thread")]
async fn large_transactions_come_by_themselves_and_the_largest_not_at_all() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let zoo = Zoo::of(database.captured_by(tidewire_outbox::Capture::Triggers)).await;
    zoo.populate().await;
    let mut options = RecorderOptions::default();
    options.log.ring_max_bytes = 1;
    let reader = Recorder::connect_with(zoo.database.url(), zoo::registry(), options).await.unwrap();
    let start = zoo.recorder.log().position().await.unwrap();
    for n in 0..8 {
        run(&zoo.recorder, &format!("UPDATE keeper SET name = repeat('{n}', 1000000)")).await;
    }
    let end = reader.log().position().await.unwrap();
    let mut follower = reader.log().follow_all(start).await.unwrap();
    let mut taken = Vec::new();
    while !follower.cursor().covers(&end) {
        match soon(follower.next()).await.unwrap() {
            Step::Transactions { transactions, .. } => taken.push(transactions.len()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(taken.iter().sum::<usize>(), 8);
    assert!(taken.iter().all(|count| *count <= 2), "{taken:?}");
    let before = zoo.recorder.log().position().await.unwrap();
    run(&zoo.recorder, "UPDATE keeper SET name = repeat('x', 30000000)").await;
    let mut follower = reader.log().follow_all(before).await.unwrap();
    loop {
        match soon(follower.next()).await.unwrap() {
            Step::Resync(reason) => break assert_eq!(reason, ResyncReason::Oversized),
            Step::Transactions { transactions, .. } => assert!(transactions.is_empty()),
            Step::Ended => panic!(),
        }
    }
}
