use std::sync::Arc;

use async_graphql::{
    Error as GraphqlError, Value as ConstValue,
    dataloader::DataLoader,
    dynamic::{Field, FieldFuture, FieldValue, InputValue, Object, ResolverContext, TypeRef},
};
use tidewire_outbox::{Aggregate, Kind};

use super::{BIG_INT, Described, nullable, output_name, output_type};
use crate::{
    error::ApiError,
    model::Model,
    plan::{Arguments, has_extremes},
    policy::Access,
    resolve::{Aggregates, Relations, RequestVariables, Row, RowList},
};

type Answer<'a> = Result<Option<FieldValue<'a>>, GraphqlError>;

fn model<'a>(ctx: &ResolverContext<'a>) -> &'a Arc<Model> {
    ctx.data_unchecked::<Arc<Model>>()
}

/// What the viewer may do. Without it, nothing is resolved.
fn access<'a>(ctx: &ResolverContext<'a>) -> Result<&'a Arc<Access>, GraphqlError> {
    ctx.data::<Arc<Access>>()
}

fn parent<'a, T: Send + Sync + 'static>(ctx: &ResolverContext<'a>) -> Result<&'a T, GraphqlError> {
    ctx.parent_value.try_downcast_ref::<T>()
}

/// A field whose answer is at hand.
fn ready(
    name: &str,
    ty: TypeRef,
    answer: impl for<'a> Fn(&ResolverContext<'a>) -> Answer<'a> + Send + Sync + 'static,
) -> Field {
    Field::new(name, ty, move |ctx| {
        let answer = answer(&ctx);
        FieldFuture::new(async move { answer })
    })
}

fn number(value: u64) -> FieldValue<'static> {
    FieldValue::value(ConstValue::from(value))
}

/// The objects that all entities share.
pub(super) fn shared() -> Vec<Object> {
    let cursor = |name: &'static str, place: fn(&RowList) -> usize| {
        ready(name, TypeRef::named(TypeRef::STRING), move |ctx| {
            let list = parent::<Arc<RowList>>(ctx)?;
            Ok(list.cursor(model(ctx), place(list)).map(FieldValue::value))
        })
    };
    let page_info = Object::new("PageInfo")
        .field(cursor("startCursor", |_| 0))
        .field(cursor("endCursor", |list| list.rows.len().wrapping_sub(1)))
        .field(ready("hasNextPage", TypeRef::named_nn(TypeRef::BOOLEAN), |ctx| {
            Ok(Some(FieldValue::value(parent::<Arc<RowList>>(ctx)?.has_next())))
        }))
        .field(Field::new("hasPreviousPage", TypeRef::named_nn(TypeRef::BOOLEAN), |ctx| {
            FieldFuture::new(async move {
                let list = parent::<Arc<RowList>>(&ctx)?;
                Ok(Some(FieldValue::value(list.has_previous(model(&ctx)).await?)))
            })
        }));
    type Info = (u64, u64, u64, u64);
    let info = |name: &'static str, part: fn(&Info) -> u64| {
        ready(name, TypeRef::named_nn(TypeRef::INT), move |ctx| Ok(Some(number(part(parent::<Info>(ctx)?)))))
    };
    let pagination_info = Object::new("PaginationInfo")
        .field(info("current", |info| info.0))
        .field(info("offset", |info| info.1))
        .field(info("pages", |info| info.2))
        .field(info("total", |info| info.3));
    vec![page_info, pagination_info]
}

