//! Documents before they are run: limits, parsing, validation, and the memory of what was compiled.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use async_graphql::{
    Name, Positioned, ServerError, Value as ConstValue, Variables,
    dynamic::Schema,
    parser::types::{
        BaseType, ExecutableDocument, FragmentDefinition, Selection as Selected, SelectionSet, Type, VariableDefinition,
    },
    registry::{MetaType, Registry},
};

use crate::{
    error::{ApiError, Code},
    model::Model,
    options::Options,
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

/// Refuses a document that is too long or nests too deeply, before anything recursive looks at it.
pub(crate) fn check_text(query: &str, options: &Options) -> Result<(), ApiError> {
    if query.len() > options.max_document_bytes {
        return Err(ApiError::new(
            Code::LimitExceeded,
            format!("the document is longer than {} bytes", options.max_document_bytes),
        ));
    }
    if nesting(query) > options.max_nesting {
        return Err(ApiError::new(
            Code::LimitExceeded,
            format!("the document's brackets nest deeper than {} levels", options.max_nesting),
        ));
    }
    Ok(())
}

/// How deeply brackets nest, outside strings and comments.
fn nesting(query: &str) -> usize {
    let bytes = query.as_bytes();
    let (mut depth, mut deepest, mut at) = (0_usize, 0, 0);
    while let Some(byte) = bytes.get(at) {
        at += match byte {
            b'{' | b'[' | b'(' => {
                depth += 1;
                deepest = deepest.max(depth);
                1
            }
            b'}' | b']' | b')' => {
                depth = depth.saturating_sub(1);
                1
            }
            b'#' => bytes[at..].iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(bytes.len() - at),
            b'"' => string_length(&bytes[at..]),
            _ => 1,
        };
    }
    deepest
}

fn string_length(bytes: &[u8]) -> usize {
    let (quote, mut at): (&[u8], usize) = if bytes.starts_with(b"\"\"\"") { (b"\"\"\"", 3) } else { (b"\"", 1) };
    while at < bytes.len() {
        if bytes[at..].starts_with(quote) {
            return at + quote.len();
        }
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    bytes.len()
}

/// Refuses a document that selects more fields than allowed once its fragments are spread. A few fragments that spread each other twice
/// select millions.
pub(crate) fn check_fields(document: &ExecutableDocument, max_fields: usize) -> Result<(), ApiError> {
    let mut counter = Counter { fragments: &document.fragments, counts: HashMap::new() };
    for (_, operation) in document.operations.iter() {
        if counter.count(&operation.node.selection_set.node) > max_fields {
            return Err(ApiError::new(
                Code::LimitExceeded,
                format!("the operation selects more than {max_fields} fields"),
            ));
        }
    }
    Ok(())
}

struct Counter<'a> {
    fragments: &'a HashMap<Name, Positioned<FragmentDefinition>>,
    counts: HashMap<&'a str, usize>,
}

impl<'a> Counter<'a> {
    fn count(&mut self, set: &'a SelectionSet) -> usize {
        set.items.iter().fold(0, |count: usize, selection| {
            count.saturating_add(match &selection.node {
                Selected::Field(field) => self.count(&field.node.selection_set.node).saturating_add(1),
                Selected::InlineFragment(fragment) => self.count(&fragment.node.selection_set.node),
                Selected::FragmentSpread(spread) => self.count_fragment(spread.node.fragment_name.node.as_str()),
            })
        })
    }

    fn count_fragment(&mut self, name: &'a str) -> usize {
        if let Some(count) = self.counts.get(name) {
            return *count;
        }
        // A fragment that spreads itself counts nothing here; validation refuses it.
        self.counts.insert(name, 0);
        let count = self.fragments.get(name).map_or(0, |fragment| self.count(&fragment.node.selection_set.node));
        self.counts.insert(name, count);
        count
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
        let code = if let Some(error) = error.source::<ApiError>() {
            error.code()
        } else if error.message == "Query is nested too deep."
            || error.message.starts_with("The recursion depth")
            || error.message.starts_with("The number of directives")
        {
            Code::LimitExceeded
        } else {
            otherwise
        };
        let extensions = error.extensions.get_or_insert_default();
        if extensions.get("code").is_none() {
            extensions.set("code", code.as_str());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_looks_past_strings_and_comments() {
        assert_eq!(nesting("{ a(b: [{c: 1}]) { d } }"), 4);
        assert_eq!(nesting("{ a(b: \"{{{{\\\"{{\") # {{{{\n { c } }"), 2);
        assert_eq!(nesting("{ a(b: \"\"\"{{ \" {{ \\\"\"\" {\"\"\") }"), 2);
        assert_eq!(nesting(&"{".repeat(10_000)), 10_000);
        assert_eq!(nesting("\"open {{{"), 0);
    }

    #[test]
    fn fields_are_counted_with_their_fragments() {
        let mut bomb = String::from("{ ...f0 }");
        for level in 0..30 {
            bomb.push_str(&format!(" fragment f{level} on Query {{ ...f{} ...f{} }}", level + 1, level + 1));
        }
        bomb.push_str(" fragment f30 on Query { __typename }");
        let document = async_graphql::parser::parse_query(&bomb).expect("GraphQL");
        assert_eq!(check_fields(&document, 2_000).expect_err("2^30 fields").code(), Code::LimitExceeded);
    }
}
