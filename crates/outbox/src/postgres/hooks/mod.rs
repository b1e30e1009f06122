//! Capture by hooks: each write of a synced table is sent as one statement that also records it.
//!
//! What a statement writes is read from its text ([`crate::hooks`]), and what its names mean from the database's catalogue ([`facts`]). Most writes
//! become one statement in one round trip ([`rewrite`]), atomic in autocommit as in a transaction. Where foreign keys make other rows follow, it
//! takes some more in one transaction ([`cascade`]). What can be done in neither way is refused ([`plan`]).

mod cascade;
mod facts;
mod plan;
mod rewrite;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sea_orm::{DbErr, Statement, Values, sea_query::Value};
use sqlx::PgConnection;

use self::{
    cascade::Cascade,
    facts::{Facts, Table},
};
use super::{
    connections::Connections,
    session::{self, Answer, How},
};
use crate::{
    context::Context,
    database::Text,
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

/// What to send for a text.
pub(super) struct Program {
    steps: Vec<Step>,
    refusal: Option<String>,
}

struct Step {
    /// How many values the caller's statement takes.
    values: usize,
    /// Whether the caller is answered with rows.
    rows: bool,
    way: Way,
}

enum Way {
    /// As it came: it writes no synced row.
    Plain(String),
    One(String),
    Cascade(Box<Cascade>),
}

impl Program {
    /// Whether the text can be sent as it came.
    pub(super) fn is_plain(&self) -> bool {
        self.steps.iter().all(|step| matches!(step.way, Way::Plain(_)))
    }

    /// Whether it takes several statements, which must all have their effect or none.
    pub(super) fn needs_transaction(&self, text: Text) -> bool {
        let single = matches!(self.steps.as_slice(), [Step { way: Way::One(_), .. }]);
        !single && !self.is_plain() && (text == Text::Many || self.steps.len() == 1)
    }
}

impl Hooks {
    pub(super) fn new(catalog: Arc<Catalog>) -> Self {
        Self { catalog, known: Mutex::default() }
    }

    /// The schema as it is, or was a moment ago.
    pub(super) async fn schema(&self, connections: &Connections) -> Result<Arc<Schema>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((schema, at)) = &known
            && at.elapsed() < REFRESH
        {
            return Ok(Arc::clone(schema));
        }
        let mut conn = connections.lend().await?;
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
    pub(super) async fn check(&self, connections: &Connections) -> Result<()> {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match self.schema(connections).await?.problems() {
            Some(problems) => Err(Error::new(ErrorKind::Setup, problems)),
            None => Ok(()),
        }
    }
}

impl Schema {
    fn problems(&self) -> Option<String> {
        let problems = &self.facts.problems;
        let text = || {
            format!(
                "the database cannot be captured by hooks: {}. `tidewire capture install` with `triggers` or `log` captures it",
                problems.join("; ")
            )
        };
        (!problems.is_empty()).then(text)
    }

    /// What a synced table is called in the outbox.
    fn name(&self, table: &Table) -> &'static str {
        table.entity.map_or("", |id| self.catalog.entity(id).name)
    }

    /// What to send for a text. `None` where that is certainly the text itself.
    pub(super) fn program(&self, sql: &str) -> Result<Option<Arc<Program>>, DbErr> {
        // Most texts are single selects from SeaORM; they need no second look.
        let is = |head: &str| sql.trim_start().get(..head.len()).is_some_and(|start| start.eq_ignore_ascii_case(head));
        let has = |word: &[u8]| sql.as_bytes().windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
        let is_safe = || !sql.contains(';') && !has(b"into") && !has(b"set_config") && !has(b"u&");
        if is("select ") && !self.facts.has_functions() && is_safe() {
            return Ok(None);
        }
        let program = self.programs.get(sql, || self.make(sql));
        match &program.refusal {
            Some(why) => Err(Error::new(ErrorKind::Refused, why.as_str()).into()),
            None => Ok(Some(program)),
        }
    }

    fn make(&self, sql: &str) -> Program {
        let steps = hooks::read(sql, Syntax::Postgres).pieces.iter().map(|piece| self.step(piece)).collect();
        match steps {
            Ok(steps) => Program { steps, refusal: None },
            Err(why) => Program { steps: Vec::new(), refusal: Some(why) },
        }
    }

    /// Runs a text; in a transaction, where the program needs one.
    pub(super) async fn run(
        &self,
        conn: &mut PgConnection,
        program: Option<&Program>,
        statement: Statement,
        text: Text,
        context: &Context,
        named: bool,
    ) -> Result<Answer, DbErr> {
        let Some(program) = program.filter(|program| !program.is_plain()) else {
            return session::run_as_it_is(conn, statement, text, named).await;
        };
        if text == Text::One && program.steps.len() > 1 {
            // The database says that this cannot be.
            return session::run_as_it_is(conn, statement, text, named).await;
        }
        let given = statement.values.map(|values| values.0).unwrap_or_default();
        let mut answer = Answer::default();
        for step in &program.steps {
            if given.len() != step.values {
                let why = format!("the statement takes {} values and was given {}", step.values, given.len());
                return Err(Error::new(ErrorKind::Refused, why).into());
            }
            // A text of statements without values is often one that never comes again.
            let how = How { rows: step.rows, prepared: named && text == Text::One };
            answer.extend(match &step.way {
                Way::Plain(sql) => session::run_raw(conn, sql).await?,
                Way::One(sql) => session::run(conn, sql, Values(with_context(given.clone(), context)), how).await?,
                Way::Cascade(cascade) => cascade.run(conn, self, given.clone(), context, how).await?,
            });
        }
        Ok(answer)
    }
}

/// The caller's values with the context's behind them.
fn with_context(mut values: Vec<Value>, context: &Context) -> Vec<Value> {
    let text = |text: Option<&str>| Value::String(text.map(str::to_owned));
    values.push(text(Some(context.actor.as_str())));
    values.push(text(context.origin.as_ref().map(|origin| origin.as_str())));
    values.push(text(context.mutation_id.as_ref().map(|id| id.as_str())));
    values
}
