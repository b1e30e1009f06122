//! Reading the outbox on PostgreSQL.
//!
//! Numbers are given before transactions commit, so they are not in the order of commits: a reader that remembers the highest number loses
//! what commits late. A reader here remembers a snapshot. It asks for the rows that are visible now and were not visible then, which are
//! those of ids at or above the snapshot's end and of those that it saw in flight, and takes whole transactions by their highest numbers. A row's
//! changes are numbered while the row is locked, so that order is each row's true order. Nothing is lost, nothing comes twice, and a slow
//! transaction holds up nobody.
//!
//! What is remembered of a snapshot ends behind the newest id *in the outbox*, and not where the database's own does. A crash takes back ids
//! whose transactions had left nothing on disk, as rolled back ones don't, and gives them to others: a reader that counted them as seen
//! would miss those. A row in the outbox was committed, which is on disk before anyone sees it, so no id up to its own is given again.
//!
//! ```text
//! base ─────────────┬─ what base did not show, in windows of so many rows ─┬─ further
//!   (base)          (base, further, 10)         (base, further, 25)        (further)
//! ```
//!
//! In a window, transactions that go on behind its end wait for a later one.
//!
//! Under capture by the log (`wal`), one transaction appends others. Those are told apart by their own ids (`source`); each one's rows stand
//! together, in the order of commits.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use sea_query_sqlx::SqlxValues;
use sqlx::{AssertSqlSafe, PgConnection, Postgres as Sqlx, Row, Transaction as SqlxTransaction, postgres::PgRow};

use super::{
    Postgres, database_error,
    dialect::PostgresDialect,
    epoch::EPOCH,
    order::{self, Place, Placed},
    wal,
};
use crate::{
    capture::Capture,
    change::{Change, Operation, Texts, Transaction},
    cursor::{Cursor, DatabaseSnapshot, Epoch},
    database::{Fetched, Pruned, Read, ResyncReason, SnapshotSource, Stats},
    error::{Error, ErrorKind, Result},
    filter::Filter,
    history::begun_anew,
    image::Image,
    json::Scanner,
    registry::{Catalog, EntityId},
    sql::{self, Item, Page, Select, Sql},
};

/// A transaction with more changes than this is not put before a reader at once: it is answered by a resync.
const MAX_TRANSACTION: usize = 200_000;

/// The same for the bytes of its images.
const MAX_TRANSACTION_BYTES: usize = 64 << 20;

/// How many bytes of images a read gives, but for its last transaction.
const MAX_BYTES: usize = 4 << 20;

/// How often a read is tried whose history ends meanwhile.
const ATTEMPTS: usize = 3;

/// The number that the outbox gave last. Not of any snapshot: so it is asked for before one is taken.
const SEQUENCE: &str = "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('tidewire_outbox', 'seq')), 0)";

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The snapshot of a statement, and the newest id that it shows in the outbox.
const SNAPSHOT: &str = "pg_current_snapshot()::text || ' ' || greatest((SELECT max(xid) FROM tidewire_outbox), (SELECT trimmed_xid FROM tidewire_log))";

/// `10:20:10,14,15 17`, as [`SNAPSHOT`] gives it.
struct Snapshot {
    xmax: u64,
    in_flight: Vec<u64>,
    newest: u64,
}

impl Snapshot {
    fn parse(text: &str) -> Result<Self> {
        let parsed = || {
            let (snapshot, newest) = text.split_once(' ')?;
            let mut parts = snapshot.splitn(3, ':');
            let (_, xmax, list) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
            let in_flight = list.split(',').filter(|id| !id.is_empty()).map(str::parse).collect::<Result<_, _>>();
            Some(Self { xmax, in_flight: in_flight.ok()?, newest: newest.parse().ok()? })
        };
        parsed().ok_or_else(|| Error::new(ErrorKind::Corrupt, "the database's snapshot has an unknown form"))
    }

