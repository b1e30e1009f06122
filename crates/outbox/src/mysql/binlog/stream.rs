//! The stream of the log from the server into the outbox.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use futures_util::{FutureExt, StreamExt};
use mysql_async::{
    BinlogStream,
    binlog::events::{BinlogEventHeader, Event as BinlogEvent},
};
use tokio::time::{timeout, timeout_at};

use super::{
    append::Appender,
    changes::{Changes, Notice},
    connect::{open, stream_error},
    events::{self, Event},
    place::{Place, Position},
    server,
};
use crate::{
    error::{Error, ErrorKind, Result},
    mysql::{Mysql, database_error},
};

/// How much is appended in one statement, in rows and in bytes of images; and how many transactions in one of ours.
const MAX_ROWS: usize = 2_000;
const MAX_BYTES: usize = 4 << 20;
const MAX_TRANSACTIONS: usize = 2_000;

/// How soon after one append the next may come. What is written all the while is appended together then, which costs the server a fraction; what is written
/// alone is appended at once.
const PACE: Duration = Duration::from_millis(5);

/// How far the log may grow without a change of ours before its place is noted all the same. Our own appending makes it grow too.
const IDLE_BYTES: u64 = 256 << 10;

/// How long the server's silence is borne.
const SILENCE: Duration = Duration::from_secs(15);

/// How often the server is asked, while nothing comes, whether its log is still the same: one that was begun anew is not told to who reads the old one.
const LOOK: Duration = Duration::from_secs(2);

/// The flag of an event that says nothing to who does not know it.
const IGNORABLE: u16 = 0x80;

/// The server's number for "I cannot send you that": mostly because the log does not have it any more.
const CANNOT_SEND: u16 = 1236;

/// Why a stream has ended.
pub(super) enum Stopped {
    /// The server does not have the place any more.
    Lost(String),
    Failed(Error),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The type of an event that names a file.
const ROTATE: u8 = 4;

/// The stream begins with an event that tells the file's name, before the client knows whether events have checksums behind them.
fn without_checksum<'a>(header: &BinlogEventHeader, body: &'a [u8]) -> &'a [u8] {
    let is_name = header.event_type_raw() == ROTATE && header.log_pos() == 0;
    let Some((rest, checksum)) = body.split_last_chunk::<4>().filter(|_| is_name) else { return body };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header.timestamp().to_le_bytes());
    hasher.update(&[header.event_type_raw()]);
    hasher.update(&header.server_id().to_le_bytes());
    hasher.update(&header.event_size().to_le_bytes());
    hasher.update(&header.log_pos().to_le_bytes());
    hasher.update(&header.flags_raw().to_le_bytes());
    hasher.update(rest);
    if hasher.finalize() == u32::from_le_bytes(*checksum) { rest } else { body }
}

/// One stream of the log into the outbox.
pub(super) struct Stream<'a> {
    database: &'a Mysql,
    events: BinlogStream,
    changes: Changes,
    appender: Appender<'a>,
    position: Position,
    /// How far the outbox says that it has been read.
    noted: u64,
    /// When what was read last was committed.
    at: Option<DateTime<Utc>>,
    /// How many have been read and not appended yet.
    transactions: usize,
    /// When something was last appended.
    finished: tokio::time::Instant,
    /// The id of the transaction that is being read: domain, server, number.
    reading: (u32, u32, u64),
    /// Whether there was one.
    began: bool,
    /// Where the log ended when the stream was opened, until that has been read.
    target: Option<Place>,
    /// When it was last looked whether the server's log is still the same, and where that had been read to.
    looked: (Instant, Place),
}

