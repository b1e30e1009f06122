use async_graphql::{
    Name, Value as ConstValue, Variables,
    parser::types::{Field, OperationType, Selection, SelectionSet, VariableDefinition},
    registry::{MetaField, Registry},
};

use crate::{
    document::Known,
    error::{ApiError, Code},
    options::Options,
};

/// How many rows a list counts as that has no page, where `max_rows` does not say it.
const UNPAGED: u64 = 100;

/// Refuses an operation whose answer could have more fields than allowed. The document is valid, and small enough to be walked with its
/// fragments spread.
pub(crate) fn check_complexity(
    known: &Known,
    registry: &Registry,
    variables: &Variables,
    options: &Options,
) -> Result<(), ApiError> {
    let Some(most) = options.max_complexity else { return Ok(()) };
    let operation = &known.document.operation.node;
    let root = match operation.ty {
        OperationType::Query => Some(registry.query_type.as_str()),
        OperationType::Mutation => registry.mutation_type.as_deref(),
        OperationType::Subscription => registry.subscription_type.as_deref(),
    };
    let counter = Counter { known, registry, variables, unpaged: options.max_rows.unwrap_or(UNPAGED) };
    if counter.of(root, &operation.selection_set.node) <= most {
        return Ok(());
    }
    let problem = format!(
        "the answer may have more than {most} fields (`max_complexity`). Ask for shorter pages, or for fewer lists inside lists"
    );
    Err(ApiError::new(Code::LimitExceeded, problem))
}

struct Counter<'a> {
    known: &'a Known,
    registry: &'a Registry,
    variables: &'a Variables,
    unpaged: u64,
}

impl Counter<'_> {
    /// How many fields the selections of a type come to. A type that is not known (introspection's) has no lists with pages.
    fn of(&self, ty: Option<&str>, set: &SelectionSet) -> u64 {
        set.items.iter().fold(0, |sum: u64, selection| {
            sum.saturating_add(match &selection.node {
                Selection::Field(field) => self.field(ty, &field.node),
                Selection::InlineFragment(fragment) => self.of(ty, &fragment.node.selection_set.node),
                Selection::FragmentSpread(spread) => {
                    let fragment = self.known.parsed.fragments.get(&spread.node.fragment_name.node);
                    fragment.map_or(0, |fragment| self.of(ty, &fragment.node.selection_set.node))
                }
            })
        })
    }

    fn field(&self, ty: Option<&str>, field: &Field) -> u64 {
        let name = field.name.node.as_str();
        let meta = ty.and_then(|ty| self.registry.types.get(ty)?.field_by_name(name));
        let inside = self.of(meta.map(type_name), &field.selection_set.node);
        let rows = if meta.is_some_and(|meta| meta.args.contains_key("pagination")) { self.rows(field) } else { 1 };
        inside.saturating_mul(rows).saturating_add(1)
    }

    /// How many rows a list may have.
    fn rows(&self, field: &Field) -> u64 {
        let value = field.get_argument("pagination").and_then(|value| {
            // A variable that is missing or does not fit is refused later.
            value
                .node
                .clone()
                .into_const_with(|name| Ok::<_, ()>(self.variable(&name).unwrap_or(ConstValue::Null)))
                .ok()
        });
        value.as_ref().and_then(limit).unwrap_or(self.unpaged)
    }

    fn variable(&self, name: &Name) -> Option<ConstValue> {
        if let Some(value) = self.variables.get(name) {
            return Some(value.clone());
        }
        let definitions = &self.known.document.operation.node.variable_definitions;
        let VariableDefinition { default_value, .. } =
            &definitions.iter().find(|definition| definition.node.name.node == *name)?.node;
        default_value.as_ref().map(|value| value.node.clone())
    }
}

/// The `limit` of whichever kind of page it is.
fn limit(pagination: &ConstValue) -> Option<u64> {
    let ConstValue::Object(kinds) = pagination else { return None };
    kinds.values().find_map(|page| match page {
        ConstValue::Object(page) => match page.get("limit") {
            Some(ConstValue::Number(limit)) => limit.as_u64(),
            _ => None,
        },
        _ => None,
    })
}

/// `[Task!]!` is of `Task`.
fn type_name(field: &MetaField) -> &str {
    field.ty.trim_matches(['[', ']', '!'])
}
