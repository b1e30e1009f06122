//! Which history the log has.
//!
//! Ids of transactions tell who has seen what, and a server gives them again: a backup that is started, a standby that takes over before it
//! has everything, a crash that loses what was not synchronous. All of these begin with a start of a server. So an epoch begins with each
//! start, and the newest id in the outbox then is the last of the epoch before. A cursor names its epoch. One of an epoch that has ended is
//! good up to that id: what it saw of later ones was in a history that is lost.
//!
//! Who looks first after a start begins the epoch. Others may have written by then, so the newest id is looked for among the changes that were
//! written before the start, by the server's clock.
//!
//! A standby that takes over, and a recovery that ends early, begin a timeline. What they lack may have ids below the newest that they have, since ids
//! are not given in the order of commits: of those that were under way some had committed, and readers saw them, and nothing tells which. Cursors of that
//! moment are the ones that readers come with then, so on another timeline none of the past is good.
//!
//! A database that was copied in another way, by a dump, numbers its transactions anew. It is known by where it lies: by the ids of the server's
//! cluster, of the database and of the table. There nothing of the past is good.

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use super::database_error;
use crate::{
    cursor::Epoch,
    error::{Error, ErrorKind, Result},
    history::History,
};

/// Where this database lies in its cluster, and when its server was started: cheap enough for each look.
macro_rules! place {
    () => {
        "(SELECT oid FROM pg_database WHERE datname = current_database()) || '/' || tableoid || '/'"
    };
}
macro_rules! started {
    () => {
        "(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint"
    };
}

/// The server's line of history.
const TIMELINE: &str = "left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)";

/// The epoch as a column of `tidewire_log`; NULL where the server was started since it was begun, or the table was copied.
pub(super) const EPOCH: &str =
    concat!("CASE WHEN started = ", started!(), " AND starts_with(system, ", place!(), ") THEN epoch END");

fn history(epoch: i64, ended: &[i64]) -> History {
    let epoch_of = |number: i64| Epoch(number.cast_unsigned());
    let ended = ended.chunks_exact(2).map(|pair| (epoch_of(pair[0]), pair[1].cast_unsigned())).collect();
    History { epoch: epoch_of(epoch), ended }
}

/// The history as it is; begins an epoch where the server was started, or the database copied.
pub(super) async fn look(conn: &mut PgConnection) -> Result<History> {
    if let (Some(epoch), ended) = read(conn).await? {
        return Ok(history(epoch, &ended));
    }
    let mut transaction = conn.begin().await.map_err(database_error)?;
    // Whoever comes first; the others wait here, and find what it has set.
    sqlx::query("SELECT 1 FROM tidewire_log FOR UPDATE")
        .persistent(false)
        .execute(&mut *transaction)
        .await
        .map_err(database_error)?;
    if read(&mut transaction).await?.0.is_none() {
        begin(&mut transaction).await?;
    }
    let (epoch, ended) = read(&mut transaction).await?;
    transaction.commit().await.map_err(database_error)?;
    let epoch = epoch.ok_or_else(|| Error::new(ErrorKind::Corrupt, "the epoch of the log could not be begun"))?;
    Ok(history(epoch, &ended))
}

async fn read(conn: &mut PgConnection) -> Result<(Option<i64>, Vec<i64>)> {
    let row = sqlx::query(AssertSqlSafe(format!("SELECT {EPOCH}, ended FROM tidewire_log")))
        .persistent(false)
        .fetch_one(conn)
        .await
        .map_err(database_error)?;
    Ok((row.get(0), row.get(1)))
}

/// Begins an epoch, with the row of `tidewire_log` locked.
async fn begin(conn: &mut PgConnection) -> Result<()> {
    let row = sqlx::query(AssertSqlSafe(format!(
        "SELECT system, {} || (SELECT system_identifier FROM pg_control_system()), timeline, {TIMELINE}, ended || ARRAY[epoch,
           greatest((SELECT xid FROM tidewire_outbox WHERE at < pg_postmaster_start_time() ORDER BY xid DESC LIMIT 1), trimmed_xid)]
         FROM tidewire_log",
        place!()
    )))
    .persistent(false)
    .fetch_one(&mut *conn)
    .await
    .map_err(database_error)?;
    let (known, system): (String, String) = (row.get(0), row.get(1));
    let (line, timeline, mut ended): (String, String, Vec<i64>) = (row.get(2), row.get(3), row.get(4));
    let is_copy = known != system && !known.is_empty();
    if is_copy {
        break_off(conn).await?;
    }
    if is_copy || line != timeline {
        ended.clear();
    }
    ended.drain(..ended.len().saturating_sub(2 * History::REMEMBERED));
    sqlx::query(concat!(
        "UPDATE tidewire_log SET epoch = $1, ended = $2, system = $3, timeline = $4, started = ",
        started!()
    ))
    .persistent(false)
    .bind(Epoch::fresh().0.cast_signed())
    .bind(ended)
    .bind(system)
    .bind(timeline)
    .execute(conn)
    .await
    .map(drop)
    .map_err(database_error)
}

/// Ends the log's history: changes are missing after this, so all who follow start over.
pub(super) async fn break_off(conn: &mut PgConnection) -> Result<()> {
    sqlx::query("DELETE FROM tidewire_outbox").persistent(false).execute(&mut *conn).await.map_err(database_error)?;
    // All ids that a snapshot from now on can have in flight are later.
    sqlx::query(
        "UPDATE tidewire_log SET epoch = $1, ended = '{}',
           trimmed_xid = greatest(trimmed_xid, pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1)",
    )
    .persistent(false)
    .bind(Epoch::fresh().0.cast_signed())
    .execute(conn)
    .await
    .map(drop)
    .map_err(database_error)
}
