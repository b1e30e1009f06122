use super::{Column, Dialect, Sql};
use crate::{filter::Filter, registry::EntityMeta};

/// Writes a filter as a condition on the rows that `alias` stands for.
pub(crate) fn write(dialect: &dyn Dialect, entity: &EntityMeta, alias: &str, filter: &Filter, sql: &mut Sql) {
    let column = |index: usize| Column { alias, meta: &entity.columns[index] };
    match filter {
        Filter::All(parts) => join(dialect, entity, alias, parts, " AND ", "TRUE", sql),
        Filter::Any(parts) => join(dialect, entity, alias, parts, " OR ", "FALSE", sql),
        Filter::Not(inner) => {
            sql.push("NOT (");
            write(dialect, entity, alias, inner, sql);
            sql.push(")");
        }
        Filter::IsNull(index) => {
            column(*index).write(dialect, sql);
            sql.push(" IS NULL");
        }
        Filter::Compare(index, comparison, value) => dialect.compare(column(*index), *comparison, value, sql),
        Filter::In(_, values) if values.is_empty() => {
            sql.push("FALSE");
        }
        Filter::In(index, values) => dialect.is_in(column(*index), values, sql),
        Filter::Between(index, low, high) => dialect.between(column(*index), low, high, sql),
        Filter::Like(index, like) => dialect.like(column(*index), like, sql),
        Filter::Array(index, operator, values) => dialect.compare_array(column(*index), *operator, values, sql),
        Filter::EqualsIgnoringCase(index, text) => dialect.equals_ignoring_case(column(*index), text, sql),
    }
}

fn join(
    dialect: &dyn Dialect,
    entity: &EntityMeta,
    alias: &str,
    parts: &[Filter],
    by: &str,
    empty: &str,
    sql: &mut Sql,
) {
    match parts {
        [] => {
            sql.push(empty);
        }
        [only] => write(dialect, entity, alias, only, sql),
        parts => sql.joined(by, parts, &mut |sql, part| write(dialect, entity, alias, part, sql)),
    }
}
