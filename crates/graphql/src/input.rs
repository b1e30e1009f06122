//! Reading arguments: from GraphQL's values to filters, orders, pages and column values.
//!
//! Validation has already held the values against their declared types; what is left here is what the type system cannot say (a text that is
//! no date, a `between` of three values), and telling it in words.

use std::borrow::Cow;

use async_graphql::{Name, Value as ConstValue, indexmap::IndexMap};
use sea_orm::sea_query::Value;
use tidewire_outbox::{
    Assignments, Catalog, ColumnMeta, Direction, EntityMeta, Filter, Having, Kind, OnConflict, Page, cell,
    filter::{ArrayOperator, Comparison, Like},
};

use crate::{
    error::ApiError,
    names::{EntityNames, Names},
    policy::{Access, Action, Usage, WrittenClaim, claim, written_claim},
};

type Result<T> = std::result::Result<T, ApiError>;
type Object = IndexMap<Name, ConstValue>;

/// Reads inputs for one entity.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub(crate) names: &'a Names,
    pub(crate) entity: &'a EntityMeta,
    author: Author<'a>,
}

/// Who wrote an input.
#[derive(Clone, Copy)]
enum Author<'a> {
    /// A client, who may use some columns.
    Viewer(&'a Access),
    /// Whoever runs the server, as a rule of a policy: claims may stand for values.
    Operator,
    /// Whoever issued a token, as one of its claims.
    Issuer,
}

impl<'a> Reader<'a> {
    /// Reads what a viewer sent.
    pub(crate) fn new(names: &'a Names, entity: &'a EntityMeta, access: &'a Access) -> Self {
        Self { names, entity, author: Author::Viewer(access) }
    }

    /// Reads rules of policies.
    pub(crate) fn of_rule(names: &'a Names, entity: &'a EntityMeta) -> Self {
        Self { names, entity, author: Author::Operator }
    }

    /// Reads claims.
    pub(crate) fn of_claims(names: &'a Names, entity: &'a EntityMeta) -> Self {
        Self { names, entity, author: Author::Issuer }
    }

