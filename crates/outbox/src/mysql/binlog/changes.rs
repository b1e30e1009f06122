//! From the events of the log to the rows of the outbox.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use chrono::{DateTime, Utc};

use super::{
    events::{Event, Gtid, Input, Query, Rows, RowsKind, TableMap, damaged},
    place::Place,
    statement::{Meaning, meaning},
    table::{Charsets, Effect, Own, Table, take_change},
};
use crate::{
    change::Operation,
    context::Context,
    error::{Error, ErrorKind, Result},
    registry::Catalog,
};

/// How many tables are remembered: the server numbers them anew each time that it opens one.
const MAX_TABLES: usize = 10_000;

/// In whose name a transaction writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) actor: Arc<str>,
    pub(super) origin: Option<Arc<str>>,
    pub(super) mutation: Option<Arc<str>>,
}

impl Told {
    fn of(context: &Context) -> Self {
        Self {
            actor: context.actor.as_str().into(),
            origin: context.origin.as_ref().map(|origin| origin.as_str().into()),
            mutation: context.mutation_id.as_ref().map(|id| id.as_str().into()),
        }
    }
}

/// The name of a transaction of the log in the outbox: where it begins, and its number.
pub(super) type Tx = [u8; 16];

/// A row for the outbox.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) tx: Tx,
    pub(super) entity: Arc<str>,
    pub(super) operation: Operation,
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
    pub(super) told: Arc<Told>,
    pub(super) at: DateTime<Utc>,
}

impl Line {
    /// The bytes of its images.
    pub(super) fn size(&self) -> usize {
        self.before.as_ref().map_or(0, String::len) + self.after.as_ref().map_or(0, String::len)
    }
}

/// What an event was besides rows.
#[derive(Debug)]
pub(super) enum Notice {
    /// A table of the log lacks columns that its entity has. Either they were added later, or they are there no more.
    Lacks { table: &'static str, columns: Vec<&'static str> },
    /// A column of a table cannot be read. Either it could not be when it was written, or it cannot be now.
    Unreadable(Error),
    /// A table has another definition.
    Altered,
    /// Rows of synced tables were changed, and nothing tells how: why not.
    Untold(String),
    /// The last so many rows of a transaction, which have been handed on, were rolled back.
    Undone { tx: Tx, rows: usize },
}

/// A table that the log tells of.
#[derive(Debug)]
enum Known {
    Entity(Table),
    /// In whose name a transaction writes from here on.
    Told(Own),
    /// What foreign keys have done by themselves.
    Followed(Own),
    /// Nothing but a place in the log.
    Mark,
    /// The log does not name its columns.
    Unnamed(&'static str),
    Other,
}

/// Turns events into rows. One lives as long as one stream: tables are numbered anew with each start of the server.
#[derive(Debug)]
pub(super) struct Changes {
    catalog: Arc<Catalog>,
    database: String,
    charsets: Charsets,
    /// By number, with what the log says of each.
    tables: HashMap<u64, (Box<[u8]>, Known)>,
    default: Arc<Told>,
    open: Option<Open>,
    pub(super) rows: Vec<Line>,
    /// The bytes of their images.
    pub(super) bytes: usize,
    /// Rows of `tidewire_followed` that have been read.
    pub(super) followed: Vec<u64>,
    /// Transactions of XA that have been prepared and wait for their end, and whether they have changed synced rows.
    pub(super) prepared: Vec<(String, bool)>,
    /// Whether the transaction that ended last had something for the outbox, or a mark.
    pub(super) concerns: bool,
}

/// The transaction that is being read.
#[derive(Debug)]
struct Open {
    tx: Tx,
    stands_alone: bool,
    at: DateTime<Utc>,
    told: Arc<Told>,
    /// How many rows it has so far.
    rows: usize,
    savepoints: Vec<(String, usize, Arc<Told>)>,
    /// How many rows of `tidewire_followed` had been read before.
    followed: usize,
    xa: String,
}

impl Changes {
    pub(super) fn new(
        catalog: Arc<Catalog>,
        database: String,
        charsets: Charsets,
        prepared: Vec<(String, bool)>,
    ) -> Self {
        Self {
            catalog,
            database,
            charsets,
            tables: HashMap::new(),
            default: Arc::new(Told::of(&Context::default())),
            open: None,
            rows: Vec::new(),
            bytes: 0,
            followed: Vec::new(),
            prepared,
            concerns: false,
        }
    }