impl<'a> Stream<'a> {
    pub(super) async fn open(
        database: &'a Mysql,
        mut appender: Appender<'a>,
        position: Position,
        prepared: Vec<(String, bool)>,
    ) -> Result<Self> {
        let conn = appender.connection();
        let charsets = server::charsets(conn).await?;
        let name = sqlx::query_scalar("SELECT DATABASE()").fetch_one(&mut *conn).await.map_err(database_error)?;
        let target = Some(server::end(conn).await?.1);
        let events = open(database, conn, &position).await?;
        let changes = Changes::new(database.catalog.clone(), name, charsets, prepared);
        let noted = position.place.number();
        let looked = (Instant::now(), position.place);
        Ok(Self {
            database,
            events,
            changes,
            appender,
            position,
            noted,
            at: None,
            transactions: 0,
            finished: tokio::time::Instant::now(),
            reading: (0, 0, 0),
            began: false,
            target,
            looked,
        })
    }

    /// Reads until something fails.
    pub(super) async fn run(mut self) -> Stopped {
        loop {
            let read = match self.next().await {
                Ok(read) => read,
                Err(stopped) => return stopped,
            };
            let event = match read {
                Some(Ok(event)) => event,
                Some(Err(mysql_async::Error::Server(refusal))) if refusal.code == CANNOT_SEND => {
                    return self.refused(refusal.message);
                }
                Some(Err(error)) => return stream_error(error).into(),
                None => {
                    return Error::new(ErrorKind::Unavailable, "the server ended the stream of its binary log").into();
                }
            };
            let header = event.header();
            if let Err(error) = self.take(header, event.data()).await {
                return error.into();
            }
        }
    }

    /// The next event. What is there already goes into one transaction of ours, and so does what comes soon.
    async fn next(&mut self) -> Result<Option<Result<BinlogEvent, mysql_async::Error>>, Stopped> {
        if let Some(read) = self.events.next().now_or_never() {
            return Ok(read);
        }
        if self.transactions > 0
            && let Ok(read) = timeout_at(self.finished + PACE, self.events.next()).await
        {
            return Ok(read);
        }
        if !self.rest().await? {
            return Err(Stopped::Lost("the server's binary log was begun anew".to_owned()));
        }
        timeout(SILENCE, self.events.next()).await.map_err(|_| {
            let silent = "the server says nothing any more, though its binary log is open";
            Error::new(ErrorKind::Unavailable, silent).into()
        })
    }

    /// The server cannot go on. In the middle of a transaction that may pass, the first time.
    fn refused(&self, why: String) -> Stopped {
        let before = self.database.binlog.refused.swap(self.noted, Ordering::Relaxed);
        match self.began && before != self.noted {
            true => Error::new(ErrorKind::Database, format!("the binary log could not be streamed: {why}")).into(),
            false => Stopped::Lost(why),
        }
    }

    /// Nothing more is there at the moment. Answers whether the log is still the same.
    async fn rest(&mut self) -> Result<bool> {
        if self.changes.is_open() {
            return Ok(true);
        }
        let place = self.position.place.number();
        // Once it is noted that all of the log could be read.
        let is_first = self.target.take_if(|target| *target <= self.position.place).is_some();
        if self.transactions > 0 || place > self.noted + IDLE_BYTES || is_first {
            self.finish().await?;
        } else {
            // None of it concerned us, so the outbox has all of it.
            self.database.binlog.appended.send_if_modified(|appended| std::mem::replace(appended, place) != place);
        }
        if self.looked.0.elapsed() < LOOK {
            return Ok(true);
        }
        let (_, before) = std::mem::replace(&mut self.looked, (Instant::now(), self.position.place));
        // What goes on is the same. Besides, the server sends what it is about to commit, and says only then that its log ends behind it.
        Ok(before != self.position.place || server::end(self.appender.connection()).await?.1 >= before)
    }