    fn own(&self) -> &'a EntityNames {
        self.names.entity(self.entity.id)
    }

    /// `FilmFilterInput`. Null is the filter that all rows pass.
    pub(crate) fn filter(&self, value: &ConstValue) -> Result<Filter> {
        let filter = self.nested_filter(value, tidewire_outbox::filter::MAX_DEPTH)?;
        filter.check_depth()?;
        Ok(filter)
    }

    fn nested_filter(&self, value: &ConstValue, depth: usize) -> Result<Filter> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(ApiError::bad_input(format!(
                "the filter nests deeper than {} levels",
                tidewire_outbox::filter::MAX_DEPTH
            )));
        };
        if *value == ConstValue::Null {
            return Ok(Filter::all());
        }
        let mut parts = Vec::new();
        for (name, value) in object(value, "a filter")? {
            if *value == ConstValue::Null {
                continue;
            }
            let nested = |value: &ConstValue| -> Result<Vec<Filter>> {
                list(value).iter().map(|part| self.nested_filter(part, depth)).collect()
            };
            match name.as_str() {
                "and" => parts.push(Filter::All(nested(value)?)),
                "or" => parts.push(Filter::Any(nested(value)?)),
                "not" => parts.push(Filter::Not(Box::new(self.nested_filter(value, depth)?))),
                name => self.column_filter(self.usable(name, Usage::Filter)?, object(value, name)?, &mut parts)?,
            }
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Filter::All(parts) })
    }

    fn column_filter(&self, column: usize, operators: &Object, parts: &mut Vec<Filter>) -> Result<()> {
        let value = |operand: &ConstValue| self.value(column, operand);
        let text = |operand: &ConstValue| match (operand, self.author) {
            (ConstValue::String(text), Author::Viewer(_) | Author::Issuer) => Ok(text.clone()),
            (ConstValue::String(text), Author::Operator) => match written_claim(text) {
                WrittenClaim::Text(text) => Ok(text.to_owned()),
                WrittenClaim::Claim(_) => Err(self.wrong(column, "no claim where texts are matched by their parts")),
            },
            _ => Err(self.wrong(column, "a text")),
        };
        let not = |filter| Filter::Not(Box::new(filter));
        for (operator, operand) in operators {
            let compare = |comparison| -> Result<Filter> { Ok(Filter::Compare(column, comparison, value(operand)?)) };
            let values = || -> Result<Vec<Value>> { list(operand).iter().map(value).collect() };
            let between = || -> Result<Filter> {
                let values: [Value; 2] = values()?
                    .try_into()
                    .map_err(|_| self.wrong(column, "a list of exactly two values for `between`"))?;
                let [low, high] = values;
                Ok(Filter::Between(column, low, high))
            };
            let array = |operator| match value(operand)? {
                Value::Array(_, Some(values)) => Ok(Filter::Array(column, operator, *values)),
                // A claim that stands for the whole list.
                claim @ Value::Enum(_) => Ok(Filter::Array(column, operator, vec![claim])),
                _ => Err(self.wrong(column, "a list")),
            };
            let null = *operand == ConstValue::Null;
            parts.push(match operator.as_str() {
                // Equal to null can only mean that it is null; a comparison with null would never hold.
                "eq" if null => Filter::IsNull(column),
                "ne" if null => not(Filter::IsNull(column)),
                "eq" => compare(Comparison::Equal)?,
                "ne" => compare(Comparison::NotEqual)?,
                _ if null => continue,
                "gt" => compare(Comparison::Greater)?,
                "gte" => compare(Comparison::GreaterOrEqual)?,
                "lt" => compare(Comparison::Less)?,
                "lte" => compare(Comparison::LessOrEqual)?,
                "is_in" => Filter::In(column, values()?),
                "is_not_in" => not(Filter::In(column, values()?)),
                "is_null" => match operand {
                    ConstValue::Boolean(true) => Filter::IsNull(column),
                    _ => not(Filter::IsNull(column)),
                },
                "between" => between()?,
                "not_between" => not(between()?),
                "contains" => Filter::Like(column, Like::literal(&text(operand)?, true, true)),
                "starts_with" => Filter::Like(column, Like::literal(&text(operand)?, false, true)),
                "ends_with" => Filter::Like(column, Like::literal(&text(operand)?, true, false)),
                "like" => Filter::Like(column, Like::pattern(text(operand)?)),
                "not_like" => not(Filter::Like(column, Like::pattern(text(operand)?))),
                "array_contains" => array(ArrayOperator::Contains)?,
                "array_contained" => array(ArrayOperator::Contained)?,
                "array_overlap" => array(ArrayOperator::Overlaps)?,
                "ci_eq" => Filter::EqualsIgnoringCase(column, text(operand)?),
                other => {
                    return Err(ApiError::bad_input(format!("{} has no operator {other}", self.own().columns[column])));
                }
            });
        }
        Ok(())
    }

    /// `FilmHavingInput`.
    pub(crate) fn having(&self, catalog: &Catalog, access: &Access, value: &ConstValue) -> Result<Vec<Having>> {
        if *value == ConstValue::Null {
            return Ok(Vec::new());
        }
        let mut having = Vec::new();
        for (name, filter) in object(value, "having")? {
            let Some(relation) = self.own().relations.iter().position(|relation| relation == name.as_str()) else {
                continue;
            };
            let target = catalog.entity(self.entity.relations[relation].target);
            let through = access.walk(catalog, self.entity.id, relation, self.names)?;
            let readable = access.rows(Action::Read, target.id, self.names)?;
            let filter = Reader::new(self.names, target, access).filter(filter)?;
            // An empty filter asks for nothing, not for any related row at all.
            if !filter.is_all() {
                // A related row that may not be read does not count.
                having.push(Having { relation, filter: filter.and(readable), through });
            }
        }
        Ok(having)
    }

    /// `FilmOrderInput`, in the order in which the client wrote it.
    pub(crate) fn order(&self, value: &ConstValue) -> Result<Vec<(usize, Direction)>> {
        if *value == ConstValue::Null {
            return Ok(Vec::new());
        }
        let mut order = Vec::new();
        for (name, direction) in object(value, "orderBy")? {
            let direction = match enum_name(direction) {
                Some("ASC") => Direction::Ascending,
                Some("DESC") => Direction::Descending,
                _ => continue,
            };
            order.push((self.usable(name, Usage::Filter)?, direction));
        }
        Ok(order)
    }

    /// `FilmInsertInput`: column values. Null where there may be none leaves the column to the database, as if it were not there.
    pub(crate) fn insert(&self, value: &ConstValue) -> Result<Assignments> {
        let mut row = Assignments::new();
        for (name, value) in object(value, "data")? {
            let column = self.usable(name, Usage::Insert)?;
            if *value != ConstValue::Null || self.entity.columns[column].nullable {
                row.push((column, self.value(column, value)?));
            }
        }
        Ok(row)
    }

    /// `FilmUpdateInput`, `FilmMatchInput`: column values, and what they are used for.
    pub(crate) fn assignments(&self, value: &ConstValue, usage: Usage) -> Result<Assignments> {
        object(value, "data")?
            .iter()
            .map(|(name, value)| {
                let column = self.usable(name, usage)?;
                if *value == ConstValue::Null && !self.entity.columns[column].nullable {
                    return Err(self.wrong(column, "no null"));
                }
                Ok((column, self.value(column, value)?))
            })
            .collect()
    }

    /// `FilmOnConflictInput`.
    pub(crate) fn on_conflict(&self, value: &ConstValue) -> Result<OnConflict> {
        let input = object(value, "onConflict")?;
        let columns = |name: &str| -> Result<Option<Vec<usize>>> {
            match input.get(name) {
                None | Some(ConstValue::Null) => Ok(None),
                Some(value) => list(value)
                    .iter()
                    .map(|column| self.usable(enum_name(column).unwrap_or_default(), Usage::Insert))
                    .collect::<Result<_>>()
                    .map(Some),
            }
        };
        let target = columns("target")?.unwrap_or_default();
        let update = match columns("update")? {
            Some(columns) => columns,
            None => {
                let key = if target.is_empty() { &self.entity.key } else { &target };
                (0..self.entity.columns.len()).filter(|column| !key.contains(column)).collect()
            }
        };
        Ok(OnConflict { target, update })
    }

    /// The values of the primary key, from arguments or an object of them.
    pub(crate) fn key(&self, object: &Object) -> Result<Vec<Value>> {
        self.entity
            .key
            .iter()
            .map(|&column| {
                let name = &self.own().columns[column];
                let value = object.get(name.as_str()).ok_or_else(|| self.wrong(column, "a value"))?;
                self.value(column, value)
            })
            .collect()
    }

    /// The column of this name, if it may be used so.
    fn usable(&self, name: &str, usage: Usage) -> Result<usize> {
        let Some(column) = self.own().column(name) else {
            let has_not = if self.own().relations.iter().any(|relation| relation == name) {
                format!("{name} is a relation of {}, and only columns can be compared", self.own().object)
            } else {
                format!("{} has no column {name}", self.own().object)
            };
            return Err(ApiError::bad_input(has_not));
        };
        if let Author::Viewer(access) = self.author {
            access.check(usage, self.entity.id, column, self.names)?;
        }
        Ok(column)
    }

    /// A value for a column, of the column's own type.
    pub(crate) fn value(&self, column: usize, value: &ConstValue) -> Result<Value> {
        let meta = &self.entity.columns[column];
        if *value == ConstValue::Null {
            return Ok(meta.null());
        }
        let mut value = Cow::Borrowed(value);
        if let (Author::Operator, ConstValue::String(text)) = (self.author, &*value) {
            match written_claim(text) {
                WrittenClaim::Claim(name) => return Ok(claim(name).into()),
                WrittenClaim::Text(text) => value = Cow::Owned(ConstValue::String(text.to_owned())),
            }
        }
        let value = &*value;
        let expected = expected(&meta.kind);
        let cell = self.cell(meta, value).ok_or_else(|| self.wrong(column, expected))?;
        cell::read_value(meta, Some(&cell)).ok_or_else(|| self.wrong(column, expected))
    }

    /// The canonical cell of a client's value.
    fn cell(&self, meta: &ColumnMeta, value: &ConstValue) -> Option<String> {
        let mut out = String::new();
        if let Some(element) = meta.element() {
            let is_claim = |item: &ConstValue| matches!(item, ConstValue::String(text) if text.starts_with('$'));
            if matches!(self.author, Author::Operator) && list(value).iter().any(is_claim) {
                // One stands for a whole list; a text that begins so would be taken for one.
                return None;
            }
            let cells = list(value).iter().map(|value| self.cell(&element, value)).collect::<Option<Vec<_>>>()?;
            return Some(format!("[{}]", cells.join(",")));
        }
        match (&meta.kind, value) {
            (Kind::Boolean, ConstValue::Boolean(value)) => out.push_str(if *value { "true" } else { "false" }),
            (Kind::Integer { .. } | Kind::Decimal | Kind::Float | Kind::Double, ConstValue::Number(number)) => {
                out.push_str(&number.to_string());
            }
            // Integers beyond what a JSON number carries safely come as texts, as they go.
            (Kind::Integer { bits: 64, .. }, ConstValue::String(text)) => {
                text.parse::<i128>().ok()?;
                out.push_str(text);
            }
            (Kind::Enum(meta), value) => {
                let name = enum_name(value)?;
                cell::write_text(self.names.enumeration(meta).value(name)?, &mut out);
            }
            (Kind::Json, value) => out = serde_json::to_string(&json(value)?).ok()?,
            (Kind::DateTime, ConstValue::String(text)) => {
                let time = cell::read_date_time(text).or_else(|| Some(cell::read_timestamp(text)?.naive_utc()))?;
                cell::write_date_time(time, &mut out);
            }
            (Kind::Timestamp, ConstValue::String(text)) => {
                cell::write_timestamp(cell::read_timestamp(text)?.to_utc(), &mut out);
            }
            (Kind::TimestampTz, ConstValue::String(text)) => {
                cell::write_timestamp_tz(cell::read_timestamp(text)?, &mut out);
            }
            (
                Kind::Text | Kind::Decimal | Kind::Bytes | Kind::Uuid | Kind::Date | Kind::Time,
                ConstValue::String(text),
            ) => cell::write_text(text, &mut out),
            _ => return None,
        }
        Some(out)
    }

    fn wrong(&self, column: usize, expected: &str) -> ApiError {
        ApiError::bad_input(format!("{}.{} takes {expected}", self.own().object, self.own().columns[column]))
    }
}

