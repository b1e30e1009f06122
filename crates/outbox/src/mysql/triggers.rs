//! Capture by triggers.
//!
//! A row trigger per table and operation. They fire in the order of their creation unless told otherwise, and these are told to stand before
//! the application's, so that a row's changes are recorded in their true order whatever those do. What foreign keys do by themselves fires no
//! trigger here; it is recorded by the parent's, see [`cascade`](super::cascade).
//!
//! *Whose transaction.* Nothing tells a trigger in which transaction it runs, for any session and without a privilege. But each session shows the
//! id that the binary log gave to its last transaction (`@@last_gtid`), and that changes with each commit that wrote a row. So the session, marked
//! by the first trigger that runs in it, and that id together name the transaction.
//!
//! *The barrier.* Before it draws a number for a change, a transaction takes a shared lock on a row of `tidewire_barrier`, by which those who read
//! know when it has ended (see [`log`](super::log)). Which row matters to nobody but the clock: each is used for a moment and then left to drain.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Executor, MySqlConnection};

use super::{cascade, database_error, dialect::MysqlDialect, layout::Layout};
use crate::{
    capture::Capture,
    error::{Error, ErrorKind, Result},
    registry::{Catalog, ColumnMeta, EntityMeta},
    sql::Dialect,
};

/// What the names of Tidewire's triggers begin with.
pub(super) const PREFIX: &str = "tidewire_";

/// How many rows the barrier has.
pub(super) const BARRIER: u64 = 64;
/// How many of them are used in a second, one after the other. A row is left alone for eight seconds then, so that of transactions which are shorter
/// none is left on it for a moment, however many there are.
const BARRIERS_A_SECOND: u64 = 8;

/// The largest answer leaves room for what stands around two images.
const ROOM: u64 = 1 << 16;

/// A trigger as it should be.
#[derive(Debug)]
pub(super) struct Wanted {
    name: String,
    table: String,
    moment: &'static str,
    body: String,
}

impl Wanted {
    /// Those before a deletion see what the application's have done by then; the others come first.
    fn comes_last(&self) -> bool {
        self.moment.starts_with("BEFORE")
    }
}

pub(super) fn identifier(name: &str) -> String {
    let mut quoted = String::new();
    MysqlDialect.identifier(name, &mut quoted);
    quoted
}

/// A text literal.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// A row as a JSON object, each column taken from what `of` says.
pub(super) fn image(layout: &Layout, entity: &EntityMeta, of: &dyn Fn(&ColumnMeta) -> String) -> String {
    let mut text = String::from("CONCAT(");
    for (index, column) in entity.columns.iter().enumerate() {
        let mut name = String::new();
        crate::cell::write_text(column.name, &mut name);
        text.push_str(&literal(&format!("{}{name}:", if index == 0 { '{' } else { ',' })));
        text.push_str(", ");
        let value = of(column);
        if layout.is_instant(entity, column.name, &column.kind) {
            // A text would be in the time zone of whoever writes; but that of a date of zeros, which is no instant.
            text.push_str(&format!(
                "COALESCE(IF(COALESCE(UNIX_TIMESTAMP({value}), 0) = 0, CONCAT('\"', {value}, '\"'), UNIX_TIMESTAMP({value})), 'null')"
            ));
        } else {
            MysqlDialect.packed(&column.kind, &value, &mut text);
        }
        text.push_str(", ");
    }
    text.push_str("'}')");
    text
}

/// The columns of `OLD`, `NEW` or an alias.
pub(super) fn of<'a>(row: &'a str) -> impl Fn(&ColumnMeta) -> String + 'a {
    move |column| format!("{row}.{}", identifier(column.name))
}

/// The columns of an outbox row, without its images, and their values.
pub(super) const COLUMNS: &str = "tx, actor, origin, mutation_id, at, entity, operation, `before`, `after`";
pub(super) const VALUES: &str = "UNHEX(MD5(CONCAT(@tidewire_session, @@last_gtid))), \
    COALESCE(@tidewire_actor, CONCAT('database:', SUBSTRING_INDEX(USER(), '@', 1))), @tidewire_origin, @tidewire_mutation, UTC_TIMESTAMP(3)";

pub(super) fn refuse(why: &str) -> String {
    format!("SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = {};", literal(&format!("tidewire: {why}")))
}

/// Takes a share of the barrier, and puts its number into a variable.
pub(super) fn enter_barrier(variable: &str) -> String {
    format!(
        "SELECT n INTO {variable} FROM tidewire_barrier WHERE n = FLOOR(UNIX_TIMESTAMP(NOW(3)) * {BARRIERS_A_SECOND}) MOD {BARRIER} LOCK IN SHARE MODE;"
    )
}

