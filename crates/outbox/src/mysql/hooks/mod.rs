//! Capture by hooks: writes of synced tables are sent with what records them, in one transaction.
//!
//! What a statement writes is read from its text ([`crate::hooks`]), and what its names mean from the database's catalogue ([`facts`]). [`plan`] decides
//! how to run it, or why not; [`run`] does, and [`cascade`] finds the rows that follow by foreign keys.

mod cascade;
mod facts;
mod key;
mod plan;
mod run;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sea_orm::{DbErr, ExecResult, Statement, sea_query::Value};
use sqlx::{MySqlConnection, MySqlPool};

pub(super) use self::run::Progress;
use self::{
    facts::{Facts, Table},
    plan::{Delete, Held, Insert, Update},
    run::Run,
};
use super::{
    database_error, statement,
    triggers::{self, of},
};
use crate::{
    context::Context,
    database::{Executed, Text},
    error::{Error, ErrorKind, Result},
    hooks::{self, Syntax, Texts},
    registry::Catalog,
};

/// How old what is known of the schema may be.
const REFRESH: Duration = Duration::from_secs(2);

/// What is known of the schema, and made of texts by it.
pub(super) struct Hooks {
    catalog: Arc<Catalog>,
    known: Mutex<Option<(Arc<Schema>, Instant)>>,
}

/// One state of the schema.
pub(super) struct Schema {
    catalog: Arc<Catalog>,
    facts: Facts,
    programs: Texts<Program>,
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Schema")
    }
}

/// What to do for a text.
pub(super) struct Program {
    steps: Vec<Step>,
    refusal: Option<String>,
}

struct Step {
    /// The caller's own statement.
    sql: String,
    /// How many values it takes.
    values: usize,
    way: Way,
}

enum Way {
    /// As it came: it writes no synced row.
    Plain,
    Insert(Insert),
    Replace(Insert),
    Update(Update),
    Delete(Delete),
    Held(Held),
}

impl Program {
    /// Whether there is one statement in it.
    pub(super) fn is_single(&self) -> bool {
        self.steps.len() == 1
    }

    /// Whether the text can be sent as it came.
    pub(super) fn is_plain(&self) -> bool {
        self.steps.iter().all(|step| matches!(step.way, Way::Plain))
    }
}

impl Hooks {
    pub(super) fn new(catalog: Arc<Catalog>) -> Self {
        Self { catalog, known: Mutex::default() }
    }

    /// The schema as it is, or was a moment ago.
    pub(super) async fn schema(&self, pool: &MySqlPool) -> Result<Arc<Schema>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((schema, at)) = &known
            && at.elapsed() < REFRESH
        {
            return Ok(Arc::clone(schema));
        }
        let mut conn = pool.acquire().await.map_err(database_error)?;
        let schema = match known {
            Some((schema, _)) if schema.facts.stamp == Facts::stamp(&mut conn).await? => schema,
            _ => Arc::new(Schema {
                catalog: Arc::clone(&self.catalog),
                facts: Facts::load(&mut conn, &self.catalog).await?,
                programs: Texts::default(),
            }),
        };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((Arc::clone(&schema), Instant::now()));
        Ok(schema)
    }

    /// Whether all writes of synced tables can be recorded.
    pub(super) async fn check(&self, pool: &MySqlPool) -> Result<()> {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match self.schema(pool).await?.problems() {
            Some(problems) => Err(Error::new(ErrorKind::Setup, problems)),
            None => Ok(()),
        }
    }
}

impl Schema {
    fn problems(&self) -> Option<String> {
        let problems: Vec<&str> = self.facts.problems.iter().map(String::as_str).collect();
        let text = || {
            format!(
                "the database cannot be captured by hooks: {}. `tidewire capture install` with `triggers` captures it",
                problems.join("; ")
            )
        };
        (!problems.is_empty()).then(text)
    }

    /// Whether what reads may call what writes.
    pub(super) fn has_functions(&self) -> bool {
        self.facts.has_functions()
    }

    /// What to do for a text.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] with the reason.
    pub(super) fn program(&self, sql: &str) -> Result<Arc<Program>> {
        let program = self.programs.get(sql, || self.make(sql));
        match &program.refusal {
            Some(why) => Err(Error::new(ErrorKind::Refused, why.as_str())),
            None => Ok(program),
        }
    }

    fn make(&self, sql: &str) -> Program {
        let steps = statement::effect(sql)
            .and_then(|_| hooks::read(sql, Syntax::MySql).pieces.iter().map(|piece| self.step(piece)).collect());
        match steps {
            Ok(steps) => Program { steps, refusal: None },
            Err(why) => Program { steps: Vec::new(), refusal: Some(why) },
        }
    }

    /// The expression of a row's image; `NULL` for a table that is not synced.
    fn image(&self, table: &Table, row: &str) -> String {
        match table.entity {
            Some(id) => triggers::image(&self.facts.layout, self.catalog.entity(id), &of(row)),
            None => "NULL".into(),
        }
    }

    /// Runs a text in a transaction.
    pub(super) async fn run(
        &self,
        conn: &mut MySqlConnection,
        program: &Program,
        statement: Statement,
        text: Text,
        context: &Context,
        progress: &mut Progress,
    ) -> Result<Executed, DbErr> {
        if text == Text::One && program.steps.len() > 1 {
            let why = "a statement of values, or one that returns rows, stands alone in its text";
            return Err(Error::new(ErrorKind::Refused, why).into());
        }
        let given: Vec<Value> = statement.values.map(|values| values.0).unwrap_or_default();
        let mut all = sqlx::mysql::MySqlQueryResult::default();
        let mut rows = Vec::new();
        for step in &program.steps {
            // A text of statements without values is often one that never comes again.
            let mut run = Run { conn, schema: self, progress, context, prepared: text == Text::One };
            let (result, answered) = run.step(step, given.clone()).await?;
            all.extend([result]);
            rows = answered;
        }
        Ok(Executed { result: ExecResult::from(all), rows: rows.into_iter().map(Into::into).collect() })
    }
}
