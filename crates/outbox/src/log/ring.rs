use std::{collections::VecDeque, sync::Arc};

use chrono::{DateTime, Utc};

use crate::{change::Transaction, cursor::Cursor};

/// The newest transactions, decoded once and kept for all who follow.
///
/// Bounded in bytes and in number; what falls out is still in the outbox. Places are counted from the start of the process and never reused,
/// so a follower's place is a number that stays right while the ring moves on.
#[derive(Debug)]
pub(super) struct Ring {
    entries: VecDeque<Arc<Transaction>>,
    /// The place of the first entry.
    first: u64,
    bytes: usize,
    max_bytes: usize,
    max_transactions: usize,
    /// Where a reader stands that has seen everything before the first entry.
    start: Cursor,
    /// Where a reader stands that has seen every entry.
    end: Cursor,
}

impl Ring {
    pub(super) fn new(at: Cursor, max_bytes: usize, max_transactions: usize) -> Self {
        Self { entries: VecDeque::new(), first: 0, bytes: 0, max_bytes, max_transactions, start: at.clone(), end: at }
    }

    /// Forgets everything and goes on from another cursor: the log was not continuous. No follower's place stays valid.
    pub(super) fn restart(&mut self, at: Cursor) {
        self.first = self.next_place() + 1;
        self.entries.clear();
        self.bytes = 0;
        self.start = at.clone();
        self.end = at;
    }

    pub(super) fn extend(&mut self, transactions: Vec<Arc<Transaction>>, end: Cursor) {
        for transaction in transactions {
            self.bytes += transaction.size();
            self.entries.push_back(transaction);
        }
        self.end = end;
        // The newest always stays, however large, so that those who keep up never have to go back to the table.
        while self.entries.len() > 1 && (self.bytes > self.max_bytes || self.entries.len() > self.max_transactions) {
            if let Some(oldest) = self.entries.pop_front() {
                self.bytes -= oldest.size();
                self.start = oldest.cursor.clone();
                self.first += 1;
            }
        }
    }

    /// The place that the next transaction will have.
    pub(super) fn next_place(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The place of the first transaction that the cursor's holder has not seen, if the ring reaches back that far.
    pub(super) fn place_after(&self, cursor: &Cursor) -> Option<u64> {
        if !cursor.is_number() || !self.end.is_number() {
            return self.place_of(cursor);
        }
        let reaches = cursor.covers(&self.start) && (self.end.covers(cursor));
        reaches
            .then(|| self.first + self.entries.partition_point(|transaction| cursor.covers(&transaction.cursor)) as u64)
    }

    /// The place after a cursor that this ring gave. What another node's cursor has seen of these transactions need not be the first so many
    /// of them, so such a reader comes here by way of the outbox.
    fn place_of(&self, cursor: &Cursor) -> Option<u64> {
        if *cursor == self.end {
            return Some(self.next_place());
        }
        if *cursor == self.start {
            return Some(self.first);
        }
        let index = self.entries.iter().rposition(|transaction| transaction.cursor == *cursor)?;
        Some(self.first + index as u64 + 1)
    }

    /// Up to `limit` transactions from a place on, or `None` where they have fallen out.
    pub(super) fn from(&self, place: u64, limit: usize) -> Option<Vec<Arc<Transaction>>> {
        let skip = usize::try_from(place.checked_sub(self.first)?).ok()?;
        (skip <= self.entries.len()).then(|| self.entries.iter().skip(skip).take(limit).cloned().collect())
    }

    pub(super) fn end(&self) -> &Cursor {
        &self.end
    }

    /// When the newest change was written.
    pub(super) fn newest_at(&self) -> Option<DateTime<Utc>> {
        Some(self.entries.back()?.changes.last()?.at)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
