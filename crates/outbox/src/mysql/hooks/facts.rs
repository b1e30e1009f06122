//! What the database's schema means for capture by hooks: which names are whose, what follows from a write beyond its own rows, and what
//! writes out of sight.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sqlx::{MySqlConnection, Row, mysql::MySqlRow};

use super::{
    super::{
        database_error,
        layout::{Action, ForeignKey, Layout},
        triggers::identifier,
    },
    key::Literal,
};
use crate::{
    error::Result,
    hooks::{Syntax, TableName, words},
    registry::{Catalog, EntityId},
};

/// What is known of a database's schema.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Tells this state of the schema from others.
    pub(super) stamp: String,
    pub(super) layout: Layout,
    /// The longest message that the server takes, in bytes.
    pub(super) max_packet: usize,
    database: String,
    /// Whether names of tables in any case are the same.
    folds: bool,
    tables: BTreeMap<String, Table>,
    /// Tables and views whose writing cannot be recorded, and why.
    hidden: BTreeMap<String, String>,
    /// Functions that may write synced rows.
    functions: HashSet<String>,
    /// What keeps the database from being captured by hooks.
    pub(super) problems: BTreeSet<String>,
}

/// A synced table, or one from which foreign keys lead to synced ones.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) entity: Option<EntityId>,
    /// The entity's key, or the primary key of a table that is not synced; where it has none, what others refer to.
    pub(super) key: Vec<Column>,
    /// The column that numbers new rows.
    pub(super) auto: Option<String>,
    /// Where triggers of the application's see rows before they are updated, and may change them: their words.
    pub(super) rewritten: Option<Words>,
    /// The foreign keys of others that make their rows follow this table's.
    pub(super) followers: Vec<Follower>,
    /// Each unique index: its columns.
    pub(super) unique: Vec<Vec<Column>>,
}

/// A column whose values are told apart by their literals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) literal: Literal,
    /// How much of it an index has, where that is not all.
    pub(super) prefix: Option<u32>,
}

/// A foreign key that acts by itself, seen from the table that it refers to.
#[derive(Debug, Clone)]
pub(super) struct Follower {
    pub(super) child: String,
    pub(super) child_columns: Vec<Column>,
    pub(super) parent_columns: Vec<Column>,
    pub(super) on_delete: Action,
    pub(super) on_update: Action,
}

