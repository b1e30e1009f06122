//! The true order of a transaction's changes of a row.
//!
//! Triggers record a change when the statement that made it has written all of its rows. What another trigger of that statement did to one of
//! these rows meanwhile is recorded before it (see [`triggers`](super::triggers)). But each change says which version of the row it found and which
//! it left, by the places where they lie, and a transaction uses no place of a table's file twice, since it may still be undone. So whatever found the
//! version that another change left comes right behind that, and a key's changes make *lives* again: from a row of before the transaction, or an
//! insert, to a delete, or the row that stays.
//!
//! What replaces the file (`TRUNCATE`, or `ALTER TABLE` that writes all rows anew) waits for no change: PostgreSQL refuses it while changes are yet
//! to be recorded. So all of one file's changes were recorded before the next file's. Of a file's lives, that of a row from before is the first, and that
//! of the row which stays is the last. Between them are only rows that came and went; they keep the order of their numbers.
//!
//! A key's changes change places with each other only, and their numbers with them, so that a key's numbers grow in its true order.

use std::collections::{HashMap, HashSet};

use crate::{
    change::{Change, Operation},
    registry::{Catalog, EntityId},
};

/// Where a row's version lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// The table's file.
    file: i64,
    block: u32,
    item: u16,
}

impl Place {
    /// `(3,14)`, as PostgreSQL writes it, in a file.
    pub(super) fn parse(file: i64, text: &str) -> Option<Self> {
        let (block, item) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
        Some(Self { file, block: block.parse().ok()?, item: item.parse().ok()? })
    }
}

/// A change, and where the versions before and after it lie, where that was said.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) change: Change,
    pub(super) was: Option<Place>,
    pub(super) is: Option<Place>,
}

impl Placed {
    fn file(&self) -> Option<i64> {
        self.was.or(self.is).map(|place| place.file)
    }

    /// Whether it only says that the row lies elsewhere now.
    fn is_move(&self) -> bool {
        self.change.operation == Operation::Update && self.change.before == self.change.after
    }
}

/// Puts a transaction's changes in order.
pub(super) fn restore(catalog: &Catalog, changes: Vec<Placed>) -> Vec<Change> {
    let mut slots: Vec<Option<Placed>> = changes.into_iter().map(Some).collect();
    if may_be_out_of_order(&slots) {
        let mut by_key: HashMap<(EntityId, Vec<Option<String>>), Vec<usize>> = HashMap::new();
        for (index, placed) in slots.iter().enumerate() {
            let Some(Placed { change, .. }) = placed else { continue };
            let key = change.key(catalog.entity(change.entity)).map(|cell| cell.map(str::to_owned)).collect();
            by_key.entry((change.entity, key)).or_default().push(index);
        }
        for indexes in by_key.into_values().filter(|indexes| indexes.len() > 1) {
            let taken: Vec<Placed> = indexes.iter().filter_map(|index| slots[*index].take()).collect();
            let seqs: Vec<u64> = taken.iter().map(|placed| placed.change.seq).collect();
            for ((index, seq), mut placed) in indexes.into_iter().zip(seqs).zip(in_order(taken)) {
                placed.change.seq = seq;
                slots[index] = Some(placed);
            }
        }
    }
    slots.into_iter().flatten().filter(|placed| !placed.is_move()).map(|placed| placed.change).collect()
}

/// Whether a version was found before it was left, or a row went after another of the table had come: all else is in order.
fn may_be_out_of_order(changes: &[Option<Placed>]) -> bool {
    let (mut found, mut came) = (HashSet::new(), HashSet::new());
    changes.len() > 1
        && changes.iter().flatten().any(|Placed { change, was, is }| {
            let early = is.is_some_and(|is| found.contains(&(change.entity, is)));
            found.extend(was.map(|was| (change.entity, was)));
            match change.operation {
                Operation::Insert => {
                    came.insert(change.entity);
                    early
                }
                Operation::Delete => was.is_some() && came.contains(&change.entity),
                Operation::Update => early,
            }
        })
}

/// The changes of one key in their true order.
fn in_order(changes: Vec<Placed>) -> Vec<Placed> {
    let mut files: Vec<Option<i64>> = Vec::new();
    for placed in &changes {
        if !files.contains(&placed.file()) {
            files.push(placed.file());
        }
    }
    let mut lives = lives(changes);
    lives.sort_by_key(|life| {
        let file = files.iter().position(|file| *file == life[0].file());
        let stays = life.last().is_some_and(|last| last.change.after.is_some());
        let stage = match life[0].change.before {
            Some(_) => 0,
            None if stays => 2,
            None => 1,
        };
        (file, stage, life.iter().map(|placed| placed.change.seq).min())
    });
    lives.into_iter().flatten().collect()
}

/// Each from the first version that no other change left to the last that no other found.
fn lives(changes: Vec<Placed>) -> Vec<Vec<Placed>> {
    let left: HashSet<Place> = changes.iter().filter_map(|placed| placed.is).collect();
    let finder: HashMap<Place, usize> =
        changes.iter().enumerate().filter_map(|(index, placed)| Some((placed.was?, index))).collect();
    let begins = |placed: &Placed| placed.was.is_none_or(|was| !left.contains(&was));
    let beginnings: Vec<usize> = (0..changes.len()).filter(|index| begins(&changes[*index])).collect();
    let mut slots: Vec<Option<Placed>> = changes.into_iter().map(Some).collect();
    let mut lives = Vec::with_capacity(beginnings.len());
    for beginning in beginnings {
        let (mut life, mut next) = (Vec::new(), Some(beginning));
        while let Some(placed) = next.and_then(|index| slots[index].take()) {
            next = placed.is.and_then(|is| finder.get(&is).copied());
            life.push(placed);
        }
        lives.push(life);
    }
    // Places that contradict each other lose nothing.
    lives.extend(slots.into_iter().flatten().map(|placed| vec![placed]));
    lives
}
