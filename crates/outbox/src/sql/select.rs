use sea_orm::{
    Condition,
    sea_query::{Alias, Expr, IntoIden, MysqlQueryBuilder, PostgresQueryBuilder, Query, SqliteQueryBuilder, Value},
};

use super::{Column, Dialect, Sql, condition, table};
use crate::{
    filter::Filter,
    registry::{Catalog, EntityId, EntityMeta, RelationMeta},
};

/// Rows of one entity, with what hangs on them.
#[derive(Debug, Clone)]
pub struct Select {
    /// Whose rows.
    pub entity: EntityId,
    /// What each row carries, in this order.
    pub items: Vec<Item>,
    /// Which rows.
    pub filter: Filter,
    /// Which rows of the table in the middle lead here, of a select at the end of a many-to-many relation.
    pub through: Filter,
    /// Only rows that have such related rows.
    pub having: Vec<Having>,
    /// In which order; the primary key decides what this leaves open.
    pub order: Vec<(usize, Direction)>,
    /// Which part of them.
    pub page: Page,
    /// Whether to count all rows, whatever the page.
    pub total: bool,
    /// Whether to look for rows before the page. Only [`Page::After`] needs to.
    pub previous: bool,
    /// What to compute over all rows, whatever the page.
    pub aggregates: Vec<Aggregate>,
}

impl Select {
    /// All rows of an entity, with nothing asked of them yet.
    pub fn new(entity: EntityId) -> Self {
        Self {
            entity,
            items: Vec::new(),
            filter: Filter::all(),
            through: Filter::all(),
            having: Vec::new(),
            order: Vec::new(),
            page: Page::All,
            total: false,
            previous: false,
            aggregates: Vec::new(),
        }
    }

    /// The columns that decide the order of the rows, one after the other: those that were asked for, then what they leave open of the primary key.
    pub fn sorting(&self, entity: &EntityMeta) -> Vec<(usize, Option<Direction>)> {
        // A page after a key is cut by the key, so it is ordered by the key, whatever else was asked.
        let order: &[(usize, Direction)] = match self.page {
            Page::After { .. } => &[],
            _ => &self.order,
        };
        let rest = entity.key.iter().filter(|key| !order.iter().any(|(column, _)| column == *key));
        let asked = order.iter().map(|&(column, direction)| (column, Some(direction)));
        asked.chain(rest.map(|&column| (column, None))).collect()
    }
}

/// One thing that a row carries.
#[derive(Debug, Clone)]
pub enum Item {
    /// A column.
    Cell(usize),
    /// The columns of the primary key, as an array.
    Key,
    /// The row at the other end of a to-one relation, or null. Of its select only the items and the filter count.
    One(usize, Select),
    /// The rows at the other end of a to-many relation.
    Many(usize, Select),
}

/// A condition on the rows at the other end of a relation: one of them must pass.
#[derive(Debug, Clone)]
pub struct Having {
    /// The relation's index in its entity.
    pub relation: usize,
    /// What the related row must pass.
    pub filter: Filter,
    /// What the row of the table in the middle must pass, of a many-to-many relation.
    pub through: Filter,
}

/// Up or down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Smallest first.
    Ascending,
    /// Largest first.
    Descending,
}

/// Which part of the rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Page {
    /// All of them.
    All,
    /// So many, after leaving out so many.
    Window {
        /// How many to leave out.
        offset: u64,
        /// How many to take.
        limit: u64,
    },
    /// So many, in the order of the primary key, after a key.
    After {
        /// The key, or none to start with the first row.
        key: Option<Vec<Value>>,
        /// How many to take.
        limit: u64,
    },
}

/// A value computed over rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregate {
    /// How many rows.
    Count,
    /// The smallest value of a column.
    Min(usize),
    /// The largest value of a column.
    Max(usize),
    /// The sum of a column.
    Sum(usize),
    /// The mean of a column.
    Avg(usize),
}

/// Writes `SELECT [rows, total, previous, aggregates]` as one JSON value; parts that were not asked for are null.
pub(crate) fn write(dialect: &dyn Dialect, catalog: &Catalog, select: &Select, sql: &mut Sql) {
    sql.push("SELECT ");
    Writer { dialect, catalog }.many(select, None, 0, sql);
}

/// Writes `SELECT [cell, …]` per row, for reads that take rows one by one.
pub(crate) fn write_rows(dialect: &dyn Dialect, catalog: &Catalog, select: &Select, sql: &mut Sql) {
    let writer = Writer { dialect, catalog };
    let (before, after) = dialect.json_as_text();
    sql.push("SELECT ").push(before);
    writer.row(select, 0, sql);
    sql.push(after).push(" FROM ");
    writer.source(select, None, 0, sql);
    writer.order_and_limit(select, 0, sql);
}