fn expected(kind: &Kind) -> &'static str {
    match kind {
        Kind::Boolean => "true or false",
        Kind::Integer { bits: 64, .. } => "a whole number of at most 64 bits, as a number or a text",
        Kind::Integer { .. } => "a whole number in the column's range",
        Kind::Float | Kind::Double => "a number",
        Kind::Decimal => "a decimal number as a text, for example \"12.50\"",
        Kind::Text => "a text",
        Kind::Bytes => "bytes as a text of hexadecimal digits, two for each",
        Kind::Json => "a JSON value",
        Kind::Uuid => "a UUID",
        Kind::Date => "a date, for example \"2026-11-20\"",
        Kind::Time => "a time of day, for example \"16:43:00\"",
        Kind::DateTime => "a date and time, for example \"2026-11-20T16:43:00\"",
        Kind::Timestamp | Kind::TimestampTz => "an instant, for example \"2026-11-20T16:43:00Z\"",
        Kind::Enum(_) => "one of the enumeration's values",
        Kind::Array(_) => "a list of values, none of them null",
    }
}

/// A client's value as JSON; a text that is itself JSON counts as what it says, as Seaography has it.
fn json(value: &ConstValue) -> Option<serde_json::Value> {
    match value {
        ConstValue::String(text) => Some(serde_json::from_str(text).unwrap_or_else(|_| text.clone().into())),
        other => other.clone().into_json().ok(),
    }
}