/// The objects of one entity.
pub(super) fn of(entity: Described<'_>) -> Vec<Object> {
    let names = entity.names();
    let connection = Object::new(entity.of("Connection"))
        .field(ready("edges", TypeRef::named_nn_list_nn(entity.of("Edge")), |ctx| {
            let list = parent::<Arc<RowList>>(ctx)?;
            Ok(Some(FieldValue::list(
                (0..list.rows.len()).map(|place| FieldValue::owned_any((Arc::clone(list), place))),
            )))
        }))
        .field(ready("nodes", TypeRef::named_nn_list_nn(&names.object), |ctx| {
            let list = parent::<Arc<RowList>>(ctx)?;
            Ok(Some(FieldValue::list(list.rows.iter().map(|row| FieldValue::borrowed_any(row)))))
        }))
        .field(ready("pageInfo", TypeRef::named_nn("PageInfo"), |ctx| {
            Ok(Some(FieldValue::borrowed_any(parent::<Arc<RowList>>(ctx)?)))
        }))
        .field(Field::new("paginationInfo", TypeRef::named("PaginationInfo"), |ctx| {
            FieldFuture::new(async move {
                let info = parent::<Arc<RowList>>(&ctx)?.pagination_info(model(&ctx)).await?;
                Ok(info.map(FieldValue::owned_any))
            })
        }))
        .field(ready("aggregate", TypeRef::named_nn(entity.of("Aggregate")), |ctx| {
            Ok(Some(FieldValue::owned_any(Aggregates::new(parent::<Arc<RowList>>(ctx)?))))
        }));
    let edge = Object::new(entity.of("Edge"))
        .field(ready("cursor", TypeRef::named_nn(TypeRef::STRING), |ctx| {
            let (list, place) = parent::<(Arc<RowList>, usize)>(ctx)?;
            Ok(list.cursor(model(ctx), *place).map(FieldValue::value))
        }))
        .field(ready("node", TypeRef::named_nn(&names.object), |ctx| {
            let (list, place) = parent::<(Arc<RowList>, usize)>(ctx)?;
            Ok(list.rows.get(*place).map(|row| FieldValue::borrowed_any(row)))
        }));
    let object = columns(entity, Object::new(&names.object));
    let object =
        (0..entity.meta.relations.len()).map(|relation| relation_field(entity, relation)).fold(object, Object::field);
    let basic = columns(entity, Object::new(entity.of("Basic")));
    let mut objects = vec![connection, edge, object, basic];
    objects.extend(aggregates(entity));
    objects
}

/// `film(filters, having, orderBy, pagination): FilmConnection!`
pub(super) fn list_field(entity: Described<'_>) -> Field {
    let id = entity.meta.id;
    let field = Field::new(&entity.names().field, TypeRef::named_nn(entity.of("Connection")), move |ctx| {
        FieldFuture::new(async move {
            let list = model(&ctx).resolve_list(access(&ctx)?, id, &Model::arguments(&ctx)).await?;
            Ok(Some(FieldValue::owned_any(list)))
        })
    });
    list_arguments(entity, true).into_iter().fold(field, Field::argument)
}

/// The arguments of a list; `having` only at the root.
pub(super) fn list_arguments(entity: Described<'_>, with_having: bool) -> Vec<InputValue> {
    let mut arguments = vec![InputValue::new("filters", TypeRef::named(entity.of("FilterInput")))];
    if with_having {
        arguments.push(InputValue::new("having", TypeRef::named(entity.of("HavingInput"))));
    }
    arguments.push(InputValue::new("orderBy", TypeRef::named(entity.of("OrderInput"))));
    arguments.push(InputValue::new("pagination", TypeRef::named("PaginationInput")));
    arguments
}

/// `filmByPk(filmId: Int!): Film`
pub(super) fn by_key_field(entity: Described<'_>) -> Field {
    let id = entity.meta.id;
    let name = format!("{}ByPk", entity.names().field);
    let field = Field::new(name, TypeRef::named(&entity.names().object), move |ctx| {
        FieldFuture::new(async move {
            let variables = ctx.data_opt::<RequestVariables>().cloned().unwrap_or_default();
            let arguments = Arguments::of(&ctx.item.node);
            let row = model(&ctx).resolve_by_key(access(&ctx)?, id, arguments, &variables.0).await?;
            Ok(row.map(FieldValue::owned_any))
        })
    });
    entity.meta.key.iter().fold(field, |field, &column| {
        let ty = super::input_name(&entity.model.names, &entity.meta.columns[column].kind);
        field.argument(InputValue::new(&entity.names().columns[column], TypeRef::named_nn(ty)))
    })
}

fn columns(entity: Described<'_>, object: Object) -> Object {
    entity.columns().fold(object, |object, (index, meta, name)| {
        object.field(ready(name, output_type(&entity.model.names, meta), move |ctx| {
            model(ctx).resolve_column(access(ctx)?, parent::<Row>(ctx)?, index)
        }))
    })
}

fn relation_field(entity: Described<'_>, index: usize) -> Field {
    let relation = &entity.meta.relations[index];
    let target = Described { model: entity.model, meta: entity.model.catalog().entity(relation.target) };
    let name = &entity.names().relations[index];
    fn loader<'a>(ctx: &ResolverContext<'a>) -> &'a DataLoader<Relations> {
        ctx.data_unchecked::<DataLoader<Relations>>()
    }
    if !relation.many {
        return Field::new(name, TypeRef::named(&target.names().object), move |ctx| {
            FieldFuture::new(async move {
                let row = model(&ctx).resolve_one(loader(&ctx), parent::<Row>(&ctx)?, index).await?;
                Ok(row.map(FieldValue::owned_any))
            })
        });
    }
    let field = Field::new(name, TypeRef::named_nn(target.of("Connection")), move |ctx| {
        FieldFuture::new(async move {
            let arguments = Model::arguments(&ctx);
            let list = model(&ctx).resolve_many(loader(&ctx), parent::<Row>(&ctx)?, index, arguments).await?;
            Ok(Some(FieldValue::owned_any(list)))
        })
    });
    list_arguments(target, false).into_iter().fold(field, Field::argument)
}

