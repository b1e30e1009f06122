//! Makes one statement of a write and the record of it.
//!
//! ```sql
//! WITH tidewire_b AS MATERIALIZED (SELECT <key>, <image> AS tidewire_before FROM t WHERE <w> FOR UPDATE),
//!      tidewire_a AS (UPDATE t SET … FROM tidewire_b WHERE (<w>) AND <same key> RETURNING t.*, <image> AS tidewire_after, tidewire_before),
//!      tidewire_o AS (INSERT INTO tidewire_outbox … SELECT … FROM tidewire_a WHERE tidewire_before <> tidewire_after)
//! SELECT <the caller's list> FROM tidewire_a
//! ```
//!
//! A row is locked, then written, then its change is numbered. Under READ COMMITTED both scans see the same old rows, wait for the same locks and
//! look at the same new versions.
//!
//! An upsert's row in the way need not be visible to the statement at all. But the `WHERE` of `DO UPDATE` is asked with the locked row just before
//! it is updated, and `RETURNING` just after, row by row: so the `WHERE` leaves the image in a setting of the transaction, and `RETURNING` takes
//! it from there. Whether `xmax` is zero would tell nothing: it is not, for a row that the transaction has locked before.

use super::{
    super::{dialect::PostgresDialect, triggers},
    facts::Table,
};
use crate::{
    hooks::{Action, Assignment, Conflict, Verb, Write},
    registry::{EntityMeta, Kind},
    sql::Dialect,
};

/// How many values stand behind the caller's: actor, origin and mutation id.
pub(super) const CONTEXT: usize = 3;

const OUTBOX: &str = "INSERT INTO tidewire_outbox (entity, operation, before, after, actor, origin, mutation_id)";

pub(super) fn quoted(name: &str) -> String {
    let mut out = String::new();
    PostgresDialect.identifier(name, &mut out);
    out
}

pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The context's placeholders behind so many values.
pub(super) fn context(values: usize) -> String {
    format!("${}::text, ${}::text, ${}::text", values + 1, values + 2, values + 3)
}

/// Columns of a table, each written by a function, with commas between them.
pub(super) fn list<'a>(columns: impl IntoIterator<Item = &'a String>, write: impl Fn(usize, &str) -> String) -> String {
    columns.into_iter().enumerate().map(|(place, name)| write(place, &quoted(name))).collect::<Vec<_>>().join(", ")
}

pub(super) struct Rewriter<'a> {
    pub(super) write: &'a Write,
    pub(super) table: &'a Table,
    /// `None` for a table that is not synced: then nothing is recorded.
    pub(super) entity: Option<&'a EntityMeta>,
    /// How many values the caller gives.
    pub(super) values: usize,
    /// Whether only those rows are written whose keys are in one more value behind the context's.
    pub(super) held: bool,
}