    /// What it shows of the outbox.
    fn of_outbox(mut self, sequence: u64, log: u64) -> Arc<DatabaseSnapshot> {
        let xmax = self.newest + 1;
        self.in_flight.retain(|id| *id < xmax);
        Arc::new(DatabaseSnapshot { xmax, in_flight: self.in_flight, sequence, log })
    }

    /// What it shows of all tables, of which the outbox has yet to tell.
    fn of_tables(self, sequence: u64, log: u64) -> Arc<DatabaseSnapshot> {
        Arc::new(DatabaseSnapshot { xmax: self.xmax, in_flight: self.in_flight, sequence, log })
    }
}

pub(super) async fn position(database: &Postgres) -> Result<Cursor> {
    if database.captured().await? == Capture::Log {
        // What has been committed by now is in the outbox a little later.
        wal::arrive(database, None).await?;
    }
    let mut history = database.history().await?;
    for _ in 0..ATTEMPTS {
        let (mut conn, named) = (database.connections.lend().await?, database.connections.named());
        let sequence = sequence(&mut conn, named).await?;
        let row = sqlx::query(AssertSqlSafe(format!("SELECT {SNAPSHOT}, lsn, {EPOCH} FROM tidewire_log")))
            .persistent(named)
            .fetch_one(&mut *conn)
            .await
            .map_err(database_error)?;
        if epoch_of(&row, 2) == Some(history.epoch) {
            let log = row.get::<i64, _>(1).cast_unsigned();
            return Ok(Cursor::visible(history.epoch, Snapshot::parse(row.get(0))?.of_outbox(sequence, log)));
        }
        drop(conn);
        history = database.look_for_history().await?;
    }
    Err(begun_anew())
}

/// A column of [`EPOCH`].
fn epoch_of(row: &PgRow, index: usize) -> Option<Epoch> {
    row.get::<Option<i64>, _>(index).map(|epoch| Epoch(epoch.cast_unsigned()))
}

async fn sequence(conn: &mut PgConnection, named: bool) -> Result<u64> {
    let sequence: i64 = sqlx::query_scalar(SEQUENCE).persistent(named).fetch_one(conn).await.map_err(database_error)?;
    Ok(sequence.cast_unsigned())
}

pub(super) async fn read(database: &Postgres, after: &Cursor, until: Option<&Cursor>, limit: usize) -> Result<Read> {
    let mut history = database.history().await?;
    for _ in 0..ATTEMPTS {
        // Another node may know of a newer one.
        if !history.has(after) {
            history = database.look_for_history().await?;
        }
        if !history.has(after) {
            return Ok(Read::Resync(ResyncReason::Epoch));
        }
        if let Some(read) = read_in(database, history.epoch, after, until, limit).await? {
            return Ok(read);
        }
        history = database.look_for_history().await?;
    }
    Err(begun_anew())
}

/// As [`read`], by a cursor that is of the log's history as long as this is its epoch: `None` where it is not.
async fn read_in(
    database: &Postgres,
    epoch: Epoch,
    after: &Cursor,
    until: Option<&Cursor>,
    limit: usize,
) -> Result<Option<Read>> {
    let (base, rest) = match after.snapshots() {
        Some((_, base, rest)) => (Arc::clone(base), rest.map(|(further, seq)| (Arc::clone(further), seq))),
        None => (Arc::new(DatabaseSnapshot { xmax: 0, in_flight: Vec::new(), sequence: 0, log: 0 }), None),
    };
    let shown = after.shown_to();
    let until = until.and_then(Cursor::snapshots).and_then(|(_, base, rest)| rest.is_none().then(|| Arc::clone(base)));
    let until = until.filter(|until| shown.is_none_or(|place| until.log >= place));
    if let (Some(place), None, None) = (shown, &rest, &until) {
        wal::arrive(database, Some(place)).await?;
    }
    let reader = Reader { database, epoch, shown, limit: limit.max(1) };
    match rest {
        // First what is left of the window that the reader stands in.
        Some((further, seq)) => Ok(match reader.window(&base, Some(&further), seq).await? {
            Some(Read::Transactions { transactions, end, .. }) => {
                Some(Read::Transactions { transactions, end, reached_end: false })
            }
            other => other,
        }),
        None => reader.window(&base, until.as_ref(), 0).await,
    }
}

