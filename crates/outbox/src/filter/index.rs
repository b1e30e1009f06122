//! Which of many predicates a row passes, without asking each of them.
//!
//! From most predicates it follows that a row which passes meets one of a few conditions on single columns: the *ways in*. `status = 'OPEN' AND
//! title LIKE '%x%'` has one, `status = 'OPEN'`; `a IN (1, 2) OR b < 3` has three. Equalities, NULLs and the beginnings of texts are looked up by
//! hash, ranges in [`Ranges`]. Predicates without a way in are all asked. What is found is asked too: a way in may let rows through that do not
//! pass, and a hash may mean several things.

use std::{
    collections::{BTreeSet, HashMap, hash_map::RandomState},
    hash::{BuildHasher, DefaultHasher, Hash, Hasher},
};

use super::{
    Comparison, Part,
    predicate::{Compare, LikePattern, Node, Operand, Predicate, Scalar},
    ranges::{Range, Ranges},
    trace::{Shown, Valued},
    until_zero,
};
use crate::{cell, image::Image};

/// Names a predicate in its index until it is removed. Small, and given again after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PredicateId(pub(super) u32);

impl PredicateId {
    /// As a place in a list.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Predicates on the rows of one entity.
#[derive(Debug, Default)]
pub struct PredicateIndex {
    predicates: Vec<Option<Indexed>>,
    free: Vec<PredicateId>,
    /// What is looked up of an image by hash, and by how many ways in.
    lookups: Vec<(Lookup, usize)>,
    hashed: HashMap<u64, Vec<PredicateId>>,
    ranges: HashMap<usize, (Compare, Ranges)>,
    /// Those without a way in.
    rest: BTreeSet<PredicateId>,
    hasher: RandomState,
}

/// A predicate, and how it is found: `None` where it has no way in.
#[derive(Debug)]
struct Indexed {
    predicate: Predicate,
    ways: Option<Box<[Way]>>,
}

/// What of an image is looked up by hash.
#[derive(Debug, Clone)]
enum Lookup {
    /// The value, as it compares.
    Value(Operand),
    /// That there is none.
    Null(usize),
    /// So many letters at its beginning, in lower case.
    Beginning(usize, usize),
    /// All its letters, in lower case.
    Folded(usize),
}

/// A condition that a row which passes may meet.
#[derive(Debug, Clone)]
enum Way {
    Hashed(Lookup, u64),
    Within(Operand, Range),
}

impl PredicateIndex {
    /// Adds a predicate.
    pub fn insert(&mut self, predicate: Predicate) -> PredicateId {
        let ways = self.ways(&predicate.0).map(Vec::into_boxed_slice);
        let id = self.free.pop().unwrap_or_else(|| {
            let next = u32::try_from(self.predicates.len()).expect("there is memory for so many");
            self.predicates.push(None);
            PredicateId(next)
        });
        match &ways {
            Some(ways) => ways.iter().for_each(|way| self.open(way.clone(), id)),
            None => drop(self.rest.insert(id)),
        }
        self.predicates[id.index()] = Some(Indexed { predicate, ways });
        id
    }

