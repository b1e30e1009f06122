use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
};

use async_graphql::Variables;
use futures_util::Stream;
use tidewire_outbox::{Audience, EntityId, Having, Item, News, Seat, Select, Wants};
use tokio::sync::{Notify, watch};

use super::{
    Counters, Open, RETRY,
    patches::{Newest, Writer},
    window::{Cut, Window},
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
    cut: Option<Cut>,
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

/// What has been heard that may change the result.
#[derive(Debug, Default)]
pub(super) struct Ear {
    heard: Mutex<Heard>,
    bell: Notify,
}

#[derive(Debug, Default)]
struct Heard {
    news: Vec<News>,
    /// Anything may have happened.
    anything: bool,
}

impl Ear {
    /// How many transactions are kept to be looked at. Of more, it is only known that something happened.
    const MOST: usize = 256;

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Heard {
        std::mem::take(&mut self.heard())
    }

    fn doubt_all(&self) {
        *self.heard() = Heard { news: Vec::new(), anything: true };
        self.bell.notify_one();
    }
}

impl Heard {
    /// Whether a result that was read before may be another now.
    fn matters(&self, window: Option<&Window>) -> bool {
        let touches = |news: &News, window: &Window| {
            news.changes.iter().any(|(at, kind)| window.is_touched(&news.transaction.changes[*at], *kind))
        };
        self.anything || self.news.iter().any(|news| window.is_none_or(|window| touches(news, window)))
    }
}

impl Audience for Ear {
    fn hear(&self, news: Vec<News>) {
        let mut heard = self.heard();
        if heard.news.len() + news.len() > Self::MOST {
            *heard = Heard { news: Vec::new(), anything: true };
        } else if !heard.anything {
            heard.news.extend(news);
        }
        drop(heard);
        self.bell.notify_one();
    }

    fn restart(&self, _place: u64) {
        self.doubt_all();
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
        let (mut select, prepared) = model.preparer(variables, access).list(LivePlan::of(&plan)?.list)?;
        let (wants, is_exact) = wants(&model, &select).await;
        let cut = if is_exact { Cut::new(model.catalog(), &mut select) } else { None };
        // Before the first read, so that whatever that does not see is heard.
        let ear = Arc::<Ear>::default();
        let audience: Weak<Ear> = Arc::downgrade(&ear);
        let seat = model.log().attend(wants, audience).await?;
        let query = Arc::new(Query { model, plan, select, prepared, cut, counters: Arc::clone(counters) });
        let (first, window) = query.first().await?;
        let (sender, latest) = watch::channel(first);
        tokio::spawn(Arc::clone(&query).keep(sender, window, ear, seat));
        Ok(Arc::new(Self { query, latest }))
    }
}

impl Query {
    async fn read(&self) -> Result<(String, Option<Window>), ApiError> {
        self.counters.queries.fetch_add(1, Ordering::Relaxed);
        let json = self.model.recorder.fetch(std::slice::from_ref(&self.select)).await?.remove(0);
        let window = match &self.cut {
            Some(cut) => cut.window(&self.model, &self.select, &json).await?,
            None => None,
        };
        Ok((json, window))
    }

    async fn first(&self) -> Result<(Latest, Option<Window>), ApiError> {
        let live = LivePlan::of(&self.plan)?;
        let (json, window) = self.read().await?;
        let latest = match live.patches {
            None => Latest::Whole(Arc::new(self.whole(&live, &json)?)),
            Some(_) => Latest::Patches(Arc::new(Newest::first(self.rows(&live, &json)?))),
        };
        Ok((latest, window))
    }

    /// The result after this one, with its window; no result where it is the same.
    async fn next(&self, known: &Latest) -> Result<(Option<Latest>, Option<Window>), ApiError> {
        let live = LivePlan::of(&self.plan)?;
        let (json, window) = self.read().await?;
        let latest = match known {
            Latest::Whole(known) => {
                let template = self.whole(&live, &json)?;
                (template.text != known.text).then(|| Latest::Whole(Arc::new(template)))
            }
            Latest::Patches(known) => {
                known.next(self.rows(&live, &json)?).map(|newest| Latest::Patches(Arc::new(newest)))
            }
        };
        Ok((latest, window))
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

    /// Runs the query again whenever what was heard may change its result, until nobody listens. However many changes come while it runs, it runs
    /// at most once more after them.
    async fn keep(
        self: Arc<Self>,
        latest: watch::Sender<Latest>,
        mut window: Option<Window>,
        ear: Arc<Ear>,
        _seat: Seat,
    ) {
        loop {
            tokio::select! {
                () = latest.closed() => return,
                () = ear.bell.notified() => {}
            }
            if self.model.log().is_stopped() {
                return;
            }
            // What comes from here on is looked at when the read has ended, whether it saw that or not.
            if !ear.take().matters(window.as_ref()) {
                continue;
            }
            let known = latest.borrow().clone();
            match self.next(&known).await {
                Ok((new, ends)) => {
                    window = ends;
                    if let Some(new) = new {
                        latest.send_replace(new);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a live query failed; trying again");
                    tokio::time::sleep(RETRY).await;
                    ear.doubt_all();
                }
            }
        }
    }
}

fn unasked(_: Failed) -> ApiError {
    ApiError::new(Code::Internal, "the database gave another result than was asked for")
}

/// Which changes may change the result: of the rows that pass, and of any that hang on them. And whether the former are all the changes of the entity
/// itself that may.
pub(super) async fn wants(model: &Model, select: &Select) -> (Wants, bool) {
    let mut inner = BTreeSet::new();
    add_reads(model, select, &mut inner);
    let meta = model.catalog().entity(select.entity);
    // Where the rows themselves hang on rows of their own entity, and where only the database knows who passes, any change may.
    let predicate =
        if inner.contains(&select.entity) { None } else { model.log().predicate(meta, &select.filter).await.ok() };
    let is_exact = predicate.is_some();
    let rows = match predicate {
        Some(predicate) => Wants::rows(select.entity, predicate),
        None => Wants::entities([select.entity]),
    };
    inner.remove(&select.entity);
    (rows.and(Wants::entities(inner)), is_exact)
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