/// What comes before the first row that a trigger records.
pub(super) fn enter() -> String {
    format!(
        "{}
         {}
         SET @tidewire_session = COALESCE(@tidewire_session, UUID());",
        refuse_unlogged(),
        enter_barrier("tidewire_n"),
    )
}

fn refuse_unlogged() -> String {
    let why = refuse("with sql_log_bin off, transactions cannot be told apart and are not recorded");
    format!("IF @@sql_log_bin = 0 THEN {why} END IF;")
}

/// Refuses what would not fit into an answer when it is read back.
fn fits(entity: &EntityMeta, images: &[&str]) -> String {
    let length = images.iter().map(|image| format!("LENGTH({image})")).collect::<Vec<_>>().join(" + ");
    let why = format!("a row of {} is too large to be recorded (max_allowed_packet)", entity.name);
    // A text that is too large for the server is NULL.
    format!("IF COALESCE({length} > @@max_allowed_packet - {ROOM}, TRUE) THEN {} END IF;", refuse(&why))
}

fn record(entity: &EntityMeta, operation: &str, before: &str, after: &str) -> String {
    let name = literal(entity.name);
    format!("INSERT INTO tidewire_outbox ({COLUMNS}) VALUES ({VALUES}, {name}, '{operation}', {before}, {after});")
}

const TEXT: &str = "LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin";

/// Whether the key differs between `OLD` and `NEW`.
fn key_differs(entity: &EntityMeta) -> String {
    let parts = entity.key_columns().map(|column| {
        let name = identifier(column.name);
        format!("NOT BINARY OLD.{name} <=> BINARY NEW.{name}")
    });
    parts.collect::<Vec<_>>().join(" OR ")
}

/// The triggers that a database should have.
///
/// # Errors
/// [`ErrorKind::Setup`] naming a table without transactions, or foreign keys whose effects cannot be recorded.
pub(super) fn wanted(layout: &Layout, catalog: &Catalog, capture: Capture) -> Result<Vec<Wanted>> {
    if let Some(entity) = catalog.entities().iter().find(|entity| !layout.is_transactional(entity.name)) {
        let problem = format!(
            "{} is not a table of InnoDB: what another engine has written stays though the transaction is rolled back. \
             `ALTER TABLE … ENGINE = InnoDB` changes that",
            entity.name
        );
        return Err(Error::new(ErrorKind::Setup, problem));
    }
    if capture == Capture::Triggers && !layout.sequences.is_empty() {
        let problem = format!(
            "the database has sequences ({}): a transaction that calls NEXTVAL would come in two, since the server logs that at once. Use \
             AUTO_INCREMENT instead, or capture by hooks or log",
            layout.sequences.join(", ")
        );
        return Err(Error::new(ErrorKind::Setup, problem));
    }
    let cascades = cascade::Cascades::new(layout, catalog, capture)?;
    let mut wanted = Vec::new();
    let mut add = |table: &str, moment: &'static str, body: String| {
        let tail = data_encoding::HEXLOWER.encode(&Sha256::digest(table.as_bytes())[..4]);
        let cut: String = table.chars().take(30).collect();
        let initials: String = moment.split(' ').filter_map(|word| word.chars().next()).collect();
        let name = format!("{PREFIX}{cut}_{tail}_{}", initials.to_ascii_lowercase());
        wanted.push(Wanted { name, table: table.to_owned(), moment, body });
    };
    let body = |text: String| format!("BEGIN DECLARE tidewire_n BIGINT; DECLARE was, is_now {TEXT}; {text} END");
    // The log tells all but what foreign keys do.
    let by_log = capture == Capture::Log;
    let enter = || if by_log { refuse_unlogged() } else { enter() };
    for entity in catalog.entities().iter().filter(|_| !by_log) {
        let (old, new) = (image(layout, entity, &of("OLD")), image(layout, entity, &of("NEW")));
        let insert = format!(
            "SET is_now = {new}; {} {} {}",
            fits(entity, &["is_now"]),
            enter(),
            record(entity, "insert", "NULL", "is_now")
        );
        add(entity.name, "AFTER INSERT", body(insert));
        let delete = format!(
            "SET was = {old}; {} {} {}",
            fits(entity, &["was"]),
            enter(),
            record(entity, "delete", "was", "NULL")
        );
        add(entity.name, "AFTER DELETE", body(delete));
        let update = format!(
            "SET was = {old}, is_now = {new};
             IF NOT was <=> is_now OR was IS NULL THEN {} {} IF {} THEN {} {} ELSE {} END IF; {} END IF;",
            fits(entity, &["was", "is_now"]),
            enter(),
            key_differs(entity),
            record(entity, "delete", "was", "NULL"),
            record(entity, "insert", "NULL", "is_now"),
            record(entity, "update", "was", "is_now"),
            cascades.after_update(entity.name),
        );
        add(entity.name, "AFTER UPDATE", body(update));
    }
    for table in cascades.parents() {
        let text = cascades.before_delete(table);
        if !text.is_empty() {
            add(table, "BEFORE DELETE", body(format!("{} {text}", enter())));
        }
        if by_log || catalog.find(table).is_none() {
            let text = cascades.after_update(table);
            if !text.is_empty() {
                add(table, "AFTER UPDATE", body(format!("{} {text}", enter())));
            }
        }
    }
    Ok(wanted)
}

