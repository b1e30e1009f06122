use tidewire_outbox::{Aggregate, Catalog, ColumnMeta, EntityId, EntityMeta, Image, Kind, json::Scanner};

use super::{
    AggregateColumn, AggregateField, EdgeField, Keyed, List, ListField, Node, NodeField, PageInfoField,
    PaginationInfoField, Root, RootField,
    prepare::{PreparedList, PreparedNode, PreparedRelation},
};
use crate::{input::write_row_cursor, wire::Wire};

/// Writes answers: walks through what the database gave and what was selected, side by side.
#[derive(Clone, Copy)]
pub(crate) struct Encoder<'a> {
    pub(crate) wire: Wire<'a>,
    pub(crate) catalog: &'a Catalog,
}

/// The answer cannot be written from the plan. The resolvers say why.
#[derive(Debug)]
pub(crate) struct Failed;

pub(super) type Result<T = ()> = std::result::Result<T, Failed>;

impl From<crate::wire::Unsendable> for Failed {
    fn from(_: crate::wire::Unsendable) -> Self {
        Self
    }
}

impl From<tidewire_outbox::Error> for Failed {
    fn from(_: tidewire_outbox::Error) -> Self {
        Self
    }
}

impl Encoder<'_> {
    /// Writes a field of `Query` from the JSON that its select gave.
    pub(crate) fn root(&self, root: &Root, prepared: Option<(&PreparedList, &str)>, out: &mut String) -> Result {
        match (&root.field, prepared) {
            (RootField::Typename(name), _) => out.push_str(name),
            (RootField::List(list), Some((prepared, json))) => self.list(list, prepared, json, out)?,
            (RootField::One { node, .. }, Some((prepared, json))) => {
                let parts = Parts::read(json, None)?;
                match parts.rows.first() {
                    Some(row) => self.node(node, &prepared.nodes[0], &mut Scanner::new(row), out)?,
                    None => out.push_str("null"),
                }
            }
            _ => return Err(Failed),
        }
        Ok(())
    }

    /// Writes a connection.
    pub(crate) fn list(&self, list: &List, prepared: &PreparedList, json: &str, out: &mut String) -> Result {
        // Most lists are nothing but nodes, and are written as they are read.
        if let [(key, ListField::Nodes(_))] = list.fields.as_slice()
            && let [node] = list.nodes.as_slice()
            && !list.needs.keys
        {
            out.push('{');
            out.push_str(key);
            out.push('[');
            let mut scanner = Scanner::new(json);
            scanner.open()?;
            let mut first = true;
            while scanner.next_item()? {
                separate(&mut first, out);
                self.node(node, &prepared.nodes[0], &mut scanner, out)?;
            }
            out.push_str("]}");
            return Ok(());
        }
        let parts = Parts::read(json, prepared.pagination.limit())?;
        object(&list.fields, out, |field, out| self.list_field(list, prepared, &parts, field, out))
    }

    pub(super) fn list_field(
        &self,
        list: &List,
        prepared: &PreparedList,
        parts: &Parts<'_>,
        field: &ListField,
        out: &mut String,
    ) -> Result {
        match field {
            ListField::Typename(name) => out.push_str(name),
            ListField::Nodes(place) => {
                self.array(&parts.rows, out, |row, out| self.placed_node(list, prepared, *place, row, out))?;
            }
            ListField::Edges(fields) => {
                self.array(&parts.rows, out, |row, out| {
                    object(fields, out, |field, out| {
                        match field {
                            EdgeField::Typename(name) => out.push_str(name),
                            EdgeField::Cursor => self.row_cursor(list, row, out)?,
                            EdgeField::Node(place) => self.placed_node(list, prepared, *place, row, out)?,
                        }
                        Ok(())
                    })
                })?;
            }
            ListField::PageInfo(fields) => self.page_info(list, prepared, parts, fields, out)?,
            ListField::PaginationInfo(fields) => {
                let total = match parts.total {
                    "null" => parts.rows.len() as u64,
                    total => total.parse().map_err(|_| Failed)?,
                };
                match prepared.pagination.info(total) {
                    Some(info) => pagination_info(fields, info, total, out)?,
                    None => out.push_str("null"),
                }
            }
            ListField::Aggregate(fields) => self.aggregate(list, parts.aggregates, fields, out)?,
        }
        Ok(())
    }

    fn array<'r>(
        &self,
        rows: &[&'r str],
        out: &mut String,
        mut write: impl FnMut(&'r str, &mut String) -> Result,
    ) -> Result {
        out.push('[');
        let mut first = true;
        for row in rows {
            separate(&mut first, out);
            write(row, out)?;
        }
        out.push(']');
        Ok(())
    }

    /// Writes the node at a place of the list from a row that carries the items of all of them.
    pub(super) fn placed_node(
        &self,
        list: &List,
        prepared: &PreparedList,
        place: usize,
        row: &str,
        out: &mut String,
    ) -> Result {
        let mut scanner = Scanner::new(row);
        scanner.open()?;
        let mut first = true;
        for _ in 0..list.nodes[..place].iter().map(items).sum::<usize>() {
            if !std::mem::take(&mut first) {
                scanner.take(b',');
            }
            scanner.value()?;
        }
        self.node_fields(&list.nodes[place], &prepared.nodes[place], &mut scanner, first, out)
    }

    /// The key is the last item of a row.
    pub(super) fn row_key<'r>(&self, list: &List, row: &'r str) -> Result<&'r str> {
        let mut scanner = Scanner::new(row);
        for _ in 0..list.nodes.iter().map(items).sum::<usize>() {
            scanner.next_item()?;
            scanner.value()?;
        }
        scanner.next_item()?;
        Ok(scanner.value()?)
    }

    fn row_cursor(&self, list: &List, row: &str, out: &mut String) -> Result {
        let entity = self.catalog.entity(list.entity);
        let mut scanner = Scanner::new(self.row_key(list, row)?);
        let mut cells = Vec::new();
        for column in entity.key_columns() {
            scanner.next_item()?;
            let mut canonical = String::new();
            let some = self.wire.packed.write_canonical(&column.kind, scanner.value()?, &mut canonical);
            cells.push(some.then_some(canonical));
        }
        crate::wire::write_string(&write_row_cursor(cells.iter().map(Option::as_deref)), out);
        Ok(())
    }

    fn page_info(
        &self,
        list: &List,
        prepared: &PreparedList,
        parts: &Parts<'_>,
        fields: &[Keyed<PageInfoField>],
        out: &mut String,
    ) -> Result {
        object(fields, out, |field, out| {
            let cursor = |row: Option<&&str>, out: &mut String| match row {
                Some(row) => self.row_cursor(list, row, out),
                None => {
                    out.push_str("null");
                    Ok(())
                }
            };
            match field {
                PageInfoField::Typename => out.push_str("\"PageInfo\""),
                PageInfoField::StartCursor => cursor(parts.rows.first(), out)?,
                PageInfoField::EndCursor => cursor(parts.rows.last(), out)?,
                PageInfoField::HasNextPage => boolean(parts.has_more, out),
                PageInfoField::HasPreviousPage => {
                    boolean(prepared.pagination.has_previous() || matches!(parts.previous, "1" | "true"), out);
                }
            }
            Ok(())
        })
    }

    fn aggregate(&self, list: &List, json: &str, fields: &[Keyed<AggregateField>], out: &mut String) -> Result {
        let entity = self.catalog.entity(list.entity);
        let mut values = Vec::with_capacity(list.aggregates.len());
        let mut scanner = Scanner::new(json);
        while !list.aggregates.is_empty() && scanner.next_item()? {
            values.push(scanner.value()?);
        }
        object(fields, out, |field, out| {
            match field {
                AggregateField::Typename(name) => out.push_str(name),
                AggregateField::Count(place) => out.push_str(values.get(*place).ok_or(Failed)?),
                AggregateField::Columns(columns) => object(columns, out, |column, out| {
                    match column {
                        AggregateColumn::Typename(name) => out.push_str(name),
                        AggregateColumn::Value(place) => {
                            let value = values.get(*place).ok_or(Failed)?;
                            self.wire.packed(&aggregate_column(entity, list.aggregates[*place]), value, out)?;
                        }
                    }
                    Ok(())
                })?,
            }
            Ok(())
        })
    }

    /// Writes a row as an object, from the row's array of items.
    fn node(&self, node: &Node, prepared: &PreparedNode, scanner: &mut Scanner<'_>, out: &mut String) -> Result {
        scanner.open()?;
        self.node_fields(node, prepared, scanner, true, out)?;
        if items(node) == 0 {
            if scanner.take(b']') {
                return Ok(());
            }
            scanner.value()?;
        }
        // What is left of the row belongs to others.
        while scanner.next_item()? {
            scanner.value()?;
        }
        Ok(())
    }

    fn node_fields(
        &self,
        node: &Node,
        prepared: &PreparedNode,
        scanner: &mut Scanner<'_>,
        mut first_item: bool,
        out: &mut String,
    ) -> Result {
        let entity = self.catalog.entity(node.entity);
        let mut relations = prepared.relations.iter();
        object(&node.fields, out, |field, out| {
            if let NodeField::Typename(name) = field {
                out.push_str(name);
                return Ok(());
            }
            if !std::mem::take(&mut first_item) {
                scanner.take(b',');
            }
            match field {
                NodeField::Column(column) => self.wire.packed(&entity.columns[*column], scanner.value()?, out)?,
                _ => self.relation(field, relations.next().ok_or(Failed)?, scanner, out)?,
            }
            Ok(())
        })
    }

    fn relation(
        &self,
        field: &NodeField,
        prepared: &PreparedRelation,
        scanner: &mut Scanner<'_>,
        out: &mut String,
    ) -> Result {
        match (field, prepared) {
            (NodeField::One(..), PreparedRelation::One(_)) if scanner.take_null() => out.push_str("null"),
            (NodeField::One(_, node), PreparedRelation::One(prepared)) => self.node(node, prepared, scanner, out)?,
            (NodeField::Many(_, list), PreparedRelation::Many(prepared)) => {
                self.list(list, prepared, scanner.value()?, out)?;
            }
            _ => return Err(Failed),
        }
        Ok(())
    }

    /// Writes a changed row as an object: its own columns from its image, its relations from the items that were read for them (standing
    /// before the first one's comma; none where the row is gone since).
    pub(crate) fn image(
        &self,
        node: &Node,
        prepared: &PreparedNode,
        image: &Image,
        mut scanner: Option<Scanner<'_>>,
        out: &mut String,
    ) -> Result {
        let entity = self.catalog.entity(node.entity);
        let mut prepared = prepared.relations.iter();
        object(&node.fields, out, |field, out| {
            match field {
                NodeField::Typename(name) => out.push_str(name),
                NodeField::Column(column) => {
                    self.wire.canonical(&entity.columns[*column], image.cell(*column), out)?;
                }
                NodeField::One(..) | NodeField::Many(..) => {
                    let prepared = prepared.next().ok_or(Failed)?;
                    match (&mut scanner, field) {
                        (Some(scanner), _) => {
                            scanner.next_item()?;
                            self.relation(field, prepared, scanner, out)?;
                        }
                        (None, NodeField::Many(_, list)) => {
                            let PreparedRelation::Many(prepared) = prepared else { return Err(Failed) };
                            let nothing = EMPTY_LIST.replace("{}", &empty_aggregates(list));
                            self.list(list, prepared, &nothing, out)?;
                        }
                        (None, _) => out.push_str("null"),
                    }
                }
            }
            Ok(())
        })
    }

    /// Writes the cells of an image as a JSON object of field names.
    pub(crate) fn row_json(
        &self,
        entity: EntityId,
        image: &Image,
        columns: impl Iterator<Item = usize>,
        out: &mut String,
    ) {
        let meta = self.catalog.entity(entity);
        let names = self.wire.names.entity(entity);
        out.push('{');
        let mut first = true;
        for column in columns {
            separate(&mut first, out);
            crate::wire::write_string(&names.columns[column], out);
            out.push(':');
            if self.wire.canonical(&meta.columns[column], image.cell(column), out).is_err() {
                out.push_str(image.cell(column).unwrap_or("null"));
            }
        }
        out.push('}');
    }
}

