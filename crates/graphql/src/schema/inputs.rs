use std::collections::BTreeSet;

use async_graphql::dynamic::{Enum, InputObject, TypeRef};
use tidewire_outbox::Kind;

use super::{Described, input, input_name, input_type};
use crate::{model::Model, names::EnumNames};

/// The inputs that all entities share.
pub(super) fn shared() -> Vec<InputObject> {
    const ORDERED: &[&str] =
        &["eq", "ne", "gt", "gte", "lt", "lte", "is_in", "is_not_in", "is_null", "between", "not_between"];
    const EQUAL: &[&str] = &["eq", "ne", "gt", "gte", "lt", "lte", "is_in", "is_not_in", "is_null"];
    let text: Vec<&str> =
        ORDERED.iter().chain(&["contains", "starts_with", "ends_with", "like", "not_like", "ci_eq"]).copied().collect();
    let number = |name: &str| (name.to_owned(), TypeRef::named_nn(TypeRef::INT));
    let part = |name: &str, ty: &str| (name.to_owned(), TypeRef::named(ty));
    vec![
        filter("StringFilterInput", TypeRef::STRING, &text),
        filter("TextFilterInput", TypeRef::STRING, ORDERED),
        filter("IntegerFilterInput", TypeRef::INT, ORDERED),
        filter("FloatFilterInput", TypeRef::FLOAT, ORDERED),
        filter("BooleanFilterInput", TypeRef::BOOLEAN, EQUAL),
        filter("JsonFilterInput", super::JSON, &["eq", "ne", "is_null"]),
        input("PageInput", [number("limit"), number("page")]),
        input("OffsetInput", [number("limit"), number("offset")]),
        input("CursorInput", [part("cursor", TypeRef::STRING), number("limit")]),
        input(
            "PaginationInput",
            [part("cursor", "CursorInput"), part("page", "PageInput"), part("offset", "OffsetInput")],
        )
        .oneof(),
    ]
}

pub(super) fn enum_filter(names: &EnumNames) -> InputObject {
    let operators = ["eq", "ne", "gt", "gte", "lt", "lte", "is_in", "is_not_in", "is_null"];
    filter(&format!("{}FilterInput", names.type_name), &names.type_name, &operators)
}

/// The inputs for the arrays that there are, each once.
pub(super) fn array_filters(model: &Model) -> Vec<InputObject> {
    let columns = model.catalog().entities().iter().flat_map(|entity| &entity.columns);
    let elements = columns.filter_map(|column| Some(input_name(&model.names, &column.element()?.kind)));
    let elements: BTreeSet<String> = elements.collect();
    let operators = ["array_contains", "array_contained", "array_overlap", "is_null"];
    elements.iter().map(|ty| filter(&format!("{ty}ArrayFilterInput"), ty, &operators)).collect()
}

fn filter(name: &str, ty: &str, operators: &[&str]) -> InputObject {
    input(
        name,
        operators.iter().map(|operator| {
            let ty = match *operator {
                "is_null" => TypeRef::named(TypeRef::BOOLEAN),
                "is_in" | "is_not_in" | "between" | "not_between" | "array_contains" | "array_contained"
                | "array_overlap" => TypeRef::named_nn_list(ty),
                _ => TypeRef::named(ty),
            };
            ((*operator).to_owned(), ty)
        }),
    )
}

/// The inputs of one entity.
pub(super) fn of(entity: Described<'_>) -> Vec<InputObject> {
    let names = &entity.model.names;
    let filters = entity.of("FilterInput");
    let columns = |entity: Described<'_>| {
        entity
            .columns()
            .filter_map(|(_, meta, name)| Some((name.to_owned(), TypeRef::named(filter_name(entity, &meta.kind)?))))
            .collect::<Vec<_>>()
    };
    let mut related: Vec<(String, TypeRef)> = entity
        .meta
        .relations
        .iter()
        .zip(&entity.names().relations)
        .map(|(relation, name)| (name.clone(), TypeRef::named(names.entity(relation.target).of("FilterInput"))))
        .collect();
    if related.is_empty() {
        // An input object must have a field.
        related.push(("_".into(), TypeRef::named(TypeRef::BOOLEAN)));
    }
    let values = |required: bool| {
        entity
            .columns()
            .map(|(_, meta, name)| {
                let given = meta.nullable || meta.has_default || (meta.in_key && entity.meta.auto_increment);
                (name.to_owned(), input_type(names, meta, !required || given))
            })
            .collect::<Vec<_>>()
    };
    vec![
        input(&filters, columns(entity))
            .field(async_graphql::dynamic::InputValue::new("and", TypeRef::named_nn_list(&filters)))
            .field(async_graphql::dynamic::InputValue::new("or", TypeRef::named_nn_list(&filters)))
            .field(async_graphql::dynamic::InputValue::new("not", TypeRef::named(&filters))),
        input(entity.of("HavingInput"), related),
        input(
            entity.of("OrderInput"),
            entity.columns().map(|(_, _, name)| (name.to_owned(), TypeRef::named("OrderByEnum"))),
        ),
        input(entity.of("InsertInput"), values(true)),
        input(entity.of("UpdateInput"), values(false)),
        input(entity.of("MatchInput"), values(false))
            .description("What the client takes a row to be. A write with `ifMatch` happens only if the row is so, in every column given."),
        input(
            entity.of("OnConflictInput"),
            [
                ("target".to_owned(), TypeRef::named_nn_list(entity.of("Column"))),
                ("update".to_owned(), TypeRef::named_nn_list(entity.of("Column"))),
            ],
        )
        .description(
            "What happens when a row with the same unique key exists. `target`: that key's columns, the primary key if left out. \
             `update`: the columns that take the new values, all given ones if left out, none to keep the existing row.",
        ),
    ]
}

/// The names of an entity's columns.
pub(super) fn columns_enum(entity: Described<'_>) -> Enum {
    entity.columns().fold(Enum::new(entity.of("Column")), |columns, (_, _, name)| columns.item(name))
}

fn filter_name(entity: Described<'_>, kind: &Kind) -> Option<String> {
    Some(match kind {
        Kind::Boolean => "BooleanFilterInput".into(),
        Kind::Integer { .. } => "IntegerFilterInput".into(),
        Kind::Float | Kind::Double => "FloatFilterInput".into(),
        Kind::Text => "StringFilterInput".into(),
        Kind::Json => "JsonFilterInput".into(),
        Kind::Enum(meta) => format!("{}FilterInput", entity.model.names.enumeration(meta).type_name),
        Kind::Bytes => return None,
        Kind::Array(element) => format!("{}ArrayFilterInput", input_name(&entity.model.names, element)),
        _ => "TextFilterInput".into(),
    })
}