struct Reader<'a> {
    database: &'a Postgres,
    epoch: Epoch,
    /// Where the reader was shown the tables in the window's base (see [`Cursor::shown`]).
    shown: Option<u64>,
    limit: usize,
}

/// How large a transaction is so far.
#[derive(Default)]
struct Size {
    changes: usize,
    bytes: usize,
}

/// A row of the outbox that belongs to a transaction which the window has whole.
struct Step {
    /// Its id; and where it was appended by another, as capture by the log does it, that one's and its own.
    of: (i64, i64),
    last: u64,
    change: Option<Placed>,
}

impl Reader<'_> {
    /// What `base` did not show and `further` does (or what is visible now), from behind a number on.
    async fn window(
        &self,
        base: &Arc<DatabaseSnapshot>,
        further: Option<&Arc<DatabaseSnapshot>>,
        behind: u64,
    ) -> Result<Option<Read>> {
        let (mut conn, named) = (self.database.connections.lend().await?, self.database.connections.named());
        let sequence = match further {
            Some(further) => further.sequence,
            None => sequence(&mut conn, named).await?,
        };
        // A snapshot in the past is told by arithmetic: an id before its end was either in flight, or had ended; and of one that was rolled
        // back there are no rows.
        const UNSEEN: &str = "(xid >= $2 OR xid = ANY($3)) AND xid < $4 AND NOT xid = ANY($5)";
        // Who was shown the tables has seen what the base shows, though it was appended later.
        const NOT_SHOWN: &str = "AND (source = 0 OR source >= $2 OR source = ANY($3))";
        let not_shown = if self.shown.is_some() { NOT_SHOWN } else { "" };
        // At the start of a window the rows are found by their ids: few, where a reader keeps up. Behind its first rows nearly all that follow
        // are of the window, so they are found by their numbers. (A number that had been given when `base` was taken is no bound: a snapshot's
        // end is the id after the last that has ended, and ids from there on may have been given, and have drawn numbers, before.)
        let window = if behind == 0 {
            format!(
                "win AS MATERIALIZED (SELECT seq, xid, source FROM tidewire_outbox WHERE {UNSEEN} {not_shown} AND seq > $1)"
            )
        } else {
            format!(
                "win AS (SELECT seq, xid, source FROM tidewire_outbox WHERE seq > $1 AND {UNSEEN} {not_shown} ORDER BY seq LIMIT $6)"
            )
        };
        let text = format!(
            "WITH {window},
            top AS MATERIALIZED (SELECT seq, xid, source FROM win ORDER BY seq LIMIT $6),
            edge AS MATERIALIZED (SELECT count(*) AS rows, max(seq) AS seq FROM top),
            done AS MATERIALIZED (
              SELECT xid, source, max(seq) AS last FROM top GROUP BY xid, source
              HAVING (SELECT rows FROM edge) < $6
                OR NOT EXISTS (SELECT 1 FROM tidewire_outbox o
                               WHERE o.xid = top.xid AND o.source = top.source AND o.seq > (SELECT seq FROM edge)))
            SELECT state.snapshot, state.trimmed_xid, edge.rows, edge.seq AS edge, found.last, found.xid, found.source, state.epoch,
              state.lsn, state.trouble, found.seq, found.entity,
              found.operation, found.before, found.after, found.actor, found.origin, found.mutation_id, found.at, found.file::bigint AS file,
              found.was_at::text AS was_at, found.is_at::text AS is_at
            FROM (SELECT {SNAPSHOT} AS snapshot, trimmed_xid, {EPOCH} AS epoch, lsn, trouble FROM tidewire_log) state, edge
            LEFT JOIN (SELECT done.last, o.* FROM done JOIN tidewire_outbox o USING (xid, source)) found ON true
            ORDER BY found.last, found.seq"
        );
        let list = |ids: &[u64]| ids.iter().map(|id| signed(*id)).collect::<Vec<_>>();
        let mut rows = sqlx::query(AssertSqlSafe(text))
            .persistent(named)
            .bind(signed(behind))
            .bind(signed(base.xmax))
            .bind(list(&base.in_flight))
            .bind(further.map_or(i64::MAX, |further| signed(further.xmax)))
            .bind(further.map_or_else(Vec::new, |further| list(&further.in_flight)))
            .bind(signed(self.limit as u64))
            .fetch(&mut *conn);
        let mut steps: Vec<Step> = Vec::new();
        let mut texts = Texts::default();
        let mut state = None;
        let (mut bytes, mut of_one, mut cut) = (0, Size::default(), None);
        while let Some(row) = rows.try_next().await.map_err(database_error)? {
            if state.is_none() {
                let snapshot = Snapshot::parse(row.get(0))?;
                self.database.note_trouble(row.get(9));
                if epoch_of(&row, 7) != Some(self.epoch) {
                    return Ok(None);
                }
                if base.xmax > snapshot.xmax {
                    return Ok(Some(Read::Resync(ResyncReason::Epoch)));
                }
                // Retention removes only what is of the past for every reader that it knows of; one that has not surely seen it is behind.
                let trimmed = row.get::<i64, _>(1).cast_unsigned();
                if trimmed > 0 && trimmed >= base.xmin() {
                    return Ok(Some(Read::Resync(ResyncReason::Trimmed)));
                }
                let now = snapshot.of_outbox(sequence, row.get::<i64, _>(8).cast_unsigned());
                state = Some((now, row.get::<i64, _>(2).cast_unsigned(), row.get::<Option<i64>, _>(3)));
            }
            let Some(last) = row.get::<Option<i64>, _>(4) else { break };
            let of = (row.get::<i64, _>(5), row.get::<i64, _>(6));
            if steps.last().is_none_or(|step| step.of != of) {
                bytes += std::mem::take(&mut of_one).bytes;
                // What follows is for the next read.
                if bytes > MAX_BYTES {
                    cut = steps.last().map(|step| step.last);
                    break;
                }
            }
            let text = |column: &str| row.get::<Option<&str>, _>(column).map_or(0, str::len);
            of_one.changes += 1;
            of_one.bytes += text("before") + text("after");
            if of_one.changes > MAX_TRANSACTION || of_one.bytes > MAX_TRANSACTION_BYTES {
                return Ok(Some(Read::Resync(ResyncReason::Oversized)));
            }
            steps.push(Step {
                of,
                last: last.cast_unsigned(),
                change: change(&mut texts, &self.database.catalog, &row)?,
            });
        }
        let (now, rows, edge) =
            state.ok_or_else(|| Error::new(ErrorKind::Setup, "the outbox lacks its row in tidewire_log"))?;
        let complete = rows < self.limit as u64 && cut.is_none();
        let further = further.map_or(&now, |further| further);
        let end = match cut.or(edge.map(i64::cast_unsigned)) {
            Some(last) if !complete => self.cursor(base, further, last),
            _ => Cursor::visible(self.epoch, Arc::clone(further)),
        };
        let transactions = self.transactions(steps, base, further, complete.then_some(&end));
        Ok(Some(Read::Transactions { transactions, reached_end: complete, end }))
    }

    fn cursor(&self, base: &Arc<DatabaseSnapshot>, further: &Arc<DatabaseSnapshot>, seq: u64) -> Cursor {
        let cursor = Cursor::partly(self.epoch, Arc::clone(base), Arc::clone(further), seq);
        match self.shown {
            Some(place) => cursor.shown(place),
            None => cursor,
        }
    }

    /// The steps by transaction. The last of a complete window stands at its end.
    fn transactions(
        &self,
        steps: Vec<Step>,
        base: &Arc<DatabaseSnapshot>,
        further: &Arc<DatabaseSnapshot>,
        end: Option<&Cursor>,
    ) -> Vec<Arc<Transaction>> {
        let mut transactions: Vec<(Cursor, Vec<Placed>)> = Vec::new();
        let mut of = None;
        for step in steps {
            if of.replace(step.of) != Some(step.of) {
                transactions.push((self.cursor(base, further, step.last), Vec::new()));
            }
            if let Some((_, changes)) = transactions.last_mut() {
                changes.extend(step.change);
            }
        }
        if let (Some((cursor, _)), Some(end)) = (transactions.last_mut(), end) {
            *cursor = end.clone();
        }
        let ordered =
            transactions.into_iter().map(|(cursor, changes)| (cursor, order::restore(&self.database.catalog, changes)));
        ordered
            .filter(|(_, changes)| !changes.is_empty())
            .map(|(cursor, changes)| Arc::new(Transaction { cursor, changes: changes.into() }))
            .collect()
    }
}