/// `PaginationInput`.
pub(crate) fn pagination(entity: Reader<'_>, value: &ConstValue) -> Result<Pagination> {
    if *value == ConstValue::Null {
        return Ok(Pagination::None);
    }
    let input = object(value, "pagination")?;
    let part = |name: &str| input.get(name).filter(|part| **part != ConstValue::Null);
    let number = |part: &Object, name: &str| -> Result<Option<u64>> {
        match part.get(name) {
            None | Some(ConstValue::Null) => Ok(None),
            Some(ConstValue::Number(number)) => match number.as_u64() {
                Some(number) => Ok(Some(number)),
                None => Err(ApiError::bad_input(format!("pagination: {name} must not be negative"))),
            },
            Some(_) => Err(ApiError::bad_input(format!("pagination: {name} must be a whole number"))),
        }
    };
    let limit = |part: &Object| match number(part, "limit")? {
        Some(0) | None => Err(ApiError::bad_input("pagination: limit must be at least 1")),
        Some(limit) => Ok(limit),
    };
    if let Some(part) = part("cursor") {
        let part = object(part, "cursor")?;
        let after = match part.get("cursor") {
            None | Some(ConstValue::Null) => None,
            Some(ConstValue::String(cursor)) => Some(read_row_cursor(entity, cursor)?),
            Some(_) => return Err(ApiError::bad_input("pagination: cursor must be a text")),
        };
        return Ok(Pagination::Cursor { after, limit: limit(part)? });
    }
    if let Some(part) = part("page") {
        let part = object(part, "page")?;
        return Ok(Pagination::Page { page: number(part, "page")?.unwrap_or(0), limit: limit(part)? });
    }
    if let Some(part) = part("offset") {
        let part = object(part, "offset")?;
        return Ok(Pagination::Offset { offset: number(part, "offset")?.unwrap_or(0), limit: limit(part)? });
    }
    Ok(Pagination::None)
}

