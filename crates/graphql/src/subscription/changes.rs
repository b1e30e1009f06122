use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

use async_graphql::{Name, Value as ConstValue, Variables, indexmap::IndexMap};
use sea_orm::sea_query::Value;
use tidewire_outbox::{
    Audience, Change, Cursor, EntityId, EventKind, Filter, Image, Item, News, Operation, Seat, Transaction, Wants,
    cell,
    filter::{Comparison, Predicate},
    json::Scanner,
};
use tokio::sync::OnceCell;

use super::{
    RETRY,
    hits::{Hit, Hits},
};
use crate::{
    error::ApiError,
    frame::{Hole, Template},
    input::{Reader, enum_name, list},
    model::Model,
    plan::{
        Arguments, ChangeField, EventField, Keyed, Node, NodeField, Plan, PreparedNode, StreamField, object, separate,
    },
    policy::{Access, Action, Usage},
    wire::write_string,
};

/// Where a subscriber starts.
#[derive(Debug, Clone)]
pub(super) struct Start {
    /// `Err`: a text that is no cursor.
    pub(super) after: Option<Result<Cursor, ()>>,
    pub(super) snapshot: bool,
}

impl Start {
    pub(super) fn read(field: &StreamField, variables: &Variables) -> Self {
        let Some(arguments) = arguments(field) else { return Self { after: None, snapshot: false } };
        let arguments = arguments.resolve(variables);
        let after = match arguments.get("after") {
            Some(ConstValue::String(cursor)) => Some(cursor.parse().map_err(drop)),
            _ => None,
        };
        Self { after, snapshot: arguments.get("snapshot") == Some(&ConstValue::Boolean(true)) }
    }
}

fn arguments(field: &StreamField) -> Option<&Arguments> {
    match field {
        StreamField::Changes { arguments, .. } | StreamField::AllChanges { arguments, .. } => Some(arguments),
        StreamField::Live(_) | StreamField::Patches { .. } => None,
    }
}

/// The variables that make two subscriptions different, as text: not those that only say where one starts.
pub(super) fn group_variables(field: &StreamField, query: &str, variables: &Variables) -> String {
    let shared: Vec<_> = match arguments(field) {
        Some(arguments) => {
            // One that the document uses for something else as well, beside its definition and here, makes a difference.
            let own = ["after", "snapshot"]
                .map(|name| arguments.variable(name).filter(|variable| occurrences(query, variable) == 2));
            variables.iter().filter(|(name, _)| !own.contains(&Some(*name))).collect()
        }
        None => variables.iter().collect(),
    };
    serde_json::to_string(&shared).unwrap_or_default()
}

/// How often a document names a variable.
fn occurrences(query: &str, variable: &str) -> usize {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    query.split('$').skip(1).filter(|rest| rest.split(|c| !is_name(c)).next() == Some(variable)).count()
}

/// Subscribers of the same changes.
pub(super) struct ChangeGroup {
    pub(super) model: Arc<Model>,
    plan: Arc<Plan>,
    access: Arc<Access>,
    /// Which rows of which entity a snapshot has; none where the group is told of several entities.
    pub(super) shape: Option<(EntityId, Filter)>,
    /// Which changes the group sees, as far as rows go.
    pub(super) wants: Wants,
    /// Which rows of an entity the policy lets the group see, where it does not let it see all.
    sights: HashMap<EntityId, Predicate>,
    operations: Option<Vec<Operation>>,
    /// What the nodes of the changes need beside the changed rows: for each `node` field.
    nodes: Vec<(PreparedNode, Vec<Item>)>,
    /// What live subscribers have yet to be given.
    pub(super) hits: Arc<Hits>,
    /// What earlier transactions mean to the group, for those who are not live, by the number of their last change and their cursors: two who began
    /// elsewhere may have had different ones before the same transaction, and each is told where it stands itself.
    rendered: Mutex<VecDeque<(u64, Cursor, Arc<Rendered>)>>,
    /// Makes the group hear of changes.
    pub(super) seat: OnceLock<Seat>,
}

/// The event that a transaction makes, once it is written; `None` where it makes none.
type Rendered = OnceCell<Option<Shared>>;

/// An event that all of the group get.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) template: Arc<Template>,
    /// How many changes it tells of.
    pub(super) changes: u64,
    /// Where one stands who has it.
    pub(super) cursor: Option<Cursor>,
}

