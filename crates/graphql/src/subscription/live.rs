use std::{
    collections::BTreeSet,
    sync::{Arc, Weak, atomic::Ordering},
};

use async_graphql::Variables;
use futures_util::Stream;
use tidewire_outbox::{Audience, EntityId, Having, Item, News, Seat, Select, Wants};
use tokio::sync::{Notify, watch};

use super::{
    Counters, Open, RETRY,
    patches::{Newest, Writer},
};
use crate::{
    error::{ApiError, Code},
    frame::{Frame, Template},
    model::Model,
    plan::{Failed, Keyed, List, LiveRows, PatchField, Plan, PreparedList, StreamField},
    policy::Access,
};

/// Subscribers of one live query. A task keeps the result; subscribers are told when it is another.
pub(super) struct LiveGroup {
    query: Arc<Query>,
    latest: watch::Receiver<Latest>,
}

/// The newest result, in the form that was asked for.
#[derive(Clone)]
enum Latest {
    /// As a whole: `task(…)`.
    Whole(Arc<Template>),
    /// As patches: `taskLive(…)`.
    Patches(Arc<Newest>),
}

/// A live query made ready to be run again and again.
struct Query {
    model: Arc<Model>,
    plan: Arc<Plan>,
    select: Select,
    prepared: PreparedList,
    counters: Arc<Counters>,
}

/// The part of a plan that a live query is.
struct LivePlan<'a> {
    key: &'a str,
    list: &'a List,
    /// What the patches have, where it comes as patches.
    patches: Option<&'a [Keyed<PatchField>]>,
}

impl<'a> LivePlan<'a> {
    fn of(plan: &'a Plan) -> Result<Self, ApiError> {
        if let Plan::Subscription(stream) = plan {
            let key = &stream.key;
            match &stream.field {
                StreamField::Live(list) => return Ok(Self { key, list, patches: None }),
                StreamField::Patches { list, fields } => return Ok(Self { key, list, patches: Some(fields) }),
                StreamField::Changes { .. } | StreamField::AllChanges { .. } => {}
            }
        }
        Err(ApiError::bad_input("this is no live query"))
    }
}

/// Is rung when the result may have changed.
#[derive(Debug, Default)]
pub(super) struct Bell(Notify);

impl Audience for Bell {
    fn hear(&self, _news: Vec<News>) {
        self.0.notify_one();
    }

    fn restart(&self, _place: u64) {
        self.0.notify_one();
    }

    fn doubt(&self) {}
}

impl LiveGroup {
    pub(super) async fn start(
        model: Arc<Model>,
        plan: Arc<Plan>,
        variables: &Variables,
        access: &Access,
        counters: &Arc<Counters>,
    ) -> Result<Arc<Self>, ApiError> {
        let (select, prepared) = model.preparer(variables, access).list(LivePlan::of(&plan)?.list)?;
        // Before the first read, so that whatever that does not see rings.
        let bell = Arc::<Bell>::default();
        let audience: Weak<Bell> = Arc::downgrade(&bell);
        let seat = model.log().attend(wants(&model, &select).await, audience).await?;
        let query = Arc::new(Query { model, plan, select, prepared, counters: Arc::clone(counters) });
        let (sender, latest) = watch::channel(query.first().await?);
        tokio::spawn(Arc::clone(&query).keep(sender, bell, seat));
        Ok(Arc::new(Self { query, latest }))
    }
}

impl Query {
    async fn read(&self) -> Result<String, ApiError> {
        self.counters.queries.fetch_add(1, Ordering::Relaxed);
        Ok(self.model.recorder.fetch(std::slice::from_ref(&self.select)).await?.remove(0))
    }

    async fn first(&self) -> Result<Latest, ApiError> {
        let live = LivePlan::of(&self.plan)?;
        let json = self.read().await?;
        Ok(match live.patches {
            None => Latest::Whole(Arc::new(self.whole(&live, &json)?)),
            Some(_) => Latest::Patches(Arc::new(Newest::first(self.rows(&live, &json)?))),
        })
    }

    /// The result after this one; `None` where it is the same.
    async fn next(&self, known: &Latest) -> Result<Option<Latest>, ApiError> {
        let live = LivePlan::of(&self.plan)?;
        let json = self.read().await?;
        Ok(match known {
            Latest::Whole(known) => {
                let template = self.whole(&live, &json)?;
                (template.text != known.text).then(|| Latest::Whole(Arc::new(template)))
            }
            Latest::Patches(known) => {
                known.next(self.rows(&live, &json)?).map(|newest| Latest::Patches(Arc::new(newest)))
            }
        })
    }

