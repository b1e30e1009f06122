//! What a relay carries, in bytes.
//!
//! ```text
//! part     version, epoch, token, number, part, parts, CRC-32 of all else, a piece of:
//! stretch  schema, previous, next, whether transactions follow, then for each: its cursor, its changes
//! ```
//!
//! Whoever sends may be of another version, serve other entities, or be another database's. So nothing is believed that was not checked, and
//! what cannot be read is not a failure: the database has it.

use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use sha2::{Digest, Sha256};

use crate::{
    change::{Change, Operation, Texts, Transaction},
    cursor::{Cursor, read_number, write_number},
    image::Image,
    registry::{Catalog, EntityId},
};

/// Changes with the form of what is sent, and of the cells in it.
const VERSION: u8 = 1;

/// A longer stretch is sent without its transactions: whoever needs them reads the database.
pub(super) const MAX_BYTES: usize = 16 << 20;

/// A stretch of the log: what happened between two cursors.
#[derive(Debug)]
pub(super) struct Stretch {
    /// What somebody has seen for whom these transactions come next.
    pub(super) previous: Cursor,
    /// What they have seen afterwards.
    pub(super) next: Cursor,
    /// None where they have to be read from the database.
    pub(super) transactions: Option<Vec<Arc<Transaction>>>,
    /// About how much memory that takes.
    pub(super) size: usize,
}

/// Says which part of what this is, and who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label {
    /// The history of the log that it is about.
    pub(super) epoch: u64,
    /// The sender's fencing token: of two senders the later has the greater.
    pub(super) token: u64,
    /// Counts the sender's stretches.
    pub(super) number: u64,
    pub(super) part: u32,
    pub(super) parts: u32,
}

/// The same for all processes that serve the same entities with the same columns, since rows travel without names.
pub(super) fn schema_of(catalog: &Catalog) -> u64 {
    let mut hash = Sha256::new();
    for entity in catalog.entities() {
        hash.update(format!("{:?}.{};", entity.schema, entity.name));
        for column in &entity.columns {
            hash.update(format!("{} {:?},", column.name, column.kind));
        }
    }
    u64::from_be_bytes(hash.finalize()[..8].try_into().expect("eight bytes of thirty-two"))
}

impl Label {
    pub(super) fn write(&self, piece: &[u8]) -> Bytes {
        let mut bytes = Vec::with_capacity(64 + piece.len());
        bytes.push(VERSION);
        for number in [self.epoch, self.token, self.number, self.part.into(), self.parts.into()] {
            write_number(number, &mut bytes);
        }
        let check = check(&bytes, piece);
        bytes.extend_from_slice(&check.to_be_bytes());
        bytes.extend_from_slice(piece);
        bytes.into()
    }

    /// With the piece that it stands before.
    pub(super) fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (version, mut rest) = bytes.split_first()?;
        let mut number = || read_number(&mut rest);
        let (epoch, token, place) = (number()?, number()?, number()?);
        let (part, parts) = (u32::try_from(number()?).ok()?, u32::try_from(number()?).ok()?);
        let label = &bytes[..bytes.len() - rest.len()];
        let (said, piece) = rest.split_first_chunk::<4>()?;
        let right = *version == VERSION && part < parts && check(label, piece) == u32::from_be_bytes(*said);
        right.then_some((Self { epoch, token, number: place, part, parts }, piece))
    }
}

/// Against accidents, not against malice.
fn check(label: &[u8], piece: &[u8]) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(label);
    hash.update(piece);
    hash.finalize()
}

impl Stretch {
    pub(super) fn new(previous: Cursor, next: Cursor, transactions: Vec<Arc<Transaction>>) -> Self {
        let size = transactions.iter().map(|transaction| transaction.size()).sum();
        Self { previous, next, transactions: Some(transactions), size }
    }

