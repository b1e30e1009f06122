use async_graphql::parser::types::{Field, OperationType};
use tidewire_outbox::{Aggregate, Catalog, EntityId, Kind};

use super::{
    AggregateColumn, AggregateField, Arguments, ChangeField, EdgeField, EventField, Keyed, List, ListField, Needs,
    Node, NodeField, PageInfoField, PaginationInfoField, Plan, Root, RootField, Selection, Stream, StreamField,
};
use crate::names::Names;

/// Compiles operations for one schema.
pub(crate) struct Compiler<'a> {
    pub(crate) names: &'a Names,
    pub(crate) catalog: &'a Catalog,
    pub(crate) selection: Selection<'a>,
}

impl<'a> Compiler<'a> {
    /// The plan, or `None` where the operation selects something that is not generated: introspection, or a field added by hand.
    pub(crate) fn compile(&self) -> Option<Plan> {
        let fields = self.selection.root();
        match self.selection.document.kind() {
            OperationType::Query => {
                let roots =
                    fields.into_iter().map(|(key, fields)| self.root(key, &fields)).collect::<Option<Vec<_>>>()?;
                Some(Plan::Query(roots))
            }
            OperationType::Subscription => {
                // That there is only one has been checked.
                let (key, fields) = fields.into_iter().next()?;
                Some(Plan::Subscription(Stream { key: quoted(key), field: self.stream(&fields)? }))
            }
            OperationType::Mutation => None,
        }
    }

