//! Runs writes of synced rows, and records them in the same transaction.
//!
//! ```text
//! INSERT   … RETURNING the images                                           record
//! UPDATE   SELECT … FOR UPDATE, the statement, SELECT by the keys           record
//! DELETE   … RETURNING the images                                           record
//! ```
//!
//! Every row is locked from before its first image until the transaction ends, and only then are the changes numbered: so a row's changes have
//! their numbers in their true order. Before the first number the transaction takes its share of the barrier, as triggers do.

use std::collections::{HashMap, HashSet};

use futures_util::TryStreamExt;
use sea_orm::{DbErr, Values, sea_query::Value};
use sqlx::{
    AssertSqlSafe, Either, Executor, MySqlConnection,
    mysql::{MySqlQueryResult, MySqlRow},
};

use super::{
    super::{
        session::{self, exec_error, expression},
        triggers::{self, literal},
    },
    Schema, Step, Way,
    cascade::{Fate, Found, Referred, Walk},
    facts::{Table, text},
    key::{Literals, is_one_of},
    plan::{Delete, Held, Insert, Lock, Update},
};
use crate::{
    context::Context,
    error::{Error, ErrorKind},
    hooks::Verb,
};

/// How much is sent at once, in bytes, where the server would take more.
const MESSAGE: usize = 1 << 20;

/// How many numbers of new rows are listed at most.
const LISTED: usize = 1_000;

/// Around statements that draw numbers of their own.
const SAVE_NUMBER: &str = "SET @tidewire_id = LAST_INSERT_ID()";
const RESTORE_NUMBER: &str = "DO LAST_INSERT_ID(@tidewire_id)";

/// What a transaction has come to.
#[derive(Debug)]
pub(in super::super) struct Progress {
    /// Names the transaction in the outbox.
    tx: uuid::Uuid,
    /// Whether it has its share of the barrier.
    entered: bool,
    /// Whether rows may have been written and not yet recorded. A transaction that is left so must not be committed.
    pub(in super::super) halfway: bool,
    /// Whether the transaction ends with the statement, and has.
    pub(in super::super) commits: bool,
    pub(in super::super) committed: bool,
    /// Whether others may insert rows between those that it has looked for.
    pub(in super::super) open_gaps: bool,
}

impl Progress {
    pub(in super::super) fn new() -> Self {
        Self {
            tx: uuid::Uuid::new_v4(),
            entered: false,
            halfway: false,
            commits: false,
            committed: false,
            open_gaps: false,
        }
    }

    /// The statement by which a transaction takes its share of the barrier.
    pub(in super::super) fn enter(&mut self) -> String {
        self.entered = true;
        triggers::enter_barrier("@tidewire_barrier")
    }
}

/// A change to record.
#[derive(Debug)]
pub(super) struct Change {
    entity: String,
    operation: &'static str,
    before: Option<String>,
    after: Option<String>,
}

impl Change {
    pub(super) fn new(table: &Table, operation: &'static str, before: Option<String>, after: Option<String>) -> Self {
        Self { entity: table.name.clone(), operation, before, after }
    }
}

/// The numbers that rows were given, in the order of the rows.
#[derive(Debug, Default)]
struct Given {
    numbers: Vec<u64>,
    /// What `LAST_INSERT_ID()` was before, where they may be the caller's own: if it is the same afterwards, the server has drawn none.
    earlier: Option<u64>,
}

impl Given {
    fn add(&mut self, insert: &Insert, row: &MySqlRow) {
        let number = |place| maybe(row, place).and_then(|number| number.parse::<u64>().ok());
        self.numbers.extend(number(Insert::NUMBER));
        if !insert.draws {
            self.earlier = number(Insert::EARLIER);
        }
    }

