//! One change per row and statement, in databases with triggers of their own.
//!
//! There a statement may touch a row in several steps, and each step is recorded. After the statement they become one change, from the row
//! before the first step to the row after the last; a row that ends as it began did not change.
//!
//! Nearly always the steps are recorded in their true order, since SQLite fires temporary triggers before a table's own: the statement's own
//! step first, then what the application's triggers add. But foreign key actions come before all `AFTER` triggers, so what *their* triggers do
//! to the row is recorded too early. [`IS_ORDERED`] notices that one step does not begin where the last ended, and [`settle`] works out what
//! happened from all the steps and the row as it is stored.

use std::collections::BTreeMap;

use sea_orm::{DbErr, sea_query::Values};
use sea_query_sqlx::SqlxValues;
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::{dialect::SqliteDialect, triggers, writer::exec_error};
use crate::{
    cell,
    error::Result,
    filter::{Comparison, Filter},
    image::Image,
    registry::{Catalog, EntityMeta},
    sql::{self, Sql},
};

/// The statements that follow each statement of the caller's.
pub(super) const STATEMENTS: &[&str] = &[IS_ORDERED, JOIN, DROP];

/// Fails where a step does not begin where the one before it ended.
const IS_ORDERED: &str = "
UPDATE tidewire_context SET unordered = EXISTS (
  SELECT 1 FROM (
    SELECT before, lag(after) OVER steps AS ended, row_number() OVER steps AS step FROM tidewire_outbox
    WHERE seq > (SELECT since FROM tidewire_context) WINDOW steps AS (PARTITION BY entity, key ORDER BY seq))
  WHERE step > 1 AND before IS NOT ended)";

/// Writes what all steps of a row come to into the last of them.
const JOIN: &str = "
UPDATE tidewire_outbox AS step SET
  operation = CASE
    WHEN first.operation = 'insert' AND step.operation = 'delete' THEN 'none'
    WHEN first.operation = 'insert' THEN 'insert'
    WHEN step.operation = 'delete' THEN 'delete'
    ELSE 'update' END,
  before = first.before
FROM (
  SELECT min(seq) AS first, max(seq) AS last FROM tidewire_outbox
  WHERE seq > (SELECT since FROM tidewire_context) GROUP BY entity, key HAVING count(*) > 1) AS steps
JOIN tidewire_outbox AS first ON first.seq = steps.first
WHERE step.seq = steps.last";

/// Removes the other steps, and what came to nothing.
const DROP: &str = "
DELETE FROM tidewire_outbox WHERE seq > (SELECT since FROM tidewire_context) AND (
  operation = 'none'
  OR operation = 'update' AND before = after
  OR seq NOT IN (
    SELECT max(seq) FROM tidewire_outbox WHERE seq > (SELECT since FROM tidewire_context) GROUP BY entity, key))";

/// Whether an error says that steps are not in order.
pub(super) fn is_unordered(error: &DbErr) -> bool {
    error.to_string().contains(triggers::ORDERED)
}

struct Step {
    seq: i64,
    before: Option<String>,
    after: Option<String>,
}

/// Makes one step of those that are not in order. The others are left for [`JOIN`].
pub(super) async fn settle(sqlite: &mut SqliteConnection, catalog: &Catalog) -> Result<(), DbErr> {
    let rows = sqlx::query(
        "SELECT entity, key, seq, before, after FROM tidewire_outbox WHERE seq > (SELECT since FROM tidewire_context) ORDER BY seq",
    )
    .fetch_all(&mut *sqlite)
    .await
    .map_err(exec_error)?;
    let mut by_row: BTreeMap<(String, String), Vec<Step>> = BTreeMap::new();
    for row in rows {
        let step = Step { seq: row.get(2), before: row.get(3), after: row.get(4) };
        by_row.entry((row.get(0), row.get(1))).or_default().push(step);
    }
    for ((entity, _), steps) in by_row {
        let Some(entity) = catalog.find(&entity) else { continue };
        if steps.windows(2).any(|pair| pair[0].after != pair[1].before) {
            settle_row(sqlite, entity, &steps).await?;
        }
    }
    Ok(())
}

async fn settle_row(sqlite: &mut SqliteConnection, entity: &EntityMeta, steps: &[Step]) -> Result<(), DbErr> {
    let stored = stored(sqlite, entity, &steps[0]).await?;
    // It began where no step ended. If every beginning is an end too, the steps go round in a circle, and it is again as it was.
    let began = steps.iter().map(|step| &step.before).find(|before| steps.iter().all(|step| step.after != **before));
    let before = began.unwrap_or(&stored);
    let operation = match (before, &stored) {
        (None, Some(_)) => "insert",
        (Some(_), None) => "delete",
        (None, None) => "none",
        (Some(_), Some(_)) => "update",
    };
    let (first, last) = (steps[0].seq, steps[steps.len() - 1].seq);
    for step in &steps[..steps.len() - 1] {
        let delete = sqlx::query("DELETE FROM tidewire_outbox WHERE seq = ?").bind(step.seq);
        delete.execute(&mut *sqlite).await.map_err(exec_error)?;
    }
    debug_assert!(first < last);
    sqlx::query("UPDATE tidewire_outbox SET operation = ?, before = ?, after = ? WHERE seq = ?")
        .bind(operation)
        .bind(before)
        .bind(&stored)
        .bind(last)
        .execute(sqlite)
        .await
        .map_err(exec_error)?;
    Ok(())
}

/// The row as it is now, in the form in which the triggers write it.
async fn stored(sqlite: &mut SqliteConnection, entity: &EntityMeta, step: &Step) -> Result<Option<String>, DbErr> {
    const ROW: &str = "stored";
    let json = step.after.as_ref().or(step.before.as_ref()).map_or("{}", String::as_str);
    let image = Image::from_object(entity, &SqliteDialect, json)?;
    let key = entity.key.iter().map(|&column| {
        let value = cell::read_value(&entity.columns[column], image.cell(column));
        Filter::Compare(column, Comparison::Equal, value.unwrap_or_else(|| entity.columns[column].null()))
    });
    let mut select = Sql::default();
    select.push("SELECT ").push(&triggers::image(entity, ROW)).push(" FROM main.");
    sql::table(&SqliteDialect, entity, &mut select.text);
    select.push(" AS ").push(ROW).push(" WHERE ");
    sql::write_condition(&SqliteDialect, entity, ROW, &Filter::All(key.collect()), &mut select);
    let row = sqlx::query_with(AssertSqlSafe(select.text), SqlxValues(Values(select.values)))
        .fetch_optional(sqlite)
        .await
        .map_err(exec_error)?;
    Ok(row.map(|row| row.get(0)))
}
