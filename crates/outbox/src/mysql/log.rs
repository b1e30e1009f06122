//! Reading the outbox on MariaDB.
//!
//! Numbers are drawn before transactions commit, and those of what is rolled back are never used. So a missing number may be still to come, or gone for
//! good, and no one knows which by looking. A reader here remembers what a snapshot showed: the highest number, and the holes below it. It asks for what
//! is above the one and in the others. Each look is one statement, and so one snapshot: it shows transactions whole, and the next shows all that it did.
//! A hole is forgotten once it is known to stay empty ([`settle`](super::settle)); until then it costs a few bytes of cursor and holds up nobody.
//!
//! ```text
//! base ─────────────┬─ what base did not show, in windows of so many rows ─┬─ further
//!   (base)          (base, further, 10)         (base, further, 25)        (further)
//! ```
//!
//! *Order.* A change's number is drawn while its row is locked, so a row's changes have their numbers in their true order. Transactions are given in the
//! order of their last numbers: where T changed a row before U did, T had drawn all of its numbers and committed when U got the row, so its last number
//! is smaller than U's for that row, and than U's last.
//!
//! *Windows.* Much that is new is read in windows of so many rows, up to a moment (`further`) that is fixed at the first. The numbers of a transaction
//! are not contiguous, so one may begin in a window and go on behind its end. It waits for the window that its last number is in; what a reader has seen
//! inside is therefore told by one number: what `base` shows, and of what `further` shows, the transactions whose last number is at most that. None is
//! split, since each comes with its last number and with all of its rows. None comes before its forerunner: if T is such for U, and U's last number is in
//! this window, so is T's, or in one before. And what `further` shows, every later look shows too, so the windows need no snapshot to be kept open.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use sea_orm::sea_query::Values;
use sea_query_sqlx::SqlxValues;
use sqlx::{AssertSqlSafe, Executor, MySqlConnection, MySqlPool, Row, mysql::MySqlRow};

use super::{Mysql, binlog, database_error, dialect::MysqlDialect, epoch::epoch, session::Held};
use crate::{
    capture::Capture,
    change::{Change, Operation, Texts, Transaction},
    cursor::{Cursor, Epoch, Numbers},
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

/// How many holes a cursor may have. It is sent with every transaction, and each hole is a few bytes.
const MAX_HOLES: usize = 2_000;

/// Opens a snapshot, of which the server also says where in the binary log it stands.
const OPEN_SNAPSHOT: &str =
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";

/// How many rows retention removes with one statement.
const REMOVED_AT_ONCE: usize = 1_000;

/// How often a read is tried where the server is started meanwhile.
const ATTEMPTS: usize = 3;

/// What is visible, as a text that [`parse`] reads: the epoch, up to where all is settled, the highest number, and the holes between the two.
const MOMENT: &str = concat!(
    "(SELECT CONCAT_WS(':', COALESCE(",
    epoch!(),
    ", ''), l.settled, GREATEST(l.settled, COALESCE((SELECT MAX(seq) FROM tidewire_outbox), 0)),
    COALESCE((SELECT GROUP_CONCAT(g.low, '-', g.high ORDER BY g.low SEPARATOR ',') FROM (
      SELECT w.prev + 1 AS low, w.seq - 1 AS high FROM (
        SELECT seq, COALESCE(LAG(seq) OVER (ORDER BY seq), (SELECT settled FROM tidewire_log)) AS prev
        FROM tidewire_outbox WHERE seq > (SELECT settled FROM tidewire_log)) w
      WHERE w.seq > w.prev + 1) g), '')) FROM tidewire_log l)"
);

/// What is visible at one moment.
pub(super) struct Moment {
    /// None where another is to be begun.
    pub(super) epoch: Option<Epoch>,
    pub(super) numbers: Numbers,
    /// Up to where all is settled.
    pub(super) settled: u64,
}

impl Moment {
    /// Where somebody stands who has seen it; none where an epoch is to be begun.
    fn cursor(self) -> Result<Option<Cursor>> {
        let numbers = bounded(self.numbers)?;
        Ok(self.epoch.map(|epoch| Cursor::numbered(epoch, numbers, None)))
    }
}

