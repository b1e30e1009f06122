use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicU64, Ordering},
};

/// Stands for a follower that is not in the ring.
const OUTSIDE: u64 = u64::MAX;

/// Where the followers of this process stand, for those who watch over it. Nothing is decided from it.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<Vec<Weak<AtomicU64>>>);

impl Places {
    /// A place for a new follower. It is forgotten with the value.
    pub(super) fn add(&self) -> Place {
        let shown = Arc::new(AtomicU64::new(OUTSIDE));
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == all.capacity() {
            // Those who have left make room. What is reserved keeps this rare, however many come and go.
            all.retain(|place| place.strong_count() > 0);
            let room = all.len() + 1;
            all.reserve(room);
        }
        all.push(Arc::downgrade(&shown));
        Place { at: None, shown }
    }

    /// Where each follower stands in the ring, or that it does not.
    pub(super) fn all(&self) -> Vec<Option<u64>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let places = all.iter().filter_map(Weak::upgrade).map(|place| place.load(Ordering::Relaxed));
        places.map(|place| (place != OUTSIDE).then_some(place)).collect()
    }
}

/// One follower's place: the number of the next transaction in the ring, while it is in the ring.
#[derive(Debug)]
pub(super) struct Place {
    at: Option<u64>,
    shown: Arc<AtomicU64>,
}

impl Place {
    pub(super) fn get(&self) -> Option<u64> {
        self.at
    }

    pub(super) fn set(&mut self, at: Option<u64>) {
        self.at = at;
        self.shown.store(at.unwrap_or(OUTSIDE), Ordering::Relaxed);
    }
}
