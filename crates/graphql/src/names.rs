//! What things are called in GraphQL.
//!
//! The names of queries and mutations, of their types and of their arguments are those that Seaography 2.0 gives by default, so that its
//! clients' documents work unchanged.

use std::collections::{BTreeMap, BTreeSet};

use heck::{ToLowerCamelCase, ToUpperCamelCase};
use tidewire_outbox::{Catalog, ColumnMeta, EntityId, EntityMeta, EnumMeta, Kind};

/// The names of one entity's parts.
#[derive(Debug)]
pub(crate) struct EntityNames {
    /// `Film`
    pub(crate) object: String,
    /// `film`
    pub(crate) field: String,
    /// `filmId`, one per column.
    pub(crate) columns: Vec<String>,
    /// `language1`, one per relation.
    pub(crate) relations: Vec<String>,
}

impl EntityNames {
    fn new(entity: &EntityMeta) -> Self {
        Self {
            object: entity.name.to_upper_camel_case(),
            field: entity.name.to_lower_camel_case(),
            columns: entity.columns.iter().map(|column| column.name.to_lower_camel_case()).collect(),
            relations: entity.relations.iter().map(|relation| relation.name.to_lower_camel_case()).collect(),
        }
    }

    /// A type that belongs to the entity: `FilmConnection`.
    pub(crate) fn of(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.object)
    }

    pub(crate) fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }
}

/// The names of everything.
#[derive(Debug)]
pub(crate) struct Names {
    entities: Vec<EntityNames>,
    by_field: BTreeMap<String, EntityId>,
    /// By the database's name for the enumeration.
    enums: BTreeMap<String, EnumNames>,
}

/// The names of one enumeration.
#[derive(Debug)]
pub(crate) struct EnumNames {
    /// `TaskStatusEnum`
    pub(crate) type_name: String,
    /// The stored value and its name, in declaration order.
    pub(crate) values: Vec<(String, String)>,
}

impl Names {
    /// Names everything, or says which names two things would share.
    pub(crate) fn new(catalog: &Catalog) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let entities: Vec<EntityNames> = catalog.entities().iter().map(EntityNames::new).collect();
        let mut by_field = BTreeMap::new();
        for (names, entity) in entities.iter().zip(catalog.entities()) {
            if let Some(other) = by_field.insert(names.field.clone(), entity.id) {
                problems.push(format!(
                    "{} and {} would both be called {}",
                    catalog.entity(other).name,
                    entity.name,
                    names.field
                ));
            }
            if let Some((column, name)) = entity.columns.iter().zip(&names.columns).find(|(_, name)| !is_name(name)) {
                problems.push(format!("{}.{} gives {name:?}, which is no GraphQL name", entity.name, column.name));
            }
            let mut fields = BTreeSet::new();
            for name in names.columns.iter().chain(&names.relations) {
                if !fields.insert(name) {
                    problems.push(format!("{} would have two fields called {name}", entity.name));
                }
            }
        }
        let mut enums: BTreeMap<String, EnumNames> = BTreeMap::new();
        for meta in catalog.entities().iter().flat_map(|entity| &entity.columns).filter_map(enum_of) {
            let names = EnumNames::new(meta);
            if let Some(known) = enums.get(&meta.name) {
                if known.values != names.values {
                    problems.push(format!("the enumeration {} is declared twice, with different values", meta.name));
                }
                continue;
            }
            enums.insert(meta.name.clone(), names);
        }
        if problems.is_empty() { Ok(Self { entities, by_field, enums }) } else { Err(problems) }
    }

    pub(crate) fn entity(&self, id: EntityId) -> &EntityNames {
        &self.entities[id.index()]
    }

    /// The entity that a field name stands for: `film`.
    pub(crate) fn by_field(&self, field: &str) -> Option<EntityId> {
        self.by_field.get(field).copied()
    }

    pub(crate) fn enumeration(&self, meta: &EnumMeta) -> &EnumNames {
        &self.enums[&meta.name]
    }

    pub(crate) fn enums(&self) -> impl Iterator<Item = &EnumNames> {
        self.enums.values()
    }
}

fn enum_of(column: &ColumnMeta) -> Option<&EnumMeta> {
    match &column.kind {
        Kind::Enum(meta) => Some(meta),
        Kind::Array(element) => match &**element {
            Kind::Enum(meta) => Some(meta),
            _ => None,
        },
        _ => None,
    }
}

impl EnumNames {
    fn new(meta: &EnumMeta) -> Self {
        Self {
            type_name: format!("{}Enum", meta.name.to_upper_camel_case()),
            values: meta.variants.iter().map(|value| (value.clone(), enum_value(value))).collect(),
        }
    }

    /// The name of a stored value.
    pub(crate) fn name(&self, value: &str) -> Option<&str> {
        self.values.iter().find(|(stored, _)| stored == value).map(|(_, name)| name.as_str())
    }

    /// The stored value of a name.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(_, known)| known == name).map(|(stored, _)| stored.as_str())
    }
}

/// `NC-17` gives `NC17`. A name cannot start with a digit, so `3d` gives `_3d`.
fn enum_value(value: &str) -> String {
    let name: String = value.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) || name.is_empty() { format!("_{name}") } else { name }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
