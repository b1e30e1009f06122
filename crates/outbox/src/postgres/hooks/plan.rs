//! Decides how a statement is run, or why not.

use super::{
    super::statement,
    Schema, Step, Way,
    cascade::Cascade,
    facts::{Action as Follows, Follower, Meaning, Table},
    rewrite::{CONTEXT, Rewriter, quoted},
};
use crate::hooks::{Action, Conflict, Effect, Piece, Syntax, Verb, Write, words};

/// What stands behind refusals.
const INSTEAD: &str =
    "Captures that record it are `triggers` and `log`; `Recorder::unrecorded` runs it without a record";

/// How many values one statement may take.
const MOST_VALUES: usize = 65_535;

/// Settings by which the same statement, or the image of a row, would be another.
const GUARDED: [&str; 12] = [
    "all",
    "search_path",
    "schema",
    "role",
    "session",
    "session_authorization",
    "session_replication_role",
    "standard_conforming_strings",
    "bytea_output",
    "extra_float_digits",
    "intervalstyle",
    "datestyle",
];

impl Schema {
    /// How to run one statement.
    ///
    /// # Errors
    /// Why it is refused.
    pub(super) fn step(&self, piece: &Piece) -> Result<Step, String> {
        self.look_inside(piece)?;
        let plain = Ok(Step { values: piece.values, rows: true, way: Way::Plain(piece.sql.clone()) });
        match &piece.effect {
            Effect::Read => plain,
            // The words of MySQL's joined writes are not read here.
            Effect::Unreadable | Effect::JoinedWrite(_) => Err(format!("the statement cannot be read. {INSTEAD}")),
            Effect::Control(what) | Effect::Opaque { what, tables: None } => {
                Err(format!("what {what} writes cannot be told from the statement. {INSTEAD}"))
            }
            Effect::Opaque { what, tables: Some(tables) } => {
                let truncates_more = what == "TRUNCATE" && tables.iter().any(|name| name.name == "cascade");
                match tables.iter().find(|name| !matches!(self.facts.meaning(name), Meaning::Nothing)) {
                    Some(table) if matches!(what.as_str(), "TRUNCATE" | "MERGE" | "COPY" | "EXPLAIN ANALYZE") => {
                        Err(format!("{what} on {table} cannot be recorded. Use INSERT, UPDATE or DELETE. {INSTEAD}"))
                    }
                    Some(table) => Err(format!(
                        "{what} on {table} concerns a recorded table. Run it as a migration, over `Recorder::unrecorded`"
                    )),
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
        if let Some(why) = statement::refusal(piece) {
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
        let followed = table.followers.iter().any(|follower| is_followed(write, table, follower));
        let entity = table.entity.map(|id| self.catalog.entity(id));
        if entity.is_none() && !followed {
            return Ok(None);
        }
        let refuse = |why: &str| Err(format!("{verb} on {name} {why}. {INSTEAD}"));
        if let Some(why) = obstacle(write, table, followed) {
            return refuse(why);
        }
        if followed && !piece.nested.is_empty() {
            return refuse(
                "may not write in its WITH, because rows of others follow it. Make each a statement of its own",
            );
        }
        // Behind the caller's values stand the context, and in a cascade the rows that are held.
        if piece.values + CONTEXT + usize::from(followed) > MOST_VALUES {
            return refuse(
                "takes more values than PostgreSQL does, together with those of its record. Write fewer rows at once",
            );
        }
        let rewriter = |held| Rewriter { write, table, entity, values: piece.values, held };
        if !followed {
            return Ok(Some(Way::One(rewriter(false).rewrite())));
        }
        let cascade =
            Cascade::plan(self, table, write, rewriter(false).lock(&table.referred()), rewriter(true).rewrite());
        match cascade {
            Ok(cascade) => Ok(Some(Way::Cascade(Box::new(cascade)))),
            Err(why) => refuse(&why),
        }
    }
}

/// Whether rows of others follow what a statement does, by a foreign key.
fn is_followed(write: &Write, table: &Table, follower: &Follower) -> bool {
    if write.verb == Verb::Delete {
        return follower.on_delete != Follows::None;
    }
    let assigned = write.assigned().any(|column| follower.parent_columns.iter().any(|parent| parent == column));
    let rewritten = updates(write) && table.rewrites_any(&follower.parent_columns);
    follower.on_update != Follows::None && (assigned || rewritten)
}

/// Whether a statement may update rows.
fn updates(write: &Write) -> bool {
    let upserts = matches!(write.conflict, Some(Conflict { action: Action::Update { .. }, .. }));
    write.verb == Verb::Update || upserts
}

/// What of a write cannot be recorded.
fn obstacle(write: &Write, table: &Table, followed: bool) -> Option<&'static str> {
    let of_a_cursor = |filter: &String| filter.get(..10).is_some_and(|start| start.eq_ignore_ascii_case("current of"));
    if write.filter.as_ref().is_some_and(of_a_cursor) {
        return Some("of a cursor's row cannot be recorded. Name the row by its key");
    }
    let returns_others = |list: &Vec<String>| !list.iter().all(|item| is_column(item, write, table));
    if write.from.is_some() && write.returning.as_ref().is_some_and(returns_others) {
        return Some(
            "may return columns of this table only, where it joins others. Name them, or read the others in a statement of their own",
        );
    }
    if write.verb == Verb::Insert && followed {
        return Some("may not change what other rows refer to where a row is in the way. Use INSERT and UPDATE");
    }
    let assigns_key = write.assigned().any(|column| table.key.iter().any(|key| key == column));
    if write.verb == Verb::Insert && assigns_key && table.rewritten.is_some() {
        return Some(
            "may not change a key where a row is in the way, because the table has triggers. Use INSERT and UPDATE",
        );
    }
    if write.verb == Verb::Insert && updates(write) && table.rewrites_any(&table.key) {
        return Some("may not update a row in the way, because a trigger may change its key. Use INSERT and UPDATE");
    }
    if write.verb == Verb::Update && write.from.is_some() && skips_locked(write) {
        return Some(
            "may not skip locked rows where it joins others. Name the rows in the WHERE: `WHERE id IN (SELECT …)`",
        );
    }
    if followed && table.key.is_empty() {
        return Some("cannot be followed to the rows that refer to it, because the table has no primary key");
    }
    None
}

/// Whether a statement leaves out rows that others have locked. Asked twice, it would find other rows.
fn skips_locked(write: &Write) -> bool {
    let skips = |clause: &String| {
        words(clause, Syntax::Postgres).is_none_or(|words| words.contains("skip") && words.contains("locked"))
    };
    let with = write.with.as_ref().map(|with| &with.text);
    with.into_iter().chain(&write.from).chain(&write.filter).any(skips)
}

/// Whether an item of a returning list is a column of the written table, by its bare name or with the table's.
fn is_column(item: &str, write: &Write, table: &Table) -> bool {
    let qualifier = format!("{}.", write.qualifier());
    let name = item.strip_prefix(&qualifier).unwrap_or(item);
    table.columns.iter().any(|(column, _)| name == column || name == quoted(column))
}
