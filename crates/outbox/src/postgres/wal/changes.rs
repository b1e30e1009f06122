//! From the messages of the log to the rows of the outbox.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    image::{Effect, Table},
    pgoutput::{self, Message, Old, Tuple},
};
use crate::{
    change::Operation,
    context::Context,
    error::{Error, ErrorKind, Result},
    registry::{Catalog, EntityId},
};

/// What our own messages in the log begin with.
pub(super) mod prefix {
    /// In whose name the transaction writes from here on.
    pub(in super::super) const CONTEXT: &str = "tidewire";
    /// Nothing but a place in the log.
    pub(in super::super) const MARK: &str = "tidewire.mark";
    /// A row that `TRUNCATE` is about to remove: its entity, a line's end, its image.
    pub(in super::super) const REMOVED: &str = "tidewire.removed";
    /// That all rows that `TRUNCATE` is about to remove from an entity's table have been told.
    pub(in super::super) const TRUNCATED: &str = "tidewire.truncated";
}

/// In whose name a transaction writes, as it stands in the log.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct Told {
    actor: Arc<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mutation: Option<Arc<str>>,
}

impl Told {
    pub(super) fn of(context: &Context) -> Self {
        Self {
            actor: context.actor.as_str().into(),
            origin: context.origin.as_ref().map(|origin| origin.as_str().into()),
            mutation: context.mutation_id.as_ref().map(|id| id.as_str().into()),
        }
    }

    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).expect("texts are always valid JSON")
    }
}

/// Rows for the outbox, column by column, in the order of commits.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) source: Vec<i64>,
    pub(super) entity: Vec<&'static str>,
    pub(super) operation: Vec<String>,
    pub(super) before: Vec<Option<String>>,
    pub(super) after: Vec<Option<String>>,
    pub(super) told: Vec<Arc<Told>>,
    pub(super) at: Vec<DateTime<Utc>>,
    /// The bytes of the images.
    pub(super) bytes: usize,
}

impl Rows {
    pub(super) fn len(&self) -> usize {
        self.source.len()
    }

    pub(super) fn actors(&self) -> Vec<&str> {
        self.told.iter().map(|told| told.actor.as_ref()).collect()
    }

    pub(super) fn origins(&self) -> Vec<Option<&str>> {
        self.told.iter().map(|told| told.origin.as_deref()).collect()
    }

    pub(super) fn mutations(&self) -> Vec<Option<&str>> {
        self.told.iter().map(|told| told.mutation.as_deref()).collect()
    }
}

/// What a message was besides rows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// A table of the log lacks columns that its entity has. Either they were added later, or they are there no more.
    Lacks { table: &'static str, columns: Vec<&'static str> },
    /// A table was emptied, and nothing tells of which rows.
    Emptied { table: &'static str },
}

/// Turns messages into rows. One lives as long as one stream: tables are told once in each.
#[derive(Debug)]
pub(super) struct Changes {
    catalog: Arc<Catalog>,
    /// The entities by schema and name of their tables.
    entities: HashMap<(String, String), EntityId>,
    tables: HashMap<u32, Table>,
    /// The log has the lower half of a transaction's id; this is an id from about the same time.
    near: u64,
    default: Arc<Told>,
    open: Option<Open>,
    pub(super) rows: Rows,
}

/// The transaction that is being read.
#[derive(Debug)]
struct Open {
    source: i64,
    at: DateTime<Utc>,
    told: Arc<Told>,
    /// Tables whose removed rows have been told.
    truncated: HashSet<EntityId>,
}

impl Changes {
    pub(super) fn new(catalog: Arc<Catalog>, entities: HashMap<(String, String), EntityId>, near: u64) -> Self {
        let default = Arc::new(Told::of(&Context::default()));
        Self { catalog, entities, tables: HashMap::new(), near, default, open: None, rows: Rows::default() }
    }

    pub(super) fn set_near(&mut self, id: u64) {
        self.near = id;
    }

    /// Whether a transaction has begun and not ended yet.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// A transaction that committed then begins. `micros` are counted from the year 2000.
    pub(super) fn begin(&mut self, xid: u32, micros: i64) -> i64 {
        let source = whole_id(self.near, xid).cast_signed();
        let at = DateTime::from_timestamp_micros(micros.saturating_add(946_684_800_000_000)).unwrap_or_default();
        let told = Arc::clone(&self.default);
        self.open = Some(Open { source, at, told, truncated: HashSet::new() });
        source
    }

    pub(super) fn commit(&mut self) {
        self.open = None;
    }