struct Writer<'a> {
    dialect: &'a dyn Dialect,
    catalog: &'a Catalog,
}

/// The relation that leads to a select, with the alias of the rows that it starts from.
#[derive(Clone, Copy)]
struct Link<'a> {
    relation: &'a RelationMeta,
    from: &'a EntityMeta,
    /// What rows of the junction must pass.
    through: &'a Filter,
    depth: usize,
}

impl Writer<'_> {
    /// The four parts of a to-many select.
    fn many(&self, select: &Select, link: Option<Link<'_>>, depth: usize, sql: &mut Sql) {
        let [open, between, close] = self.dialect.array();
        sql.push(open);
        if select.items.is_empty() {
            sql.push(self.dialect.null());
        } else {
            self.rows(select, link, depth, sql);
        }
        sql.push(between);
        self.part(select.total, sql, |sql| {
            sql.push("(SELECT count(*) FROM ");
            self.source_of_all(select, link, depth, sql);
            sql.push(")");
        });
        sql.push(between);
        let before = match &select.page {
            Page::After { key: Some(key), .. } if select.previous => Some(key),
            _ => None,
        };
        self.part(before.is_some(), sql, |sql| {
            // MariaDB's truth is of no character set.
            sql.push("CASE WHEN EXISTS (SELECT 1 FROM ");
            self.source_of_all(select, link, depth, sql);
            sql.push(" AND ");
            self.compare_key(select, depth, "<=", before.expect("just checked"), sql);
            sql.push(") THEN 1 ELSE 0 END");
        });
        sql.push(between);
        self.part(!select.aggregates.is_empty(), sql, |sql| {
            sql.push("(SELECT ");
            sql.array(self.dialect, &select.aggregates, |sql, aggregate| {
                self.aggregate(select, *aggregate, depth, sql);
            });
            sql.push(" FROM ");
            self.source_of_all(select, link, depth, sql);
            sql.push(")");
        });
        sql.push(close);
    }

    /// The rows of the page as an array.
    fn rows(&self, select: &Select, link: Option<Link<'_>>, depth: usize, sql: &mut Sql) {
        sql.push("(SELECT ");
        match self.dialect.array_of_ordered_rows() {
            Some([before, order, limit, after]) if link.is_some() => {
                sql.push(before);
                self.row(select, depth, sql);
                sql.push(order);
                self.order(select, depth, sql);
                sql.push(limit);
                self.limit(select, sql);
                sql.push(after).push(" FROM ");
                self.source(select, link, depth, sql);
            }
            _ => {
                let (before, after) = self.dialect.array_of_rows();
                sql.push(before);
                self.row(select, depth, sql);
                // The inner select has the order and the limit; its limit, even an empty one, keeps the database from reordering.
                sql.push(after).push(" FROM (SELECT ");
                self.columns(select, depth, sql);
                sql.push(" FROM ");
                self.source(select, link, depth, sql);
                self.order_and_limit(select, depth, sql);
                sql.push(") ").push(&alias(depth));
            }
        }
        sql.push(")");
    }

    fn part(&self, wanted: bool, sql: &mut Sql, write: impl FnOnce(&mut Sql)) {
        if wanted {
            write(sql);
        } else {
            sql.push(self.dialect.null());
        }
    }

    /// One row as a JSON array of its items.
    fn row(&self, select: &Select, depth: usize, sql: &mut Sql) {
        let entity = self.catalog.entity(select.entity);
        sql.array(self.dialect, &select.items, |sql, item| match item {
            Item::Cell(column) => self.cell(entity, *column, depth, sql),
            Item::Key => sql.array(self.dialect, &entity.key, |sql, &column| self.cell(entity, column, depth, sql)),
            Item::One(relation, inner) => {
                let link =
                    Link { relation: &entity.relations[*relation], from: entity, through: &inner.through, depth };
                let (before, after) = self.dialect.maybe();
                sql.push(before).push("(SELECT ");
                self.row(inner, depth + 1, sql);
                sql.push(" FROM ");
                self.source(inner, Some(link), depth + 1, sql);
                sql.push(" LIMIT 1)").push(after);
            }
            Item::Many(relation, inner) => {
                let link =
                    Link { relation: &entity.relations[*relation], from: entity, through: &inner.through, depth };
                self.many(inner, Some(link), depth + 1, sql);
            }
        });
    }

    fn cell(&self, entity: &EntityMeta, column: usize, depth: usize, sql: &mut Sql) {
        let meta = &entity.columns[column];
        let mut expression = alias(depth);
        expression.push('.');
        self.dialect.identifier(meta.name, &mut expression);
        self.dialect.packed(&meta.kind, &expression, &mut sql.text);
    }

    /// The columns that the rows and what hangs on them need.
    fn columns(&self, select: &Select, depth: usize, sql: &mut Sql) {
        let entity = self.catalog.entity(select.entity);
        let mut needed: Vec<usize> = Vec::new();
        for item in &select.items {
            match item {
                Item::Cell(column) => needed.push(*column),
                Item::Key => needed.extend(&entity.key),
                Item::One(relation, _) | Item::Many(relation, _) => needed.extend(&entity.relations[*relation].from),
            }
        }
        needed.sort_unstable();
        needed.dedup();
        sql.separated(", ", needed, |sql, column| {
            sql.column(self.dialect, &alias(depth), entity.columns[column].name);
        });
        if select.items.iter().any(|item| self.has_extra_condition(entity, item)) {
            // What an extra condition reads is not ours to know.
            sql.push(", ").push(&alias(depth)).push(".*");
        }
    }

    fn has_extra_condition(&self, entity: &EntityMeta, item: &Item) -> bool {
        match item {
            Item::One(relation, _) | Item::Many(relation, _) => entity.relations[*relation].condition.is_some(),
            Item::Cell(_) | Item::Key => false,
        }
    }

    /// `table [JOIN junction] WHERE …` for the rows of the page, without its limit.
    fn source(&self, select: &Select, link: Option<Link<'_>>, depth: usize, sql: &mut Sql) {
        self.source_of_all(select, link, depth, sql);
        if let Page::After { key: Some(key), .. } = &select.page {
            sql.push(" AND ");
            self.compare_key(select, depth, ">", key, sql);
        }
    }

    /// `table [JOIN junction] WHERE …` for all rows, whatever the page.
    fn source_of_all(&self, select: &Select, link: Option<Link<'_>>, depth: usize, sql: &mut Sql) {
        let entity = self.catalog.entity(select.entity);
        let here = alias(depth);
        self.linked_source(entity, link, &here, depth, sql);
        condition::write(self.dialect, entity, &here, &select.filter, sql);
        for having in &select.having {
            sql.push(" AND EXISTS (SELECT 1 FROM ");
            let relation = &entity.relations[having.relation];
            let target = self.catalog.entity(relation.target);
            let there = alias(depth + 1);
            let link = Link { relation, from: entity, through: &having.through, depth };
            self.linked_source(target, Some(link), &there, depth + 1, sql);
            condition::write(self.dialect, target, &there, &having.filter, sql);
            sql.push(")");
        }
    }

    /// `table alias [JOIN junction] WHERE <the link's columns are equal> AND `, so that a condition can follow.
    fn linked_source(&self, entity: &EntityMeta, link: Option<Link<'_>>, here: &str, depth: usize, sql: &mut Sql) {
        table(self.dialect, entity, &mut sql.text);
        sql.push(" ").push(here);
        let Some(link) = link else {
            sql.push(" WHERE ");
            return;
        };
        let there = alias(link.depth);
        let equal = |sql: &mut Sql, left: (&str, &EntityMeta, &[usize]), right: (&str, &EntityMeta, &[usize])| {
            sql.separated(" AND ", left.2.iter().zip(right.2), |sql, (&a, &b)| {
                sql.column(self.dialect, left.0, left.1.columns[a].name).push(" = ");
                sql.column(self.dialect, right.0, right.1.columns[b].name);
            });
        };
        let relation = link.relation;
        if let Some(junction) = &relation.junction {
            let middle = self.catalog.entity(junction.entity);
            let between = format!("j{depth}");
            sql.push(" JOIN ");
            table(self.dialect, middle, &mut sql.text);
            sql.push(" ").push(&between).push(" ON ");
            equal(sql, (&between, middle, &junction.from), (here, entity, &junction.to));
            sql.push(" WHERE ");
            equal(sql, (&between, middle, &relation.to), (&there, link.from, &relation.from));
            if !link.through.is_all() {
                sql.push(" AND ");
                condition::write(self.dialect, middle, &between, link.through, sql);
            }
        } else {
            sql.push(" WHERE ");
            if let Some(extra) = &relation.condition {
                sql.push("((");
                equal(sql, (here, entity, &relation.to), (&there, link.from, &relation.from));
                sql.push(if extra.alternative { ") OR " } else { ") AND " });
                let condition = (extra.build)(Alias::new(&there).into_iden(), Alias::new(here).into_iden());
                self.foreign_condition(condition, sql);
                sql.push(")");
            } else {
                equal(sql, (here, entity, &relation.to), (&there, link.from, &relation.from));
            }
        }
        sql.push(" AND ");
    }

    /// Writes a condition that the entity's author built with SeaQuery.
    fn foreign_condition(&self, condition: Condition, sql: &mut Sql) {
        const HEAD: &str = "SELECT 1 WHERE ";
        let statement = Query::select().expr(Expr::cust("1")).cond_where(condition).take();
        let (text, values) = match self.dialect.backend() {
            sea_orm::DbBackend::Postgres => statement.build(PostgresQueryBuilder),
            sea_orm::DbBackend::MySql => statement.build(MysqlQueryBuilder),
            _ => statement.build(SqliteQueryBuilder),
        };
        let text = text.strip_prefix(HEAD).unwrap_or("TRUE");
        let text = renumbered(text, sql.values.len());
        sql.push("(").push(&text).push(")");
        sql.values.extend(values);
    }

    fn order_and_limit(&self, select: &Select, depth: usize, sql: &mut Sql) {
        sql.push(" ORDER BY ");
        self.order(select, depth, sql);
        self.limit(select, sql);
    }

    fn order(&self, select: &Select, depth: usize, sql: &mut Sql) {
        let entity = self.catalog.entity(select.entity);
        let here = alias(depth);
        sql.separated(", ", select.sorting(entity), |sql, (column, asked)| {
            let column = Column { alias: &here, meta: &entity.columns[column] };
            match asked {
                Some(direction) => {
                    self.dialect.order_by(column, sql);
                    if direction == Direction::Descending {
                        sql.push(" DESC");
                    }
                }
                // In the order of its index, whichever that is, as the key is compared.
                None => column.write(self.dialect, sql),
            }
        });
    }

    fn limit(&self, select: &Select, sql: &mut Sql) {
        let (limit, offset) = match select.page {
            Page::All => (None, 0),
            Page::Window { offset, limit } => (Some(limit), offset),
            Page::After { limit, .. } => (Some(limit), 0),
        };
        self.dialect.limit(limit, offset, sql);
    }

    /// `(key columns) <op> (values)`.
    fn compare_key(&self, select: &Select, depth: usize, operator: &str, key: &[Value], sql: &mut Sql) {
        let entity = self.catalog.entity(select.entity);
        let here = alias(depth);
        sql.push("(");
        sql.separated(", ", entity.key_columns(), |sql, column| {
            sql.column(self.dialect, &here, column.name);
        });
        sql.push(") ").push(operator).push(" (");
        sql.separated(", ", key, |sql, value| {
            sql.bind(self.dialect, value.clone());
        });
        sql.push(")");
    }

    fn aggregate(&self, select: &Select, aggregate: Aggregate, depth: usize, sql: &mut Sql) {
        let entity = self.catalog.entity(select.entity);
        let of = |index: usize| {
            let mut column = Sql::default();
            column.column(self.dialect, &alias(depth), entity.columns[index].name);
            (&entity.columns[index].kind, column.text)
        };
        match aggregate {
            Aggregate::Count => {
                sql.push("count(*)");
            }
            Aggregate::Min(index) => {
                let (kind, column) = of(index);
                self.dialect.packed_extreme("min", kind, &column, &mut sql.text);
            }
            Aggregate::Max(index) => {
                let (kind, column) = of(index);
                self.dialect.packed_extreme("max", kind, &column, &mut sql.text);
            }
            Aggregate::Sum(index) => {
                let (kind, column) = of(index);
                self.dialect.packed_sum(kind, &column, &mut sql.text);
            }
            Aggregate::Avg(index) => {
                self.dialect.packed_mean(&of(index).1, &mut sql.text);
            }
        }
    }
}

/// A text whose placeholders, where they have numbers, count on from those that stand before it.
fn renumbered(text: &str, before: usize) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut quoted = None;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        out.push(c);
        match (quoted, c) {
            (None, '\'' | '"' | '`') => quoted = Some(c),
            (Some(quote), _) if quote == c => quoted = None,
            (None, '$') => {
                let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
                if let Ok(number) = rest[..digits].parse::<usize>() {
                    out.push_str(&(number + before).to_string());
                    rest = &rest[digits..];
                }
            }
            _ => {}
        }
    }
    out
}

fn alias(depth: usize) -> String {
    format!("t{depth}")
}