impl Shared {
    pub(super) fn size(&self) -> usize {
        self.template.text.len()
    }
}

/// What one event is made of.
struct Parts<'a> {
    cursor: Option<&'a Cursor>,
    resync: Option<&'static str>,
    changes: &'a [Seen<'a>],
    /// For each `node` field, the rows' relations by key.
    relations: Vec<HashMap<String, String>>,
}

/// A change, or a row of a snapshot, as the group sees it: an image that it may not see is none.
pub(super) struct Seen<'a> {
    kind: EventKind,
    change: Option<&'a Change>,
    entity: EntityId,
    before: Option<&'a Image>,
    after: Option<&'a Image>,
}

impl<'a> Seen<'a> {
    /// What the group is told.
    pub(super) fn kind(&self) -> EventKind {
        self.kind
    }

    /// Whether the change took the row out of the group's sight. Then nothing is told but that, and of which row.
    pub(super) fn is_out_of_sight(&self) -> bool {
        self.after.is_none() && self.change.is_some_and(|change| change.after.is_some())
    }

    /// The change, as far as the group may know who made it.
    fn told(&self) -> Option<&'a Change> {
        self.change.filter(|_| !self.is_out_of_sight())
    }

    /// The columns that differ between the images that the group sees; all of them for a row that is new to it, none for one that is gone.
    fn changed(&self, columns: impl Iterator<Item = usize>) -> impl Iterator<Item = usize> {
        columns.filter(|&column| match (self.before, self.after) {
            (Some(before), Some(after)) => before.cell(column) != after.cell(column),
            (_, after) => after.is_some(),
        })
    }

    fn image(&self) -> &Image {
        self.after.or(self.before).expect("a change has an image")
    }

    /// The row as it is now, for those who see it.
    fn node(&self) -> Option<&Image> {
        if self.kind == EventKind::Leave { None } else { self.after }
    }

    /// The row as it was, for those who saw it.
    fn previous(&self) -> Option<&Image> {
        if self.kind == EventKind::Enter || self.is_out_of_sight() { None } else { self.before }
    }
}

impl ChangeGroup {
    /// How many transactions' events are kept for those of the group who have yet to come to them.
    const KEPT: usize = 128;
    /// How many bytes of them, beside the newest. Those who come later work them out again.
    const KEPT_BYTES: usize = 4 << 20;

    pub(super) async fn new(
        model: Arc<Model>,
        plan: Arc<Plan>,
        variables: Variables,
        access: Arc<Access>,
    ) -> Result<Arc<Self>, ApiError> {
        let Plan::Subscription(stream) = &*plan else { return Err(ApiError::bad_input("this is no subscription")) };
        let mut nodes = Vec::new();
        let mut operations = None;
        let (shape, entities) = match &stream.field {
            StreamField::Live(_) | StreamField::Patches { .. } => {
                return Err(ApiError::bad_input("this is no subscription to changes"));
            }
            StreamField::AllChanges { arguments, .. } => (None, entities(&model, &access, arguments, &variables)?),
            StreamField::Changes { entity, arguments, fields } => {
                let arguments = arguments.resolve(&variables);
                let readable = access.rows(Action::Read, *entity, &model.names)?;
                let filter = asked(&model, &access, *entity, &arguments)?.and(readable);
                check_columns(&model, &access, fields)?;
                if let Some(value) = arguments.get("operations").filter(|value| **value != ConstValue::Null) {
                    operations = Some(list(value).iter().filter_map(operation).collect());
                }
                for node in node_fields(fields) {
                    let mut items = vec![Item::Key];
                    let mut prepared = PreparedNode::default();
                    for (_, field) in &node.fields {
                        if let NodeField::One(..) | NodeField::Many(..) = field {
                            let preparer = model.preparer(&variables, &access);
                            prepared.relations.push(preparer.relation(*entity, field, &mut items)?);
                        }
                    }
                    nodes.push((prepared, items));
                }
                (Some((*entity, filter)), vec![*entity])
            }
        };
        let sights = sights(&model, &access, &entities).await?;
        let wants = match &shape {
            Some((entity, filter)) => {
                Wants::rows(*entity, model.log().predicate(model.catalog().entity(*entity), filter).await?)
            }
            None => entities.iter().fold(Wants::default(), |wants, entity| {
                wants.and(match sights.get(entity) {
                    Some(sight) => Wants::rows(*entity, sight.clone()),
                    None => Wants::entities([*entity]),
                })
            }),
        };
        let group = Arc::new(Self {
            model,
            plan: Arc::clone(&plan),
            access,
            shape,
            wants: wants.clone(),
            sights,
            operations,
            nodes,
            hits: Arc::new(Hits::new()),
            rendered: Mutex::default(),
            seat: OnceLock::new(),
        });
        let audience: Weak<Self> = Arc::downgrade(&group);
        let seat = group.model.log().attend(wants, audience).await?;
        group.hits.begin(seat.place());
        let _ = group.seat.set(seat);
        Ok(group)
    }

