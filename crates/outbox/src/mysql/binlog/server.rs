//! What capture by the binary log needs of the server and in the database: settings, privileges, a place to begin at, and triggers that tell what
//! foreign keys do by themselves.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, Executor, MySqlConnection, Row};

use super::{
    connect,
    place::{Gtids, Place, Position},
    table::Charsets,
    value::{Charset, unreadable},
};
use crate::{
    capture::{Capture, LogStatus},
    cursor::Epoch,
    error::{Error, ErrorKind, Result},
    mysql::{
        Mysql, database_error,
        layout::Layout,
        schema,
        session::Held,
        triggers::{self, identifier},
    },
    registry::Catalog,
};

/// How long the locks of an installation may wait for transactions that are under way, in seconds.
const LOCK_TIMEOUT: u32 = 30;

/// The place after what a session sees: of its snapshot, where it has one open that is consistent with the log, else as it is now.
pub(super) async fn end(conn: &mut MySqlConnection) -> Result<(String, Place)> {
    let (mut file, mut position) = (String::new(), 0);
    let show = sqlx::raw_sql("SHOW STATUS LIKE 'Binlog\\_snapshot\\_%'");
    for row in conn.fetch_all(show).await.map_err(database_error)? {
        let value: String = row.get(1);
        match row.get::<String, _>(0).to_ascii_lowercase().as_str() {
            "binlog_snapshot_file" => file = value,
            "binlog_snapshot_position" => position = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    if file.is_empty() {
        return Err(Error::new(ErrorKind::Setup, "the server writes no binary log any more: start it with `log_bin`"));
    }
    let place = Place::new(&file, position)?;
    Ok((file, place))
}

/// The ids of the last transactions before a place; none where the server's log has no transaction that ends there.
async fn gtids_at(conn: &mut MySqlConnection, file: &str, place: Place) -> Result<Option<Gtids>> {
    let found: Option<String> = sqlx::query_scalar("SELECT BINLOG_GTID_POS(?, ?)")
        .bind(file)
        .bind(place.position())
        .fetch_one(conn)
        .await
        .map_err(database_error)?;
    found.as_deref().map(Gtids::parse).transpose()
}

/// Where the log ends now.
pub(super) async fn now(conn: &mut MySqlConnection) -> Result<Position> {
    let (file, place) = end(conn).await?;
    let gtids = gtids_at(conn, &file, place).await?.ok_or_else(|| {
        Error::new(ErrorKind::Database, "the binary log's file was removed while its end was looked for")
    })?;
    Ok(Position { gtids, file, place })
}

/// Up to where the log has been read, and which prepared transactions of XA are remembered.
pub(super) async fn position(conn: &mut MySqlConnection) -> Result<(Position, Vec<(String, bool)>)> {
    let row = sqlx::query("SELECT gtid, file, place, prepared FROM tidewire_binlog")
        .fetch_one(conn)
        .await
        .map_err(database_error)?;
    let position = Position {
        gtids: Gtids::parse(row.get(0))?,
        file: row.get(1),
        place: Place::of_number(row.get::<i64, _>(2).cast_unsigned()),
    };
    Ok((position, serde_json::from_str(row.get(3)).unwrap_or_default()))
}

/// Whether the server's log still has a place: not after `RESET MASTER`, which numbers files and transactions anew, nor where a crash took the log's end
/// away (`sync_binlog` other than 1), nor where the file was purged.
pub(super) async fn has(conn: &mut MySqlConnection, position: &Position) -> Result<bool> {
    let (_, end) = end(conn).await?;
    if position.file.is_empty() || end < position.place {
        return Ok(false);
    }
    let found = gtids_at(conn, &position.file, position.place).await?;
    Ok(found.is_some_and(|found| found == position.gtids))
}

/// The names of character sets by the numbers of collations.
pub(super) async fn charsets(conn: &mut MySqlConnection) -> Result<Charsets> {
    let mut charsets = Charsets::new();
    let mut note = |rows: Vec<sqlx::mysql::MySqlRow>| {
        charsets
            .extend(rows.iter().filter_map(|row| Some((row.get::<Option<i64>, _>(0)?.cast_unsigned(), row.get(1)))));
    };
    const OLD: &str = "SELECT CAST(id AS SIGNED), CAST(character_set_name AS CHAR) FROM information_schema.collations";
    note(conn.fetch_all(OLD).await.map_err(database_error)?);
    // Newer servers have collations that serve several character sets, and number them here.
    const HAS_NEW: &str = "SELECT count(*) FROM information_schema.columns WHERE table_schema = 'information_schema'
        AND table_name = 'COLLATION_CHARACTER_SET_APPLICABILITY' AND column_name = 'ID'";
    if conn.fetch_one(HAS_NEW).await.map_err(database_error)?.get::<i64, _>(0) > 0 {
        const NEW: &str = "SELECT CAST(id AS SIGNED), CAST(character_set_name AS CHAR)
            FROM information_schema.collation_character_set_applicability";
        note(conn.fetch_all(NEW).await.map_err(database_error)?);
    }
    Ok(charsets)
}

/// What the server must be set to.
///
/// # Errors
/// [`ErrorKind::Setup`] saying what is not, and what to do.
pub(super) async fn require(conn: &mut MySqlConnection, catalog: &Catalog) -> Result<()> {
    let refuse = |problem: String| Err(Error::new(ErrorKind::Setup, problem));
    let row = sqlx::query(
        "SELECT CAST(@@GLOBAL.log_bin AS SIGNED), CAST(@@GLOBAL.binlog_format AS CHAR), CAST(@@GLOBAL.binlog_row_image AS CHAR),
           CAST(@@GLOBAL.binlog_row_metadata AS CHAR)",
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(database_error)?;
    if row.get::<i64, _>(0) == 0 {
        return refuse(
            "capture by the log needs the server's binary log: start it with `log_bin`, or use another capture (hooks, triggers)".into(),
        );
    }
    for (index, name, wanted) in
        [(1, "binlog_format", "ROW"), (2, "binlog_row_image", "FULL"), (3, "binlog_row_metadata", "FULL")]
    {
        let found: String = row.get(index);
        if found != wanted {
            return refuse(format!(
                "the server writes its binary log with {name} = {found}, which does not tell all of rows. `SET GLOBAL {name} = '{wanted}'`, set it \
                 in the server's configuration too, and open the programs' connections anew; or use another capture (hooks, triggers)"
            ));
        }
    }
    require_tables(conn, catalog).await
}

/// Tables whose rows the log tells in a form that can be read.
async fn require_tables(conn: &mut MySqlConnection, catalog: &Catalog) -> Result<()> {
    const TABLES: &str = "SELECT CAST(t.table_name AS CHAR), CAST(t.table_type AS CHAR), CAST(COALESCE(e.transactions, 'NO') AS CHAR)
        FROM information_schema.tables t LEFT JOIN information_schema.engines e ON e.engine = t.engine WHERE t.table_schema = DATABASE()";
    for row in sqlx::query(TABLES).fetch_all(&mut *conn).await.map_err(database_error)? {
        let (name, kind, transactions): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let why = match kind.as_str() {
            _ if catalog.find(&name).is_none() => continue,
            "BASE TABLE" if transactions == "YES" => continue,
            "BASE TABLE" => "is of an engine without transactions: `ALTER TABLE … ENGINE = InnoDB`",
            "SYSTEM VERSIONED" => "keeps its history itself, which the log tells as rows",
            _ => "is no table with rows of its own",
        };
        let problem = format!("{name} cannot be captured by the log: it {why}. Or use another capture (triggers)");
        return Err(Error::new(ErrorKind::Setup, problem));
    }
    const COLUMNS: &str = "SELECT CAST(table_name AS CHAR), CAST(column_name AS CHAR), CAST(data_type AS CHAR), CAST(character_set_name AS CHAR),
          CAST(extra AS CHAR), CAST(column_type AS CHAR)
        FROM information_schema.columns WHERE table_schema = DATABASE()";
    for row in sqlx::query(COLUMNS).fetch_all(conn).await.map_err(database_error)? {
        let (table, column, kind): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let Some(entity) = catalog.find(&table) else { continue };
        let (charset, extra, full): (Option<String>, String, String) = (row.get(3), row.get(4), row.get(5));
        if full.contains("COMPRESSED") || matches!(kind.as_str(), "geometry" | "point" | "linestring" | "polygon") {
            return Err(unreadable(&table, &column, &format!("is of the type {full}")));
        }
        if entity.column_index(&column).is_none() {
            continue;
        }
        if matches!(kind.as_str(), "uuid" | "inet4" | "inet6") {
            return Err(unreadable(&table, &column, &format!("is of the type {kind}")));
        }
        if extra.contains("VIRTUAL") {
            return Err(unreadable(&table, &column, "is generated when it is read"));
        }
        if let Some(charset) = charset.filter(|charset| Charset::named(charset).is_none()) {
            return Err(unreadable(&table, &column, &format!("has the character set {charset}")));
        }
    }
    Ok(())
}

/// Puts in place what is needed. What triggers recorded so far and what the log tells from then on join without a gap.
pub(super) async fn install(database: &Mysql) -> Result<()> {
    let mut held = Held::new(&database.pool).await?;
    let conn = held.connection();
    require(conn, &database.catalog).await?;
    crate::mysql::check_binary_log(conn).await?;
    let here = now(conn).await?;
    // Whether the user may look after it and read it shows by doing so.
    connect::open(database, conn, &here).await?;
    let looked = conn.fetch_all(sqlx::raw_sql("SHOW BINARY LOGS")).await.map_err(database_error);
    looked
        .map_err(|error| if error.kind() == ErrorKind::Setup { connect::denied(&error.to_string()) } else { error })?;
    let was = schema::capture(conn).await?;
    let (position, _) = position(conn).await?;
    let goes_on = was == Capture::Log && has(conn, &position).await?;
    lock_tables(conn, &database.catalog).await?;
    triggers::install(conn, &database.catalog, Capture::Log).await?;
    if !goes_on {
        let here = now(conn).await?;
        let mut other = Held::new(&database.pool).await?;
        let begin = other.connection();
        begin.execute("START TRANSACTION").await.map_err(database_error)?;
        if was == Capture::Log {
            tracing::error!("the binary log has been begun anew: changes are missing, and all who follow start over");
            break_off(begin).await?;
        }
        begin_at(begin, &here).await?;
        begin.execute("UPDATE tidewire_log SET capture = 'log'").await.map_err(database_error)?;
        begin.execute("COMMIT").await.map_err(database_error)?;
        other.free();
    }
    conn.execute(sqlx::raw_sql(UNLOCK)).await.map_err(database_error)?;
    // What triggers have drawn has been decided: whoever wrote had ended before the tables could be locked.
    conn.execute(
        "UPDATE tidewire_log SET settled = GREATEST(settled, COALESCE((SELECT MAX(seq) FROM tidewire_outbox), 0))",
    )
    .await
    .map_err(database_error)?;
    Ok(())
}

/// Takes back what [`lock_tables`] did.
pub(in crate::mysql) const UNLOCK: &str = "UNLOCK TABLES; SET SESSION lock_wait_timeout = DEFAULT";

/// Holds up whoever writes synced tables, or what their rows refer to, until the connection unlocks them or is closed.
pub(super) async fn lock_tables(conn: &mut MySqlConnection, catalog: &Catalog) -> Result<()> {
    let layout = Layout::read(&mut *conn).await?;
    let mut tables: BTreeSet<&str> = catalog.entities().iter().map(|entity| entity.name).collect();
    tables.extend(layout.foreign_keys.iter().filter(|key| !key.abroad).map(|key| key.parent.as_str()));
    tables.extend(layout.triggers.iter().filter(|found| found.is_ours()).map(|found| found.table.as_str()));
    tables.retain(|table| layout.has_table(table));
    if tables.is_empty() {
        return Ok(());
    }
    let list = tables.iter().map(|table| format!("{} WRITE", identifier(table))).collect::<Vec<_>>().join(", ");
    let text = format!("SET SESSION lock_wait_timeout = {LOCK_TIMEOUT}; LOCK TABLES {list}");
    conn.execute(sqlx::raw_sql(AssertSqlSafe(text))).await.map(drop).map_err(database_error)
}

/// Notes that the log is read from a place on.
pub(super) async fn begin_at(conn: &mut MySqlConnection, position: &Position) -> Result<()> {
    sqlx::query("UPDATE tidewire_binlog SET gtid = ?, file = ?, place = ?, at = UTC_TIMESTAMP(3), prepared = '[]', trouble = NULL")
        .bind(position.gtids.to_string())
        .bind(&position.file)
        .bind(position.place.number())
        .execute(conn)
        .await
        .map(drop)
        .map_err(database_error)
}

/// Ends the log's history: changes are missing after this, so all who follow start over.
pub(super) async fn break_off(conn: &mut MySqlConnection) -> Result<()> {
    // A number is drawn and given up, so that there is one that nobody has seen and everybody is behind.
    let drawn = sqlx::query(
        "INSERT INTO tidewire_outbox (tx, entity, operation, `after`, at) VALUES ('', '', 'insert', '{}', UTC_TIMESTAMP(3))",
    );
    let drawn = drawn.execute(&mut *conn).await.map_err(database_error)?.last_insert_id();
    conn.execute("DELETE FROM tidewire_outbox").await.map_err(database_error)?;
    sqlx::query("UPDATE tidewire_log SET epoch = ?, ended = '', trimmed = ?, settled = ?")
        .bind(Epoch::fresh().0.cast_signed())
        .bind(drawn)
        .bind(drawn)
        .execute(conn)
        .await
        .map(drop)
        .map_err(database_error)
}

/// Whether all of it is in place, and the log is being read.
///
/// # Errors
/// [`ErrorKind::Setup`] saying what is not.
pub(in crate::mysql) async fn check(conn: &mut MySqlConnection, layout: &Layout, catalog: &Catalog) -> Result<()> {
    require(conn, catalog).await?;
    triggers::check(layout, catalog, Capture::Log)?;
    let trouble: Option<String> =
        sqlx::query_scalar("SELECT trouble FROM tidewire_binlog").fetch_one(conn).await.map_err(database_error)?;
    match trouble {
        Some(trouble) => Err(Error::new(ErrorKind::Setup, trouble)),
        None => Ok(()),
    }
}

/// How far the log has been read.
pub(super) async fn status(conn: &mut MySqlConnection) -> Result<LogStatus> {
    let (position, _) = position(conn).await?;
    let (_, end) = end(conn).await?;
    let row = sqlx::query(
        "SELECT b.trouble, CAST(TIMESTAMPDIFF(SECOND, b.at, UTC_TIMESTAMP(3)) AS SIGNED),
           COALESCE((SELECT expires > TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) DIV 1000 FROM tidewire_lease WHERE name = 'capture'), 0)
         FROM tidewire_binlog b",
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(database_error)?;
    let mut unread: Option<u64> = None;
    for file in conn.fetch_all(sqlx::raw_sql("SHOW BINARY LOGS")).await.map_err(database_error)? {
        let (name, size): (String, u64) = (file.get(0), file.try_get_unchecked(1).map_err(database_error)?);
        match &mut unread {
            Some(unread) => *unread += size,
            None if name == position.file => unread = Some(size.saturating_sub(position.place.position())),
            None => {}
        }
    }
    let unread = if end <= position.place { Some(0) } else { unread };
    Ok(LogStatus {
        name: position.file,
        active: row.get::<i64, _>(2) != 0,
        lag_bytes: unread,
        lag_seconds: row.get::<Option<i64>, _>(1).filter(|_| unread != Some(0)).map(|at| at.max(0).cast_unsigned()),
        kept_bytes: None,
        trouble: row.get(0),
    })
}

/// The columns of a table, as it is now.
pub(super) async fn columns(conn: &mut MySqlConnection, table: &str) -> Result<Vec<String>> {
    let columns = "SELECT CAST(column_name AS CHAR) FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = ?";
    sqlx::query_scalar(columns).bind(table).fetch_all(conn).await.map_err(database_error)
}

/// The last number of the outbox that tells of a transaction before a place; of those behind a number that is known to.
pub(super) async fn newest_before(conn: &mut MySqlConnection, place: Place, known: u64) -> Result<u64> {
    let tx = data_encoding::HEXLOWER.encode(&place.number().to_be_bytes());
    let text =
        format!("SELECT seq FROM tidewire_outbox WHERE seq > {known} AND tx < X'{tx}' ORDER BY seq DESC LIMIT 1");
    let row = conn.fetch_optional(sqlx::raw_sql(AssertSqlSafe(text))).await.map_err(database_error)?;
    Ok(row.map_or(known, |row| row.get::<i64, _>(0).cast_unsigned()))
}
