//! The outbox's own tables on MariaDB, and what the database's schema means for capture.

use sqlx::MySqlConnection;

use super::{binlog, database_error, layout::Layout, triggers};
use crate::{
    capture::Capture,
    error::{Error, ErrorKind, Result},
    registry::{Catalog, Kind},
};

/// Each version's statements; a version is never edited once released. DDL is not transactional here, so each statement may run again.
///
/// `tx` names the transaction, and its index finds whether one goes on behind a number. Everything up to `settled` has been committed, or never
/// will be. `epoch`, `ended`, `server` and `started` are about the log's history (see `epoch`).
pub(crate) const VERSIONS: &[&str] = &["
CREATE TABLE IF NOT EXISTS tidewire_outbox (
  seq bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
  tx binary(16) NOT NULL,
  entity varchar(64) NOT NULL,
  operation varchar(6) NOT NULL,
  `before` longtext,
  `after` longtext,
  actor text,
  origin text,
  mutation_id text,
  at datetime(3) NOT NULL,
  KEY tidewire_outbox_tx (tx, seq),
  -- An image that is too large for the server is NULL.
  CONSTRAINT tidewire_outbox_images CHECK ((`before` IS NULL) = (operation = 'insert') AND (`after` IS NULL) = (operation = 'delete'))
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
CREATE TABLE IF NOT EXISTS tidewire_log (
  one int NOT NULL PRIMARY KEY CHECK (one = 1),
  epoch bigint NOT NULL,
  ended text NOT NULL,
  server varchar(255) NOT NULL,
  started bigint NOT NULL,
  settled bigint NOT NULL,
  trimmed bigint NOT NULL,
  capture varchar(16) NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
INSERT IGNORE INTO tidewire_log (one, epoch, ended, server, started, settled, trimmed, capture) VALUES (1, 0, '', '', 0, 0, 0, 'hooks');
CREATE TABLE IF NOT EXISTS tidewire_barrier (n int NOT NULL PRIMARY KEY) ENGINE=InnoDB;
INSERT IGNORE INTO tidewire_barrier
  WITH RECURSIVE numbers AS (SELECT 0 AS n UNION ALL SELECT n + 1 FROM numbers WHERE n < 63) SELECT n FROM numbers;
CREATE TABLE IF NOT EXISTS tidewire_mutation (
  id varbinary(512) NOT NULL,
  field varbinary(255) NOT NULL,
  fingerprint text NOT NULL,
  result longtext NOT NULL,
  at bigint NOT NULL,
  PRIMARY KEY (id, field),
  KEY tidewire_mutation_at (at)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
CREATE TABLE IF NOT EXISTS tidewire_lease (
  name varchar(190) NOT NULL PRIMARY KEY,
  holder varchar(190) NOT NULL,
  token bigint NOT NULL,
  expires bigint NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
-- Of capture by the binary log: up to where it has been read.
CREATE TABLE IF NOT EXISTS tidewire_binlog (
  one int NOT NULL PRIMARY KEY CHECK (one = 1),
  gtid text NOT NULL,
  file varchar(512) NOT NULL,
  place bigint NOT NULL,
  at datetime(3),
  prepared longtext NOT NULL,
  trouble text
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
INSERT IGNORE INTO tidewire_binlog VALUES (1, '', '', 0, NULL, '[]', NULL);
-- And what the log shows to its reader: in whose name a session writes, what foreign keys have done, and a mark behind a place.
CREATE TABLE IF NOT EXISTS tidewire_told (
  session bigint unsigned NOT NULL PRIMARY KEY,
  n bigint NOT NULL,
  actor text NOT NULL,
  origin text,
  mutation_id text,
  at datetime NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
CREATE TABLE IF NOT EXISTS tidewire_followed (
  id bigint unsigned NOT NULL AUTO_INCREMENT PRIMARY KEY,
  entity varchar(64) NOT NULL,
  operation varchar(6) NOT NULL,
  `before` longtext,
  `after` longtext
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
CREATE TABLE IF NOT EXISTS tidewire_mark (one int NOT NULL PRIMARY KEY CHECK (one = 1), n bigint NOT NULL) ENGINE=InnoDB;
INSERT IGNORE INTO tidewire_mark VALUES (1, 0);
"];

/// Looks for tables and columns, and whether the capture is in place and up to date.
///
/// # Errors
/// [`ErrorKind::Setup`] naming what is missing.
pub(super) async fn check(conn: &mut MySqlConnection, catalog: &Catalog, capture: Capture) -> Result<()> {
    let layout = Layout::read(&mut *conn).await?;
    check_tables(&layout, catalog)?;
    match capture {
        Capture::Triggers => triggers::check(&layout, catalog, capture),
        Capture::Log => binlog::check(conn, &layout, catalog).await,
        Capture::Hooks => Ok(()),
    }
}

/// How the database says that it is captured.
pub(super) async fn capture(conn: &mut MySqlConnection) -> Result<Capture> {
    check_installed(conn).await?;
    let name: String =
        sqlx::query_scalar("SELECT capture FROM tidewire_log").fetch_one(conn).await.map_err(database_error)?;
    name.parse()
}

pub(super) async fn check_installed(conn: &mut MySqlConnection) -> Result<()> {
    let found: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = 'tidewire_outbox'",
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(database_error)?;
    if found == 0 {
        return Err(Error::new(
            ErrorKind::Setup,
            "the database has no outbox. Run the migrations (`tidewire migrate up`), or `tidewire_outbox::install` from your own",
        ));
    }
    Ok(())
}

fn check_tables(layout: &Layout, catalog: &Catalog) -> Result<()> {
    let (mut missing, mut unreadable) = (Vec::new(), Vec::new());
    for entity in catalog.entities() {
        if let Some(schema) = &entity.schema {
            return Err(Error::new(
                ErrorKind::Setup,
                format!(
                    "{} names the schema {schema}: on MariaDB a schema is a database, and one recorder has one",
                    entity.name
                ),
            ));
        }
        if let Some(column) = entity.columns.iter().find(|column| matches!(column.kind, Kind::Array(_))) {
            let problem = format!("{}.{} is an array, which MariaDB does not have", entity.name, column.name);
            return Err(Error::new(ErrorKind::Setup, problem));
        }
        if !layout.has_table(entity.name) {
            missing.push(format!("the table {}", entity.name));
            continue;
        }
        for column in &entity.columns {
            match layout.column_type(entity.name, column.name) {
                None => missing.push(format!("the column {}.{}", entity.name, column.name)),
                Some(held) if !is_readable(held, &column.kind) => {
                    unreadable.push(format!("{}.{} (`{held}` as {})", entity.name, column.name, column.kind.name()));
                }
                Some(_) => {}
            }
        }
    }
    if !missing.is_empty() {
        return Err(Error::lacking(&missing));
    }
    if !unreadable.is_empty() {
        return Err(Error::new(
            ErrorKind::Setup,
            format!(
                "columns hold what cannot be read as their entities have it: {}. Give them another type in the entity, or leave them out of it",
                unreadable.join(", ")
            ),
        ));
    }
    Ok(())
}

/// Whether a column of a type of the database's reads as a kind of value without loss.
///
/// What the database makes of others is not what they hold: the text of a `year` is NULL to `JSON_QUOTE`, a `bit(5)` has half a byte in hexadecimal,
/// and a `varchar` is a number with all that is no digit left out.
fn is_readable(held: &str, kind: &Kind) -> bool {
    let whole = || matches!(held, "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "bit" | "year");
    let text = || held.ends_with("text") || matches!(held, "char" | "varchar" | "json" | "enum" | "set");
    match kind {
        Kind::Boolean | Kind::Integer { .. } => whole(),
        Kind::Float | Kind::Double => whole() || matches!(held, "float" | "double" | "decimal"),
        Kind::Decimal => whole() || held == "decimal",
        Kind::Text => text() || matches!(held, "uuid" | "inet4" | "inet6"),
        Kind::Enum(_) | Kind::Json => text(),
        Kind::Bytes => held.ends_with("blob") || matches!(held, "binary" | "varbinary"),
        Kind::Uuid => matches!(held, "binary" | "varbinary"),
        Kind::Date => held == "date",
        Kind::Time => held == "time",
        Kind::DateTime | Kind::Timestamp | Kind::TimestampTz => matches!(held, "datetime" | "timestamp"),
        Kind::Array(_) => false,
    }
}
