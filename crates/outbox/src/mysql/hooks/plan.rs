//! Decides how a statement is run, or why not.

use super::{
    super::{layout::Action as Follows, triggers::identifier},
    Schema, Step, Way,
    cascade::same,
    facts::{Column, Meaning, Table},
    key::{Literal, literals},
};
use crate::hooks::{Action, Assignment, Conflict, Effect, JoinedWrite, Piece, Syntax, Verb, Write, placeholders};

/// What stands behind refusals.
const INSTEAD: &str = "Capture by `triggers` records it; `Recorder::unrecorded` runs it without a record";

/// An `INSERT` that returns what it has written.
#[derive(Debug)]
pub(super) struct Insert {
    pub(super) table: String,
    /// It returns, by [`Insert::IMAGE`] and so on.
    pub(super) sql: String,
    /// Whether rows in the way are updated.
    pub(super) upserts: bool,
    /// Whether the server tells only of numbers that it has drawn: of those that an upserting query gave it says nothing.
    pub(super) tells_drawn: bool,
    /// Whether it leaves the numbers to the server.
    pub(super) draws: bool,
    /// The caller's own list, and how many values it takes.
    pub(super) list: Option<(String, usize)>,
}

impl Insert {
    pub(super) const IMAGE: usize = 0;
    /// The row's image and its key before, where one was in the way; the next column forgets that.
    pub(super) const BEFORE: usize = 1;
    pub(super) const KEY_BEFORE: usize = 2;
    /// The number that the row was given.
    pub(super) const NUMBER: usize = 4;
    /// What `LAST_INSERT_ID()` was before the statement.
    pub(super) const EARLIER: usize = 5;
    /// The row's key, and behind it, for `REPLACE`, what each unique index has of it.
    pub(super) const KEY: usize = 6;
}

/// A `SELECT … FOR UPDATE` of the rows that a statement writes, and which of the statement's values it takes.
#[derive(Debug)]
pub(super) struct Lock {
    pub(super) table: String,
    pub(super) sql: String,
    pub(super) values: Vec<usize>,
}

/// An `UPDATE` between a look at its rows before and one after.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) lock: Lock,
    /// The caller's, but that it sums up which rows it writes in `@tidewire_sum`.
    pub(super) sql: String,
    /// The columns that it may change.
    pub(super) assigned: Vec<String>,
}

/// A `DELETE` that returns the images of its rows.
#[derive(Debug)]
pub(super) struct Delete {
    pub(super) table: String,
    pub(super) sql: String,
}

/// A write of rows that have been locked before, and no others.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) verb: Verb,
    pub(super) locks: Vec<(Lock, String)>,
    /// Before and behind the condition that the rows are the locked ones.
    pub(super) head: String,
    pub(super) tail: String,
    /// Whether rows may be missing from the join.
    pub(super) joined: bool,
    pub(super) returns: bool,
}

impl Schema {
    /// How to run one statement.
    ///
    /// # Errors
    /// Why it is refused.
    pub(super) fn step(&self, piece: &Piece) -> Result<Step, String> {
        if let Some(function) = piece.calls.iter().find(|name| self.facts.writes(name)) {
            return Err(format!(
                "the function {function} may write synced tables, which cannot be recorded. {INSTEAD}"
            ));
        }
        let plain = |way| Ok(Step { sql: piece.sql.clone(), values: piece.values, way });
        match &piece.effect {
            // `SET STATEMENT … FOR DELETE …`
            Effect::Read if hides_a_statement(piece) => {
                Err(format!("what SET STATEMENT writes cannot be told from the statement. {INSTEAD}"))
            }
            Effect::Read => plain(Way::Plain),
            // Into a variable or a file.
            Effect::Opaque { what, .. } if what == "SELECT INTO" => plain(Way::Plain),
            Effect::Unreadable => Err(format!("the statement cannot be read. {INSTEAD}")),
            Effect::Control(what) | Effect::Opaque { what, tables: None } => {
                Err(format!("what {what} writes cannot be told from the statement. {INSTEAD}"))
            }
            Effect::Opaque { what, tables: Some(tables) } => {
                match tables.iter().find(|name| !matches!(self.facts.meaning(name), Meaning::Nothing)) {
                    Some(table) => Err(format!("{what} on {table} cannot be recorded. {INSTEAD}")),
                    None => plain(Way::Plain),
                }
            }
            Effect::Write(write) => match self.facts.meaning(&write.table) {
                Meaning::Nothing => plain(Way::Plain),
                Meaning::Hidden(why) => {
                    Err(format!("{} on {} cannot be recorded: {why}. {INSTEAD}", write.verb, write.table))
                }
                Meaning::Table(table) => plain(self.way(write, table, piece)?),
            },
            Effect::JoinedWrite(write) => plain(self.joined(write)?),
        }
    }

