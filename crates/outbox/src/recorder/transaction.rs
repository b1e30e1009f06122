use std::{pin::Pin, sync::Arc};

use async_trait::async_trait;
use futures_util::{Stream, future::BoxFuture};
use sea_orm::{
    AccessMode, ConnectionTrait, DbBackend, DbErr, ExecResult, IsolationLevel, QueryResult, Statement, StreamTrait,
    TransactionError, TransactionOptions, TransactionSession, TransactionTrait, sea_query::Value,
};

use super::run;
use crate::{
    context::{Actor, Context, MutationId, Origin},
    database::{Session, Text, own},
    error::Result,
    sql::Select,
};

/// A transaction of a [`Recorder`](super::Recorder), or a savepoint inside one. Dropped without a commit, it is rolled back.
#[derive(Debug)]
pub struct RecorderTransaction {
    session: Arc<dyn Session>,
    backend: DbBackend,
    context: Context,
    /// 0 for the transaction itself, from 1 for savepoints inside it.
    level: u32,
    open: bool,
}

/// The memory of a mutation that took effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Tells whether a mutation with the same id asks for the same thing.
    pub fingerprint: String,
    /// What the mutation gave.
    pub result: String,
}

impl RecorderTransaction {
    pub(super) fn outermost(session: Arc<dyn Session>, backend: DbBackend, context: Context) -> Self {
        Self { session, backend, context, level: 0, open: true }
    }

    /// The same transaction, writing in this actor's name from here on.
    #[must_use]
    pub fn acting_as(mut self, actor: Actor) -> Self {
        self.context.actor = actor;
        self
    }

    /// The same transaction, writing from here on what this replica already has.
    #[must_use]
    pub fn from(mut self, origin: Origin) -> Self {
        self.context.origin = Some(origin);
        self
    }

    /// In whose name it writes.
    pub fn actor(&self) -> &Actor {
        &self.context.actor
    }

    /// The same transaction, writing for this mutation of a client's from here on.
    pub fn set_mutation(&mut self, id: Option<MutationId>) {
        self.context.mutation_id = id;
    }

    /// Answers a select as JSON, with the changes of this transaction in it.
    ///
    /// # Errors
    /// [`ErrorKind::Database`](crate::ErrorKind::Database) and [`ErrorKind::Busy`](crate::ErrorKind::Busy) as they come.
    pub async fn fetch(&self, select: &Select) -> Result<String> {
        self.session.fetch(select).await
    }

    /// What a mutation with this id gave for a field when it first took effect, if it has.
    ///
    /// Together with [`remember`](Self::remember) in the same transaction this makes a retry harmless (promise I12): the effect and the
    /// memory of it commit together, and a second transaction with the same id waits for the first or sees it.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub async fn recall(&self, id: &MutationId, field: &str) -> Result<Option<Remembered>> {
        // SQLite has one writer anyway; elsewhere a second transaction with the same id waits for the first to end, and then sees what it did.
        let mut sql = String::from("SELECT fingerprint, result FROM tidewire_mutation WHERE id = ? AND field = ?");
        match self.backend {
            DbBackend::Postgres => {
                let lock = "SELECT pg_advisory_xact_lock(hashtextextended(?, 0))::text";
                self.own(lock, [format!("tidewire {}", id.as_str()).into()]).await?;
            }
            DbBackend::MySql => {
                // A row with an empty field stands for the id.
                let lock = "INSERT INTO tidewire_mutation (id, field, fingerprint, result, at) VALUES (?, '', '', '', ?) \
                            ON DUPLICATE KEY UPDATE at = at";
                self.own(lock, [id.as_str().into(), chrono::Utc::now().timestamp_millis().into()]).await?;
                sql.push_str(" LOCK IN SHARE MODE");
            }
            _ => {}
        }
        let rows = self.own(&sql, [id.as_str().into(), field.into()]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(Remembered { fingerprint: row.try_get_by_index(0)?, result: row.try_get_by_index(1)? }))
    }

    /// Keeps what a mutation with this id gives for a field, until retention removes it.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub async fn remember(&self, id: &MutationId, field: &str, remembered: &Remembered) -> Result<()> {
        let sql = "INSERT INTO tidewire_mutation (id, field, fingerprint, result, at) VALUES (?, ?, ?, ?, ?)";
        let values = [
            id.as_str().into(),
            field.into(),
            remembered.fingerprint.as_str().into(),
            remembered.result.as_str().into(),
            chrono::Utc::now().timestamp_millis().into(),
        ];
        self.own(sql, values).await?;
        Ok(())
    }
}