    async fn take(&mut self, header: BinlogEventHeader, body: &[u8]) -> Result<()> {
        let event = match events::read(header.event_type_raw(), without_checksum(&header, body))? {
            Event::Unknown if header.flags_raw() & IGNORABLE != 0 => Event::Other,
            event => event,
        };
        // A file that a crash has cut off ends in the middle of a transaction that was never committed.
        if self.changes.is_open()
            && matches!(event, Event::Rotate { .. } | Event::Gtid(_))
            && let Some(notice) = self.changes.abandon()?
        {
            self.heed(notice).await?;
        }
        if let Event::Rotate { file, position } = event {
            return self.position.rotate(file, position);
        }
        if let Event::Incident = event {
            self.transactions += 1;
            return self.heed(Notice::Untold("the server says that its log lacks something".into())).await;
        }
        if let Event::Gtid(gtid) = event {
            self.began = true;
            let place = self.position.advance(header.log_pos())?;
            self.at = Some(self.changes.begin(gtid, place, header.timestamp()));
            self.reading = (gtid.domain, header.server_id(), gtid.sequence);
            return Ok(());
        }
        if !self.changes.is_open() {
            // What stands between transactions: what a file begins with comes again with each stream, and what the server makes up has no place.
            return self.position.advance_to(header.log_pos());
        }
        self.position.advance(header.log_pos())?;
        let (ended, notice) = self.changes.read(&event)?;
        if let Some(notice) = notice {
            self.heed(notice).await?;
        }
        if ended {
            let (domain, server, sequence) = self.reading;
            self.position.gtids.set(domain, server, sequence);
            self.transactions += usize::from(self.changes.concerns);
        }
        match self.is_full() {
            true if self.changes.is_open() => self.appender.add(&mut self.changes).await,
            true => self.finish().await,
            false => Ok(()),
        }
    }

    fn is_full(&self) -> bool {
        self.changes.rows.len() >= MAX_ROWS
            || self.changes.bytes >= MAX_BYTES
            || self.transactions >= MAX_TRANSACTIONS && !self.changes.is_open()
    }

    /// Appends what has been read, and tells those who wait for it.
    async fn finish(&mut self) -> Result<()> {
        let something = !self.changes.rows.is_empty() || self.appender.is_open();
        self.appender.finish(&mut self.changes, &self.position, self.at).await?;
        self.transactions = 0;
        self.finished = tokio::time::Instant::now();
        self.noted = self.position.place.number();
        self.database.binlog.appended.send_replace(self.noted);
        if something {
            self.database.doorbell.notify_one();
        }
        Ok(())
    }

    async fn heed(&mut self, notice: Notice) -> Result<()> {
        match notice {
            Notice::Undone { tx, rows } => self.appender.undo(tx, rows).await,
            Notice::Untold(why) => self.break_off(&why).await,
            Notice::Altered => self.require().await,
            Notice::Unreadable(error) => {
                self.require().await?;
                self.break_off(&format!("{error}; it can be read now")).await
            }
            Notice::Lacks { table, columns } => {
                // A column that was added later is missing in what was written before.
                let mut conn = self.database.pool.acquire().await.map_err(database_error)?;
                let now = server::columns(&mut conn, table).await?;
                let gone: Vec<_> =
                    columns.into_iter().filter(|column| !now.iter().any(|name| name == column)).collect();
                if gone.is_empty() {
                    return Ok(());
                }
                Err(Error::new(
                    ErrorKind::Setup,
                    format!(
                        "the table {table} has no column {} any more, which its entity has. Run the migrations, or generate the \
                         entities anew; until then the binary log is not read",
                        gone.join(", ")
                    ),
                ))
            }
        }
    }

    async fn break_off(&mut self, why: &str) -> Result<()> {
        tracing::error!(why, "the binary log does not tell all changes of synced rows: all who follow start over");
        // What was before it is of the history that ends.
        self.changes.forget();
        self.appender.break_off().await?;
        self.require().await
    }

    /// Whether what is written from now on can be read.
    async fn require(&self) -> Result<()> {
        let mut conn = self.database.pool.acquire().await.map_err(database_error)?;
        server::require(&mut conn, &self.database.catalog).await
    }
}