    /// How to write a table whose rows, or whose followers' rows, are recorded.
    fn way(&self, write: &Write, table: &Table, piece: &Piece) -> Result<Way, String> {
        if let Some(problems) = self.problems() {
            return Err(problems);
        }
        let followed = is_followed(write, table);
        if table.entity.is_none() && !followed {
            return Ok(Way::Plain);
        }
        let refuse = |why: String| format!("{} on {} {why}. {INSTEAD}", write.verb, table.name);
        let unreadable = || refuse("is in an unknown form".into());
        if write.with.is_some() {
            return Err(unreadable());
        }
        match write.verb {
            Verb::Insert => self.insert(write, table, followed).map_err(refuse),
            Verb::Update => self.update(write, table, piece).map_err(refuse),
            Verb::Delete | Verb::Merge if followed || write.returning.is_some() => {
                self.held_delete(write, table, piece).map_err(refuse)
            }
            Verb::Delete | Verb::Merge => {
                let image = self.image(table, &write.table_text);
                let sql = format!("DELETE {} {}{} RETURNING {image}", write.lead, write.table_text, tail(write));
                Ok(Way::Delete(Delete { table: table.name.clone(), sql }))
            }
        }
    }

    fn insert(&self, write: &Write, table: &Table, followed: bool) -> Result<Way, String> {
        if followed && !write.replaces {
            return Err(
                "may not change what other rows refer to where a row is in the way. Use INSERT and UPDATE".into()
            );
        }
        if write.replaces && table.entity.is_none() {
            return Err("as REPLACE would take along rows that follow. Use DELETE and INSERT".into());
        }
        let row = identifier(&table.name);
        let image = self.image(table, &row);
        let mut source = write.source.clone().unwrap_or_default();
        let conflict = match &write.conflict {
            Some(Conflict { action: Action::Update { set, .. }, .. }) => {
                if write.ignores {
                    return Err("may not be both IGNORE and ON DUPLICATE KEY UPDATE. Leave one out".into());
                }
                if table.rewrites_any(&table.key) {
                    return Err("may meet a trigger that changes keys".into());
                }
                source = apart(write, &source, &table.name);
                let key = literals(&table.key, &row).join(", ");
                let keep = format!(
                    "(@tidewire_before := COALESCE({image}, '')) IS NULL OR (@tidewire_key := CONCAT_WS(',', {key})) IS NULL"
                );
                format!(" ON DUPLICATE KEY UPDATE {}", with_first(set, &keep))
            }
            Some(_) => return Err("is in an unknown form".into()),
            None => String::new(),
        };
        let number = match &table.auto {
            Some(column) => format!("{row}.{}", identifier(column)),
            None => "NULL".into(),
        };
        let mut returned = literals(&table.key, &row);
        if write.replaces {
            returned.extend(table.unique.iter().flat_map(|index| literals(index, &row)));
        }
        let sql = format!(
            "{} {} {} {source}{conflict} RETURNING {image}, @tidewire_before, @tidewire_key, (@tidewire_before := NULL), CAST({number} AS CHAR), CAST(LAST_INSERT_ID() AS CHAR), {}",
            if write.replaces { "REPLACE" } else { "INSERT" },
            write.lead,
            write.table_text,
            returned.join(", "),
        );
        let list = match &write.returning {
            Some(list) => Some((list.join(", "), places(&list.join(", "))?)),
            None => None,
        };
        let insert = Insert {
            table: table.name.clone(),
            sql,
            upserts: write.conflict.is_some(),
            tells_drawn: write.conflict.is_some() && query(write, &source).is_some(),
            draws: !write.columns.is_empty()
                && table
                    .auto
                    .as_ref()
                    .is_some_and(|auto| !write.columns.iter().any(|column| column.eq_ignore_ascii_case(auto))),
            list,
        };
        Ok(if write.replaces { Way::Replace(insert) } else { Way::Insert(insert) })
    }

