//! Writes that other rows follow by foreign keys: `ON DELETE` and `ON UPDATE` with `CASCADE` or `SET NULL`.
//!
//! ```text
//! lock the rows that the statement writes           no row can begin to refer to them from here on; who was about to is waited for
//! lock the rows that refer to them, and so on       as they are now, not as the transaction's snapshot has them; images before
//! run the statement
//! look at the followers again                       images after
//! ```
//!
//! InnoDB carries such things out without asking triggers, and in the same statement.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use sea_orm::DbErr;

use super::{
    super::{layout::Action, triggers::identifier},
    Schema,
    facts::{Column, Follower, Table, text as text_of},
    key::{Literals, is_one_of},
    run::{Change, Run},
};

/// How many rows are asked for by their values at once.
const ASKED_AT_ONCE: usize = 500;

/// What others refer to in a row. NULL is referred to by nobody.
pub(super) type Referred = Vec<Option<String>>;

/// What happens to the rows of a table.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fate {
    Deleted,
    Updated,
}

/// Rows that are written, for their followers to be found.
struct Event {
    table: String,
    fate: Fate,
    /// The columns that change, of updated rows.
    columns: Vec<String>,
    referred: Vec<Referred>,
}

/// A row as it was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) image: Option<String>,
    pub(super) key: Literals,
    pub(super) referred: Referred,
}

/// Names of columns are the same in any case.
pub(super) fn same(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

fn has(columns: &[String], column: &Column) -> bool {
    columns.iter().any(|name| same(name, &column.name))
}

impl Follower {
    /// What happens to the rows that follow.
    fn fate(&self, event: Fate, columns: &[String]) -> Option<Fate> {
        match event {
            Fate::Deleted => match self.on_delete {
                Action::Refuse => None,
                Action::Cascade => Some(Fate::Deleted),
                Action::SetNull => Some(Fate::Updated),
            },
            Fate::Updated => {
                let touched = self.parent_columns.iter().any(|column| has(columns, column));
                (touched && self.on_update != Action::Refuse).then_some(Fate::Updated)
            }
        }
    }

    /// Whether a row's own key changes when it follows.
    fn moves(&self, child: &Table) -> bool {
        self.child_columns.iter().any(|column| child.key.iter().any(|key| same(&key.name, &column.name)))
    }

    fn child_names(&self) -> Vec<String> {
        self.child_columns.iter().map(|column| column.name.clone()).collect()
    }
}

impl Schema {
    /// Followers whose keys move with what they refer to are found by its new values, which only a recorded table tells.
    ///
    /// # Errors
    /// Why an update of these columns cannot be followed.
    pub(super) fn check_moves(&self, table: &Table, assigned: &[String]) -> Result<(), String> {
        let mut queue = VecDeque::from([(table, assigned.to_vec())]);
        let mut seen = HashSet::from([table.name.as_str()]);
        while let Some((parent, columns)) = queue.pop_front() {
            for follower in &parent.followers {
                let Some(child) = self.facts.table(&follower.child) else { continue };
                if follower.fate(Fate::Updated, &columns).is_none() {
                    continue;
                }
                if child.name == table.name {
                    return Err("changes what rows of the same table refer to".into());
                }
                if follower.moves(child) && follower.on_update == Action::SetNull {
                    return Err(format!("would take away keys of {}", child.name));
                }
                if seen.insert(&child.name) {
                    queue.push_back((child, follower.child_names()));
                }
            }
        }
        Ok(())
    }
}

/// The rows that follow a statement's, locked, with their images before.
pub(super) struct Walk<'a> {
    schema: &'a Schema,
    held: BTreeMap<String, BTreeMap<Literals, Option<String>>>,
    /// Keys of a child that follow what they refer to in a parent.
    moves: Vec<(String, Follower)>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(schema: &'a Schema) -> Self {
        Self { schema, held: BTreeMap::new(), moves: Vec::new() }
    }

    /// The statement records these rows of its own table itself.
    pub(super) fn forget<'k>(&mut self, table: &str, keys: impl Iterator<Item = &'k Literals>) {
        if let Some(held) = self.held.get_mut(table) {
            keys.for_each(|key| drop(held.remove(key)));
        }
    }

    /// Locks all rows that follow.
    pub(super) async fn hold(
        &mut self,
        run: &mut Run<'_>,
        table: &Table,
        fate: Fate,
        columns: &[String],
        referred: Vec<Referred>,
    ) -> Result<(), DbErr> {
        let mut seen: HashSet<(String, Fate, Literals)> = HashSet::new();
        let mut queue =
            VecDeque::from([Event { table: table.name.clone(), fate, columns: columns.to_vec(), referred }]);
        while let Some(event) = queue.pop_front() {
            let Some(parent) = self.schema.facts.table(&event.table) else { continue };
            for follower in &parent.followers {
                let Some(fate) = follower.fate(event.fate, &event.columns) else { continue };
                let Some(child) = self.schema.facts.table(&follower.child) else { continue };
                if event.fate == Fate::Updated && follower.moves(child) {
                    self.moves.push((parent.name.clone(), follower.clone()));
                }
                let values = project(parent, &event.referred, &follower.parent_columns);
                let mut further = Vec::new();
                for row in run.rows(child, &follower.child_columns, &values).await? {
                    if child.entity.is_some() {
                        self.held.entry(child.name.clone()).or_default().entry(row.key.clone()).or_insert(row.image);
                    }
                    if seen.insert((child.name.clone(), fate, row.key)) {
                        further.push(row.referred);
                    }
                }
                if !further.is_empty() && !child.followers.is_empty() {
                    let columns = follower.child_names();
                    queue.push_back(Event { table: child.name.clone(), fate, columns, referred: further });
                }
            }
        }
        Ok(())
    }

    /// What became of the rows that are held: those that are gone, and the rest. `referred` is what others refer to in the statement's own rows now.
    pub(super) async fn changes(
        self,
        run: &mut Run<'_>,
        table: &Table,
        referred: Vec<Referred>,
    ) -> Result<(Vec<Change>, Vec<Change>), DbErr> {
        let facts = &self.schema.facts;
        let (mut deleted, mut changed) = (Vec::new(), Vec::new());
        let mut now_referred: HashMap<String, Vec<Referred>> = HashMap::from([(table.name.clone(), referred)]);
        for (name, before) in &self.held {
            let Some(child) = facts.table(name) else { continue };
            let keys: Vec<Literals> = before.keys().cloned().collect();
            let now = run.rows(child, &child.key, &keys).await?;
            let mut now: HashMap<Literals, Found> = now.into_iter().map(|row| (row.key.clone(), row)).collect();
            for (key, was) in before {
                match now.remove(key) {
                    None => deleted.push(Change::new(child, "delete", was.clone(), None)),
                    Some(row) => {
                        now_referred.entry(name.clone()).or_default().push(row.referred);
                        if row.image != *was {
                            changed.push(Change::new(child, "update", was.clone(), row.image));
                        }
                    }
                }
            }
        }
        let mut arrived: HashSet<(String, Literals)> = HashSet::new();
        for (parent, follower) in &self.moves {
            let (Some(parent), Some(child)) = (facts.table(parent), facts.table(&follower.child)) else { continue };
            let Some(referred) = now_referred.get(&parent.name) else { continue };
            let values = project(parent, referred, &follower.parent_columns);
            for row in run.rows(child, &follower.child_columns, &values).await? {
                let known = self.held.get(&child.name).is_some_and(|rows| rows.contains_key(&row.key));
                if !known && child.entity.is_some() && arrived.insert((child.name.clone(), row.key)) {
                    changed.push(Change::new(child, "insert", None, row.image));
                    now_referred.entry(child.name.clone()).or_default().push(row.referred);
                }
            }
        }
        Ok((deleted, changed))
    }
}

