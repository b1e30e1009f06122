//! Writes that other rows follow by foreign keys: `ON DELETE` and `ON UPDATE` with `CASCADE`, `SET NULL` or `SET DEFAULT`.
//!
//! ```text
//! lock the rows that the statement writes           no row can begin to refer to them from here on; who was about to is waited for
//! lock the rows that refer to them, and so on       each in a statement of its own, which sees what was waited for; images before
//! run the statement, on those rows only             it records its own rows
//! look at the followers again                       images after
//! record what differs
//! ```
//!
//! All rows are locked from before their first image until the transaction ends, so their changes are numbered in their true order.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use sea_orm::{DbErr, Values, sea_query::Value};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::{
    super::session::{self, Answer, How, exec_error},
    Schema,
    facts::{Action, Follower, Oid, Table},
    rewrite::{given, image, list, literal, quoted},
    with_context,
};
use crate::{
    context::Context,
    hooks::{Verb, Write},
};

/// A row's key, or what others refer to in it: a JSON array of texts, as the database wrote it.
type Texts = String;

/// What is known before the first row is looked at.
pub(super) struct Cascade {
    table: Oid,
    verb: Verb,
    /// The columns that an update may change.
    assigned: Vec<String>,
    lock: String,
    statement: String,
}

/// What happens to the rows of a table.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Fate {
    Deleted,
    Updated,
}

/// Rows that are written, for their followers to be found.
struct Event {
    table: Oid,
    fate: Fate,
    /// The columns that change, of updated rows.
    columns: Vec<String>,
    referred: Vec<Texts>,
}

/// Rows that were found.
struct Found {
    key: Texts,
    referred: Texts,
    image: Option<String>,
}

impl Follower {
    /// What happens to the rows that follow.
    fn fate(&self, event: Fate, columns: &[String]) -> Option<Fate> {
        match event {
            Fate::Deleted => match self.on_delete {
                Action::None => None,
                Action::Cascade => Some(Fate::Deleted),
                Action::Set => Some(Fate::Updated),
            },
            Fate::Updated => {
                let touched = self.parent_columns.iter().any(|column| columns.contains(column));
                (touched && self.on_update != Action::None).then_some(Fate::Updated)
            }
        }
    }
}

impl Cascade {
    pub(super) fn plan(
        schema: &Schema,
        table: &Table,
        write: &Write,
        lock: String,
        statement: String,
    ) -> Result<Self, String> {
        let mut assigned: Vec<String> = write.assigned().map(str::to_owned).collect();
        assigned.extend(table.referred().into_iter().filter(|column| table.rewrites_any(std::slice::from_ref(column))));
        let cascade = Self { table: table.oid, verb: write.verb, assigned, lock, statement };
        if write.verb == Verb::Update {
            cascade.check_moves(schema, table)?;
        }
        Ok(cascade)
    }

    /// Followers whose keys move with what they refer to are found by its new values, which only a recorded table tells.
    fn check_moves(&self, schema: &Schema, table: &Table) -> Result<(), String> {
        let is_recorded = |parent: &Table, column: &String| {
            parent.entity.is_some_and(|id| schema.catalog.entity(id).column_index(column).is_some())
        };
        let mut queue = VecDeque::from([(table, self.assigned.as_slice())]);
        let mut seen = HashSet::new();
        while let Some((parent, columns)) = queue.pop_front() {
            for follower in &parent.followers {
                let Some(child) = schema.facts.tables.get(&follower.child) else { continue };
                if follower.fate(Fate::Updated, columns).is_none() {
                    continue;
                }
                if child.oid == table.oid {
                    return Err("changes what rows of the same table refer to, which cannot be followed".into());
                }
                if follower.moves(child) && !follower.parent_columns.iter().all(|column| is_recorded(parent, column)) {
                    return Err(format!(
                        "changes keys of {} with columns of {} that no entity has, which cannot be followed",
                        child.name, parent.name
                    ));
                }
                if seen.insert((child.oid, &follower.child_columns)) {
                    queue.push_back((child, &follower.child_columns));
                }
            }
        }
        Ok(())
    }

    fn fate(&self) -> Fate {
        if self.verb == Verb::Delete { Fate::Deleted } else { Fate::Updated }
    }

    pub(super) async fn run(
        &self,
        conn: &mut PgConnection,
        schema: &Schema,
        values: Vec<Value>,
        context: &Context,
        how: How,
    ) -> Result<Answer, DbErr> {
        let facts = &schema.facts;
        let table = &facts.tables[&self.table];
        let locked = session::run(conn, &self.lock, Values(values.clone()), How { rows: true, ..how }).await?;
        let mut own = Vec::with_capacity(locked.rows.len());
        let mut referred = Vec::with_capacity(locked.rows.len());
        for row in locked.rows {
            own.push(row.get::<Texts, _>(0));
            referred.push(row.get::<Texts, _>(1));
        }
        let mut walk = Walk { conn, schema, held: BTreeMap::new(), moves: Vec::new() };
        walk.hold(table, self.fate(), &self.assigned, referred).await?;
        let mark = walk.mark().await?;
        let mut values = with_context(values, context);
        values.push(Value::String(Some(array(&own))));
        let answer = session::run(walk.conn, &self.statement, Values(values), how).await?;
        // The statement records itself which of its rows are gone. One that a trigger has kept may have followed another.
        let recorded = if self.fate() == Fate::Deleted { own.into_iter().collect() } else { HashSet::new() };
        let changes = walk.changes(table, mark, &recorded).await?;
        walk.record(&changes, context).await?;
        Ok(answer)
    }
}

