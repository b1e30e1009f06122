//! Reading the outbox on SQLite.
//!
//! There is one writer, so commits are in the order of `seq`, and what a reader has seen is a number. Each read is a single statement and
//! so a single snapshot.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use sea_orm::sea_query::Value;
use sea_query_sqlx::SqlxValues;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row, SqliteConnection, sqlite::SqliteRow};

use super::{Sqlite, database_error, dialect::SqliteDialect, others};
use crate::{
    change::{Change, Operation, Texts, Transaction},
    cursor::{Cursor, Epoch},
    database::{Fetched, Pruned, Read, ResyncReason, SnapshotSource, Stats},
    error::{Error, ErrorKind, Result},
    filter::Filter,
    image::Image,
    json::Scanner,
    registry::{Catalog, EntityId},
    sql::{self, Item, Page, Select, Sql},
};

/// A transaction with more changes than this is not put before a reader at once: it is answered by a resync.
const MAX_TRANSACTION: usize = 200_000;

/// The number of the newest change that was ever committed. Survives pruning.
const SEQUENCE: &str = "coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'tidewire_outbox'), 0)";

/// The epochs of the log, with the number after which each began, oldest first.
#[derive(Debug, Default)]
pub(super) struct Epochs(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    newest_id: i64,
    starts: Vec<(u64, Epoch)>,
}

impl Epochs {
    /// Whether a cursor's last change was written in the epoch that it names.
    pub(super) fn continues(&self, cursor: &Cursor) -> bool {
        let (epoch, seq) = cursor.position();
        seq == 0 || epoch == Some(self.of(seq))
    }

    /// The epoch that the change with this number was written in.
    fn of(&self, seq: u64) -> Epoch {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.starts.partition_point(|(since, _)| *since < seq);
        known.starts[..before].last().or(known.starts.last()).map_or(Epoch(0), |(_, epoch)| *epoch)
    }

    /// Reads the epochs again if there is a newer one.
    async fn refresh(&self, database: &Sqlite, newest_id: i64) -> Result<()> {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).newest_id == newest_id {
            return Ok(());
        }
        let rows = sqlx::query("SELECT id, since, epoch FROM tidewire_epoch ORDER BY id")
            .fetch_all(&database.readers)
            .await
            .map_err(database_error)?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.newest_id = rows.last().map_or(0, |row| row.get(0));
        known.starts = rows.iter().map(|row| (number(row, 1), Epoch(row.get::<i64, _>(2).cast_unsigned()))).collect();
        Ok(())
    }
}

pub(super) async fn position(database: &Sqlite) -> Result<Cursor> {
    let row =
        sqlx::query(AssertSqlSafe(format!("SELECT coalesce((SELECT max(id) FROM tidewire_epoch), 0), {SEQUENCE}")))
            .fetch_one(&database.readers)
            .await
            .map_err(database_error)?;
    database.epochs.refresh(database, row.get(0)).await?;
    Ok(cursor(database, number(&row, 1)))
}

fn cursor(database: &Sqlite, seq: u64) -> Cursor {
    Cursor::through(database.epochs.of(seq), seq)
}

pub(super) async fn read(database: &Sqlite, after: &Cursor, limit: usize) -> Result<Read> {
    let (_, seen) = after.position();
    let limit = limit.max(1);
    let (mut state, mut steps) = steps(database, seen, limit + 1, None).await?;
    if steps.iter().any(|step| step.tx == -state.stamp) {
        // Of other programs, and more could join them: what comes later has another stamp.
        database.writer.turn().await?.connection().maintain(&others::raise(state.stamp)).await?;
        (state, steps) = self::steps(database, seen, limit + 1, None).await?;
    }
    // Some may have come with it already.
    let settled = steps.iter().position(|step| step.tx == -state.stamp);
    steps.truncate(settled.unwrap_or(steps.len()));
    database.epochs.refresh(database, state.newest_epoch).await?;
    if seen < state.trimmed_through {
        return Ok(Read::Resync(ResyncReason::Trimmed));
    }
    if seen > state.sequence || !database.epochs.continues(after) {
        return Ok(Read::Resync(ResyncReason::Epoch));
    }
    let is_cut = steps.len() > limit;
    if is_cut {
        // The last transaction may go on. Leave it for the next read or, if it is the only one, read it to its end.
        let last = steps[limit].tx;
        let whole = steps.partition_point(|step| step.tx != last);
        if whole > 0 {
            steps.truncate(whole);
        } else {
            let (_, rest) = self::steps(database, steps[limit].seq, MAX_TRANSACTION, Some(last)).await?;
            if steps.len() + rest.len() > MAX_TRANSACTION {
                return Ok(Read::Resync(ResyncReason::Oversized));
            }
            steps.extend(rest);
        }
    }
    let reached_end = !is_cut && settled.is_none();
    let end = if reached_end { state.sequence } else { steps.last().map_or(seen, |step| step.seq) };
    Ok(Read::Transactions { transactions: transactions(database, steps), reached_end, end: cursor(database, end) })
}

