//! Who wants to hear of which changes.
//!
//! What a transaction means to whom is worked out here, once for all, when the tail has read it: each image is looked up in an index of what everybody
//! wants, and only those are told to whom it means something. Whoever wants other rows costs nothing.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::shape::{EventKind, classify};
use crate::{
    change::{Change, Transaction},
    cursor::Cursor,
    filter::{Predicate, PredicateId, PredicateIndex},
    image::Image,
    registry::EntityId,
};

/// Which changes somebody wants to hear of.
#[derive(Debug, Clone, Default)]
pub struct Wants(Vec<(EntityId, Option<Predicate>)>);

impl Wants {
    /// What enters, changes or leaves the rows of an entity that pass.
    pub fn rows(entity: EntityId, predicate: Predicate) -> Self {
        Self(vec![(entity, Some(predicate))])
    }

    /// All changes of these entities.
    pub fn entities(entities: impl IntoIterator<Item = EntityId>) -> Self {
        Self(entities.into_iter().map(|entity| (entity, None)).collect())
    }

    /// These and those. A change that is wanted twice is told twice.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// What a change means to whoever wants these; the same as is told of it, for who reads the log.
    pub fn meaning(&self, change: &Change) -> Option<EventKind> {
        self.0.iter().filter(|(entity, _)| *entity == change.entity).find_map(|(_, predicate)| match predicate {
            Some(predicate) => classify(predicate, change),
            None => Some(change.operation.into()),
        })
    }
}

/// How it is found out that a change concerns somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// They are told of every change of the entity.
    Entity,
    /// Their predicate is asked of every image, because it has no condition that could be looked up.
    Each,
    /// Their predicate is asked of images that meet one of these conditions.
    Keys {
        /// The conditions.
        keys: Vec<String>,
        /// Whether the image before the change, which may be none, meets one.
        before: bool,
        /// Whether the image after the change does.
        after: bool,
    },
}

/// A transaction that means something to whoever hears of it.
#[derive(Debug, Clone)]
pub struct News {
    /// The transaction's number in this process's log, as [`Follower::place`](super::Follower::place) counts.
    pub place: u64,
    /// The whole of it.
    pub transaction: Arc<Transaction>,
    /// Which of its changes were asked for, by their indexes, and what they mean.
    pub changes: Vec<(usize, EventKind)>,
}

/// Somebody who hears of changes. Everybody else waits meanwhile, so each of these must return soon.
pub trait Audience: fmt::Debug + Send + Sync {
    /// The next transactions that mean something, at least one, in order.
    fn hear(&self, news: Vec<News>);

    /// The log did not go on where it was, or has been stopped: nothing more comes of places before this one.
    fn restart(&self, place: u64);

    /// Whether there may be changes that this process cannot read has changed: [`Log::is_healthy`](super::Log::is_healthy) tells.
    fn doubt(&self);
}

/// All who hear of changes.
#[derive(Debug)]
pub(super) struct Board(Mutex<State>);

/// What makes somebody hear of changes. They hear no more of them when it is dropped.
#[derive(Debug)]
pub struct Seat {
    board: Arc<Board>,
    number: usize,
    place: u64,
}

#[derive(Debug)]
struct State {
    /// From which place on those hear all that come now.
    next: u64,
    /// Up to which place everybody has heard everything, and where one stands who has seen all before that.
    heard: (u64, Cursor),
    entities: Vec<Wanted>,
    seats: Vec<Option<Taken>>,
    free: Vec<usize>,
    /// Made once.
    found: [Vec<PredicateId>; 2],
}

/// Who wants changes of an entity.
#[derive(Debug, Default)]
struct Wanted {
    index: PredicateIndex,
    /// Whose each predicate is.
    seats: Vec<usize>,
    all: BTreeSet<usize>,
}

#[derive(Debug)]
struct Taken {
    audience: Weak<dyn Audience>,
    wants: Vec<(EntityId, Option<PredicateId>)>,
}