    /// What the statement answers as its number, as an expression: the number that was drawn first, or else the last.
    fn answer(&self) -> Option<String> {
        let last = self.numbers.last()?;
        let among = match self.numbers.len() {
            ..=LISTED => format!("IN ({})", self.numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
            _ => {
                let bound = |bound: Option<&u64>| *bound.unwrap_or(last);
                format!("BETWEEN {} AND {}", bound(self.numbers.iter().min()), bound(self.numbers.iter().max()))
            }
        };
        let drawn = self.earlier.map(|earlier| format!(" AND @tidewire_id <> {earlier}")).unwrap_or_default();
        Some(format!("IF(@tidewire_id {among}{drawn}, @tidewire_id, {last})"))
    }
}

/// One statement on its way.
pub(super) struct Run<'a> {
    pub(super) conn: &'a mut MySqlConnection,
    pub(super) schema: &'a Schema,
    pub(super) progress: &'a mut Progress,
    pub(super) context: &'a Context,
    /// Whether the statement is kept prepared.
    pub(super) prepared: bool,
}

/// What a statement has done, and the rows that it answers.
pub(super) type Answer = (MySqlQueryResult, Vec<MySqlRow>);

fn refused(why: String) -> DbErr {
    Error::new(ErrorKind::Refused, why).into()
}

