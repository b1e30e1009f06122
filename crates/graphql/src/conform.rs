//! What async-graphql's dynamic resolvers leave to be done for an answer to be as the specification has it.
//!
//! They name no path in an error, leave a failed field out of its object where the specification wants null (or, where there may be no null,
//! the nearest object around it to be null), and give the fields of `Query` in the order in which they were done.

use std::sync::Arc;

use async_graphql::{
    Name, PathSegment, QueryPathSegment, Response, ServerResult, Value,
    extensions::{Extension, ExtensionContext, ExtensionFactory, NextResolve, ResolveInfo},
    indexmap::IndexMap,
    parser::types::{BaseType, Field, OperationType, Type},
    registry::{MetaType, Registry},
};

use crate::plan::{Fields, Selection};

/// Gives each error the path of the field that it came from.
pub(crate) struct Paths;

impl ExtensionFactory for Paths {
    fn create(&self) -> Arc<dyn Extension> {
        Arc::new(Self)
    }
}

#[async_graphql::async_trait::async_trait]
impl Extension for Paths {
    async fn resolve(
        &self,
        ctx: &ExtensionContext<'_>,
        info: ResolveInfo<'_>,
        next: NextResolve<'_>,
    ) -> ServerResult<Option<Value>> {
        let node = info.path_node;
        next.run(ctx, info).await.map_err(|mut error| {
            if error.path.is_empty() {
                let segments = std::iter::once(node).chain(node.parents()).map(|node| match node.segment {
                    QueryPathSegment::Index(index) => PathSegment::Index(index),
                    QueryPathSegment::Name(name) => PathSegment::Field(name.to_owned()),
                });
                error.path = segments.collect();
                error.path.reverse();
            }
            error
        })
    }
}

/// Puts nulls where fields failed, and the fields into the order of their selection.
pub(crate) fn conform(registry: &Registry, selection: Selection<'_>, response: &mut Response) {
    let shape = Shape { registry, selection };
    let fields = selection.root();
    let root = match selection.document.kind() {
        OperationType::Query => &registry.query_type,
        OperationType::Mutation => registry.mutation_type.as_ref().unwrap_or(&registry.query_type),
        OperationType::Subscription => return,
    };
    let failed: Vec<_> = response.errors.iter().map(|error| &error.path).filter(|path| !path.is_empty()).collect();
    if let Value::Object(entries) = &mut response.data {
        sort(entries, &fields);
    }
    for path in &failed {
        shape.fill(&mut response.data, root, &fields, path);
    }
    for path in &failed {
        if shape.propagate(&mut response.data, root, &fields, path) {
            response.data = Value::Null;
        }
    }
}

struct Shape<'a> {
    registry: &'a Registry,
    selection: Selection<'a>,
}

/// A field's type and what it selects.
type Step<'a> = (Type, Fields<'a>);

impl<'a> Shape<'a> {
    fn step(&self, object: &str, fields: &[&'a Field]) -> Option<Step<'a>> {
        let Some(MetaType::Object { fields: known, .. }) = self.registry.types.get(object) else { return None };
        let ty = Type::new(&known.get(fields.first()?.name.node.as_str())?.ty)?;
        Some((ty, self.selection.of(fields)))
    }

    /// Adds the field at the end of a path as null if it was left out, together with the objects around it that were left out because
    /// nothing in them succeeded.
    fn fill(&self, value: &mut Value, object: &str, fields: &Fields<'a>, path: &[PathSegment]) {
        let [PathSegment::Field(key), rest @ ..] = path else { return };
        if *value == Value::Null {
            *value = Value::Object(IndexMap::new());
        }
        let Value::Object(entries) = value else { return };
        let Some((ty, inner)) = fields.get(key.as_str()).and_then(|fields| self.step(object, fields)) else { return };
        if !entries.contains_key(key.as_str()) {
            entries.insert(Name::new(key), Value::Null);
            sort(entries, fields);
        }
        if let Some(slot) = entries.get_mut(key.as_str()) {
            self.fill_type(slot, &ty, &inner, rest);
        }
    }

    fn fill_type(&self, value: &mut Value, ty: &Type, fields: &Fields<'a>, path: &[PathSegment]) {
        match (&ty.base, path) {
            (BaseType::List(item), [PathSegment::Index(index), rest @ ..]) => {
                if let Value::List(items) = value
                    && let Some(slot) = items.get_mut(*index)
                {
                    self.fill_type(slot, item, fields, rest);
                }
            }
            (BaseType::Named(name), [PathSegment::Field(_), ..]) => self.fill(value, name, fields, path),
            _ => {}
        }
    }

    /// Whether the object must be null because the field at the end of the path failed.
    fn propagate(&self, value: &mut Value, object: &str, fields: &Fields<'a>, path: &[PathSegment]) -> bool {
        let ([PathSegment::Field(key), rest @ ..], Value::Object(entries)) = (path, value) else { return false };
        let Some((ty, inner)) = fields.get(key.as_str()).and_then(|fields| self.step(object, fields)) else {
            return false;
        };
        entries.get_mut(key.as_str()).is_some_and(|slot| self.propagate_type(slot, &ty, &inner, rest))
    }

    fn propagate_type(&self, value: &mut Value, ty: &Type, fields: &Fields<'a>, path: &[PathSegment]) -> bool {
        let null = match (&ty.base, path) {
            _ if *value == Value::Null => true,
            (BaseType::List(item), [PathSegment::Index(index), rest @ ..]) => match value {
                Value::List(items) => {
                    items.get_mut(*index).is_none_or(|slot| self.propagate_type(slot, item, fields, rest))
                }
                _ => true,
            },
            (BaseType::Named(name), [PathSegment::Field(_), ..]) => self.propagate(value, name, fields, path),
            _ => true,
        };
        if null {
            *value = Value::Null;
        }
        null && !ty.nullable
    }
}

fn sort(entries: &mut IndexMap<Name, Value>, fields: &Fields<'_>) {
    entries.sort_by_cached_key(|name, _| fields.get_index_of(name.as_str()));
}
