//! Writes what the log says into the outbox.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, MySqlConnection, Row};

use super::{
    changes::{Changes, Line, Tx},
    place::Position,
    server,
};
use crate::{
    error::{Error, ErrorKind, Result},
    lease::Lease,
    mysql::{Mysql, database_error, triggers::COLUMNS},
};

/// How many rows of `tidewire_followed` are removed with one statement.
const REMOVED_AT_ONCE: usize = 1_000;

/// What one statement has besides its images.
const ROOM: usize = 1 << 16;

/// The connection that appends. It is its own, so that readers and writers never wait for it.
pub(super) struct Appender<'a> {
    connection: MySqlConnection,
    lease: &'a Lease,
    /// The longest statement that the server takes, in bytes.
    longest: usize,
    /// Whether a transaction is open.
    open: bool,
}

impl<'a> Appender<'a> {
    pub(super) async fn new(database: &Mysql, lease: &'a Lease) -> Result<Self> {
        let mut connection = database.pool.connect_options().connect().await.map_err(database_error)?;
        crate::mysql::greet(&mut connection).await.map_err(database_error)?;
        // Rows are removed by their keys, and nobody else's may come to wait for a gap.
        let isolation = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
        connection.execute(isolation).await.map_err(database_error)?;
        let longest = sqlx::query_scalar::<_, u64>("SELECT CAST(@@max_allowed_packet AS UNSIGNED)")
            .fetch_one(&mut connection)
            .await
            .map_err(database_error)?;
        let longest = usize::try_from(longest).unwrap_or(usize::MAX);
        Ok(Self { connection, lease, longest, open: false })
    }

