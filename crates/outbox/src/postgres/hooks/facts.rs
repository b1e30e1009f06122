//! What the database's schema means for capture by hooks: which names are whose, what follows from a write beyond its own rows, and what
//! writes out of sight.

use std::collections::{HashMap, HashSet};

use sqlx::{PgConnection, Row, postgres::PgRow};

use super::super::{database_error, triggers};
use crate::{
    error::Result,
    hooks::{Syntax, TableName, words},
    registry::{Catalog, EntityId},
};

/// An object's number in the database's own catalogue.
pub(super) type Oid = i64;

/// Settings by which texts or images mean something else: what they must match, and what it is where they do not.
const SETTINGS: [(&str, &str, &str); 5] = [
    ("standard_conforming_strings", "^on$", "is off, so texts are read in another way"),
    ("bytea_output", "^hex$", "is not `hex`, so bytes are written in another way"),
    ("extra_float_digits", "^[123]$", "is below 1, so digits of floating point numbers are lost"),
    ("IntervalStyle", "^postgres$", "is not `postgres`, so intervals are written in another way"),
    ("DateStyle", "^ISO", "is not `ISO`, so dates are written in another way"),
];

/// What is known of a database's schema.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Tells this state of the schema from others.
    pub(super) stamp: String,
    pub(super) tables: HashMap<Oid, Table>,
    /// Relations whose writing cannot be recorded, and why: views and partitions of synced tables, tables whose triggers write synced ones.
    hidden: HashMap<Oid, String>,
    /// Of all relations above.
    names: HashMap<(String, String), Oid>,
    visible: HashMap<String, Oid>,
    /// Functions that may write synced rows.
    functions: HashSet<String>,
    /// All foreign keys that have rows follow: the table referred to, and the table of the rows.
    follows: Vec<(Oid, Oid)>,
    /// What keeps the database from being captured by hooks.
    pub(super) problems: Vec<String>,
}

/// A synced table, or one from which foreign keys lead to synced ones.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) oid: Oid,
    pub(super) entity: Option<EntityId>,
    pub(super) schema: String,
    pub(super) name: String,
    /// Names and types, in the table's own order.
    pub(super) columns: Vec<(String, String)>,
    /// The entity's key, or the primary key of a table that is not synced; there it may be empty.
    pub(super) key: Vec<String>,
    /// The columns of keys that others could refer to.
    unique: HashSet<String>,
    /// Whether the role may see only some of the rows.
    is_secured: bool,
    /// Where triggers of the application's see rows before they are updated, and may change them: the words of their functions.
    pub(super) rewritten: Option<Words>,
    /// The foreign keys of others that make their rows follow this table's.
    pub(super) followers: Vec<Follower>,
}

/// A foreign key with an action, seen from the table that it refers to.
#[derive(Debug, Clone)]
pub(super) struct Follower {
    pub(super) child: Oid,
    pub(super) child_columns: Vec<String>,
    pub(super) parent_columns: Vec<String>,
    pub(super) on_delete: Action,
    pub(super) on_update: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    None,
    Cascade,
    /// `SET NULL`, `SET DEFAULT`.
    Set,
}

impl Action {
    fn of(code: &str) -> Self {
        match code {
            "c" => Self::Cascade,
            "n" | "d" => Self::Set,
            _ => Self::None,
        }
    }
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

impl Table {
    /// Whether a trigger may give one of these columns another value than the statement does.
    pub(super) fn rewrites_any(&self, columns: &[String]) -> bool {
        let may = |words: &Words| {
            words.as_ref().is_none_or(|words| columns.iter().any(|name| words.contains(&name.to_lowercase())))
        };
        self.rewritten.as_ref().is_some_and(may)
    }

    /// The columns that others' foreign keys refer to.
    pub(super) fn referred(&self) -> Vec<String> {
        let mut columns: Vec<String> =
            self.followers.iter().flat_map(|follower| follower.parent_columns.clone()).collect();
        columns.sort();
        columns.dedup();
        columns
    }

