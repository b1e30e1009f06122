use std::{collections::HashMap, sync::Arc};

use super::{ColumnMeta, RelationMeta, typed::EntityOps};

/// An entity's place in its [`Catalog`](super::Catalog).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityId(pub(crate) u16);

impl EntityId {
    /// The place as an index into [`Catalog::entities`](super::Catalog::entities).
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What is known of a synced entity: all behaviour is driven by this, never by the entity's Rust type.
#[derive(Debug, Clone)]
pub struct EntityMeta {
    /// Where it stands in the catalog.
    pub id: EntityId,
    /// The table's name; also the entity's name in the outbox.
    pub name: &'static str,
    /// The table's schema, where the entity names one.
    pub schema: Option<String>,
    /// The columns in the order of the entity's `Column`.
    pub columns: Vec<ColumnMeta>,
    /// Which columns are the primary key, in key order. Never empty.
    pub key: Vec<usize>,
    /// Whether the database hands out the key.
    pub auto_increment: bool,
    /// The ways to other synced entities.
    pub relations: Vec<RelationMeta>,
    pub(crate) by_name: HashMap<&'static str, usize>,
    pub(crate) ops: Arc<dyn EntityOps>,
}

impl EntityMeta {
    /// The index of the column with this name.
    pub fn column_index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The columns of the primary key, in key order.
    pub fn key_columns(&self) -> impl ExactSizeIterator<Item = &ColumnMeta> {
        self.key.iter().map(|&index| &self.columns[index])
    }

    /// What can be done with rows through the entity's own `ActiveModel`, so that its `ActiveModelBehavior` runs.
    pub fn ops(&self) -> &dyn EntityOps {
        &*self.ops
    }
}
