//! Leases: of all who would do something, one does it.
//!
//! A lease is a row with a holder, a time at which it ends by the database's clock, and a *token* that grows each time it is taken. A clock
//! can only say when somebody else may take it; that nothing is written by one who has lost it is the token's work. It is compared inside the
//! transaction that writes, and a transaction that has compared it holds up whoever would take the lease over until it has ended:
//!
//! ```text
//! A  takes it: token 7 ── is paused beyond its end ───────────────────────── writes: 7 is not 8, nothing is written
//! B                            takes it: token 8 ── writes, comparing 8 ──
//! ```

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sea_orm::{ConnectionTrait, DbBackend, TransactionTrait, sea_query::Value};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    database::{Database, Session, own},
    error::{Error, ErrorKind, Result},
    recorder::{Recorder, RecorderTransaction},
};

/// The right to do something that only one may do at a time, by its name.
///
/// It is renewed in the background until it is [released](Self::release) or dropped; dropped, it stays taken until it ends by itself. Whoever
/// holds it watches [`lost`](Self::lost), and writes in transactions that it [begins](Self::begin) or has [fenced](Self::fence). A write that
/// is not fenced may happen after another holder has begun.
///
/// ```no_run
/// # async fn prune() {}
/// # async fn example(recorder: tidewire_outbox::Recorder) -> tidewire_outbox::Result<()> {
/// use std::time::Duration;
/// use tidewire_outbox::Lease;
///
/// let lease = Lease::acquire(&recorder, "retention", Duration::from_secs(10)).await?;
/// tokio::select! {
///     () = lease.lost() => {}
///     () = prune() => lease.release().await?,
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Lease {
    row: Row,
    lost: watch::Receiver<bool>,
    renewal: JoinHandle<()>,
}

impl Lease {
    /// Takes a lease, and waits while somebody else holds it. It lasts for `ttl` from each renewal, of which there are three in that time: so
    /// a holder that dies is succeeded within `ttl` and a bit.
    ///
    /// # Errors
    /// [`ErrorKind::Database`] and its kind as they come; [`ErrorKind::Setup`] where the database has no outbox.
    pub async fn acquire(recorder: &Recorder, name: &str, ttl: Duration) -> Result<Self> {
        Self::acquire_on(recorder.database(), name, ttl).await
    }

    /// Whether somebody holds a lease.
    pub(crate) async fn is_held(database: &dyn Database, name: &str) -> Result<bool> {
        let backend = database.dialect().backend();
        let held = format!("SELECT token FROM tidewire_lease WHERE name = ? AND expires > {}", now(backend));
        let held = own(backend, &held, [name.into()]);
        Ok(database.connection().query_one_raw(held).await?.is_some())
    }

    /// Takes a lease if nobody holds it.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(recorder: &Recorder, name: &str, ttl: Duration) -> Result<Option<Self>> {
        Self::try_acquire_on(recorder.database(), name, ttl).await
    }

    pub(crate) async fn acquire_on(database: &Arc<dyn Database>, name: &str, ttl: Duration) -> Result<Self> {
        loop {
            if let Some(lease) = Self::try_acquire_on(database, name, ttl).await? {
                return Ok(lease);
            }
            sleep((ttl / 8).clamp(Duration::from_millis(20), Duration::from_secs(1))).await;
        }
    }

    pub(crate) async fn try_acquire_on(
        database: &Arc<dyn Database>,
        name: &str,
        ttl: Duration,
    ) -> Result<Option<Self>> {
        let row = Row { database: Arc::clone(database), name: name.to_owned(), holder: holder(), token: 0, ttl };
        let began = Instant::now();
        let Some(row) = row.take().await? else { return Ok(None) };
        let (sender, lost) = watch::channel(false);
        let renewal = tokio::spawn(renew(row.clone(), began, sender));
        Ok(Some(Self { row, lost, renewal }))
    }

    /// The fencing token: larger than that of every earlier holder. For systems that can compare it themselves.
    pub fn token(&self) -> u64 {
        self.row.token.cast_unsigned()
    }

    /// Whether it is known to be lost.
    pub fn is_lost(&self) -> bool {
        *self.lost.borrow()
    }

    /// Resolves when the lease is lost: it could not be renewed in time, or somebody else has it.
    pub async fn lost(&self) {
        // An error means that the renewal has ended, which it does when the lease is lost.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
    }

    /// Begins a transaction that can only be written while the lease is held. Until it ends nobody else takes the lease.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] where it is lost; others as they come.
    pub async fn begin(&self, recorder: &Recorder) -> Result<RecorderTransaction> {
        let transaction = recorder.begin().await?;
        self.fence(&transaction).await?;
        Ok(transaction)
    }

    /// Makes sure that an open transaction, of the database that the lease is in, is written only if the lease is held. Call it before the
    /// transaction's first write, and drop the transaction on an error.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub async fn fence(&self, transaction: &RecorderTransaction) -> Result<()> {
        let rows = transaction.own(&self.row.fence(), self.row.key()).await?;
        if rows.is_empty() { Err(self.row.is_lost()) } else { Ok(()) }
    }

    /// As [`fence`](Self::fence), for a transaction that is no recorder's: a query that gives a row while the lease is held. Its values are those
    /// of [`key`](Self::key), on PostgreSQL from this number on.
    pub(crate) fn fence_sql(&self, first: usize) -> String {
        if self.row.backend() != DbBackend::Postgres {
            return self.row.fence();
        }
        let mut parts = self.row.fence().split('?').map(str::to_owned).collect::<Vec<_>>().into_iter();
        let start = parts.next().unwrap_or_default();
        (first..).zip(parts).fold(start, |sql, (number, part)| format!("{sql}${number}{part}"))
    }

    pub(crate) fn key(&self) -> Key<'_> {
        Key { name: &self.row.name, holder: &self.row.holder, token: self.row.token }
    }

    pub(crate) fn lost_error(&self) -> Error {
        self.row.is_lost()
    }

    /// Gives it back, so that the next may take it at once.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire); it then ends by itself.
    pub async fn release(self) -> Result<()> {
        self.renewal.abort();
        let session = self.row.session().await?;
        let sql = "UPDATE tidewire_lease SET expires = 0 WHERE name = ? AND holder = ? AND token = ?";
        session.own(own(self.row.backend(), sql, self.row.key())).await?;
        Ok(session.commit().await?)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// What tells a holder of a lease from others.
pub(crate) struct Key<'a> {
    pub(crate) name: &'a str,
    pub(crate) holder: &'a str,
    pub(crate) token: i64,
}