const EMPTY_LIST: &str = "[[],0,null,{}]";

fn empty_aggregates(list: &List) -> String {
    let values: Vec<&str> =
        list.aggregates.iter().map(|aggregate| if *aggregate == Aggregate::Count { "0" } else { "null" }).collect();
    format!("[{}]", values.join(","))
}

/// The four parts of a to-many select.
pub(super) struct Parts<'a> {
    pub(super) rows: Vec<&'a str>,
    /// Whether there was a row more than the page has.
    has_more: bool,
    total: &'a str,
    previous: &'a str,
    aggregates: &'a str,
}

impl<'a> Parts<'a> {
    pub(super) fn read(json: &'a str, limit: Option<u64>) -> Result<Self> {
        let mut scanner = Scanner::new(json);
        scanner.open()?;
        let mut rows = Vec::new();
        if !scanner.take_null() {
            while scanner.next_item()? {
                rows.push(scanner.value()?);
            }
        }
        let has_more = limit.is_some_and(|limit| rows.len() as u64 > limit);
        if has_more {
            rows.pop();
        }
        let mut next = || {
            scanner.take(b',');
            scanner.value()
        };
        Ok(Self { rows, has_more, total: next()?, previous: next()?, aggregates: next()? })
    }
}

/// How many items of a row a node takes.
fn items(node: &Node) -> usize {
    node.fields.iter().filter(|(_, field)| !matches!(field, NodeField::Typename(_))).count()
}