    /// Removes a predicate.
    pub fn remove(&mut self, id: PredicateId) {
        let Some(Indexed { ways, .. }) = self.predicates.get_mut(id.index()).and_then(Option::take) else { return };
        match ways {
            Some(ways) => ways.iter().for_each(|way| self.close(way, id)),
            None => drop(self.rest.remove(&id)),
        }
        self.free.push(id);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.predicates.len() - self.free.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts those that the row passes into `found`, in the order of their ids and in place of what was there.
    pub fn find(&self, image: &Image, found: &mut Vec<PredicateId>) {
        self.look_up(image, found);
        found.retain(|id| self.predicates[id.index()].as_ref().is_some_and(|known| known.predicate.matches(image)));
    }

    /// The conditions by which a predicate is looked up, with a name for each column of the entity; `None` where it is asked of every row. A row
    /// that passes meets one of them.
    pub fn keys(&self, id: PredicateId, names: &[String]) -> Option<Vec<String>> {
        let Indexed { predicate, ways } = self.predicates.get(id.index())?.as_ref()?;
        let leaves = leaves(&predicate.0);
        let key = |way: &Way| match way {
            Way::Hashed(_, hash) => {
                let has_way = |leaf: &&Node| {
                    let ways = self.ways(leaf);
                    matches!(ways.as_deref(), Some([Way::Hashed(_, other)]) if other == hash)
                };
                let leaf = leaves.iter().find(has_way).expect("a way in is that of a leaf");
                Shown(leaf, names).to_string()
            }
            Way::Within(Operand { column, compare }, Range { low, high }) => {
                let end = |value| Valued(compare, value);
                let name = names.get(*column).map_or("?", String::as_str);
                match (low, high) {
                    (None, high) => format!("{name} up to {}", end(high.as_ref())),
                    (low, None) => format!("{name} from {}", end(low.as_ref())),
                    (low, high) => format!("{name} from {} to {}", end(low.as_ref()), end(high.as_ref())),
                }
            }
        };
        Some(ways.as_deref()?.iter().map(key).collect())
    }

    /// Whether a row leads to a predicate, so that this is asked of it.
    pub fn leads(&self, id: PredicateId, image: &Image) -> bool {
        let mut found = Vec::new();
        self.look_up(image, &mut found);
        found.contains(&id)
    }

    /// Puts those that the row may pass into `found`.
    fn look_up(&self, image: &Image, found: &mut Vec<PredicateId>) {
        found.clear();
        for (lookup, _) in &self.lookups {
            let ids = self.hash_of(lookup, image).and_then(|hash| self.hashed.get(&hash));
            found.extend(ids.into_iter().flatten());
        }
        for (column, (compare, ranges)) in &self.ranges {
            if let Some(value) = image.cell(*column).and_then(|cell| compare.read(cell)) {
                ranges.find(&value, |id| found.push(id));
            }
        }
        found.extend(&self.rest);
        found.sort_unstable();
        found.dedup();
    }

    fn open(&mut self, way: Way, id: PredicateId) {
        match way {
            Way::Hashed(lookup, hash) => {
                self.hashed.entry(hash).or_default().push(id);
                match self.lookups.iter_mut().find(|(known, _)| known.is(&lookup)) {
                    Some((_, count)) => *count += 1,
                    None => self.lookups.push((lookup, 1)),
                }
            }
            Way::Within(Operand { column, compare }, range) => {
                self.ranges.entry(column).or_insert_with(|| (compare, Ranges::default())).1.insert(range, id);
            }
        }
    }

    fn close(&mut self, way: &Way, id: PredicateId) {
        match way {
            Way::Hashed(lookup, hash) => {
                if let Some(ids) = self.hashed.get_mut(hash) {
                    if let Some(at) = ids.iter().position(|other| *other == id) {
                        ids.swap_remove(at);
                    }
                    if ids.is_empty() {
                        self.hashed.remove(hash);
                    }
                }
                if let Some(at) = self.lookups.iter().position(|(known, _)| known.is(lookup)) {
                    self.lookups[at].1 -= 1;
                    if self.lookups[at].1 == 0 {
                        self.lookups.swap_remove(at);
                    }
                }
            }
            Way::Within(Operand { column, .. }, range) => {
                if let Some((_, ranges)) = self.ranges.get_mut(column) {
                    ranges.remove(range, id);
                    if ranges.is_empty() {
                        self.ranges.remove(column);
                    }
                }
            }
        }
    }

    /// The ways in; none where rows pass that meet no condition that could be looked up.
    fn ways(&self, node: &Node) -> Option<Vec<Way>> {
        let equal = |operand: &Operand, value: &Scalar| {
            let lookup = Lookup::Value(operand.clone());
            let hash = self.hash(&lookup, |hasher| value.hash(hasher));
            Way::Hashed(lookup, hash)
        };
        Some(match node {
            Node::All(parts) => return self.narrowest(parts),
            Node::Any(parts) => {
                parts.iter().map(|part| self.ways(part)).collect::<Option<Vec<_>>>()?.into_iter().flatten().collect()
            }
            // With NULL nothing is ever true.
            Node::Compare(_, _, None) => Vec::new(),
            Node::Compare(operand, Comparison::Equal, Some(value)) => vec![equal(operand, value)],
            Node::In(operand, values, _) => values.iter().map(|value| equal(operand, value)).collect(),
            Node::IsNull(column) => {
                let lookup = Lookup::Null(*column);
                let hash = self.hash(&lookup, |_| ());
                vec![Way::Hashed(lookup, hash)]
            }
            Node::EqualsIgnoringCase(column, text) => {
                let lookup = Lookup::Folded(*column);
                let hash = self.hash(&lookup, |hasher| fold(text.chars(), hasher));
                vec![Way::Hashed(lookup, hash)]
            }
            Node::Like(column, LikePattern(parts)) => {
                let beginning: Vec<char> =
                    parts.iter().map_while(|part| if let Part::Char(c) = part { Some(*c) } else { None }).collect();
                if beginning.is_empty() {
                    return None;
                }
                let lookup = Lookup::Beginning(*column, beginning.len());
                let hash = self.hash(&lookup, |hasher| fold(beginning.into_iter(), hasher));
                vec![Way::Hashed(lookup, hash)]
            }
            Node::Compare(..) | Node::Between(..) => {
                let (operand, range) = range(node)?;
                vec![Way::Within(operand.clone(), range)]
            }
            Node::Not(_) | Node::Array(..) => return None,
        })
    }

    /// The ways in of that part which has the best, for all parts must hold. Those that bound a column are one.
    fn narrowest(&self, parts: &[Node]) -> Option<Vec<Way>> {
        let mut bounded: Vec<(&Operand, Range)> = Vec::new();
        for (operand, range) in parts.iter().filter_map(range) {
            match bounded.iter_mut().find(|(known, _)| known.column == operand.column) {
                Some((_, known)) => known.narrow(range),
                None => bounded.push((operand, range)),
            }
        }
        let bounded = bounded.into_iter().map(|(operand, range)| vec![Way::Within(operand.clone(), range)]);
        let others = parts.iter().filter(|part| range(part).is_none()).filter_map(|part| self.ways(part));
        // What lets the fewest rows through is not known; an equality is likely to, unless many ask for the same.
        others.chain(bounded).min_by_key(|ways| {
            (ways.iter().map(|way| self.crowd(way)).max(), ways.iter().map(Way::width).max(), ways.len())
        })
    }

    /// How many others whoever comes this way finds, as a power of two. Of ranges only that is known which is likely: few lie upon each other, and
    /// more of those without an end.
    fn crowd(&self, way: &Way) -> u32 {
        const RANGE: u32 = 4;
        const HALF_OPEN: u32 = 8;
        match way {
            Way::Hashed(_, hash) => self.hashed.get(hash).map_or(0, |ids| ids.len().ilog2() + 1),
            Way::Within(_, Range { low: Some(_), high: Some(_) }) => RANGE,
            Way::Within(..) => HALF_OPEN,
        }
    }

    fn hash_of(&self, lookup: &Lookup, image: &Image) -> Option<u64> {
        let hash = |column: usize, write: &dyn Fn(&str, &mut DefaultHasher)| {
            let text = cell::text(image.cell(column)?);
            Some(self.hash(lookup, |hasher| write(&text, hasher)))
        };
        match lookup {
            Lookup::Value(Operand { column, compare }) => {
                let value = compare.read(image.cell(*column)?)?;
                Some(self.hash(lookup, |hasher| value.hash(hasher)))
            }
            Lookup::Null(column) => image.cell(*column).is_none().then(|| self.hash(lookup, |_| ())),
            Lookup::Beginning(column, count) => {
                hash(*column, &|text, hasher| fold(until_zero(text).chars().take(*count), hasher))
            }
            Lookup::Folded(column) => hash(*column, &|text, hasher| fold(text.chars(), hasher)),
        }
    }

    fn hash(&self, lookup: &Lookup, write: impl FnOnce(&mut DefaultHasher)) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        lookup.name().hash(&mut hasher);
        write(&mut hasher);
        hasher.finish()
    }
}

impl Lookup {
    /// What tells it from others.
    fn name(&self) -> (u8, usize, usize) {
        match self {
            Self::Value(operand) => (0, operand.column, 0),
            Self::Null(column) => (1, *column, 0),
            Self::Beginning(column, count) => (2, *column, *count),
            Self::Folded(column) => (3, *column, 0),
        }
    }