/// `None` where the entity is not registered (any more).
fn change(texts: &mut Texts, catalog: &Catalog, row: &PgRow) -> Result<Option<Placed>> {
    let Some(entity) = catalog.find(row.get("entity")) else { return Ok(None) };
    let image = |column: &str| -> Result<Option<Image>> {
        row.get::<Option<&str>, _>(column).map(|json| Image::from_object(entity, &PostgresDialect, json)).transpose()
    };
    let file = row.get::<Option<i64>, _>("file").unwrap_or_default();
    let place = |column: &str| row.get::<Option<&str>, _>(column).and_then(|text| Place::parse(file, text));
    let change = Change {
        seq: row.get::<i64, _>("seq").cast_unsigned(),
        entity: entity.id,
        operation: row.get::<&str, _>("operation").parse::<Operation>()?,
        before: image("before")?,
        after: image("after")?,
        actor: texts.share(row.get("actor")),
        origin: texts.share(row.get("origin")),
        mutation_id: texts.share(row.get("mutation_id")),
        at: row.get::<DateTime<Utc>, _>("at"),
    };
    Ok(Some(Placed { change, was: place("was_at"), is: place("is_at") }))
}

/// All selects as columns of one statement, and so of one snapshot.
pub(super) async fn fetch(database: &Postgres, selects: &[Select], with_cursor: bool) -> Result<Fetched> {
    let (mut conn, named) = (database.connections.lend().await?, database.connections.named());
    let moment = if with_cursor { Some(Moment::before(database, &mut conn).await?) } else { None };
    let mut sql = Sql::default();
    sql.push("SELECT ");
    if with_cursor {
        sql.push(&Moment::sql()).push(", ");
    }
    sql.separated(", ", selects, |sql, select| {
        sql.push("(");
        sql::write(&PostgresDialect, &database.catalog, select, sql);
        sql.push(")::text");
    });
    if selects.is_empty() {
        sql.push("NULL");
    }
    let values = SqlxValues(sea_orm::sea_query::Values(sql.values));
    let query = sqlx::query_with(AssertSqlSafe(sql.text), values).persistent(named);
    let row = query.fetch_one(&mut *conn).await.map_err(database_error)?;
    let first = if with_cursor { Moment::COLUMNS } else { 0 };
    let parts = (first..first + selects.len())
        .map(|index| row.try_get(index))
        .collect::<Result<_, _>>()
        .map_err(database_error)?;
    let cursor = moment.map(|moment| moment.cursor(&row)).transpose()?;
    Ok(Fetched { parts, cursor })
}

