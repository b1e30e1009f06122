//! Capture of what other programs write: triggers that stay in the database.
//!
//! The recorder's own connection has its temporary triggers under every capture. Those here are for everybody else, so they do nothing while
//! the recorder writes: `tidewire_others.held` says so, inside its transaction.
//!
//! *Transactions.* Nothing tells a trigger which transaction it is in, so another program's changes are numbered by a stamp, and whoever reads
//! ends it: a reader that finds changes with the current stamp, which are of whole transactions since SQLite has one writer, raises it
//! before it gives them out. What other programs committed between two looks is one transaction. The recorder raises the stamp too, so
//! its own stand between.
//!
//! *`REPLACE`.* SQLite shows triggers the rows that it removes only if the connection asks for recursive triggers, and other programs do not. So
//! a row that stands in the way of a new one is noted before, and recorded as deleted after, if it is gone. A row that was noted and stayed,
//! since the statement was ignored or became an update, is forgotten by the next.

use std::fmt::Write;

use sqlx::{AssertSqlSafe, Executor, Row, SqliteConnection};

use super::{
    database_error,
    dialect::SqliteDialect,
    triggers::{self, Recording},
};
use crate::{
    error::{Error, ErrorKind, Result},
    registry::{Catalog, EntityMeta},
    sql::Dialect,
};

/// What is said at the start of the recorder's transactions, and before their ends.
pub(super) const HOLD: &str = "UPDATE main.tidewire_others SET held = 1, stamp = stamp + 1";
pub(super) const RELEASE: &str = "UPDATE main.tidewire_others SET held = 0";

/// Ends a stamp that a reader has seen.
pub(super) fn raise(stamp: i64) -> String {
    format!("UPDATE main.tidewire_others SET stamp = {stamp} + 1 WHERE stamp = {stamp}")
}

/// Another program's name is not known; and it may be built with a SQLite that lacks newer functions.
const RECORDING: Recording = Recording {
    context: "-stamp, 'database', NULL, NULL, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) FROM tidewire_others",
};

/// What tells two rows of a table apart: the key, or a unique index, with the collations that it compares by.
type Unique = Vec<(String, String)>;

/// Puts the triggers in place, or brings them up to date. All of them or none.
pub(super) async fn install(conn: &mut SqliteConnection, catalog: &Catalog) -> Result<()> {
    let mut text = String::from("BEGIN IMMEDIATE;");
    for (name, sql) in wanted(conn, catalog).await? {
        let _ = write!(text, "DROP TRIGGER IF EXISTS main.{}; {sql};", quoted(&name));
    }
    text.push_str("COMMIT");
    let installed = conn.execute(AssertSqlSafe(text)).await;
    if installed.is_err() {
        // The first error is the one to tell.
        let _ = conn.execute("ROLLBACK").await;
    }
    installed.map(drop).map_err(database_error)
}

/// Removes the triggers of all entities, also of those that are not registered any more.
pub(super) async fn remove(conn: &mut SqliteConnection) -> Result<()> {
    for (name, _) in found(conn).await? {
        conn.execute(AssertSqlSafe(format!("DROP TRIGGER main.{}", quoted(&name)))).await.map_err(database_error)?;
    }
    Ok(())
}

/// Looks whether the triggers are in place and up to date.
///
/// # Errors
/// [`ErrorKind::Setup`] naming those that are not.
pub(super) async fn check(conn: &mut SqliteConnection, catalog: &Catalog) -> Result<()> {
    let found = found(conn).await?;
    let wanted = wanted(conn, catalog).await?;
    let missing = wanted.into_iter().filter(|trigger| !found.contains(trigger)).map(|(name, _)| name);
    let missing: Vec<_> = missing.collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Setup,
        format!(
            "the triggers {} are missing or out of date. `tidewire capture install` puts them in place, or `Recorder::install_capture` from a \
             program",
            missing.join(", ")
        ),
    ))
}

