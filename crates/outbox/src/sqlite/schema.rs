//! The outbox's own tables on SQLite, and what the application's schema means for capture.

use sqlx::{Row, SqliteConnection};

use super::statement;
use crate::{
    capture::Capture,
    error::{Error, ErrorKind, Result},
    filter::{Collation, Semantics},
    registry::{Catalog, Kind},
};

/// Each version's statements; a version is never edited once released. `seq` is AUTOINCREMENT so that a pruned number is never given again.
pub(crate) const VERSIONS: &[&str] = &["
CREATE TABLE tidewire_outbox (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  tx INTEGER NOT NULL,
  entity TEXT NOT NULL,
  operation TEXT NOT NULL,
  key TEXT NOT NULL,
  before TEXT,
  after TEXT,
  actor TEXT,
  origin TEXT,
  mutation_id TEXT,
  at INTEGER NOT NULL
);
CREATE TABLE tidewire_epoch (id INTEGER PRIMARY KEY AUTOINCREMENT, epoch INTEGER NOT NULL, since INTEGER NOT NULL, at INTEGER NOT NULL);
CREATE TABLE tidewire_log (one INTEGER PRIMARY KEY CHECK (one = 1), trimmed_through INTEGER NOT NULL, capture TEXT NOT NULL);
INSERT INTO tidewire_log VALUES (1, 0, 'hooks');
CREATE TABLE tidewire_others (one INTEGER PRIMARY KEY CHECK (one = 1), held INTEGER NOT NULL, stamp INTEGER NOT NULL);
INSERT INTO tidewire_others VALUES (1, 0, 1);
CREATE TABLE tidewire_replaced (entity TEXT NOT NULL, key TEXT NOT NULL, before TEXT NOT NULL);
CREATE TABLE tidewire_mutation (
  id TEXT NOT NULL,
  field TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  result TEXT NOT NULL,
  at INTEGER NOT NULL,
  PRIMARY KEY (id, field)
) WITHOUT ROWID;
CREATE INDEX tidewire_mutation_at ON tidewire_mutation (at);
CREATE TABLE tidewire_lease (
  name TEXT PRIMARY KEY,
  holder TEXT NOT NULL,
  token INTEGER NOT NULL,
  expires INTEGER NOT NULL
) WITHOUT ROWID;
"];

/// What was found in a database's schema.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Whether the application has triggers that write synced tables, or fire on them.
    pub(super) has_triggers: bool,
    pub(super) semantics: Semantics,
    pub(super) capture: Capture,
}

/// Looks at the schema once per connection that writes, and once for filters.
///
/// # Errors
/// [`ErrorKind::Setup`] naming what is missing (tables, columns) or cannot be captured.
pub(super) async fn inspect(conn: &mut SqliteConnection, catalog: &Catalog) -> Result<Found> {
    check_installed(conn).await?;
    let mut found = Found::default();
    let mut unseen = Vec::new();
    for row in sqlx::query("SELECT type, name, tbl_name, coalesce(sql, '') FROM main.sqlite_schema")
        .fetch_all(&mut *conn)
        .await
        .map_err(super::database_error)?
    {
        let (kind, name, table, sql): (String, String, String, String) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let about_us = match kind.as_str() {
            // Our own do nothing while we write.
            "trigger" if name.starts_with("tidewire_") => false,
            "trigger" => {
                catalog.find_ignoring_case(&table).is_some()
                    || catalog.entities().iter().any(|entity| mentions(&sql, entity.name))
            }
            "table" => catalog.find_ignoring_case(&name).is_some(),
            _ => false,
        };
        found.has_triggers |= about_us && kind == "trigger";
        if about_us && statement::resolves_conflicts_unseen(&sql) {
            unseen.push(format!("{kind} {name}"));
        }
        if kind == "table" {
            note_collations(&mut found.semantics, catalog, &name, &sql);
        }
    }
    if found.has_triggers && !unseen.is_empty() {
        return Err(Error::new(
            ErrorKind::Setup,
            format!(
                "{} resolve(s) conflicts by REPLACE, FAIL or ROLLBACK, which hides changes from capture in a database with triggers of its own. \
                 Use ABORT, IGNORE or an upsert there",
                unseen.join(", ")
            ),
        ));
    }
    check_columns(conn, catalog).await?;
    found.capture = capture(conn).await?;
    Ok(found)
}

/// How the database says that it is captured.
pub(super) async fn capture(conn: &mut SqliteConnection) -> Result<Capture> {
    check_installed(conn).await?;
    let name: String =
        sqlx::query_scalar("SELECT capture FROM tidewire_log").fetch_one(conn).await.map_err(super::database_error)?;
    name.parse()
}

async fn check_installed(conn: &mut SqliteConnection) -> Result<()> {
    let installed: i64 = sqlx::query_scalar("SELECT count(*) FROM main.sqlite_schema WHERE name = 'tidewire_outbox'")
        .fetch_one(&mut *conn)
        .await
        .map_err(super::database_error)?;
    if installed == 0 {
        return Err(Error::new(
            ErrorKind::Setup,
            "the database has no outbox. Run the migrations (`tidewire migrate up`), or `tidewire_outbox::install` from your own",
        ));
    }
    Ok(())
}

async fn check_columns(conn: &mut SqliteConnection, catalog: &Catalog) -> Result<()> {
    let mut missing = Vec::new();
    for entity in catalog.entities() {
        if let Some(column) = entity.columns.iter().find(|column| matches!(column.kind, Kind::Array(_))) {
            return Err(Error::new(
                ErrorKind::Setup,
                format!("{}.{} is an array, which SQLite does not have. PostgreSQL does", entity.name, column.name),
            ));
        }
        let columns: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_xinfo(?)")
            .bind(entity.name)
            .fetch_all(&mut *conn)
            .await
            .map_err(super::database_error)?;
        if columns.is_empty() {
            missing.push(format!("the table {}", entity.name));
            continue;
        }
        let lacks = |name: &str| !columns.iter().any(|column| column.eq_ignore_ascii_case(name));
        missing.extend(
            entity.columns.iter().filter(|c| lacks(c.name)).map(|c| format!("the column {}.{}", entity.name, c.name)),
        );
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::lacking(&missing))
}

fn note_collations(semantics: &mut Semantics, catalog: &Catalog, table: &str, sql: &str) {
    let Some(entity) = catalog.find_ignoring_case(table) else { return };
    semantics.collations.resize(catalog.entities().len(), Vec::new());
    let columns = &mut semantics.collations[entity.id.index()];
    columns.resize(entity.columns.len(), Collation::Binary);
    for (column, name) in statement::collations(sql) {
        if let Some(index) = entity.columns.iter().position(|meta| meta.name.eq_ignore_ascii_case(&column)) {
            columns[index] = match name.as_str() {
                "BINARY" => Collation::Binary,
                "NOCASE" => Collation::NoCase,
                "RTRIM" => Collation::RTrim,
                _ => Collation::Other,
            };
        }
    }
}

/// Whether a trigger's text names a table. A table's name inside another word does not count; one in a comment does, which only costs a
/// little speed.
fn mentions(sql: &str, table: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let sql = sql.to_ascii_lowercase();
    let table = table.to_ascii_lowercase();
    sql.match_indices(&table).any(|(at, _)| {
        !sql[..at].chars().next_back().is_some_and(is_word)
            && !sql[at + table.len()..].chars().next().is_some_and(is_word)
    })
}
