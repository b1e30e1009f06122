//! What has come and has yet to be taken by the tail, and what the tail is to do.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::stretch::{Joiner, Label, Stretch};
use crate::{
    change::Transaction,
    cursor::{Cursor, Epoch},
    registry::Catalog,
};

/// How many stretches may wait; beats have no bytes to speak of.
const MAX_STRETCHES: usize = 4_096;

/// Stretches in the order in which they came. Bounded: what does not fit is forgotten, and read from the database.
#[derive(Debug)]
pub(super) struct Inbox {
    stretches: VecDeque<Stretch>,
    bytes: usize,
    max_bytes: usize,
    joiner: Joiner,
    /// The history that the tail is in. What is told of another is another database's, or of a past that the tail will find out about.
    epoch: Option<Epoch>,
    /// When somebody who reads the database said so.
    heard: Option<Instant>,
    patience: Duration,
    /// Where the tail is going, while it is on its way there by reading the database: a cursor, or as far as there is something.
    way: Option<Option<Cursor>>,
}

/// What the tail is to do.
#[derive(Debug)]
pub(super) enum Next {
    /// Take these, and stand at that cursor.
    Take(Vec<std::sync::Arc<Transaction>>, Cursor),
    /// There is nothing new.
    Nothing,
    /// Read the database, up to that cursor if there is one.
    Read { until: Option<Cursor>, fallback: bool },
}

impl Inbox {
    pub(super) fn new(max_bytes: usize, patience: Duration) -> Self {
        Self {
            stretches: VecDeque::new(),
            bytes: 0,
            max_bytes,
            joiner: Joiner::default(),
            epoch: None,
            heard: None,
            patience,
            way: None,
        }
    }

    /// Whether somebody reads the database for us, and we hear them.
    pub(super) fn is_live(&self) -> bool {
        self.heard.is_some_and(|heard| heard.elapsed() < self.patience)
    }

    /// How many have come and not been taken.
    pub(super) fn len(&self) -> usize {
        self.stretches.len()
    }

    /// Forgets what has come, and that anybody was heard.
    pub(super) fn clear(&mut self) {
        self.forget(self.stretches.len());
        self.heard = None;
    }

    fn forget(&mut self, count: usize) {
        for stretch in self.stretches.drain(..count) {
            self.bytes -= stretch.size;
        }
    }

    /// Takes what has come; answers whether the tail should look.
    pub(super) fn accept(&mut self, payload: &[u8], catalog: &Catalog, schema: u64) -> bool {
        let Some((label, piece)) = Label::read(payload) else {
            tracing::debug!("the relay carried something that is none of ours, or is of another version");
            return false;
        };
        if self.epoch.is_none_or(|epoch| epoch.0 != label.epoch) {
            tracing::debug!("the relay carried a stretch of another history of the log");
            return false;
        }
        let Some(whole) = self.joiner.take(label, piece) else { return false };
        let Some(stretch) = Stretch::read(&whole, catalog, schema) else { return false };
        self.push(stretch);
        true
    }

    fn push(&mut self, stretch: Stretch) {
        self.heard = Some(Instant::now());
        self.bytes += stretch.size;
        self.stretches.push_back(stretch);
        // What comes next will not continue what the tail has, and be found not to.
        while self.bytes > self.max_bytes || self.stretches.len() > MAX_STRETCHES {
            self.forget(1);
        }
    }

    /// What a tail that stands at a cursor is to do.
    pub(super) fn next(&mut self, at: &Cursor, fresh: bool) -> Next {
        let epoch = at.position().0;
        if self.epoch != epoch {
            self.epoch = epoch;
            self.joiner = Joiner::default();
            self.clear();
        }
        if fresh {
            return Next::Read { until: None, fallback: false };
        }
        if let Some(until) = &self.way {
            let until = until.clone().filter(|until| until.covers(at));
            return Next::Read { until, fallback: false };
        }
        while self.stretches.front().is_some_and(|stretch| stretch.next == *at || at.covers(&stretch.next)) {
            self.forget(1);
        }
        let Some(first) = self.stretches.front_mut() else {
            return if self.is_live() { Next::Nothing } else { Next::Read { until: None, fallback: false } };
        };
        if first.previous == *at
            && let Some(transactions) = first.transactions.take()
        {
            let next = first.next.clone();
            self.forget(1);
            return Next::Take(transactions, next);
        }
        // What is missing is read up to where what comes after it begins.
        let joint = self.stretches.iter().rfind(|stretch| stretch.next.is_moment() && stretch.next.covers(at));
        Next::Read { until: joint.map(|stretch| stretch.next.clone()), fallback: true }
    }