    /// Whether a transaction has begun and not ended yet.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// A transaction begins. `seconds` are counted from 1970.
    pub(super) fn begin(&mut self, gtid: Gtid, place: Place, seconds: u32) -> DateTime<Utc> {
        let mut tx = Tx::default();
        tx[..8].copy_from_slice(&place.number().to_be_bytes());
        tx[8..].copy_from_slice(&gtid.sequence.to_be_bytes());
        let at = DateTime::from_timestamp(seconds.into(), 0).unwrap_or_default();
        self.open = Some(Open {
            tx,
            stands_alone: gtid.stands_alone,
            at,
            told: Arc::clone(&self.default),
            rows: 0,
            savepoints: Vec::new(),
            followed: self.followed.len(),
            xa: String::new(),
        });
        self.concerns = false;
        if self.tables.len() > MAX_TABLES {
            self.tables.clear();
        }
        at
    }

    /// Reads an event of the transaction that is open; answers whether it has ended with it, and what else there is to say.
    pub(super) fn read(&mut self, event: &Event<'_>) -> Result<(bool, Option<Notice>)> {
        let (ended, notice) = match event {
            Event::TableMap { id, body } => (false, self.map(*id, body)?),
            Event::Rows(rows) => (false, self.rows_of(rows)?),
            Event::Xid => (true, None),
            Event::Query(query) | Event::Load(query) => self.query(query)?,
            Event::XaPrepare => (true, self.prepare()?),
            Event::Unknown => {
                (false, Some(Notice::Untold("the server is newer than what its log is read with".into())))
            }
            Event::Gtid(_) | Event::Rotate { .. } | Event::Incident | Event::Other => (false, None),
        };
        let stands_alone = self.open.as_ref().is_some_and(|open| open.stands_alone);
        let ended = ended || stands_alone && matches!(event, Event::Query(_));
        if ended {
            self.open = None;
        }
        Ok((ended, notice))
    }

    fn open(&mut self) -> Result<&mut Open> {
        self.open.as_mut().ok_or_else(damaged)
    }

    fn map(&mut self, id: u64, body: &[u8]) -> Result<Option<Notice>> {
        let known = match self.tables.entry(id) {
            Entry::Occupied(known) if *known.get().0 == *body => return Ok(None),
            Entry::Occupied(known) => {
                known.remove();
                self.tables.entry(id)
            }
            vacant => vacant,
        };
        let map = TableMap::read(body)?;
        let mut notice = None;
        let table = match std::str::from_utf8(map.table) {
            Ok(name) if map.database == self.database.as_bytes() => match (name, self.catalog.find(name)) {
                (_, Some(entity)) => {
                    let columns = map.columns()?;
                    if columns.iter().all(|column| column.name.is_empty()) {
                        Known::Unnamed(entity.name)
                    } else {
                        match Table::new(entity, &columns, &self.charsets) {
                            Ok(table) => {
                                if !table.lacks.is_empty() {
                                    notice = Some(Notice::Lacks { table: table.name, columns: table.lacks.clone() });
                                }
                                Known::Entity(table)
                            }
                            Err(error) => return Ok(Some(Notice::Unreadable(error))),
                        }
                    }
                }
                ("tidewire_told", _) => Known::Told(Own::new("tidewire_told", &map.columns()?)),
                ("tidewire_followed", _) => Known::Followed(Own::new("tidewire_followed", &map.columns()?)),
                ("tidewire_mark", _) => Known::Mark,
                _ => Known::Other,
            },
            _ => Known::Other,
        };
        known.insert_entry((body.into(), table));
        Ok(notice)
    }

    fn rows_of(&mut self, rows: &Rows<'_>) -> Result<Option<Notice>> {
        // Taken out while the rows are pushed.
        let Some((body, known)) = self.tables.remove(&rows.table) else {
            // The end of a statement's rows has no table.
            return Ok(None);
        };
        let pushed = self.push_rows(rows, &known);
        self.tables.insert(rows.table, (body, known));
        match pushed {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                Ok(Some(Notice::Untold("a row was written in a form that is not known here".into())))
            }
            pushed => pushed,
        }
    }

