//! Which entities are synced, and what is known of them.

mod column;
mod entity;
mod relation;
mod typed;

use std::{collections::HashMap, sync::Arc};

use sea_orm::{
    ActiveModelBehavior, ColumnTrait, EntityTrait, IdenStatic, IntoActiveModel, Iterable, ModelTrait,
    PrimaryKeyToColumn, PrimaryKeyTrait, RelationTrait, TryIntoModel,
};

pub(crate) use self::typed::model;
pub use self::{
    column::{ColumnMeta, EnumMeta, Kind},
    entity::{EntityId, EntityMeta},
    relation::{Junction, RelationMeta},
    typed::{Assignments, EntityOps, KeyValues, OnConflict},
};
use crate::error::{Error, ErrorKind, Result};

/// The entities to sync, one line each.
///
/// Takes any SeaORM entity, as `sea-orm-cli generate entity` writes it or as written by hand.
///
/// ```
/// # mod film { use sea_orm::entity::prelude::*;
/// # #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)] #[sea_orm(table_name = "film")]
/// # pub struct Model { #[sea_orm(primary_key)] pub id: i32, pub title: String }
/// # #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)] pub enum Relation {}
/// # impl ActiveModelBehavior for ActiveModel {} }
/// use tidewire_outbox::Registry;
///
/// let registry = Registry::new().entity::<film::Entity>();
/// assert_eq!(registry.catalog()?.entities()[0].name, "film");
/// # Ok::<(), tidewire_outbox::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Registry {
    entities: Vec<EntityMeta>,
    relations: Vec<Vec<relation::Declared>>,
    problems: Vec<String>,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entity. What is wrong with it is said by [`catalog`](Self::catalog), all problems at once.
    #[must_use]
    pub fn entity<E>(mut self) -> Self
    where
        E: EntityTrait,
        E::Model: IntoActiveModel<E::ActiveModel> + Send + Sync + 'static,
        E::ActiveModel: ActiveModelBehavior + TryIntoModel<E::Model> + Send + Sync + 'static,
    {
        let entity = E::default();
        let name = entity.table_name();
        let key_names: Vec<&'static str> =
            E::PrimaryKey::iter().map(|key| IdenStatic::as_str(&key.into_column())).collect();
        let mut columns = Vec::new();
        for column in E::Column::iter() {
            let def = column.def();
            let value_type = E::Model::get_value_type(column);
            let Some(kind) = column::kind_of(def.get_column_type(), &value_type) else {
                self.problems
                    .push(format!("{name}.{} has the type {value_type:?}, which has no mapping", column.as_str()));
                continue;
            };
            let column_name = IdenStatic::as_str(&column);
            columns.push(ColumnMeta {
                name: column_name,
                kind,
                nullable: def.is_null(),
                has_default: def.get_column_default().is_some(),
                in_key: key_names.contains(&column_name),
                value_type,
            });
        }
        let by_name: HashMap<_, _> = columns.iter().enumerate().map(|(index, column)| (column.name, index)).collect();
        let key: Vec<usize> = key_names.iter().filter_map(|name| by_name.get(name).copied()).collect();
        if key.is_empty() {
            self.problems.push(format!("{name} has no primary key, so its rows cannot be told apart"));
        }
        if self.entities.iter().any(|other| other.name == name) {
            self.problems.push(format!("{name} is registered twice"));
        }
        if name.starts_with("tidewire_") {
            self.problems.push(format!("{name} is a name that Tidewire keeps for its own tables"));
        }
        let Ok(id) = u16::try_from(self.entities.len()) else {
            self.problems.push("more than 65,535 entities are registered".into());
            return self;
        };
        self.relations.push(
            E::Relation::iter()
                .map(|relation| relation::Declared { variant: relation.name(), def: relation.def() })
                .collect(),
        );
        self.entities.push(EntityMeta {
            id: EntityId(id),
            name,
            schema: entity.schema_name().map(Into::into),
            columns,
            key,
            auto_increment: E::PrimaryKey::auto_increment(),
            relations: Vec::new(),
            by_name,
            ops: Arc::new(typed::Of::<E>::new()),
        });
        self
    }

    /// Resolves relations and checks everything.
    ///
    /// # Errors
    /// [`ErrorKind::Registry`] with every problem found, each naming its table and column.
    pub fn catalog(self) -> Result<Arc<Catalog>> {
        if !self.problems.is_empty() {
            return Err(Error::new(ErrorKind::Registry, self.problems.join("; ")));
        }
        let linked = relation::link(&self.entities, &self.relations)?;
        let mut entities = self.entities;
        for (entity, relations) in entities.iter_mut().zip(linked) {
            entity.relations = relations;
        }
        let by_name = entities.iter().map(|entity| (entity.name, entity.id)).collect();
        Ok(Arc::new(Catalog { entities, by_name }))
    }
}

/// The synced entities with their relations resolved.
#[derive(Debug)]
pub struct Catalog {
    entities: Vec<EntityMeta>,
    by_name: HashMap<&'static str, EntityId>,
}

impl Catalog {
    /// All entities, in the order of their registration.
    pub fn entities(&self) -> &[EntityMeta] {
        &self.entities
    }

    /// The entity at a place.
    pub fn entity(&self, id: EntityId) -> &EntityMeta {
        &self.entities[id.index()]
    }

    /// The entity with this table name.
    pub fn find(&self, name: &str) -> Option<&EntityMeta> {
        self.by_name.get(name).map(|&id| self.entity(id))
    }

    /// The entity of a table, by its name in whatever case: how SQLite sees names.
    pub(crate) fn find_ignoring_case(&self, name: &str) -> Option<&EntityMeta> {
        self.entities.iter().find(|entity| entity.name.eq_ignore_ascii_case(name))
    }

    /// The entity of a SeaORM entity type.
    pub fn of<E: EntityTrait>(&self) -> Option<&EntityMeta> {
        self.find(E::default().table_name())
    }
}