/// Numbers that a cursor can tell.
fn bounded(numbers: Numbers) -> Result<Arc<Numbers>> {
    if numbers.holes.len() > MAX_HOLES {
        return Err(Error::new(
            ErrorKind::Busy,
            "a transaction has been open for long while many others were rolled back, and which of the missing numbers are still to come is only \
             known when it ends. Nothing is lost, and changes wait for it; `information_schema.innodb_trx` tells which it is",
        ));
    }
    Ok(Arc::new(numbers))
}

fn parse(text: &str) -> Result<Moment> {
    let parsed = || {
        let mut parts = text.split(':');
        let epoch = match parts.next()? {
            "" => None,
            epoch => Some(Epoch(epoch.parse::<i64>().ok()?.cast_unsigned())),
        };
        let (settled, highest, list) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
        let holes = list.split(',').filter(|hole| !hole.is_empty()).map(|hole| {
            let (low, high) = hole.split_once('-')?;
            Some((low.parse().ok()?, high.parse().ok()?))
        });
        Some(Moment { epoch, numbers: Numbers { highest, holes: holes.collect::<Option<_>>()? }, settled })
    };
    parsed().ok_or_else(lacks_log)
}

/// What is visible now.
pub(super) async fn moment(pool: &MySqlPool) -> Result<Moment> {
    let text: Option<String> =
        sqlx::query_scalar(AssertSqlSafe(format!("SELECT {MOMENT}"))).fetch_one(pool).await.map_err(database_error)?;
    parse(&text.unwrap_or_default())
}

/// The same, of a snapshot that is open on a connection; and where the database is captured by its log, where in that the snapshot stands.
async fn moment_of(database: &Mysql, snapshot: &mut MySqlConnection) -> Result<(Moment, Option<binlog::Place>)> {
    let text: Option<String> = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {MOMENT}")))
        .fetch_one(&mut *snapshot)
        .await
        .map_err(database_error)?;
    let place = match database.captured().await? {
        Capture::Log => Some(binlog::place_of(snapshot).await?),
        _ => None,
    };
    Ok((parse(&text.unwrap_or_default())?, place))
}

pub(super) async fn position(database: &Mysql) -> Result<Cursor> {
    database.history().await?;
    if database.captured().await? == Capture::Log {
        // What has been committed by now is in the outbox a little later.
        binlog::arrive(database).await?;
    }
    for _ in 0..ATTEMPTS {
        if let Some(cursor) = moment(&database.pool).await?.cursor()? {
            return Ok(cursor);
        }
        database.look_for_history().await?;
    }
    Err(begun_anew())
}

/// Where somebody stands who has seen a moment, with what the outbox gets later of what was committed then. Whoever asks again where an epoch was
/// to be begun finds it begun.
async fn cursor_at(database: &Mysql, (moment, place): (Moment, Option<binlog::Place>)) -> Result<Cursor> {
    let Some(epoch) = moment.epoch else {
        database.look_for_history().await?;
        return Err(begun_anew());
    };
    let numbers = match place {
        // None is missing below.
        Some(place) => {
            let highest = binlog::seen(database, place, moment.numbers.highest).await?;
            Numbers { highest, holes: Vec::new() }
        }
        None => moment.numbers,
    };
    Ok(Cursor::numbered(epoch, bounded(numbers)?, None))
}

pub(super) async fn read(database: &Mysql, after: &Cursor, until: Option<&Cursor>, limit: usize) -> Result<Read> {
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
    database: &Mysql,
    epoch: Epoch,
    after: &Cursor,
    until: Option<&Cursor>,
    limit: usize,
) -> Result<Option<Read>> {
    let (base, rest) = match after.numbers() {
        Some((_, base, rest)) => (Arc::clone(base), rest.map(|(further, seq)| (Arc::clone(further), seq))),
        None => (Arc::default(), None),
    };
    database.settling.step_beside(&database.pool, !base.holes.is_empty());
    let reader = Reader { database, epoch, base, limit: limit.max(1) };
    if let Some((further, seq)) = rest {
        // First what is left of the window that the reader stands in.
        return Ok(match reader.window(&further, seq).await? {
            Some(Read::Transactions { transactions, end, .. }) => {
                Some(Read::Transactions { transactions, end, reached_end: false })
            }
            other => other,
        });
    }
    let until = until.and_then(Cursor::numbers).and_then(|(_, base, rest)| rest.is_none().then(|| Arc::clone(base)));
    if let Some(until) = until {
        return reader.window(&until, 0).await;
    }
    match reader.now().await? {
        Look::Read(read) => Ok(Some(read)),
        Look::Another => Ok(None),
        Look::Much => reader.window(&bounded(moment(&database.pool).await?.numbers)?, 0).await,
    }
}