/// What a name means.
#[derive(Debug, Clone, Copy)]
pub(super) enum Meaning<'a> {
    /// Writing it writes no synced row.
    Nothing,
    Table(&'a Table),
    /// Writing it writes synced rows in a way that is not seen.
    Hidden(&'a str),
}

/// `None` where they cannot be known.
pub(super) type Words = Option<HashSet<String>>;

impl Column {
    pub(super) fn of(&self, row: &str) -> String {
        format!("{row}.{}", identifier(&self.name))
    }
}

impl Table {
    /// Whether a trigger may give one of these columns another value than the statement does.
    pub(super) fn rewrites_any(&self, columns: &[Column]) -> bool {
        let may = |words: &Words| {
            words.as_ref().is_none_or(|words| columns.iter().any(|column| words.contains(&column.name.to_lowercase())))
        };
        self.rewritten.as_ref().is_some_and(may)
    }

    /// The columns that others' foreign keys refer to.
    pub(super) fn referred(&self) -> Vec<Column> {
        let mut columns: Vec<Column> = Vec::new();
        for column in self.followers.iter().flat_map(|follower| &follower.parent_columns) {
            if !columns.contains(column) {
                columns.push(column.clone());
            }
        }
        columns
    }
}

fn acts(key: &ForeignKey) -> bool {
    key.on_delete != Action::Refuse || key.on_update != Action::Refuse
}

impl Facts {
    fn fold(&self, name: &str) -> String {
        if self.folds { name.to_lowercase() } else { name.to_owned() }
    }

    pub(super) fn table(&self, name: &str) -> Option<&Table> {
        self.tables.get(&self.fold(name))
    }

    pub(super) fn meaning(&self, name: &TableName) -> Meaning<'_> {
        if name.schema.as_ref().is_some_and(|schema| self.fold(schema) != self.fold(&self.database)) {
            return Meaning::Nothing;
        }
        match (self.hidden.get(&self.fold(&name.name)), self.table(&name.name)) {
            (Some(why), _) => Meaning::Hidden(why),
            (None, Some(table)) => Meaning::Table(table),
            (None, None) => Meaning::Nothing,
        }
    }

    /// Whether a function may write synced rows.
    pub(super) fn writes(&self, function: &TableName) -> bool {
        self.functions.contains(&function.name.to_lowercase())
    }

    /// Whether any function may.
    pub(super) fn has_functions(&self) -> bool {
        !self.functions.is_empty()
    }

    /// Which state the schema is in, cheaply: whatever is read below leaves a trace in one of these.
    pub(super) async fn stamp(conn: &mut MySqlConnection) -> Result<String> {
        const STAMP: &str = "SELECT CONCAT_WS('/',
            (SELECT MD5(GROUP_CONCAT(table_name, table_type, COALESCE(create_time, '') ORDER BY table_name)) FROM information_schema.tables WHERE table_schema = DATABASE()),
            (SELECT MD5(GROUP_CONCAT(trigger_name, event_object_table, COALESCE(created, '') ORDER BY trigger_name)) FROM information_schema.triggers WHERE trigger_schema = DATABASE()),
            (SELECT MD5(GROUP_CONCAT(routine_name, last_altered ORDER BY routine_name)) FROM information_schema.routines WHERE routine_schema = DATABASE()),
            (SELECT MD5(GROUP_CONCAT(table_name, view_definition ORDER BY table_name)) FROM information_schema.views WHERE table_schema = DATABASE()))";
        Ok(text(&sqlx::query(STAMP).fetch_one(conn).await.map_err(database_error)?, 0))
    }

    pub(super) async fn load(conn: &mut MySqlConnection, catalog: &Catalog) -> Result<Self> {
        let stamp = Self::stamp(conn).await?;
        let layout = Layout::read(conn).await?;
        let settings =
            "SELECT DATABASE(), CAST(@@lower_case_table_names AS SIGNED), CAST(@@max_allowed_packet AS SIGNED)";
        let row = sqlx::query(settings).fetch_one(&mut *conn).await.map_err(database_error)?;
        let mut facts = Self {
            stamp,
            database: text(&row, 0),
            folds: row.get::<i64, _>(1) != 0,
            max_packet: usize::try_from(row.get::<i64, _>(2)).unwrap_or(usize::MAX),
            ..Self::default()
        };
        let found = Found::load(conn).await?;
        facts.find_tables(&layout, catalog, &found);
        facts.find_writers(&layout, &found);
        facts.layout = layout;
        Ok(facts)
    }

    fn column(layout: &Layout, table: &str, name: &str) -> Column {
        let literal = Literal::of(layout.column_type(table, name).unwrap_or_default());
        Column { name: name.to_owned(), literal, prefix: None }
    }

    /// Synced tables, and those from which foreign keys lead to them.
    fn find_tables(&mut self, layout: &Layout, catalog: &Catalog, found: &Found) {
        let mut reached: BTreeSet<&str> = catalog.entities().iter().map(|entity| entity.name).collect();
        let all = || layout.foreign_keys.iter().filter(|key| acts(key));
        loop {
            let more: Vec<_> = all().filter(|key| !key.abroad && reached.contains(key.child.as_str())).collect();
            let before = reached.len();
            reached.extend(more.iter().map(|key| key.parent.as_str()));
            if reached.len() == before {
                break;
            }
        }
        for key in all().filter(|key| key.abroad && reached.contains(key.child.as_str())) {
            self.problems.insert(format!("rows of {} follow those of another database", key.child));
        }
        for name in reached {
            let column = |name_of: &str| Self::column(layout, name, name_of);
            let followers = all().filter(|key| !key.abroad && key.parent == name).map(|key| Follower {
                child: key.child.clone(),
                child_columns: key.columns.iter().map(|(child, _)| Self::column(layout, &key.child, child)).collect(),
                parent_columns: key.columns.iter().map(|(_, parent)| column(parent)).collect(),
                on_delete: key.on_delete,
                on_update: key.on_update,
            });
            let followers: Vec<Follower> = followers.collect();
            let entity = catalog.find(name);
            let unique: Vec<Vec<Column>> = found
                .unique(name)
                .map(|index| {
                    let columns = index.iter().map(|(of, prefix)| Column { prefix: *prefix, ..column(of) });
                    columns.collect()
                })
                .collect();
            let key = match entity {
                Some(entity) => entity.key_columns().map(|key| column(key.name)).collect(),
                None => found.primary(name).map(column).collect(),
            };
            let mut table = Table {
                name: name.to_owned(),
                entity: entity.map(|entity| entity.id),
                key,
                auto: found.auto.get(name).cloned(),
                rewritten: found.rewritten(layout, name),
                followers,
                unique,
            };
            if table.key.is_empty() {
                table.key = table.referred();
            }
            self.look_at(&table, found);
            self.tables.insert(self.fold(name), table);
        }
    }

    /// What of a table cannot be recorded.
    fn look_at(&mut self, table: &Table, found: &Found) {
        let name = &table.name;
        match found.engines.get(name) {
            Some(engine) if engine.eq_ignore_ascii_case("innodb") => {}
            Some(engine) if engine.is_empty() => drop(self.problems.insert(format!("{name} is no table"))),
            Some(engine) => {
                self.problems.insert(format!("{name} is a table of {engine}, which has no transactions"));
            }
            None => {}
        }
        if table.key.iter().chain(table.referred().iter()).any(|column| column.literal == Literal::Inexact) {
            self.problems.insert(format!("the key of {name} is a floating point number"));
        }
    }

    /// Finds what writes synced rows without naming them in a statement, until there is nothing more to find.
    fn find_writers(&mut self, layout: &Layout, found: &Found) {
        let mut matter: BTreeMap<String, String> =
            self.tables.iter().map(|(folded, table)| (folded.clone(), table.name.clone())).collect();
        let mut writers: HashSet<String> = HashSet::new();
        let triggers: Vec<_> = layout.triggers.iter().filter(|trigger| !trigger.is_ours()).collect();
        let bodies: Vec<Words> = triggers.iter().map(|trigger| words(&trigger.body, Syntax::MySql)).collect();
        loop {
            let before = (matter.len(), writers.len());
            let names: HashSet<String> = matter.values().map(|name| name.to_lowercase()).collect();
            let more = found.routines.iter().filter(|(_, words)| may_write(words, &names, &writers));
            writers.extend(more.map(|(name, _)| name.clone()).collect::<Vec<_>>());
            for (view, words) in &found.views {
                let shows = words.as_ref().is_none_or(|words| words.iter().any(|word| names.contains(word)));
                if shows && !matter.contains_key(&self.fold(view)) {
                    self.hide(&mut matter, view, "it is a view over synced tables: write those themselves".into());
                }
            }
            for (trigger, words) in triggers.iter().zip(&bodies) {
                if !matter.contains_key(&self.fold(&trigger.table)) && may_write(words, &names, &writers) {
                    let why = format!("its trigger {} may write synced tables", trigger.name);
                    self.hide(&mut matter, &trigger.table, why);
                }
            }
            // What foreign keys do fires no trigger, so a hidden child hides no parent.
            if before == (matter.len(), writers.len()) {
                break;
            }
        }
        let names: HashSet<String> = matter.values().map(|name| name.to_lowercase()).collect();
        for (trigger, words) in triggers.iter().zip(&bodies) {
            if self.table(&trigger.table).is_some() && may_write(words, &names, &writers) {
                let problem = format!("the trigger {} of {} may write synced tables", trigger.name, trigger.table);
                self.problems.insert(problem);
            }
        }
        for ours in layout.triggers.iter().filter(|trigger| trigger.is_ours()) {
            self.problems.insert(format!("the triggers that record {} are installed too", ours.table));
        }
        self.functions = writers;
    }

    fn hide(&mut self, matter: &mut BTreeMap<String, String>, name: &str, why: String) {
        self.hidden.insert(self.fold(name), why);
        matter.insert(self.fold(name), name.to_owned());
    }
}