/// Whether a trigger is in place and in its place.
fn is_there(layout: &Layout, wanted: &Wanted) -> bool {
    let others = || {
        layout
            .triggers
            .iter()
            .filter(|found| found.table == wanted.table && found.moment == wanted.moment && found.name != wanted.name)
    };
    layout.triggers.iter().any(|found| {
        found.name == wanted.name
            && found.body == wanted.body
            && others().all(|other| (other.order < found.order) == wanted.comes_last())
    })
}

/// Installs the triggers that a capture needs, or brings them up to date, and removes those of their tables that are not wanted any more.
///
/// # Errors
/// [`ErrorKind::Setup`] naming tables that another program has recorded, which knows more entities than this one.
pub(super) async fn install(conn: &mut MySqlConnection, catalog: &Catalog, capture: Capture) -> Result<()> {
    let layout = Layout::read(&mut *conn).await?;
    let all = wanted(&layout, catalog, capture)?;
    let is_known = |table: &str| catalog.find(table).is_some() || all.iter().any(|trigger| trigger.table == table);
    let strange: BTreeSet<&str> = layout
        .triggers
        .iter()
        .filter(|found| found.is_ours() && !is_known(&found.table))
        .map(|found| found.table.as_str())
        .collect();
    if !strange.is_empty() {
        let problem = format!(
            "{} recorded too, which no registered entity needs: another program may. Register all entities that are synced, or remove capture \
             first (`tidewire capture remove`, or `Recorder::remove_capture`)",
            match strange.len() {
                1 => format!("the table {} is", strange.into_iter().collect::<String>()),
                _ => format!("the tables {} are", strange.into_iter().collect::<Vec<_>>().join(", ")),
            }
        );
        return Err(Error::new(ErrorKind::Setup, problem));
    }
    for trigger in all.iter().filter(|trigger| !is_there(&layout, trigger)) {
        let mut others = layout.triggers.iter().filter(|found| {
            found.table == trigger.table && found.moment == trigger.moment && found.name != trigger.name
        });
        let place = if trigger.comes_last() {
            others.next_back().map(|other| format!("FOLLOWS {}", identifier(&other.name)))
        } else {
            others.next().map(|other| format!("PRECEDES {}", identifier(&other.name)))
        };
        let text = format!(
            "CREATE OR REPLACE TRIGGER {} {} ON {} FOR EACH ROW {} {}",
            identifier(&trigger.name),
            trigger.moment,
            identifier(&trigger.table),
            place.unwrap_or_default(),
            trigger.body,
        );
        conn.execute(sqlx::raw_sql(AssertSqlSafe(text))).await.map_err(database_error)?;
    }
    let kept = |name: &str| all.iter().any(|trigger| trigger.name == name);
    drop_triggers(
        conn,
        layout.triggers.iter().filter(|found| found.is_ours() && !kept(&found.name)).map(|found| &found.name),
    )
    .await
}

/// Removes all triggers.
pub(super) async fn remove(conn: &mut MySqlConnection) -> Result<()> {
    let layout = Layout::read(&mut *conn).await?;
    drop_triggers(conn, layout.triggers.iter().filter(|found| found.is_ours()).map(|found| &found.name)).await
}

async fn drop_triggers(conn: &mut MySqlConnection, names: impl Iterator<Item = &String>) -> Result<()> {
    for name in names {
        let text = format!("DROP TRIGGER IF EXISTS {}", identifier(name));
        conn.execute(sqlx::raw_sql(AssertSqlSafe(text))).await.map_err(database_error)?;
    }
    Ok(())
}

/// Looks whether the triggers are in place and up to date.
///
/// # Errors
/// [`ErrorKind::Setup`] naming the tables whose triggers are not.
pub(super) fn check(layout: &Layout, catalog: &Catalog, capture: Capture) -> Result<()> {
    let mut drifted: Vec<String> = Vec::new();
    for trigger in wanted(layout, catalog, capture)?.into_iter().filter(|trigger| !is_there(layout, trigger)) {
        if drifted.last() != Some(&trigger.table) {
            drifted.push(trigger.table);
        }
    }
    if drifted.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Setup,
        format!(
            "the triggers that record {} are missing or out of date, or come after another. `tidewire capture install` puts them in \
             place, or `Recorder::install_capture` from a program",
            drifted.join(", ")
        ),
    ))
}
