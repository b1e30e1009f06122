use std::{env, time::Duration};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DbBackend, DbErr, EntityTrait, ExprTrait, QueryFilter, Set,
    Statement, TransactionSession, TransactionTrait,
    sea_query::{Expr, OnConflict},
};
use tidewire_outbox::{Actor, MutationId, Recorder, RecorderTransaction};
use tokio::{process::Command, time::sleep};

use super::domain::{child, ledger, parent, registry};

const URL: &str = "TIDEWIRE_TEST_CHECKER_URL";
const SEED: &str = "TIDEWIRE_TEST_CHECKER_SEED";

/// How many tasks of a process write at once.
const TASKS: u64 = 3;
/// From how many keys the writers choose: few, so that they get into each other's way.
const PARENTS: i64 = 40;

/// A command that runs a writer: this test program again, with nothing but the test of this name, which must call [`write()`] (or
/// [`capture()`]).
///
/// ```no_run
/// #[tokio::test]
/// #[ignore = "run by the checker, as a process of its own"]
/// async fn checker_writer() {
///     tidewire_testkit::checker::write().await;
/// }
/// ```
pub fn writer(test: &str, url: &str, seed: u64) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([test, "--exact", "--ignored", "--nocapture"]).env(URL, url).env(SEED, seed.to_string());
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).kill_on_drop(true);
    command
}

/// Takes part in reading the database's own log until the process is killed. Does nothing where it was not started by [`writer`].
pub async fn capture() {
    let Ok(url) = env::var(URL) else { return };
    let db = Recorder::connect(&url, registry()).await.unwrap();
    db.start_capture().await.unwrap();
    std::future::pending::<()>().await;
}