/// The state of the log at the moment of a read.
struct State {
    newest_epoch: i64,
    trimmed_through: u64,
    sequence: u64,
    /// Of what other programs write.
    stamp: i64,
}

/// One row of the outbox.
struct Step {
    tx: i64,
    seq: u64,
    /// None where the entity is not registered (any more).
    change: Option<Change>,
}

/// Reads up to `limit` rows after a number, of one transaction or of all, together with the state. One statement, so both are of one
/// snapshot.
async fn steps(database: &Sqlite, after: u64, limit: usize, tx: Option<i64>) -> Result<(State, Vec<Step>)> {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let text = format!(
        "SELECT newest_epoch, trimmed_through, sequence, seq, tx, entity, operation, before, after, actor, origin, mutation_id, at, stamp FROM (
           SELECT coalesce((SELECT max(id) FROM tidewire_epoch), 0) AS newest_epoch, trimmed_through, {SEQUENCE} AS sequence, stamp
           FROM tidewire_log, tidewire_others
         ) LEFT JOIN (SELECT * FROM tidewire_outbox WHERE seq > ? {} ORDER BY seq LIMIT ?) ON TRUE",
        if tx.is_some() { "AND tx = ?" } else { "" }
    );
    let mut query = sqlx::query(AssertSqlSafe(text)).bind(signed(after));
    if let Some(tx) = tx {
        query = query.bind(tx);
    }
    let mut rows = query.bind(signed(limit as u64)).fetch(&database.readers);
    let mut state = None;
    let mut steps = Vec::new();
    let mut texts = Texts::default();
    while let Some(row) = rows.try_next().await.map_err(database_error)? {
        state.get_or_insert_with(|| State {
            newest_epoch: row.get(0),
            trimmed_through: number(&row, 1),
            sequence: number(&row, 2),
            stamp: row.get(13),
        });
        if row.get::<Option<i64>, _>(3).is_some() {
            steps.push(Step {
                seq: number(&row, 3),
                tx: row.get(4),
                change: self::change(&mut texts, &database.catalog, &row)?,
            });
        }
    }
    let state = state.ok_or_else(|| Error::new(ErrorKind::Setup, "the outbox lacks its row in tidewire_log"))?;
    Ok((state, steps))
}

fn transactions(database: &Sqlite, steps: Vec<Step>) -> Vec<Arc<Transaction>> {
    let mut transactions = Vec::new();
    let mut steps = steps.into_iter().peekable();
    while let Some(first) = steps.next() {
        let (tx, mut last) = (first.tx, first.seq);
        let mut changes: Vec<Change> = first.change.into_iter().collect();
        while let Some(step) = steps.next_if(|step| step.tx == tx) {
            last = step.seq;
            changes.extend(step.change);
        }
        if !changes.is_empty() {
            transactions
                .push(Arc::new(Transaction { cursor: cursor(database, last), changes: changes.into_boxed_slice() }));
        }
    }
    transactions
}

/// `None` where the entity is not registered (any more).
fn change(texts: &mut Texts, catalog: &Catalog, row: &SqliteRow) -> Result<Option<Change>> {
    let Some(entity) = catalog.find(row.get(5)) else { return Ok(None) };
    let image = |index| -> Result<Option<Image>> {
        row.get::<Option<&str>, _>(index).map(|json| Image::from_object(entity, &SqliteDialect, json)).transpose()
    };
    Ok(Some(Change {
        seq: number(row, 3),
        entity: entity.id,
        operation: row.get::<&str, _>(6).parse::<Operation>()?,
        before: image(7)?,
        after: image(8)?,
        actor: texts.share(row.get(9)),
        origin: texts.share(row.get(10)),
        mutation_id: texts.share(row.get(11)),
        at: DateTime::from_timestamp_millis(row.get(12)).unwrap_or_default(),
    }))
}

