//! Answering field by field, as async-graphql has it: for documents with fields that were added by hand, for mutations' answers, and to say
//! what went wrong where a plan could not answer.
//!
//! It is also the reference that plans are tested against, so it goes about its work differently: it reads whole rows, level by level, and
//! puts them together in memory.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use async_graphql::{
    Error as GraphqlError, Name, Value as ConstValue, Variables,
    dataloader::{DataLoader, Loader},
    dynamic::{FieldValue, ResolverContext},
    indexmap::IndexMap,
};
use tidewire_outbox::{
    Aggregate, EntityId, Filter, Image, Item, Kind, Page, Select, cell, filter::Comparison, json::Scanner,
};

use crate::{
    error::ApiError,
    input::{Pagination, write_row_cursor},
    model::Model,
    plan::{Arguments, aggregate_column},
    policy::{Access, Usage},
};

type Result<T, E = ApiError> = std::result::Result<T, E>;

/// The variables of a request with their defaults, as [`Arguments`] take them.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestVariables(pub(crate) Variables);

/// A row, as a parent of fields.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) entity: EntityId,
    pub(crate) image: Arc<Image>,
}

/// A list, as a parent of fields.
#[derive(Debug)]
pub(crate) struct RowList {
    pub(crate) rows: Vec<Row>,
    access: Arc<Access>,
    select: Select,
    pagination: Pagination,
    has_more: bool,
    /// Of a list inside a row: the row and the relation. What is computed over all rows then takes their number, or a read of its own.
    scope: Scope,
}

#[derive(Debug, Clone)]
enum Scope {
    Root,
    Relation { parent: Row, relation: usize, total: u64 },
}

/// What was computed over a list, in the order of what was asked.
#[derive(Debug, Clone)]
pub(crate) struct Aggregates {
    pub(crate) entity: EntityId,
    list: Arc<RowList>,
}

impl Model {
    /// The arguments of the field being resolved.
    pub(crate) fn arguments(ctx: &ResolverContext<'_>) -> IndexMap<Name, ConstValue> {
        let arguments = Arguments::of(&ctx.item.node);
        match ctx.data_opt::<RequestVariables>() {
            Some(variables) => arguments.resolve(&variables.0),
            None => arguments.resolve(&Variables::default()),
        }
    }

    /// All columns of the rows that a viewer may read, those that it may not see too: they are left out where fields are resolved.
    pub(crate) fn whole_rows(&self, access: &Access, entity: EntityId) -> Result<Select> {
        let columns = self.catalog().entity(entity).columns.len();
        Ok(Select { items: (0..columns).map(Item::Cell).collect(), ..access.select(entity, &self.names)? })
    }

    async fn read(&self, select: Select) -> Result<Vec<Row>> {
        let parts = self.recorder.fetch(std::slice::from_ref(&select)).await?;
        self.rows(select.entity, &parts[0])
    }

    /// Reads the rows from the JSON of a select of whole rows.
    pub(crate) fn rows(&self, entity: EntityId, json: &str) -> Result<Vec<Row>> {
        let meta = self.catalog().entity(entity);
        let mut scanner = Scanner::new(json);
        scanner.open()?;
        let mut rows = Vec::new();
        while scanner.next_item()? {
            let image = Image::from_packed(meta, self.recorder.packed(), &mut scanner)?;
            rows.push(Row { entity, image: Arc::new(image) });
        }
        Ok(rows)
    }

    /// `film(…)`
    pub(crate) async fn resolve_list(
        &self,
        access: &Arc<Access>,
        entity: EntityId,
        arguments: &IndexMap<Name, ConstValue>,
    ) -> Result<Arc<RowList>> {
        let mut select = self.whole_rows(access, entity)?;
        let variables = Variables::default();
        let pagination = self.preparer(&variables, access).arguments(entity, arguments, &mut select)?;
        select.page = pagination.page(true);
        let mut rows = self.read(select.clone()).await?;
        let has_more = cut(&mut rows, pagination.limit());
        let access = Arc::clone(access);
        Ok(Arc::new(RowList { rows, access, select, pagination, has_more, scope: Scope::Root }))
    }