    /// Why rows cannot be read, if they cannot: the log does not say all of them.
    fn unsaid(rows: &Rows<'_>, table: &str, width: usize) -> Option<Notice> {
        let whole = |bits: &super::events::Bits<'_>| bits.len() == width && bits.are_all_set();
        (!rows.present.iter().all(whole))
            .then(|| Notice::Untold(format!("{table} was written while `binlog_row_image` was not FULL")))
    }

    fn unnamed(table: &str) -> Option<Notice> {
        Some(Notice::Untold(format!("{table} was written while `binlog_row_metadata` was not FULL")))
    }

    fn push_rows(&mut self, rows: &Rows<'_>, known: &Known) -> Result<Option<Notice>> {
        let mut input = Input(&rows.rows);
        match known {
            Known::Other => return Ok(None),
            Known::Mark => self.concerns = true,
            Known::Unnamed(table) => return Ok(Self::unnamed(table)),
            // What is removed there says nothing.
            Known::Told(_) | Known::Followed(_) if rows.kind == RowsKind::Delete => {}
            Known::Told(own) | Known::Followed(own) if !own.is_named() => return Ok(Self::unnamed(own.table)),
            Known::Told(own) => {
                if let Some(notice) = Self::unsaid(rows, own.table, own.types.len()) {
                    return Ok(Some(notice));
                }
                while !input.is_empty() {
                    let Some(row) = take_change(rows.kind, &own.types, &mut input)?.after else { continue };
                    let told = Told {
                        actor: own.text(&row, "actor")?.ok_or_else(damaged)?.into(),
                        origin: own.text(&row, "origin")?.map(Into::into),
                        mutation: own.text(&row, "mutation_id")?.map(Into::into),
                    };
                    self.open()?.told = Arc::new(told);
                }
            }
            Known::Followed(own) => {
                if let Some(notice) = Self::unsaid(rows, own.table, own.types.len()) {
                    return Ok(Some(notice));
                }
                while !input.is_empty() {
                    let written = take_change(rows.kind, &own.types, &mut input)?;
                    let (None, Some(row)) = (written.before, written.after) else { continue };
                    let text = |name| own.text(&row, name);
                    let operation = text("operation")?.ok_or_else(damaged)?.parse()?;
                    let image = |name| Ok::<_, Error>(text(name)?.map(str::to_owned));
                    let entity = text("entity")?.ok_or_else(damaged)?;
                    self.push(entity.into(), operation, image("before")?, image("after")?)?;
                    self.followed.push(own.number(&row, "id")?);
                }
            }
            Known::Entity(table) => {
                if let Some(notice) = Self::unsaid(rows, table.name, table.types.len()) {
                    return Ok(Some(notice));
                }
                while !input.is_empty() {
                    let written = take_change(rows.kind, &table.types, &mut input)?;
                    match (written.before, written.after) {
                        (Some(before), Some(after)) => match table.effect(&before, &after) {
                            Effect::Nothing => {}
                            effect => {
                                let (before, after) = (table.image(&before)?, table.image(&after)?);
                                self.push_update(table.name, before, after, effect == Effect::Moved)?;
                            }
                        },
                        (before, after) => {
                            let operation = if before.is_some() { Operation::Delete } else { Operation::Insert };
                            let image = |row: Option<_>| row.map(|row| table.image(&row)).transpose();
                            self.push(table.name.into(), operation, image(before)?, image(after)?)?;
                        }
                    }
                }
            }
        }
        Ok(None)
    }

    fn push_update(&mut self, entity: &str, before: String, after: String, is_moved: bool) -> Result<()> {
        if is_moved {
            self.push(entity.into(), Operation::Delete, Some(before), None)?;
            self.push(entity.into(), Operation::Insert, None, Some(after))
        } else {
            self.push(entity.into(), Operation::Update, Some(before), Some(after))
        }
    }

