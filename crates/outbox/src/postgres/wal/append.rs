//! Writes what the log says into the outbox.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use super::changes::Rows;
use crate::{
    error::{Error, ErrorKind, Result},
    lease::Lease,
    postgres::{Postgres, database_error, epoch},
};

/// How soon to look again whether a transaction that the log tells of is visible.
const VISIBLE_POLL: std::time::Duration = std::time::Duration::from_millis(1);

/// What adds rows. They are numbered in the order that they stand in here.
const ADD: &str = "INSERT INTO tidewire_outbox (source, entity, operation, before, after, actor, origin, mutation_id, at)
    SELECT r.source, r.entity, r.operation, r.before, r.after, r.actor, r.origin, r.mutation_id, r.at
    FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::timestamptz[])
      WITH ORDINALITY AS r (source, entity, operation, before, after, actor, origin, mutation_id, at, place)";

/// Adds rows, and how far the log has been read with them, in one statement: nothing, where the lease is lost, where the database is not
/// captured by its log any more, or where a transaction of the log is not visible yet.
fn finish(fence: &str) -> String {
    format!(
        "WITH fenced AS MATERIALIZED ({fence}),
         state AS MATERIALIZED (SELECT (SELECT count(*) FROM fenced) > 0 AS held, NOT EXISTS (
           SELECT 1 FROM unnest($10::text[]) id WHERE NOT pg_visible_in_snapshot(id::xid8, pg_current_snapshot())) AS visible),
         noted AS (UPDATE tidewire_log SET lsn = $11, lsn_at = coalesce($12, lsn_at), trouble = NULL FROM state
           WHERE held AND visible AND capture = 'log' AND lsn <= $11 RETURNING 1),
         added AS ({ADD}, noted ORDER BY r.place RETURNING 1)
         SELECT held, visible, (SELECT count(*) FROM noted), (SELECT count(*) FROM added),
           pg_snapshot_xmax(pg_current_snapshot())::text::bigint FROM state"
    )
}

/// The connection that appends. It is its own, so that readers and writers never wait for it.
pub(super) struct Appender<'a> {
    connection: PgConnection,
    lease: &'a Lease,
    finish: String,
    /// Whether a transaction is open, because there is more than fits into one statement.
    open: bool,
    /// Whether the log's history was broken off in it.
    broken: bool,
    /// The transactions of the log that have been added in what is open.
    sources: Vec<i64>,
}

impl<'a> Appender<'a> {
    pub(super) async fn new(database: &Postgres, lease: &'a Lease) -> Result<Self> {
        let options = database.connections.direct_pool().connect_options();
        let mut connection = PgConnection::connect_with(&options).await.map_err(database_error)?;
        // What is confirmed to the slot is not told again, so it must have been written.
        let durable =
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";
        connection.execute(durable).await.map_err(database_error)?;
        let fence = lease.fence_sql(13);
        Ok(Self { connection, lease, finish: finish(&fence), open: false, broken: false, sources: Vec::new() })
    }

    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// A transaction of the log begins, whose rows follow.
    pub(super) fn note_source(&mut self, id: i64) {
        self.sources.push(id);
    }

    /// Waits until a transaction of the log is visible, as what it did to a table's columns is from then on.
    pub(super) async fn see(&mut self, source: i64) -> Result<()> {
        let seen = "SELECT pg_visible_in_snapshot($1::text::xid8, pg_current_snapshot())";
        while !sqlx::query_scalar::<_, bool>(seen)
            .bind(source.to_string())
            .fetch_one(&mut self.connection)
            .await
            .map_err(database_error)?
        {
            tokio::time::sleep(VISIBLE_POLL).await;
        }
        Ok(())
    }

    async fn open(&mut self) -> Result<()> {
        if !self.open {
            self.connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED").await.map_err(database_error)?;
            self.open = true;
        }
        Ok(())
    }

    /// Adds a part of more than fits into one statement.
    pub(super) async fn add(&mut self, rows: &Rows) -> Result<()> {
        self.open().await?;
        let add = format!("{ADD} ORDER BY r.place");
        let query = with_rows(sqlx::query(AssertSqlSafe(add)), rows);
        query.execute(&mut self.connection).await.map(drop).map_err(database_error)
    }

    /// Says that changes are missing here: all who follow start over. Answers whether that is new in what is open.
    pub(super) async fn break_off(&mut self) -> Result<bool> {
        if std::mem::replace(&mut self.broken, true) {
            return Ok(false);
        }
        self.open().await?;
        epoch::break_off(&mut self.connection).await.map(|()| true)
    }

    /// Adds the last part, and notes how far the log has been read; answers an id from now. Everything since the last time is committed
    /// together, and each transaction of the log is visible to all before that.
    pub(super) async fn finish(&mut self, rows: &Rows, lsn: u64, at: Option<DateTime<Utc>>) -> Result<u64> {
        let ids: Vec<String> = self.sources.iter().map(ToString::to_string).collect();
        loop {
            let values = self.lease.key();
            let query = with_rows(sqlx::query(AssertSqlSafe(self.finish.clone())), rows)
                .bind(&ids)
                .bind(lsn.cast_signed())
                .bind(at)
                .bind(values.name)
                .bind(values.holder)
                .bind(values.token);
            let row = query.fetch_one(&mut self.connection).await.map_err(database_error)?;
            if !row.get::<bool, _>(0) {
                return Err(self.lease.lost_error());
            }
            if !row.get::<bool, _>(1) {
                tokio::time::sleep(VISIBLE_POLL).await;
                continue;
            }
            if row.get::<i64, _>(2) == 0 {
                return Err(Error::new(
                    ErrorKind::Lost,
                    "the database is not captured by its log any more, or another has read it further",
                ));
            }
            if self.open {
                self.connection.execute("COMMIT").await.map_err(database_error)?;
                self.open = false;
            }
            self.broken = false;
            self.sources.clear();
            return Ok(row.get::<i64, _>(4).cast_unsigned());
        }
    }
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn with_rows<'q>(query: Query<'q>, rows: &Rows) -> Query<'q> {
    query
        .bind(rows.source.clone())
        .bind(rows.entity.iter().map(ToString::to_string).collect::<Vec<_>>())
        .bind(&rows.operation)
        .bind(&rows.before)
        .bind(&rows.after)
        .bind(rows.actors())
        .bind(rows.origins())
        .bind(rows.mutations())
        .bind(rows.at.clone())
}
