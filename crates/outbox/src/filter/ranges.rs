use std::cmp::Ordering;

use super::{index::PredicateId, predicate::Scalar};

/// From where to where, both included; without an end on a side where there is none.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Range {
    pub(super) low: Option<Scalar>,
    pub(super) high: Option<Scalar>,
}

impl Range {
    /// Keeps what both have.
    pub(super) fn narrow(&mut self, other: Self) {
        if starts(&self.low, &other.low).is_lt() {
            self.low = other.low;
        }
        if ends(&self.high, &other.high).is_gt() {
            self.high = other.high;
        }
    }
}

fn starts(left: &Option<Scalar>, right: &Option<Scalar>) -> Ordering {
    // None is the least.
    left.cmp(right)
}

fn ends(left: &Option<Scalar>, right: &Option<Scalar>) -> Ordering {
    match (left, right) {
        (Some(left), Some(right)) => left.cmp(right),
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
    }
}

/// Ranges of one column, and which of them a value lies in: a few times as much work as there are such ranges, and the square of the
/// logarithm of how many there are at all.
///
/// Each *run* is sorted and never changes, but for ranges that are struck out. A new range is a run; runs that are no longer than the one behind them are
/// merged with it, so that there are few, and each range is moved rarely.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    runs: Vec<Run>,
    len: usize,
    struck: usize,
}

/// Ranges by where they begin.
#[derive(Debug)]
struct Run {
    entries: Vec<Entry>,
    /// A tree over the entries, in which the middle of a part is its root: for each root, which entry of the part ends last.
    last: Vec<u32>,
}

#[derive(Debug)]
struct Entry {
    range: Range,
    /// None where it was struck out.
    id: Option<PredicateId>,
}

impl Ranges {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn insert(&mut self, range: Range, id: PredicateId) {
        self.len += 1;
        let mut entries = vec![Entry { range, id: Some(id) }];
        while let Some(run) = self.runs.pop_if(|run| run.entries.len() <= entries.len()) {
            self.struck -= run.entries.iter().filter(|entry| entry.id.is_none()).count();
            entries.extend(run.entries.into_iter().filter(|entry| entry.id.is_some()));
        }
        self.runs.push(Run::new(entries));
    }

    pub(super) fn remove(&mut self, range: &Range, id: PredicateId) {
        let Some(entry) = self.runs.iter_mut().find_map(|run| run.entry(range, id)) else { return };
        entry.id = None;
        self.len -= 1;
        self.struck += 1;
        if self.struck > self.len {
            let entries = self.runs.drain(..).flat_map(|run| run.entries).filter(|entry| entry.id.is_some()).collect();
            self.runs.push(Run::new(entries));
            self.struck = 0;
        }
    }

    /// Calls for each range that the value lies in.
    pub(super) fn find(&self, value: &Scalar, mut found: impl FnMut(PredicateId)) {
        for run in &self.runs {
            run.find(value, 0..run.entries.len(), &mut found);
        }
    }
}

impl Run {
    fn new(mut entries: Vec<Entry>) -> Self {
        entries.sort_by(|left, right| starts(&left.range.low, &right.range.low));
        let mut run = Self { last: vec![0; entries.len()], entries };
        run.grow(0..run.entries.len());
        run
    }

    /// Fills in a part of the tree; answers which entry of it ends last.
    fn grow(&mut self, part: std::ops::Range<usize>) -> Option<u32> {
        if part.is_empty() {
            return None;
        }
        let root = part.start + part.len() / 2;
        let sides = [self.grow(part.start..root), self.grow(root + 1..part.end)];
        let of = |at: u32| &self.entries[at as usize].range.high;
        let last = sides
            .into_iter()
            .flatten()
            .fold(root as u32, |last, side| if ends(of(side), of(last)).is_gt() { side } else { last });
        self.last[root] = last;
        Some(last)
    }

    fn find(&self, value: &Scalar, part: std::ops::Range<usize>, found: &mut impl FnMut(PredicateId)) {
        if part.is_empty() {
            return;
        }
        let root = part.start + part.len() / 2;
        let ended = |at: usize| self.entries[at].range.high.as_ref().is_some_and(|high| high < value);
        if ended(self.last[root] as usize) {
            return;
        }
        self.find(value, part.start..root, found);
        let Entry { range, id } = &self.entries[root];
        if range.low.as_ref().is_some_and(|low| low > value) {
            return;
        }
        if !ended(root) {
            id.iter().for_each(|id| found(*id));
        }
        self.find(value, root + 1..part.end, found);
    }

    fn entry(&mut self, range: &Range, id: PredicateId) -> Option<&mut Entry> {
        let from = self.entries.partition_point(|entry| starts(&entry.range.low, &range.low).is_lt());
        let same = self.entries[from..].iter_mut().take_while(|entry| entry.range.low == range.low);
        same.into_iter().find(|entry| entry.id == Some(id))
    }
}