/// What a look at all that is new has come to.
enum Look {
    Read(Read),
    /// There is more than is read at once.
    Much,
    /// The epoch is another.
    Another,
}

struct Reader<'a> {
    database: &'a Mysql,
    epoch: Epoch,
    base: Arc<Numbers>,
    limit: usize,
}

/// A row of the outbox.
struct Step {
    seq: u64,
    tx: Box<[u8]>,
    change: Option<Change>,
}

const STEP: &str = "o.seq, o.tx, o.entity, o.operation, o.`before`, o.`after`, o.actor, o.origin, o.mutation_id, o.at";

/// Whether a number is in one of the ranges, of which there is one at least. Those of a single number go into one list, which costs the server much less than
/// as many conditions.
pub(super) fn within(column: &str, ranges: &[(u64, u64)]) -> String {
    let single: Vec<_> = ranges.iter().filter(|(low, high)| low == high).map(|(low, _)| low.to_string()).collect();
    let mut parts: Vec<_> = ranges
        .iter()
        .filter(|(low, high)| low != high)
        .map(|(low, high)| format!("{column} BETWEEN {low} AND {high}"))
        .collect();
    if !single.is_empty() {
        parts.push(format!("{column} IN ({})", single.join(", ")));
    }
    parts.join(" OR ")
}

/// What each read is told of the log: up to where all is settled, and what was removed, the epoch, and the highest number that was ever seen.
const STATE: &str = concat!(
    "l.settled, l.trimmed, ",
    epoch!(),
    ", GREATEST(l.settled, l.trimmed, COALESCE((SELECT MAX(seq) FROM tidewire_outbox), 0)), (SELECT trouble FROM tidewire_binlog)"
);

/// What [`STATE`] says.
#[derive(Clone, Copy)]
struct State {
    settled: u64,
    trimmed: u64,
    epoch: Option<Epoch>,
    given: u64,
}

impl State {
    fn of(row: &MySqlRow) -> Self {
        let number = |index| row.get::<i64, _>(index).cast_unsigned();
        let epoch = row.get::<Option<i64>, _>(2).map(|epoch| Epoch(epoch.cast_unsigned()));
        Self { settled: number(0), trimmed: number(1), epoch, given: number(3) }
    }
}

/// The condition that these numbers do not show a number.
fn unseen(column: &str, numbers: &Numbers) -> String {
    match numbers.holes.is_empty() {
        true => format!("{column} > {}", numbers.highest),
        false => format!("({column} > {} OR {})", numbers.highest, within(column, &numbers.holes)),
    }
}

/// The condition that these numbers show a number.
fn seen(column: &str, numbers: &Numbers) -> String {
    match numbers.holes.is_empty() {
        true => format!("{column} <= {}", numbers.highest),
        false => format!("({column} <= {} AND NOT ({}))", numbers.highest, within(column, &numbers.holes)),
    }
}