impl Board {
    pub(super) fn new(at: Cursor) -> Self {
        let (entities, seats, free, found) = Default::default();
        Self(Mutex::new(State { next: 0, heard: (0, at), entities, seats, free, found }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where one stands who has been told of all that was asked for.
    pub(super) fn heard(&self) -> (u64, Cursor) {
        self.state().heard.clone()
    }

    pub(super) fn seat(self: &Arc<Self>, Wants(all): Wants, audience: Weak<dyn Audience>) -> Seat {
        let mut state = self.state();
        let number = state.free.pop().unwrap_or_else(|| {
            state.seats.push(None);
            state.seats.len() - 1
        });
        let mut wants = Vec::with_capacity(all.len());
        for (entity, predicate) in all {
            let wanted = state.wanted(entity);
            let predicate = match predicate {
                Some(predicate) => Some(wanted.add(predicate, number)),
                None => {
                    wanted.all.insert(number);
                    None
                }
            };
            wants.push((entity, predicate));
        }
        state.seats[number] = Some(Taken { audience, wants });
        Seat { board: Arc::clone(self), number, place: state.next }
    }

    /// Tells everybody what transactions mean to them, the first of which has this place. The cursor stands behind them. For the tail alone.
    pub(super) fn tell(&self, place: u64, transactions: &[Arc<Transaction>], end: &Cursor) {
        let next = place + transactions.len() as u64;
        let told = {
            let mut state = self.state();
            state.next = next;
            state.meaning(place, transactions)
        };
        // Outside the lock: who leaves now takes a seat with them, which needs it.
        for (audience, news) in told {
            audience.hear(news);
        }
        self.state().heard = (next, end.clone());
    }

    /// The log goes on elsewhere, from this place, or not at all.
    pub(super) fn restart(&self, place: u64, at: &Cursor) {
        self.state().next = place;
        self.everybody().iter().for_each(|audience| audience.restart(place));
        self.state().heard = (place, at.clone());
    }

    pub(super) fn doubt(&self) {
        self.everybody().iter().for_each(|audience| audience.doubt());
    }

    fn everybody(&self) -> Vec<Arc<dyn Audience>> {
        self.state().seats.iter().flatten().filter_map(|taken| taken.audience.upgrade()).collect()
    }
}

impl Seat {
    /// From which place on nothing was missed.
    pub fn place(&self) -> u64 {
        self.place
    }

    /// How a change is found to concern whoever has this seat, beside all others who have one now; `None` where they want no changes of its
    /// entity. Conditions are written with a name for each column of the entity.
    pub fn route(&self, change: &Change, names: &[String]) -> Option<Route> {
        let state = self.board.state();
        let taken = state.seats[self.number].as_ref()?;
        let (_, predicate) = taken.wants.iter().find(|(entity, _)| *entity == change.entity)?;
        let Some(id) = *predicate else { return Some(Route::Entity) };
        let index = &state.entities[change.entity.index()].index;
        let leads = |image: &Option<Image>| image.as_ref().is_some_and(|image| index.leads(id, image));
        Some(match index.keys(id, names) {
            Some(keys) => Route::Keys { keys, before: leads(&change.before), after: leads(&change.after) },
            None => Route::Each,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.board.state();
        let Some(taken) = state.seats[self.number].take() else { return };
        for (entity, predicate) in taken.wants {
            let wanted = state.wanted(entity);
            match predicate {
                Some(predicate) => wanted.index.remove(predicate),
                None => drop(wanted.all.remove(&self.number)),
            }
        }
        state.free.push(self.number);
    }
}

impl State {
    fn wanted(&mut self, entity: EntityId) -> &mut Wanted {
        let index = entity.index();
        if self.entities.len() <= index {
            self.entities.resize_with(index + 1, Wanted::default);
        }
        &mut self.entities[index]
    }

    /// Which changes of the transactions mean something to whom.
    fn meaning(&mut self, place: u64, transactions: &[Arc<Transaction>]) -> Vec<(Arc<dyn Audience>, Vec<News>)> {
        let mut meaning = BTreeMap::<usize, Vec<News>>::new();
        for (place, transaction) in (place..).zip(transactions) {
            for (at, change) in transaction.changes.iter().enumerate() {
                let Some(wanted) = self.entities.get(change.entity.index()) else { continue };
                wanted.find(change, &mut self.found, |seat, kind| {
                    let news = meaning.entry(seat).or_default();
                    match news.last_mut().filter(|news| news.place == place) {
                        Some(news) => news.changes.push((at, kind)),
                        None => {
                            let transaction = Arc::clone(transaction);
                            news.push(News { place, transaction, changes: vec![(at, kind)] });
                        }
                    }
                });
            }
        }
        let told = meaning.into_iter();
        told.filter_map(|(seat, news)| Some((self.seats[seat].as_ref()?.audience.upgrade()?, news))).collect()
    }
}

impl Wanted {
    fn add(&mut self, predicate: Predicate, seat: usize) -> PredicateId {
        let id = self.index.insert(predicate);
        if self.seats.len() <= id.index() {
            self.seats.resize(id.index() + 1, usize::MAX);
        }
        self.seats[id.index()] = seat;
        id
    }

    /// Calls for each who wants a change, with what it means: rows enter that pass now, leave that passed, and change that did both.
    fn find(&self, change: &Change, found: &mut [Vec<PredicateId>; 2], mut each: impl FnMut(usize, EventKind)) {
        self.all.iter().for_each(|seat| each(*seat, change.operation.into()));
        for (found, image) in found.iter_mut().zip([&change.before, &change.after]) {
            found.clear();
            if let Some(image) = image {
                self.index.find(image, found);
            }
        }
        let (mut before, mut after) = (found[0].iter().peekable(), found[1].iter().peekable());
        loop {
            let order = match (before.peek(), after.peek()) {
                (Some(before), Some(after)) => before.cmp(after),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return,
            };
            let left = if order.is_le() { before.next() } else { None };
            let entered = if order.is_ge() { after.next() } else { None };
            let kind = match (left, entered) {
                (Some(_), Some(_)) => EventKind::Update,
                (Some(_), None) => EventKind::Leave,
                _ => EventKind::Enter,
            };
            if let Some(id) = left.or(entered) {
                each(self.seats[id.index()], kind);
            }
        }
    }
}
