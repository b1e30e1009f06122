//! Capture by hooks: each write of a synced table is sent as one statement that also records it.
//!
//! What a statement writes is read from its text ([`crate::hooks`]), and what its names mean from the database's catalogue ([`facts`]). Most writes
//! become one statement in one round trip ([`rewrite`]), atomic in autocommit as in a transaction. Where foreign keys make other rows follow, it
//! takes some more in one transaction ([`cascade`]). What can be done in neither way is refused.

mod cascade;
mod facts;
mod rewrite;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sea_orm::{DbErr, Statement, Values, sea_query::Value};
use sqlx::{PgConnection, postgres::PgPool};

use self::{
    cascade::Cascade,
    facts::{Action as Follows, Facts, Meaning, Table},
    rewrite::Rewriter,
};
use super::{
    database_error,
    session::{self, Answer, How},
};
use crate::{
    context::Context,
    database::Text,
    error::{Error, ErrorKind, Result},
    hooks::{self, Action, Conflict, Effect, Piece, Syntax, Texts, Verb, Write},
    registry::Catalog,
};

/// How old what is known of the schema may be.
const REFRESH: Duration = Duration::from_secs(2);

/// What stands behind refusals.
const INSTEAD: &str =
    "Captures that record it are `triggers` and `log`; `Recorder::unrecorded` runs it without a record";

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
    pub(super) async fn schema(&self, pool: &PgPool) -> Result<Arc<Schema>> {
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
    pub(super) async fn check(&self, pool: &PgPool) -> Result<()> {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match self.schema(pool).await?.problems() {
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

    /// What to send for a text. `None` where that is certainly the text itself.
    pub(super) fn program(&self, sql: &str) -> Result<Option<Arc<Program>>, DbErr> {
        // Most texts are single selects from SeaORM; they need no second look.
        let is = |head: &str| sql.trim_start().get(..head.len()).is_some_and(|start| start.eq_ignore_ascii_case(head));
        let has_into = || sql.as_bytes().windows(4).any(|four| four.eq_ignore_ascii_case(b"into"));
        if is("select ")
            && !self.facts.has_functions()
            && !sql.contains(';')
            && !sql.contains("set_config")
            && !has_into()
        {
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

    fn step(&self, piece: &Piece) -> Result<Step, String> {
        self.look_inside(piece)?;
        let plain = Ok(Step { values: piece.values, rows: true, way: Way::Plain(piece.sql.clone()) });
        match &piece.effect {
            Effect::Read => plain,
            Effect::Control(_) | Effect::Unreadable => Err(super::statement::refusal(piece).unwrap_or_default()),
            Effect::Opaque { what, tables: None } => {
                Err(format!("what {what} writes cannot be told from the statement. {INSTEAD}"))
            }
            Effect::Opaque { what, tables: Some(tables) } => {
                let truncates_more = what == "TRUNCATE" && tables.iter().any(|name| name.name == "cascade");
                match tables.iter().find(|name| !matches!(self.facts.meaning(name), Meaning::Nothing)) {
                    Some(table) => {
                        Err(format!("{what} on {table} cannot be recorded. Use INSERT, UPDATE or DELETE. {INSTEAD}"))
                    }
                    None if truncates_more => Err(format!(
                        "what TRUNCATE CASCADE removes cannot be told from the statement. Use DELETE. {INSTEAD}"
                    )),
                    None => plain,
                }
            }
            Effect::Write(write) => match self.facts.meaning(&write.table) {
                Meaning::Nothing => plain,
                Meaning::Hidden(why) => {
                    Err(format!("{} on {} cannot be recorded: {why}. {INSTEAD}", write.verb, write.table))
                }
                Meaning::Table(table) => {
                    let way = self.way(write, table, piece)?;
                    let way = way.unwrap_or_else(|| Way::Plain(piece.sql.clone()));
                    Ok(Step { values: piece.values, rows: write.returning.is_some(), way })
                }
            },
        }
    }

    /// Refuses what a statement would do beside what it says first.
    fn look_inside(&self, piece: &Piece) -> Result<(), String> {
        const GUARDED: [&str; 9] = [
            "all",
            "search_path",
            "schema",
            "role",
            "session",
            "session_authorization",
            "session_replication_role",
            "standard_conforming_strings",
            "bytea_output",
        ];
        if let Some(why) = super::statement::refusal(piece) {
            return Err(why);
        }
        if let Some(name) =
            piece.settings.iter().find(|name| GUARDED.contains(&name.as_str()) || name.starts_with("tidewire"))
        {
            return Err(format!(
                "setting {name} would change what statements mean to the recorder. Set it for the role or the database"
            ));
        }
        if let Some((verb, table)) =
            piece.nested.iter().find(|(_, table)| !matches!(self.facts.meaning(table), Meaning::Nothing))
        {
            return Err(format!(
                "{verb} on {table} inside another statement cannot be recorded. Make it a statement of its own. {INSTEAD}"
            ));
        }
        if let Some(function) = piece.calls.iter().find(|name| self.facts.writes(name)) {
            return Err(format!(
                "the function {function} may write synced tables, which cannot be recorded. {INSTEAD}"
            ));
        }
        Ok(())
    }

    /// How to write a table whose rows, or whose followers' rows, are recorded. `None` for as it came.
    fn way(&self, write: &Write, table: &Table, piece: &Piece) -> Result<Option<Way>, String> {
        let (verb, name) = (write.verb, &table.name);
        if let Some(problems) = self.problems() {
            return Err(problems);
        }
        let follows = |follower: &facts::Follower| match verb {
            Verb::Delete => follower.on_delete != Follows::None,
            _ => {
                let assigned =
                    write.assigned().any(|column| follower.parent_columns.iter().any(|parent| parent == column));
                let updates = verb == Verb::Update
                    || matches!(write.conflict, Some(Conflict { action: Action::Update { .. }, .. }));
                let moves = assigned || (updates && table.rewrites_any(&follower.parent_columns));
                follower.on_update != Follows::None && moves
            }
        };
        let followed = table.followers.iter().any(follows);
        let entity = table.entity.map(|id| self.catalog.entity(id));
        if entity.is_none() && !followed {
            return Ok(None);
        }
        let refuse = |why: &str| Err(format!("{verb} on {name} {why}. {INSTEAD}"));
        if write
            .filter
            .as_ref()
            .is_some_and(|filter| filter.get(..10).is_some_and(|start| start.eq_ignore_ascii_case("current of")))
        {
            return refuse("of a cursor's row cannot be recorded. Name the row by its key");
        }
        if write.from.is_some()
            && write
                .returning
                .as_ref()
                .is_some_and(|returning| !returning.iter().all(|item| is_column(item, write, table)))
        {
            return refuse(
                "may return columns of this table only, where it joins others. Name them, or read the others in a statement of their own",
            );
        }
        if verb == Verb::Insert && followed {
            return refuse("may not change what other rows refer to where a row is in the way. Use INSERT and UPDATE");
        }
        if verb == Verb::Insert
            && table.rewritten.is_some()
            && write.assigned().any(|column| table.key.iter().any(|key| key == column))
        {
            return refuse(
                "may not change a key where a row is in the way, because the table has triggers. Use INSERT and UPDATE",
            );
        }
        let rewriter = |held| Rewriter { write, table, entity, values: piece.values, held };
        if !followed {
            return Ok(Some(Way::One(rewriter(false).rewrite())));
        }
        if table.key.is_empty() {
            return refuse("cannot be followed to the rows that refer to it, because the table has no primary key");
        }
        let cascade =
            Cascade::plan(&self.facts, table, write, rewriter(false).lock(&table.referred()), rewriter(true).rewrite());
        match cascade {
            Ok(cascade) => Ok(Some(Way::Cascade(Box::new(cascade)))),
            Err(why) => refuse(&why),
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
    ) -> Result<Answer, DbErr> {
        let Some(program) = program.filter(|program| !program.is_plain()) else {
            return session::run_as_it_is(conn, statement, text).await;
        };
        if text == Text::One && program.steps.len() > 1 {
            // The database says that this cannot be.
            return session::run_as_it_is(conn, statement, text).await;
        }
        let given = statement.values.map(|values| values.0).unwrap_or_default();
        let mut answer = Answer::default();
        for step in &program.steps {
            if given.len() != step.values {
                let why = format!("the statement takes {} values and was given {}", step.values, given.len());
                return Err(Error::new(ErrorKind::Refused, why).into());
            }
            // A text of statements without values is often one that never comes again.
            let how = How { rows: step.rows, prepared: text == Text::One };
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

/// Whether an item of a returning list is a column of the written table, by its bare name or with the table's.
fn is_column(item: &str, write: &Write, table: &Table) -> bool {
    let qualifier = format!("{}.", write.qualifier());
    let name = item.strip_prefix(&qualifier).unwrap_or(item);
    table.columns.iter().any(|(column, _)| name == column || name == rewrite::quoted(column))
}