    fn fields(&self) -> (&str, &[Keyed<EventField>]) {
        match &*self.plan {
            Plan::Subscription(stream) => match &stream.field {
                StreamField::Changes { fields, .. } | StreamField::AllChanges { fields, .. } => (&stream.key, fields),
                StreamField::Live(_) | StreamField::Patches { .. } => (&stream.key, &[]),
            },
            Plan::Query(_) => ("", &[]),
        }
    }

    /// What a hit tells. `Err` where its transaction is in the ring no longer.
    pub(super) async fn hit(&self, number: u64, hit: &Hit) -> Result<Shared, Gone> {
        let write = || async {
            let transaction = self.model.log().transaction(hit.place).ok_or(Gone)?;
            let seen: Vec<_> =
                hit.changes.iter().filter_map(|(at, kind)| self.means(&transaction.changes[*at], *kind)).collect();
            let event = self.write(Some(&transaction.cursor), None, &seen).await;
            self.hits.written(number, event.size());
            Ok(event)
        };
        match hit.event.get() {
            Some(event) => Ok(event.clone()),
            // In a box, so that those weigh nothing who only wait.
            None => Box::pin(hit.event.get_or_try_init(write)).await.cloned(),
        }
    }

    /// What a transaction means to the group, for one who is not live. Worked out once, whoever asks first.
    pub(super) async fn event(&self, transaction: &Arc<Transaction>) -> Option<Shared> {
        let number = transaction.changes.last().map_or(0, |change| change.seq);
        let cell = {
            let mut rendered = self.rendered.lock().unwrap_or_else(PoisonError::into_inner);
            match rendered.iter().rev().find(|(known, cursor, _)| *known == number && *cursor == transaction.cursor) {
                Some((.., cell)) => Arc::clone(cell),
                None => {
                    let size = |cell: &Rendered| cell.get().and_then(Option::as_ref).map_or(0, Shared::size);
                    let mut bytes: usize = rendered.iter().map(|(.., cell)| size(cell)).sum();
                    while rendered.len() == Self::KEPT || bytes > Self::KEPT_BYTES {
                        let Some((.., oldest)) = rendered.pop_front() else { break };
                        bytes -= size(&oldest);
                    }
                    let cell = Arc::<Rendered>::default();
                    rendered.push_back((number, transaction.cursor.clone(), Arc::clone(&cell)));
                    cell
                }
            }
        };
        cell.get_or_init(|| self.render(transaction)).await.clone()
    }

    async fn render(&self, transaction: &Transaction) -> Option<Shared> {
        let seen: Vec<Seen<'_>> = transaction.changes.iter().filter_map(|change| self.seen(change)).collect();
        if seen.is_empty() {
            return None;
        }
        Some(self.write(Some(&transaction.cursor), None, &seen).await)
    }