/// What is needed to make a cursor of the moment that a statement sees the tables at.
struct Moment {
    sequence: u64,
    captured: Capture,
}

impl Moment {
    /// The columns of the statement. The log's end is looked up when the snapshot has been taken, so all that the snapshot shows lies before.
    fn sql() -> String {
        format!(
            "{SNAPSHOT}, (SELECT lsn FROM tidewire_log),
             ((CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END) - '0/0'::pg_lsn)::bigint,
             (SELECT {EPOCH} FROM tidewire_log)"
        )
    }

    const COLUMNS: usize = 4;

    /// Before the statement, on any connection.
    async fn before(database: &Postgres, conn: &mut PgConnection) -> Result<Self> {
        let row = sqlx::query(AssertSqlSafe(format!("SELECT ({SEQUENCE}), {EPOCH} FROM tidewire_log")))
            .persistent(database.connections.named())
            .fetch_one(&mut *conn)
            .await
            .map_err(database_error)?;
        if epoch_of(&row, 1).is_none() {
            database.look_for_history_on(conn).await?;
        }
        Ok(Self { captured: database.captured().await?, sequence: row.get::<i64, _>(0).cast_unsigned() })
    }

    fn cursor(&self, row: &PgRow) -> Result<Cursor> {
        let number = |index| row.get::<i64, _>(index).cast_unsigned();
        let (snapshot, epoch) = (Snapshot::parse(row.get(0))?, epoch_of(row, 3).ok_or_else(begun_anew)?);
        Ok(if self.captured == Capture::Log {
            Cursor::visible(epoch, snapshot.of_tables(self.sequence, number(1))).shown(number(2))
        } else {
            Cursor::visible(epoch, snapshot.of_outbox(self.sequence, number(1)))
        })
    }
}