pub(super) async fn fetch(database: &Sqlite, selects: &[Select], with_cursor: bool) -> Result<Fetched> {
    // All as columns of one row: one statement, one snapshot.
    let mut sql = Sql::default();
    sql.push("SELECT ");
    sql.separated(", ", selects, |sql, select| {
        sql.push("(");
        sql::write(&SqliteDialect, &database.catalog, select, sql);
        sql.push(")");
    });
    if with_cursor {
        sql.push(", coalesce((SELECT max(id) FROM tidewire_epoch), 0), ").push(SEQUENCE);
    }
    let row = sqlx::query_with(AssertSqlSafe(sql.text), SqlxValues(sea_orm::sea_query::Values(sql.values)))
        .fetch_one(&database.readers)
        .await
        .map_err(database_error)?;
    let parts = (0..selects.len()).map(|index| row.try_get(index).map_err(database_error)).collect::<Result<_>>()?;
    let cursor = if with_cursor {
        database.epochs.refresh(database, row.get(selects.len())).await?;
        Some(cursor(database, number(&row, selects.len() + 1)))
    } else {
        None
    };
    Ok(Fetched { parts, cursor })
}

/// Opens a connection with a read transaction that stays open for the snapshot's life.
pub(super) async fn snapshot(database: &Sqlite, entity: EntityId, filter: Filter) -> Result<Box<dyn SnapshotSource>> {
    let mut connection = database.options.connect().await.map_err(database_error)?;
    connection.execute("BEGIN").await.map_err(database_error)?;
    // The first read fixes the moment that all later ones see.
    let row =
        sqlx::query(AssertSqlSafe(format!("SELECT coalesce((SELECT max(id) FROM tidewire_epoch), 0), {SEQUENCE}")))
            .fetch_one(&mut connection)
            .await
            .map_err(database_error)?;
    database.epochs.refresh(database, row.get(0)).await?;
    let meta = database.catalog.entity(entity);
    let select = Select { items: (0..meta.columns.len()).map(Item::Cell).collect(), filter, ..Select::new(entity) };
    Ok(Box::new(SqliteSnapshot {
        catalog: Arc::clone(&database.catalog),
        connection,
        cursor: cursor(database, number(&row, 1)),
        select,
        last: None,
    }))
}

struct SqliteSnapshot {
    catalog: Arc<Catalog>,
    connection: SqliteConnection,
    cursor: Cursor,
    select: Select,
    /// The key of the last row given.
    last: Option<Vec<Value>>,
}

#[async_trait]
impl SnapshotSource for SqliteSnapshot {
    fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    async fn next(&mut self, limit: usize) -> Result<Vec<Image>> {
        let entity = self.catalog.entity(self.select.entity);
        self.select.page = Page::After { key: self.last.take(), limit: limit as u64 };
        let mut sql = Sql::default();
        sql::write_rows(&SqliteDialect, &self.catalog, &self.select, &mut sql);
        let mut rows = sqlx::query_with(AssertSqlSafe(sql.text), SqlxValues(sea_orm::sea_query::Values(sql.values)))
            .fetch(&mut self.connection);
        let mut images = Vec::new();
        while let Some(row) = rows.try_next().await.map_err(database_error)? {
            images.push(Image::from_packed(entity, &SqliteDialect, &mut Scanner::new(row.get(0)))?);
        }
        drop(rows);
        if let Some(image) = images.last() {
            self.last = Some(image.key_values(entity)?);
        }
        Ok(images)
    }
}