impl Reader<'_> {
    /// All that `base` does not show, as of now.
    async fn now(&self) -> Result<Look> {
        let text = format!(
            "SELECT {STATE}, {STEP} FROM tidewire_log l LEFT JOIN (
               SELECT * FROM tidewire_outbox WHERE {} ORDER BY seq LIMIT {}) o ON TRUE ORDER BY o.seq",
            unseen("seq", &self.base),
            self.limit + 1
        );
        let mut steps = Vec::new();
        let mut state = None;
        let mut texts = Texts::default();
        {
            // As plain text, since it is another text each time.
            let mut rows = self.database.pool.fetch(sqlx::raw_sql(AssertSqlSafe(text)));
            while let Some(row) = rows.try_next().await.map_err(database_error)? {
                state = Some(self.state(&row));
                steps.extend(step(&mut texts, &self.database.catalog, &row)?);
            }
        }
        let state = state.ok_or_else(lacks_log)?;
        if state.epoch != Some(self.epoch) {
            return Ok(Look::Another);
        }
        if let Some(reason) = self.resync(state, None) {
            return Ok(Look::Read(Read::Resync(reason)));
        }
        if steps.len() > self.limit {
            return Ok(Look::Much);
        }
        let further = bounded(grown(&self.base, steps.iter().map(|step| step.seq), state.settled))?;
        let end = Cursor::numbered(self.epoch, Arc::clone(&further), None);
        let transactions = self.transactions(steps, &further, Some(&end));
        Ok(Look::Read(Read::Transactions { transactions, reached_end: true, end }))
    }

    /// What `base` does not show and `further` does, from behind a number on; none where the epoch is another.
    async fn window(&self, further: &Arc<Numbers>, behind: u64) -> Result<Option<Read>> {
        let window = format!("seq > {behind} AND {} AND {}", unseen("seq", &self.base), seen("seq", further));
        let edge =
            format!("SELECT seq FROM tidewire_outbox WHERE {window} ORDER BY seq LIMIT 1 OFFSET {}", self.limit - 1);
        let edge =
            self.database.pool.fetch_optional(sqlx::raw_sql(AssertSqlSafe(edge))).await.map_err(database_error)?;
        let edge = edge.map(|row| row.get::<i64, _>(0).cast_unsigned());
        // Those that go on behind the window's end wait for a later one.
        let (to_edge, ends) = match edge {
            Some(edge) => (
                format!(" AND seq <= {edge}"),
                format!(
                    " AND NOT EXISTS (SELECT 1 FROM tidewire_outbox x WHERE x.tx = d.tx AND x.seq > {edge} AND {})",
                    seen("x.seq", further)
                ),
            ),
            None => Default::default(),
        };
        let text = format!(
            "SELECT {STATE}, {STEP} FROM tidewire_log l LEFT JOIN (
               SELECT d.last, r.* FROM (SELECT tx, MAX(seq) AS last FROM tidewire_outbox WHERE {window}{to_edge} GROUP BY tx) d
               JOIN tidewire_outbox r ON r.tx = d.tx WHERE {} AND {}{ends}) o ON TRUE ORDER BY o.last, o.seq",
            unseen("r.seq", &self.base),
            seen("r.seq", further),
        );
        let mut steps: Vec<Step> = Vec::new();
        let mut state = None;
        let mut texts = Texts::default();
        let mut of_one = 0_usize;
        let mut rows = self.database.pool.fetch(sqlx::raw_sql(AssertSqlSafe(text)));
        while let Some(row) = rows.try_next().await.map_err(database_error)? {
            state = Some(self.state(&row));
            let Some(step) = step(&mut texts, &self.database.catalog, &row)? else { continue };
            of_one = if steps.last().is_some_and(|last| last.tx == step.tx) { of_one + 1 } else { 1 };
            if of_one > MAX_TRANSACTION {
                return Ok(Some(Read::Resync(ResyncReason::Oversized)));
            }
            steps.push(step);
        }
        drop(rows);
        let state = state.ok_or_else(lacks_log)?;
        if state.epoch != Some(self.epoch) {
            return Ok(None);
        }
        if let Some(reason) = self.resync(state, Some((further, behind))) {
            return Ok(Some(Read::Resync(reason)));
        }
        let end = match edge {
            Some(edge) => self.cursor(further, edge),
            None => Cursor::numbered(self.epoch, Arc::clone(further), None),
        };
        let transactions = self.transactions(steps, further, edge.is_none().then_some(&end));
        Ok(Some(Read::Transactions { transactions, end, reached_end: edge.is_none() }))
    }

    /// What a row says of the log.
    fn state(&self, row: &MySqlRow) -> State {
        self.database.binlog.note_trouble(row.get(4));
        State::of(row)
    }

    /// Why the reader has to start over, if it has to: it saw numbers that are yet to be given, or something that it may not have seen was removed.
    fn resync(&self, state: State, rest: Option<(&Numbers, u64)>) -> Option<ResyncReason> {
        let highest = rest.map_or(0, |(further, _)| further.highest).max(self.base.highest);
        if highest > state.given {
            return Some(ResyncReason::Epoch);
        }
        self.misses(state.trimmed, rest).then_some(ResyncReason::Trimmed)
    }

    /// Whether something has been removed that the reader may not have seen: of the transactions with all their numbers up to `trimmed`.
    fn misses(&self, trimmed: u64, rest: Option<(&Numbers, u64)>) -> bool {
        let past = |numbers: &Numbers| numbers.complete_through() >= trimmed;
        !(past(&self.base) || rest.is_some_and(|(further, behind)| behind >= trimmed && past(further)))
    }

    fn cursor(&self, further: &Arc<Numbers>, seq: u64) -> Cursor {
        Cursor::numbered(self.epoch, Arc::clone(&self.base), Some((Arc::clone(further), seq)))
    }

    /// The steps by transaction, in the order of their last numbers. The last of a complete window stands at its end.
    fn transactions(&self, steps: Vec<Step>, further: &Arc<Numbers>, end: Option<&Cursor>) -> Vec<Arc<Transaction>> {
        let mut by_tx: Vec<(u64, Vec<Change>)> = Vec::new();
        let mut places = std::collections::HashMap::new();
        for step in steps {
            let place = *places.entry(step.tx).or_insert(by_tx.len());
            if place == by_tx.len() {
                by_tx.push((0, Vec::new()));
            }
            let (last, changes) = &mut by_tx[place];
            *last = step.seq.max(*last);
            changes.extend(step.change);
        }
        by_tx.sort_unstable_by_key(|(last, _)| *last);
        let mut transactions: Vec<_> =
            by_tx.into_iter().map(|(last, changes)| (self.cursor(further, last), changes)).collect();
        if let (Some((cursor, _)), Some(end)) = (transactions.last_mut(), end) {
            *cursor = end.clone();
        }
        let whole = transactions.into_iter().filter(|(_, changes)| !changes.is_empty());
        whole.map(|(cursor, changes)| Arc::new(Transaction { cursor, changes: changes.into() })).collect()
    }
}

