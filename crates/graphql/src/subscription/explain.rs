//! Why a subscriber gets changes, or does not.
//!
//! What is asked here is what delivers: the group's own wants and sights, and its own seat in the index. Beside them, filter and rules are asked one
//! by one, so that the answer can say which of them it was.

use std::{collections::HashMap, sync::Arc};

use async_graphql::Variables;
use tidewire_outbox::{
    Change, Cursor, EntityId, EventKind, Filter, Image, Log, Operation, Route, Seat, Step, Transaction, Wants,
    filter::{Deciding, Predicate},
};

use super::{
    Subscriptions,
    changes::{ChangeGroup, Seen, asked, entities, event_word, operation_word},
    live::{Ear, wants},
    subscriber::{MALFORMED, resync_word},
};
use crate::{
    api::Request,
    error::{ApiError, Code},
    explanation::{
        ExplainedChange, ExplainedImage, ExplainedIndex, ExplainedRule, ExplainedTransaction, Explanation, IndexedBy,
        Outcome,
    },
    model::Model,
    plan::{List, Plan, StreamField},
    policy::{Access, Action, Usage},
    viewer::Viewer,
};

/// How many changes are explained at once. A transaction may have many more.
const MAX_CHANGES: usize = 1_000;

/// A subscription, with what is asked of it.
struct Subject<'a> {
    model: &'a Model,
    access: Arc<Access>,
    kind: Kind,
    /// By the entities whose rows it gives.
    questions: HashMap<EntityId, Questions>,
}

enum Kind {
    Changes(Arc<ChangeGroup>),
    Live(LiveSubject),
}

/// A live query, which has a seat of its own here: what it wants, but nobody who reads it.
struct LiveSubject {
    entity: EntityId,
    wants: Wants,
    seat: Seat,
    _ear: Arc<Ear>,
}

/// What is asked of the rows of an entity, one by one. Predicates are `None` where only the database can answer.
struct Questions {
    filter: Option<Predicate>,
    /// All rules together.
    sight: Option<Predicate>,
    /// Each with its role.
    rules: Vec<(String, Option<Predicate>)>,
    hidden: Vec<String>,
}

impl Subscriptions {
    /// Why a subscriber gets the changes after a cursor, or does not: of so many transactions.
    pub(crate) async fn explain(
        &self,
        plan: Arc<Plan>,
        request: &Request,
        variables: Variables,
        access: Arc<Access>,
        after: &str,
        limit: usize,
    ) -> Result<Explanation, ApiError> {
        let subject = match self.subject(&plan, request, variables, access).await {
            Ok(subject) => subject,
            // What a subscriber would be answered, unless the answer is that it should try again.
            Err(error) if matches!(error.code, Code::Busy | Code::Unavailable | Code::Internal) => return Err(error),
            Err(error) => return Ok(Explanation::refused(format!("{}: {error}", error.code.as_str()))),
        };
        let mut explanation = Explanation::new(subject.filter_text());
        match after.parse() {
            Ok(cursor) => subject.follow(self.model.log(), cursor, limit, &mut explanation).await?,
            Err(_) => explanation.resync = Some(MALFORMED),
        }
        Ok(explanation)
    }

    async fn subject(
        &self,
        plan: &Arc<Plan>,
        request: &Request,
        variables: Variables,
        access: Arc<Access>,
    ) -> Result<Subject<'_>, ApiError> {
        let Plan::Subscription(stream) = &**plan else { return Err(ApiError::bad_input("this is no subscription")) };
        let model = &*self.model;
        // As a subscriber, who is refused in this order too.
        let kind = match &stream.field {
            StreamField::Live(list) | StreamField::Patches { list, .. } => {
                let (select, _) = model.preparer(&variables, &access).list(list)?;
                let (wants, _) = wants(model, &select).await;
                let ear = Arc::<Ear>::default();
                let audience: std::sync::Weak<Ear> = Arc::downgrade(&ear);
                let seat = model.log().attend(wants.clone(), audience).await?;
                Kind::Live(LiveSubject { entity: list.entity, wants, seat, _ear: ear })
            }
            _ => Kind::Changes(self.change_group(plan, stream, request, variables.clone(), Arc::clone(&access)).await?),
        };
        let filters = match &stream.field {
            StreamField::Live(List { entity, arguments, .. })
            | StreamField::Patches { list: List { entity, arguments, .. }, .. }
            | StreamField::Changes { entity, arguments, .. } => {
                vec![(*entity, asked(model, &access, *entity, &arguments.resolve(&variables))?)]
            }
            StreamField::AllChanges { arguments, .. } => {
                let entities = entities(model, &access, arguments, &variables)?;
                entities.into_iter().map(|entity| (entity, Filter::all())).collect()
            }
        };
        let mut questions = HashMap::new();
        for (entity, filter) in filters {
            questions.insert(entity, Questions::new(model, &access, &request.viewer, entity, &filter).await?);
        }
        Ok(Subject { model, access, kind, questions })
    }
}

