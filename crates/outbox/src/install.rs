//! The outbox's own tables.

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};

use crate::error::{Error, ErrorKind, Result};

/// The version of the outbox's tables that this crate works with.
pub const SCHEMA_VERSION: u32 = 1;

/// Creates the outbox's tables, or brings them up to [`SCHEMA_VERSION`]. Does nothing where they are.
///
/// Call it from a migration, before those of your own that fill tables:
///
/// ```
/// # async fn up(db: &sea_orm::DatabaseConnection) -> Result<(), sea_orm::DbErr> {
/// tidewire_outbox::install(db).await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`ErrorKind::Setup`] where the tables are of a newer version than this crate knows, or the database is not supported.
pub async fn install(db: &impl ConnectionTrait) -> Result<()> {
    let versions = versions(db)?;
    let found = installed(db).await?;
    if found > SCHEMA_VERSION {
        return Err(Error::new(
            ErrorKind::Setup,
            format!(
                "the outbox's tables are of version {found}, newer than the {SCHEMA_VERSION} that this program knows"
            ),
        ));
    }
    for (version, statements) in (1..).zip(versions).skip(found as usize) {
        db.execute_unprepared(statements).await?;
        db.execute_unprepared("CREATE TABLE IF NOT EXISTS tidewire_schema (version INTEGER NOT NULL)").await?;
        db.execute_unprepared("DELETE FROM tidewire_schema").await?;
        db.execute_unprepared(&format!("INSERT INTO tidewire_schema VALUES ({version})")).await?;
    }
    Ok(())
}

/// The version of the outbox's tables in a database; 0 where there are none.
///
/// # Errors
/// [`ErrorKind::Database`] and its kind as they come.
pub async fn installed(db: &impl ConnectionTrait) -> Result<u32> {
    versions(db)?;
    let exists = match db.get_database_backend() {
        DbBackend::Postgres => "SELECT count(*) FROM pg_class WHERE oid = to_regclass('tidewire_schema')",
        DbBackend::MySql => {
            "SELECT count(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = 'tidewire_schema'"
        }
        _ => "SELECT count(*) FROM sqlite_master WHERE name = 'tidewire_schema'",
    };
    if number(db, exists).await? == 0 {
        return Ok(0);
    }
    let integer = if db.get_database_backend() == DbBackend::MySql { "SIGNED" } else { "BIGINT" };
    let version = number(db, &format!("SELECT CAST(max(version) AS {integer}) FROM tidewire_schema")).await?;
    Ok(u32::try_from(version).unwrap_or(0))
}

/// Drops the outbox's tables with all recorded changes. Followers' cursors mean nothing afterwards. Remove what capture needs first
/// ([`Recorder::remove_capture`](crate::Recorder::remove_capture)): a replication slot that is left behind fills the server's disk.
///
/// # Errors
/// [`ErrorKind::Database`] and its kind as they come.
pub async fn uninstall(db: &impl ConnectionTrait) -> Result<()> {
    for table in [
        "tidewire_outbox",
        "tidewire_epoch",
        "tidewire_log",
        "tidewire_barrier",
        "tidewire_others",
        "tidewire_replaced",
        "tidewire_mutation",
        "tidewire_lease",
        "tidewire_identity",
        "tidewire_binlog",
        "tidewire_told",
        "tidewire_followed",
        "tidewire_mark",
        "tidewire_schema",
    ] {
        db.execute_unprepared(&format!("DROP TABLE IF EXISTS {table}")).await?;
    }
    Ok(())
}

async fn number(db: &impl ConnectionTrait, sql: &str) -> Result<i64> {
    let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), sql)).await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound("a count gave no row".into()))?;
    Ok(row.try_get_by_index::<i64>(0)?)
}

fn versions(db: &impl ConnectionTrait) -> Result<&'static [&'static str]> {
    match db.get_database_backend() {
        DbBackend::Sqlite => Ok(crate::sqlite::schema::VERSIONS),
        DbBackend::Postgres => Ok(crate::postgres::schema::VERSIONS),
        DbBackend::MySql => Ok(crate::mysql::schema::VERSIONS),
        other => Err(Error::new(ErrorKind::Setup, format!("{} is not supported yet", other.as_str()))),
    }
}