    /// The types of some columns.
    pub(super) fn types<'a>(&'a self, columns: &'a [String]) -> impl Iterator<Item = &'a str> {
        columns.iter().map(|column| {
            self.columns.iter().find(|(name, _)| name == column).map_or("text", |(_, kind)| kind.as_str())
        })
    }

    /// How to lock a row of which these columns change, as the database will when they do.
    pub(super) fn lock(&self, mut columns: impl Iterator<Item = impl AsRef<str>>) -> &'static str {
        if columns.any(|column| self.unique.contains(column.as_ref())) { "UPDATE" } else { "NO KEY UPDATE" }
    }
}

impl Facts {
    pub(super) fn meaning(&self, name: &TableName) -> Meaning<'_> {
        let oid = match &name.schema {
            Some(schema) => self.names.get(&(schema.clone(), name.name.clone())),
            None => self.visible.get(&name.name),
        };
        let Some(oid) = oid else { return Meaning::Nothing };
        match (self.tables.get(oid), self.hidden.get(oid)) {
            (_, Some(why)) => Meaning::Hidden(why),
            (Some(table), None) => Meaning::Table(table),
            (None, None) => Meaning::Nothing,
        }
    }

    /// Whether a function may write synced rows.
    pub(super) fn writes(&self, function: &TableName) -> bool {
        self.functions.contains(&function.name)
    }

    /// Whether any function may.
    pub(super) fn has_functions(&self) -> bool {
        !self.functions.is_empty()
    }

    /// Which state the schema is in, cheaply: whatever is read below leaves a trace in one of these.
    pub(super) async fn stamp(conn: &mut PgConnection) -> Result<String> {
        let catalogs = [
            ("pg_class", "oid"),
            ("pg_attribute", "attrelid"),
            ("pg_namespace", "oid"),
            ("pg_constraint", "oid"),
            ("pg_trigger", "oid"),
            ("pg_rewrite", "oid"),
            ("pg_proc", "oid"),
            ("pg_inherits", "inhrelid"),
        ];
        let marks = catalogs.map(|(name, of)| {
            format!("coalesce((SELECT sum(hashtextextended({of}::text || xmin::text, 0)) FROM {name} WHERE {of}::bigint >= 16384), 0)::text")
        });
        let settings = SETTINGS.map(|(name, ..)| format!("current_setting('{name}')")).join(" || '/' || ");
        let sql = format!("SELECT {} || current_schemas(true)::text || {settings}", marks.join(" || '/' || "));
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).persistent(false).fetch_one(conn).await.map_err(database_error)
    }

    pub(super) async fn load(conn: &mut PgConnection, catalog: &Catalog) -> Result<Self> {
        let mut facts = Self { stamp: Self::stamp(conn).await?, ..Self::default() };
        let mut synced: HashMap<Oid, EntityId> = HashMap::new();
        let names: Vec<String> = catalog.entities().iter().map(triggers::qualified).collect();
        for row in query_of(
            conn,
            "SELECT n - 1, to_regclass(t)::oid::bigint FROM unnest($1::text[]) WITH ORDINALITY AS l(t, n)",
            names,
        )
        .await?
        {
            let (Ok(place), Some(oid)) = (usize::try_from(row.get::<i64, _>(0)), row.get::<Option<Oid>, _>(1)) else {
                continue;
            };
            synced.insert(oid, catalog.entities()[place].id);
        }
        let followers = facts.followers(conn, &synced).await?;
        let found = Found::load(conn).await?;
        facts.load_tables(conn, catalog, &synced, followers, &found).await?;
        facts.find_writers(&synced, &found);
        facts.name_relations(conn).await?;
        facts.check_settings(conn).await?;
        Ok(facts)
    }

    /// Connections of our own have the settings right; those of a caller's pool, or a pooler's, may not.
    async fn check_settings(&mut self, conn: &mut PgConnection) -> Result<()> {
        let (names, wanted) = (SETTINGS.map(|(name, ..)| name), SETTINGS.map(|(_, wanted, _)| wanted));
        let sql = "SELECT current_setting(name) ~ wanted FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS l(name, wanted, n) ORDER BY n";
        let right = sqlx::query_scalar::<_, bool>(sql).persistent(false).bind(names).bind(wanted).fetch_all(conn).await;
        for ((name, _, problem), is_right) in SETTINGS.into_iter().zip(right.map_err(database_error)?) {
            if !is_right {
                self.problems.push(format!("`{name}` {problem}"));
            }
        }
        Ok(())
    }

    /// Foreign keys that lead to synced tables, by the table that they refer to.
    async fn followers(
        &mut self,
        conn: &mut PgConnection,
        synced: &HashMap<Oid, EntityId>,
    ) -> Result<HashMap<Oid, Vec<Follower>>> {
        let sql = "SELECT conrelid::bigint, confrelid::bigint, confdeltype::text, confupdtype::text,
              (SELECT array_agg(a.attname::text ORDER BY n) FROM unnest(conkey) WITH ORDINALITY AS k(k, n) JOIN pg_attribute a ON a.attrelid = conrelid AND a.attnum = k),
              (SELECT array_agg(a.attname::text ORDER BY n) FROM unnest(confkey) WITH ORDINALITY AS k(k, n) JOIN pg_attribute a ON a.attrelid = confrelid AND a.attnum = k)
            FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd'))";
        let mut all: Vec<(Oid, Follower)> = query(conn, sql)
            .await?
            .iter()
            .map(|row| {
                let follower = Follower {
                    child: row.get(0),
                    on_delete: Action::of(row.get(2)),
                    on_update: Action::of(row.get(3)),
                    child_columns: row.get(4),
                    parent_columns: row.get(5),
                };
                (row.get(1), follower)
            })
            .collect();
        self.follows = all.iter().map(|(parent, follower)| (*parent, follower.child)).collect();
        let mut reached: HashSet<Oid> = synced.keys().copied().collect();
        let mut found: HashMap<Oid, Vec<Follower>> = HashMap::new();
        loop {
            let (matter, rest) =
                all.into_iter().partition::<Vec<_>, _>(|(_, follower)| reached.contains(&follower.child));
            if matter.is_empty() {
                return Ok(found);
            }
            for (parent, follower) in matter {
                reached.insert(parent);
                found.entry(parent).or_default().push(follower);
            }
            all = rest;
        }
    }

    async fn load_tables(
        &mut self,
        conn: &mut PgConnection,
        catalog: &Catalog,
        synced: &HashMap<Oid, EntityId>,
        mut followers: HashMap<Oid, Vec<Follower>>,
        found: &Found,
    ) -> Result<()> {
        let oids: HashSet<Oid> = synced.keys().chain(followers.keys()).copied().collect();
        let sql = "SELECT c.oid::bigint, n.nspname::text, c.relname::text, c.relkind::text,
              array_agg(a.attname::text ORDER BY a.attnum), array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum),
              (SELECT array_agg(k.attname::text) FROM pg_index i JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum = ANY(i.indkey) WHERE i.indrelid = c.oid AND i.indisprimary),
              EXISTS (SELECT 1 FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhrelid WHERE h.inhparent = c.oid AND NOT p.relispartition),
              (SELECT array_agg(t.tgfoid::bigint) FROM pg_trigger t WHERE (t.tgrelid = c.oid OR t.tgrelid IN (SELECT relid FROM pg_partition_tree(c.oid)))
                AND NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgtype & 19 = 19),
              (SELECT array_agg(k.attname::text) FROM pg_index i JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum = ANY(i.indkey)
                WHERE i.indrelid = c.oid AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL),
              row_security_active(c.oid)
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            WHERE c.oid::text = ANY($1) GROUP BY c.oid, n.oid";
        for row in query_of(conn, sql, oids.iter().map(ToString::to_string).collect()).await? {
            let oid: Oid = row.get(0);
            let entity = synced.get(&oid).copied();
            let (columns, types): (Vec<String>, Vec<String>) = (row.get(4), row.get(5));
            let table = Table {
                oid,
                entity,
                schema: row.get(1),
                name: row.get(2),
                columns: columns.into_iter().zip(types).collect(),
                key: match entity {
                    Some(id) => catalog.entity(id).key_columns().map(|column| column.name.to_owned()).collect(),
                    None => row.get::<Option<Vec<String>>, _>(6).unwrap_or_default(),
                },
                unique: row.get::<Option<Vec<String>>, _>(9).unwrap_or_default().into_iter().collect(),
                is_secured: row.get(10),
                rewritten: row.get::<Option<Vec<Oid>>, _>(8).map(|triggers| found.words(&triggers)),
                followers: followers.remove(&oid).unwrap_or_default(),
            };
            if entity.is_some() {
                if !matches!(row.get::<&str, _>(3), "r" | "p") {
                    self.problems.push(format!("{} is no table", table.name));
                }
                if row.get(7) {
                    self.problems.push(format!("other tables inherit from {}", table.name));
                }
            }
            self.tables.insert(oid, table);
        }
        Ok(())
    }

    /// Finds what writes synced rows without naming them in a statement, until there is nothing more to find.
    fn find_writers(&mut self, synced: &HashMap<Oid, EntityId>, found: &Found) {
        let mut matter: HashMap<Oid, String> =
            self.tables.values().map(|table| (table.oid, table.name.clone())).collect();
        let name = |oid: &Oid| found.names.get(oid).cloned().unwrap_or_default();
        let mut writers: HashSet<Oid> = HashSet::new();
        loop {
            let before = (matter.len(), writers.len());
            let tables: HashSet<String> = matter.values().map(|name| name.to_lowercase()).collect();
            let functions: HashSet<String> =
                writers.iter().map(|oid| found.functions[oid].name.to_lowercase()).collect();
            let more = found.functions.iter().filter(|(_, function)| function.writes(&tables, &functions));
            writers.extend(more.map(|(oid, _)| *oid).collect::<Vec<_>>());
            for (child, parent) in &found.parts {
                for (this, other, how) in [(child, parent, "a part"), (parent, child, "the whole")] {
                    if matter.contains_key(other) && !matter.contains_key(this) {
                        let why = format!("it is {how} of {}: write {} itself", name(other), name(other));
                        self.hidden.insert(*this, why);
                        matter.insert(*this, name(this));
                    }
                }
            }
            for (view, table) in &found.views {
                if matter.contains_key(table) && !matter.contains_key(view) {
                    self.hidden
                        .insert(*view, format!("it is a view over {}: write {} itself", name(table), name(table)));
                    matter.insert(*view, name(view));
                }
            }
            for (table, rule) in &found.rules {
                if !matter.contains_key(table) && writes(rule.as_ref(), &tables) {
                    self.hidden.insert(*table, "it has rules that may write synced tables".into());
                    matter.insert(*table, name(table));
                }
            }
            for (table, function) in &found.triggers {
                if !matter.contains_key(table) && writers.contains(function) {
                    self.hidden.insert(
                        *table,
                        format!("its trigger runs {}, which may write synced tables", found.functions[function].name),
                    );
                    matter.insert(*table, name(table));
                }
            }
            for (parent, child) in &self.follows {
                if self.hidden.contains_key(child) && !matter.contains_key(parent) {
                    let why = format!("rows of {} follow it, and not all that they write is seen", name(child));
                    self.hidden.insert(*parent, why);
                    matter.insert(*parent, name(parent));
                }
            }
            if before == (matter.len(), writers.len()) {
                break;
            }
        }
        // A partition's own triggers fire for what is written to the whole.
        let whole = |oid: &Oid| found.wholes(*oid).last().unwrap_or(*oid);
        for (table, function) in &found.triggers {
            if self.tables.contains_key(&whole(table)) && writers.contains(function) {
                self.problems.push(format!(
                    "a trigger of {} runs {}, which may write synced tables",
                    name(table),
                    found.functions[function].name
                ));
            }
        }
        for part in self.tables.keys() {
            if let Some(whole) = found.wholes(*part).find(|whole| self.tables.contains_key(whole)) {
                let (part, whole) = (name(part), name(&whole));
                self.problems.push(format!("{part} is a part of {whole}, and entities or foreign keys name both"));
            }
        }
        for (table, _) in found.rules.iter().filter(|(table, _)| self.tables.contains_key(table)) {
            self.problems.push(format!("{} has rules", name(table)));
        }
        for table in found.ours.iter().filter(|table| synced.contains_key(table)) {
            self.problems.push(format!("the triggers that record {} are installed too", name(table)));
        }
        for (parent, child) in &self.follows {
            if self.tables.contains_key(&whole(parent)) && self.hidden.contains_key(child) {
                let (child, parent) = (name(child), name(parent));
                self.problems
                    .push(format!("rows of {child} follow those of {parent}, and not all that they write is seen"));
            }
        }
        self.functions = writers.iter().map(|oid| found.functions[oid].name.clone()).collect();
        self.check_followers();
        self.problems.sort();
        self.problems.dedup();
    }

    /// What foreign keys do to rows that cannot be followed.
    fn check_followers(&mut self) {
        for follower in self.tables.values().flat_map(|table| &table.followers) {
            let Some(child) = self.tables.get(&follower.child) else { continue };
            // A key that is set to its default goes nobody knows where.
            let sets = [follower.on_delete, follower.on_update].contains(&Action::Set);
            if sets && child.entity.is_some() && child.key.iter().any(|key| follower.child_columns.contains(key)) {
                self.problems.push(format!("a foreign key sets columns of the key of {}", child.name));
            }
            // Policies hold for what the recorder looks for, and not for what foreign keys do.
            if child.is_secured {
                self.problems.push(format!(
                    "rows of {} follow others by a foreign key, and row level security hides some from this role",
                    child.name
                ));
            }
        }
    }

    async fn name_relations(&mut self, conn: &mut PgConnection) -> Result<()> {
        let oids = self.tables.keys().chain(self.hidden.keys()).map(ToString::to_string).collect();
        let sql = "SELECT c.oid::bigint, n.nspname::text, c.relname::text, pg_table_is_visible(c.oid)
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid::text = ANY($1)";
        for row in query_of(conn, sql, oids).await? {
            if row.get(3) {
                self.visible.insert(row.get(2), row.get(0));
            }
            self.names.insert((row.get(1), row.get(2)), row.get(0));
        }
        Ok(())
    }
}