    fn update(&self, write: &Write, table: &Table, piece: &Piece) -> Result<Way, String> {
        if table.rewrites_any(&table.key) {
            return Err("may meet a trigger that changes keys".into());
        }
        let mut assigned: Vec<String> = write.assigned().map(str::to_owned).collect();
        assigned.extend(
            table
                .referred()
                .into_iter()
                .filter(|column| table.rewrites_any(std::slice::from_ref(column)))
                .map(|column| column.name),
        );
        self.check_moves(table, &assigned)?;
        let row = row(write);
        // The values of the assignments stand before those of the rest.
        let mut first = 0;
        let mut of = Vec::new();
        for assignment in &write.set {
            let behind = first + places(&assignment.text)?;
            of.push((first..behind).collect::<Vec<usize>>());
            first = behind;
        }
        let mut values = Vec::new();
        let mut moved = Vec::new();
        for column in &table.key {
            moved.push(match assigned_last(&write.set, column)? {
                None => column.literal.write(&column.of(&row)),
                Some(place) => {
                    values.extend(&of[place]);
                    column.literal.write_known(&write.set[place].value)
                }
            });
        }
        values.extend(first..piece.values);
        let keys = literals(&table.key, &row);
        let mut columns = vec![self.image(table, &row)];
        columns.extend(keys.iter().cloned());
        columns.extend(moved);
        columns.extend(literals(&table.referred(), &row));
        columns.push("(@tidewire_sum := 0)".into());
        let alias = write.alias.as_ref().map(|alias| format!(" AS {alias}")).unwrap_or_default();
        let sql = format!("SELECT {} FROM {}{alias}{} FOR UPDATE", columns.join(", "), write.table_text, tail(write));
        let lock = Lock { table: table.name.clone(), sql, values };
        let sum = format!(
            "(@tidewire_sum := COALESCE(@tidewire_sum, 0) + CRC32(CONCAT_WS(',', {}))) IS NULL",
            keys.join(", ")
        );
        let sql = format!(
            "UPDATE {} {}{alias} SET {}{}",
            write.lead,
            write.table_text,
            with_first(&write.set, &sum),
            tail(write)
        );
        Ok(Way::Update(Update { lock, sql, assigned }))
    }

    fn held_delete(&self, write: &Write, table: &Table, piece: &Piece) -> Result<Way, String> {
        let row = row(write);
        let values = (0..piece.values - returned_values(write)?).collect();
        let sql = format!("SELECT {} FROM {}{} FOR UPDATE", self.locked(table, &row), write.table_text, tail(write));
        let lock = Lock { table: table.name.clone(), sql, values };
        let returning =
            write.returning.as_ref().map(|list| format!(" RETURNING {}", list.join(", "))).unwrap_or_default();
        let limit = write.limit.as_ref().map(|limit| format!(" {limit}")).unwrap_or_default();
        let filter = write.filter.as_ref().map(|filter| format!("({filter}\n) AND ")).unwrap_or_default();
        Ok(Way::Held(Held {
            verb: Verb::Delete,
            locks: vec![(lock, row)],
            head: format!("DELETE {} {} WHERE {filter}", write.lead, write.table_text),
            tail: format!("{limit}{returning}"),
            joined: false,
            returns: write.returning.is_some(),
        }))
    }

    /// A row's image, its key, and what others refer to in it.
    pub(super) fn locked(&self, table: &Table, row: &str) -> String {
        let mut columns = vec![self.image(table, row)];
        columns.extend(literals(&table.key, row));
        columns.extend(literals(&table.referred(), row));
        columns.join(", ")
    }