    pub(super) fn connection(&mut self) -> &mut MySqlConnection {
        &mut self.connection
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    async fn run(&mut self, text: String) -> Result<u64> {
        let result = self.connection.execute(sqlx::raw_sql(AssertSqlSafe(text))).await;
        Ok(result.map_err(database_error)?.rows_affected())
    }

    async fn open(&mut self) -> Result<()> {
        if !self.open {
            self.run("START TRANSACTION".to_owned()).await?;
            self.open = true;
        }
        Ok(())
    }

    /// Adds what has been read; whether that is all of a transaction does not matter before [`finish`](Self::finish).
    pub(super) async fn add(&mut self, changes: &mut Changes) -> Result<()> {
        changes.bytes = 0;
        let lines = std::mem::take(&mut changes.rows);
        let mut rest = lines.as_slice();
        while !rest.is_empty() {
            self.open().await?;
            let (text, taken) = self.insertion(rest)?;
            self.run(text).await?;
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// The statement that adds the first rows, as many as fit, and how many those are.
    fn insertion(&self, lines: &[Line]) -> Result<(String, usize)> {
        let mut text = format!("INSERT INTO tidewire_outbox ({COLUMNS}) VALUES ");
        let mut taken = 0;
        for line in lines {
            let before = text.len();
            text.push_str(if taken == 0 { "(" } else { ", (" });
            values(line, &mut text);
            text.push(')');
            if text.len() + ROOM > self.longest {
                if taken == 0 {
                    return Err(Error::new(
                        ErrorKind::Setup,
                        format!(
                            "a row of {} is too large to be recorded: the server's max_allowed_packet must be {} bytes at least. Until \
                             then the binary log is not read",
                            line.entity,
                            text.len() + ROOM
                        ),
                    ));
                }
                text.truncate(before);
                break;
            }
            taken += 1;
        }
        Ok((text, taken))
    }

    /// Takes back the last rows of a transaction of the log, which were rolled back.
    pub(super) async fn undo(&mut self, tx: Tx, rows: usize) -> Result<()> {
        let tx = data_encoding::HEXLOWER.encode(&tx);
        self.run(format!("DELETE FROM tidewire_outbox WHERE tx = X'{tx}' ORDER BY seq DESC LIMIT {rows}")).await?;
        Ok(())
    }

    /// Says that changes are missing here: all who follow start over.
    pub(super) async fn break_off(&mut self) -> Result<()> {
        self.open().await?;
        server::break_off(&mut self.connection).await
    }

    /// Begins anew where the log ends now, because it does not lead on from where it has been read to.
    pub(super) async fn begin_anew(&mut self) -> Result<()> {
        // Looked up first: what is written meanwhile is told, of the new history.
        let here = server::now(&mut self.connection).await?;
        self.break_off().await?;
        server::begin_at(&mut self.connection, &here).await?;
        self.fence().await?;
        self.run("COMMIT".to_owned()).await?;
        self.open = false;
        Ok(())
    }

    /// Makes sure that what is open is committed only by who holds the lease. Late, since nobody can renew it from here on until that has ended.
    async fn fence(&mut self) -> Result<()> {
        let key = self.lease.key();
        let fence = sqlx::query(AssertSqlSafe(self.lease.fence_sql(1)));
        let fence = fence.bind(key.name).bind(key.holder).bind(key.token).fetch_optional(&mut self.connection);
        match fence.await.map_err(database_error)? {
            Some(_) => Ok(()),
            None => Err(self.lease.lost_error()),
        }
    }

    /// Adds the rest, and notes how far the log has been read. Everything since the last time is committed together; nothing, where the lease is
    /// lost or the database is not captured by its log any more.
    pub(super) async fn finish(
        &mut self,
        changes: &mut Changes,
        position: &Position,
        at: Option<DateTime<Utc>>,
    ) -> Result<()> {
        self.add(changes).await?;
        self.open().await?;
        for ids in std::mem::take(&mut changes.followed).chunks(REMOVED_AT_ONCE) {
            let ids = ids.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
            self.run(format!("DELETE FROM tidewire_followed WHERE id IN ({ids})")).await?;
        }
        self.fence().await?;
        let noted = sqlx::query(
            "UPDATE tidewire_binlog b JOIN tidewire_log l ON l.one = b.one
             SET b.gtid = ?, b.file = ?, b.place = ?, b.at = COALESCE(?, b.at), b.prepared = ?, b.trouble = NULL,
               l.settled = GREATEST(l.settled, ?)
             WHERE l.capture = 'log' AND b.place <= ?",
        )
        .bind(position.gtids.to_string())
        .bind(&position.file)
        .bind(position.place.number())
        .bind(at)
        .bind(serde_json::to_string(&changes.prepared).expect("texts are always valid JSON"))
        .bind(self.newest().await?)
        .bind(position.place.number())
        .execute(&mut self.connection)
        .await
        .map_err(database_error)?;
        if noted.rows_affected() == 0 {
            return Err(Error::new(
                ErrorKind::Lost,
                "the database is not captured by its binary log any more, or another has read it further",
            ));
        }
        self.run("COMMIT".to_owned()).await?;
        self.open = false;
        Ok(())
    }

    /// The highest number there is, its own included. None below it is still to come: whoever else drew some has lost the lease.
    async fn newest(&mut self) -> Result<i64> {
        let newest = sqlx::query("SELECT COALESCE(MAX(seq), 0) FROM tidewire_outbox");
        Ok(newest.fetch_one(&mut self.connection).await.map_err(database_error)?.get(0))
    }
}

/// A text as a literal, whatever stands in it.
fn literal(text: &str, out: &mut String) {
    out.push('\'');
    for part in text.split_inclusive(['\'', '\\']) {
        match part.as_bytes().last() {
            Some(b'\'' | b'\\') => {
                out.push_str(&part[..part.len() - 1]);
                out.push('\\');
                out.push_str(&part[part.len() - 1..]);
            }
            _ => out.push_str(part),
        }
    }
    out.push('\'');
}

fn maybe(text: Option<&str>, out: &mut String) {
    match text {
        Some(text) => literal(text, out),
        None => out.push_str("NULL"),
    }
}

/// The values of a row, in the order of [`COLUMNS`].
fn values(line: &Line, out: &mut String) {
    let told = &line.told;
    // Writing to a `String` cannot fail.
    let _ = write!(out, "X'{}', ", data_encoding::HEXLOWER.encode(&line.tx));
    literal(&told.actor, out);
    out.push_str(", ");
    maybe(told.origin.as_deref(), out);
    out.push_str(", ");
    maybe(told.mutation.as_deref(), out);
    let _ = write!(out, ", '{}', ", line.at.format("%F %T%.3f"));
    literal(&line.entity, out);
    let _ = write!(out, ", '{}', ", line.operation);
    maybe(line.before.as_deref(), out);
    out.push_str(", ");
    maybe(line.after.as_deref(), out);
}