    fn whole(&self, live: &LivePlan<'_>, json: &str) -> Result<Template, ApiError> {
        let mut template = Template::default();
        template.text.push_str("{\"data\":{");
        template.text.push_str(live.key);
        self.model.stream_encoder().list(live.list, &self.prepared, json, &mut template.text).map_err(unasked)?;
        template.text.push_str("}}");
        Ok(template)
    }

    fn rows(&self, live: &LivePlan<'_>, json: &str) -> Result<LiveRows, ApiError> {
        self.model.stream_encoder().live_rows(live.list, &self.prepared, json).map_err(unasked)
    }

    /// Runs the query again whenever the bell is rung, until nobody listens. However many changes come while it runs, it runs once more after
    /// them.
    async fn keep(self: Arc<Self>, latest: watch::Sender<Latest>, bell: Arc<Bell>, _seat: Seat) {
        loop {
            tokio::select! {
                () = latest.closed() => return,
                () = bell.0.notified() => {}
            }
            if self.model.log().is_stopped() {
                return;
            }
            let known = latest.borrow().clone();
            match self.next(&known).await {
                Ok(Some(new)) => drop(latest.send_replace(new)),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "a live query failed; trying again");
                    tokio::time::sleep(RETRY).await;
                    bell.0.notify_one();
                }
            }
        }
    }
}

fn unasked(_: Failed) -> ApiError {
    ApiError::new(Code::Internal, "the database gave another result than was asked for")
}

/// Which changes may change the result: of the rows that pass, and of any that hang on them.
pub(super) async fn wants(model: &Model, select: &Select) -> Wants {
    let mut inner = BTreeSet::new();
    add_reads(model, select, &mut inner);
    let meta = model.catalog().entity(select.entity);
    // Where the rows themselves hang on rows of their own entity, and where only the database knows who passes, any change may.
    let predicate =
        if inner.contains(&select.entity) { None } else { model.log().predicate(meta, &select.filter).await.ok() };
    let rows = match predicate {
        Some(predicate) => Wants::rows(select.entity, predicate),
        None => Wants::entities([select.entity]),
    };
    inner.remove(&select.entity);
    rows.and(Wants::entities(inner))
}

/// Adds every entity that a select reads beside its own rows.
fn add_reads(model: &Model, select: &Select, reads: &mut BTreeSet<EntityId>) {
    let relations = &model.catalog().entity(select.entity).relations;
    let mut add_relation = |relation: usize| {
        reads.insert(relations[relation].target);
        reads.extend(relations[relation].junction.as_ref().map(|junction| junction.entity));
    };
    for Having { relation, .. } in &select.having {
        add_relation(*relation);
    }
    let mut inner = Vec::new();
    for item in &select.items {
        if let Item::One(relation, select) | Item::Many(relation, select) = item {
            add_relation(*relation);
            inner.push(select);
        }
    }
    for select in inner {
        add_reads(model, select, reads);
    }
}

pub(super) fn subscribe(group: Arc<LiveGroup>, open: Open) -> impl Stream<Item = Vec<Frame>> + Send {
    async_stream::stream! {
        let Ok(LivePlan { key, list, patches }) = LivePlan::of(&group.query.plan) else { return };
        let encoder = group.query.model.stream_encoder();
        let writer = Writer { encoder, key, list, fields: patches.unwrap_or_default() };
        let mut latest = group.latest.clone();
        // The result as it is now comes first, seen or not.
        latest.mark_changed();
        let (mut seen, mut sequence) = (None, 0);
        while latest.changed().await.is_ok() {
            let newest = latest.borrow_and_update().clone();
            let template = match newest {
                Latest::Whole(template) => Some(template),
                Latest::Patches(newest) => {
                    let patch = newest.since(seen.as_deref(), &writer).await;
                    seen = Some(Arc::clone(&newest.version));
                    patch
                }
            };
            // What has changed back since it was seen is no change.
            if let Some(template) = template {
                open.0.events.fetch_add(1, Ordering::Relaxed);
                yield vec![Frame::new(template, sequence, false)];
                sequence += 1;
            }
        }
    }
}