/// Whether words may write one of some tables, or call what may.
fn may_write(words: &Words, tables: &HashSet<String>, writers: &HashSet<String>) -> bool {
    const VERBS: [&str; 5] = ["insert", "update", "delete", "replace", "load"];
    let Some(words) = words else { return true };
    // What runs a text can run any.
    words.contains("execute")
        || words.iter().any(|word| writers.contains(word))
        || (VERBS.iter().any(|verb| words.contains(*verb)) && words.iter().any(|word| tables.contains(word)))
}

/// The columns of an index, and how much of each it has, where that is not all.
type Index = Vec<(String, Option<u32>)>;

/// What the database has, beside its layout.
struct Found {
    /// Of tables, and empty for views.
    engines: HashMap<String, String>,
    /// Unique indexes with their columns, and how much of each they have: table, index.
    indexes: BTreeMap<(String, String), Index>,
    auto: HashMap<String, String>,
    routines: Vec<(String, Words)>,
    views: Vec<(String, Words)>,
}

impl Found {
    async fn load(conn: &mut MySqlConnection) -> Result<Self> {
        let engines = "SELECT CAST(table_name AS CHAR), IF(table_type = 'VIEW', '', COALESCE(engine, '')) FROM information_schema.tables
            WHERE table_schema = DATABASE()";
        let auto = "SELECT CAST(table_name AS CHAR), CAST(column_name AS CHAR) FROM information_schema.columns
            WHERE table_schema = DATABASE() AND extra LIKE '%auto_increment%'";
        let routines = "SELECT LOWER(CAST(routine_name AS CHAR)), CAST(routine_definition AS CHAR) FROM information_schema.routines
            WHERE routine_schema = DATABASE()";
        let views = "SELECT CAST(table_name AS CHAR), CAST(view_definition AS CHAR) FROM information_schema.views WHERE table_schema = DATABASE()";
        let indexes = "SELECT CAST(table_name AS CHAR), CAST(index_name AS CHAR), CAST(column_name AS CHAR), CAST(sub_part AS SIGNED)
            FROM information_schema.statistics WHERE table_schema = DATABASE() AND non_unique = 0 ORDER BY table_name, index_name, seq_in_index";
        let mut unique: BTreeMap<(String, String), Index> = BTreeMap::new();
        for row in query(conn, indexes).await? {
            let prefix = row.get::<Option<i64>, _>(3).and_then(|length| u32::try_from(length).ok());
            unique.entry((text(&row, 0), text(&row, 1))).or_default().push((text(&row, 2), prefix));
        }
        let pair = |row: MySqlRow| (text(&row, 0), text(&row, 1));
        let with_words = |row: MySqlRow| {
            // What the user may not look into may do anything.
            let source: Option<String> = row.try_get_unchecked(1).ok().flatten();
            (text(&row, 0), source.and_then(|source| words(&source, Syntax::MySql)))
        };
        Ok(Self {
            engines: query(conn, engines).await?.into_iter().map(pair).collect(),
            indexes: unique,
            auto: query(conn, auto).await?.into_iter().map(pair).collect(),
            routines: query(conn, routines).await?.into_iter().map(with_words).collect(),
            views: query(conn, views).await?.into_iter().map(with_words).collect(),
        })
    }