    fn push(
        &mut self,
        entity: Arc<str>,
        operation: Operation,
        before: Option<String>,
        after: Option<String>,
    ) -> Result<()> {
        let open = self.open.as_mut().ok_or_else(damaged)?;
        open.rows += 1;
        let line = Line { tx: open.tx, entity, operation, before, after, told: Arc::clone(&open.told), at: open.at };
        self.bytes += line.size();
        self.rows.push(line);
        self.concerns = true;
        Ok(())
    }

    fn is_ours(&self, query: &Query<'_>) -> bool {
        query.database == self.database.as_bytes()
    }

    fn query(&mut self, query: &Query<'_>) -> Result<(bool, Option<Notice>)> {
        let text = String::from_utf8_lossy(&query.text);
        Ok(match meaning(&text, self.is_ours(query), &self.database, &self.catalog) {
            Meaning::Nothing => (false, None),
            Meaning::Commit => (true, None),
            Meaning::Rollback => (true, self.undo(0)?),
            Meaning::Savepoint(name) => {
                let open = self.open()?;
                open.savepoints.push((name, open.rows, Arc::clone(&open.told)));
                (false, None)
            }
            Meaning::RollbackTo(name) => {
                let open = self.open()?;
                let Some(place) = open.savepoints.iter().rposition(|(other, ..)| *other == name) else {
                    let why = "a transaction was rolled back to a savepoint that the log does not tell";
                    return Ok((false, Some(Notice::Untold(why.to_owned()))));
                };
                open.savepoints.truncate(place + 1);
                let (_, rows, told) = open.savepoints[place].clone();
                open.told = told;
                (false, self.undo(rows)?)
            }
            Meaning::XaEnd(xid) => {
                self.open()?.xa = xid;
                (false, None)
            }
            Meaning::XaCommit(xid) => {
                // One that is not known was prepared before the log was read, and may have changed anything.
                let was = self.forget_prepared(&xid) != Some(false);
                self.concerns |= was;
                let why = "a transaction of XA was committed, and its changes lie back in the log";
                (true, was.then(|| Notice::Untold(why.to_owned())))
            }
            Meaning::XaRollback(xid) => {
                self.forget_prepared(&xid);
                (true, None)
            }
            Meaning::Altered => (false, Some(Notice::Altered)),
            Meaning::Untold(why) => (false, Some(Notice::Untold(why))),
        })
    }

    /// Nothing of a transaction that is only prepared is to be told; that it is there is remembered.
    fn prepare(&mut self) -> Result<Option<Notice>> {
        let open = self.open()?;
        let (xid, is_ours) = (std::mem::take(&mut open.xa), open.rows > 0);
        self.prepared.push((xid, is_ours));
        self.abandon()
    }

    /// Whether a transaction that was prepared has changed synced rows; none where that is not known.
    fn forget_prepared(&mut self, xid: &str) -> Option<bool> {
        let place = self.prepared.iter().position(|(other, _)| other == xid)?;
        Some(self.prepared.remove(place).1)
    }

    /// Takes back all of the transaction that is open: it has not been committed.
    pub(super) fn abandon(&mut self) -> Result<Option<Notice>> {
        let followed = self.open()?.followed;
        // They are locked until it ends, or were never there.
        self.followed.truncate(followed);
        let undone = self.undo(0);
        self.open = None;
        undone
    }

    /// Takes back the rows of the open transaction behind its first so many.
    fn undo(&mut self, kept: usize) -> Result<Option<Notice>> {
        let open = self.open.as_mut().ok_or_else(damaged)?;
        let surplus = open.rows.saturating_sub(kept);
        open.rows = kept.min(open.rows);
        let tx = open.tx;
        let here = self.rows.iter().rev().take(surplus).take_while(|line| line.tx == tx).count();
        self.rows.truncate(self.rows.len() - here);
        self.bytes = self.rows.iter().map(Line::size).sum();
        Ok((surplus > here).then(|| Notice::Undone { tx, rows: surplus - here }))
    }

    /// Forgets the rows that have been read: they are of a history that ends here.
    pub(super) fn forget(&mut self) {
        self.rows.clear();
        self.bytes = 0;
        if let Some(open) = &mut self.open {
            open.rows = 0;
            open.savepoints.iter_mut().for_each(|(_, rows, _)| *rows = 0);
        }
        self.concerns = true;
    }
}
