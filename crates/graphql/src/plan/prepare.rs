use async_graphql::{Name, Value as ConstValue, Variables, indexmap::IndexMap};
use tidewire_outbox::{Catalog, EntityId, Filter, Item, Page, Select, filter::Comparison};

use super::{Arguments, List, Node, NodeField, Root, RootField};
use crate::{
    error::ApiError,
    input::{Pagination, Reader, pagination},
    names::Names,
};

/// Turns plans and variables into what to read.
#[derive(Clone, Copy)]
pub(crate) struct Preparer<'a> {
    pub(crate) names: &'a Names,
    pub(crate) catalog: &'a Catalog,
    pub(crate) variables: &'a Variables,
    /// The largest page.
    pub(crate) max_rows: Option<u64>,
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
                let filter = self.key_filter(node.entity, key)?;
                let mut select =
                    Select { filter, page: Page::Window { offset: 0, limit: 1 }, ..Select::new(node.entity) };
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
        let mut select = Select::new(list.entity);
        let pagination = self.arguments(list.entity, &list.arguments.resolve(self.variables), &mut select)?;
        select.page = pagination.page(list.needs.more);
        select.total = list.needs.total;
        select.previous = list.needs.previous;
        select.aggregates.clone_from(&list.aggregates);
        let nodes = list.nodes.iter().map(|node| self.node(node, &mut select.items)).collect::<Result<_, _>>()?;
        // The rows are also needed where nothing but their number is.
        if list.needs.keys || (select.items.is_empty() && (list.needs.more || !list.nodes.is_empty())) {
            select.items.push(Item::Key);
        }
        Ok((select, PreparedList { pagination, nodes }))
    }

    /// Reads the arguments that every list has.
    pub(crate) fn arguments(
        &self,
        entity: EntityId,
        arguments: &IndexMap<Name, ConstValue>,
        select: &mut Select,
    ) -> Result<Pagination, ApiError> {
        let reader = Reader { names: self.names, entity: self.catalog.entity(entity) };
        let argument = |name: &str| arguments.get(name).unwrap_or(&ConstValue::Null);
        select.filter = reader.filter(argument("filters"))?;
        select.having = reader.having(self.catalog, argument("having"))?;
        select.order = reader.order(argument("orderBy"))?;
        pagination(reader, argument("pagination"))?.capped(self.max_rows)
    }

    /// The filter that finds the one row of `filmByPk(…)`.
    pub(crate) fn key_filter(&self, entity: EntityId, arguments: &Arguments) -> Result<Filter, ApiError> {
        let meta = self.catalog.entity(entity);
        let reader = Reader { names: self.names, entity: meta };
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
                NodeField::Column(column) => items.push(Item::Cell(*column)),
                NodeField::One(..) | NodeField::Many(..) => {
                    prepared.relations.push(self.relation(field, items)?);
                }
            }
        }
        Ok(prepared)
    }

    /// Appends what a relation field needs.
    pub(crate) fn relation(&self, field: &NodeField, items: &mut Vec<Item>) -> Result<PreparedRelation, ApiError> {
        match field {
            NodeField::One(relation, node) => {
                let mut select = Select::new(node.entity);
                let prepared = self.node(node, &mut select.items)?;
                items.push(Item::One(*relation, select));
                Ok(PreparedRelation::One(prepared))
            }
            NodeField::Many(relation, list) => {
                let (select, prepared) = self.list(list)?;
                items.push(Item::Many(*relation, select));
                Ok(PreparedRelation::Many(prepared))
            }
            NodeField::Typename(_) | NodeField::Column(_) => Err(ApiError::bad_input("this field is no relation")),
        }
    }
}
