//! The outbox's own tables on PostgreSQL, and what the database's schema means for capture.

use sqlx::{
    FromRow, PgConnection, Postgres,
    postgres::{PgArguments, PgRow},
    query::QueryScalar,
};

use super::{database_error, trigger, triggers, wal};
use crate::{
    capture::Capture,
    error::{Error, ErrorKind, Result},
    registry::Catalog,
};

/// Each version's statements; a version is never edited once released.
///
/// `xid` is the id of the transaction as a number, since PostgreSQL's own type has no arithmetic. The index finds what a snapshot
/// did not show, and whether a transaction goes on behind a number. `source` is the transaction that made a change, where it was appended
/// by another: under capture by the log, which `lsn`, `lsn_at`, `trouble` and `publication` are about (see `wal`). `file`, `was_at` and `is_at` are
/// where the row's versions before and after a change lie, as triggers say it (see `order`). `tidewire_identity` keeps the replica
/// identities that capture by the log has replaced. `epoch`, `ended`, `system`, `timeline` and `started` are about the log's history (see `epoch`).
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
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  file oid,
  was_at tid,
  is_at tid
);
CREATE INDEX tidewire_outbox_xid ON tidewire_outbox (xid, source, seq);
CREATE TABLE tidewire_log (
  one int PRIMARY KEY CHECK (one = 1),
  epoch bigint NOT NULL,
  ended bigint[] NOT NULL DEFAULT '{}',
  system text NOT NULL,
  timeline text NOT NULL DEFAULT '',
  started bigint NOT NULL DEFAULT 0,
  trimmed_xid bigint NOT NULL,
  capture text NOT NULL,
  lsn bigint NOT NULL DEFAULT 0,
  lsn_at timestamptz,
  trouble text,
  publication text,
  -- Known to what the installer's triggers run and to the log's reader, and so what tells their messages from anybody's.
  token text NOT NULL DEFAULT gen_random_uuid()::text
);
INSERT INTO tidewire_log (one, epoch, system, trimmed_xid, capture) VALUES (1, 0, '', 0, 'hooks');
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

/// What runs once is not worth a name, and none is to be had through a pooler.
fn unnamed_scalar<O>(sql: &'static str) -> QueryScalar<'static, Postgres, O, PgArguments>
where
    (O,): for<'r> FromRow<'r, PgRow>,
{
    sqlx::query_scalar(sql).persistent(false)
}

/// Looks for tables and columns, and whether the capture is in place and up to date.
///
/// # Errors
/// [`ErrorKind::Setup`] naming what is missing.
pub(super) async fn check(conn: &mut PgConnection, catalog: &Catalog, capture: Capture) -> Result<()> {
    check_tables(conn, catalog).await?;
    trigger::check_tables(conn, catalog).await?;
    check_privileges(conn, catalog).await?;
    if unnamed_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut *conn).await.map_err(database_error)? {
        return Err(Error::new(
            ErrorKind::Setup,
            "the database is a standby, which takes no writes. Give the address of the primary",
        ));
    }
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
        unnamed_scalar("SELECT capture FROM tidewire_log").fetch_one(conn).await.map_err(database_error)?;
    name.parse()
}

async fn check_installed(conn: &mut PgConnection) -> Result<()> {
    let installed: bool = unnamed_scalar("SELECT to_regclass('tidewire_outbox') IS NOT NULL")
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
        let columns: Vec<String> = unnamed_scalar(
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
    if missing.is_empty() {
        return check_keys(conn, catalog).await;
    }
    Err(Error::lacking(&missing))
}

/// A key has to mean one row. It does where a unique index is over columns of it, all of which have values.
async fn check_keys(conn: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    for entity in catalog.entities() {
        let key: Vec<&str> = entity.key_columns().map(|column| column.name).collect();
        let is_unique: bool = unnamed_scalar(
            "SELECT NOT EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = to_regclass($1) AND a.attname = ANY($2) AND NOT a.attnotnull)
               AND EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
                 AND (SELECT bool_and(coalesce(a.attname = ANY($2), false)) FROM unnest(i.indkey[:i.indnkeyatts - 1]) AS k
                      LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k))",
        )
        .bind(triggers::qualified(entity))
        .bind(&key)
        .fetch_one(&mut *conn)
        .await
        .map_err(database_error)?;
        if !is_unique {
            return Err(Error::new(
                ErrorKind::Setup,
                format!(
                    "the key of {} ({}) may be another row's too, or null. Give the table a primary key, or a unique index and NOT NULL",
                    entity.name,
                    key.join(", ")
                ),
            ));
        }
    }
    Ok(())
}

/// What the outbox needs, whoever writes: (table, privileges).
const NEEDED: [(&str, &[&str]); 3] = [
    ("tidewire_outbox", &["SELECT", "DELETE"]),
    ("tidewire_log", &["SELECT", "UPDATE"]),
    ("tidewire_mutation", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
];

/// Everything is read; what a service may write is its own matter.
async fn check_privileges(conn: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    let mut needed: Vec<(String, &str)> =
        NEEDED.iter().flat_map(|(table, all)| all.iter().map(|one| ((*table).to_owned(), *one))).collect();
    needed.extend(catalog.entities().iter().map(|entity| (triggers::qualified(entity), "SELECT")));
    let (tables, privileges): (Vec<_>, Vec<_>) = needed.into_iter().unzip();
    let lacks: Vec<String> = sqlx::query_scalar(
        "SELECT p || ' on ' || t FROM unnest($1::text[], $2::text[]) AS needed (t, p) WHERE NOT has_table_privilege(t, p)",
    )
    .persistent(false)
    .bind(tables)
    .bind(privileges)
    .fetch_all(&mut *conn)
    .await
    .map_err(database_error)?;
    if lacks.is_empty() {
        return Ok(());
    }
    let user: String = unnamed_scalar("SELECT current_user::text").fetch_one(conn).await.map_err(database_error)?;
    Err(Error::new(
        ErrorKind::Setup,
        format!("the database's user {user} lacks {}. GRANT these, or use another user", lacks.join(", ")),
    ))
}