    pub(super) fn write(&self, schema: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.size);
        self.write_head(schema, &mut out);
        let transactions = self.transactions.as_deref().filter(|_| self.size <= MAX_BYTES).unwrap_or_default();
        let complete = self.transactions.as_ref().is_some_and(|all| all.len() == transactions.len());
        out.push(u8::from(complete));
        write_number(transactions.len() as u64, &mut out);
        let mut last: Option<&Cursor> = None;
        for transaction in transactions {
            // Most stand in the same window, which is told once.
            match last.and_then(|last| transaction.cursor.in_window_of(last)) {
                Some(seq) => {
                    out.push(1);
                    write_number(seq, &mut out);
                }
                None => {
                    out.push(0);
                    write_cursor(&transaction.cursor, &mut out);
                }
            }
            last = Some(&transaction.cursor);
            write_number(transaction.changes.len() as u64, &mut out);
            transaction.changes.iter().for_each(|change| write_change(change, &mut out));
        }
        out
    }

    fn write_head(&self, schema: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&schema.to_be_bytes());
        write_cursor(&self.previous, out);
        write_cursor(&self.next, out);
    }

    /// Reads what [`write`](Self::write) wrote, without the transactions where the entities are others.
    pub(super) fn read(mut bytes: &[u8], catalog: &Catalog, schema: u64) -> Option<Self> {
        let size = bytes.len();
        let bytes = &mut bytes;
        let (of, rest) = bytes.split_first_chunk::<8>()?;
        *bytes = rest;
        let (previous, next) = (read_cursor(bytes)?, read_cursor(bytes)?);
        let complete = take(bytes, 1)? == [1];
        if !complete || u64::from_be_bytes(*of) != schema {
            return Some(Self { previous, next, transactions: None, size: 0 });
        }
        let mut texts = Texts::default();
        let mut transactions: Vec<Arc<Transaction>> = Vec::new();
        for _ in 0..read_number(bytes)? {
            let cursor = match take(bytes, 1)? {
                [1] => transactions.last()?.cursor.in_window_at(read_number(bytes)?)?,
                _ => read_cursor(bytes)?,
            };
            let mut changes = Vec::new();
            for _ in 0..read_number(bytes)? {
                changes.push(read_change(bytes, catalog, &mut texts)?);
            }
            transactions.push(Arc::new(Transaction { cursor, changes: changes.into() }));
        }
        bytes.is_empty().then_some(Self { previous, next, transactions: Some(transactions), size })
    }
}

fn write_cursor(cursor: &Cursor, out: &mut Vec<u8>) {
    let mut bytes = Vec::new();
    cursor.write(&mut bytes);
    write_text(Some(&bytes), out);
}

fn read_cursor(bytes: &mut &[u8]) -> Option<Cursor> {
    Cursor::read(read_text(bytes)??)
}

fn write_change(change: &Change, out: &mut Vec<u8>) {
    write_number(change.seq, out);
    write_number(u64::from(change.entity.0), out);
    write_text(Some(change.operation.as_str().as_bytes()), out);
    for image in [&change.before, &change.after] {
        let cells = image.iter().flat_map(Image::cells);
        write_number(image.as_ref().map_or(0, |image| image.cells().len() as u64), out);
        cells.for_each(|cell| write_text(cell.map(str::as_bytes), out));
    }
    for text in [&change.actor, &change.origin, &change.mutation_id] {
        write_text(text.as_deref().map(str::as_bytes), out);
    }
    out.extend_from_slice(&change.at.timestamp_micros().to_be_bytes());
}

fn read_change(bytes: &mut &[u8], catalog: &Catalog, texts: &mut Texts) -> Option<Change> {
    let seq = read_number(bytes)?;
    let entity = catalog.entities().get(usize::try_from(read_number(bytes)?).ok()?)?;
    let operation: Operation = read_str(bytes)??.parse().ok()?;
    let mut image = || {
        let count = read_number(bytes)?;
        if count == 0 {
            return Some(None);
        }
        let cells = (0..entity.columns.len()).map(|_| read_str(bytes)).collect::<Option<Vec<_>>>()?;
        (count == cells.len() as u64).then(|| Some(Image::from_cells(cells)))
    };
    let (before, after) = (image()?, image()?);
    // What a change promises to those who look at it.
    if before.is_none() && after.is_none() {
        return None;
    }
    let mut text = || Some(texts.share(read_str(bytes)?));
    let (actor, origin, mutation_id) = (text()?, text()?, text()?);
    let at = i64::from_be_bytes(take(bytes, 8)?.try_into().ok()?);
    let at = DateTime::from_timestamp_micros(at)?;
    let id: EntityId = entity.id;
    Some(Change { seq, entity: id, operation, before, after, actor, origin, mutation_id, at })
}