    /// A message that a program wrote into the log in its transaction.
    pub(super) fn told(&mut self, prefix: &str, content: &[u8]) -> Result<()> {
        let open = self.open.as_mut().ok_or_else(stray)?;
        match prefix {
            prefix::CONTEXT => match serde_json::from_slice(content) {
                Ok(told) => open.told = Arc::new(told),
                // Anybody may write there.
                Err(_) => {
                    tracing::warn!("a message of Tidewire's in the database's log cannot be read and is left out")
                }
            },
            prefix::REMOVED => {
                let text = std::str::from_utf8(content).ok();
                let (entity, image) = text.and_then(|text| text.split_once('\n')).ok_or_else(stray)?;
                let entity = self.catalog.find(entity).ok_or_else(|| unknown(entity))?;
                self.push(entity.name, Operation::Delete, Some(image.to_owned()), None)?;
            }
            prefix::TRUNCATED => {
                let name = std::str::from_utf8(content).map_err(|_| stray())?;
                let entity = self.catalog.find(name).ok_or_else(|| unknown(name))?;
                open.truncated.insert(entity.id);
            }
            _ => {}
        }
        Ok(())
    }

    /// A message of logical decoding's.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Option<Notice>> {
        match pgoutput::read(bytes)? {
            Message::Relation(relation) => {
                let key = (relation.schema.to_owned(), relation.name.to_owned());
                let entity = self.entities.get(&key).ok_or_else(|| unknown(relation.name))?;
                let table = Table::new(self.catalog.entity(*entity), &relation);
                let lacks = (!table.lacks.is_empty())
                    .then(|| Notice::Lacks { table: table.name, columns: table.lacks.clone() });
                self.tables.insert(relation.id, table);
                return Ok(lacks);
            }
            Message::Insert { relation, new } => {
                let table = self.table(relation)?;
                let (name, image) = (table.name, table.image(&new, None)?);
                self.push(name, Operation::Insert, None, Some(image))?;
            }
            Message::Update { relation, old, new } => {
                let table = self.table(relation)?;
                let Some(Old::Full(old)) = old else { return Err(table.identity()) };
                self.update(relation, &old, &new)?;
            }
            Message::Delete { relation, old } => {
                let table = self.table(relation)?;
                let Old::Full(old) = old else { return Err(table.identity()) };
                let (name, image) = (table.name, table.image(&old, None)?);
                self.push(name, Operation::Delete, Some(image), None)?;
            }
            Message::Truncate { relations } => {
                for relation in relations {
                    let table = self.table(relation)?;
                    let (entity, name) = (table.entity, table.name);
                    if !self.open.as_mut().ok_or_else(stray)?.truncated.remove(&entity) {
                        return Ok(Some(Notice::Emptied { table: name }));
                    }
                }
            }
            Message::Other => {}
        }
        Ok(None)
    }

    fn update(&mut self, relation: u32, old: &Tuple<'_>, new: &Tuple<'_>) -> Result<()> {
        let table = self.table(relation)?;
        let name = table.name;
        let effect = table.effect(old, new)?;
        if effect == Effect::Nothing {
            return Ok(());
        }
        let (before, after) = (table.image(old, None)?, table.image(new, Some(old))?);
        if effect == Effect::Moved {
            self.push(name, Operation::Delete, Some(before), None)?;
            self.push(name, Operation::Insert, None, Some(after))
        } else {
            self.push(name, Operation::Update, Some(before), Some(after))
        }
    }

    fn table(&self, relation: u32) -> Result<&Table> {
        self.tables.get(&relation).ok_or_else(stray)
    }

    fn push(
        &mut self,
        entity: &'static str,
        operation: Operation,
        before: Option<String>,
        after: Option<String>,
    ) -> Result<()> {
        let open = self.open.as_ref().ok_or_else(stray)?;
        let rows = &mut self.rows;
        rows.bytes += before.as_ref().map_or(0, String::len) + after.as_ref().map_or(0, String::len);
        rows.source.push(open.source);
        rows.entity.push(entity);
        rows.operation.push(operation.to_string());
        rows.before.push(before);
        rows.after.push(after);
        rows.told.push(Arc::clone(&open.told));
        rows.at.push(open.at);
        Ok(())
    }
}

/// The id whose lower half this is, of those near another.
fn whole_id(near: u64, low: u32) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is wanted")]
    let distance = low.wrapping_sub(near as u32).cast_signed();
    near.saturating_add_signed(i64::from(distance))
}

fn stray() -> Error {
    Error::new(ErrorKind::Corrupt, "the database's log holds a message that does not follow from those before it")
}

fn unknown(table: &str) -> Error {
    Error::new(
        ErrorKind::Setup,
        format!(
            "the database's log holds changes of {table}, which is no entity of this program. A program that knows all entities of the \
             publication must read it; `tidewire capture install` makes the publication anew"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_from_its_lower_half() {
        for (near, low, whole) in [
            (5, 3, 3),
            (5, 1_000, 1_000),
            ((7 << 32) + 5, 3, (7 << 32) + 3),
            ((7 << 32) + 5, u32::MAX, (7 << 32) - 1),
            ((8 << 32) - 1, 4, (8 << 32) + 4),
        ] {
            assert_eq!(whole_id(near, low), whole, "{near} {low}");
        }
    }
}
