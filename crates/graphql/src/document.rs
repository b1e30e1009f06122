//! Documents before they are run: variables, and the memory of what was found valid and compiled.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use async_graphql::{
    Name, ServerError, Value as ConstValue, Variables,
    dynamic::Schema,
    parser::types::{BaseType, ExecutableDocument, Type, VariableDefinition},
    registry::{MetaType, Registry},
};

use crate::{
    error::{ApiError, Code},
    model::Model,
    plan::{Compiler, Document, Plan, Selection},
};

/// A document that was found valid, with its plans.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) document: Document,
    /// For running it without a plan.
    pub(crate) parsed: ExecutableDocument,
    plans: Mutex<HashMap<Vec<bool>, Option<Arc<Plan>>>>,
}

impl Known {
    pub(crate) fn new(parsed: ExecutableDocument, operation_name: Option<&str>) -> Option<Self> {
        let document = Document::new(parsed.clone(), operation_name)?;
        Some(Self { document, parsed, plans: Mutex::default() })
    }

    /// The plan for these variables; `None` where there can be none.
    pub(crate) fn plan(&self, model: &Model, variables: &Variables) -> Option<Arc<Plan>> {
        /// Each set of conditions is a plan; a client that sends more sets than this gets new plans each time.
        const MAX_PLANS: usize = 64;
        let conditions = self.document.conditions(variables);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&conditions) {
            return plan.clone();
        }
        let selection = Selection { document: &self.document, variables };
        let compiler = Compiler { names: &model.names, catalog: model.catalog(), selection };
        let plan = compiler.compile().map(Arc::new);
        if plans.len() < MAX_PLANS {
            plans.insert(conditions, plan.clone());
        }
        plan
    }

    /// The request's variables with defaults, held against their types; `None` where one does not fit, or is missing.
    pub(crate) fn variables(&self, schema: &Schema, given: &Variables) -> Option<Variables> {
        let mut variables = Variables::default();
        for definition in &self.document.operation.node.variable_definitions {
            let VariableDefinition { name, var_type, default_value, .. } = &definition.node;
            let value = given.get(&name.node).or_else(|| default_value.as_ref().map(|value| &value.node));
            match value {
                Some(value) => {
                    if !fits(schema.registry(), &var_type.node, value) {
                        return None;
                    }
                    variables.insert(name.node.clone(), value.clone());
                }
                None if !var_type.node.nullable => return None,
                None => {}
            }
        }
        Some(variables)
    }
}

/// Turns texts of whole numbers into numbers where a variable's type says `Int`: how a client sends back a 64-bit integer that it was given as
/// text.
pub(crate) fn texts_to_integers(known: &Known, schema: &Schema, variables: &mut Variables) {
    for definition in &known.document.operation.node.variable_definitions {
        let VariableDefinition { name, var_type, .. } = &definition.node;
        if let Some(value) = variables.get_mut(&name.node) {
            to_integers(schema.registry(), &var_type.node, value);
        }
    }
}

fn to_integers(registry: &Registry, ty: &Type, value: &mut ConstValue) {
    match (&ty.base, value) {
        (BaseType::List(item), ConstValue::List(items)) => {
            items.iter_mut().for_each(|value| to_integers(registry, item, value));
        }
        (BaseType::List(item), value) => to_integers(registry, item, value),
        (BaseType::Named(name), value) if name.as_str() == "Int" => {
            if let ConstValue::String(text) = value
                && let Ok(number) = text.parse::<i64>()
            {
                *value = ConstValue::from(number);
            }
        }
        (BaseType::Named(name), ConstValue::Object(object)) => {
            if let Some(MetaType::InputObject { input_fields, .. }) = registry.types.get(name.as_str()) {
                for (name, value) in object {
                    if let Some(ty) = input_fields.get(name.as_str()).and_then(|field| Type::new(&field.ty)) {
                        to_integers(registry, &ty, value);
                    }
                }
            }
        }
        _ => {}
    }
}

/// Whether a value fits a declared type. Only says yes or no: who needs to know why asks async-graphql's validation.
fn fits(registry: &Registry, ty: &Type, value: &ConstValue) -> bool {
    match (&ty.base, value) {
        (_, ConstValue::Null) => ty.nullable,
        (BaseType::List(item), ConstValue::List(items)) => items.iter().all(|value| fits(registry, item, value)),
        (BaseType::List(item), value) => fits(registry, item, value),
        (BaseType::Named(name), value) => fits_named(registry, name, value),
    }
}

fn fits_named(registry: &Registry, name: &Name, value: &ConstValue) -> bool {
    match registry.types.get(name.as_str()) {
        Some(MetaType::Scalar { is_valid, .. }) => is_valid.as_ref().is_none_or(|is_valid| is_valid(value)),
        Some(MetaType::Enum { enum_values, .. }) => match value {
            ConstValue::Enum(name) => enum_values.contains_key(name.as_str()),
            ConstValue::String(name) => enum_values.contains_key(name.as_str()),
            _ => false,
        },
        Some(MetaType::InputObject { input_fields, oneof, .. }) => {
            let ConstValue::Object(object) = value else { return false };
            let known = object.iter().all(|(name, value)| {
                let Some(field) = input_fields.get(name.as_str()) else { return false };
                Type::new(&field.ty).is_some_and(|ty| fits(registry, &ty, value))
            });
            let complete = input_fields.values().all(|field| {
                !field.ty.ends_with('!') || field.default_value.is_some() || object.contains_key(field.name.as_str())
            });
            let one = !oneof || (object.len() == 1 && object.values().all(|value| *value != ConstValue::Null));
            known && complete && one
        }
        _ => false,
    }
}

/// The documents that were found valid, by their text.
#[derive(Debug)]
pub(crate) struct Documents {
    capacity: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    known: HashMap<Key, Arc<Known>>,
    /// Oldest first.
    order: VecDeque<Key>,
    /// The length of all texts together.
    bytes: usize,
}

/// How many bytes of documents are kept. What is made of a document is some ten times as large as its text.
const MAX_BYTES: usize = 4 << 20;

type Key = (Arc<str>, Option<Arc<str>>);

impl Documents {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), inner: Mutex::default() }
    }

    pub(crate) fn get(&self, query: &str, operation_name: Option<&str>) -> Option<Arc<Known>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.known.get(&(Arc::from(query), operation_name.map(Arc::from))).cloned()
    }

    pub(crate) fn insert(&self, query: &str, operation_name: Option<&str>, known: Arc<Known>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let key: Key = (query.into(), operation_name.map(Into::into));
        if inner.known.insert(key.clone(), known).is_none() {
            inner.bytes += query.len();
            inner.order.push_back(key);
        }
        while inner.order.len() > self.capacity || inner.bytes > MAX_BYTES {
            let Some(oldest) = inner.order.pop_front() else { break };
            inner.bytes -= oldest.0.len();
            inner.known.remove(&oldest);
        }
    }
}

/// Gives each error a code.
pub(crate) fn with_codes(errors: &mut [ServerError], otherwise: Code) {
    for error in errors {
        let code = error.source::<ApiError>().map_or(otherwise, ApiError::code);
        let extensions = error.extensions.get_or_insert_default();
        if extensions.get("code").is_none() {
            extensions.set("code", code.as_str());
        }
    }
}
