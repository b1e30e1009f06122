//! The GraphQL schema, built from the catalog.

mod explain;
mod inputs;
mod mutation;
mod outputs;
mod subscription;

use std::sync::Arc;

use async_graphql::{
    Value as ConstValue,
    dynamic::{
        Enum, Field, InputObject, Object, Scalar, Schema, SchemaError, Subscription, SubscriptionField, Type, TypeRef,
    },
};
use tidewire_outbox::{ColumnMeta, Kind};

use crate::{model::Model, names::Names};

pub use self::mutation::transaction;
pub(crate) use self::{explain::Whole, mutation::MutationScope};

/// What a user adds by hand to what is generated.
#[derive(Default)]
pub(crate) struct Additions {
    pub(crate) queries: Vec<Field>,
    pub(crate) mutations: Vec<Field>,
    pub(crate) subscriptions: Vec<SubscriptionField>,
    pub(crate) types: Vec<Type>,
    pub(crate) data: async_graphql::Data,
}

const JSON: &str = "Json";
const BIG_INT: &str = "BigInt";

/// Builds the schema.
pub(crate) fn build(model: &Arc<Model>, additions: Additions, whole: &Whole) -> Result<Schema, SchemaError> {
    let options = &model.options;
    let mut query = Object::new("Query");
    let mut mutation = Object::new("Mutation");
    let mut subscription = Subscription::new("Subscription");
    let mut schema = Schema::build("Query", Some("Mutation"), Some("Subscription"))
        // `limits.rs` has looked before, and says it better.
        .limit_recursive_depth(options.max_nesting.max(32) + 1)
        .extension(crate::api::Validation)
        .extension(crate::conform::Paths)
        .data(Arc::clone(model))
        .data(model.recorder.clone());
    if !options.introspection {
        schema = schema.disable_introspection();
    }
    if !options.suggestions {
        schema = schema.disable_suggestions();
    }
    schema = schema.register(
        Scalar::new(BIG_INT)
            .description(
                "A whole number of up to 64 bits. Beyond ±(2^53 − 1), where JavaScript would round it, it is a string.",
            )
            .validator(is_integer),
    );
    schema = schema.register(Scalar::new(JSON).description("Any JSON value."));
    let order = Enum::new("OrderByEnum").item("ASC").item("DESC");
    schema = schema.register(order);
    for names in model.names.enums() {
        let values = names.values.iter().map(|(_, name)| name.clone());
        schema = schema.register(values.fold(Enum::new(&names.type_name), Enum::item));
        schema = schema.register(inputs::enum_filter(names));
    }
    for input in inputs::shared().into_iter().chain(inputs::array_filters(model)) {
        schema = schema.register(input);
    }
    for object in outputs::shared() {
        schema = schema.register(object);
    }
    for ty in subscription::shared() {
        schema = schema.register(ty);
    }
    for meta in model.catalog().entities() {
        let entity = Described { model, meta };
        for input in inputs::of(entity) {
            schema = schema.register(input);
        }
        for object in outputs::of(entity).into_iter().chain(subscription::objects_of(entity)) {
            schema = schema.register(object);
        }
        schema = schema.register(inputs::columns_enum(entity));
        query = query.field(outputs::list_field(entity)).field(outputs::by_key_field(entity));
        for field in mutation::fields(entity) {
            mutation = mutation.field(field);
        }
        for field in subscription::fields(entity) {
            subscription = subscription.field(field);
        }
    }
    subscription = subscription.field(subscription::all_changes());
    if let Some(role) = &options.explain_role {
        schema = explain::types().into_iter().fold(schema, |schema, ty| schema.register(ty));
        query = query.field(explain::field(role.clone(), whole.clone()));
    }
    query = additions.queries.into_iter().fold(query, Object::field);
    mutation = additions.mutations.into_iter().fold(mutation, Object::field);
    subscription = additions.subscriptions.into_iter().fold(subscription, Subscription::field);
    schema = additions.types.into_iter().fold(schema, |schema, ty| schema.register(ty));
    schema = schema.data(additions.data);
    schema.register(query).register(mutation).register(subscription).finish()
}

/// An entity with everything that its types are made from.
#[derive(Clone, Copy)]
struct Described<'a> {
    model: &'a Arc<Model>,
    meta: &'a tidewire_outbox::EntityMeta,
}

impl<'a> Described<'a> {
    fn names(self) -> &'a crate::names::EntityNames {
        self.model.names.entity(self.meta.id)
    }

    fn of(self, suffix: &str) -> String {
        self.names().of(suffix)
    }

    /// The columns with their names.
    fn columns(self) -> impl Iterator<Item = (usize, &'a ColumnMeta, &'a str)> {
        let names = self.names();
        self.meta
            .columns
            .iter()
            .zip(&names.columns)
            .enumerate()
            .map(|(index, (meta, name))| (index, meta, name.as_str()))
    }
}

/// The type that a column has in answers.
fn output_type(names: &Names, column: &ColumnMeta) -> TypeRef {
    type_of(&column.kind, column.nullable, |kind| output_name(names, kind))
}

/// The type that a column has in inputs.
fn input_type(names: &Names, column: &ColumnMeta, is_nullable: bool) -> TypeRef {
    type_of(&column.kind, is_nullable, |kind| input_name(names, kind))
}

fn type_of(kind: &Kind, is_nullable: bool, name: impl Fn(&Kind) -> String) -> TypeRef {
    match kind {
        Kind::Array(element) if is_nullable => TypeRef::named_nn_list(name(element)),
        Kind::Array(element) => TypeRef::named_nn_list_nn(name(element)),
        kind => nullable(name(kind), is_nullable),
    }
}

fn output_name(names: &Names, kind: &Kind) -> String {
    match kind {
        Kind::Integer { bits: 64, .. } => BIG_INT.into(),
        kind => input_name(names, kind),
    }
}

/// The name of a kind's type in inputs. Whole numbers are `Int` there whatever their size, so that documents made for Seaography, whose
/// variables say `Int`, stay valid. What JSON numbers do not carry safely may come as text in a variable (see `document::texts_to_integers`).
fn input_name(names: &Names, kind: &Kind) -> String {
    match kind {
        Kind::Boolean => TypeRef::BOOLEAN,
        Kind::Integer { .. } => TypeRef::INT,
        Kind::Float | Kind::Double => TypeRef::FLOAT,
        Kind::Json => JSON,
        Kind::Enum(meta) => return names.enumeration(meta).type_name.clone(),
        _ => TypeRef::STRING,
    }
    .into()
}

fn nullable(name: String, nullable: bool) -> TypeRef {
    if nullable { TypeRef::named(name) } else { TypeRef::named_nn(name) }
}

fn is_integer(value: &ConstValue) -> bool {
    match value {
        ConstValue::Number(number) => number.is_i64() || number.is_u64(),
        ConstValue::String(text) => text.parse::<i128>().is_ok(),
        _ => false,
    }
}

/// An input object of optional fields.
fn input(name: impl Into<String>, fields: impl IntoIterator<Item = (String, TypeRef)>) -> InputObject {
    fields.into_iter().fold(InputObject::new(name), |object, (name, ty)| {
        object.field(async_graphql::dynamic::InputValue::new(name, ty))
    })
}
