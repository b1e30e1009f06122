//! From the messages of the log to the rows of the outbox.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    image::{Effect, Table},
    pgoutput::{self, Message, Old},
};
use crate::{
    change::Operation,
    context::Context,
    error::{Error, ErrorKind, Result},
    registry::{Catalog, EntityId},
};

/// What our own messages in the log begin with. Anybody may write such messages. Those that tell of rows begin with the outbox's token, and others are left
/// out: who wrote them is nobody that may empty a table.
pub(super) mod prefix {
    /// In whose name the transaction writes from here on.
    pub(in super::super) const CONTEXT: &str = "tidewire";
    /// Nothing but a place in the log.
    pub(in super::super) const MARK: &str = "tidewire.mark";
    /// A row that `TRUNCATE` is about to remove: the token, its entity and its image, with lines' ends in between.
    pub(in super::super) const REMOVED: &str = "tidewire.removed";
    /// That all rows that `TRUNCATE` is about to remove from a table have been told: the token, a line's end, the table's id.
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
    /// A row was changed, and nothing tells how it was: its table's replica identity was not FULL then.
    Partial { table: &'static str },
    /// A table that has come since the stream began, or is no entity's any more: [`Changes::learn`] which, and read the message again.
    New { id: u32 },
    /// A table was an entity's when this was written, and is not now: a partition that was dropped or detached. Its changes are left out.
    Gone { table: String },
}

/// Turns messages into rows. One lives as long as one stream: tables are told once in each.
#[derive(Debug)]
pub(super) struct Changes {
    catalog: Arc<Catalog>,
    /// The entities by the ids of their tables, which keep them when they are called otherwise. None where a table is no entity's any more.
    entities: HashMap<u32, Option<EntityId>>,
    tables: HashMap<u32, Option<Table>>,
    token: String,
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
    truncated: HashSet<u32>,
}

impl Changes {
    pub(super) fn new(catalog: Arc<Catalog>, entities: HashMap<u32, EntityId>, token: String, near: u64) -> Self {
        let entities = entities.into_iter().map(|(id, entity)| (id, Some(entity))).collect();
        let default = Arc::new(Told::of(&Context::default()));
        Self { catalog, entities, tables: HashMap::new(), token, near, default, open: None, rows: Rows::default() }
    }

    /// Takes note of the tables as they are now; one that is asked about and not among them is gone.
    pub(super) fn learn(&mut self, entities: HashMap<u32, EntityId>, asked: u32) {
        self.entities.entry(asked).or_insert(None);
        self.entities.extend(entities.into_iter().map(|(id, entity)| (id, Some(entity))));
    }

    pub(super) fn set_near(&mut self, id: u64) {
        self.near = id;
    }

    /// Whether a transaction has begun and not ended yet.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The transaction that is being read.
    pub(super) fn source(&self) -> Option<i64> {
        self.open.as_ref().map(|open| open.source)
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
        let text = std::str::from_utf8(content).ok();
        let ours = text.and_then(|text| text.strip_prefix(&*self.token)?.strip_prefix('\n'));
        match (prefix, ours) {
            (prefix::CONTEXT, _) => match serde_json::from_slice(content) {
                Ok(told) => open.told = Arc::new(told),
                Err(_) => warn_of_message(),
            },
            (prefix::REMOVED, Some(row)) => {
                let (entity, image) = row.split_once('\n').ok_or_else(stray)?;
                let entity = self.catalog.find(entity).ok_or_else(|| unknown(entity))?;
                self.push(entity.name, Operation::Delete, Some(image.to_owned()), None)?;
            }
            (prefix::TRUNCATED, Some(table)) => {
                open.truncated.insert(table.parse().map_err(|_| stray())?);
            }
            (prefix::REMOVED | prefix::TRUNCATED, None) => warn_of_message(),
            _ => {}
        }
        Ok(())
    }

    /// A message of logical decoding's.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Option<Notice>> {
        match pgoutput::read(bytes)? {
            Message::Relation(relation) => {
                let Some(entity) = self.entities.get(&relation.id) else {
                    return Ok(Some(Notice::New { id: relation.id }));
                };
                let table = entity.map(|entity| Table::new(self.catalog.entity(entity), &relation));
                let notice = match &table {
                    None => Some(Notice::Gone { table: relation.name.to_owned() }),
                    Some(Table { name, lacks, .. }) if !lacks.is_empty() => {
                        Some(Notice::Lacks { table: name, columns: lacks.clone() })
                    }
                    Some(_) => None,
                };
                self.tables.insert(relation.id, table);
                return Ok(notice);
            }
            Message::Insert { relation, new } => {
                let Some(table) = self.table(relation)? else { return Ok(None) };
                let (name, image) = (table.name, table.image(&new, None)?);
                self.push(name, Operation::Insert, None, Some(image))?;
            }
            Message::Update { relation, old, new } => {
                let Some(table) = self.table(relation)? else { return Ok(None) };
                let Some(Old::Full(old)) = old else { return Ok(Some(Notice::Partial { table: table.name })) };
                let (name, effect) = (table.name, table.effect(&old, &new)?);
                if effect != Effect::Nothing {
                    let (before, after) = (table.image(&old, None)?, table.image(&new, Some(&old))?);
                    self.push_update(name, &effect, before, after)?;
                }
            }
            Message::Delete { relation, old } => {
                let Some(table) = self.table(relation)? else { return Ok(None) };
                let Old::Full(old) = old else { return Ok(Some(Notice::Partial { table: table.name })) };
                let (name, image) = (table.name, table.image(&old, None)?);
                self.push(name, Operation::Delete, Some(image), None)?;
            }
            Message::Truncate { relations } => {
                for relation in relations {
                    let Some(Table { name, .. }) = self.table(relation)? else { continue };
                    let name = *name;
                    if !self.open.as_mut().ok_or_else(stray)?.truncated.remove(&relation) {
                        return Ok(Some(Notice::Emptied { table: name }));
                    }
                }
            }
            Message::Other => {}
        }
        Ok(None)
    }

    fn push_update(&mut self, name: &'static str, effect: &Effect, before: String, after: String) -> Result<()> {
        if *effect == Effect::Moved {
            self.push(name, Operation::Delete, Some(before), None)?;
            self.push(name, Operation::Insert, None, Some(after))
        } else {
            self.push(name, Operation::Update, Some(before), Some(after))
        }
    }

    /// None where the table is gone.
    fn table(&self, relation: u32) -> Result<Option<&Table>> {
        self.tables.get(&relation).map(Option::as_ref).ok_or_else(stray)
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

fn warn_of_message() {
    tracing::warn!("a message in the database's log that calls itself Tidewire's is none, and is left out");
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