impl Questions {
    async fn new(
        model: &Model,
        access: &Access,
        viewer: &Viewer,
        entity: EntityId,
        filter: &Filter,
    ) -> Result<Self, ApiError> {
        let meta = model.catalog().entity(entity);
        let compiled = async |filter: &Filter| model.log().predicate(meta, filter).await.ok();
        let mut rules = Vec::new();
        for (role, rows) in model.policies.reading(viewer, meta, &model.names) {
            rules.push((role.to_owned(), compiled(&rows).await));
        }
        let names = &model.names.entity(entity).columns;
        let hidden = (0..names.len()).filter(|&column| !access.allows(Usage::Read, entity, column));
        Ok(Self {
            filter: compiled(filter).await,
            sight: compiled(&access.rows(Action::Read, entity, &model.names)?).await,
            rules,
            hidden: hidden.map(|column| names[column].clone()).collect(),
        })
    }

    fn image(&self, image: &Image, names: &[String]) -> ExplainedImage {
        let passes = |predicate: &Option<Predicate>| predicate.as_ref().map(|predicate| predicate.matches(image));
        let rule = |(role, rule): &(String, Option<Predicate>)| ExplainedRule {
            role: role.clone(),
            rule: rule.as_ref().map(|rule| rule.text(names)),
            passes: passes(rule),
            deciding: deciding(rule.as_ref(), image, names),
        };
        ExplainedImage {
            filter: passes(&self.filter),
            deciding: deciding(self.filter.as_ref(), image, names),
            policy: passes(&self.sight),
            rules: self.rules.iter().map(rule).collect(),
        }
    }
}

/// The conditions that decide, each with whether it holds.
fn deciding(predicate: Option<&Predicate>, image: &Image, names: &[String]) -> Vec<String> {
    let deciding = predicate.into_iter().flat_map(|predicate| predicate.deciding(image, names));
    let text = |Deciding { condition, holds }| match holds {
        Some(true) => format!("{condition} is true"),
        Some(false) => format!("{condition} is false"),
        None => format!("{condition} is unknown"),
    };
    deciding.map(text).collect()
}

