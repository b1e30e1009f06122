//! What foreign keys do by themselves.
//!
//! InnoDB carries out `ON DELETE CASCADE` and its like below the level of triggers. So what it is about to do is recorded by a trigger of the
//! table from which it starts: before a row is deleted, the rows that will go with it, or lose their reference to it, are locked, read along the
//! foreign keys, and recorded; after a key has changed, those that have followed it. The application's triggers on those tables do not fire for such
//! changes, and do not fire because of this either.
//!
//! ```text
//! DELETE project ── BEFORE DELETE ON project ── task_label by task, task_label by label, comment, task, label
//!                     each row once, whichever ways lead to it; the farthest first
//! ```
//!
//! The rows between are locked for writing first, from the parent downwards. Who adds a row that refers to another locks that one shared, and only
//! it where no gaps are locked (`READ COMMITTED`). So once all rows that lead on are locked, none joins those that will go. A deletion that goes that far
//! must therefore not read those tables in the same statement: the server refuses it (error 1442).
//!
//! Each change is inserted by a statement of its own, when its row has been locked. `INSERT … SELECT` may draw numbers before it comes to the rows, and a number
//! that is older than the lock is no place in a row's history. It would also lock the outbox's counter to the end of the statement, and InnoDB's way out of a
//! deadlock about that lock is to roll the transaction back without telling the server (tried: error 1467, and half a transaction).
//!
//! Refused where it happens, because a fixed text cannot follow it: deletions that go round in a circle (a tree of rows that delete their
//! branches), and changed keys that are passed on a second time. Refused at the check: what no trigger sees, and deletions along keys that refer to
//! another than the primary one, since who adds a row there locks an index entry that cannot be locked for writing from within a trigger.

use std::collections::BTreeSet;

use super::{
    layout::{Action, ForeignKey, Layout},
    triggers::{COLUMNS, VALUES, identifier, image, literal, of, refuse},
};
use crate::{
    capture::Capture,
    error::{Error, ErrorKind, Result},
    registry::{Catalog, ColumnMeta, EntityMeta},
};

/// The foreign keys that act by themselves.
pub(super) struct Cascades<'a> {
    layout: &'a Layout,
    catalog: &'a Catalog,
    /// Where what follows is written: to the outbox, or to a table that the log shows.
    capture: Capture,
}

/// Foreign keys one after another, from the row that is deleted to those which go with it, or lose their reference at the last.
type Path<'a> = Vec<&'a ForeignKey>;

/// The ways that a deletion takes.
#[derive(Default)]
struct Ways<'a> {
    deleted: Vec<Path<'a>>,
    nulled: Vec<Path<'a>>,
    /// Those that come back to a table on the way.
    circles: Vec<Path<'a>>,
}

impl<'a> Ways<'a> {
    fn all(&self) -> impl Iterator<Item = &Path<'a>> {
        self.deleted.iter().chain(&self.nulled).chain(&self.circles)
    }
}

impl<'a> Cascades<'a> {
    /// # Errors
    /// [`ErrorKind::Setup`] naming foreign keys whose effects cannot be recorded at all.
    pub(super) fn new(layout: &'a Layout, catalog: &'a Catalog, capture: Capture) -> Result<Self> {
        let acts = |action| action != Action::Refuse;
        let problems: Vec<_> = layout
            .foreign_keys
            .iter()
            .filter(|key| catalog.find(&key.child).is_some())
            .filter(|key| {
                key.on_update == Action::SetNull || key.abroad && (acts(key.on_delete) || acts(key.on_update))
            })
            .map(|key| format!("{} of {}", key.name, key.child))
            .collect();
        if !problems.is_empty() {
            return Err(Error::new(
                ErrorKind::Setup,
                format!(
                    "what these foreign keys do by themselves (ON UPDATE SET NULL, or a parent in another database) is seen by no trigger: {}. \
                     Change them to RESTRICT, or capture by log",
                    problems.join(", ")
                ),
            ));
        }
        let cascades = Self { layout, catalog, capture };
        let open: Vec<_> = layout
            .foreign_keys
            .iter()
            .filter(|key| acts(key.on_delete) && !key.to_primary && cascades.concerns(key))
            .map(|key| format!("{} of {}", key.name, key.child))
            .collect();
        if !open.is_empty() {
            return Err(Error::new(
                ErrorKind::Setup,
                format!(
                    "of what these foreign keys delete or set to NULL, a trigger may miss rows that are added meanwhile, because they refer to another \
                     key than the primary one: {}. Change them to RESTRICT, or capture by log",
                    open.join(", ")
                ),
            ));
        }
        Ok(cascades)
    }

