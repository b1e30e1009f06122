use std::{
    collections::BTreeSet,
    sync::{Arc, Weak, atomic::Ordering},
};

use async_graphql::Variables;
use futures_util::Stream;
use tidewire_outbox::{Audience, EntityId, Having, Item, News, Select, Wants};
use tokio::sync::{Notify, watch};

use super::{Counters, Open, RETRY};
use crate::{
    error::ApiError,
    frame::{Frame, Template},
    model::Model,
    plan::{Plan, PreparedList, StreamField},
    policy::Access,
};

/// Subscribers of one live query. A task keeps the result; subscribers are told when it is another.
pub(super) struct LiveGroup {
    latest: watch::Receiver<Arc<Template>>,
}

/// A live query made ready to be run again and again.
struct Query {
    model: Arc<Model>,
    plan: Arc<Plan>,
    select: Select,
    prepared: PreparedList,
    counters: Arc<Counters>,
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
        let Plan::Subscription(stream) = &*plan else { return Err(ApiError::bad_input("this is no subscription")) };
        let StreamField::Live(list) = &stream.field else { return Err(ApiError::bad_input("this is no live query")) };
        let (select, prepared) = model.preparer(variables, access).list(list)?;
        // Before the first read, so that whatever that does not see rings.
        let bell = Arc::<Bell>::default();
        let audience: Weak<Bell> = Arc::downgrade(&bell);
        let seat = model.log().attend(wants(&model, &select).await, audience).await?;
        let query = Query { model, plan: Arc::clone(&plan), select, prepared, counters: Arc::clone(counters) };
        let (sender, latest) = watch::channel(Arc::new(query.run().await?));
        tokio::spawn(async move {
            query.keep(sender, &bell).await;
            drop(seat);
        });
        Ok(Arc::new(Self { latest }))
    }
}

impl Query {
    async fn run(&self) -> Result<Template, ApiError> {
        self.counters.queries.fetch_add(1, Ordering::Relaxed);
        let parts = self.model.recorder.fetch(std::slice::from_ref(&self.select)).await?;
        let Plan::Subscription(stream) = &*self.plan else {
            return Err(ApiError::bad_input("this is no subscription"));
        };
        let StreamField::Live(list) = &stream.field else { return Err(ApiError::bad_input("this is no live query")) };
        let mut template = Template::default();
        template.text.push_str("{\"data\":{");
        template.text.push_str(&stream.key);
        self.model.stream_encoder().list(list, &self.prepared, &parts[0], &mut template.text).map_err(|_| {
            ApiError::new(crate::error::Code::Internal, "the database gave another result than was asked for")
        })?;
        template.text.push_str("}}");
        Ok(template)
    }

    /// Runs the query again whenever the bell is rung, until nobody listens. However many changes come while it runs, it runs once more after
    /// them.
    async fn keep(self, latest: watch::Sender<Arc<Template>>, bell: &Bell) {
        loop {
            tokio::select! {
                () = latest.closed() => return,
                () = bell.0.notified() => {}
            }
            if self.model.log().is_stopped() {
                return;
            }
            match self.run().await {
                Ok(template) => {
                    latest.send_if_modified(|known| {
                        let other = known.text != template.text;
                        if other {
                            *known = Arc::new(template);
                        }
                        other
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a live query failed; trying again");
                    tokio::time::sleep(RETRY).await;
                    bell.0.notify_one();
                }
            }
        }
    }
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
        let mut latest = group.latest.clone();
        // The result as it is now comes first, seen or not.
        latest.mark_changed();
        while latest.changed().await.is_ok() {
            let template = Arc::clone(&latest.borrow_and_update());
            open.0.events.fetch_add(1, Ordering::Relaxed);
            yield vec![Frame::new(template, 0, false)];
        }
    }
}
