use std::collections::{BTreeSet, HashMap};

use async_graphql::{
    Name, Positioned, Variables,
    indexmap::IndexMap,
    parser::types::{
        Directive, DocumentOperations, ExecutableDocument, Field, FragmentDefinition, OperationDefinition,
        OperationType, Selection as Selected, SelectionSet,
    },
};
use async_graphql_value::{ConstValue, Value as DocumentValue};

/// One operation of a parsed and validated document.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) operation: Positioned<OperationDefinition>,
    fragments: HashMap<Name, Positioned<FragmentDefinition>>,
    /// The variables that `@skip` and `@include` ask for: a plan holds for one set of their values.
    conditions: Vec<Name>,
}

impl Document {
    /// Picks the operation to run; `None` where the name fits none or more than one.
    pub(crate) fn new(document: ExecutableDocument, operation_name: Option<&str>) -> Option<Self> {
        let operation = match (document.operations, operation_name) {
            (DocumentOperations::Single(operation), None) => operation,
            (DocumentOperations::Multiple(mut operations), Some(name)) => operations.remove(name)?,
            (DocumentOperations::Multiple(operations), None) if operations.len() == 1 => {
                operations.into_values().next()?
            }
            _ => return None,
        };
        let mut found = BTreeSet::new();
        find_conditions(&operation.node.selection_set.node, &mut found);
        for fragment in document.fragments.values() {
            find_conditions(&fragment.node.selection_set.node, &mut found);
        }
        Some(Self { operation, fragments: document.fragments, conditions: found.into_iter().collect() })
    }

    pub(crate) fn kind(&self) -> OperationType {
        self.operation.node.ty
    }

    /// The values of the variables that decide which fields there are.
    pub(crate) fn conditions(&self, variables: &Variables) -> Vec<bool> {
        self.conditions.iter().map(|name| variables.get(name) == Some(&ConstValue::Boolean(true))).collect()
    }
}

fn find_conditions(set: &SelectionSet, found: &mut BTreeSet<Name>) {
    for selection in &set.items {
        for directive in selection.node.directives() {
            if let Some(DocumentValue::Variable(name)) = condition(directive).map(|(_, value)| value) {
                found.insert(name.clone());
            }
        }
        match &selection.node {
            Selected::Field(field) => find_conditions(&field.node.selection_set.node, found),
            Selected::InlineFragment(fragment) => find_conditions(&fragment.node.selection_set.node, found),
            Selected::FragmentSpread(_) => {}
        }
    }
}

/// Whether a directive is `@include` (else `@skip`), with its `if`.
fn condition(directive: &Positioned<Directive>) -> Option<(bool, &DocumentValue)> {
    let include = match directive.node.name.node.as_str() {
        "include" => true,
        "skip" => false,
        _ => return None,
    };
    Some((include, &directive.node.get_argument("if")?.node))
}

/// What an operation selects, for one set of variables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection<'a> {
    pub(crate) document: &'a Document,
    pub(crate) variables: &'a Variables,
}

/// Fields by the key that they have in the answer. Several fields with one key are one field with all their selections.
pub(crate) type Fields<'a> = IndexMap<&'a str, Vec<&'a Field>>;

impl<'a> Selection<'a> {
    /// The fields of the operation itself.
    pub(crate) fn root(&self) -> Fields<'a> {
        self.collect([&self.document.operation.node.selection_set.node])
    }

    /// What the fields, which have one key, select together.
    pub(crate) fn of(&self, fields: &[&'a Field]) -> Fields<'a> {
        self.collect(fields.iter().map(|field| &field.selection_set.node))
    }

    /// The specification's CollectFields. All types that have fields are objects, so after validation every fragment applies.
    fn collect(&self, sets: impl IntoIterator<Item = &'a SelectionSet>) -> Fields<'a> {
        let mut fields = Fields::new();
        let mut spread = BTreeSet::new();
        for set in sets {
            self.collect_into(set, &mut fields, &mut spread);
        }
        fields
    }

    fn collect_into(&self, set: &'a SelectionSet, fields: &mut Fields<'a>, spread: &mut BTreeSet<&'a str>) {
        for selection in &set.items {
            if !self.is_included(selection.node.directives()) {
                continue;
            }
            match &selection.node {
                Selected::Field(field) => {
                    fields.entry(field.node.response_key().node.as_str()).or_default().push(&field.node);
                }
                Selected::InlineFragment(fragment) => {
                    self.collect_into(&fragment.node.selection_set.node, fields, spread);
                }
                Selected::FragmentSpread(name) => {
                    let name = name.node.fragment_name.node.as_str();
                    if let Some(fragment) = self.document.fragments.get(name)
                        && spread.insert(name)
                    {
                        self.collect_into(&fragment.node.selection_set.node, fields, spread);
                    }
                }
            }
        }
    }

    fn is_included(&self, directives: &[Positioned<Directive>]) -> bool {
        directives.iter().filter_map(condition).all(|(include, value)| {
            let holds = match value {
                DocumentValue::Boolean(value) => *value,
                DocumentValue::Variable(name) => self.variables.get(name) == Some(&ConstValue::Boolean(true)),
                _ => false,
            };
            holds == include
        })
    }
}