    /// The tail has read the database, up to a cursor or as far as there was something, when so many stretches had come.
    pub(super) fn has_read(&mut self, until: Option<Cursor>, reached_end: bool, had_come: usize) {
        if !reached_end {
            self.way = Some(until);
            return;
        }
        self.way = None;
        if until.is_none() {
            // Whoever sent these had read the database before.
            self.forget(had_come.min(self.stretches.len()));
        }
    }

    /// The tail starts over.
    pub(super) fn restart(&mut self) {
        self.way = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn at(seq: u64) -> Cursor {
        Cursor::through(Epoch(1), seq)
    }

    fn transaction(seq: u64) -> Arc<Transaction> {
        Arc::new(Transaction { cursor: at(seq), changes: Box::default() })
    }

    fn stretch(from: u64, to: u64) -> Stretch {
        Stretch::new(at(from), at(to), (from + 1..=to).map(transaction).collect())
    }

    /// What happens to a tail and its relay.
    #[derive(Debug, Clone)]
    enum Happening {
        /// So many transactions are committed.
        Committed(u64),
        /// The publisher reads and sends what it read. It gets lost, or comes so often.
        Sent { times: usize },
        /// Another publisher begins, or one that was succeeded sends once more, from so far back.
        SentFrom { back: u64 },
        /// The tail looks, and somebody may wait for it.
        Looks { fresh: bool },
        /// The tail looks, and the database fails.
        Fails,
        /// Nothing is heard for longer than the patience.
        Silence,
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            (1..4_u64).prop_map(Happening::Committed),
            (0..3_usize).prop_map(|times| Happening::Sent { times }),
            (0..6_u64).prop_map(|back| Happening::SentFrom { back }),
            any::<bool>().prop_map(|fresh| Happening::Looks { fresh }),
            Just(Happening::Fails),
            Just(Happening::Silence),
        ]
    }

    proptest! {
        /// Whatever is lost, repeated or late: the tail has every transaction once and in order, and has them all when it is told of them.
        #[test]
        fn a_tail_loses_and_repeats_nothing(happenings in prop::collection::vec(happening(), 1..80)) {
            let (mut committed, mut sent, mut tail) = (0_u64, 0_u64, 0_u64);
            let mut inbox = Inbox::new(1 << 20, Duration::from_secs(60));
            inbox.next(&at(0), false);
            for happening in happenings.into_iter().chain([Happening::Silence, Happening::Looks { fresh: false }]) {
                match happening {
                    Happening::Committed(count) => committed += count,
                    Happening::Sent { times } => {
                        (0..times).for_each(|_| inbox.push(stretch(sent, committed)));
                        sent = committed;
                    }
                    Happening::SentFrom { back } => {
                        inbox.push(stretch(sent.saturating_sub(back), sent));
                    }
                    Happening::Fails => drop(inbox.next(&at(tail), false)),
                    Happening::Silence => inbox.heard = None,
                    Happening::Looks { fresh } => loop {
                        let had_come = inbox.len();
                        match inbox.next(&at(tail), fresh) {
                            Next::Take(transactions, next) => {
                                for transaction in transactions {
                                    prop_assert_eq!(transaction.cursor.position().1, tail + 1);
                                    tail += 1;
                                }
                                prop_assert_eq!(next, at(tail));
                            }
                            Next::Nothing => {
                                prop_assert!(inbox.is_live() && !fresh);
                                break;
                            }
                            Next::Read { until, .. } => {
                                // Two at a time.
                                let end = until.as_ref().map_or(committed, |until| until.position().1);
                                prop_assert!(end >= tail, "the tail would go back");
                                tail = end.min(tail + 2);
                                inbox.has_read(until, tail == end, had_come);
                                if tail == end && (fresh || inbox.len() == 0) {
                                    break;
                                }
                            }
                        }
                    },
                }
                prop_assert!(tail <= committed);
            }
            prop_assert_eq!(tail, committed);
        }
    }
}