    fn unique<'a>(&'a self, table: &'a str) -> impl Iterator<Item = &'a Index> {
        self.indexes.iter().filter(move |((of, _), _)| of == table).map(|(_, columns)| columns)
    }

    fn primary<'a>(&'a self, table: &'a str) -> impl Iterator<Item = &'a str> {
        let index = self.indexes.get(&(table.to_owned(), "PRIMARY".to_owned()));
        index.into_iter().flatten().map(|(column, _)| column.as_str())
    }

    /// The words of the triggers that see a table's rows before they are updated.
    fn rewritten(&self, layout: &Layout, table: &str) -> Option<Words> {
        let sees = layout
            .triggers
            .iter()
            .filter(|trigger| trigger.table == table && !trigger.is_ours() && trigger.moment == "BEFORE UPDATE");
        let all: Vec<Words> = sees.map(|trigger| words(&trigger.body, Syntax::MySql)).collect();
        if all.is_empty() {
            return None;
        }
        Some(all.into_iter().collect::<Option<Vec<_>>>().map(|all| all.into_iter().flatten().collect()))
    }
}

/// A text, which may come as bytes.
pub(super) fn text(row: &MySqlRow, index: usize) -> String {
    row.try_get_unchecked::<Option<String>, _>(index).ok().flatten().unwrap_or_default()
}

async fn query(conn: &mut MySqlConnection, sql: &'static str) -> Result<Vec<MySqlRow>> {
    sqlx::query(sql).fetch_all(conn).await.map_err(database_error)
}