    /// `filmByPk(…)`
    pub(crate) async fn resolve_by_key(
        &self,
        access: &Access,
        entity: EntityId,
        arguments: Arguments,
        variables: &Variables,
    ) -> Result<Option<Row>> {
        let mut select = self.whole_rows(access, entity)?;
        select.filter = self.preparer(variables, access).key_filter(entity, &arguments)?.and(select.filter);
        select.page = Page::Window { offset: 0, limit: 1 };
        Ok(self.read(select).await?.pop())
    }

    /// A to-one relation's field.
    pub(crate) async fn resolve_one(
        &self,
        loader: &DataLoader<Relations>,
        row: &Row,
        relation: usize,
    ) -> Result<Option<Row>> {
        // Asked here, so that what is refused fails no other field that is loaded together with this one.
        loader.loader().access.walk(self.catalog(), row.entity, relation, &self.names)?;
        let rows = loader.load_one(RelationKey::new(row, relation, ConstValue::Null)).await?.unwrap_or_default();
        Ok(rows.first().cloned())
    }

    /// A to-many relation's field.
    pub(crate) async fn resolve_many(
        &self,
        loader: &DataLoader<Relations>,
        row: &Row,
        relation: usize,
        arguments: IndexMap<Name, ConstValue>,
    ) -> Result<Arc<RowList>> {
        let access = &loader.loader().access;
        let meta = &self.catalog().entity(row.entity).relations[relation];
        let mut select = self.whole_rows(access, meta.target)?;
        select.through = access.walk(self.catalog(), row.entity, relation, &self.names)?;
        let variables = Variables::default();
        let pagination = self.preparer(&variables, access).arguments(meta.target, &arguments, &mut select)?;
        let (mut rows, total) = if let Pagination::Cursor { .. } = pagination {
            // A page after a key is the database's to cut.
            select.page = pagination.page(true);
            (self.read_related(access, row, relation, select.clone()).await?, 0)
        } else {
            let arguments = ConstValue::Object(arguments);
            let all = loader.load_one(RelationKey::new(row, relation, arguments)).await?.unwrap_or_default();
            let total = all.len() as u64;
            let offset = match pagination {
                Pagination::Page { page, limit } => page.saturating_mul(limit),
                Pagination::Offset { offset, .. } => offset,
                Pagination::None | Pagination::Cursor { .. } => 0,
            };
            (all.iter().skip(usize::try_from(offset).unwrap_or(usize::MAX)).cloned().collect(), total)
        };
        let has_more = cut(&mut rows, pagination.limit());
        let scope = Scope::Relation { parent: row.clone(), relation, total };
        let access = Arc::clone(access);
        Ok(Arc::new(RowList { rows, access, select, pagination, has_more, scope }))
    }

    /// Reads the rows at the end of a relation of one row by a select of its own.
    async fn read_related(&self, access: &Access, row: &Row, relation: usize, select: Select) -> Result<Vec<Row>> {
        let target = select.entity;
        let json = self.select_related(access, row, relation, select).await?;
        json.map_or_else(|| Ok(Vec::new()), |json| self.rows(target, &json))
    }

    /// The four parts of a select at the end of a relation of one row; `None` where the row is gone.
    async fn select_related(
        &self,
        access: &Access,
        row: &Row,
        relation: usize,
        select: Select,
    ) -> Result<Option<String>> {
        let parent = self.catalog().entity(row.entity);
        let key = parent.key.iter().map(|&column| self.equals(row, column)).collect::<Result<_>>()?;
        let mut outer = access.select(row.entity, &self.names)?;
        outer.items.push(Item::Many(relation, select));
        outer.filter = Filter::All(key).and(outer.filter);
        let parts = self.recorder.fetch(&[outer]).await?;
        let mut scanner = Scanner::new(&parts[0]);
        scanner.open()?;
        if !scanner.next_item()? {
            return Ok(None);
        }
        scanner.open()?;
        Ok(Some(scanner.value()?.to_owned()))
    }

