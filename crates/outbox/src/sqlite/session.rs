use std::{fmt, sync::Arc};

use async_trait::async_trait;
use futures_util::StreamExt;
use sea_orm::{DbBackend, DbErr, QueryResult, Statement};
use sqlx::{Row, sqlite::SqliteQueryResult};
use tokio::sync::{Mutex, MutexGuard, Notify};

use super::{
    dialect::SqliteDialect,
    refused,
    statement::{Plan, Plans},
    writer::{Connection, Turn},
};
use crate::{
    context::Context,
    database::{Abandoned, Executed, Rows, Session, Text, savepoint},
    error::{Error, ErrorKind, Result},
    registry::Catalog,
    sql::{self, Select, Sql},
};

/// A transaction on the writing connection. Dropped unfinished, its turn rolls it back.
pub(super) struct SqliteSession {
    turn: Mutex<Option<Turn>>,
    abandoned: Abandoned,
    catalog: Arc<Catalog>,
    plans: Arc<Plans>,
    doorbell: Arc<Notify>,
}

impl fmt::Debug for SqliteSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqliteSession")
    }
}

impl SqliteSession {
    pub(super) fn new(turn: Turn, catalog: Arc<Catalog>, plans: Arc<Plans>, doorbell: Arc<Notify>) -> Self {
        Self { turn: Mutex::new(Some(turn)), abandoned: Abandoned::default(), catalog, plans, doorbell }
    }

    async fn turn(&self) -> Result<Held<'_>, DbErr> {
        let mut guard = self.turn.lock().await;
        let Some(turn) = guard.as_mut() else {
            return Err(ended("the transaction has ended"));
        };
        if !turn.connection().is_open() {
            return Err(ended("SQLite has rolled the transaction back after an error"));
        }
        if let Some(level) = self.abandoned.take() {
            turn.connection().rollback_to(&savepoint(level)).await?;
        }
        Ok(Held(guard))
    }

    async fn end(&self) -> Option<Turn> {
        self.turn.lock().await.take()
    }
}

struct Held<'a>(MutexGuard<'a, Option<Turn>>);

impl Held<'_> {
    fn connection(&mut self) -> &mut Connection {
        self.0.as_mut().expect("checked when taken").connection()
    }
}

fn ended(why: &str) -> DbErr {
    Error::new(ErrorKind::Database, why).into()
}

#[async_trait]
impl Session for SqliteSession {
    async fn execute(&self, statement: Statement, _text: Text, context: &Context) -> Result<Executed, DbErr> {
        let mut held = self.turn().await?;
        let plan = self.plans.get(&statement.sql, held.connection().replace_is_seen());
        let (result, rows) = match plan {
            Plan::Refuse(why) => return Err(refused(why)),
            Plan::Read => (SqliteQueryResult::default(), held.connection().read(statement).await?),
            Plan::Write { statements } => {
                let outcome = held.connection().write(statement, statements, context).await?;
                (outcome.result, outcome.rows)
            }
        };
        Ok(Executed { result: result.into(), rows: rows.into_iter().map(QueryResult::from).collect() })
    }

    async fn stream<'a>(&'a self, statement: Statement, context: &'a Context) -> Result<Rows<'a>, DbErr> {
        // The connection is one, so the rows are read whole before anything else can run on it.
        let executed = self.execute(statement, Text::One, context).await?;
        Ok(futures_util::stream::iter(executed.rows.into_iter().map(Ok)).boxed())
    }

    async fn fetch(&self, select: &Select) -> Result<String> {
        let mut sql = Sql::default();
        sql::write(&SqliteDialect, &self.catalog, select, &mut sql);
        let statement = Statement::from_sql_and_values(DbBackend::Sqlite, sql.text, sql.values);
        let rows = self.turn().await?.connection().read(statement).await?;
        let row = rows.first().ok_or_else(|| DbErr::RecordNotFound("a JSON select gave no row".into()))?;
        row.try_get(0).map_err(super::database_error)
    }

    async fn savepoint(&self, level: u32) -> Result<(), DbErr> {
        self.turn().await?.connection().control(format!("SAVEPOINT {}", savepoint(level))).await
    }

    async fn release(&self, level: u32) -> Result<(), DbErr> {
        self.turn().await?.connection().control(format!("RELEASE {}", savepoint(level))).await
    }

    async fn rollback_to(&self, level: u32) -> Result<(), DbErr> {
        self.turn().await?.connection().rollback_to(&savepoint(level)).await
    }

    fn abandon(&self, level: u32) {
        self.abandoned.add(level);
    }

    async fn commit(&self) -> Result<(), DbErr> {
        self.turn().await?.connection().commit().await?;
        self.end().await;
        self.doorbell.notify_one();
        Ok(())
    }

    async fn rollback(&self) -> Result<(), DbErr> {
        let Some(mut turn) = self.end().await else { return Ok(()) };
        let connection = turn.connection();
        if connection.is_open() { connection.rollback().await } else { Ok(()) }
    }

    async fn own(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let rows = self.turn().await?.connection().read(statement).await?;
        Ok(rows.into_iter().map(QueryResult::from).collect())
    }
}