/// What is seen once these further numbers are, which are in order.
fn grown(base: &Numbers, further: impl Iterator<Item = u64>, settled: u64) -> Numbers {
    let mut numbers = Numbers { highest: base.highest, holes: Vec::new() };
    let mut holes = base.holes.iter().copied().peekable();
    let mut add = |low: u64, high: u64| {
        let low = low.max(settled + 1);
        if low <= high {
            numbers.holes.push((low, high));
        }
    };
    let mut rest = holes.next();
    let mut highest = base.highest;
    for number in further {
        if number > highest {
            // All holes before it have been passed.
            while let Some((low, high)) = rest {
                add(low, high);
                rest = holes.next();
            }
            add(highest + 1, number - 1);
            highest = number;
            continue;
        }
        while let Some((low, high)) = rest {
            if high < number {
                add(low, high);
                rest = holes.next();
            } else {
                add(low, number - 1);
                rest = if number < high { Some((number + 1, high)) } else { holes.next() };
                break;
            }
        }
    }
    while let Some((low, high)) = rest {
        add(low, high);
        rest = holes.next();
    }
    numbers.highest = highest.max(settled);
    numbers
}

fn lacks_log() -> Error {
    Error::new(ErrorKind::Setup, "the outbox lacks its row in tidewire_log")
}

/// A row of the outbox; none where there is no row. Its change is none where the entity is not registered (any
/// more).
fn step(texts: &mut Texts, catalog: &Catalog, row: &MySqlRow) -> Result<Option<Step>> {
    let Some(seq) = row.get::<Option<i64>, _>("seq").map(i64::cast_unsigned) else { return Ok(None) };
    let tx = row.get::<&[u8], _>("tx").into();
    let Some(entity) = catalog.find(row.get("entity")) else { return Ok(Some(Step { seq, tx, change: None })) };
    let image = |column: &str| -> Result<Option<Image>> {
        row.get::<Option<&str>, _>(column).map(|json| Image::from_object(entity, &MysqlDialect, json)).transpose()
    };
    let change = Change {
        seq,
        entity: entity.id,
        operation: row.get::<&str, _>("operation").parse::<Operation>()?,
        before: image("before")?,
        after: image("after")?,
        actor: texts.share(row.get("actor")),
        origin: texts.share(row.get("origin")),
        mutation_id: texts.share(row.get("mutation_id")),
        at: row.get("at"),
    };
    Ok(Some(Step { seq, tx, change: Some(change) }))
}

