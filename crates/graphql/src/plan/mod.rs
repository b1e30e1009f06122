//! Operations compiled once: what to read, and how to write the answer.
//!
//! What is generated from entities is not resolved field by field. A document's selections become a plan: a tree that says which columns and
//! relations each level needs, from which one statement is made, and in which order to write what comes back. The answer is written straight
//! from the database's JSON to the client's, without values in between.
//!
//! A plan knows only success. Whatever goes wrong while it runs (the database fails, a column holds what GraphQL cannot say) makes the
//! caller run the same document through the ordinary resolvers, which then say what is wrong and where, as the specification has it. So
//! null propagation and error paths exist once.

mod compile;
mod encode;
mod patch;
mod prepare;
mod selection;

use async_graphql::{Name, Value as ConstValue, Variables, indexmap::IndexMap, parser::types::Field};
use async_graphql_value::Value as DocumentValue;
use tidewire_outbox::{Aggregate, EntityId};

pub(crate) use self::{
    compile::{Compiler, has_extremes},
    encode::{Encoder, Failed, aggregate_column, boolean, object, separate},
    patch::{LiveRow, LiveRows, PatchField, UpsertField},
    prepare::{PreparedList, PreparedNode, Preparer},
    selection::{Document, Fields, Selection},
};

/// An operation whose every field is generated.
#[derive(Debug)]
pub(crate) enum Plan {
    Query(Vec<Root>),
    Subscription(Stream),
}

/// A key of the answer with what stands behind it.
pub(crate) type Keyed<T> = (String, T);

/// A field of `Query`.
#[derive(Debug)]
pub(crate) struct Root {
    /// As it stands in JSON: `"film":`.
    pub(crate) key: String,
    pub(crate) field: RootField,
}

#[derive(Debug)]
pub(crate) enum RootField {
    Typename(&'static str),
    /// `film(…)`
    List(List),
    /// `filmByPk(…)`
    One {
        node: Node,
        key: Arguments,
    },
}

/// A connection: a list of rows with what is known of the list.
#[derive(Debug)]
pub(crate) struct List {
    pub(crate) entity: EntityId,
    pub(crate) arguments: Arguments,
    pub(crate) fields: Vec<Keyed<ListField>>,
    /// What the rows carry, for all of the fields together, one after the other.
    pub(crate) nodes: Vec<Node>,
    pub(crate) aggregates: Vec<Aggregate>,
    pub(crate) needs: Needs,
}

impl List {
    /// A list of which nothing is selected yet.
    fn new(entity: EntityId, arguments: Arguments) -> Self {
        let (fields, nodes, aggregates) = (Vec::new(), Vec::new(), Vec::new());
        Self { entity, arguments, fields, nodes, aggregates, needs: Needs::default() }
    }
}

/// What a list must read beside its rows.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Needs {
    /// The keys of the rows, for cursors.
    pub(crate) keys: bool,
    /// Whether there are rows after the page.
    pub(crate) more: bool,
    /// Whether there are rows before the page.
    pub(crate) previous: bool,
    /// How many rows there are in all.
    pub(crate) total: bool,
}

#[derive(Debug)]
pub(crate) enum ListField {
    Typename(String),
    /// `nodes`; the number is the node's place in [`List::nodes`].
    Nodes(usize),
    Edges(Vec<Keyed<EdgeField>>),
    PageInfo(Vec<Keyed<PageInfoField>>),
    PaginationInfo(Vec<Keyed<PaginationInfoField>>),
    Aggregate(Vec<Keyed<AggregateField>>),
}