impl RecorderTransaction {
    /// Runs a statement on Tidewire's own tables, written with question marks.
    pub(crate) async fn own<const N: usize>(&self, sql: &str, values: [Value; N]) -> Result<Vec<QueryResult>> {
        Ok(self.session.own(own(self.backend, sql, values)).await?)
    }
}

impl Drop for RecorderTransaction {
    fn drop(&mut self) {
        if self.open && self.level > 0 {
            self.session.abandon(self.level);
        }
        // The outermost one is rolled back by its session's own drop.
    }
}

#[async_trait]
impl TransactionSession for RecorderTransaction {
    async fn commit(mut self) -> Result<(), DbErr> {
        match self.level {
            0 => self.session.commit().await?,
            level => self.session.release(level).await?,
        }
        self.open = false;
        Ok(())
    }

    async fn rollback(mut self) -> Result<(), DbErr> {
        match self.level {
            0 => self.session.rollback().await?,
            level => self.session.rollback_to(level).await?,
        }
        self.open = false;
        Ok(())
    }
}

#[async_trait]
impl ConnectionTrait for RecorderTransaction {
    fn get_database_backend(&self) -> DbBackend {
        self.backend
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        Ok(self.session.execute(statement, Text::One, &self.context).await?.result)
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let statement = Statement::from_string(self.backend, sql);
        Ok(self.session.execute(statement, Text::Many, &self.context).await?.result)
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        Ok(self.session.execute(statement, Text::One, &self.context).await?.rows.into_iter().next())
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        Ok(self.session.execute(statement, Text::One, &self.context).await?.rows)
    }
}

impl StreamTrait for RecorderTransaction {
    type Stream<'a> = Pin<Box<dyn Stream<Item = Result<QueryResult, DbErr>> + Send + 'a>>;

    fn get_database_backend(&self) -> DbBackend {
        self.backend
    }

    fn stream_raw<'a>(&'a self, statement: Statement) -> BoxFuture<'a, Result<Self::Stream<'a>, DbErr>> {
        Box::pin(async move { Ok(self.session.stream(statement, &self.context).await? as _) })
    }
}

#[async_trait]
impl TransactionTrait for RecorderTransaction {
    type Transaction = RecorderTransaction;

    async fn begin(&self) -> Result<RecorderTransaction, DbErr> {
        let level = self.level + 1;
        self.session.savepoint(level).await?;
        Ok(Self {
            session: Arc::clone(&self.session),
            backend: self.backend,
            context: self.context.clone(),
            level,
            open: true,
        })
    }

    async fn begin_with_config(
        &self,
        _isolation_level: Option<IsolationLevel>,
        _access_mode: Option<AccessMode>,
    ) -> Result<RecorderTransaction, DbErr> {
        // A savepoint has no options of its own.
        self.begin().await
    }

    async fn begin_with_options(&self, _options: TransactionOptions) -> Result<RecorderTransaction, DbErr> {
        self.begin().await
    }

    async fn transaction<F, T, E>(&self, callback: F) -> Result<T, TransactionError<E>>
    where
        F: for<'c> FnOnce(&'c RecorderTransaction) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>> + Send,
        T: Send,
        E: std::fmt::Display + std::fmt::Debug + Send,
    {
        run(self.begin().await?, callback).await
    }

    async fn transaction_with_config<F, T, E>(
        &self,
        callback: F,
        _isolation_level: Option<IsolationLevel>,
        _access_mode: Option<AccessMode>,
    ) -> Result<T, TransactionError<E>>
    where
        F: for<'c> FnOnce(&'c RecorderTransaction) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>> + Send,
        T: Send,
        E: std::fmt::Display + std::fmt::Debug + Send,
    {
        run(self.begin().await?, callback).await
    }
}