/// Rows of one moment, read in parts in a transaction that keeps the moment.
struct PostgresSnapshot {
    transaction: SqlxTransaction<'static, Sqlx>,
    catalog: Arc<Catalog>,
    select: Select,
    cursor: Cursor,
    named: bool,
}

pub(super) async fn snapshot(database: &Postgres, entity: EntityId, filter: Filter) -> Result<Box<dyn SnapshotSource>> {
    let (mut conn, named) = (database.connections.lend().await?, database.connections.named());
    let before = Moment::before(database, &mut conn).await?;
    drop(conn);
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    let mut transaction = database.connections.begin(begin.to_owned()).await?;
    let moment = sqlx::query(AssertSqlSafe(format!("SELECT {}", Moment::sql())))
        .persistent(named)
        .fetch_one(&mut *transaction)
        .await
        .map_err(database_error)?;
    let cursor = before.cursor(&moment)?;
    let columns = database.catalog.entity(entity).columns.len();
    let select = Select { items: (0..columns).map(Item::Cell).collect(), filter, ..Select::new(entity) };
    let catalog = Arc::clone(&database.catalog);
    Ok(Box::new(PostgresSnapshot { transaction, catalog, select, cursor, named }))
}

#[async_trait::async_trait]
impl SnapshotSource for PostgresSnapshot {
    fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    async fn next(&mut self, limit: usize) -> Result<Vec<Image>> {
        let key = match &self.select.page {
            Page::After { key, .. } => key.clone(),
            _ => None,
        };
        self.select.page = Page::After { key, limit: limit as u64 };
        let mut sql = Sql::default();
        sql::write_rows(&PostgresDialect, &self.catalog, &self.select, &mut sql);
        let values = SqlxValues(sea_orm::sea_query::Values(sql.values));
        let query = sqlx::query_with(AssertSqlSafe(sql.text), values).persistent(self.named);
        let mut rows = query.fetch(&mut *self.transaction);
        let entity = self.catalog.entity(self.select.entity);
        let mut images = Vec::new();
        while let Some(row) = rows.try_next().await.map_err(database_error)? {
            let json: &str = row.try_get(0).map_err(database_error)?;
            images.push(Image::from_packed(entity, &PostgresDialect, &mut Scanner::new(json))?);
        }
        if let Some(last) = images.last() {
            self.select.page = Page::After { key: Some(last.key_values(entity)?), limit: limit as u64 };
        }
        Ok(images)
    }
}