#[derive(Debug)]
pub(crate) enum EdgeField {
    Typename(String),
    Cursor,
    Node(usize),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum PageInfoField {
    Typename,
    StartCursor,
    EndCursor,
    HasNextPage,
    HasPreviousPage,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum PaginationInfoField {
    Typename,
    Current,
    Offset,
    Pages,
    Total,
}

/// A field of `FilmAggregate`. Numbers are places in [`List::aggregates`].
#[derive(Debug)]
pub(crate) enum AggregateField {
    Typename(String),
    Count(usize),
    /// `min`, `max`, `sum` and `avg`, each with its columns.
    Columns(Vec<Keyed<AggregateColumn>>),
}

#[derive(Debug)]
pub(crate) enum AggregateColumn {
    Typename(String),
    Value(usize),
}

/// A row as an object.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) entity: EntityId,
    pub(crate) fields: Vec<Keyed<NodeField>>,
}

#[derive(Debug)]
pub(crate) enum NodeField {
    Typename(String),
    Column(usize),
    /// The other end of a to-one relation.
    One(usize, Node),
    /// The other end of a to-many relation.
    Many(usize, List),
}

/// A field of `Subscription`.
#[derive(Debug)]
pub(crate) struct Stream {
    /// As it stands in JSON: `"taskChanges":`.
    pub(crate) key: String,
    pub(crate) field: StreamField,
}

#[derive(Debug)]
pub(crate) enum StreamField {
    /// `taskChanges(…)`
    Changes { entity: EntityId, arguments: Arguments, fields: Vec<Keyed<EventField>> },
    /// `changes(…)`
    AllChanges { arguments: Arguments, fields: Vec<Keyed<EventField>> },
    /// `task(…)`
    Live(List),
    /// `taskLive(…)`. The list's fields are those that a connection has beside its rows.
    Patches { list: List, fields: Vec<Keyed<PatchField>> },
}

/// A field of `TaskChanges` or `EntityChanges`.
#[derive(Debug)]
pub(crate) enum EventField {
    Typename(String),
    Cursor,
    Sequence,
    UpToDate,
    Resync,
    Changes(Vec<Keyed<ChangeField>>),
}

/// A field of `TaskChange` or `EntityChange`.
#[derive(Debug)]
pub(crate) enum ChangeField {
    Typename(String),
    Event,
    Operation,
    /// `key` as an object with its columns.
    Key(Vec<Keyed<NodeField>>),
    Node(Node),
    Previous(Node),
    ChangedFields,
    Actor,
    Origin,
    MutationId,
    At,
    /// `entity`, the name of the entity.
    Entity,
    /// `key` as JSON.
    KeyJson,
    /// `row` as JSON.
    RowJson,
    /// `previous` as JSON.
    PreviousJson,
}

/// The arguments of a field as they stand in the document, with its variables in them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arguments(Vec<(Name, DocumentValue)>);

impl Arguments {
    pub(crate) fn of(field: &Field) -> Self {
        Self(field.arguments.iter().map(|(name, value)| (name.node.clone(), value.node.clone())).collect())
    }

    /// The variable that an argument is, if it is one.
    pub(crate) fn variable(&self, argument: &str) -> Option<&Name> {
        self.0.iter().find_map(|(name, value)| match value {
            DocumentValue::Variable(variable) if name.as_str() == argument => Some(variable),
            _ => None,
        })
    }

    /// The arguments with values in place of variables. What a variable that was not given stands for is left out, as if it were not
    /// there: so an optional variable in a filter asks for nothing when it is not given, and not for NULL.
    pub(crate) fn resolve(&self, variables: &Variables) -> IndexMap<Name, ConstValue> {
        self.0.iter().filter_map(|(name, value)| Some((name.clone(), resolve(value, variables)?))).collect()
    }
}

fn resolve(value: &DocumentValue, variables: &Variables) -> Option<ConstValue> {
    Some(match value {
        DocumentValue::Variable(name) => return variables.get(name).cloned(),
        DocumentValue::Null => ConstValue::Null,
        DocumentValue::Number(number) => ConstValue::Number(number.clone()),
        DocumentValue::String(text) => ConstValue::String(text.clone()),
        DocumentValue::Boolean(value) => ConstValue::Boolean(*value),
        DocumentValue::Binary(bytes) => ConstValue::Binary(bytes.clone()),
        DocumentValue::Enum(name) => ConstValue::Enum(name.clone()),
        DocumentValue::List(items) => {
            ConstValue::List(items.iter().map(|item| resolve(item, variables).unwrap_or_default()).collect())
        }
        DocumentValue::Object(fields) => ConstValue::Object(
            fields.iter().filter_map(|(name, value)| Some((name.clone(), resolve(value, variables)?))).collect(),
        ),
    })
}
