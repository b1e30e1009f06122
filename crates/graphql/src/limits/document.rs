use std::collections::HashMap;

use async_graphql::{
    Name, Positioned,
    parser::types::{Directive, ExecutableDocument, FragmentDefinition, Selection, SelectionSet},
};

use super::at_most;
use crate::{
    error::{ApiError, Code},
    options::Options,
};

/// Refuses a document that is larger than allowed once its fragments are spread: a few fragments that spread each other twice select
/// millions of fields. Each fragment is measured once, and after those that it spreads, without recursion from one to the next.
pub(crate) fn check_document(document: &ExecutableDocument, options: &Options) -> Result<(), ApiError> {
    let definitions = document.operations.iter().len() + document.fragments.len();
    at_most("operations and fragments", definitions, "max_definitions", options.max_definitions)?;
    let fragments = measure_fragments(&document.fragments)?;
    for fragment in fragments.values() {
        fragment.check(options)?;
    }
    for (_, operation) in document.operations.iter() {
        let operation = &operation.node;
        let mut size = Size::of(&operation.selection_set.node, &fragments).with(&operation.directives);
        for variable in &operation.variable_definitions {
            size = size.with(&variable.node.directives);
        }
        size.check(options)?;
        at_most("fields at its root", size.at_root, "max_root_fields", options.max_root_fields)?;
    }
    Ok(())
}

/// What a selection set comes to, fragments spread.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    fields: usize,
    at_root: usize,
    aliases: usize,
    directives: usize,
    /// The most that one place has.
    directives_of_one: usize,
    /// How deeply fields nest.
    depth: usize,
    /// How deeply selection sets nest, those of fragments among them.
    nesting: usize,
}

impl Size {
    fn of(set: &SelectionSet, fragments: &HashMap<&str, Self>) -> Self {
        let inside = set.items.iter().fold(Self::default(), |size, selection| {
            size.and(match &selection.node {
                Selection::Field(field) => {
                    let inside = Self::of(&field.node.selection_set.node, fragments);
                    let field = Self {
                        fields: inside.fields.saturating_add(1),
                        at_root: 1,
                        aliases: inside.aliases.saturating_add(usize::from(field.node.alias.is_some())),
                        depth: inside.depth.saturating_add(1),
                        ..inside
                    };
                    field.with(selection.node.directives())
                }
                Selection::InlineFragment(fragment) => {
                    Self::of(&fragment.node.selection_set.node, fragments).with(selection.node.directives())
                }
                Selection::FragmentSpread(spread) => {
                    // Validation refuses one that is not there.
                    let fragment = fragments.get(spread.node.fragment_name.node.as_str());
                    fragment.copied().unwrap_or_default().with(selection.node.directives())
                }
            })
        });
        Self { nesting: inside.nesting.saturating_add(usize::from(!set.items.is_empty())), ..inside }
    }

    fn and(self, other: Self) -> Self {
        Self {
            fields: self.fields.saturating_add(other.fields),
            at_root: self.at_root.saturating_add(other.at_root),
            aliases: self.aliases.saturating_add(other.aliases),
            directives: self.directives.saturating_add(other.directives),
            directives_of_one: self.directives_of_one.max(other.directives_of_one),
            depth: self.depth.max(other.depth),
            nesting: self.nesting.max(other.nesting),
        }
    }

    fn with(self, directives: &[Positioned<Directive>]) -> Self {
        Self {
            directives: self.directives.saturating_add(directives.len()),
            directives_of_one: self.directives_of_one.max(directives.len()),
            ..self
        }
    }

    fn check(&self, options: &Options) -> Result<(), ApiError> {
        at_most("levels of fields", self.depth, "max_depth", options.max_depth)?;
        at_most("levels of selection sets", self.nesting, "max_nesting", options.max_nesting)?;
        at_most("fields", self.fields, "max_fields", options.max_fields)?;
        at_most("aliases", self.aliases, "max_aliases", options.max_aliases)?;
        at_most("directives in one place", self.directives_of_one, "max_directives", options.max_directives)?;
        at_most("directives", self.directives, "max_operation_directives", options.max_operation_directives)
    }
}