    fn root(&self, key: &str, fields: &[&'a Field]) -> Option<Root> {
        let name = fields[0].name.node.as_str();
        let field = if name == "__typename" {
            RootField::Typename("\"Query\"")
        } else if let Some(entity) = self.names.by_field(name) {
            RootField::List(self.list(entity, fields)?)
        } else {
            let entity = self.names.by_field(name.strip_suffix("ByPk")?)?;
            RootField::One { node: self.node(entity, fields)?, key: Arguments::of(fields[0]) }
        };
        Some(Root { key: quoted(key), field })
    }

    fn stream(&self, fields: &[&'a Field]) -> Option<StreamField> {
        let name = fields[0].name.node.as_str();
        if let Some(entity) = self.names.by_field(name) {
            return Some(StreamField::Live(self.list(entity, fields)?));
        }
        let arguments = Arguments::of(fields[0]);
        if name == "changes" {
            let fields = self.event(fields, "EntityChanges", |name, fields| self.any_change(name, fields))?;
            return Some(StreamField::AllChanges { arguments, fields });
        }
        if let Some(entity) = name.strip_suffix("Live").and_then(|name| self.names.by_field(name)) {
            return self.patches(entity, fields);
        }
        let entity = self.names.by_field(name.strip_suffix("Changes")?)?;
        let type_name = self.names.entity(entity).of("Changes");
        let fields = self.event(fields, &type_name, |name, fields| self.change(entity, name, fields))?;
        Some(StreamField::Changes { entity, arguments, fields })
    }

    fn list(&self, entity: EntityId, fields: &[&'a Field]) -> Option<List> {
        let names = self.names.entity(entity);
        let mut list = List::new(entity, Arguments::of(fields[0]));
        for (key, fields) in self.selection.of(fields) {
            let field = match fields[0].name.node.as_str() {
                "__typename" => ListField::Typename(string(&names.of("Connection"))),
                "nodes" => {
                    list.nodes.push(self.node(entity, &fields)?);
                    ListField::Nodes(list.nodes.len() - 1)
                }
                "edges" => ListField::Edges(self.edges(&mut list, &fields)?),
                _ => self.beside_rows(&mut list, &fields)?,
            };
            list.fields.push((quoted(key), field));
        }
        Some(list)
    }

    /// A field of a list that is not made of its rows.
    pub(super) fn beside_rows(&self, list: &mut List, fields: &[&'a Field]) -> Option<ListField> {
        Some(match fields[0].name.node.as_str() {
            "pageInfo" => ListField::PageInfo(self.page_info(&mut list.needs, fields)?),
            "paginationInfo" => {
                list.needs.total = true;
                ListField::PaginationInfo(self.pagination_info(fields)?)
            }
            "aggregate" => ListField::Aggregate(self.aggregate(list, fields)?),
            _ => return None,
        })
    }

    fn edges(&self, list: &mut List, fields: &[&'a Field]) -> Option<Vec<Keyed<EdgeField>>> {
        let mut edges = Vec::new();
        for (key, fields) in self.selection.of(fields) {
            let field = match fields[0].name.node.as_str() {
                "__typename" => EdgeField::Typename(string(&self.names.entity(list.entity).of("Edge"))),
                "cursor" => {
                    list.needs.keys = true;
                    EdgeField::Cursor
                }
                "node" => {
                    list.nodes.push(self.node(list.entity, &fields)?);
                    EdgeField::Node(list.nodes.len() - 1)
                }
                _ => return None,
            };
            edges.push((quoted(key), field));
        }
        Some(edges)
    }

    fn page_info(&self, needs: &mut Needs, fields: &[&'a Field]) -> Option<Vec<Keyed<PageInfoField>>> {
        self.each(fields, |name| {
            Some(match name {
                "__typename" => PageInfoField::Typename,
                "startCursor" => {
                    needs.keys = true;
                    PageInfoField::StartCursor
                }
                "endCursor" => {
                    needs.keys = true;
                    PageInfoField::EndCursor
                }
                "hasNextPage" => {
                    needs.more = true;
                    PageInfoField::HasNextPage
                }
                "hasPreviousPage" => {
                    needs.previous = true;
                    PageInfoField::HasPreviousPage
                }
                _ => return None,
            })
        })
    }

    fn pagination_info(&self, fields: &[&'a Field]) -> Option<Vec<Keyed<PaginationInfoField>>> {
        self.each(fields, |name| {
            Some(match name {
                "__typename" => PaginationInfoField::Typename,
                "current" => PaginationInfoField::Current,
                "offset" => PaginationInfoField::Offset,
                "pages" => PaginationInfoField::Pages,
                "total" => PaginationInfoField::Total,
                _ => return None,
            })
        })
    }

    fn aggregate(&self, list: &mut List, fields: &[&'a Field]) -> Option<Vec<Keyed<AggregateField>>> {
        let names = self.names.entity(list.entity);
        let mut answer = Vec::new();
        for (key, fields) in self.selection.of(fields) {
            let (type_name, aggregate): (&str, fn(usize) -> Aggregate) = match fields[0].name.node.as_str() {
                "__typename" => {
                    answer.push((quoted(key), AggregateField::Typename(string(&names.of("Aggregate")))));
                    continue;
                }
                "count" => {
                    list.aggregates.push(Aggregate::Count);
                    answer.push((quoted(key), AggregateField::Count(list.aggregates.len() - 1)));
                    continue;
                }
                "min" => ("Extremes", Aggregate::Min),
                "max" => ("Extremes", Aggregate::Max),
                "sum" => ("Sums", Aggregate::Sum),
                "avg" => ("Means", Aggregate::Avg),
                _ => return None,
            };
            let mut columns = Vec::new();
            for (key, fields) in self.selection.of(&fields) {
                let name = fields[0].name.node.as_str();
                let column = if name == "__typename" {
                    AggregateColumn::Typename(string(&names.of(type_name)))
                } else {
                    list.aggregates.push(aggregate(names.column(name)?));
                    AggregateColumn::Value(list.aggregates.len() - 1)
                };
                columns.push((quoted(key), column));
            }
            answer.push((quoted(key), AggregateField::Columns(columns)));
        }
        Some(answer)
    }

    pub(super) fn node(&self, entity: EntityId, fields: &[&'a Field]) -> Option<Node> {
        let names = self.names.entity(entity);
        let meta = self.catalog.entity(entity);
        let mut answer = Vec::new();
        for (key, fields) in self.selection.of(fields) {
            let name = fields[0].name.node.as_str();
            let field = if name == "__typename" {
                NodeField::Typename(string(&names.object))
            } else if let Some(column) = names.column(name) {
                NodeField::Column(column)
            } else {
                let relation = names.relations.iter().position(|relation| relation == name)?;
                let target = meta.relations[relation].target;
                if meta.relations[relation].many {
                    NodeField::Many(relation, self.list(target, &fields)?)
                } else {
                    NodeField::One(relation, self.node(target, &fields)?)
                }
            };
            answer.push((quoted(key), field));
        }
        Some(Node { entity, fields: answer })
    }

    fn event(
        &self,
        fields: &[&'a Field],
        type_name: &str,
        change: impl Fn(&str, &[&'a Field]) -> Option<ChangeField>,
    ) -> Option<Vec<Keyed<EventField>>> {
        let mut answer = Vec::new();
        for (key, fields) in self.selection.of(fields) {
            let field = match fields[0].name.node.as_str() {
                "__typename" => EventField::Typename(string(type_name)),
                "cursor" => EventField::Cursor,
                "sequence" => EventField::Sequence,
                "upToDate" => EventField::UpToDate,
                "resync" => EventField::Resync,
                "changes" => {
                    let mut changes = Vec::new();
                    for (key, fields) in self.selection.of(&fields) {
                        changes.push((quoted(key), change(fields[0].name.node.as_str(), &fields)?));
                    }
                    EventField::Changes(changes)
                }
                _ => return None,
            };
            answer.push((quoted(key), field));
        }
        Some(answer)
    }

    fn change(&self, entity: EntityId, name: &str, fields: &[&'a Field]) -> Option<ChangeField> {
        let names = self.names.entity(entity);
        Some(match name {
            "__typename" => ChangeField::Typename(string(&names.of("Change"))),
            "event" => ChangeField::Event,
            "key" => ChangeField::Key(self.key(entity, fields)?),
            "node" => ChangeField::Node(self.node(entity, fields)?),
            "previous" => {
                let mut previous = self.node(entity, fields)?;
                for (_, field) in &mut previous.fields {
                    if let NodeField::Typename(name) = field {
                        *name = string(&names.of("Basic"));
                    }
                }
                ChangeField::Previous(previous)
            }
            other => self.common_change(other)?,
        })
    }

    fn any_change(&self, name: &str, _fields: &[&'a Field]) -> Option<ChangeField> {
        Some(match name {
            "__typename" => ChangeField::Typename("\"EntityChange\"".into()),
            "entity" => ChangeField::Entity,
            "key" => ChangeField::KeyJson,
            "row" => ChangeField::RowJson,
            "previous" => ChangeField::PreviousJson,
            other => self.common_change(other)?,
        })
    }

    fn common_change(&self, name: &str) -> Option<ChangeField> {
        Some(match name {
            "operation" => ChangeField::Operation,
            "changedFields" => ChangeField::ChangedFields,
            "actor" => ChangeField::Actor,
            "origin" => ChangeField::Origin,
            "mutationId" => ChangeField::MutationId,
            "at" => ChangeField::At,
            _ => return None,
        })
    }

    pub(super) fn key(&self, entity: EntityId, fields: &[&'a Field]) -> Option<Vec<Keyed<NodeField>>> {
        let names = self.names.entity(entity);
        self.each(fields, |name| {
            Some(match name {
                "__typename" => NodeField::Typename(string(&names.of("Key"))),
                column => NodeField::Column(names.column(column)?),
            })
        })
    }

    fn each<T>(&self, fields: &[&'a Field], mut make: impl FnMut(&str) -> Option<T>) -> Option<Vec<Keyed<T>>> {
        self.selection
            .of(fields)
            .into_iter()
            .map(|(key, fields)| Some((quoted(key), make(fields[0].name.node.as_str())?)))
            .collect()
    }
}

/// Whether the schema has `min` and `max` of a column.
pub(crate) fn has_extremes(kind: &Kind) -> bool {
    kind.is_ordered() && !matches!(kind, Kind::Boolean | Kind::Uuid | Kind::Enum(_))
}

pub(super) fn string(text: &str) -> String {
    format!("\"{text}\"")
}

pub(super) fn quoted(key: &str) -> String {
    format!("\"{key}\":")
}