    fn equals(&self, row: &Row, column: usize) -> Result<Filter> {
        let meta = &self.catalog().entity(row.entity).columns[column];
        let value = cell::read_value(meta, row.image.cell(column)).ok_or_else(|| unreadable(&meta.kind))?;
        Ok(Filter::Compare(column, Comparison::Equal, value))
    }

    /// A column's field.
    pub(crate) fn resolve_column(
        &self,
        access: &Access,
        row: &Row,
        column: usize,
    ) -> Result<Option<FieldValue<'static>>, GraphqlError> {
        access.check(Usage::Read, row.entity, column, &self.names)?;
        self.field_value(&self.catalog().entity(row.entity).columns[column], row.image.cell(column))
    }

    fn field_value(
        &self,
        column: &tidewire_outbox::ColumnMeta,
        cell: Option<&str>,
    ) -> Result<Option<FieldValue<'static>>, GraphqlError> {
        let mut json = String::new();
        if self.wire().canonical(column, cell, &mut json).is_err() {
            return Err(unreadable(&column.kind).into());
        }
        if json == "null" && cell.is_none() {
            return Ok(None);
        }
        Ok(Some(FieldValue::value(match column.kind {
            Kind::Json => raw_json(json),
            // serde_json may read a float as its neighbour.
            Kind::Float | Kind::Double => json.parse::<f64>().map_err(|_| unreadable(&column.kind))?.into(),
            _ => serde_json::from_str(&json).map_err(|_| unreadable(&column.kind))?,
        })))
    }
}

impl RowList {
    pub(crate) fn entity(&self) -> EntityId {
        self.select.entity
    }

    /// The cursor of the row at this place of the page.
    pub(crate) fn cursor(&self, model: &Model, place: usize) -> Option<String> {
        let row = self.rows.get(place)?;
        let key = &model.catalog().entity(row.entity).key;
        Some(write_row_cursor(key.iter().map(|&column| row.image.cell(column))))
    }

    pub(crate) fn has_next(&self) -> bool {
        self.has_more
    }

    pub(crate) async fn has_previous(&self, model: &Model) -> Result<bool> {
        if self.pagination.has_previous() {
            return Ok(true);
        }
        let Pagination::Cursor { after: Some(_), .. } = self.pagination else { return Ok(false) };
        let select = Select { previous: true, ..self.select.clone() };
        Ok(matches!(self.part(model, select, 2).await?.as_str(), "1" | "true"))
    }

    /// `paginationInfo`: current, offset, pages, total.
    pub(crate) async fn pagination_info(&self, model: &Model) -> Result<Option<(u64, u64, u64, u64)>> {
        if let Pagination::Cursor { .. } = self.pagination {
            return Ok(None);
        }
        let total = match self.scope {
            Scope::Relation { total, .. } => total,
            Scope::Root => {
                let select = Select { total: true, items: Vec::new(), ..self.select.clone() };
                self.part(model, select, 1).await?.parse().map_err(|_| unreadable(&Kind::Decimal))?
            }
        };
        Ok(self.pagination.info(total).map(|(current, offset, pages)| (current, offset, pages, total)))
    }

    /// One of the four parts of a select over this list.
    async fn part(&self, model: &Model, select: Select, place: usize) -> Result<String> {
        let json = match &self.scope {
            Scope::Root => model.recorder.fetch(&[select]).await?.remove(0),
            Scope::Relation { parent, relation, .. } => {
                let json = model.select_related(&self.access, parent, *relation, select).await?;
                json.unwrap_or_else(|| "[null,null,null,null]".into())
            }
        };
        let mut scanner = Scanner::new(&json);
        for _ in 0..place {
            scanner.next_item()?;
            scanner.value()?;
        }
        scanner.next_item()?;
        Ok(scanner.value()?.to_owned())
    }
}