    /// Whether a row that a deletion takes along this key, or along further ones, is of a synced table.
    fn concerns(&self, key: &ForeignKey) -> bool {
        let mut ways = Ways::default();
        self.follow(&key.child, &Path::new(), &mut ways);
        self.catalog.find(&key.child).is_some()
            || key.on_delete == Action::Cascade
                && ways.all().any(|path| self.catalog.find(&path[path.len() - 1].child).is_some())
    }

    /// The tables that others refer to.
    pub(super) fn parents(&self) -> BTreeSet<&'a str> {
        self.layout.foreign_keys.iter().filter(|key| !key.abroad).map(|key| key.parent.as_str()).collect()
    }

    fn of_parent(&self, table: &str) -> impl Iterator<Item = &'a ForeignKey> {
        let table = table.to_owned();
        self.layout.foreign_keys.iter().filter(move |key| key.parent == table && !key.abroad)
    }

    fn follow(&self, root: &str, path: &Path<'a>, ways: &mut Ways<'a>) {
        let table = path.last().map_or(root, |key| key.child.as_str());
        for key in self.of_parent(table) {
            let mut next = path.clone();
            next.push(key);
            let returns = key.child == root || path.iter().any(|before| before.child == key.child);
            match key.on_delete {
                Action::Refuse => {}
                Action::SetNull => ways.nulled.push(next),
                Action::Cascade if returns => ways.circles.push(next),
                Action::Cascade => {
                    self.follow(root, &next, ways);
                    // After those that lead on from it.
                    ways.deleted.push(next);
                }
            }
        }
    }

    /// What to do before a row of a table is deleted; empty where nothing happens to rows of synced tables.
    pub(super) fn before_delete(&self, root: &str) -> String {
        let mut ways = Ways::default();
        self.follow(root, &Path::new(), &mut ways);
        let mut text = String::new();
        let known = |path: &Path<'a>| self.catalog.find(&path[path.len() - 1].child);
        if !ways.all().any(|path| known(path).is_some()) {
            return text;
        }
        // Those that lead on to others, the nearest first.
        let mut between: Vec<_> =
            ways.all().filter(|path| path.len() > 1).map(|path| &path[..path.len() - 1]).collect();
        between.sort_unstable_by_key(|path| path.len());
        for (index, path) in between.iter().enumerate() {
            if !between[..index].contains(path) {
                text.push_str(&format!("SELECT COUNT(*) INTO tidewire_n FROM {} FOR UPDATE; ", join(path)));
            }
        }
        for path in &ways.circles {
            let why = format!(
                "rows of {} that delete each other go unseen: delete the last first",
                path[path.len() - 1].child
            );
            text.push_str(&format!("IF EXISTS (SELECT 1 FROM {}) THEN {} END IF; ", join(path), refuse(&why)));
        }
        for (index, path) in ways.nulled.iter().enumerate() {
            let Some(entity) = known(path) else { continue };
            let same = |other: &&Path<'a>| known(other).is_some_and(|other| other.id == entity.id);
            let mut source = join(path);
            // Not those that are deleted too, nor those that another way has led to.
            for other in ways.deleted.iter().filter(same).chain(ways.nulled[..index].iter().filter(same)) {
                source.push_str(&format!(" AND NOT {}", leads_to(other, "t")));
            }
            if entity.name == root {
                let own = entity.key_columns().map(|column| {
                    let name = identifier(column.name);
                    format!("t.{name} <=> OLD.{name}")
                });
                source.push_str(&format!(" AND NOT ({})", own.collect::<Vec<_>>().join(" AND ")));
            }
            let after = |column: &ColumnMeta| {
                let name = identifier(column.name);
                let ends = ways
                    .nulled
                    .iter()
                    .filter(same)
                    .filter(|path| path[path.len() - 1].columns.iter().any(|(child, _)| child == column.name));
                let conditions: Vec<_> = ends.map(|path| leads_to(path, "t")).collect();
                if conditions.is_empty() {
                    format!("t.{name}")
                } else {
                    format!("IF({}, NULL, t.{name})", conditions.join(" OR "))
                }
            };
            let (before, after) = (image(self.layout, entity, &of("t")), image(self.layout, entity, &after));
            text.push_str(&self.record(entity, "update", &before, &after, &source));
        }
        for (index, path) in ways.deleted.iter().enumerate() {
            let Some(entity) = known(path) else { continue };
            let mut source = join(path);
            for other in
                ways.deleted[..index].iter().filter(|other| known(other).is_some_and(|other| other.id == entity.id))
            {
                source.push_str(&format!(" AND NOT {}", leads_to(other, "t")));
            }
            text.push_str(&self.record(entity, "delete", &image(self.layout, entity, &of("t")), "NULL", &source));
        }
        text
    }

    /// What to do after a row of a table has changed its key; empty where nothing happens to rows of synced tables.
    pub(super) fn after_update(&self, root: &str) -> String {
        let keys: Vec<_> = self
            .of_parent(root)
            // A table's changes do not cascade to itself.
            .filter(|key| key.on_update == Action::Cascade && key.child != root)
            .filter(|key| self.catalog.find(&key.child).is_some())
            .collect();
        let mut text = String::new();
        for (index, key) in keys.iter().enumerate() {
            let Some(entity) = self.catalog.find(&key.child) else { continue };
            let to_same = |other: &&&ForeignKey| other.child == key.child;
            let differs = key.columns.iter().map(|(_, parent)| {
                let parent = identifier(parent);
                format!("NOT BINARY OLD.{parent} <=> BINARY NEW.{parent}")
            });
            text.push_str(&format!("IF {} THEN ", differs.collect::<Vec<_>>().join(" OR ")));
            for further in self.of_parent(&key.child).filter(|further| {
                further.on_update == Action::Cascade
                    && further.columns.iter().any(|(_, parent)| key.columns.iter().any(|(child, _)| child == parent))
            }) {
                let why =
                    format!("the key is passed on to {} unseen: change it by deleting and inserting", further.child);
                text.push_str(&format!(
                    "IF EXISTS (SELECT 1 FROM {} t JOIN {} f ON {} WHERE {}) THEN {} END IF; ",
                    identifier(&key.child),
                    identifier(&further.child),
                    equal(further, "f", "t"),
                    equal(key, "t", "NEW"),
                    refuse(&why)
                ));
            }
            let mut source = format!("{} t WHERE {}", identifier(&key.child), equal(key, "t", "NEW"));
            for other in keys[..index].iter().filter(to_same) {
                source.push_str(&format!(" AND NOT ({})", equal(other, "t", "NEW")));
            }
            let before = |column: &ColumnMeta| {
                let mut value = format!("t.{}", identifier(column.name));
                for other in keys.iter().filter(to_same) {
                    if let Some((_, parent)) = other.columns.iter().find(|(child, _)| child == column.name) {
                        value = format!("IF({}, OLD.{}, {value})", equal(other, "t", "NEW"), identifier(parent));
                    }
                }
                value
            };
            let (before, after) = (image(self.layout, entity, &before), image(self.layout, entity, &of("t")));
            let in_key = |other: &&ForeignKey| {
                other.columns.iter().any(|(child, _)| entity.key_columns().any(|column| column.name == child))
            };
            if keys.iter().filter(to_same).any(in_key) {
                text.push_str(&self.record(entity, "delete", &before, "NULL", &source));
                text.push_str(&self.record(entity, "insert", "NULL", &after, &source));
            } else {
                text.push_str(&self.record(entity, "update", &before, &after, &source));
            }
            text.push_str("END IF; ");
        }
        text
    }

    fn record(&self, entity: &EntityMeta, operation: &str, before: &str, after: &str, source: &str) -> String {
        let name = literal(entity.name);
        let (into, context) = match self.capture {
            Capture::Log => ("tidewire_followed (entity, operation, `before`, `after`)".to_owned(), String::new()),
            _ => (format!("tidewire_outbox ({COLUMNS})"), format!("{VALUES}, ")),
        };
        format!(
            "FOR row IN (SELECT {before} AS was, {after} AS is_now FROM {source} LOCK IN SHARE MODE) DO
             INSERT INTO {into} VALUES ({context}{name}, '{operation}', row.was, row.is_now); END FOR; "
        )
    }
}