pub(super) async fn fetch(database: &Mysql, selects: &[Select], with_cursor: bool) -> Result<Fetched> {
    if with_cursor {
        database.history().await?;
    }
    // One statement is one snapshot; but only of one that is opened as such it is known where in the log it stands.
    let by_log = with_cursor && database.captured().await? == Capture::Log;
    let mut sql = Sql::default();
    sql.push("SELECT ");
    sql.push(if with_cursor && !by_log { MOMENT } else { "NULL" });
    for select in selects {
        sql.push(", (");
        sql::write(&MysqlDialect, &database.catalog, select, &mut sql);
        sql.push(")");
    }
    let query = sqlx::query_with(AssertSqlSafe(sql.text), SqlxValues(Values(sql.values)));
    let (row, moment) = if by_log {
        let mut held = Held::new(&database.pool).await?;
        let conn = held.connection();
        conn.execute(sqlx::raw_sql(OPEN_SNAPSHOT)).await.map_err(database_error)?;
        let row = query.fetch_one(&mut *conn).await.map_err(database_error)?;
        let moment = moment_of(database, conn).await?;
        conn.execute("COMMIT").await.map_err(database_error)?;
        // Before anything is waited for, so that those who wait do not keep each other from connections.
        held.free();
        (row, Some(moment))
    } else {
        let row = query.fetch_one(&database.pool).await.map_err(database_error)?;
        let moment = if with_cursor { Some((parse(row.get(0))?, None)) } else { None };
        (row, moment)
    };
    let parts = (1..=selects.len()).map(|index| answer(&row, index)).collect::<Result<_>>()?;
    let cursor = match moment {
        Some(moment) => Some(cursor_at(database, moment).await?),
        None => None,
    };
    Ok(Fetched { parts, cursor })
}

/// A select's answer, which is a text even where the server calls it bytes. One that is too large for the server is NULL.
pub(super) fn answer(row: &MySqlRow, index: usize) -> Result<String> {
    row.try_get_unchecked::<Option<String>, _>(index).map_err(database_error)?.ok_or_else(|| {
        Error::new(
            ErrorKind::Database,
            "the answer is larger than the server allows (max_allowed_packet). Ask for less at once",
        )
    })
}

/// Rows of one moment, read in parts in a transaction that keeps the moment.
struct MysqlSnapshot {
    transaction: Held,
    catalog: Arc<Catalog>,
    select: Select,
    cursor: Cursor,
}

pub(super) async fn snapshot(database: &Mysql, entity: EntityId, filter: Filter) -> Result<Box<dyn SnapshotSource>> {
    database.history().await?;
    // Dropped at the end, the connection is closed, and its transaction with it.
    let mut transaction = Held::new(&database.pool).await?;
    transaction.connection().execute(sqlx::raw_sql(OPEN_SNAPSHOT)).await.map_err(database_error)?;
    let moment = moment_of(database, transaction.connection()).await?;
    let cursor = cursor_at(database, moment).await?;
    let columns = database.catalog.entity(entity).columns.len();
    let select = Select { items: (0..columns).map(Item::Cell).collect(), filter, ..Select::new(entity) };
    Ok(Box::new(MysqlSnapshot { transaction, catalog: Arc::clone(&database.catalog), select, cursor }))
}

#[async_trait::async_trait]
impl SnapshotSource for MysqlSnapshot {
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
        sql::write_rows(&MysqlDialect, &self.catalog, &self.select, &mut sql);
        let values = SqlxValues(Values(sql.values));
        let mut rows = sqlx::query_with(AssertSqlSafe(sql.text), values).fetch(self.transaction.connection());
        let entity = self.catalog.entity(self.select.entity);
        let mut images = Vec::new();
        while let Some(row) = rows.try_next().await.map_err(database_error)? {
            let json: &str = row.try_get_unchecked(0).map_err(database_error)?;
            images.push(Image::from_packed(entity, &MysqlDialect, &mut Scanner::new(json))?);
        }
        if let Some(last) = images.last() {
            self.select.page = Page::After { key: Some(last.key_values(entity)?), limit: limit as u64 };
        }
        Ok(images)
    }
}