async fn found(conn: &mut SqliteConnection) -> Result<Vec<(String, String)>> {
    let rows = conn.fetch_all(
        "SELECT name, sql FROM main.sqlite_schema WHERE type = 'trigger' AND name LIKE 'tidewire\\_%' ESCAPE '\\'",
    );
    Ok(rows.await.map_err(database_error)?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The triggers by name.
async fn wanted(conn: &mut SqliteConnection, catalog: &Catalog) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for entity in catalog.entities() {
        let uniques = uniques(conn, entity).await?;
        all.extend(of_entity(entity, &uniques));
    }
    Ok(all)
}

/// How the table tells rows apart, beside its key.
async fn uniques(conn: &mut SqliteConnection, entity: &EntityMeta) -> Result<Vec<Unique>> {
    let rows = sqlx::query(
        "SELECT i.name, x.cid, x.name, x.coll FROM pragma_index_list(?) i, pragma_index_xinfo(i.name) x
         WHERE i.\"unique\" AND i.origin <> 'pk' AND x.key ORDER BY i.name, x.seqno",
    )
    .bind(entity.name)
    .fetch_all(conn)
    .await
    .map_err(database_error)?;
    let mut uniques: Vec<(String, Unique)> = Vec::new();
    for row in rows {
        let (index, column): (String, Option<String>) = (row.get(0), row.get(2));
        let Some(column) = column else {
            return Err(Error::new(
                ErrorKind::Setup,
                format!(
                    "the unique index {index} of {} is on an expression, so triggers could not tell which rows a REPLACE removes. Capture by \
                     hooks, or make the index one of columns",
                    entity.name
                ),
            ));
        };
        if uniques.last().is_none_or(|(last, _)| *last != index) {
            uniques.push((index, Vec::new()));
        }
        if let Some((_, columns)) = uniques.last_mut() {
            columns.push((column, row.get(3)));
        }
    }
    Ok(uniques.into_iter().map(|(_, columns)| columns).collect())
}

fn of_entity(entity: &EntityMeta, uniques: &[Unique]) -> Vec<(String, String)> {
    let records = |operation, before, after| RECORDING.record(entity, operation, before, after);
    let entity_name = triggers::text(entity.name);
    let forget = format!("DELETE FROM tidewire_replaced WHERE entity = {entity_name}; ");
    let key = |row: &str| triggers::key(entity, row);
    // Rows that stand in the way of the new one.
    let note = |but_not: &str| {
        format!(
            "{forget}INSERT INTO tidewire_replaced SELECT {entity_name}, {}, {} FROM {} AS t WHERE ({}){but_not}; ",
            key("t"),
            triggers::image(entity, "t"),
            quoted(entity.name),
            in_the_way(entity, uniques),
        )
    };
    let removed = format!(
        "INSERT INTO tidewire_outbox (entity, operation, key, before, tx, actor, origin, mutation_id, at) \
         SELECT r.entity, 'delete', r.key, r.before, {context}, tidewire_replaced r WHERE r.entity = {entity_name} \
         AND (r.key = {new} OR NOT EXISTS (SELECT 1 FROM {table} AS t WHERE {key} = r.key)); {forget}",
        context = RECORDING.context,
        new = key("NEW"),
        table = quoted(entity.name),
        key = key("t"),
    );
    let (key_differs, row_differs) = (triggers::key_differs(entity), triggers::row_differs(entity));
    let insert = records("insert", None, Some("NEW"));
    let delete = records("delete", Some("OLD"), None);
    let update = records("update", Some("OLD"), Some("NEW"));
    let seen = format!("DELETE FROM tidewire_replaced WHERE entity = {entity_name} AND key = {}; ", key("OLD"));
    let other_row = format!(" AND {} <> {}", key("t"), key("OLD"));
    [
        ("before_insert", "BEFORE INSERT", "TRUE", note("")),
        ("insert", "AFTER INSERT", "TRUE", format!("{removed}{insert}")),
        ("before_update", "BEFORE UPDATE", "TRUE", note(&other_row)),
        ("update", "AFTER UPDATE", &format!("({row_differs}) AND NOT ({key_differs})"), format!("{removed}{update}")),
        ("rekey", "AFTER UPDATE", &key_differs, format!("{removed}{delete}{insert}")),
        ("delete", "AFTER DELETE", "TRUE", format!("{seen}{delete}")),
    ]
    .into_iter()
    .map(|(name, event, when, body)| {
        let name = format!("tidewire_{}_{name}", entity.name);
        let sql = format!(
            "CREATE TRIGGER {} {event} ON {} WHEN NOT (SELECT held FROM tidewire_others) AND ({when}) BEGIN {body}END",
            quoted(&name),
            quoted(entity.name),
        );
        (name, sql)
    })
    .collect()
}

/// True of a row `t` that cannot stand beside `NEW`.
fn in_the_way(entity: &EntityMeta, uniques: &[Unique]) -> String {
    let key = entity.key_columns().map(|column| same(column.name, None)).collect::<Vec<_>>().join(" AND ");
    let mut ways = vec![format!("({key})")];
    for unique in uniques {
        let columns: Vec<_> = unique.iter().map(|(column, collation)| same(column, Some(collation))).collect();
        ways.push(format!("({})", columns.join(" AND ")));
    }
    ways.join(" OR ")
}

fn same(column: &str, collation: Option<&str>) -> String {
    let column = quoted(column);
    let collate = collation.map(|collation| format!(" COLLATE {}", quoted(collation))).unwrap_or_default();
    format!("t.{column}{collate} = NEW.{column}")
}

fn quoted(name: &str) -> String {
    let mut out = String::new();
    SqliteDialect.identifier(name, &mut out);
    out
}
