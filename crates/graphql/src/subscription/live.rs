use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_graphql::Variables;
use futures_util::Stream;
use tidewire_outbox::{Cursor, EntityId, Having, Item, Select, Step};
use tokio::sync::watch;

use super::Open;
use crate::{
    error::ApiError,
    frame::{Frame, Template},
    model::Model,
    plan::{Plan, PreparedList, StreamField},
    policy::Access,
};

/// How long to wait before a query that failed is tried again.
const RETRY: Duration = Duration::from_millis(250);

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
    /// The entities whose changes may change the result.
    reads: BTreeSet<EntityId>,
}

impl LiveGroup {
    pub(super) async fn start(
        model: Arc<Model>,
        plan: Arc<Plan>,
        variables: &Variables,
        access: &Access,
    ) -> Result<Arc<Self>, ApiError> {
        let Plan::Subscription(stream) = &*plan else { return Err(ApiError::bad_input("this is no subscription")) };
        let StreamField::Live(list) = &stream.field else { return Err(ApiError::bad_input("this is no live query")) };
        let (select, prepared) = model.preparer(variables, access).list(list)?;
        let mut reads = BTreeSet::new();
        add_reads(&model, &select, &mut reads);
        let query = Query { model, plan: Arc::clone(&plan), select, prepared, reads };
        let (first, cursor) = query.run().await?;
        let (sender, latest) = watch::channel(Arc::new(first));
        tokio::spawn(query.keep(sender, cursor));
        Ok(Arc::new(Self { latest }))
    }
}

impl Query {
    async fn run(&self) -> Result<(Template, Cursor), ApiError> {
        let (parts, cursor) = self.model.recorder.fetch_at(std::slice::from_ref(&self.select)).await?;
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
        Ok((template, cursor))
    }

    /// Runs the query again whenever something that it reads has changed, until nobody listens. However many changes come while it runs, it
    /// runs once more after them.
    async fn keep(self, latest: watch::Sender<Arc<Template>>, mut cursor: Cursor) {
        loop {
            let again = tokio::select! {
                () = latest.closed() => return,
                again = self.wait(&cursor) => again,
            };
            if !again {
                return;
            }
            match self.run().await {
                Ok((template, at)) => {
                    cursor = at;
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
                }
            }
        }
    }

    /// Waits until something that the query reads has changed after the cursor; `false` when the log has ended.
    async fn wait(&self, after: &Cursor) -> bool {
        let mut follower = match self.model.log().follow_all(after.clone()).await {
            Ok(follower) => follower,
            Err(_) => {
                tokio::time::sleep(RETRY).await;
                return true;
            }
        };
        loop {
            match follower.next().await {
                Ok(Step::Ended) => return false,
                Ok(Step::Resync(_)) => return true,
                Ok(Step::Transactions { transactions, .. }) => {
                    let mut changes = transactions.iter().flat_map(|transaction| &transaction.changes);
                    if changes.any(|change| self.reads.contains(&change.entity)) {
                        return true;
                    }
                }
                Err(_) => {
                    tokio::time::sleep(RETRY).await;
                    return true;
                }
            }
        }
    }
}

/// Adds every entity that a select reads.
fn add_reads(model: &Model, select: &Select, reads: &mut BTreeSet<EntityId>) {
    reads.insert(select.entity);
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

pub(super) fn subscribe(group: Arc<LiveGroup>, open: Open) -> impl Stream<Item = Frame> + Send {
    use std::sync::atomic::Ordering;
    async_stream::stream! {
        let mut latest = group.latest.clone();
        // The result as it is now comes first, seen or not.
        latest.mark_changed();
        while latest.changed().await.is_ok() {
            let template = Arc::clone(&latest.borrow_and_update());
            open.0.events.fetch_add(1, Ordering::Relaxed);
            yield Frame::new(template, 0, false);
        }
    }
}