    fn joined(&self, write: &JoinedWrite) -> Result<Way, String> {
        let verb = write.verb;
        let refuse = |table: &str, why: &str| Err(format!("{verb} of {table} {why}. {INSTEAD}"));
        let mut tables = Vec::new();
        for (name, qualifier) in &write.tables {
            match self.facts.meaning(name) {
                Meaning::Nothing => {}
                Meaning::Hidden(why) => return refuse(&name.name, &format!("cannot be recorded: {why}")),
                Meaning::Table(table) => tables.push((table, qualifier)),
            }
        }
        let Some((first, _)) = tables.first() else { return Ok(Way::Plain) };
        if let Some(problems) = self.problems() {
            return Err(problems);
        }
        let filter = write.filter.as_deref().unwrap_or_default();
        if [filter, &write.sources].iter().any(|clause| has_word(clause, "select")) {
            return refuse(&first.name, "joined with others may have no subquery. Name the rows by their keys");
        }
        let assigned: Vec<&String> = write.set.iter().flat_map(|assignment| &assignment.columns).collect();
        let is_assigned = |column: &Column| assigned.iter().any(|name| same(name, &column.name));
        let mut locks = Vec::new();
        let unknown = || format!("{verb} of {} is in an unknown form. {INSTEAD}", first.name);
        let of_sources = placeholders(&write.sources, Syntax::MySql).ok_or_else(unknown)?;
        let of_head = placeholders(&write.head, Syntax::MySql).ok_or_else(unknown)?;
        let of_filter = placeholders(filter, Syntax::MySql).ok_or_else(unknown)?;
        for (table, row) in tables {
            let moves = table.key.iter().any(is_assigned) || table.rewrites_any(&table.key);
            if verb == Verb::Update && moves && table.entity.is_some() {
                return refuse(&table.name, "joined with others may not change keys. Use UPDATE of one table");
            }
            let mut followed = table.followers.iter().filter(|follower| follower.on_update != Follows::Refuse);
            let refers = followed.any(|follower| {
                follower.parent_columns.iter().any(is_assigned) || table.rewrites_any(&follower.parent_columns)
            });
            if verb == Verb::Update && refers {
                return refuse(
                    &table.name,
                    "joined with others may not change what rows refer to. Use UPDATE of one table",
                );
            }
            if table.entity.is_none() && verb == Verb::Update {
                continue;
            }
            let condition = if filter.is_empty() { String::new() } else { format!(" WHERE {filter}\n") };
            let sql = format!("SELECT {} FROM {}{condition} FOR UPDATE", self.locked(table, row), write.sources);
            let values = (0..of_sources).chain(of_head..of_head + of_filter).collect();
            locks.push((Lock { table: table.name.clone(), sql, values }, row.clone()));
        }
        let condition = if filter.is_empty() { String::new() } else { format!("({filter}\n) AND ") };
        Ok(Way::Held(Held {
            verb,
            locks,
            head: format!("{} WHERE {condition}", write.head),
            tail: String::new(),
            joined: true,
            returns: false,
        }))
    }
}

/// How columns of the written table are qualified.
fn row(write: &Write) -> String {
    write.qualifier().to_owned()
}

/// `WHERE`, `ORDER BY` and `LIMIT`.
fn tail(write: &Write) -> String {
    let filter = write.filter.as_ref().map(|filter| format!(" WHERE {filter}\n")).unwrap_or_default();
    let limit = write.limit.as_ref().map(|limit| format!(" {limit}")).unwrap_or_default();
    format!("{filter}{limit}")
}

/// Assignments of which the first also asks something that is never true.
fn with_first(set: &[Assignment], ask: &str) -> String {
    let text = |(place, assignment): (usize, &Assignment)| {
        if place > 0 {
            return assignment.text.clone();
        }
        let target = &assignment.target;
        let value = match assignment.value.eq_ignore_ascii_case("default") {
            true => format!("DEFAULT({target})"),
            false => assignment.value.clone(),
        };
        // The type of what `IF` gives is that of the value, where the other is NULL.
        format!("{target} = IF({ask}, NULL, {value})")
    };
    set.iter().enumerate().map(text).collect::<Vec<_>>().join(", ")
}