/// Which part of a list a client asked for, and in which way.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Pagination {
    None,
    Page { page: u64, limit: u64 },
    Offset { offset: u64, limit: u64 },
    Cursor { after: Option<Vec<Value>>, limit: u64 },
}

impl Pagination {
    /// Takes the server's cap into account: no pagination becomes the first page, and no page is larger.
    pub(crate) fn capped(self, max: Option<u64>) -> Result<Self> {
        let Some(max) = max else { return Ok(self) };
        match &self {
            Self::None => Ok(Self::Page { page: 0, limit: max }),
            Self::Page { limit, .. } | Self::Offset { limit, .. } | Self::Cursor { limit, .. } if *limit > max => {
                Err(ApiError::bad_input(format!("pagination: limit must be at most {max}")))
            }
            _ => Ok(self),
        }
    }

    /// The rows to read; one more than wanted where it matters whether there are more.
    pub(crate) fn page(&self, one_more: bool) -> Page {
        let more = u64::from(one_more);
        match self {
            Self::None => Page::All,
            Self::Page { page, limit } => {
                Page::Window { offset: page.saturating_mul(*limit), limit: limit.saturating_add(more) }
            }
            Self::Offset { offset, limit } => Page::Window { offset: *offset, limit: limit.saturating_add(more) },
            Self::Cursor { after, limit } => Page::After { key: after.clone(), limit: limit.saturating_add(more) },
        }
    }

    pub(crate) fn limit(&self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Page { limit, .. } | Self::Offset { limit, .. } | Self::Cursor { limit, .. } => Some(*limit),
        }
    }

    /// Whether there are rows before the page, as far as that is known without a look.
    pub(crate) fn has_previous(&self) -> bool {
        match self {
            Self::None | Self::Cursor { .. } => false,
            Self::Page { page, .. } => *page > 0,
            Self::Offset { offset, .. } => *offset > 0,
        }
    }

    /// `PaginationInfo`: current, offset, pages. None for cursors, which have no pages.
    pub(crate) fn info(&self, total: u64) -> Option<(u64, u64, u64)> {
        match self {
            Self::None => Some((1, 0, 1)),
            Self::Page { page, limit } => Some((*page, page.saturating_mul(*limit), total.div_ceil(*limit))),
            Self::Offset { offset, limit } => Some((offset.div_ceil(*limit), *offset, total.div_ceil(*limit))),
            Self::Cursor { .. } => None,
        }
    }
}

/// The cursor of a row within a list: its key, opaque. Not to be confused with the cursor of the log.
pub(crate) fn write_row_cursor<'a>(key: impl Iterator<Item = Option<&'a str>>) -> String {
    let mut json = String::from("[");
    for (index, cell) in key.enumerate() {
        if index > 0 {
            json.push(',');
        }
        json.push_str(cell.unwrap_or("null"));
    }
    json.push(']');
    data_encoding::BASE64URL_NOPAD.encode(json.as_bytes())
}

fn read_row_cursor(reader: Reader<'_>, cursor: &str) -> Result<Vec<Value>> {
    let read = || {
        let bytes = data_encoding::BASE64URL_NOPAD.decode(cursor.as_bytes()).ok()?;
        let json = String::from_utf8(bytes).ok()?;
        let mut scanner = tidewire_outbox::json::Scanner::new(&json);
        let mut key = Vec::new();
        for column in reader.entity.key_columns() {
            if !scanner.next_item().ok()? {
                return None;
            }
            key.push(cell::read_value(column, Some(scanner.value().ok()?))?);
        }
        Some(key)
    };
    read().ok_or_else(|| ApiError::bad_input("pagination: this is not a cursor of this list"))
}

pub(crate) fn object<'a>(value: &'a ConstValue, what: &str) -> Result<&'a Object> {
    match value {
        ConstValue::Object(object) => Ok(object),
        _ => Err(ApiError::bad_input(format!("{what} must be an object"))),
    }
}

/// A single value stands for a list of one, as GraphQL has it.
pub(crate) fn list(value: &ConstValue) -> Cow<'_, [ConstValue]> {
    match value {
        ConstValue::List(items) => Cow::Borrowed(items),
        other => Cow::Owned(vec![other.clone()]),
    }
}

/// The name of an enum value: in a document it is a name, in variables a text.
pub(crate) fn enum_name(value: &ConstValue) -> Option<&str> {
    match value {
        ConstValue::Enum(name) => Some(name.as_str()),
        ConstValue::String(name) => Some(name),
        _ => None,
    }
}