fn holder() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// The database's clock, in milliseconds.
fn now(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
        DbBackend::MySql => "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) DIV 1000)",
        _ => "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    }
}

/// A lease as it stands in the table.
#[derive(Debug, Clone)]
struct Row {
    database: Arc<dyn Database>,
    name: String,
    /// Each time that a lease is taken it has another holder, also within one process.
    holder: String,
    token: i64,
    ttl: Duration,
}

impl Row {
    fn backend(&self) -> DbBackend {
        self.database.dialect().backend()
    }

    fn key(&self) -> [Value; 3] {
        [self.name.as_str().into(), self.holder.as_str().into(), self.token.into()]
    }

    /// Gives a row while the lease is held, and keeps others from taking it until the transaction ends. SQLite has one writer anyway.
    fn fence(&self) -> String {
        let lock = match self.backend() {
            DbBackend::Postgres => " FOR KEY SHARE",
            DbBackend::MySql => " LOCK IN SHARE MODE",
            _ => "",
        };
        let now = now(self.backend());
        format!(
            "SELECT token FROM tidewire_lease WHERE name = ? AND holder = ? AND token = ? AND expires > {now}{lock}"
        )
    }

    fn is_lost(&self) -> Error {
        Error::new(ErrorKind::Lost, format!("the lease {:?} is not held any more", self.name))
    }

    async fn session(&self) -> Result<Arc<dyn Session>> {
        Ok(self.database.begin_own().await?)
    }

    /// Takes the lease if nobody holds it; answers the row with its token.
    async fn take(mut self) -> Result<Option<Self>> {
        // A look costs no turn on SQLite's one writer.
        if Lease::is_held(&*self.database, &self.name).await? {
            return Ok(None);
        }
        let (backend, now) = (self.backend(), now(self.backend()));
        let session = self.session().await?;
        let there = match backend {
            DbBackend::MySql => "INSERT IGNORE INTO tidewire_lease (name, holder, token, expires) VALUES (?, '', 0, 0)",
            _ => {
                "INSERT INTO tidewire_lease (name, holder, token, expires) VALUES (?, '', 0, 0) ON CONFLICT DO NOTHING"
            }
        };
        session.own(own(backend, there, [self.name.as_str().into()])).await?;
        let take = format!(
            "UPDATE tidewire_lease SET holder = ?, token = token + 1, expires = {now} + ? WHERE name = ? AND expires <= {now}"
        );
        let values = [self.holder.as_str().into(), self.ttl_millis().into(), self.name.as_str().into()];
        session.own(own(backend, &take, values)).await?;
        let taken = "SELECT token FROM tidewire_lease WHERE name = ? AND holder = ?";
        let taken = own(backend, taken, [self.name.as_str().into(), self.holder.as_str().into()]);
        let rows = session.own(taken).await?;
        session.commit().await?;
        let Some(row) = rows.first() else { return Ok(None) };
        self.token = row.try_get_by_index(0)?;
        Ok(Some(self))
    }

    /// Answers whether it was still held.
    async fn renew(&self) -> Result<bool> {
        let session = self.session().await?;
        let now = now(self.backend());
        let renew = format!(
            "UPDATE tidewire_lease SET expires = {now} + ? WHERE name = ? AND holder = ? AND token = ? AND expires > {now}"
        );
        let [name, holder, token] = self.key();
        session.own(own(self.backend(), &renew, [self.ttl_millis().into(), name, holder, token])).await?;
        let held =
            format!("SELECT token FROM tidewire_lease WHERE name = ? AND holder = ? AND token = ? AND expires > {now}");
        let held = !session.own(own(self.backend(), &held, self.key())).await?.is_empty();
        session.commit().await?;
        Ok(held)
    }

    fn ttl_millis(&self) -> i64 {
        i64::try_from(self.ttl.as_millis()).unwrap_or(i64::MAX / 4)
    }
}

/// Renews until the lease is lost. What counts is when a renewal that succeeded had begun: the row's time is later than that.
async fn renew(row: Row, mut held_since: Instant, lost: watch::Sender<bool>) {
    let interval = row.ttl / 3;
    loop {
        sleep(interval).await;
        let Some(left) = row.ttl.checked_sub(held_since.elapsed()) else { break };
        let began = Instant::now();
        match timeout(left, row.renew()).await {
            Ok(Ok(true)) => held_since = began,
            Ok(Ok(false)) | Err(_) => break,
            // The database failed; there may be time for another attempt.
            Ok(Err(error)) => tracing::debug!(%error, lease = row.name, "a lease could not be renewed"),
        }
    }
    let _ = lost.send(true);
}