/// One more than the length; 0 for none.
fn write_text(text: Option<&[u8]>, out: &mut Vec<u8>) {
    write_number(text.map_or(0, |text| text.len() as u64 + 1), out);
    out.extend_from_slice(text.unwrap_or_default());
}

fn read_text<'a>(bytes: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    match read_number(bytes)?.checked_sub(1) {
        Some(length) => Some(Some(take(bytes, usize::try_from(length).ok()?)?)),
        None => Some(None),
    }
}

fn read_str<'a>(bytes: &mut &'a [u8]) -> Option<Option<&'a str>> {
    match read_text(bytes)? {
        Some(text) => Some(Some(std::str::from_utf8(text).ok()?)),
        None => Some(None),
    }
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

/// Puts parts together.
///
/// Parts come in order or not at all. A stretch that lacks one is forgotten, and one from a sender that has been succeeded is not wanted.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    /// The sender and its number of the newest stretch that has begun.
    newest: Option<(u64, u64)>,
    /// How many parts of that one there are, and what they hold.
    open: Option<(u32, Vec<u8>)>,
}

impl Joiner {
    /// Takes a part; gives the whole once it is there.
    pub(super) fn take(&mut self, label: Label, piece: &[u8]) -> Option<Vec<u8>> {
        let of = (label.token, label.number);
        if label.part == 0 {
            if self.newest.is_some_and(|newest| of <= newest) {
                return None;
            }
            self.newest = Some(of);
            self.open = Some((0, Vec::new()));
        }
        let (parts, mut whole) = self.open.take()?;
        if self.newest != Some(of) || label.part != parts || whole.len() + piece.len() > 2 * MAX_BYTES {
            return None;
        }
        whole.extend_from_slice(piece);
        if parts + 1 == label.parts {
            return Some(whole);
        }
        self.open = Some((parts + 1, whole));
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_damaged_is_not_read() {
        let label = Label { epoch: u64::MAX, token: 7, number: 300, part: 1, parts: 2 };
        let sent = label.write(b"a piece");
        assert_eq!(Label::read(&sent), Some((label, &b"a piece"[..])));
        for at in 0..sent.len() {
            assert_eq!(Label::read(&sent[..at]), None, "cut at {at}");
            let mut other = sent.to_vec();
            other[at] ^= 1;
            assert_eq!(Label::read(&other), None, "changed at {at}");
        }
        assert_eq!(Label::read(&Label { part: 2, ..label }.write(b"")), None);
    }

    proptest! {
        /// Each of a few senders' stretches has up to three parts, of which any get lost or come twice, in order or after a successor's.
        #[test]
        fn only_whole_stretches_are_joined_and_in_order(
            sent in prop::collection::vec((1..4_u64, 1..4_u64, 0..3_u32), 0..60),
        ) {
            let mut joiner = Joiner::default();
            let mut newest = (0, 0);
            for (token, number, part) in sent {
                let parts = number as u32;
                if part >= parts {
                    continue;
                }
                let piece = |part: u32| format!("{token}-{number}-{part} ");
                let label = Label { epoch: 1, token, number, part, parts };
                if let Some(whole) = joiner.take(label, piece(part).as_bytes()) {
                    prop_assert_eq!(whole, (0..parts).map(piece).collect::<String>().into_bytes());
                    prop_assert!((token, number) > newest);
                    newest = (token, number);
                }
            }
        }
    }
}