/// What the database has that may write out of sight.
struct Found {
    functions: HashMap<Oid, Function>,
    /// Tables with the functions of their triggers.
    triggers: Vec<(Oid, Oid)>,
    /// Tables with our own triggers.
    ours: Vec<Oid>,
    /// Partitions, and tables that inherit, each with the other.
    parts: Vec<(Oid, Oid)>,
    /// Views that pass writes on, with the relations that they show.
    views: Vec<(Oid, Oid)>,
    /// Tables with the words of their rules.
    rules: Vec<(Oid, Option<HashSet<String>>)>,
    names: HashMap<Oid, String>,
}

struct Function {
    name: String,
    /// `None` where it cannot be looked into.
    words: Option<HashSet<String>>,
}

/// Whether words may write one of some tables.
fn writes(words: Option<&HashSet<String>>, tables: &HashSet<String>) -> bool {
    const VERBS: [&str; 6] = ["insert", "update", "delete", "merge", "truncate", "copy"];
    words.is_none_or(|words| {
        VERBS.iter().any(|verb| words.contains(*verb)) && words.iter().any(|word| tables.contains(word))
    })
}

impl Function {
    fn writes(&self, tables: &HashSet<String>, writers: &HashSet<String>) -> bool {
        let calls =
            |words: &HashSet<String>| words.contains("execute") || words.iter().any(|word| writers.contains(word));
        self.words.as_ref().is_none_or(calls) || writes(self.words.as_ref(), tables)
    }
}

