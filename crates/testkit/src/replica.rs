use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait, EntityTrait, Iterable, ModelTrait};
use tidewire_outbox::{Catalog, Change, EntityId, EntityMeta, Image, Operation, Transaction, cell};

type Key = Vec<Option<String>>;
type Cells = Vec<Option<String>>;

/// Tables rebuilt from nothing but their changes.
///
/// It refuses what does not follow from what came before, so a change that is lost, repeated or out of order is found where it happens: an
/// insert of a row that is there, an update or delete whose `before` is not the row as it is, or of a row that is not there.
#[derive(Debug, Default)]
pub struct Replica {
    rows: BTreeMap<(EntityId, Key), Image>,
    /// How many changes it was given.
    pub changes: u64,
}

impl Replica {
    /// A replica of one entity that begins with the rows of a snapshot.
    pub fn starting_with(entity: &EntityMeta, rows: impl IntoIterator<Item = Image>) -> Self {
        let keyed = rows.into_iter().map(|row| {
            let key = entity.key.iter().map(|&column| row.cell(column).map(str::to_owned)).collect();
            ((entity.id, key), row)
        });
        Self { rows: keyed.collect(), changes: 0 }
    }

    /// Takes the changes of a transaction.
    ///
    /// # Panics
    /// When one of them does not follow from the rows as they are.
    #[track_caller]
    pub fn apply(&mut self, catalog: &Catalog, transaction: &Transaction) {
        for change in &transaction.changes {
            self.apply_change(catalog.entity(change.entity), change);
        }
    }

    #[track_caller]
    fn apply_change(&mut self, entity: &EntityMeta, change: &Change) {
        let key: Key = change.key(entity).map(|cell| cell.map(str::to_owned)).collect();
        let what = format!("change {}: {} of {} {key:?}", change.seq, change.operation, entity.name);
        let known = match &change.after {
            Some(after) => self.rows.insert((entity.id, key), after.clone()),
            None => self.rows.remove(&(entity.id, key)),
        };
        let cells = |image: &Option<Image>| image.as_ref().map(|image| cells_of_image(entity, image));
        match change.operation {
            Operation::Insert => {
                assert!(change.before.is_none() && change.after.is_some(), "{what} has the wrong images");
                assert_eq!(cells(&known), None, "{what}: the row is there already");
            }
            Operation::Update => {
                assert!(change.before.is_some() && change.after.is_some(), "{what} has the wrong images");
                assert_eq!(cells(&change.before), cells(&known), "{what}: the row was another before");
                assert_ne!(change.before, change.after, "{what} changes nothing");
            }
            Operation::Delete => {
                assert!(change.before.is_some() && change.after.is_none(), "{what} has the wrong images");
                assert_eq!(cells(&change.before), cells(&known), "{what}: the row was another before");
            }
        }
        self.changes += 1;
    }

    /// How many rows it has of an entity.
    pub fn len(&self, entity: EntityId) -> usize {
        self.rows.keys().filter(|(id, _)| *id == entity).count()
    }

    /// Holds the replica against a table, row by row and column by column. The table is read through SeaORM and not through anything of
    /// Tidewire's.
    ///
    /// # Panics
    /// When they differ.
    #[track_caller]
    pub fn assert_equals<E>(&self, catalog: &Catalog, db: &impl ConnectionTrait) -> impl Future<Output = ()>
    where
        E: EntityTrait,
        E::Model: Sync,
    {
        let caller = std::panic::Location::caller();
        async move {
            let meta = catalog.of::<E>().unwrap();
            let key_of = |cells: &Cells| -> Key { meta.key.iter().map(|&column| cells[column].clone()).collect() };
            let stored: BTreeMap<Key, Cells> = E::find()
                .all(db)
                .await
                .unwrap()
                .iter()
                .map(|model| {
                    let cells = cells_of(model);
                    (key_of(&cells), cells)
                })
                .collect();
            let replayed: BTreeMap<Key, Cells> = self
                .rows
                .iter()
                .filter(|((id, _), _)| *id == meta.id)
                .map(|((_, key), image)| (key.clone(), image.cells().map(|cell| cell.map(str::to_owned)).collect()))
                .collect();
            for (key, cells) in &stored {
                let other = replayed.get(key);
                assert!(other.is_some(), "{caller}: {} {key:?} is in the table and was never announced", meta.name);
                for ((column, stored), replayed) in meta.columns.iter().zip(cells).zip(other.into_iter().flatten()) {
                    assert_eq!(replayed, stored, "{caller}: {}.{} of {key:?}", meta.name, column.name);
                }
            }
            for key in replayed.keys() {
                assert!(stored.contains_key(key), "{caller}: {} {key:?} is gone from the table", meta.name);
            }
        }
    }
}

/// A row as SeaORM reads it, as canonical cells in column order.
pub fn cells_of<M: ModelTrait>(model: &M) -> Cells {
    <M::Entity as EntityTrait>::Column::iter()
        .map(|column| {
            let mut cell = String::new();
            cell::write_value(&model.get(column), &mut cell).then_some(cell)
        })
        .collect()
}

fn cells_of_image(entity: &EntityMeta, image: &Image) -> Vec<(&'static str, Option<String>)> {
    entity.columns.iter().zip(image.cells()).map(|(column, cell)| (column.name, cell.map(str::to_owned))).collect()
}
