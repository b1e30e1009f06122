use std::{collections::HashMap, sync::Arc};

use crate::plan::LiveRow;

/// What makes one list of rows into another: take out the removals and every row that is to be put in, then put those in, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Diff {
    /// Rows that are gone, by their places in the old list.
    pub(super) removals: Vec<usize>,
    /// Rows that are new, are another, or have moved, by their places in the new list, ascending.
    pub(super) upserts: Vec<usize>,
}

impl Diff {
    pub(super) fn is_empty(&self) -> bool {
        self.removals.is_empty() && self.upserts.is_empty()
    }
}

/// The smallest difference between two lists, in each of which no key is twice. Takes n log n steps.
pub(super) fn diff(old: &[Arc<LiveRow>], new: &[Arc<LiveRow>]) -> Diff {
    let mut gone: HashMap<&str, usize> = old.iter().enumerate().map(|(place, row)| (&*row.key, place)).collect();
    // Where the rows that are as they were stood and stand.
    let mut same = Vec::new();
    for (place, row) in new.iter().enumerate() {
        if let Some(before) = gone.remove(&*row.key)
            && old[before] == *row
        {
            same.push((before, place));
        }
    }
    let mut removals: Vec<usize> = gone.into_values().collect();
    removals.sort_unstable();
    // As many of them as can stay have kept their order among themselves.
    let befores: Vec<usize> = same.iter().map(|(before, _)| *before).collect();
    let mut stays = longest_increasing(&befores).into_iter().map(|at| same[at].1).peekable();
    let upserts = (0..new.len()).filter(|place| stays.next_if_eq(place).is_none()).collect();
    Diff { removals, upserts }
}

/// The places of a longest increasing subsequence of distinct numbers: patience sorting, where each card remembers the top of the pile to the
/// left of its own.
fn longest_increasing(numbers: &[usize]) -> Vec<usize> {
    let mut tops: Vec<usize> = Vec::new();
    let mut left = vec![None; numbers.len()];
    for (at, number) in numbers.iter().enumerate() {
        let pile = tops.partition_point(|&top| numbers[top] < *number);
        left[at] = pile.checked_sub(1).map(|pile| tops[pile]);
        if pile == tops.len() {
            tops.push(at);
        } else {
            tops[pile] = at;
        }
    }
    let mut longest: Vec<usize> = std::iter::successors(tops.last().copied(), |&at| left[at]).collect();
    longest.reverse();
    longest
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, seq::SliceRandom};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn row((key, content): (u8, u8)) -> Arc<LiveRow> {
        Arc::new(LiveRow { key: format!("[{key}]").into(), nodes: vec![content.to_string().into()] })
    }

    /// As a client does it.
    fn apply(diff: &Diff, old: &[Arc<LiveRow>], new: &[Arc<LiveRow>]) -> Vec<Arc<LiveRow>> {
        let removed = diff.removals.iter().map(|&place| &old[place].key);
        let out: Vec<_> = removed.chain(diff.upserts.iter().map(|&place| &new[place].key)).collect();
        let mut rows: Vec<_> = old.iter().filter(|row| !out.contains(&&row.key)).cloned().collect();
        for &place in &diff.upserts {
            rows.insert(place, Arc::clone(&new[place]));
        }
        rows
    }

    /// The most rows that are in both lists in the same order, by comparing everything with everything.
    fn most_that_stay(old: &[Arc<LiveRow>], new: &[Arc<LiveRow>]) -> usize {
        let mut longest = vec![vec![0; new.len() + 1]; old.len() + 1];
        for (i, before) in old.iter().enumerate() {
            for (j, after) in new.iter().enumerate() {
                longest[i + 1][j + 1] =
                    if before == after { longest[i][j] + 1 } else { longest[i][j + 1].max(longest[i + 1][j]) };
            }
        }
        longest[old.len()][new.len()]
    }

    #[test]
    fn a_difference_leads_from_one_list_to_the_other_and_is_the_smallest() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..3_000 {
            let mut list: Vec<(u8, u8)> = (0..random.random_range(0..12)).map(|key| (key, 0)).collect();
            list.shuffle(&mut random);
            let old: Vec<_> = list.iter().copied().map(row).collect();
            for _ in 0..random.random_range(0..4) {
                match random.random_range(0..4) {
                    0 => list.insert(random.random_range(0..=list.len()), (random.random_range(100..=255), 0)),
                    _ if list.is_empty() => {}
                    1 => drop(list.remove(random.random_range(0..list.len()))),
                    2 => {
                        let at = random.random_range(0..list.len());
                        list[at].1 += 1;
                    }
                    _ => {
                        let moved = list.remove(random.random_range(0..list.len()));
                        list.insert(random.random_range(0..=list.len()), moved);
                    }
                }
            }
            let mut keys = std::collections::BTreeSet::new();
            list.retain(|(key, _)| keys.insert(*key));
            let new: Vec<_> = list.into_iter().map(row).collect();
            let diff = diff(&old, &new);
            assert_eq!(apply(&diff, &old, &new), new, "{old:?} {diff:?}");
            assert_eq!(new.len() - diff.upserts.len(), most_that_stay(&old, &new), "{old:?} {new:?}");
            assert!(diff.removals.iter().all(|&place| new.iter().all(|row| row.key != old[place].key)));
            assert!(super::diff(&new, &new).is_empty());
        }
    }
}
