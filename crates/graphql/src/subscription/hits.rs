use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tidewire_outbox::EventKind;
use tokio::sync::{OnceCell, watch};

use super::changes::Shared;

/// The transactions that mean something to a group and that some of its live subscribers have yet to take.
///
/// Who takes the last one that another left behind removes it, so a group whose subscribers keep up holds nothing. One who does not keep up is
/// left behind: the oldest go when there are too many or their events are too large. Such a subscriber reads the log from where it stands and
/// comes back.
pub(super) struct Hits {
    state: Mutex<State>,
    /// Changes whenever there is something to look at.
    bell: watch::Sender<()>,
}

/// A transaction that means something to the group.
#[derive(Clone)]
pub(super) struct Hit {
    /// Its place in this process's log.
    pub(super) place: u64,
    /// Which of its changes, by their indexes, and what they mean.
    pub(super) changes: Arc<[(usize, EventKind)]>,
    /// The event that it makes, written by whoever comes to it first.
    pub(super) event: Arc<OnceCell<Shared>>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Waiting>,
    /// The number of the first in the queue.
    first: u64,
    /// From which place on all that mean something are in the queue, or will be.
    from: u64,
    /// How many subscribers are live.
    live: usize,
    /// The size of the events in the queue, as far as they are written.
    bytes: usize,
}

struct Waiting {
    hit: Hit,
    /// How many live subscribers have yet to take it.
    by: usize,
    /// The size of its event, once that is written.
    bytes: usize,
}

/// A subscriber's place among the live ones of its group, until it is dropped.
pub(super) struct Live {
    hits: Arc<Hits>,
    bell: watch::Receiver<()>,
    /// The number of the next hit.
    next: u64,
    /// The place that the subscriber had reached when it came: what is before that, it has.
    place: u64,
}

impl Hits {
    /// How many transactions may wait.
    const MOST: usize = 256;
    /// How many bytes their events may have, beside the newest's.
    const MOST_BYTES: usize = 4 << 20;

    pub(super) fn new() -> Self {
        Self { state: Mutex::default(), bell: watch::Sender::new(()) }
    }

    /// All come here that are from this place on.
    pub(super) fn begin(&self, place: u64) {
        let mut state = self.state();
        state.from = state.from.max(place);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is known of what was before this place. Whoever waits for that is left behind.
    pub(super) fn restart(&self, place: u64) {
        let mut state = self.state();
        // The number that is left out is nobody's place any more.
        state.first += state.queue.len() as u64 + 1;
        state.queue.clear();
        state.bytes = 0;
        state.from = place;
        drop(state);
        self.ring();
    }

    pub(super) fn push(&self, hits: impl IntoIterator<Item = Hit>) {
        let mut state = self.state();
        let by = state.live;
        for hit in hits {
            state.queue.push_back(Waiting { hit, by, bytes: 0 });
        }
        while state.queue.len() > Self::MOST {
            state.pop();
        }
        state.pop_taken();
        drop(state);
        self.ring();
    }

    /// How many subscribers are live.
    pub(super) fn live(&self) -> usize {
        self.state().live
    }

    /// Wakes the live subscribers.
    pub(super) fn ring(&self) {
        self.bell.send_replace(());
    }

    /// The event of a hit has been written.
    pub(super) fn written(&self, number: u64, bytes: usize) {
        let mut state = self.state();
        let Some(waiting) = state.from(number).and_then(|mut rest| rest.next()) else { return };
        let before = std::mem::replace(&mut waiting.bytes, bytes);
        state.bytes = state.bytes - before + bytes;
        while state.bytes > Self::MOST_BYTES && state.queue.len() > 1 {
            state.pop();
        }
    }

    /// Makes a subscriber live that has had everything before a place. `None` where that is not all here.
    pub(super) fn join(self: &Arc<Self>, place: u64) -> Option<Live> {
        let mut state = self.state();
        if place < state.from {
            return None;
        }
        let had = state.queue.partition_point(|waiting| waiting.hit.place < place);
        state.queue.iter_mut().skip(had).for_each(|waiting| waiting.by += 1);
        state.live += 1;
        let next = state.first + had as u64;
        drop(state);
        Some(Live { hits: Arc::clone(self), bell: self.bell.subscribe(), next, place })
    }
}

impl State {
    fn pop(&mut self) {
        if let Some(Waiting { hit, bytes, .. }) = self.queue.pop_front() {
            self.first += 1;
            self.from = self.from.max(hit.place + 1);
            self.bytes -= bytes;
        }
    }

    fn pop_taken(&mut self) {
        while self.queue.front().is_some_and(|waiting| waiting.by == 0) {
            self.pop();
        }
    }