impl Follower {
    /// Whether a row's own key changes when it follows.
    fn moves(&self, child: &Table) -> bool {
        self.child_columns.iter().any(|column| child.key.contains(column))
    }
}

struct Walk<'a> {
    conn: &'a mut PgConnection,
    schema: &'a Schema,
    /// The synced rows that may be written, with their images before.
    held: BTreeMap<Oid, BTreeMap<Texts, Option<String>>>,
    /// Keys of a child that follow what they refer to in a parent.
    moves: Vec<(Oid, Follower)>,
}

/// A change to record: entity, operation, images.
type Change = (&'static str, &'static str, Option<String>, Option<String>);

impl Walk<'_> {
    /// Locks all rows that follow.
    async fn hold(&mut self, table: &Table, fate: Fate, columns: &[String], referred: Vec<Texts>) -> Result<(), DbErr> {
        let schema = self.schema;
        let mut seen: HashSet<(Oid, Fate, &[String], Texts)> = HashSet::new();
        let mut queue = VecDeque::from([Event { table: table.oid, fate, columns: columns.to_vec(), referred }]);
        while let Some(event) = queue.pop_front() {
            let parent = &schema.facts.tables[&event.table];
            for follower in &parent.followers {
                let Some(fate) = follower.fate(event.fate, &event.columns) else { continue };
                let Some(child) = schema.facts.tables.get(&follower.child) else { continue };
                if event.fate == Fate::Updated && follower.moves(child) {
                    self.moves.push((parent.oid, follower.clone()));
                }
                let values = project(&event.referred, &parent.referred(), &follower.parent_columns);
                // What changes of a row decides whom it takes along; one that goes takes all.
                let (lock, changed) = match fate {
                    Fate::Deleted => ("UPDATE", &[][..]),
                    Fate::Updated => (child.lock(follower.child_columns.iter()), follower.child_columns.as_slice()),
                };
                let types = parent.types(&follower.parent_columns);
                let found = self.rows(child, &follower.child_columns, types, &values, Some(lock)).await?;
                let mut further = Vec::new();
                for row in found {
                    if child.entity.is_some() {
                        self.held.entry(child.oid).or_default().entry(row.key.clone()).or_insert(row.image);
                    }
                    if seen.insert((child.oid, fate, changed, row.key)) {
                        further.push(row.referred);
                    }
                }
                if !further.is_empty() && !child.followers.is_empty() {
                    queue.push_back(Event {
                        table: child.oid,
                        fate,
                        columns: follower.child_columns.clone(),
                        referred: further,
                    });
                }
            }
        }
        Ok(())
    }

    /// The rows of a table whose columns have one of the given values of these types, a JSON array of arrays.
    async fn rows<'t>(
        &mut self,
        table: &Table,
        columns: &[String],
        types: impl Iterator<Item = &'t str>,
        values: &str,
        lock: Option<&str>,
    ) -> Result<Vec<Found>, DbErr> {
        if values == "[]" {
            return Ok(Vec::new());
        }
        let texts = |columns: &[String]| {
            format!("json_build_array({})::text", list(columns, |_, name| format!("t.{name}::text")))
        };
        let image = match table.entity {
            Some(id) => image(table, self.schema.catalog.entity(id), "t"),
            None => "NULL::text".into(),
        };
        // A table without a key has rows of no name; then they are told apart by their place.
        let key = if table.key.is_empty() { "t.ctid::text".into() } else { texts(&table.key) };
        let lock = lock.map(|lock| format!(" FOR {lock} OF t")).unwrap_or_default();
        let sql = format!(
            "SELECT {key}, {}, {image} FROM {}.{} AS t WHERE ({}) IN ({}){lock}",
            texts(&table.referred()),
            quoted(&table.schema),
            quoted(&table.name),
            list(columns, |_, name| format!("t.{name}")),
            given(types, 1),
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .persistent(false)
            .bind(values)
            .fetch_all(&mut *self.conn)
            .await
            .map_err(exec_error)?;
        Ok(rows.iter().map(|row| Found { key: row.get(0), referred: row.get(1), image: row.get(2) }).collect())
    }

    /// The number of the last change so far.
    async fn mark(&mut self) -> Result<i64, DbErr> {
        if self.moves.is_empty() {
            return Ok(0);
        }
        let sql = "SELECT coalesce(max(seq), 0) FROM tidewire_outbox WHERE xid = pg_current_xact_id()::text::bigint";
        sqlx::query_scalar(sql).persistent(false).fetch_one(&mut *self.conn).await.map_err(exec_error)
    }

    /// What became of the rows that are held.
    async fn changes(&mut self, table: &Table, mark: i64, recorded: &HashSet<Texts>) -> Result<Vec<Change>, DbErr> {
        let schema = self.schema;
        let held = std::mem::take(&mut self.held);
        let (mut deleted, mut changed) = (Vec::new(), Vec::new());
        // What followers refer to now, by the table that they refer to.
        let mut referred: HashMap<Oid, Vec<Texts>> = HashMap::new();
        if self.moves.iter().any(|(parent, _)| *parent == table.oid) {
            referred.insert(table.oid, self.written(table, mark).await?);
        }
        for (oid, before) in &held {
            let child = &schema.facts.tables[oid];
            let name = schema.name(child);
            let keys: Vec<Texts> = before.keys().cloned().collect();
            let now = self.rows(child, &child.key, child.types(&child.key), &array(&keys), None).await?;
            let mut now: HashMap<Texts, Found> = now.into_iter().map(|row| (row.key.clone(), row)).collect();
            for (key, was) in before {
                match now.remove(key) {
                    None if *oid == table.oid && recorded.contains(key) => {}
                    None => deleted.push((name, "delete", was.clone(), None)),
                    Some(row) => {
                        referred.entry(*oid).or_default().push(row.referred);
                        if row.image != *was {
                            changed.push((name, "update", was.clone(), row.image));
                        }
                    }
                }
            }
        }
        let mut arrived: HashSet<(Oid, Texts)> = HashSet::new();
        for (parent, follower) in std::mem::take(&mut self.moves) {
            let (parent, child) = (&schema.facts.tables[&parent], &schema.facts.tables[&follower.child]);
            let values =
                referred.get(&parent.oid).map(|rows| project(rows, &parent.referred(), &follower.parent_columns));
            let (values, types) = (values.unwrap_or_else(|| "[]".into()), parent.types(&follower.parent_columns));
            let found = self.rows(child, &follower.child_columns, types, &values, None).await?;
            for row in found {
                let known = held.get(&child.oid).is_some_and(|rows| rows.contains_key(&row.key));
                if !known && child.entity.is_some() && arrived.insert((child.oid, row.key)) {
                    changed.push((schema.name(child), "insert", None, row.image));
                    referred.entry(child.oid).or_default().push(row.referred);
                }
            }
        }
        deleted.append(&mut changed);
        Ok(deleted)
    }

    /// What others refer to in the rows that the statement has written.
    async fn written(&mut self, table: &Table, mark: i64) -> Result<Vec<Texts>, DbErr> {
        let columns = table.referred();
        let names = columns.iter().map(|name| format!("after::json ->> {}", literal(name)));
        let sql = format!(
            "SELECT json_build_array({})::text FROM tidewire_outbox
             WHERE xid = pg_current_xact_id()::text::bigint AND seq > $1 AND entity = $2 AND after IS NOT NULL",
            names.collect::<Vec<_>>().join(", "),
        );
        let rows = sqlx::query_scalar(AssertSqlSafe(sql)).persistent(false).bind(mark).bind(self.schema.name(table));
        rows.fetch_all(&mut *self.conn).await.map_err(exec_error)
    }

    async fn record(&mut self, changes: &[Change], context: &Context) -> Result<(), DbErr> {
        if changes.is_empty() {
            return Ok(());
        }
        let sql = "INSERT INTO tidewire_outbox (entity, operation, before, after, actor, origin, mutation_id)
            SELECT e ->> 0, e ->> 1, e ->> 2, e ->> 3, $2, $3, $4 FROM json_array_elements($1::text::json) WITH ORDINALITY AS l(e, n) ORDER BY n";
        sqlx::query(sql)
            .persistent(false)
            .bind(serde_json::to_string(changes).expect("texts are JSON"))
            .bind(context.actor.as_str())
            .bind(context.origin.as_ref().map(|origin| origin.as_str()))
            .bind(context.mutation_id.as_ref().map(|id| id.as_str()))
            .execute(&mut *self.conn)
            .await
            .map(drop)
            .map_err(exec_error)
    }
}

fn array(texts: &[Texts]) -> String {
    format!("[{}]", texts.join(","))
}

/// Some of the columns of rows, as a JSON array of arrays, without rows where one of them is null: nothing refers to such.
fn project(rows: &[Texts], columns: &[String], wanted: &[String]) -> String {
    let places: Vec<usize> =
        wanted.iter().filter_map(|name| columns.iter().position(|column| column == name)).collect();
    let rows = rows.iter().filter_map(|row| {
        let cells: Vec<Option<String>> = serde_json::from_str(row).ok()?;
        places.iter().map(|&place| cells.get(place)?.clone()).collect::<Option<Vec<String>>>()
    });
    serde_json::to_string(&rows.collect::<Vec<_>>()).expect("texts are JSON")
}