/// A column that holds what an aggregate gives.
pub(crate) fn aggregate_column(entity: &EntityMeta, aggregate: Aggregate) -> ColumnMeta {
    let column = match aggregate {
        Aggregate::Count => return entity.columns[0].computed(Kind::Integer { bits: 64, signed: true }),
        Aggregate::Min(column) | Aggregate::Max(column) | Aggregate::Sum(column) | Aggregate::Avg(column) => column,
    };
    let meta = &entity.columns[column];
    let kind = match (aggregate, &meta.kind) {
        (Aggregate::Avg(_), _) | (Aggregate::Sum(_), Kind::Float) => Kind::Double,
        (Aggregate::Sum(_), Kind::Integer { .. }) => Kind::Integer { bits: 64, signed: true },
        (_, kind) => kind.clone(),
    };
    meta.computed(kind)
}

fn pagination_info(
    fields: &[Keyed<PaginationInfoField>],
    (current, offset, pages): (u64, u64, u64),
    total: u64,
    out: &mut String,
) -> Result {
    object(fields, out, |field, out| {
        let number = match field {
            PaginationInfoField::Typename => {
                out.push_str("\"PaginationInfo\"");
                return Ok(());
            }
            PaginationInfoField::Current => current,
            PaginationInfoField::Offset => offset,
            PaginationInfoField::Pages => pages,
            PaginationInfoField::Total => total,
        };
        out.push_str(&number.to_string());
        Ok(())
    })
}

/// Writes an object, key by key.
pub(crate) fn object<T>(
    fields: &[Keyed<T>],
    out: &mut String,
    mut write: impl FnMut(&T, &mut String) -> Result,
) -> Result {
    out.push('{');
    let mut first = true;
    for (key, field) in fields {
        separate(&mut first, out);
        out.push_str(key);
        write(field, out)?;
    }
    out.push('}');
    Ok(())
}

pub(crate) fn separate(first: &mut bool, out: &mut String) {
    if !std::mem::take(first) {
        out.push(',');
    }
}

pub(crate) fn boolean(value: bool, out: &mut String) {
    out.push_str(if value { "true" } else { "false" });
}