impl Aggregates {
    pub(crate) fn new(list: &Arc<RowList>) -> Self {
        Self { entity: list.entity(), list: Arc::clone(list) }
    }

    pub(crate) async fn resolve(
        &self,
        model: &Model,
        aggregate: Aggregate,
    ) -> Result<Option<FieldValue<'static>>, GraphqlError> {
        let variables = Variables::default();
        model.preparer(&variables, &self.list.access).check_aggregate(self.entity, aggregate)?;
        let select = Select { items: Vec::new(), aggregates: vec![aggregate], ..self.list.select.clone() };
        let values = self.list.part(model, select, 3).await?;
        let mut scanner = Scanner::new(&values);
        let column = aggregate_column(model.catalog().entity(self.entity), aggregate);
        let mut canonical = String::new();
        let mut some = false;
        if scanner.next_item().map_err(ApiError::from)? {
            let value = scanner.value().map_err(ApiError::from)?;
            some = model.recorder.packed().write_canonical(&column.kind, value, &mut canonical);
        }
        model.field_value(&column, some.then_some(&canonical))
    }
}

/// Cuts a page to its size; answers whether there was more.
fn cut(rows: &mut Vec<Row>, limit: Option<u64>) -> bool {
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let has_more = rows.len() > limit;
    rows.truncate(limit);
    has_more
}

fn unreadable(kind: &Kind) -> ApiError {
    let what = match kind {
        Kind::Enum(_) => "a value that its enumeration does not have",
        Kind::Float | Kind::Double => "a number that JSON has no form for",
        _ => "no value where there must be one, or one of another type",
    };
    ApiError::new(crate::error::Code::Internal, format!("the database holds {what}"))
}

/// JSON that goes to the client as it is.
fn raw_json(json: String) -> ConstValue {
    let mut raw = IndexMap::new();
    raw.insert(Name::new(async_graphql_value::RAW_VALUE_TOKEN), ConstValue::String(json));
    ConstValue::Object(raw)
}

/// Loads the rows at the ends of relations for many rows of one request at once.
pub(crate) struct Relations {
    pub(crate) model: Arc<Model>,
    pub(crate) access: Arc<Access>,
}

/// Which rows: at the end of which relation of which row, under which arguments.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RelationKey {
    entity: EntityId,
    relation: usize,
    /// The arguments as text, since values have no hash.
    arguments: String,
    row: Vec<Option<String>>,
}

impl RelationKey {
    fn new(row: &Row, relation: usize, arguments: ConstValue) -> Self {
        Self {
            entity: row.entity,
            relation,
            arguments: serde_json::to_string(&arguments).unwrap_or_default(),
            row: row.image.cells().map(|cell| cell.map(str::to_owned)).collect(),
        }
    }

    fn cells<'a>(&'a self, columns: &'a [usize]) -> Option<Vec<&'a str>> {
        columns.iter().map(|&column| self.row[column].as_deref()).collect()
    }
}

impl Loader<RelationKey> for Relations {
    type Value = Arc<[Row]>;
    type Error = ApiError;

    async fn load(&self, keys: &[RelationKey]) -> Result<HashMap<RelationKey, Arc<[Row]>>> {
        let mut groups: BTreeMap<(EntityId, usize, &str), Vec<&RelationKey>> = BTreeMap::new();
        for key in keys {
            groups.entry((key.entity, key.relation, &key.arguments)).or_default().push(key);
        }
        let mut loaded = HashMap::new();
        for ((entity, relation, arguments), keys) in groups {
            self.load_relation(entity, relation, arguments, &keys, &mut loaded).await?;
        }
        Ok(loaded)
    }
}