impl Subject<'_> {
    /// The filter of a subscription to one entity.
    fn filter_text(&self) -> Option<String> {
        let entity = match &self.kind {
            Kind::Changes(group) => group.shape.as_ref()?.0,
            Kind::Live(live) => live.entity,
        };
        let names = &self.model.names.entity(entity).columns;
        Some(self.questions.get(&entity)?.filter.as_ref()?.text(names))
    }

    async fn follow(
        &self,
        log: &Log,
        after: Cursor,
        limit: usize,
        explanation: &mut Explanation,
    ) -> Result<(), ApiError> {
        // This process may not have read yet what was written last.
        let end = log.position().await?;
        let mut room = MAX_CHANGES;
        let mut follower = log.follow_all(after.clone()).await?;
        explanation.cursor = Some(after.to_string());
        loop {
            match follower.next().await? {
                Step::Ended => return Err(ApiError::new(Code::Unavailable, "the server is stopping")),
                Step::Resync(reason) => {
                    explanation.resync = Some(resync_word(reason));
                    return Ok(());
                }
                Step::Transactions { transactions, cursor, up_to_date } => {
                    if transactions.is_empty() && !up_to_date {
                        return Err(ApiError::new(Code::Unavailable, "the database cannot be reached now; try again"));
                    }
                    for transaction in &transactions {
                        if explanation.transactions.len() == limit || room == 0 {
                            return Ok(());
                        }
                        let explained = self.transaction(transaction, room);
                        room -= explained.changes.len();
                        explanation.cursor = Some(explained.cursor.clone());
                        explanation.transactions.push(explained);
                    }
                    explanation.cursor = Some(cursor.to_string());
                    if up_to_date && cursor.covers(&end) {
                        explanation.up_to_date = true;
                        return Ok(());
                    }
                }
            }
        }
    }

    fn transaction(&self, transaction: &Transaction, room: usize) -> ExplainedTransaction {
        let Transaction { cursor, changes } = transaction;
        ExplainedTransaction {
            cursor: cursor.to_string(),
            changes: changes.iter().take(room).map(|change| self.change(change)).collect(),
            omitted: changes.len().saturating_sub(room),
        }
    }

    fn change(&self, change: &Change) -> ExplainedChange {
        let names = self.model.names.entity(change.entity);
        let meta = self.model.catalog().entity(change.entity);
        let mut key = String::new();
        self.model.stream_encoder().row_json(change.entity, change.image(), meta.key.iter().copied(), &mut key);
        let questions = self.questions.get(&change.entity);
        let image = |image: &Option<Image>| Some(questions?.image(image.as_ref()?, &names.columns));
        let (before, after) = (image(&change.before), image(&change.after));
        let (event, outcome, reason) = match &self.kind {
            Kind::Changes(group) => match group.seen(change) {
                Some(seen) => (Some(event_word(seen.kind())), Outcome::Delivered, delivered(&seen, change)),
                None => {
                    let (outcome, reason) = self.withheld(group, change, [&before, &after]);
                    (None, outcome, reason)
                }
            },
            Kind::Live(live) => {
                let (outcome, reason) = live.outcome(change, [&before, &after]);
                (None, outcome, reason)
            }
        };
        ExplainedChange {
            entity: names.field.clone(),
            key: serde_json::from_str(&key).unwrap_or_default(),
            operation: operation_word(change.operation),
            index: self.route(change, &names.columns),
            before,
            after,
            hidden_fields: questions.map_or_else(Vec::new, |questions| questions.hidden.clone()),
            event,
            outcome,
            reason,
        }
    }

    fn route(&self, change: &Change, names: &[String]) -> Option<ExplainedIndex> {
        let seat = match &self.kind {
            Kind::Changes(group) => group.seat.get()?,
            Kind::Live(live) => &live.seat,
        };
        let (before, after) = (change.before.is_some(), change.after.is_some());
        Some(match seat.route(change, names)? {
            Route::Entity => ExplainedIndex { by: IndexedBy::Entity, keys: Vec::new(), before, after },
            Route::Each => ExplainedIndex { by: IndexedBy::Each, keys: Vec::new(), before, after },
            Route::Keys { keys, before, after } => ExplainedIndex { by: IndexedBy::Keys, keys, before, after },
        })
    }

    /// Why subscribers to changes are not told of one.
    fn withheld(
        &self,
        group: &ChangeGroup,
        change: &Change,
        images: [&Option<ExplainedImage>; 2],
    ) -> (Outcome, String) {
        if !self.questions.contains_key(&change.entity) {
            // Who asks for all entities is given those that may be read.
            return if group.shape.is_none() && !self.access.reads(change.entity) {
                (Outcome::Policy, "no role lets the viewer read this entity".into())
            } else {
                (Outcome::OtherEntity, OTHER_ENTITY.into())
            };
        }
        if group.wants.meaning(change).is_none() {
            return missed(images);
        }
        if !group.asks_for(change.operation) {
            let operation = operation_word(change.operation);
            return (Outcome::Operation, format!("the subscription does not ask for the operation {operation}"));
        }
        (Outcome::HiddenFields, "only fields have changed that the viewer may not see".into())
    }
}

const OTHER_ENTITY: &str = "the subscription has nothing to do with this entity";

/// Why a change means nothing, neither of whose images passes: where one passes the filter, it was the policy that hid it.
fn missed(images: [&Option<ExplainedImage>; 2]) -> (Outcome, String) {
    if images.into_iter().flatten().any(|image| image.filter == Some(true)) {
        return (Outcome::Policy, "the policy hides the row from the viewer, where it passes the filter".into());
    }
    (Outcome::Filter, "the row passes the filter neither before nor after".into())
}

/// Why subscribers are told of a change, and as what.
fn delivered(seen: &Seen<'_>, change: &Change) -> String {
    let why = match (seen.kind(), change.operation) {
        (EventKind::Enter, Operation::Insert) => "the new row passes",
        (EventKind::Enter, _) => "the row passes, and did not before",
        (EventKind::Update, _) => "the row passes before and after",
        (EventKind::Leave, Operation::Delete) => "the row passed, and is deleted",
        (EventKind::Leave, _) if seen.is_out_of_sight() => {
            "the row passed, and is hidden from the viewer now: only its key is told"
        }
        (EventKind::Leave, _) => "the row passed, and does so no longer",
    };
    format!("delivered as {}: {why}", event_word(seen.kind()))
}

impl LiveSubject {
    fn outcome(&self, change: &Change, images: [&Option<ExplainedImage>; 2]) -> (Outcome, String) {
        let is_own = change.entity == self.entity;
        if self.wants.meaning(change).is_some() {
            let passes = |image: &ExplainedImage| image.filter != Some(false) && image.policy != Some(false);
            let why = if !is_own {
                "it also reads this entity"
            } else if images.into_iter().flatten().any(passes) {
                "the row passes, before or after"
            } else {
                "its rows hang on other rows of the same entity"
            };
            let then = "A row that comes after the end of the page is no reason. The subscriber gets the result if it is another, and once for changes \
                        that come fast";
            return (Outcome::ReadAgain, format!("the live query is read again, because {why}. {then}"));
        }
        if is_own { missed(images) } else { (Outcome::OtherEntity, "the live query does not read this entity".into()) }
    }
}