pub(super) async fn prune(
    database: &Sqlite,
    before: Option<DateTime<Utc>>,
    keep: Option<u64>,
    limit: usize,
) -> Result<Pruned> {
    let limit = i64::try_from(limit.max(1)).unwrap_or(i64::MAX);
    let before = before.map_or(i64::MIN, |time| time.timestamp_millis());
    // Up to `due` everything may go. A round takes so many of that, to the end of a transaction; one that is not due as a whole stays.
    let due = sqlx::query(
        "WITH due AS (SELECT max(
           coalesce((SELECT seq FROM tidewire_outbox WHERE at >= ?1 ORDER BY seq LIMIT 1) - 1, (SELECT max(seq) FROM tidewire_outbox), 0),
           coalesce((SELECT seq FROM tidewire_outbox ORDER BY seq DESC LIMIT 1 OFFSET ?2), 0)) AS seq),
         round AS (SELECT seq, tx FROM tidewire_outbox WHERE seq <= (SELECT seq FROM due) ORDER BY seq LIMIT ?3),
         last AS (SELECT seq, tx FROM round ORDER BY seq DESC LIMIT 1),
         following AS (
           SELECT seq FROM tidewire_outbox WHERE seq > (SELECT seq FROM last) AND tx <> (SELECT tx FROM last) ORDER BY seq LIMIT 1),
         whole AS (SELECT max(seq) AS seq FROM tidewire_outbox WHERE seq < coalesce((SELECT seq FROM following), 9223372036854775807))
         SELECT
           CASE WHEN (SELECT seq FROM last) IS NULL THEN NULL
             WHEN (SELECT seq FROM whole) <= (SELECT seq FROM due) THEN (SELECT seq FROM whole)
             ELSE (SELECT o.seq FROM tidewire_outbox o WHERE o.seq < (SELECT seq FROM last) AND o.tx <> (SELECT tx FROM last)
               ORDER BY o.seq DESC LIMIT 1) END,
           EXISTS (SELECT 1 FROM tidewire_mutation WHERE at < ?1)",
    )
    .bind(before)
    .bind(keep.map_or(i64::MAX, |keep| i64::try_from(keep).unwrap_or(i64::MAX)))
    .bind(limit)
    .fetch_one(&database.readers)
    .await
    .map_err(database_error)?;
    let (boundary, mutations): (Option<i64>, bool) = (due.get(0), due.get(1));
    if boundary.is_none() && !mutations {
        return Ok(Pruned::default());
    }
    let mut turn = database.writer.turn().await?;
    let connection = turn.connection();
    let mut forgotten = 0;
    if mutations {
        forgotten = connection
            .maintain(&format!(
                "DELETE FROM tidewire_mutation WHERE (id, field) IN (
                   SELECT id, field FROM tidewire_mutation WHERE at < {before} ORDER BY at LIMIT {limit})"
            ))
            .await?;
    }
    let mut removed = 0;
    if let Some(boundary) = boundary {
        removed = connection
            .maintain(&format!(
                "UPDATE tidewire_log SET trimmed_through = max(trimmed_through, {boundary});
                 DELETE FROM tidewire_epoch WHERE id < (SELECT max(id) FROM tidewire_epoch WHERE since < {boundary});
                 DELETE FROM tidewire_outbox WHERE seq <= {boundary}"
            ))
            .await?;
    }
    let full = u64::try_from(limit).unwrap_or(u64::MAX);
    Ok(Pruned { changes: removed, more: removed >= full || forgotten >= full })
}

pub(super) async fn stats(database: &Sqlite) -> Result<Stats> {
    let row = sqlx::query(AssertSqlSafe(format!(
        "SELECT coalesce((SELECT max(seq) - min(seq) + 1 FROM tidewire_outbox), 0), (SELECT min(seq) FROM tidewire_outbox), (SELECT max(seq) FROM tidewire_outbox),
         (SELECT at FROM tidewire_outbox ORDER BY seq LIMIT 1), (SELECT at FROM tidewire_outbox ORDER BY seq DESC LIMIT 1),
         (SELECT trimmed_through FROM tidewire_log), {SEQUENCE}"
    )))
    .fetch_one(&database.readers)
    .await
    .map_err(database_error)?;
    Ok(Stats {
        changes: number(&row, 0),
        oldest_seq: row.get::<Option<i64>, _>(1).map(|_| number(&row, 1)),
        newest_seq: row.get::<Option<i64>, _>(2).map(|_| number(&row, 2)),
        oldest_at: row.get::<Option<i64>, _>(3).and_then(DateTime::from_timestamp_millis),
        newest_at: row.get::<Option<i64>, _>(4).and_then(DateTime::from_timestamp_millis),
        trimmed_through: number(&row, 5),
        recorded: number(&row, 6),
    })
}

fn number(row: &SqliteRow, index: usize) -> u64 {
    u64::try_from(row.get::<i64, _>(index)).unwrap_or(0)
}
