//! Running subscriptions.
//!
//! Subscriptions with the same document, variables and rights form a group. What a transaction means to a group is worked out once, by whoever of the
//! group comes to it first, and written once; the others share it. Each subscriber walks the log at its own pace, so none waits for another.

mod changes;
mod diff;
mod explain;
mod hits;
mod live;
mod patches;
mod subscriber;
mod window;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_graphql::Variables;
use futures_util::{StreamExt, stream::BoxStream};

use self::{changes::ChangeGroup, live::LiveGroup};
use crate::{
    api::Request,
    error::ApiError,
    frame::Frame,
    model::Model,
    plan::{Plan, Stream, StreamField},
    policy::{Access, Scope},
};

/// How long to wait before a read that failed is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// All subscriptions of an API.
pub(crate) struct Subscriptions {
    model: Arc<Model>,
    changes: Groups<ChangeGroup>,
    live: Groups<LiveGroup>,
    counters: Arc<Counters>,
}

/// How many subscriptions there are, and what they have been given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SubscriptionStats {
    /// Subscriptions that are open.
    pub open: u64,
    /// Those of them that wait for changes. The others have yet to get there, or are live queries.
    pub live: u64,
    /// Groups of subscriptions with the same document and variables.
    pub groups: u64,
    /// Events that have been handed to transports.
    pub events: u64,
    /// Changes in them.
    pub changes: u64,
    /// Resyncs among the events.
    pub resyncs: u64,
    /// How often one that waited was too slow to be told, and read the log instead.
    pub left_behind: u64,
    /// How often live queries were read.
    pub queries: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) open: AtomicU64,
    pub(crate) events: AtomicU64,
    pub(crate) changes: AtomicU64,
    pub(crate) resyncs: AtomicU64,
    pub(crate) left_behind: AtomicU64,
    pub(crate) queries: AtomicU64,
}

/// Counts a subscription for as long as it lives.
struct Open(Arc<Counters>);

impl Open {
    fn new(counters: &Arc<Counters>) -> Self {
        counters.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counters))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What makes two subscriptions the same: document, operation, variables, and what their viewers may see.
type GroupKey = (Arc<str>, Option<Arc<str>>, String, Scope);

struct Groups<G>(Mutex<HashMap<GroupKey, Weak<G>>>);

impl<G> Groups<G> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    /// Those that somebody listens to.
    fn all(&self) -> Vec<Arc<G>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().filter_map(Weak::upgrade).collect()
    }

    fn get(&self, key: &GroupKey) -> Option<Arc<G>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key)?.upgrade()
    }

    /// Adds a group, unless another made one in the meantime: then gives that.
    fn insert(&self, key: GroupKey, group: Arc<G>) -> Arc<G> {
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = groups.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        // Groups that have ended go when the map would grow.
        if groups.len() == groups.capacity() {
            groups.retain(|_, group| group.strong_count() > 0);
        }
        groups.insert(key, Arc::downgrade(&group));
        group
    }
}

impl Subscriptions {
    pub(crate) fn new(model: Arc<Model>) -> Self {
        Self { model, changes: Groups::new(), live: Groups::new(), counters: Arc::default() }
    }

    pub(crate) fn stats(&self) -> SubscriptionStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let groups = self.changes.all();
        SubscriptionStats {
            open: load(&self.counters.open),
            live: groups.iter().map(|group| group.hits.live() as u64).sum(),
            groups: (groups.len() + self.live.all().len()) as u64,
            events: load(&self.counters.events),
            changes: load(&self.counters.changes),
            resyncs: load(&self.counters.resyncs),
            left_behind: load(&self.counters.left_behind),
            queries: load(&self.counters.queries),
        }
    }

    pub(crate) async fn open(
        &self,
        plan: Arc<Plan>,
        request: &Request,
        variables: Variables,
        access: Arc<Access>,
    ) -> Result<BoxStream<'static, Vec<Frame>>, ApiError> {
        let Plan::Subscription(stream) = &*plan else {
            return Err(ApiError::bad_input("this is no subscription"));
        };
        let open = Open::new(&self.counters);
        let is_live = matches!(stream.field, StreamField::Live(_) | StreamField::Patches { .. });
        // Where a subscriber starts is its own; what it sees is the group's.
        let start = changes::Start::read(&stream.field, &variables);
        if is_live {
            let key = key(&stream.field, request, &variables, &access);
            let group = match self.live.get(&key) {
                Some(group) => group,
                None => {
                    let group = LiveGroup::start(Arc::clone(&self.model), plan, &variables, &access, &self.counters);
                    self.live.insert(key, group.await?)
                }
            };
            return Ok(live::subscribe(group, open).boxed());
        }
        let group = self.change_group(&plan, stream, request, variables, access).await?;
        Ok(subscriber::subscribe(group, start, open).await?.boxed())
    }

    /// The group that such a subscriber to changes is of.
    async fn change_group(
        &self,
        plan: &Arc<Plan>,
        stream: &Stream,
        request: &Request,
        variables: Variables,
        access: Arc<Access>,
    ) -> Result<Arc<ChangeGroup>, ApiError> {
        let key = key(&stream.field, request, &variables, &access);
        if let Some(group) = self.changes.get(&key) {
            return Ok(group);
        }
        let group = ChangeGroup::new(Arc::clone(&self.model), Arc::clone(plan), variables, access).await?;
        Ok(self.changes.insert(key, group))
    }
}

fn key(field: &StreamField, request: &Request, variables: &Variables, access: &Access) -> GroupKey {
    (
        Arc::from(request.query.as_str()),
        request.operation_name.as_deref().map(Arc::from),
        changes::group_variables(field, &request.query, variables),
        access.scope().clone(),
    )
}
