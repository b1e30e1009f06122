//! The outbox's own tables on PostgreSQL, and what the database's schema means for capture.

use sqlx::{PgConnection, Row};

use super::{database_error, triggers, wal};
use crate::{
    capture::Capture,
    error::{Error, ErrorKind, Result},
    registry::Catalog,
};

/// Each version's statements; a version is never edited once released.
///
/// `xid` is the id of the transaction as a number, since PostgreSQL's own type has no arithmetic. The index finds what a snapshot
/// did not show, and whether a transaction goes on behind a number. `source` is the transaction that made a change, where it was appended
/// by another: under capture by the log, which `lsn`, `lsn_at` and `trouble` are about (see `wal`). `tidewire_identity` keeps the replica
/// identities that capture by the log has replaced.
pub(crate) const VERSIONS: &[&str] = &["
CREATE TABLE tidewire_outbox (
  seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  xid bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
  source bigint NOT NULL DEFAULT 0,
  entity text NOT NULL,
  operation text NOT NULL,
  before text,
  after text,
  actor text,
  origin text,
  mutation_id text,
  at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX tidewire_outbox_xid ON tidewire_outbox (xid, source, seq);
CREATE TABLE tidewire_log (
  one int PRIMARY KEY CHECK (one = 1),
  epoch bigint NOT NULL,
  system text NOT NULL,
  trimmed_xid bigint NOT NULL,
  capture text NOT NULL,
  lsn bigint NOT NULL DEFAULT 0,
  lsn_at timestamptz,
  trouble text
);
INSERT INTO tidewire_log VALUES (1, 0, '', 0, 'hooks');
CREATE TABLE tidewire_identity (relation text PRIMARY KEY, identity text NOT NULL);
CREATE TABLE tidewire_mutation (
  id text NOT NULL,
  field text NOT NULL,
  fingerprint text NOT NULL,
  result text NOT NULL,
  at bigint NOT NULL,
  PRIMARY KEY (id, field)
);
CREATE INDEX tidewire_mutation_at ON tidewire_mutation (at);
-- With the token in a unique index, whoever takes a lease over waits for transactions that have a key share of it, and who renews it does not.
CREATE TABLE tidewire_lease (
  name text PRIMARY KEY,
  holder text NOT NULL,
  token bigint NOT NULL,
  expires bigint NOT NULL,
  UNIQUE (name, token)
);
"];

/// Looks for tables and columns, and whether the capture is in place and up to date.
///
/// # Errors
/// [`ErrorKind::Setup`] naming what is missing.
pub(super) async fn check(conn: &mut PgConnection, catalog: &Catalog, capture: Capture) -> Result<()> {
    check_tables(conn, catalog).await?;
    match capture {
        Capture::Hooks => return Ok(()),
        Capture::Log => return wal::check(conn, catalog).await,
        Capture::Triggers => {}
    }
    let drifted = triggers::drifted(conn, catalog).await?;
    if drifted.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Setup,
        format!(
            "the triggers that record {} are missing or out of date. `tidewire capture install` puts them in place, or \
             `Recorder::install_capture` from a program",
            drifted.join(", ")
        ),
    ))
}

/// How the database says that it is captured.
pub(super) async fn capture(conn: &mut PgConnection) -> Result<Capture> {
    check_installed(conn).await?;
    let name: String =
        sqlx::query_scalar("SELECT capture FROM tidewire_log").fetch_one(conn).await.map_err(database_error)?;
    name.parse()
}

async fn check_installed(conn: &mut PgConnection) -> Result<()> {
    let installed: bool = sqlx::query_scalar("SELECT to_regclass('tidewire_outbox') IS NOT NULL")
        .fetch_one(&mut *conn)
        .await
        .map_err(database_error)?;
    if !installed {
        return Err(Error::new(
            ErrorKind::Setup,
            "the database has no outbox. Run the migrations (`tidewire migrate up`), or `tidewire_outbox::install` from your own",
        ));
    }
    Ok(())
}

async fn check_tables(conn: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    let mut missing = Vec::new();
    for entity in catalog.entities() {
        let name = triggers::qualified(entity);
        let columns: Vec<String> = sqlx::query_scalar(
            "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
        )
        .bind(&name)
        .fetch_all(&mut *conn)
        .await
        .map_err(database_error)?;
        if columns.is_empty() {
            missing.push(format!("the table {name}"));
            continue;
        }
        let lacks = |name: &str| !columns.iter().any(|column| column == name);
        missing.extend(
            entity.columns.iter().filter(|c| lacks(c.name)).map(|c| format!("the column {}.{}", entity.name, c.name)),
        );
    }
    if !missing.is_empty() {
        return Err(Error::new(
            ErrorKind::Setup,
            format!(
                "the database lacks {}, which the registered entities have. Run the migrations, or generate the entities anew",
                missing.join(", ")
            ),
        ));
    }
    Ok(())
}

/// The epoch of the log. A database that is not the one which the outbox was written in (another cluster, or the same one after a recovery
/// to an earlier moment) numbers its transactions anew, so there the outbox is emptied and a new epoch begins.
pub(super) async fn epoch(conn: &mut PgConnection) -> Result<u64> {
    let system: String = sqlx::query_scalar(
        "SELECT (SELECT system_identifier FROM pg_control_system())::text || '/' ||
                (SELECT timeline_id FROM pg_control_checkpoint())::text",
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(database_error)?;
    let row =
        sqlx::query("SELECT epoch, system FROM tidewire_log").fetch_one(&mut *conn).await.map_err(database_error)?;
    if row.get::<String, _>(1) == system {
        return Ok(row.get::<i64, _>(0).cast_unsigned());
    }
    let fresh = i64::from_be_bytes(uuid::Uuid::new_v4().into_bytes()[..8].try_into().expect("eight bytes of sixteen"));
    // Whoever comes first; the others find what it has set.
    let row = sqlx::query(
        "WITH mine AS (
           UPDATE tidewire_log SET epoch = $1, trimmed_xid = 0, system = $2 WHERE system <> $2 RETURNING epoch),
         -- Where none has begun yet, what is there was written here.
         emptied AS (DELETE FROM tidewire_outbox WHERE EXISTS (SELECT 1 FROM mine) AND (SELECT system <> '' FROM tidewire_log))
         SELECT epoch FROM mine UNION ALL SELECT epoch FROM tidewire_log WHERE system = $2",
    )
    .bind(fresh)
    .bind(&system)
    .fetch_one(&mut *conn)
    .await
    .map_err(database_error)?;
    Ok(row.get::<i64, _>(0).cast_unsigned())
}