    fn is(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Way {
    /// How many rows it may let through, from few to many.
    fn width(&self) -> u8 {
        match self {
            Self::Hashed(Lookup::Value(_) | Lookup::Folded(_), _) => 0,
            Self::Hashed(Lookup::Beginning(..), _) => 1,
            Self::Within(_, Range { low: Some(_), high: Some(_) }) => 2,
            Self::Within(..) => 3,
            Self::Hashed(Lookup::Null(_), _) => 4,
        }
    }
}

/// The conditions on single columns that can be looked up by hash, each as one that has one way in: a list as its values, a pattern as its beginning.
fn leaves(node: &Node) -> Vec<Node> {
    match node {
        Node::All(parts) | Node::Any(parts) => parts.iter().flat_map(leaves).collect(),
        Node::In(operand, values, _) => {
            values.iter().map(|value| Node::Compare(operand.clone(), Comparison::Equal, Some(value.clone()))).collect()
        }
        Node::Like(column, LikePattern(parts)) => {
            let beginning = parts.iter().take_while(|part| matches!(part, Part::Char(_)));
            vec![Node::Like(*column, LikePattern(beginning.copied().chain([Part::Many]).collect()))]
        }
        Node::Compare(..) | Node::IsNull(_) | Node::EqualsIgnoringCase(..) => vec![node.clone()],
        Node::Not(_) | Node::Between(..) | Node::Array(..) => Vec::new(),
    }
}

/// The range that a node bounds a column to, both ends included.
fn range(node: &Node) -> Option<(&Operand, Range)> {
    let end = |value: &Scalar| Some(value.clone());
    match node {
        Node::Compare(operand, comparison, Some(value)) => {
            let (low, high) = match comparison {
                Comparison::Less | Comparison::LessOrEqual => (None, end(value)),
                Comparison::Greater | Comparison::GreaterOrEqual => (end(value), None),
                Comparison::Equal | Comparison::NotEqual => return None,
            };
            Some((operand, Range { low, high }))
        }
        Node::Between(operand, Some(low), Some(high)) => Some((operand, Range { low: end(low), high: end(high) })),
        _ => None,
    }
}

/// The letters as they compare where the case of ASCII letters is left aside.
fn fold(letters: impl Iterator<Item = char>, hasher: &mut DefaultHasher) {
    letters.for_each(|letter| hasher.write_u32(letter.to_ascii_lowercase().into()));
}