pub(super) async fn prune(
    database: &Postgres,
    before: Option<DateTime<Utc>>,
    keep: Option<u64>,
    limit: usize,
) -> Result<Pruned> {
    let limit = signed(limit.max(1) as u64);
    let (mut conn, named) = (database.connections.lend().await?, database.connections.named());
    // Up to `due` everything may go, but only transactions that are due as a whole and that no snapshot can still have in flight.
    let removed: i64 = sqlx::query_scalar(
        "WITH due AS (SELECT greatest(
           CASE WHEN $1::timestamptz IS NULL THEN 0
             ELSE coalesce((SELECT seq FROM tidewire_outbox WHERE at >= $1 ORDER BY seq LIMIT 1) - 1, (SELECT max(seq) FROM tidewire_outbox), 0) END,
           coalesce((SELECT seq FROM tidewire_outbox ORDER BY seq DESC OFFSET $2 LIMIT 1), 0)) AS seq),
         round AS (SELECT DISTINCT xid FROM (SELECT xid FROM tidewire_outbox WHERE seq <= (SELECT seq FROM due) ORDER BY seq LIMIT $3) r),
         whole AS (SELECT xid FROM round WHERE xid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
           AND NOT EXISTS (SELECT 1 FROM tidewire_outbox o WHERE o.xid = round.xid AND o.seq > (SELECT seq FROM due))),
         gone AS (DELETE FROM tidewire_outbox WHERE xid IN (SELECT xid FROM whole) RETURNING xid),
         noted AS (UPDATE tidewire_log SET trimmed_xid = greatest(trimmed_xid, (SELECT max(xid) FROM gone)) WHERE EXISTS (SELECT 1 FROM gone))
         SELECT count(*) FROM gone",
    )
    .persistent(named)
    .bind(before)
    .bind(keep.map_or(i64::MAX, signed))
    .bind(limit)
    .fetch_one(&mut *conn)
    .await
    .map_err(database_error)?;
    let forgotten = sqlx::query(
        "DELETE FROM tidewire_mutation WHERE (id, field) IN (SELECT id, field FROM tidewire_mutation WHERE at < $1 ORDER BY at LIMIT $2)",
    )
    .persistent(named)
    .bind(before.map_or(i64::MIN, |time| time.timestamp_millis()))
    .bind(limit)
    .execute(&mut *conn)
    .await
    .map_err(database_error)?
    .rows_affected();
    conn.done().await.map_err(database_error)?;
    Ok(Pruned { changes: removed.cast_unsigned(), more: removed >= limit || forgotten >= limit.cast_unsigned() })
}

pub(super) async fn stats(database: &Postgres) -> Result<Stats> {
    let mut conn = database.connections.lend().await?;
    let row = sqlx::query(AssertSqlSafe(format!(
        "SELECT (SELECT min(seq) FROM tidewire_outbox), (SELECT max(seq) FROM tidewire_outbox),
         (SELECT at FROM tidewire_outbox ORDER BY seq LIMIT 1), (SELECT at FROM tidewire_outbox ORDER BY seq DESC LIMIT 1), ({SEQUENCE})"
    )))
    .persistent(database.connections.named())
    .fetch_one(&mut *conn)
    .await
    .map_err(database_error)?;
    let number = |index| row.get::<Option<i64>, _>(index).map(i64::cast_unsigned);
    let (oldest_seq, newest_seq) = (number(0), number(1));
    Ok(Stats {
        changes: newest_seq.zip(oldest_seq).map_or(0, |(newest, oldest)| newest - oldest + 1),
        oldest_seq,
        newest_seq,
        oldest_at: row.get(2),
        newest_at: row.get(3),
        recorded: number(4).unwrap_or(0),
        trimmed_through: oldest_seq.map_or(0, |oldest| oldest - 1),
    })
}