/// `child.column = parent.column` for each of a key's columns.
fn equal(key: &ForeignKey, child: &str, parent: &str) -> String {
    let parts = key.columns.iter().map(|(of, to)| format!("{child}.{} = {parent}.{}", identifier(of), identifier(to)));
    parts.collect::<Vec<_>>().join(" AND ")
}

/// `t`, the rows at the end of a way, joined along it to the row that is deleted, with a condition that more can follow.
fn join(path: &[&ForeignKey]) -> String {
    let mut alias = String::from("t");
    let mut text = format!("{} t", identifier(&path[path.len() - 1].child));
    for key in path[1..].iter().rev() {
        let next = format!("{alias}p");
        text.push_str(&format!(" JOIN {} {next} ON {}", identifier(&key.parent), equal(key, &alias, &next)));
        alias = next;
    }
    text.push_str(&format!(" WHERE {}", equal(path[0], &alias, "OLD")));
    text
}

/// Whether a way leads to the row of an alias. Never unknown.
fn leads_to(path: &[&ForeignKey], alias: &str) -> String {
    let Some((key, before)) = path.split_last() else { return "TRUE".to_owned() };
    if before.is_empty() {
        return format!("COALESCE({}, FALSE)", equal(key, alias, "OLD"));
    }
    let next = format!("{alias}w");
    format!(
        "EXISTS (SELECT 1 FROM {} {next} WHERE {} AND {} LOCK IN SHARE MODE)",
        identifier(&key.parent),
        equal(key, alias, &next),
        leads_to(before, &next)
    )
}