impl Found {
    /// The tables that a table is a part of, each of the next.
    fn wholes(&self, oid: Oid) -> impl Iterator<Item = Oid> {
        let whole = |part: &Oid| self.parts.iter().find(|(child, _)| child == part).map(|(_, whole)| *whole);
        std::iter::successors(whole(&oid), whole)
    }

    fn words(&self, functions: &[Oid]) -> Words {
        let words = functions.iter().map(|oid| self.functions.get(oid).and_then(|function| function.words.clone()));
        words.collect::<Option<Vec<_>>>().map(|words| words.into_iter().flatten().collect())
    }

    async fn load(conn: &mut PgConnection) -> Result<Self> {
        // Those of the database itself and of extensions do as they say; those in C cannot be looked into.
        let functions = "SELECT p.oid::bigint, p.proname::text, l.lanname::text, coalesce(pg_get_function_sqlbody(p.oid), p.prosrc)
            FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang JOIN pg_namespace n ON n.oid = p.pronamespace
            WHERE p.oid >= 16384 AND p.prokind <> 'a' AND l.lanname NOT IN ('c', 'internal') AND p.proname NOT LIKE 'tidewire\\_%'
              AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')";
        let functions = query(conn, functions).await?.into_iter().map(|row| {
            let readable = matches!(row.get::<&str, _>(2), "sql" | "plpgsql");
            let words = readable.then(|| words(row.get(3), Syntax::Postgres)).flatten();
            (row.get(0), Function { name: row.get(1), words })
        });
        let functions: HashMap<Oid, Function> = functions.collect();
        let triggers = "SELECT tgrelid::bigint, tgfoid::bigint, tgname LIKE '!tidewire%' FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D'";
        let (ours, triggers): (Vec<_>, Vec<_>) =
            query(conn, triggers).await?.into_iter().partition(|row| row.get::<bool, _>(2));
        let pair = |row: PgRow| (row.get::<Oid, _>(0), row.get::<Oid, _>(1));
        let parts = "SELECT inhrelid::bigint, inhparent::bigint FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid WHERE c.relkind NOT IN ('i', 'I')";
        let views = "SELECT DISTINCT r.ev_class::bigint, d.refobjid::bigint FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class AND c.relkind = 'v'
            JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class
            WHERE c.oid >= 16384 AND pg_relation_is_updatable(c.oid, false) <> 0";
        let rules =
            "SELECT ev_class::bigint, pg_get_ruledef(oid) FROM pg_rewrite WHERE rulename <> '_RETURN' AND oid >= 16384";
        let names =
            "SELECT oid::bigint, relname::text FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'p', 'v', 'f')";
        Ok(Self {
            triggers: triggers.into_iter().map(pair).filter(|(_, function)| functions.contains_key(function)).collect(),
            functions,
            ours: ours.into_iter().map(|row| row.get(0)).collect(),
            parts: query(conn, parts).await?.into_iter().map(pair).collect(),
            views: query(conn, views).await?.into_iter().map(pair).collect(),
            rules: query(conn, rules)
                .await?
                .into_iter()
                .map(|row| (row.get(0), words(row.get(1), Syntax::Postgres)))
                .collect(),
            names: query(conn, names).await?.into_iter().map(|row| (row.get(0), row.get(1))).collect(),
        })
    }
}

async fn query(conn: &mut PgConnection, sql: &'static str) -> Result<Vec<PgRow>> {
    sqlx::query(sql).persistent(false).fetch_all(conn).await.map_err(database_error)
}

async fn query_of(conn: &mut PgConnection, sql: &'static str, of: Vec<String>) -> Result<Vec<PgRow>> {
    sqlx::query(sql).persistent(false).bind(of).fetch_all(conn).await.map_err(database_error)
}