impl Relations {
    async fn load_relation(
        &self,
        entity: EntityId,
        relation: usize,
        arguments: &str,
        keys: &[&RelationKey],
        loaded: &mut HashMap<RelationKey, Arc<[Row]>>,
    ) -> Result<()> {
        let (model, access) = (&*self.model, &*self.access);
        let through = access.walk(model.catalog(), entity, relation, &model.names)?;
        let relation = &model.catalog().entity(entity).relations[relation];
        let mut select = model.whole_rows(access, relation.target)?;
        let variables = Variables::default();
        if let Ok(ConstValue::Object(arguments)) = serde_json::from_str(arguments) {
            model.preparer(&variables, access).arguments(relation.target, &arguments, &mut select)?;
            select.page = Page::All;
        }
        if relation.has_condition() {
            for key in keys {
                let image = Image::from_cells(key.row.iter().map(Option::as_deref));
                let row = Row { entity, image: Arc::new(image) };
                let rows = model.read_related(access, &row, key.relation, select.clone()).await?;
                loaded.insert((*key).clone(), rows.into());
            }
            return Ok(());
        }
        let starts: Vec<Vec<&str>> = keys.iter().filter_map(|key| key.cells(&relation.from)).collect();
        // Where each end belongs: from the columns that the target (or the junction) is reached by, to the starts.
        let mut ends: HashMap<Vec<String>, Vec<Vec<String>>> = HashMap::new();
        let reached = match &relation.junction {
            None => {
                for start in &starts {
                    let start: Vec<String> = start.iter().map(ToString::to_string).collect();
                    ends.insert(start.clone(), vec![start]);
                }
                &relation.to
            }
            Some(junction) => {
                let mut middle = model.whole_rows(access, junction.entity)?;
                middle.filter = model.any_of(junction.entity, &relation.to, &starts)?.and(through);
                for row in model.read(middle).await? {
                    let cells = |columns: &[usize]| -> Option<Vec<String>> {
                        columns.iter().map(|&column| row.image.cell(column).map(str::to_owned)).collect()
                    };
                    if let (Some(start), Some(end)) = (cells(&relation.to), cells(&junction.from)) {
                        ends.entry(end).or_default().push(start);
                    }
                }
                &junction.to
            }
        };
        let wanted: Vec<Vec<&str>> = ends.keys().map(|end| end.iter().map(String::as_str).collect()).collect();
        select.filter = select.filter.and(model.any_of(relation.target, reached, &wanted)?);
        let mut by_start: HashMap<Vec<String>, Vec<Row>> = HashMap::new();
        for row in model.read(select).await? {
            let end: Option<Vec<String>> =
                reached.iter().map(|&column| row.image.cell(column).map(str::to_owned)).collect();
            for start in end.and_then(|end| ends.get(&end)).into_iter().flatten() {
                by_start.entry(start.clone()).or_default().push(row.clone());
            }
        }
        for key in keys {
            let start = key.cells(&relation.from).map(|cells| cells.into_iter().map(str::to_owned).collect::<Vec<_>>());
            let rows = start.and_then(|start| by_start.get(&start).cloned()).unwrap_or_default();
            loaded.insert((*key).clone(), rows.into());
        }
        Ok(())
    }
}

impl Model {
    /// Rows whose columns are one of the given tuples of cells.
    fn any_of(&self, entity: EntityId, columns: &[usize], tuples: &[Vec<&str>]) -> Result<Filter> {
        let meta = self.catalog().entity(entity);
        let value = |column: usize, cell: &str| {
            let column = &meta.columns[column];
            cell::read_value(column, Some(cell)).ok_or_else(|| unreadable(&column.kind))
        };
        if let [column] = *columns {
            let values = tuples.iter().map(|tuple| value(column, tuple[0])).collect::<Result<_>>()?;
            return Ok(Filter::In(column, values));
        }
        let any = tuples.iter().map(|tuple| {
            let all = columns
                .iter()
                .zip(tuple)
                .map(|(&column, cell)| Ok(Filter::Compare(column, Comparison::Equal, value(column, cell)?)));
            all.collect::<Result<_>>().map(Filter::All)
        });
        Ok(Filter::Any(any.collect::<Result<_>>()?))
    }
}
