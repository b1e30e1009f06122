use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tidewire_graphql::Viewer;
use tokio::time::{Instant, sleep_until};

/// Claims that are another in each token of the same viewer.
const OF_THE_TOKEN: [&str; 4] = ["exp", "iat", "jti", "nbf"];
/// What a timer can wait for; who comes later than that has no end.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Who somebody is, and for how long.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) viewer: Arc<Viewer>,
    /// Whether they have shown something.
    is_somebody: bool,
    /// When what was shown is no longer good.
    pub(crate) expires: Option<Instant>,
}

impl Identity {
    /// A viewer that has shown nothing.
    pub(crate) fn unproven(viewer: Viewer) -> Self {
        Self { viewer: Arc::new(viewer), is_somebody: false, expires: None }
    }

    /// A viewer that has shown what it is, for as long as it likes.
    pub(super) fn proven(viewer: Arc<Viewer>) -> Self {
        Self { viewer, is_somebody: true, expires: None }
    }

    /// The same, for so long.
    pub(super) fn ending_in(mut self, remaining: Duration) -> Self {
        self.expires = (remaining < LONGEST).then(|| Instant::now() + remaining);
        self
    }

    pub(crate) fn is_somebody(&self) -> bool {
        self.is_somebody
    }

    pub(crate) fn is_over(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= Instant::now())
    }

    /// Waits until it is over.
    pub(crate) async fn over(expires: Option<Instant>) {
        match expires {
            Some(expires) => sleep_until(expires).await,
            None => std::future::pending().await,
        }
    }

    /// Whether both are one viewer, with the same rights.
    pub(crate) fn is_same_viewer(&self, other: &Self) -> bool {
        fn lasting(claims: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
            claims.iter().filter(|(name, _)| !OF_THE_TOKEN.contains(&name.as_str()))
        }
        let (one, other) = (&self.viewer, &other.viewer);
        one.actor == other.actor && one.roles == other.roles && lasting(&one.claims).eq(lasting(&other.claims))
    }
}
