//! Which history the log has.
//!
//! Numbers tell who has seen what, and a server gives them again: a backup that is started, a replica that takes over before it has everything, a crash
//! that loses what was not on the disk, a dump. The former begin with a start of a server, the latter with a table that is made anew. So an epoch begins
//! with each of these, and the newest number in the outbox from before is the last of the epoch that ends. A cursor names its epoch. One of an epoch that
//! has ended is good up to that number: what it saw of later ones was in a history that is lost.
//!
//! Who looks first begins the epoch. Others may have written by then, so the newest number is looked for among the changes that were written before, by
//! the server's clock.
//!
//! A connection lasts no longer than its server, so each is told once, when it is opened, when that was started; each read compares it. When the table was
//! made is looked at once in a while. `ALTER TABLE` and `chmod` change that too: they begin an epoch, and cost nobody more than a resync.

use sqlx::{AssertSqlSafe, Executor, MySqlConnection, MySqlPool, Row};

use super::{database_error, session::Held};
use crate::{
    cursor::Epoch,
    error::{Error, ErrorKind, Result},
    history::History,
};

/// Tells a connection when its server was started, in whole seconds: the server takes both numbers from the same clock at the same moment.
pub(super) const LEARN: &str = "SET @tidewire_started = (SELECT CAST(UNIX_TIMESTAMP() - variable_value AS SIGNED)
    FROM information_schema.global_status WHERE variable_name = 'UPTIME')";

/// The epoch as a column of `tidewire_log l`; NULL where the server was started since it was begun.
macro_rules! epoch {
    () => {
        "IF(l.started = @tidewire_started, l.epoch, NULL)"
    };
}
pub(super) use epoch;

/// The history as it is; begins an epoch where the server was started, or the table was made anew.
pub(super) async fn look(pool: &MySqlPool) -> Result<History> {
    let mut held = Held::new(pool).await?;
    let conn = held.connection();
    if let Some(history) = read(conn).await? {
        held.free();
        return Ok(history);
    }
    // Whoever comes first; the others wait here, and find what it has set.
    let begin_transaction = "START TRANSACTION; SELECT 1 INTO @tidewire_one FROM tidewire_log FOR UPDATE";
    conn.execute(sqlx::raw_sql(begin_transaction)).await.map_err(database_error)?;
    let history = match read(conn).await? {
        Some(history) => Some(history),
        None => {
            begin(conn).await?;
            read(conn).await?
        }
    };
    conn.execute("COMMIT").await.map_err(database_error)?;
    held.free();
    history.ok_or_else(|| Error::new(ErrorKind::Corrupt, "the epoch of the log could not be begun"))
}

/// Where the log lies: on which server, and since when there.
const PLACE: &str = "CONCAT(@@server_id, '/', DATABASE(), '/', COALESCE((SELECT UNIX_TIMESTAMP(create_time) FROM information_schema.tables
    WHERE table_schema = DATABASE() AND table_name = 'tidewire_log'), 0))";

async fn read(conn: &mut MySqlConnection) -> Result<Option<History>> {
    let text = format!("SELECT IF(l.server = {PLACE}, {}, NULL), l.ended FROM tidewire_log l", epoch!());
    let row = sqlx::query(AssertSqlSafe(text)).fetch_one(conn).await.map_err(database_error)?;
    let Some(epoch) = row.get::<Option<i64>, _>(0) else { return Ok(None) };
    let mut numbers = row.get::<&str, _>(1).split_whitespace();
    let mut ended = Vec::new();
    while let (Some(epoch), Some(through)) = (numbers.next(), numbers.next()) {
        let number = |text: &str| {
            text.parse().map_err(|_| Error::new(ErrorKind::Corrupt, "tidewire_log.ended is not a list of numbers"))
        };
        ended.push((Epoch(number(epoch)?), number(through)?));
    }
    Ok(Some(History { epoch: Epoch(epoch.cast_unsigned()), ended }))
}

/// Begins an epoch, with the row of `tidewire_log` locked.
async fn begin(conn: &mut MySqlConnection) -> Result<()> {
    let text = format!(
        "SELECT l.epoch, l.ended, {PLACE}, CAST(GREATEST(l.trimmed, COALESCE((SELECT o.seq FROM tidewire_outbox o WHERE o.at < FROM_UNIXTIME(
           GREATEST(@tidewire_started, SUBSTRING_INDEX({PLACE}, '/', -1) + 0)) ORDER BY o.seq DESC LIMIT 1), 0)) AS SIGNED)
         FROM tidewire_log l"
    );
    let row = sqlx::query(AssertSqlSafe(text)).fetch_one(&mut *conn).await.map_err(database_error)?;
    let mut ended: Vec<String> = row.get::<&str, _>(1).split_whitespace().map(str::to_owned).collect();
    ended.extend([row.get::<i64, _>(0).cast_unsigned().to_string(), row.get::<i64, _>(3).to_string()]);
    ended.drain(..ended.len().saturating_sub(2 * History::REMEMBERED));
    sqlx::query("UPDATE tidewire_log SET epoch = ?, ended = ?, server = ?, started = @tidewire_started")
        .bind(Epoch::fresh().0.cast_signed())
        .bind(ended.join(" "))
        .bind(row.get::<String, _>(2))
        .execute(conn)
        .await
        .map(drop)
        .map_err(database_error)
}