impl Run<'_> {
    /// The rows of a table whose columns have one of these values, as they are now, locked.
    pub(super) async fn rows(
        &mut self,
        table: &Table,
        columns: &[Column],
        values: &[Literals],
    ) -> Result<Vec<Found>, DbErr> {
        let mut found = Vec::new();
        for values in values.chunks(ASKED_AT_ONCE) {
            let rows = self.raw(&self.schema.asked(table, columns, values)).await?;
            found.extend(self.found(table, &rows)?);
        }
        Ok(found)
    }

    /// The rows of a table with these keys, and what the last `UPDATE` has summed up.
    pub(super) async fn rows_and_sum(
        &mut self,
        table: &Table,
        keys: &[Literals],
    ) -> Result<(Vec<Found>, Option<u64>), DbErr> {
        let (first, rest) = keys.split_at(keys.len().min(ASKED_AT_ONCE));
        let text = format!("SELECT CAST(@tidewire_sum AS CHAR); {}", self.schema.asked(table, &table.key, first));
        let mut rows = self.raw(&text).await?.into_iter();
        let sum = rows.next().and_then(|row| text_of(&row, 0).parse().ok());
        let mut found = self.found(table, rows.as_slice())?;
        found.extend(self.rows(table, &table.key, rest).await?);
        Ok((found, sum))
    }
}

impl Schema {
    fn asked(&self, table: &Table, columns: &[Column], values: &[Literals]) -> String {
        let (name, condition) = (identifier(&table.name), is_one_of(columns, "t", values));
        format!("SELECT {} FROM {name} AS t WHERE {condition} FOR UPDATE", self.locked(table, "t"))
    }
}

/// Some of what others refer to in rows, each once, without rows where one of them is null.
fn project(parent: &Table, rows: &[Referred], wanted: &[Column]) -> Vec<Literals> {
    let columns = parent.referred();
    let places: Vec<usize> =
        wanted.iter().filter_map(|name| columns.iter().position(|column| column == name)).collect();
    let values: HashSet<Literals> = rows
        .iter()
        .filter_map(|row| places.iter().map(|&place| row.get(place)?.clone()).collect::<Option<Literals>>())
        .collect();
    values.into_iter().collect()
}