impl Rewriter<'_> {
    /// The statement.
    pub(super) fn rewrite(&self) -> String {
        let Some(entity) = self.entity else { return self.unrecorded() };
        match self.write.verb {
            Verb::Insert => self.insert(entity),
            Verb::Update => self.update(entity),
            Verb::Delete | Verb::Merge => self.delete(entity),
        }
    }

    /// What a row of the table is called in the statement.
    pub(super) fn row(&self) -> String {
        self.write.alias.clone().unwrap_or_else(|| quoted(&self.table.name))
    }

    /// The table with the words before it and its alias.
    pub(super) fn target(&self) -> String {
        let write = self.write;
        let alias = write.alias.as_ref().map(|alias| format!(" AS {alias}")).unwrap_or_default();
        format!("{} {}{alias}", write.lead, write.table_text)
    }

    /// The caller's `WITH`, if there is one, for more to follow it.
    pub(super) fn with(&self) -> String {
        match &self.write.with {
            Some(with) => format!("WITH {}{}, ", if with.recursive { "RECURSIVE " } else { "" }, with.text),
            None => "WITH ".into(),
        }
    }

    /// The caller's `WHERE`.
    fn filter(&self) -> String {
        self.write.filter.as_ref().map_or_else(|| "TRUE".into(), |filter| format!("({filter}\n)"))
    }

    /// That a row is one of those that are held.
    fn is_held(&self) -> String {
        let row = self.row();
        let keys = list(&self.table.key, |_, name| format!("{row}.{name}"));
        format!("({keys}) IN ({})", given(self.table.types(&self.table.key), self.values + CONTEXT + 1))
    }

    /// Which rows are updated. Those that are held have passed the caller's `WHERE`, and might not pass again: it is asked once more only to join them
    /// with others.
    fn updated(&self) -> String {
        match (self.held, &self.write.from) {
            (false, _) => self.filter(),
            (true, None) => self.is_held(),
            (true, Some(_)) => format!("{} AND {}", self.filter(), self.is_held()),
        }
    }

    /// Which rows are deleted: with `USING`, where they are not known by now.
    fn deleted(&self) -> String {
        if self.held {
            return format!("WHERE {}", self.is_held());
        }
        let using = self.write.from.as_ref().map(|from| format!("USING {from}\n")).unwrap_or_default();
        format!("{using} WHERE {}", self.filter())
    }

    fn image(&self, entity: &EntityMeta) -> String {
        image(self.table, entity, &self.row())
    }

    fn set(assignments: &[Assignment]) -> String {
        assignments.iter().map(|assignment| assignment.text.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// `entity, operation, before, after, actor, origin, mutation id`, to stand behind `SELECT`.
    fn record(&self, operation: &str, before: &str, after: &str) -> String {
        let entity = self.entity.map_or("", |entity| entity.name);
        format!("{}, {operation}, {before}, {after}, {}", literal(entity), context(self.values))
    }

    /// What the caller gets.
    fn answer(&self, returning: &[String]) -> String {
        let columns = list(self.table.columns.iter().map(|(name, _)| name), |_, name| name.to_owned());
        let system = self.system_columns(returning);
        let system: String = system.iter().map(|name| format!(", {name}")).collect();
        format!("SELECT {} FROM (SELECT {columns}{system} FROM tidewire_a) AS {}", returning.join(", "), self.row())
    }

    /// The system columns that the caller's list names; a row of a `WITH` has them only where they are put in.
    fn system_columns(&self, returning: &[String]) -> Vec<&'static str> {
        const SYSTEM: [&str; 6] = ["xmin", "xmax", "cmin", "cmax", "ctid", "tableoid"];
        let named = |name: &&str| returning.iter().any(|item| item.contains(name));
        SYSTEM.into_iter().filter(named).collect()
    }

    /// What `tidewire_a` returns of the row itself.
    fn returned(&self) -> String {
        let row = self.row();
        let system =
            self.write.returning.as_deref().map(|returning| self.system_columns(returning)).unwrap_or_default();
        let system: String = system.iter().map(|name| format!(", {row}.{name} AS {name}")).collect();
        format!("{row}.*{system}")
    }

    /// A statement whose changes are recorded, as many as it writes rows: where the caller wants none, the record counts them.
    fn counted(&self, with: &str, select: &str) -> String {
        match &self.write.returning {
            None => format!("{with} {OUTBOX} {select}"),
            Some(returning) => format!("{with}, tidewire_o AS ({OUTBOX} {select}) {}", self.answer(returning)),
        }
    }

    /// A statement that may leave rows as they were: they are written and not recorded.
    fn uncounted(&self, with: &str, select: &str) -> String {
        let answer = match &self.write.returning {
            // As many rows as it writes, with nothing in them.
            None => "SELECT FROM tidewire_a".into(),
            Some(returning) => self.answer(returning),
        };
        format!("{with}, tidewire_o AS ({OUTBOX} {select}) {answer}")
    }

    /// Where keys may change, a changed one is a delete and an insert. All deletes come first, since a key may move from row to row.
    fn changes(&self, moves: bool, inserts: bool) -> String {
        let operation =
            if inserts { "CASE WHEN tidewire_before IS NULL THEN 'insert' ELSE 'update' END" } else { "'update'" };
        let differs = "tidewire_before IS DISTINCT FROM tidewire_after";
        if !moves {
            let record = self.record(operation, "tidewire_before", "tidewire_after");
            return format!("SELECT {record} FROM tidewire_a WHERE {differs}");
        }
        let moved = format!("CASE WHEN tidewire_moved THEN 'insert' ELSE {operation} END");
        format!(
            "SELECT {} FROM (SELECT 0 AS step, 'delete' AS operation, tidewire_before AS before, NULL::text AS after FROM tidewire_a WHERE tidewire_moved \
             UNION ALL SELECT 1, {moved}, CASE WHEN NOT tidewire_moved THEN tidewire_before END, tidewire_after FROM tidewire_a WHERE {differs}) AS c \
             ORDER BY step",
            self.record("operation", "before", "after"),
        )
    }

    fn assigns_key(&self) -> bool {
        self.write.assigned().any(|column| self.table.key.iter().any(|key| key == column))
    }

    fn insert(&self, entity: &EntityMeta) -> String {
        let write = self.write;
        let source = write.source.as_deref().unwrap_or("DEFAULT VALUES");
        let head = format!("tidewire_a AS (INSERT {} {source}\n", self.target());
        let (returned, image) = (self.returned(), self.image(entity));
        match &write.conflict {
            Some(Conflict { target, action: Action::Update { set, filter } }) => {
                // A trigger may keep a row from being updated after all. Then its image stays, which is not of the row that comes next, nor of a
                // statement that comes later: there the first look clears what is left.
                let may_stay = self.table.rewritten.is_some();
                let setting = if may_stay { "tidewire.before_trigger" } else { "tidewire.before" };
                let clear =
                    format!("tidewire_c AS MATERIALIZED (SELECT set_config('{setting}', '', true) AS cleared), ");
                let (clear, cleared) =
                    if may_stay { (clear.as_str(), "(SELECT cleared FROM tidewire_c) = ''") } else { ("", "TRUE") };
                let filter = filter.as_ref().map(|filter| format!(" AND ({filter}\n)")).unwrap_or_default();
                let filter = format!(
                    "CASE WHEN {cleared}{filter} THEN set_config('{setting}', {image}, true) IS NOT NULL ELSE FALSE END"
                );
                let kept = format!("(CASE WHEN {cleared} THEN nullif(current_setting('{setting}', true), '') END)");
                let row = self.row();
                let same_key = self.table.key.iter().map(|key| {
                    format!(
                        "({kept}::json -> {})::text IS NOT DISTINCT FROM to_json({row}.{})::text",
                        literal(key),
                        quoted(key)
                    )
                });
                let same_key = same_key.collect::<Vec<_>>().join(" AND ");
                let moves = self.assigns_key();
                let before = if may_stay {
                    format!("CASE WHEN {kept} IS NOT NULL AND {same_key} THEN {kept} END")
                } else {
                    kept.clone()
                };
                let moved = if moves {
                    format!(", ({kept} IS NOT NULL AND NOT ({same_key})) AS tidewire_moved")
                } else {
                    String::new()
                };
                let with = format!(
                    "{}{clear}{head} ON CONFLICT {target} DO UPDATE SET {} WHERE {filter} RETURNING {returned}, {image} AS tidewire_after, \
                     {before} AS tidewire_before{moved}, set_config('{setting}', '', true) AS tidewire_done)",
                    self.with(),
                    Self::set(set),
                );
                self.uncounted(&with, &self.changes(moves, true))
            }
            other => {
                let conflict = match other {
                    Some(conflict) => format!(" ON CONFLICT {} DO NOTHING", conflict.target),
                    None => String::new(),
                };
                let with = format!("{}{head}{conflict} RETURNING {returned}, {image} AS tidewire_after)", self.with());
                let record = self.record("'insert'", "NULL::text", "tidewire_after");
                self.counted(&with, &format!("SELECT {record} FROM tidewire_a"))
            }
        }
    }

    fn delete(&self, entity: &EntityMeta) -> String {
        let with = format!(
            "{}tidewire_a AS (DELETE {} {} RETURNING {}, {} AS tidewire_before)",
            self.with(),
            self.target(),
            self.deleted(),
            self.returned(),
            self.image(entity),
        );
        let record = self.record("'delete'", "tidewire_before", "NULL::text");
        self.counted(&with, &format!("SELECT {record} FROM tidewire_a"))
    }

    fn update(&self, entity: &EntityMeta) -> String {
        let (row, rows) = (self.row(), self.updated());
        let (returned, image) = (self.returned(), self.image(entity));
        let moves = self.assigns_key() || self.table.rewrites_any(&self.table.key);
        let key = list(&self.table.key, |place, name| format!("{row}.{name} AS tidewire_k{place}"));
        let lock = self.table.lock(self.write.assigned());
        let mut locked = format!(
            "SELECT {key}, {image} AS tidewire_before FROM {} WHERE {rows} FOR {lock} OF {row}",
            self.sources()
        );
        if self.write.from.is_some() {
            // A row that joins with several is updated once.
            let key = list(&self.table.key, |place, _| format!("tidewire_k{place}"));
            locked = format!("SELECT DISTINCT ON ({key}) * FROM ({locked}) AS l");
        }
        let same = self.table.key.iter().enumerate();
        let same = same.map(|(place, name)| format!("{row}.{} = tidewire_b.tidewire_k{place}", quoted(name)));
        let same = same.collect::<Vec<_>>().join(" AND ");
        let moved = if moves {
            let now = list(&self.table.key, |_, name| format!("{row}.{name}"));
            let was = list(&self.table.key, |place, _| format!("tidewire_b.tidewire_k{place}"));
            format!(", ROW({now}) IS DISTINCT FROM ROW({was}) AS tidewire_moved")
        } else {
            String::new()
        };
        // A locked row is known by its key. The caller's `WHERE` is asked again only to join it with others.
        let (from, again) = match &self.write.from {
            Some(from) => (format!("{from}\n, "), format!("{} AND ", self.filter())),
            None => Default::default(),
        };
        let with = format!(
            "{}tidewire_b AS MATERIALIZED ({locked}), tidewire_a AS (UPDATE {} SET {}\n FROM {from}tidewire_b WHERE {again}{same} \
             RETURNING {returned}, {image} AS tidewire_after, tidewire_b.tidewire_before{moved})",
            self.with(),
            self.target(),
            Self::set(&self.write.set),
        );
        self.uncounted(&with, &self.changes(moves, false))
    }

    /// The table, and what it is joined with, as a `FROM` has them. There a query of the caller's `WITH` may have the table's name, so the table comes
    /// with its schema's.
    fn sources(&self) -> String {
        let (write, table) = (self.write, self.table);
        let only = if write.lead.to_ascii_uppercase().ends_with("ONLY") { "ONLY " } else { "" };
        let alias = write.alias.as_ref().map(|alias| format!(" AS {alias}")).unwrap_or_default();
        let from = write.from.as_ref().map(|from| format!(", {from}\n")).unwrap_or_default();
        format!("{only}{}.{}{alias}{from}", quoted(&table.schema), quoted(&table.name))
    }

    /// Locks the rows that the statement would write, and answers their keys and what their followers refer to, as JSON arrays of texts.
    pub(super) fn lock(&self, referred: &[String]) -> String {
        let row = self.row();
        let texts = |columns: &[String]| {
            format!("json_build_array({})::text", list(columns, |_, name| format!("{row}.{name}::text")))
        };
        let with = match &self.write.with {
            Some(_) => self.with().trim_end_matches(", ").to_owned() + " ",
            None => String::new(),
        };
        format!(
            "{with}SELECT {}, {} FROM {} WHERE {} FOR UPDATE OF {row}",
            texts(&self.table.key),
            texts(referred),
            self.sources(),
            self.filter(),
        )
    }

    /// The caller's statement as it is, but for the rows that are held.
    fn unrecorded(&self) -> String {
        let write = self.write;
        let with = match &write.with {
            Some(_) => self.with().trim_end_matches(", ").to_owned() + " ",
            None => String::new(),
        };
        let returning =
            write.returning.as_ref().map(|list| format!(" RETURNING {}", list.join(", "))).unwrap_or_default();
        let from = write.from.as_ref().map(|from| format!(" FROM {from}\n")).unwrap_or_default();
        match write.verb {
            Verb::Update => format!(
                "{with}UPDATE {} SET {}\n{from} WHERE {}{returning}",
                self.target(),
                Self::set(&write.set),
                self.updated()
            ),
            _ => format!("{with}DELETE {} {}{returning}", self.target(), self.deleted()),
        }
    }
}

/// The rows in a JSON array of arrays of texts, given as the value at a place, as values of some types.
pub(super) fn given<'a>(types: impl Iterator<Item = &'a str>, place: usize) -> String {
    let values = types.enumerate().map(|(at, kind)| format!("(e ->> {at})::{kind}"));
    format!("SELECT {} FROM json_array_elements(${place}::text::json) AS e", values.collect::<Vec<_>>().join(", "))
}

/// A row as a JSON object, of the entity's columns only: a change of another is no change.
pub(super) fn image(table: &Table, entity: &EntityMeta, row: &str) -> String {
    let is_whole = table.columns.len() == entity.columns.len();
    if is_whole && !entity.columns.iter().any(|column| column.kind == Kind::Json) {
        return format!("row_to_json({row}.*)::text");
    }
    triggers::image_of_columns(entity, row)
}
