use async_graphql::{Name, Value as ConstValue, Variables, indexmap::IndexMap};
use tidewire_outbox::{Aggregate, Catalog, EntityId, Filter, Item, Page, Select, filter::Comparison};

use super::{Arguments, List, Node, NodeField, Root, RootField};
use crate::{
    error::ApiError,
    input::{Pagination, Reader, pagination},
    names::Names,
    policy::{Access, Usage},
};

/// Turns plans and variables into what to read.
#[derive(Clone, Copy)]
pub(crate) struct Preparer<'a> {
    pub(crate) names: &'a Names,
    pub(crate) catalog: &'a Catalog,
    pub(crate) variables: &'a Variables,
    /// The largest page.
    pub(crate) max_rows: Option<u64>,
    /// What the viewer may read.
    pub(crate) access: &'a Access,
}

/// What a list's arguments said, for the writing of the answer, and the same for the lists inside its rows.
#[derive(Debug)]
pub(crate) struct PreparedList {
    pub(crate) pagination: Pagination,
    /// One for each of the list's nodes.
    pub(crate) nodes: Vec<PreparedNode>,
}

/// For each relation field of a node, in order.
#[derive(Debug, Default)]
pub(crate) struct PreparedNode {
    pub(crate) relations: Vec<PreparedRelation>,
}

#[derive(Debug)]
pub(crate) enum PreparedRelation {
    One(PreparedNode),
    Many(PreparedList),
}

impl Preparer<'_> {
    /// What to read for a field of `Query`; `None` where nothing is.
    pub(crate) fn root(&self, root: &Root) -> Result<Option<(Select, PreparedList)>, ApiError> {
        match &root.field {
            RootField::Typename(_) => Ok(None),
            RootField::List(list) => self.list(list).map(Some),
            RootField::One { node, key } => {
                let mut select = self.access.select(node.entity, self.names)?;
                select.filter = self.key_filter(node.entity, key)?.and(select.filter);
                select.page = Page::Window { offset: 0, limit: 1 };
                let prepared = self.node(node, &mut select.items)?;
                // Whether there is a row is always asked.
                if select.items.is_empty() {
                    select.items.push(Item::Key);
                }
                Ok(Some((select, PreparedList { pagination: Pagination::None, nodes: vec![prepared] })))
            }
        }
    }

    pub(crate) fn list(&self, list: &List) -> Result<(Select, PreparedList), ApiError> {
        let mut select = self.access.select(list.entity, self.names)?;
        let pagination = self.arguments(list.entity, &list.arguments.resolve(self.variables), &mut select)?;
        select.page = pagination.page(list.needs.more);
        select.total = list.needs.total;
        select.previous = list.needs.previous;
        select.aggregates.clone_from(&list.aggregates);
        select.aggregates.iter().try_for_each(|&aggregate| self.check_aggregate(list.entity, aggregate))?;
        let nodes = list.nodes.iter().map(|node| self.node(node, &mut select.items)).collect::<Result<_, _>>()?;
        // The rows are also needed where nothing but their number is.
        if list.needs.keys || (select.items.is_empty() && (list.needs.more || !list.nodes.is_empty())) {
            select.items.push(Item::Key);
        }
        Ok((select, PreparedList { pagination, nodes }))
    }

    /// Refuses to compute something of a column that may not be read.
    pub(crate) fn check_aggregate(&self, entity: EntityId, aggregate: Aggregate) -> Result<(), ApiError> {
        match aggregate {
            Aggregate::Count => Ok(()),
            Aggregate::Min(column) | Aggregate::Max(column) | Aggregate::Sum(column) | Aggregate::Avg(column) => {
                self.access.check(Usage::Read, entity, column, self.names)
            }
        }
    }

    /// Reads the arguments that every list has, and adds what they ask for to a select of the viewer's.
    pub(crate) fn arguments(
        &self,
        entity: EntityId,
        arguments: &IndexMap<Name, ConstValue>,
        select: &mut Select,
    ) -> Result<Pagination, ApiError> {
        let reader = Reader::new(self.names, self.catalog.entity(entity), self.access);
        let argument = |name: &str| arguments.get(name).unwrap_or(&ConstValue::Null);
        select.filter = reader.filter(argument("filters"))?.and(std::mem::replace(&mut select.filter, Filter::all()));
        select.having = reader.having(self.catalog, self.access, argument("having"))?;
        select.order = reader.order(argument("orderBy"))?;
        pagination(reader, argument("pagination"))?.capped(self.max_rows)
    }

    /// The filter that finds the one row of `filmByPk(…)`.
    pub(crate) fn key_filter(&self, entity: EntityId, arguments: &Arguments) -> Result<Filter, ApiError> {
        let meta = self.catalog.entity(entity);
        let reader = Reader::new(self.names, meta, self.access);
        let values = reader.key(&arguments.resolve(self.variables))?;
        let parts = meta.key.iter().zip(values);
        Ok(Filter::All(parts.map(|(&column, value)| Filter::Compare(column, Comparison::Equal, value)).collect()))
    }

    /// Appends what a node needs to the items of its row.
    pub(crate) fn node(&self, node: &Node, items: &mut Vec<Item>) -> Result<PreparedNode, ApiError> {
        let mut prepared = PreparedNode::default();
        for (_, field) in &node.fields {
            match field {
                NodeField::Typename(_) => {}
                NodeField::Column(column) => {
                    self.access.check(Usage::Read, node.entity, *column, self.names)?;
                    items.push(Item::Cell(*column));
                }
                NodeField::One(..) | NodeField::Many(..) => {
                    prepared.relations.push(self.relation(node.entity, field, items)?);
                }
            }
        }
        Ok(prepared)
    }

    /// Appends what a relation field of an entity needs.
    pub(crate) fn relation(
        &self,
        from: EntityId,
        field: &NodeField,
        items: &mut Vec<Item>,
    ) -> Result<PreparedRelation, ApiError> {
        match field {
            NodeField::One(relation, node) => {
                self.access.walk(self.catalog, from, *relation, self.names)?;
                let mut select = self.access.select(node.entity, self.names)?;
                let prepared = self.node(node, &mut select.items)?;
                items.push(Item::One(*relation, select));
                Ok(PreparedRelation::One(prepared))
            }
            NodeField::Many(relation, list) => {
                let (mut select, prepared) = self.list(list)?;
                select.through = self.access.walk(self.catalog, from, *relation, self.names)?;
                items.push(Item::Many(*relation, select));
                Ok(PreparedRelation::Many(prepared))
            }
            NodeField::Typename(_) | NodeField::Column(_) => Err(ApiError::bad_input("this field is no relation")),
        }
    }
}