impl Run<'_> {
    pub(super) async fn step(&mut self, step: &Step, values: Vec<Value>) -> Result<Answer, DbErr> {
        if values.len() != step.values {
            let why = format!("the statement takes {} values and was given {}", step.values, values.len());
            return Err(refused(why));
        }
        match step.way {
            Way::Plain if self.prepared => return self.query(&step.sql, values).await,
            Way::Plain => {
                let mut result = MySqlQueryResult::default();
                result.extend(self.send(&step.sql).await?);
                return Ok((result, Vec::new()));
            }
            _ => {}
        }
        if !self.progress.entered {
            let enter = self.progress.enter();
            self.send(&enter).await.inspect_err(|_| self.progress.entered = false)?;
        }
        // Whoever drops this in the middle leaves it so.
        self.progress.halfway = true;
        let done = match &step.way {
            Way::Plain => unreachable!("done"),
            Way::Insert(insert) => self.insert(insert, values).await?,
            Way::Replace(insert) => self.replace(insert, values).await?,
            Way::Update(update) => self.update(update, values).await?,
            Way::Delete(delete) => self.delete(delete, values).await?,
            Way::Held(held) => self.held(held, values).await?,
        };
        self.progress.halfway = false;
        Ok(done)
    }

    /// Runs the caller's statement, or locks its rows: what fails has done nothing.
    async fn query(&mut self, sql: &str, values: Vec<Value>) -> Result<Answer, DbErr> {
        let done = session::answer(self.conn, sql, Values(values), self.prepared).await;
        if done.is_err() {
            self.progress.halfway = false;
        }
        done
    }

    /// Rows of a text without values.
    pub(super) async fn raw(&mut self, sql: &str) -> Result<Vec<MySqlRow>, DbErr> {
        self.conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await.map_err(exec_error)
    }

    /// Sends statements, and answers what each has done.
    async fn send(&mut self, sql: &str) -> Result<Vec<MySqlQueryResult>, DbErr> {
        let mut steps = self.conn.fetch_many(sqlx::raw_sql(AssertSqlSafe(sql)));
        let mut done = Vec::new();
        while let Some(step) = steps.try_next().await.map_err(exec_error)? {
            if let Either::Left(result) = step {
                done.push(result);
            }
        }
        Ok(done)
    }

    async fn insert(&mut self, insert: &Insert, mut values: Vec<Value>) -> Result<Answer, DbErr> {
        let table = self.schema.planned(&insert.table)?;
        let of_list = match &insert.list {
            Some((_, places)) => values.split_off(values.len() - places),
            None => Vec::new(),
        };
        let rows = match self.query(&insert.sql, values).await {
            Ok((_, rows)) => rows,
            Err(error) => {
                if insert.upserts {
                    // A row that was met before it failed has left its image. Where this fails too, the transaction is over.
                    self.progress.halfway = true;
                    self.send("SET @tidewire_before = NULL").await?;
                    self.progress.halfway = false;
                }
                return Err(error);
            }
        };
        let (mut changes, mut keys, mut given) = (Vec::new(), Vec::new(), Given::default());
        // How many rows the server would say that it wrote: two for each that it changed.
        let mut written = 0_usize;
        for row in &rows {
            let after = self.schema.fits(table, maybe(row, Insert::IMAGE))?;
            let key = literals_of(row, Insert::KEY, table.key.len());
            given.add(insert, row);
            written += 1;
            match maybe(row, Insert::BEFORE) {
                None => changes.push(Change::new(table, "insert", None, Some(after))),
                Some(before) => {
                    let before = self.schema.fits(table, Some(before).filter(|before| !before.is_empty()))?;
                    if before != after {
                        written += 1;
                        if maybe(row, Insert::KEY_BEFORE).as_deref() == Some(key.join(",").as_str()) {
                            changes.push(Change::new(table, "update", Some(before), Some(after)));
                        } else {
                            changes.push(Change::new(table, "delete", Some(before), None));
                            changes.push(Change::new(table, "insert", None, Some(after)));
                        }
                    }
                }
            }
            keys.push(key);
        }
        if insert.tells_drawn && !given.numbers.is_empty() {
            given.numbers.push(0);
        }
        let more = written.saturating_sub(changes.len());
        self.answer_insert(insert, &changes, more, &given, &keys, of_list).await
    }

    /// Records what an insert has done, and answers as the server would have.
    async fn answer_insert(
        &mut self,
        insert: &Insert,
        changes: &[Change],
        more: usize,
        given: &Given,
        keys: &[Literals],
        of_list: Vec<Value>,
    ) -> Result<Answer, DbErr> {
        let Some((list, _)) = &insert.list else {
            return Ok((self.record(changes, more, given).await?, Vec::new()));
        };
        let rows = self.returned(self.schema.planned(&insert.table)?, list, keys, of_list).await?;
        Ok((self.record(changes, more, given).await?, rows))
    }

    /// Which rows a `REPLACE` removes is found by trying it: those in the way of what it has written, by any unique index. They are locked then, and
    /// under REPEATABLE READ nobody can put another there.
    async fn replace(&mut self, insert: &Insert, mut values: Vec<Value>) -> Result<Answer, DbErr> {
        let schema = self.schema;
        let table = schema.planned(&insert.table)?;
        if self.progress.open_gaps {
            self.progress.halfway = false;
            return Err(refused(format!("REPLACE on {} needs REPEATABLE READ to be recorded", table.name)));
        }
        let of_list = values.split_off(values.len() - insert.list.as_ref().map_or(0, |(_, places)| *places));
        self.send("SAVEPOINT tidewire_try").await?;
        let (_, tried) = self.query(&insert.sql, values.clone()).await?;
        self.progress.halfway = true;
        self.send("ROLLBACK TO SAVEPOINT tidewire_try; RELEASE SAVEPOINT tidewire_try").await?;
        let mut removed: HashMap<Literals, Found> = HashMap::new();
        let mut place = Insert::KEY + table.key.len();
        for index in &table.unique {
            let given = tried.iter().filter_map(|row| {
                (place..place + index.len()).map(|place| maybe(row, place)).collect::<Option<Literals>>()
            });
            let given: Vec<Literals> = given.collect();
            removed.extend(self.rows(table, index, &given).await?.into_iter().map(|row| (row.key.clone(), row)));
            place += index.len();
        }
        let mut walk = Walk::new(schema);
        let referred = removed.values().map(|row| row.referred.clone()).collect();
        walk.hold(self, table, Fate::Deleted, &[], referred).await?;
        let (_, rows) = self.query(&insert.sql, values).await?;
        self.progress.halfway = true;
        walk.forget(&table.name, removed.keys());
        let (deleted, changed) = walk.changes(self, table, Vec::new()).await?;
        let mut changes: Vec<Change> =
            removed.into_values().map(|row| Change::new(table, "delete", row.image, None)).collect();
        let (mut keys, mut given) = (Vec::new(), Given::default());
        for row in &rows {
            let after = schema.fits(table, maybe(row, Insert::IMAGE))?;
            changes.push(Change::new(table, "insert", None, Some(after)));
            keys.push(literals_of(row, Insert::KEY, table.key.len()));
            given.add(insert, row);
        }
        let commits = std::mem::take(&mut self.progress.commits);
        self.record(&deleted, 0, &Given::default()).await?;
        self.record(&changed, 0, &Given::default()).await?;
        self.progress.commits = commits;
        self.answer_insert(insert, &changes, 0, &given, &keys, of_list).await
    }

    /// What the caller wants returned of rows that have been inserted.
    async fn returned(
        &mut self,
        table: &Table,
        list: &str,
        keys: &[Literals],
        values: Vec<Value>,
    ) -> Result<Vec<MySqlRow>, DbErr> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let row = triggers::identifier(&table.name);
        let order = match keys {
            [_] => String::new(),
            _ => {
                let text = super::key::literals(&table.key, &row).join(", ");
                let places = keys.iter().map(|key| literal(&key.join(","))).collect::<Vec<_>>();
                format!(" ORDER BY FIELD(CONCAT_WS(',', {text}), {})", places.join(", "))
            }
        };
        let sql =
            format!("SELECT {list} FROM {row} WHERE {}{order} LOCK IN SHARE MODE", is_one_of(&table.key, &row, keys));
        Ok(session::answer(self.conn, &sql, Values(values), true).await?.1)
    }

    async fn delete(&mut self, delete: &Delete, values: Vec<Value>) -> Result<Answer, DbErr> {
        let table = self.schema.planned(&delete.table)?;
        let (_, rows) = self.query(&delete.sql, values).await?;
        let mut changes = Vec::with_capacity(rows.len());
        for row in &rows {
            let before = self.schema.fits(table, maybe(row, 0))?;
            changes.push(Change::new(table, "delete", Some(before), None));
        }
        Ok((self.record(&changes, 0, &Given::default()).await?, Vec::new()))
    }

    async fn update(&mut self, update: &Update, values: Vec<Value>) -> Result<Answer, DbErr> {
        let schema = self.schema;
        let table = schema.planned(&update.lock.table)?;
        let rows = self.query(&update.lock.sql, picked(&update.lock, &values)).await?.1;
        let keys = table.key.len();
        let mut locked = Vec::with_capacity(rows.len());
        let mut sum = 0_u64;
        for row in &rows {
            let key = literals_of(row, 1, keys);
            sum += u64::from(crc32fast::hash(key.join(",").as_bytes()));
            let referred = (0..table.referred().len()).map(|place| maybe(row, 1 + 2 * keys + place));
            let image = schema.fits_if_synced(table, maybe(row, 0))?;
            locked.push((image, key, literals_of(row, 1 + keys, keys), referred.collect::<Referred>()));
        }
        let mut walk = Walk::new(schema);
        let referred = locked.iter().map(|(.., referred)| referred.clone()).collect();
        walk.hold(self, table, Fate::Updated, &update.assigned, referred).await?;
        let (result, _) = self.query(&update.sql, values).await?;
        if result.rows_affected() == 0 && locked.is_empty() {
            return Ok((result, Vec::new()));
        }
        self.progress.halfway = true;
        let moved: Vec<Literals> = locked.iter().map(|(_, _, moved, _)| moved.clone()).collect();
        let (now, written) = self.rows_and_sum(table, &moved).await?;
        if result.rows_affected() != locked.len() as u64 || written != Some(sum) {
            return Err(refused(format!(
                "the rows that UPDATE writes of {} are others than it showed a moment before. Name them by their keys, or update them in a transaction of its own",
                table.name
            )));
        }
        let referred = now.iter().map(|row| row.referred.clone()).collect();
        let now: HashMap<Literals, Option<String>> = now.into_iter().map(|row| (row.key, row.image)).collect();
        let (mut deleted, mut changed) = (Vec::new(), Vec::new());
        for (before, key, moved, _) in locked {
            if table.entity.is_none() {
                continue;
            }
            let after = now.get(&moved).cloned().ok_or_else(|| {
                refused(format!(
                    "UPDATE gives keys of {} that cannot be followed. Delete and insert such rows",
                    table.name
                ))
            })?;
            if before == after {
                continue;
            }
            if key == moved {
                changed.push(Change::new(table, "update", before, after));
            } else {
                deleted.push(Change::new(table, "delete", before, None));
                changed.push(Change::new(table, "insert", None, after));
            }
        }
        let (mut changes, followers) = walk.changes(self, table, referred).await?;
        changes.extend(deleted);
        changes.extend(changed);
        changes.extend(followers);
        self.record(&changes, 0, &Given::default()).await?;
        Ok((result, Vec::new()))
    }

    async fn held(&mut self, held: &Held, values: Vec<Value>) -> Result<Answer, DbErr> {
        let schema = self.schema;
        let mut walk = Walk::new(schema);
        let mut all: Vec<(&Table, HashMap<Literals, Found>)> = Vec::new();
        let mut conditions = Vec::new();
        for (lock, row) in &held.locks {
            let table = schema.planned(&lock.table)?;
            let rows = self.query(&lock.sql, picked(lock, &values)).await?.1;
            self.progress.halfway = true;
            let found = self.found(table, &rows)?;
            let found: HashMap<Literals, Found> = found.into_iter().map(|row| (row.key.clone(), row)).collect();
            let mut condition = is_one_of(&table.key, row, found.keys());
            if held.joined
                && let Some(column) = table.key.first()
            {
                condition = format!("({condition} OR {} IS NULL)", column.of(row));
            }
            conditions.push(condition);
            all.push((table, found));
        }
        if held.verb == Verb::Delete {
            for (table, found) in &all {
                let referred = found.values().map(|row| row.referred.clone()).collect();
                walk.hold(self, table, Fate::Deleted, &[], referred).await?;
            }
        }
        let sql = format!("{}{}{}", held.head, conditions.join(" AND "), held.tail);
        self.progress.halfway = true;
        let done = session::answer(self.conn, &sql, Values(values), held.returns).await;
        let (result, rows) = done.inspect_err(|_| self.progress.halfway = false)?;
        let mut changes = Vec::new();
        let mut root = Vec::new();
        // A table may be joined with itself.
        let mut known: HashSet<(&str, &Literals)> = HashSet::new();
        for (table, found) in &all {
            let keys: Vec<Literals> = found.keys().cloned().collect();
            let now = self.rows(table, &table.key, &keys).await?;
            let now: HashMap<Literals, Option<String>> = now.into_iter().map(|row| (row.key, row.image)).collect();
            if table.entity.is_none() {
                continue;
            }
            for (key, was) in found {
                if !known.insert((&table.name, key)) {
                    continue;
                }
                match now.get(key) {
                    None => root.push(Change::new(table, "delete", was.image.clone(), None)),
                    Some(image) if *image != was.image => {
                        root.push(Change::new(table, "update", was.image.clone(), image.clone()));
                    }
                    Some(_) => {}
                }
            }
        }
        for (table, found) in &all {
            walk.forget(&table.name, found.keys());
        }
        if let Some((table, _)) = all.first() {
            let (deleted, changed) = walk.changes(self, table, Vec::new()).await?;
            changes.extend(deleted);
            changes.extend(root);
            changes.extend(changed);
        }
        self.record(&changes, 0, &Given::default()).await?;
        Ok((result, if held.returns { rows } else { Vec::new() }))
    }

    /// Rows of which image, key and what others refer to were selected; without those that a join has left out.
    pub(super) fn found(&self, table: &Table, rows: &[MySqlRow]) -> Result<Vec<Found>, DbErr> {
        let keys = table.key.len();
        let present = rows.iter().filter(|row| maybe(row, 1).is_some());
        let found = present.map(|row| {
            let referred = (0..table.referred().len()).map(|place| maybe(row, 1 + keys + place)).collect();
            let image = self.schema.fits_if_synced(table, maybe(row, 0))?;
            Ok(Found { image, key: literals_of(row, 1, keys), referred })
        });
        found.collect()
    }

    /// Adds changes to the outbox, and answers as many rows and `more`, and the number that the server has given to the first of them, or else was
    /// told for the last. What the caller is told by `LAST_INSERT_ID()` stays as it is.
    async fn record(&mut self, changes: &[Change], more: usize, given: &Given) -> Result<MySqlQueryResult, DbErr> {
        let mut inserts = self.inserts(changes)?;
        let last = inserts.pop();
        let mut result = MySqlQueryResult::default();
        for insert in inserts {
            result.extend(self.send(&format!("{SAVE_NUMBER}; {insert}; {RESTORE_NUMBER}")).await?.into_iter().nth(1));
        }
        let mut statements: Vec<String> = last.into_iter().collect();
        statements.extend(std::iter::repeat_n("SELECT 1 INTO @tidewire_one".to_owned(), more));
        if let Some(answer) = given.answer() {
            // What is there already is not inserted: the row of the barrier of which this transaction has a share.
            statements.push(format!(
                "INSERT IGNORE INTO tidewire_barrier VALUES (@tidewire_barrier + 0 * LAST_INSERT_ID({answer}))"
            ));
        }
        let count = statements.len();
        if count > 0 {
            statements.insert(0, SAVE_NUMBER.into());
            statements.push(RESTORE_NUMBER.into());
        }
        if self.progress.commits {
            statements.push("COMMIT".into());
        }
        if !statements.is_empty() {
            let done = self.send(&statements.join("; ")).await?;
            result.extend(done.into_iter().skip(1).take(count));
            self.progress.committed = self.progress.commits;
        }
        if given.numbers.is_empty() {
            // The outbox's own number is nobody's business.
            result.extend([MySqlQueryResult::default()]);
        }
        Ok(result)
    }

    /// The statements that add changes to the outbox, each no longer than a message may be.
    fn inserts(&self, changes: &[Change]) -> Result<Vec<String>, DbErr> {
        let maybe = |text: Option<&str>| text.map_or_else(|| "NULL".to_owned(), expression);
        let context = format!(
            "X'{}', {}, {}, {}, UTC_TIMESTAMP(3)",
            self.progress.tx.simple(),
            expression(self.context.actor.as_str()),
            maybe(self.context.origin.as_ref().map(|origin| origin.as_str())),
            maybe(self.context.mutation_id.as_ref().map(|id| id.as_str())),
        );
        let head = format!("INSERT INTO tidewire_outbox ({}) VALUES ", triggers::COLUMNS);
        let most = self.schema.facts.max_packet.saturating_sub(head.len() + context.len() + 1024);
        let mut inserts: Vec<String> = Vec::new();
        for change in changes {
            let image = |image: &Option<String>| image.as_deref().map_or_else(|| "NULL".to_owned(), literal);
            let (entity, operation) = (literal(&change.entity), change.operation);
            let row =
                format!("({context}, {entity}, '{operation}', {}, {})", image(&change.before), image(&change.after));
            if row.len() > most {
                return Err(too_large(&change.entity));
            }
            match inserts.last_mut() {
                Some(insert) if insert.len() + row.len() <= most.min(MESSAGE) => {
                    insert.push_str(", ");
                    insert.push_str(&row);
                }
                _ => inserts.push(format!("{head}{row}")),
            }
        }
        Ok(inserts)
    }
}

fn too_large(table: &str) -> DbErr {
    refused(format!("a row of {table} is too large to be recorded (max_allowed_packet)"))
}

impl Schema {
    /// A table that a plan is about.
    fn planned(&self, name: &str) -> Result<&Table, DbErr> {
        self.facts.table(name).ok_or_else(|| refused(format!("{name} is not known")))
    }

    /// An image, which is NULL where it is too large for the server.
    fn fits(&self, table: &Table, image: Option<String>) -> Result<String, DbErr> {
        image.ok_or_else(|| too_large(&table.name))
    }

    fn fits_if_synced(&self, table: &Table, image: Option<String>) -> Result<Option<String>, DbErr> {
        table.entity.is_some().then(|| self.fits(table, image)).transpose()
    }
}

fn maybe(row: &MySqlRow, place: usize) -> Option<String> {
    use sqlx::Row;
    row.try_get_unchecked::<Option<String>, _>(place).ok().flatten()
}

fn literals_of(row: &MySqlRow, from: usize, count: usize) -> Literals {
    (from..from + count).map(|place| text(row, place)).collect()
}

fn picked(lock: &Lock, values: &[Value]) -> Vec<Value> {
    lock.values.iter().filter_map(|&place| values.get(place).cloned()).collect()
}
