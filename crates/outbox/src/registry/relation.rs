use std::{collections::HashSet, fmt, sync::Arc};

use heck::ToSnakeCase;
use sea_orm::{
    Condition, DynIden, Identity, RelationDef, RelationType,
    sea_query::{TableName, TableRef},
};

use super::{EntityId, EntityMeta};
use crate::error::{Error, ErrorKind, Result};

/// A way from one synced entity to another.
#[derive(Debug, Clone)]
pub struct RelationMeta {
    /// The relation's name in `snake_case`: the variant's in the entity's `Relation`, or the target's of a many-to-many relation.
    pub name: String,
    /// Where it leads.
    pub target: EntityId,
    /// Whether it leads to many rows; otherwise to one or none.
    pub many: bool,
    /// This entity's columns, matched pairwise with those of the next table on the way.
    pub from: Vec<usize>,
    /// The columns they equal: the target's, or the junction's where there is one.
    pub to: Vec<usize>,
    /// The table between the two, of a many-to-many relation.
    pub junction: Option<Junction>,
    /// What else must hold between the two rows, as the entity declared it.
    pub(crate) condition: Option<ExtraCondition>,
}

impl RelationMeta {
    /// Whether more than equal columns must hold between the two rows.
    pub fn has_condition(&self) -> bool {
        self.condition.is_some()
    }
}

/// The table in the middle of a many-to-many relation.
#[derive(Debug, Clone)]
pub struct Junction {
    /// The junction's entity.
    pub entity: EntityId,
    /// Its columns that point to the target, matched pairwise with `to`.
    pub from: Vec<usize>,
    /// The target's columns.
    pub to: Vec<usize>,
}

/// A relation's `on_condition`, with whether it is alternative to the columns' equality (`Any`) or adds to it.
#[derive(Clone)]
pub(crate) struct ExtraCondition {
    pub(crate) build: Arc<dyn Fn(DynIden, DynIden) -> Condition + Send + Sync>,
    pub(crate) alternative: bool,
}

impl fmt::Debug for ExtraCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExtraCondition")
    }
}

/// A relation as an entity declares it, before its other end is known.
#[derive(Debug)]
pub(crate) struct Declared {
    pub(crate) variant: String,
    pub(crate) def: RelationDef,
}

/// Finds the far ends of all declared relations.
///
/// Beside the declared ones an entity gets the reverse of each relation to itself (`parent` gives `parent_reverse`), and a many-to-many
/// relation through each junction: an entity whose primary key is exactly the foreign keys to two others. That is how SeaORM's own
/// generator tells junctions, and the names are those that Seaography gives.
pub(crate) fn link(entities: &[EntityMeta], declared: &[Vec<Declared>]) -> Result<Vec<Vec<RelationMeta>>> {
    let mut linked: Vec<Vec<RelationMeta>> = Vec::with_capacity(entities.len());
    for (entity, relations) in entities.iter().zip(declared) {
        let mut found = Vec::new();
        for relation in relations {
            // A relation to an entity that is not synced leads nowhere that we may go.
            let Some(target) = find(entities, &relation.def.to_tbl) else { continue };
            let many = relation.def.rel_type == RelationType::HasMany;
            let forward = RelationMeta {
                name: relation.variant.to_snake_case(),
                target,
                many,
                from: columns(entity, &relation.def.from_col)?,
                to: columns(&entities[target.index()], &relation.def.to_col)?,
                junction: None,
                condition: relation.def.on_condition.clone().map(|build| ExtraCondition {
                    build,
                    alternative: relation.def.condition_type == sea_orm::sea_query::ConditionType::Any,
                }),
            };
            if target == entity.id && !many && forward.condition.is_none() {
                found.push(RelationMeta {
                    name: format!("{}_reverse", forward.name),
                    many: true,
                    from: forward.to.clone(),
                    to: forward.from.clone(),
                    ..forward.clone()
                });
                found.insert(found.len() - 1, forward);
            } else {
                found.push(forward);
            }
        }
        linked.push(found);
    }
    link_junctions(entities, &mut linked);
    for (entity, relations) in entities.iter().zip(&mut linked) {
        let mut taken: HashSet<String> = entity.columns.iter().map(|column| column.name.to_snake_case()).collect();
        relations.retain(|relation| taken.insert(relation.name.clone()));
    }
    Ok(linked)
}

fn link_junctions(entities: &[EntityMeta], linked: &mut [Vec<RelationMeta>]) {
    let mut through = Vec::new();
    for junction in entities {
        let ends: Vec<&RelationMeta> =
            linked[junction.id.index()].iter().filter(|end| !end.many && end.junction.is_none()).collect();
        let [a, b] = ends.as_slice() else { continue };
        let mut key: Vec<usize> = a.from.iter().chain(&b.from).copied().collect();
        key.sort_unstable();
        let mut primary = junction.key.clone();
        primary.sort_unstable();
        if key != primary {
            continue;
        }
        for (near, far) in [(a, b), (b, a)] {
            let target = &entities[far.target.index()];
            // Between two rows of one entity the target's name would say nothing; the role in the junction does.
            let name = if near.target == far.target { far.name.clone() } else { target.name.to_snake_case() };
            through.push((
                near.target,
                RelationMeta {
                    name,
                    target: far.target,
                    many: true,
                    from: near.to.clone(),
                    to: near.from.clone(),
                    junction: Some(Junction { entity: junction.id, from: far.from.clone(), to: far.to.clone() }),
                    condition: None,
                },
            ));
        }
    }
    for (entity, relation) in through {
        linked[entity.index()].push(relation);
    }
}

fn find(entities: &[EntityMeta], table: &TableRef) -> Option<EntityId> {
    let TableRef::Table(TableName(schema, name), _) = table else { return None };
    let schema = schema.as_ref().map(|schema| schema.1.to_string());
    entities
        .iter()
        .find(|entity| name.inner() == entity.name && entity.schema.as_deref() == schema.as_deref())
        .map(|entity| entity.id)
}

fn columns(entity: &EntityMeta, identity: &Identity) -> Result<Vec<usize>> {
    identity
        .iter()
        .map(|name| {
            let name = name.to_string();
            entity.column_index(&name).ok_or_else(|| {
                Error::new(
                    ErrorKind::Registry,
                    format!("a relation names the column {}.{name}, which the entity does not have", entity.name),
                )
            })
        })
        .collect()
}