    /// Those from a number on; `None` where some are gone.
    fn from(&mut self, number: u64) -> Option<impl Iterator<Item = &mut Waiting>> {
        let skip = usize::try_from(number.checked_sub(self.first)?).unwrap_or(usize::MAX);
        Some(self.queue.iter_mut().skip(skip))
    }
}

impl Live {
    /// Takes what there is, at most so many, with their numbers. `None`: the subscriber was left behind.
    pub(super) fn take(&mut self, most: usize) -> Option<Vec<(u64, Hit)>> {
        self.bell.mark_unchanged();
        let mut state = self.hits.state();
        let mut taken = Vec::new();
        let mut next = self.next;
        for waiting in state.from(self.next)?.take(most) {
            waiting.by -= 1;
            if waiting.hit.place >= self.place {
                taken.push((next, waiting.hit.clone()));
            }
            next += 1;
        }
        self.next = next;
        state.pop_taken();
        Some(taken)
    }

    /// Whether there is nothing left to take.
    pub(super) fn is_at_end(&self) -> bool {
        let state = self.hits.state();
        self.next == state.first + state.queue.len() as u64
    }

    /// The place that the subscriber had reached when it came.
    pub(super) fn place(&self) -> u64 {
        self.place
    }

    /// Waits until there is something to look at since [`take`](Self::take).
    pub(super) async fn news(&mut self) {
        // The sender is in the hits, which this keeps.
        let _ = self.bell.changed().await;
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let mut state = self.hits.state();
        state.live -= 1;
        // All that are left wait for one who was left behind, too.
        let next = self.next.max(state.first);
        if let Some(left) = state.from(next) {
            left.for_each(|waiting| waiting.by -= 1);
        }
        state.pop_taken();
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn hit(place: u64) -> Hit {
        Hit { place, changes: Arc::from([]), event: Arc::default() }
    }

    /// What a subscriber had when it came, and all places that it has had since.
    struct Subscriber {
        live: Live,
        from: u64,
        had: Vec<u64>,
    }

    #[test]
    fn whoever_is_live_gets_every_hit_once_or_is_left_behind() {
        for seed in 0..200 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let hits = Arc::new(Hits::new());
            let (mut place, mut all) = (0, Vec::new());
            let mut subscribers: Vec<Subscriber> = Vec::new();
            for _ in 0..400 {
                match rng.random_range(0..20) {
                    0..6 => {
                        // Several transactions, some of which mean nothing here.
                        let new: Vec<u64> =
                            (0..rng.random_range(1..60)).map(|_| (place += rng.random_range(1..4), place).1).collect();
                        all.extend(&new);
                        hits.push(new.into_iter().map(hit));
                    }
                    6..8 => {
                        // What they had may be ahead of what was told here.
                        let from = (place + 4).saturating_sub(rng.random_range(0..40));
                        subscribers.extend(hits.join(from).map(|live| Subscriber { live, from, had: Vec::new() }));
                    }
                    8 if !subscribers.is_empty() => drop(subscribers.remove(0)),
                    9 if rng.random_ratio(1, 10) => {
                        place += 1;
                        hits.restart(place + 1);
                        assert!(subscribers.iter_mut().all(|subscriber| subscriber.live.take(1).is_none()));
                        subscribers.clear();
                        all.clear();
                    }
                    10 => {
                        let state = hits.state();
                        let number = state.first + rng.random_range(0..3);
                        drop(state);
                        hits.written(number, Hits::MOST_BYTES / 3);
                    }
                    _ if !subscribers.is_empty() => {
                        let index = rng.random_range(0..subscribers.len());
                        let subscriber = &mut subscribers[index];
                        match subscriber.live.take(rng.random_range(1..100)) {
                            Some(taken) => subscriber.had.extend(taken.iter().map(|(_, hit)| hit.place)),
                            None => drop(subscribers.remove(index)),
                        }
                    }
                    _ => {}
                }
                let state = hits.state();
                assert!(state.queue.len() <= Hits::MOST && state.live == subscribers.len());
                assert_eq!(state.bytes, state.queue.iter().map(|waiting| waiting.bytes).sum::<usize>());
                // What everybody has taken is gone.
                assert!(state.queue.front().is_none_or(|waiting| waiting.by > 0));
            }
            for Subscriber { mut live, from, mut had } in subscribers {
                while let Some(taken) = live.take(7).filter(|taken| !taken.is_empty() || !live.is_at_end()) {
                    had.extend(taken.iter().map(|(_, hit)| hit.place));
                }
                if live.is_at_end() {
                    let expected: Vec<u64> = all.iter().copied().filter(|place| *place >= from).collect();
                    assert_eq!(had, expected, "seed {seed}");
                }
            }
            assert!(hits.state().queue.is_empty());
        }
    }
}
