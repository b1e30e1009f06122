use std::{collections::VecDeque, fmt, marker::PhantomData, sync::Arc};

use sea_orm::{EntityTrait, TryIntoModel, sea_query::Expr};

use super::{Follower, Log, Snapshot, Step};
use crate::{
    change::{Change, Operation},
    cursor::Cursor,
    database::ResyncReason,
    error::{Error, ErrorKind, Result},
    filter::{Filter, Predicate},
    image::Image,
    registry::EntityId,
};

/// How many rows of a snapshot come at once.
const SNAPSHOT_ROWS: usize = 500;

/// What a change means to one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The row came into the shape: inserted, or changed so that it passes the filter.
    Enter,
    /// The row was in the shape and still is.
    Update,
    /// The row left the shape: deleted, or changed so that it no longer passes the filter.
    Leave,
}

/// What a change means to those who see all rows.
impl From<Operation> for EventKind {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Insert => Self::Enter,
            Operation::Update => Self::Update,
            Operation::Delete => Self::Leave,
        }
    }
}

/// What a change means to those who see only rows that pass a predicate. `None`: nothing.
pub fn classify(predicate: &Predicate, change: &Change) -> Option<EventKind> {
    let passes = |image: &Option<Image>| image.as_ref().is_some_and(|image| predicate.matches(image));
    match change.operation {
        Operation::Insert => passes(&change.after).then_some(EventKind::Enter),
        Operation::Delete => passes(&change.before).then_some(EventKind::Leave),
        Operation::Update => match (passes(&change.before), passes(&change.after)) {
            (false, true) => Some(EventKind::Enter),
            (true, true) => Some(EventKind::Update),
            (true, false) => Some(EventKind::Leave),
            (false, false) => None,
        },
    }
}

/// What someone asks to see: rows of one entity that pass a filter.
pub struct Shape<E> {
    filter: Option<Expr>,
    entity: PhantomData<fn() -> E>,
}

impl Shape<()> {
    /// All rows of an entity: `Shape::of::<task::Entity>()`.
    pub fn of<E: EntityTrait>() -> Shape<E> {
        Shape { filter: None, entity: PhantomData }
    }
}

impl<E> Shape<E> {
    /// Only rows that also pass this condition, built as for a SeaORM query: `task::Column::Done.eq(false)`. Comparisons of columns with
    /// values, `LIKE`, `IN`, `BETWEEN`, `IS NULL`, and `AND`, `OR`, `NOT` of them can be followed; [`Log::follow`] refuses others.
    #[must_use]
    pub fn filter(mut self, condition: Expr) -> Self {
        use sea_orm::sea_query::ExprTrait;
        self.filter = Some(match self.filter {
            Some(filter) => filter.and(condition),
            None => condition,
        });
        self
    }
}

impl<E> fmt::Debug for Shape<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shape").field("filtered", &self.filter.is_some()).finish()
    }
}

/// Where to start.
#[derive(Debug, Clone)]
pub enum Start {
    /// With what happens from now on.
    Now,
    /// With the rows as they are now, then with what happens to them.
    Snapshot,
    /// With what happened after a cursor.
    After(Cursor),
}

impl From<Cursor> for Start {
    fn from(cursor: Cursor) -> Self {
        Self::After(cursor)
    }
}

/// What happened to one row of a shape.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<M> {
    /// The row is in the shape now.
    Enter(M),
    /// The row is in the shape as before, but changed.
    Update {
        /// How it was.
        before: M,
        /// How it is.
        after: M,
    },
    /// The row is no longer in the shape. This is how it was last seen there.
    Leave(M),
}

/// The next part of a shape's history.
#[derive(Debug, Clone)]
pub enum Batch<M> {
    /// The events of one transaction, or some rows of a snapshot.
    Events {
        /// Where the reader stands once it has handled these: what to start after next time. A snapshot has none before its last batch.
        cursor: Option<Cursor>,
        /// The events in order. May be empty, where the only news is that there is none.
        events: Vec<Event<M>>,
        /// Whether the reader has now seen everything that this process knows of.
        up_to_date: bool,
    },
    /// The reader must forget this shape and start over with [`Start::Snapshot`].
    Resync(ResyncReason),
    /// The log has been stopped.
    Ended,
}

/// A shape being followed.
pub struct Events<E: EntityTrait> {
    log: Log,
    entity: EntityId,
    predicate: Predicate,
    snapshot: Option<Snapshot>,
    follower: Follower,
    ready: VecDeque<Result<Batch<E::Model>>>,
}

impl<E: EntityTrait> fmt::Debug for Events<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("follower", &self.follower).finish_non_exhaustive()
    }
}