/// An insert's columns, with their brackets, and the query that gives its rows; `None` where it is no query.
fn query<'a>(write: &Write, source: &'a str) -> Option<(&'a str, &'a str)> {
    let mut quoted = false;
    let closes = |char| {
        quoted ^= char == '`';
        char == ')' && !quoted
    };
    let place = if write.columns.is_empty() { 0 } else { source.find(closes)? + 1 };
    let (names, rest) = source.split_at(place);
    let query = rest.trim_start();
    let begins = |word: &str| query.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    (query.starts_with('(') || ["select", "with", "table"].into_iter().any(begins)).then_some((names, query))
}

/// A query that reads the table itself is put aside, where its names are not mistaken for those of the row in the way.
fn apart(write: &Write, source: &str, table: &str) -> String {
    match query(write, source) {
        Some((names, query)) if has_word(query, table) => {
            format!("{names} SELECT * FROM ({query}\n) AS tidewire_rows")
        }
        _ => source.to_owned(),
    }
}

fn has_word(text: &str, word: &str) -> bool {
    crate::hooks::words(text, Syntax::MySql).is_none_or(|words| words.contains(&word.to_lowercase()))
}

fn hides_a_statement(piece: &Piece) -> bool {
    let mut words = piece.sql.split_whitespace();
    words.next().is_some_and(|word| word.eq_ignore_ascii_case("set")) && has_word(&piece.sql, "statement")
}

fn places(clause: &str) -> Result<usize, String> {
    placeholders(clause, Syntax::MySql).ok_or_else(|| "is in an unknown form".to_owned())
}

fn returned_values(write: &Write) -> Result<usize, String> {
    match &write.returning {
        Some(list) => places(&list.join(", ")),
        None => Ok(0),
    }
}

/// Which assignment gives a key's column its new value.
fn assigned_last(set: &[Assignment], column: &Column) -> Result<Option<usize>, String> {
    let assigns = |assignment: &Assignment| assignment.columns.iter().any(|name| same(name, &column.name));
    let Some(place) = set.iter().position(assigns) else { return Ok(None) };
    let before = set[..place].iter().flat_map(|assignment| &assignment.columns);
    let depends = before.into_iter().any(|name| has_word(&set[place].value, name));
    let again = set[place + 1..].iter().any(assigns);
    if depends || again || set[place].value.eq_ignore_ascii_case("default") || column.literal == Literal::Inexact {
        return Err("gives a key a value that cannot be told beforehand. Assign keys first, and once".into());
    }
    Ok(Some(place))
}

/// Whether a column is given its own value, as SeaORM says that nothing is to be done.
fn is_itself(assignment: &Assignment) -> bool {
    let bare = |text: &str| text.rsplit('.').next().unwrap_or_default().trim_matches('`').to_owned();
    same(&bare(&assignment.target), &bare(&assignment.value))
}

/// Whether rows of others follow what a statement does, by a foreign key.
fn is_followed(write: &Write, table: &Table) -> bool {
    let upserted = match &write.conflict {
        Some(Conflict { action: Action::Update { set, .. }, .. }) => set.as_slice(),
        _ => &[],
    };
    let changed: Vec<&String> =
        write.set.iter().chain(upserted).filter(|set| !is_itself(set)).flat_map(|set| &set.columns).collect();
    let updates =
        write.verb == Verb::Update || matches!(&write.conflict, Some(Conflict { action: Action::Update { .. }, .. }));
    table.followers.iter().any(|follower| {
        if write.verb == Verb::Delete || write.replaces {
            return follower.on_delete != Follows::Refuse;
        }
        let assigned =
            changed.iter().any(|column| follower.parent_columns.iter().any(|parent| same(&parent.name, column)));
        let rewritten = updates && table.rewrites_any(&follower.parent_columns);
        follower.on_update != Follows::Refuse && (assigned || rewritten)
    })
}