/// Writes at random until the process is killed. Does nothing where it was not started by [`writer`].
pub async fn write() {
    let (Ok(url), Ok(seed)) = (env::var(URL), env::var(SEED)) else { return };
    let seed: u64 = seed.parse().unwrap();
    let db = loop {
        match Recorder::connect(&url, registry()).await {
            Ok(db) => break db.acting_as(Actor::service("checker")),
            Err(error) if error.is_transient() => sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{error}"),
        }
    };
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let writer = Writer { db: db.clone(), random: ChaCha8Rng::seed_from_u64(seed * TASKS + task), seed };
            tokio::spawn(writer.run())
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

struct Writer {
    db: Recorder,
    random: ChaCha8Rng,
    seed: u64,
}

impl Writer {
    async fn run(mut self) {
        for round in 0_u64.. {
            let done = match self.random.random_range(0..10) {
                0 | 1 => self.single().await,
                2 => self.rolled_back().await,
                _ => self.transaction(round).await,
            };
            // Another process may hold the lock for long; a parent may be gone when its child comes.
            if let Err(error) = done {
                let text = error.to_string();
                let expected = ["locked", "FOREIGN KEY", "foreign key", "deadlock", "Deadlock"];
                // The server may be restarted, or the connection cut.
                let away = [
                    "communicating",
                    "cannot be reached",
                    "terminating",
                    "recovery mode",
                    "starting up",
                    "shutting down",
                    "closed",
                    "transaction has ended",
                ];
                assert!(expected.iter().chain(&away).any(|expected| text.contains(expected)), "{text}");
                if away.iter().any(|away| text.contains(away)) {
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// A statement in a transaction of its own.
    async fn single(&mut self) -> Result<(), DbErr> {
        let db = self.db.clone();
        self.operation(&db).await
    }

    async fn rolled_back(&mut self) -> Result<(), DbErr> {
        let transaction = self.db.begin().await?;
        for _ in 0..self.random.random_range(1..5) {
            self.operation(&transaction).await?;
        }
        if self.random.random() { transaction.rollback().await } else { Ok(()) }
    }

    async fn transaction(&mut self, round: u64) -> Result<(), DbErr> {
        let mut transaction = self.db.begin().await?;
        let before = newest(&transaction).await?;
        let id = format!("{}-{round}-{:08x}", self.seed, self.random.random::<u32>());
        transaction.set_mutation(Some(MutationId::new(&id)));
        if ConnectionTrait::get_database_backend(&transaction) == DbBackend::MySql {
            transaction.execute_unprepared(&format!("SET @tally = '{id}'")).await?;
        }
        // Where writers do not queue for one lock anyway, some take their time.
        let backend = ConnectionTrait::get_database_backend(&transaction);
        let dawdles = backend != DbBackend::Sqlite;
        if dawdles && self.random.random_range(0..4) == 0 {
            // The id of a transaction is older than its changes, and smaller than those of transactions that commit before it. On MariaDB the
            // look at the outbox has fixed what the transaction sees.
            if backend == DbBackend::Postgres {
                number(&transaction, "SELECT pg_current_xact_id()::text::bigint".into()).await?;
            }
            sleep(Duration::from_millis(self.random.random_range(0..20))).await;
        }
        for _ in 0..self.random.random_range(1..8) {
            if dawdles && self.random.random_range(0..40) == 0 {
                sleep(Duration::from_millis(self.random.random_range(0..20))).await;
            }
            if self.random.random_range(0..4) == 0 {
                self.savepoint(&transaction).await?;
            } else {
                self.operation(&transaction).await?;
            }
        }
        let changes = changes_of(&transaction, before, &id).await? + 1;
        ledger::ActiveModel { id: Set(id), changes: Set(changes) }.insert(&transaction).await?;
        transaction.commit().await
    }

    async fn savepoint(&mut self, transaction: &RecorderTransaction) -> Result<(), DbErr> {
        let nested = transaction.begin().await?;
        for _ in 0..self.random.random_range(1..4) {
            self.operation(&nested).await?;
        }
        match self.random.random_range(0..3) {
            0 => nested.rollback().await,
            // Dropped, it is rolled back too.
            1 => Ok(()),
            _ => nested.commit().await,
        }
    }

    async fn operation(&mut self, db: &impl ConnectionTrait) -> Result<(), DbErr> {
        let id = self.random.random_range(0..PARENTS);
        let n = self.random.random_range(-1000..1000);
        match self.random.random_range(0..9) {
            0 | 1 => {
                let row = parent::ActiveModel { id: Set(id), name: Set(self.text()), n: Set(n), note: Set(None) };
                let clause = OnConflict::column(parent::Column::Id)
                    .update_columns([parent::Column::Name, parent::Column::N])
                    .to_owned();
                parent::Entity::insert(row).on_conflict(clause).exec_without_returning(db).await?;
            }
            2 => {
                let rows = (0..self.random.random_range(1..6)).map(|_| child::ActiveModel {
                    owner: Set(id),
                    body: Set(self.text()),
                    weight: Set(self.random.random()),
                    ..Default::default()
                });
                let rows: Vec<_> = rows.collect();
                if parent::Entity::find_by_id(id).one(db).await?.is_some() {
                    child::Entity::insert_many(rows).exec_without_returning(db).await?;
                }
            }
            3 => {
                let note = (n > 0).then(|| self.text());
                parent::Entity::update_many()
                    .col_expr(parent::Column::N, Expr::col(parent::Column::N).add(1))
                    .col_expr(parent::Column::Note, Expr::value(note))
                    .filter(parent::Column::Id.between(id, id + 5))
                    .exec(db)
                    .await?;
            }
            4 => {
                child::Entity::update_many()
                    .col_expr(child::Column::Body, Expr::value(self.text()))
                    .filter(child::Column::Owner.eq(id))
                    .exec(db)
                    .await?;
            }
            5 => {
                child::Entity::delete_many()
                    .filter(child::Column::Owner.eq(id))
                    .filter(child::Column::Weight.lt(0.3))
                    .exec(db)
                    .await?;
            }
            // Its children go with it.
            6 => {
                parent::Entity::delete_by_id(id).exec(db).await?;
            }
            7 => {
                let text = format!("UPDATE parent SET n = n + {n} WHERE id = {id}");
                db.execute_unprepared(&text).await?;
            }
            // Changes nothing, so it is no change.
            _ => {
                db.execute_unprepared(&format!("UPDATE parent SET n = n WHERE id = {id}")).await?;
            }
        }
        Ok(())
    }

    fn text(&mut self) -> String {
        const WORDS: &[&str] = &["tide", "wire", "naïve", "\"quoted\"", "back\\slash", "line\nbreak", "🌊", "' OR 1=1"];
        let words = self.random.random_range(0..4);
        (0..words).map(|_| WORDS[self.random.random_range(0..WORDS.len())]).collect::<Vec<_>>().join(" ")
    }
}

async fn newest(db: &impl ConnectionTrait) -> Result<i64, DbErr> {
    number(db, "SELECT coalesce(max(seq), 0) FROM tidewire_outbox".into()).await
}

/// How many changes a mutation has made so far, after a place in the outbox.
async fn changes_of(db: &impl ConnectionTrait, after: i64, id: &str) -> Result<i64, DbErr> {
    // Under capture by the log the outbox has them later, and they are counted elsewhere.
    if db.get_database_backend() == DbBackend::Postgres {
        let count = "SELECT count(*) FROM tally WHERE xid = pg_current_xact_id_if_assigned()::text";
        return number(db, count.into()).await;
    }
    let tally = match db.get_database_backend() {
        DbBackend::MySql => number(db, format!("SELECT count(*) FROM tally WHERE tx = '{id}'")).await?,
        _ => 0,
    };
    let recorded = format!("SELECT count(*) FROM tidewire_outbox WHERE seq > {after} AND mutation_id = '{id}'");
    Ok(tally + number(db, recorded).await?)
}

pub(super) async fn number(db: &impl ConnectionTrait, sql: String) -> Result<i64, DbErr> {
    let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), sql)).await?;
    row.map_or(Ok(0), |row| row.try_get_by_index(0))
}