type Fragments = HashMap<Name, Positioned<FragmentDefinition>>;

/// How large each fragment is. Refuses those that spread themselves.
fn measure_fragments(fragments: &Fragments) -> Result<HashMap<&str, Size>, ApiError> {
    let mut sizes: HashMap<&str, Size> = HashMap::new();
    // Being looked at, each with the fragments that it spreads and that have yet to be looked at.
    let mut open: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut entered: HashMap<&str, &SelectionSet> = HashMap::new();
    for start in fragments.keys() {
        let mut next = Some(start.as_str());
        loop {
            if let Some(name) = next.take()
                && let Some((name, fragment)) = fragments.get_key_value(name)
                && !sizes.contains_key(name.as_str())
            {
                let set = &fragment.node.selection_set.node;
                if entered.insert(name, set).is_some() {
                    let problem = "a fragment spreads itself, directly or by way of others";
                    return Err(ApiError::new(Code::ValidationFailed, problem));
                }
                let mut spread = Vec::new();
                spreads(set, &mut spread);
                open.push((name, spread));
            }
            let Some((name, spread)) = open.last_mut() else { break };
            next = spread.pop();
            if next.is_none() {
                let size = entered.get(name).map(|set| Size::of(set, &sizes)).unwrap_or_default();
                sizes.insert(name, size.with(&fragments[*name].node.directives));
                open.pop();
            }
        }
    }
    Ok(sizes)
}

/// The fragments that a selection set names itself. Its own brackets nest no deeper than the text was allowed to.
fn spreads<'a>(set: &'a SelectionSet, found: &mut Vec<&'a str>) {
    for selection in &set.items {
        match &selection.node {
            Selection::Field(field) => spreads(&field.node.selection_set.node, found),
            Selection::InlineFragment(fragment) => spreads(&fragment.node.selection_set.node, found),
            Selection::FragmentSpread(spread) => found.push(spread.node.fragment_name.node.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(document: &str, options: &Options) -> Option<ApiError> {
        let document = async_graphql::parser::parse_query(document).expect("GraphQL");
        check_document(&document, options).err()
    }

    #[test]
    fn fields_are_counted_with_their_fragments() {
        let mut bomb = String::from("{ ...f0 }");
        for level in 0..30 {
            bomb.push_str(&format!(" fragment f{level} on Query {{ ...f{} ...f{} }}", level + 1, level + 1));
        }
        bomb.push_str(" fragment f30 on Query { __typename }");
        let error = refusal(&bomb, &Options::default()).expect("2^30 fields");
        assert_eq!(error.code(), Code::LimitExceeded);
        assert!(error.to_string().contains("2000 fields"), "{error}");
    }

    /// Fragments of which each spreads the next; the last one selects this.
    fn chain(length: usize, last: &str) -> String {
        let mut text = String::from("{ ...f1 }");
        for n in 1..length {
            text.push_str(&format!(" fragment f{n} on Query {{ a ...f{} }}", n + 1));
        }
        text + &format!(" fragment f{length} on Query {{ {last} }}")
    }

    #[test]
    fn fragments_that_spread_themselves_are_refused_however_long_the_way() {
        let options = Options { max_definitions: 100_000, ..Options::default() };
        let code = |text: &str| refusal(text, &options).map(|error| error.code());
        assert_eq!(code(&chain(2_000, "...f1")), Some(Code::ValidationFailed));
        assert_eq!(code(&chain(2_000, "a")), Some(Code::LimitExceeded));
        assert_eq!(code(&chain(50, "a")), None);
        // A fragment that is spread by several is none that spreads itself.
        let shared = "{ ...a ...b } fragment a on Q { ...c } fragment b on Q { ...c } fragment c on Q { x }";
        assert_eq!(code(shared), None);
    }
}