impl Log {
    /// Follows a shape, typed.
    ///
    /// ```no_run
    /// # mod task { use sea_orm::entity::prelude::*;
    /// # #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)] #[sea_orm(table_name = "task")]
    /// # pub struct Model { #[sea_orm(primary_key)] pub id: i32, pub title: String, pub done: bool }
    /// # #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)] pub enum Relation {}
    /// # impl ActiveModelBehavior for ActiveModel {} }
    /// use sea_orm::ColumnTrait;
    /// use tidewire_outbox::{Batch, Event, Log, Shape, Start};
    ///
    /// # async fn example(log: Log) -> tidewire_outbox::Result<()> {
    /// let open = Shape::of::<task::Entity>().filter(task::Column::Done.eq(false));
    /// let mut events = log.follow(open, Start::Snapshot).await?;
    /// while let Batch::Events { events, .. } = events.next().await? {
    ///     for event in events {
    ///         if let Event::Enter(task) = event {
    ///             println!("to do: {}", task.title);
    ///         }
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Registry`] for an entity that is not registered, [`ErrorKind::Filter`] for a condition that cannot be followed.
    pub async fn follow<E>(&self, shape: Shape<E>, start: impl Into<Start>) -> Result<Events<E>>
    where
        E: EntityTrait,
        E::ActiveModel: TryIntoModel<E::Model>,
    {
        let catalog = Arc::clone(self.catalog());
        let meta = catalog.of::<E>().ok_or_else(|| {
            Error::new(ErrorKind::Registry, format!("{} is not registered", E::default().table_name()))
        })?;
        let filter = match &shape.filter {
            Some(condition) => Filter::from_expr(meta, condition)?,
            None => Filter::all(),
        };
        let predicate = self.predicate(meta, &filter).await?;
        let (snapshot, after) = match start.into() {
            Start::Now => (None, self.position().await?),
            Start::After(cursor) => (None, cursor),
            Start::Snapshot => {
                let snapshot = self.snapshot(meta, filter, SNAPSHOT_ROWS).await?;
                let cursor = snapshot.cursor().clone();
                (Some(snapshot), cursor)
            }
        };
        let follower = self.follow_all(after).await?;
        Ok(Events { log: self.clone(), entity: meta.id, predicate, snapshot, follower, ready: VecDeque::new() })
    }
}

impl<E> Events<E>
where
    E: EntityTrait,
    E::ActiveModel: TryIntoModel<E::Model>,
{
    /// Waits for the next part of the shape's history. The first comes at once.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where a row does not fit its model: whoever asks on is told of the other rows and of what follows, and must not
    /// take the cursor of it for one that has that row. [`ErrorKind::Database`] and its kind while reading from the database. A snapshot
    /// that cannot be read is lost, as is one that is not read in time ([`ErrorKind::Busy`]): follow again.
    pub async fn next(&mut self) -> Result<Batch<E::Model>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return batch;
            }
            if let Some(snapshot) = &mut self.snapshot {
                let rows = snapshot.next().await?.unwrap_or_default();
                let meta = self.log.catalog().entity(self.entity);
                let events = rows.iter().map(|row| row.model::<E>(meta).map(Event::Enter)).collect();
                let cursor = snapshot.is_ended().then(|| snapshot.cursor().clone());
                if cursor.is_some() {
                    self.snapshot = None;
                }
                let events = self.good(events);
                self.ready.push_back(Ok(Batch::Events { cursor, events, up_to_date: false }));
                continue;
            }
            match self.follower.next().await? {
                Step::Ended => return Ok(Batch::Ended),
                Step::Resync(reason) => return Ok(Batch::Resync(reason)),
                Step::Transactions { transactions, cursor, up_to_date } => {
                    for transaction in &transactions {
                        let events = transaction.changes.iter().filter_map(|change| self.event(change)).collect();
                        let events = self.good(events);
                        if !events.is_empty() {
                            let cursor = Some(transaction.cursor.clone());
                            self.ready.push_back(Ok(Batch::Events { cursor, events, up_to_date: false }));
                        }
                    }
                    // What the last batch says of the end, or a batch that says nothing else.
                    match self.ready.back_mut() {
                        Some(Ok(Batch::Events { cursor: at, up_to_date: last, .. })) => {
                            *at = Some(cursor);
                            *last = up_to_date;
                        }
                        _ if up_to_date => {
                            let cursor = Some(cursor);
                            self.ready.push_back(Ok(Batch::Events { cursor, events: Vec::new(), up_to_date }));
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    /// Those that fit their model. The errors of the others come before them.
    fn good(&mut self, events: Vec<Result<Event<E::Model>>>) -> Vec<Event<E::Model>> {
        let mut good = Vec::with_capacity(events.len());
        for event in events {
            match event {
                Ok(event) => good.push(event),
                Err(error) => self.ready.push_back(Err(error)),
            }
        }
        good
    }

    fn event(&self, change: &Change) -> Option<Result<Event<E::Model>>> {
        if change.entity != self.entity {
            return None;
        }
        let meta = self.log.catalog().entity(self.entity);
        let model = |image: &Option<Image>| image.as_ref().expect("the kind says that there is one").model::<E>(meta);
        Some(match classify(&self.predicate, change)? {
            EventKind::Enter => model(&change.after).map(Event::Enter),
            EventKind::Leave => model(&change.before).map(Event::Leave),
            EventKind::Update => {
                model(&change.before).and_then(|before| Ok(Event::Update { before, after: model(&change.after)? }))
            }
        })
    }
}