    /// A change as the group is told of it, if it is.
    pub(super) fn seen<'a>(&self, change: &'a Change) -> Option<Seen<'a>> {
        self.means(change, self.wants.meaning(change)?)
    }

    /// A change of what the group wants, if it was asked for.
    fn means<'a>(&self, change: &'a Change, kind: EventKind) -> Option<Seen<'a>> {
        if !self.asks_for(change.operation) {
            return None;
        }
        let sight = self.sights.get(&change.entity);
        let seen = |image: &'a Option<Image>| -> Option<&'a Image> {
            image.as_ref().filter(|image| sight.is_none_or(|sight| sight.matches(image)))
        };
        let (before, after) = (seen(&change.before), seen(&change.after));
        let seen = Seen { kind, change: Some(change), entity: change.entity, before, after };
        // Where nothing changed that the group may see, nothing happened.
        let is_nothing = self.access.is_limited()
            && kind == EventKind::Update
            && seen.changed(self.columns(change.entity)).next().is_none();
        (!is_nothing).then_some(seen)
    }

    pub(super) fn asks_for(&self, operation: Operation) -> bool {
        self.operations.as_ref().is_none_or(|operations| operations.contains(&operation))
    }

    /// The columns that the group may see.
    fn columns(&self, entity: EntityId) -> impl Iterator<Item = usize> + Clone {
        let columns = 0..self.model.catalog().entity(entity).columns.len();
        columns.filter(move |&column| self.access.allows(Usage::Read, entity, column))
    }

    pub(super) async fn write(
        &self,
        cursor: Option<&Cursor>,
        resync: Option<&'static str>,
        seen: &[Seen<'_>],
    ) -> Shared {
        let mut relations = Vec::new();
        for (_, items) in &self.nodes {
            relations.push(if items.len() > 1 { self.read_relations(items, seen).await } else { HashMap::new() });
        }
        let parts = Parts { cursor, resync, changes: seen, relations };
        let mut template = Template::default();
        let (key, fields) = self.fields();
        template.text.push_str("{\"data\":{");
        template.text.push_str(key);
        template.text.push('{');
        let mut first = true;
        for (key, field) in fields {
            separate(&mut first, &mut template.text);
            template.text.push_str(key);
            self.write_field(field, &parts, &mut template);
        }
        template.text.push_str("}}}");
        Shared { template: Arc::new(template), changes: seen.len() as u64, cursor: cursor.cloned() }
    }

    /// Reads what hangs on the rows of an event, all at once. Tries until it succeeds: the stream must not end, nor say what is not so.
    async fn read_relations(&self, items: &[Item], seen: &[Seen<'_>]) -> HashMap<String, String> {
        let Some(entity) = seen.first().map(|seen| seen.entity) else { return HashMap::new() };
        let meta = self.model.catalog().entity(entity);
        let keys = seen.iter().filter_map(Seen::node).filter_map(|image| {
            let key: Option<Vec<Value>> =
                meta.key.iter().map(|&column| cell::read_value(&meta.columns[column], image.cell(column))).collect();
            let parts = meta.key.iter().zip(key?);
            Some(Filter::All(parts.map(|(&column, value)| Filter::Compare(column, Comparison::Equal, value)).collect()))
        });
        let keys = Filter::Any(keys.collect());
        // That it may be selected has been seen when the group was made.
        let Ok(mut select) = self.access.select(entity, &self.model.names) else { return HashMap::new() };
        select.items = items.to_vec();
        select.filter = keys.and(select.filter);
        loop {
            let fetched = self.model.recorder.fetch(std::slice::from_ref(&select)).await;
            match fetched.and_then(|parts| self.by_key(entity, &parts[0])) {
                Ok(rows) => return rows,
                Err(error) => {
                    tracing::warn!(%error, "the relations of changed rows could not be read; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Rows of items, the first of which is the key, by their keys.
    fn by_key(&self, entity: EntityId, json: &str) -> tidewire_outbox::Result<HashMap<String, String>> {
        let meta = self.model.catalog().entity(entity);
        let mut scanner = Scanner::new(json);
        scanner.open()?;
        let mut rows = HashMap::new();
        while scanner.next_item()? {
            let row = scanner.value()?;
            let mut items = Scanner::new(row);
            items.open()?;
            let mut cells = Scanner::new(items.value()?);
            let mut key = String::new();
            for column in meta.key_columns() {
                cells.next_item()?;
                self.model.recorder.packed().write_canonical(&column.kind, cells.value()?, &mut key);
                key.push(',');
            }
            rows.insert(key, row.to_owned());
        }
        Ok(rows)
    }

    fn write_field(&self, field: &EventField, parts: &Parts<'_>, template: &mut Template) {
        let out = &mut template.text;
        match field {
            EventField::Typename(name) => out.push_str(name),
            EventField::Cursor => match parts.cursor {
                Some(cursor) => write_string(&cursor.to_string(), out),
                None => out.push_str("null"),
            },
            EventField::Sequence => template.leave(Hole::Sequence),
            EventField::UpToDate => template.leave(Hole::UpToDate),
            EventField::Resync => match parts.resync {
                Some(reason) => write_string(reason, out),
                None => out.push_str("null"),
            },
            EventField::Changes(fields) => {
                out.push('[');
                let mut first = true;
                for seen in parts.changes {
                    separate(&mut first, out);
                    out.push('{');
                    let mut first = true;
                    let mut node = 0;
                    for (key, field) in fields {
                        separate(&mut first, out);
                        out.push_str(key);
                        self.write_change(field, seen, parts, &mut node, out);
                    }
                    out.push('}');
                }
                out.push(']');
            }
        }
    }

    fn write_change(
        &self,
        field: &ChangeField,
        seen: &Seen<'_>,
        parts: &Parts<'_>,
        node: &mut usize,
        out: &mut String,
    ) {
        let optional = |text: Option<&Arc<str>>, out: &mut String| match text {
            Some(text) => write_string(text, out),
            None => out.push_str("null"),
        };
        let encoder = self.model.stream_encoder();
        let meta = self.model.catalog().entity(seen.entity);
        let columns = self.columns(seen.entity);
        let row = |image: Option<&Image>, out: &mut String| match image {
            Some(image) => encoder.row_json(seen.entity, image, columns.clone(), out),
            None => out.push_str("null"),
        };
        match field {
            ChangeField::Typename(name) => out.push_str(name),
            ChangeField::Event => write_string(event_word(seen.kind), out),
            ChangeField::Operation => match seen.change {
                Some(change) => write_string(operation_word(change.operation), out),
                None => out.push_str("null"),
            },
            ChangeField::Key(fields) => {
                let image = seen.image();
                // A lenient encoder does not fail.
                let _ = object(fields, out, |field, out| {
                    match field {
                        NodeField::Typename(name) => out.push_str(name),
                        NodeField::Column(column) => {
                            encoder.wire.canonical(&meta.columns[*column], image.cell(*column), out)?;
                        }
                        NodeField::One(..) | NodeField::Many(..) => out.push_str("null"),
                    }
                    Ok(())
                });
            }
            ChangeField::Node(plan) => {
                let place = std::mem::replace(node, *node + 1);
                let Some(image) = seen.node() else { return out.push_str("null") };
                let relations = parts.relations.get(place).and_then(|rows| rows.get(&key_text(meta, image)));
                // Past the key, which stands first.
                let relations = relations.and_then(|row| {
                    let mut scanner = Scanner::new(row);
                    scanner.open().ok()?;
                    scanner.value().ok()?;
                    Some(scanner)
                });
                let (prepared, _) = &self.nodes[place];
                if encoder.image(plan, prepared, image, relations, out).is_err() {
                    out.push_str("null");
                }
            }
            ChangeField::Previous(plan) => match seen.previous() {
                Some(image) => {
                    let _ = encoder.image(plan, &PreparedNode::default(), image, None, out);
                }
                None => out.push_str("null"),
            },
            ChangeField::ChangedFields => {
                let names = self.model.names.entity(seen.entity);
                out.push('[');
                let mut first = true;
                for column in seen.changed(columns) {
                    separate(&mut first, out);
                    write_string(&names.columns[column], out);
                }
                out.push(']');
            }
            ChangeField::Actor => optional(seen.told().and_then(|change| change.actor.as_ref()), out),
            ChangeField::Origin => optional(seen.told().and_then(|change| change.origin.as_ref()), out),
            ChangeField::MutationId => optional(seen.told().and_then(|change| change.mutation_id.as_ref()), out),
            ChangeField::At => match seen.change {
                Some(change) => {
                    let mut canonical = String::new();
                    cell::write_timestamp(change.at, &mut canonical);
                    encoder.wire.time(&canonical, out);
                }
                None => out.push_str("null"),
            },
            ChangeField::Entity => write_string(&self.model.names.entity(seen.entity).field, out),
            ChangeField::KeyJson => encoder.row_json(seen.entity, seen.image(), meta.key.iter().copied(), out),
            ChangeField::RowJson => row(seen.node(), out),
            ChangeField::PreviousJson => row(seen.previous(), out),
        }
    }
}

/// Which rows of an entity the policy lets a group see, for entities of which it does not let it see all.
async fn sights(
    model: &Model,
    access: &Access,
    entities: &[EntityId],
) -> Result<HashMap<EntityId, Predicate>, ApiError> {
    let mut sights = HashMap::new();
    for &entity in entities {
        let rows = access.rows(Action::Read, entity, &model.names)?;
        if !rows.is_all() {
            sights.insert(entity, model.log().predicate(model.catalog().entity(entity), &rows).await?);
        }
    }
    Ok(sights)
}

/// The filter that was asked for, without what the policy adds.
pub(super) fn asked(
    model: &Model,
    access: &Access,
    entity: EntityId,
    arguments: &IndexMap<Name, ConstValue>,
) -> Result<Filter, ApiError> {
    let reader = Reader::new(&model.names, model.catalog().entity(entity), access);
    reader.filter(arguments.get("filters").unwrap_or(&ConstValue::Null))
}

/// Refuses fields whose columns may not be read.
fn check_columns(model: &Model, access: &Access, fields: &[Keyed<EventField>]) -> Result<(), ApiError> {
    let changes = fields.iter().filter_map(|(_, field)| match field {
        EventField::Changes(changes) => Some(changes),
        _ => None,
    });
    let nodes = changes.flatten().filter_map(|(_, field)| match field {
        ChangeField::Node(node) | ChangeField::Previous(node) => Some(node),
        _ => None,
    });
    nodes.flat_map(|node| node.fields.iter().map(|(_, field)| (node.entity, field))).try_for_each(|(entity, field)| {
        match field {
            NodeField::Column(column) => access.check(Usage::Read, entity, *column, &model.names),
            _ => Ok(()),
        }
    })
}

impl Audience for ChangeGroup {
    fn hear(&self, news: Vec<News>) {
        let hits = news.into_iter().filter_map(|News { place, transaction, changes }| {
            let changes: Arc<[_]> = changes
                .into_iter()
                .filter(|(at, kind)| self.means(&transaction.changes[*at], *kind).is_some())
                .collect();
            (!changes.is_empty()).then(|| Hit { place, changes, event: Arc::default() })
        });
        self.hits.push(hits);
    }

    fn restart(&self, place: u64) {
        self.hits.restart(place);
    }

    fn doubt(&self) {
        self.hits.ring();
    }
}

impl fmt::Debug for ChangeGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangeGroup").finish_non_exhaustive()
    }
}

/// A transaction is in the ring no longer.
#[derive(Debug)]
pub(super) struct Gone;

fn key_text(meta: &tidewire_outbox::EntityMeta, image: &Image) -> String {
    let mut key = String::new();
    for &column in &meta.key {
        key.push_str(image.cell(column).unwrap_or_default());
        key.push(',');
    }
    key
}

fn node_fields(fields: &[Keyed<EventField>]) -> impl Iterator<Item = &Node> {
    fields
        .iter()
        .filter_map(|(_, field)| if let EventField::Changes(changes) = field { Some(changes) } else { None })
        .flatten()
        .filter_map(|(_, field)| if let ChangeField::Node(node) = field { Some(node) } else { None })
}

/// What an event is called on the wire.
pub(super) fn event_word(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Enter => "ENTER",
        EventKind::Update => "UPDATE",
        EventKind::Leave => "LEAVE",
    }
}

/// What an operation is called on the wire.
pub(super) fn operation_word(operation: Operation) -> &'static str {
    match operation {
        Operation::Insert => "INSERT",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
    }
}

fn operation(value: &ConstValue) -> Option<Operation> {
    Some(match enum_name(value)? {
        "INSERT" => Operation::Insert,
        "UPDATE" => Operation::Update,
        "DELETE" => Operation::Delete,
        _ => return None,
    })
}

/// The entities that were named, or all that the group may read.
pub(super) fn entities(
    model: &Model,
    access: &Access,
    arguments: &Arguments,
    variables: &Variables,
) -> Result<Vec<EntityId>, ApiError> {
    let arguments = arguments.resolve(variables);
    match arguments.get("entities") {
        None | Some(ConstValue::Null) => {
            let all = model.catalog().entities().iter().map(|entity| entity.id);
            Ok(all.filter(|&entity| access.reads(entity)).collect())
        }
        Some(names) => {
            // Who names one twice is told of it once.
            let named: Result<BTreeSet<_>, _> = list(names)
                .iter()
                .map(|name| {
                    let name = enum_name(name).unwrap_or_default();
                    model.names.by_field(name).ok_or_else(|| ApiError::bad_input(format!("there is no entity {name}")))
                })
                .collect();
            Ok(named?.into_iter().collect())
        }
    }
}

impl ChangeGroup {
    /// A row of a snapshot, as a row that enters.
    pub(super) fn row<'a>(&self, image: &'a Image) -> Option<Seen<'a>> {
        let (entity, _) = self.shape.as_ref()?;
        Some(Seen { kind: EventKind::Enter, change: None, entity: *entity, before: None, after: Some(image) })
    }
}