/// `FilmAggregate` and the objects inside it.
fn aggregates(entity: Described<'_>) -> Vec<Object> {
    let names = &entity.model.names;
    let aggregate_field = |name: &str, ty: TypeRef, aggregate: Aggregate| {
        Field::new(name, ty, move |ctx| {
            FieldFuture::new(async move { parent::<Aggregates>(&ctx)?.resolve(model(&ctx), aggregate).await })
        })
    };
    // `min` and `max` share a type, so which of the two a column's field computes is in its parent.
    let extremes = entity.columns().filter(|(_, meta, _)| has_extremes(&meta.kind)).fold(
        Object::new(entity.of("Extremes")),
        |object, (index, meta, name)| {
            let ty = TypeRef::named(output_name(names, &meta.kind));
            object.field(Field::new(name, ty, move |ctx| {
                FieldFuture::new(async move {
                    let Extremes { of, largest } = parent::<Extremes>(&ctx)?;
                    let aggregate = if *largest { Aggregate::Max(index) } else { Aggregate::Min(index) };
                    of.resolve(model(&ctx), aggregate).await
                })
            }))
        },
    );
    let numeric = || entity.columns().filter(|(_, meta, _)| meta.kind.is_numeric());
    let sums = numeric().fold(Object::new(entity.of("Sums")), |object, (index, meta, name)| {
        let ty = match &meta.kind {
            Kind::Integer { .. } => BIG_INT.into(),
            kind => output_name(names, kind),
        };
        object.field(aggregate_field(name, TypeRef::named(ty), Aggregate::Sum(index)))
    });
    let means = numeric().fold(Object::new(entity.of("Means")), |object, (index, _, name)| {
        object.field(aggregate_field(name, TypeRef::named(TypeRef::FLOAT), Aggregate::Avg(index)))
    });
    let has_numeric = numeric().next().is_some();
    let has_ordered = entity.columns().any(|(_, meta, _)| has_extremes(&meta.kind));
    let mut aggregate = Object::new(entity.of("Aggregate")).field(aggregate_field(
        "count",
        TypeRef::named_nn(BIG_INT),
        Aggregate::Count,
    ));
    let mut objects = Vec::new();
    let same =
        |ctx: &ResolverContext<'_>| -> Result<Aggregates, GraphqlError> { Ok(parent::<Aggregates>(ctx)?.clone()) };
    if has_ordered {
        for (name, largest) in [("min", false), ("max", true)] {
            aggregate = aggregate.field(ready(name, TypeRef::named_nn(entity.of("Extremes")), move |ctx| {
                Ok(Some(FieldValue::owned_any(Extremes { of: same(ctx)?, largest })))
            }));
        }
        objects.push(extremes);
    }
    if has_numeric {
        for (name, suffix) in [("sum", "Sums"), ("avg", "Means")] {
            aggregate = aggregate.field(ready(name, TypeRef::named_nn(entity.of(suffix)), move |ctx| {
                Ok(Some(FieldValue::owned_any(same(ctx)?)))
            }));
        }
        objects.extend([sums, means]);
    }
    objects.push(aggregate);
    objects
}

/// The parent of the fields of `FilmExtremes`.
struct Extremes {
    of: Aggregates,
    largest: bool,
}

/// The value of a key's field, for objects that stand for a key.
pub(super) fn key_object(entity: Described<'_>, name: String) -> Object {
    entity.meta.key.iter().fold(Object::new(name), |object, &column| {
        let ty = nullable(output_name(&entity.model.names, &entity.meta.columns[column].kind), false);
        object.field(ready(&entity.names().columns[column], ty, move |ctx| {
            model(ctx).resolve_column(access(ctx)?, parent::<Row>(ctx)?, column)
        }))
    })
}

/// Rows as answers of mutations.
pub(super) fn row_values(rows: Vec<Row>) -> FieldValue<'static> {
    FieldValue::list(rows.into_iter().map(FieldValue::owned_any))
}

/// The row that a mutation must have given.
pub(super) fn one_row(rows: Vec<Row>) -> Result<FieldValue<'static>, ApiError> {
    rows.into_iter()
        .next()
        .map(FieldValue::owned_any)
        .ok_or_else(|| ApiError::new(crate::error::Code::Internal, "the written row is not there"))
}