pub(super) async fn prune(
    database: &Mysql,
    before: Option<DateTime<Utc>>,
    keep: Option<u64>,
    limit: usize,
) -> Result<Pruned> {
    let limit = limit.max(1);
    // Only what is settled: a transaction that is still to come may have smaller numbers. What has been settled just now may be a hole to someone still.
    let Moment { numbers, settled, .. } = moment(&database.pool).await?;
    database.settling.step(&database.pool).await?;
    let settled = if numbers.holes.is_empty() { numbers.highest } else { settled };
    let row = sqlx::query(
        "SELECT LEAST(?, GREATEST(
           CASE WHEN ? IS NULL THEN 0
             ELSE COALESCE((SELECT seq FROM tidewire_outbox WHERE at >= ? ORDER BY seq LIMIT 1) - 1, (SELECT MAX(seq) FROM tidewire_outbox), 0) END,
           CASE WHEN ? IS NULL THEN 0 ELSE COALESCE((SELECT seq FROM tidewire_outbox ORDER BY seq DESC LIMIT 1 OFFSET ?), 0) END))",
    )
    .bind(settled.cast_signed())
    .bind(before)
    .bind(before)
    .bind(keep)
    .bind(keep.unwrap_or_default())
    .fetch_one(&database.pool)
    .await
    .map_err(database_error)?;
    let due: i64 = row.get(0);
    if database.captured().await? == Capture::Log {
        binlog::tidy(&mut *database.pool.acquire().await.map_err(database_error)?).await?;
    }
    let removed = remove(database, due, limit).await?;
    let forgotten = sqlx::query("DELETE FROM tidewire_mutation WHERE at < ? ORDER BY at LIMIT ?")
        .bind(before.map_or(i64::MIN, |time| time.timestamp_millis()))
        .bind(limit as u64)
        .execute(&database.pool)
        .await
        .map_err(database_error)?
        .rows_affected();
    Ok(Pruned { changes: removed as u64, more: removed >= limit || forgotten >= limit as u64 })
}

/// Removes whole transactions of the oldest rows up to a number.
async fn remove(database: &Mysql, due: i64, limit: usize) -> Result<usize> {
    let rows = sqlx::query(
        "SELECT o.seq FROM (SELECT DISTINCT tx FROM (SELECT tx FROM tidewire_outbox WHERE seq <= ? ORDER BY seq LIMIT ?) oldest) d
         JOIN tidewire_outbox o ON o.tx = d.tx
         WHERE NOT EXISTS (SELECT 1 FROM tidewire_outbox x WHERE x.tx = d.tx AND x.seq > ?) ORDER BY o.seq",
    )
    .bind(due)
    .bind(limit as u64)
    .bind(due)
    .fetch_all(&database.pool)
    .await
    .map_err(database_error)?;
    let numbers: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    let Some(last) = numbers.last() else { return Ok(0) };
    let mut held = Held::new(&database.pool).await?;
    let conn = held.connection();
    let begin = format!("START TRANSACTION; UPDATE tidewire_log SET trimmed = GREATEST(trimmed, {last})");
    conn.execute(sqlx::raw_sql(AssertSqlSafe(begin))).await.map_err(database_error)?;
    // One by one by their key, which locks no gap into which somebody writes.
    for part in numbers.chunks(REMOVED_AT_ONCE) {
        let list = part.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        let text = format!("DELETE FROM tidewire_outbox WHERE seq IN ({list})");
        conn.execute(sqlx::raw_sql(AssertSqlSafe(text))).await.map_err(database_error)?;
    }
    conn.execute("COMMIT").await.map_err(database_error)?;
    held.free();
    Ok(numbers.len())
}

pub(super) async fn stats(database: &Mysql) -> Result<Stats> {
    let row = sqlx::query(
        "SELECT (SELECT MIN(seq) FROM tidewire_outbox), (SELECT MAX(seq) FROM tidewire_outbox),
         (SELECT at FROM tidewire_outbox ORDER BY seq LIMIT 1), (SELECT at FROM tidewire_outbox ORDER BY seq DESC LIMIT 1),
         GREATEST(l.settled, l.trimmed), l.trimmed FROM tidewire_log l",
    )
    .fetch_one(&database.pool)
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
        recorded: number(4).unwrap_or(0).max(newest_seq.unwrap_or(0)),
        trimmed_through: number(5).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_grows_into_holes_and_upwards() {
        let base = Numbers { highest: 10, holes: vec![(2, 2), (4, 6), (8, 9)] };
        let grow = |further: &[u64], settled| {
            let numbers = grown(&base, further.iter().copied(), settled);
            (numbers.highest, numbers.holes)
        };
        assert_eq!(grow(&[], 0), (10, base.holes.clone()));
        assert_eq!(grow(&[2, 5, 8, 9], 0), (10, vec![(4, 4), (6, 6)]));
        assert_eq!(grow(&[4, 6, 11, 14, 15], 0), (15, vec![(2, 2), (5, 5), (8, 9), (12, 13)]));
        assert_eq!(grow(&[13], 5), (13, vec![(6, 6), (8, 9), (11, 12)]));
        assert_eq!(grow(&[], 10), (10, vec![]));
        assert_eq!(grow(&[], 12), (12, vec![]));
    }
}
