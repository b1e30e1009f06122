use std::{fmt, str::FromStr, sync::Arc};

use chrono::{DateTime, Utc};

use crate::{
    cursor::Cursor,
    error::{Error, ErrorKind},
    image::Image,
    registry::{EntityId, EntityMeta},
};

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// The row came to be.
    Insert,
    /// Some of its columns changed.
    Update,
    /// The row ended.
    Delete,
}

impl Operation {
    /// The word that the outbox stores.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Operation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "insert" => Ok(Self::Insert),
            "update" => Ok(Self::Update),
            "delete" => Ok(Self::Delete),
            _ => Err(Error::new(
                ErrorKind::Corrupt,
                "the outbox names an operation that is none of insert, update and delete",
            )),
        }
    }
}

/// One row's transition.
///
/// A statement that changes a row's primary key is two changes: the old key's delete and the new key's insert, so that a key always
/// means one row. A statement that leaves a row as it was is no change.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its number in the outbox. Numbers grow in a row's true order; they may have holes.
    pub seq: u64,
    /// Which entity.
    pub entity: EntityId,
    /// What happened.
    pub operation: Operation,
    /// The row before; none for an insert.
    pub before: Option<Image>,
    /// The row after; none for a delete.
    pub after: Option<Image>,
    /// Who answers for it, as stored (`user:7`).
    pub actor: Option<Arc<str>>,
    /// Which replica has it already.
    pub origin: Option<Arc<str>>,
    /// The client's mutation that it belongs to.
    pub mutation_id: Option<Arc<str>>,
    /// When it was written, by the database's clock, to the millisecond.
    pub at: DateTime<Utc>,
}

impl Change {
    /// The image that shows the row's key and, unless it is a delete, its present state.
    pub fn image(&self) -> &Image {
        self.after.as_ref().or(self.before.as_ref()).expect("a change has a before or an after image")
    }

    /// The cells of the row's primary key, in key order.
    pub fn key<'a>(&'a self, meta: &'a EntityMeta) -> impl ExactSizeIterator<Item = Option<&'a str>> {
        let image = self.image();
        meta.key.iter().map(move |&column| image.cell(column))
    }

    /// Which columns differ between the images; all of them for an insert, none for a delete.
    pub fn changed_columns(&self) -> impl Iterator<Item = usize> + '_ {
        let columns = self.after.as_ref().map_or(0, |after| after.cells().len());
        (0..columns).filter(|&column| match (&self.before, &self.after) {
            (Some(before), Some(after)) => before.cell(column) != after.cell(column),
            _ => true,
        })
    }

    /// The bytes that this change keeps in memory.
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.before.as_ref().map_or(0, Image::size) + self.after.as_ref().map_or(0, Image::size)
    }
}

/// The changes that committed together. Delivered whole or not at all.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// Where a reader stands once it has seen this transaction and all before it.
    pub cursor: Cursor,
    /// The changes in the order they were made. Never empty.
    pub changes: Box<[Change]>,
}

impl Transaction {
    /// The bytes that this transaction keeps in memory.
    pub fn size(&self) -> usize {
        self.changes.iter().map(Change::size).sum()
    }
}

/// Shares equal texts among the changes of a read: actors, origins and mutation ids repeat.
#[derive(Debug, Default)]
pub(crate) struct Texts(Vec<Arc<str>>);

impl Texts {
    pub(crate) fn share(&mut self, text: Option<&str>) -> Option<Arc<str>> {
        const RECENT: usize = 16;
        let text = text?;
        if let Some(known) = self.0.iter().find(|known| known.as_ref() == text) {
            return Some(Arc::clone(known));
        }
        if self.0.len() == RECENT {
            self.0.clear();
        }
        let shared: Arc<str> = text.into();
        self.0.push(Arc::clone(&shared));
        Some(shared)
    }
}
