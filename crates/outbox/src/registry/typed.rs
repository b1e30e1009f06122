//! The one place that still knows an entity's Rust type: writes that must go through its `ActiveModel`.

use std::{fmt, marker::PhantomData};

use futures_util::future::BoxFuture;
use sea_orm::{
    ActiveModelBehavior, ActiveModelTrait, ActiveValue, ColumnTrait, Condition, ConnectionTrait, DbBackend, DbErr,
    EntityTrait, IdenStatic, IntoActiveModel, Iterable, ModelTrait, PrimaryKeyToColumn, QueryFilter, QuerySelect,
    TryIntoModel,
    sea_query::{self, Value},
};

use crate::recorder::RecorderTransaction;

/// The values of some columns of one row: the column's index in its entity, and the value.
pub type Assignments = Vec<(usize, Value)>;

/// The values of a row's primary key, in key order.
pub type KeyValues = Vec<Value>;

/// What an upsert does when a row is in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnConflict {
    /// The columns of the unique key that decides. Empty means the primary key.
    pub target: Vec<usize>,
    /// The columns that take the new values. Empty means that the existing row is left as it is.
    pub update: Vec<usize>,
}

/// Writes through an entity's own `ActiveModel`, so that its `ActiveModelBehavior` (validation, time stamps) runs as it does in Rust.
///
/// All of them answer with keys and not with rows: what is stored may differ from what was sent (defaults, triggers), so a caller that
/// wants rows reads them back in the same transaction.
pub trait EntityOps: Send + Sync + fmt::Debug {
    /// Inserts one row.
    fn insert<'a>(&'a self, db: &'a RecorderTransaction, row: Assignments) -> BoxFuture<'a, Result<KeyValues, DbErr>>;

    /// Inserts one row or, when a row is in the way, does what `on_conflict` says. `None` when the existing row was left as it is.
    fn upsert<'a>(
        &'a self,
        db: &'a RecorderTransaction,
        row: Assignments,
        on_conflict: OnConflict,
    ) -> BoxFuture<'a, Result<Option<KeyValues>, DbErr>>;

    /// Locks every row that the filter finds, until the transaction ends, and answers how many. Where rows are not locked one by one, the transaction is
    /// the only one that writes.
    fn lock<'a>(&'a self, db: &'a RecorderTransaction, filter: Condition) -> BoxFuture<'a, Result<u64, DbErr>>;

    /// Updates every row that the filter finds, one statement a row. Answers the keys as they are afterwards. The rows are locked as they are
    /// found, so that the filter holds of them until they are written.
    fn update<'a>(
        &'a self,
        db: &'a RecorderTransaction,
        filter: Condition,
        set: Assignments,
    ) -> BoxFuture<'a, Result<Vec<KeyValues>, DbErr>>;

    /// Deletes every row that the filter finds, one statement a row, and answers how many. The rows are locked as they are found.
    fn delete<'a>(&'a self, db: &'a RecorderTransaction, filter: Condition) -> BoxFuture<'a, Result<u64, DbErr>>;
}

pub(super) struct Of<E>(PhantomData<fn() -> E>);

impl<E> Of<E> {
    pub(super) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<E> fmt::Debug for Of<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EntityOps")
    }
}

impl<E> Of<E>
where
    E: EntityTrait,
    E::Model: IntoActiveModel<E::ActiveModel>,
{
    fn column(index: usize) -> E::Column {
        E::Column::iter().nth(index).expect("a column index comes from the entity's own metadata")
    }

    fn assign(model: &mut E::ActiveModel, values: Assignments) -> Result<(), DbErr> {
        values.into_iter().try_for_each(|(index, value)| model.try_set(Self::column(index), value))
    }

    /// An `ActiveModel` finds its row by its key, so it cannot change the key itself: that takes one statement over the filter.
    async fn update_key(db: &RecorderTransaction, filter: Condition, set: Assignments) -> Result<Vec<KeyValues>, DbErr>
    where
        E::Model: Send + Sync,
        E::ActiveModel: ActiveModelBehavior + Send,
    {
        let mut model = <E::ActiveModel as ActiveModelTrait>::default();
        Self::assign(&mut model, set)?;
        let model = ActiveModelBehavior::before_save(model, db, false).await?;
        let rows = if db.get_database_backend() == DbBackend::MySql {
            // Which returns nothing from an update, so the rows are found by what their keys will be.
            let before = E::find().filter(filter.clone()).lock_exclusive().all(db).await?;
            let mut after = Condition::any();
            for row in &before {
                let columns = E::PrimaryKey::iter().map(PrimaryKeyToColumn::into_column);
                let equal = columns.map(|column| {
                    let value = model.get(column).into_value().unwrap_or_else(|| row.get(column));
                    column.eq(value)
                });
                after = after.add(equal.fold(Condition::all(), Condition::add));
            }
            if before.is_empty() {
                return Ok(Vec::new());
            }
            E::update_many().set(model).filter(filter).exec(db).await?;
            E::find().filter(after).all(db).await?
        } else {
            E::update_many().set(model).filter(filter).exec_with_returning(db).await?
        };
        let keys = rows.iter().map(Self::key).collect();
        for row in rows {
            <E::ActiveModel as ActiveModelBehavior>::after_save(row, db, false).await?;
        }
        Ok(keys)
    }

    /// An upsert in two steps, for a database that does not say what it did, and goes by any unique key and not by the one that is meant. The row, or
    /// the place where it would be, is locked in between: of two who come at once, one is told that the database is busy.
    async fn upsert_in_steps(
        db: &RecorderTransaction,
        model: E::ActiveModel,
        target: &[E::Column],
        update: &[E::Column],
    ) -> Result<Option<E::Model>, DbErr>
    where
        E::Model: Send + Sync,
        E::ActiveModel: ActiveModelBehavior + Send,
    {
        let values: Option<Vec<_>> =
            target.iter().map(|&column| Some(column.eq(model.get(column).into_value()?))).collect();
        let found = match values {
            Some(values) => {
                let row = values.into_iter().fold(Condition::all(), Condition::add);
                E::find().filter(row).lock_exclusive().one(db).await?
            }
            // Without a key of its own, it is a new row.
            None => None,
        };
        let Some(found) = found else { return E::insert(model).exec_with_returning(db).await.map(Some) };
        if update.is_empty() {
            return Ok(None);
        }
        let mut changed = found.into_active_model();
        for &column in update {
            if let Some(value) = model.get(column).into_value() {
                changed.try_set(column, value)?;
            }
        }
        E::update(changed).exec(db).await.map(Some)
    }

    fn key(model: &E::Model) -> KeyValues {
        E::PrimaryKey::iter().map(|key| model.get(key.into_column())).collect()
    }
}

impl<E> EntityOps for Of<E>
where
    E: EntityTrait,
    E::Model: IntoActiveModel<E::ActiveModel> + Send + Sync + 'static,
    E::ActiveModel: ActiveModelBehavior + TryIntoModel<E::Model> + Send + Sync + 'static,
{
    fn insert<'a>(&'a self, db: &'a RecorderTransaction, row: Assignments) -> BoxFuture<'a, Result<KeyValues, DbErr>> {
        Box::pin(async move {
            let mut model = <E::ActiveModel as ActiveModelBehavior>::new();
            Self::assign(&mut model, row)?;
            Ok(Self::key(&model.insert(db).await?))
        })
    }

    fn upsert<'a>(
        &'a self,
        db: &'a RecorderTransaction,
        row: Assignments,
        on_conflict: OnConflict,
    ) -> BoxFuture<'a, Result<Option<KeyValues>, DbErr>> {
        Box::pin(async move {
            let mut model = <E::ActiveModel as ActiveModelBehavior>::new();
            Self::assign(&mut model, row)?;
            let model = ActiveModelBehavior::before_save(model, db, true).await?;
            let target: Vec<E::Column> = if on_conflict.target.is_empty() {
                E::PrimaryKey::iter().map(PrimaryKeyToColumn::into_column).collect()
            } else {
                on_conflict.target.iter().map(|&index| Self::column(index)).collect()
            };
            // What `before_save` sets on top of the given values (a time stamp) belongs to the update too.
            let update: Vec<E::Column> = on_conflict
                .update
                .iter()
                .map(|&index| Self::column(index))
                .filter(|&column| matches!(model.get(column), ActiveValue::Set(_)))
                .collect();
            if db.get_database_backend() == DbBackend::MySql {
                let Some(stored) = Self::upsert_in_steps(db, model, &target, &update).await? else { return Ok(None) };
                let key = Self::key(&stored);
                <E::ActiveModel as ActiveModelBehavior>::after_save(stored, db, true).await?;
                return Ok(Some(key));
            }
            let mut clause = sea_query::OnConflict::columns(target);
            if update.is_empty() {
                clause.do_nothing();
            } else {
                clause.update_columns(update);
            }
            match E::insert(model).on_conflict(clause).exec_with_returning(db).await {
                Ok(stored) => {
                    let key = Self::key(&stored);
                    <E::ActiveModel as ActiveModelBehavior>::after_save(stored, db, true).await?;
                    Ok(Some(key))
                }
                Err(DbErr::RecordNotInserted | DbErr::RecordNotFound(_)) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn lock<'a>(&'a self, db: &'a RecorderTransaction, filter: Condition) -> BoxFuture<'a, Result<u64, DbErr>> {
        Box::pin(async move { Ok(E::find().filter(filter).lock_exclusive().all(db).await?.len() as u64) })
    }

    fn update<'a>(
        &'a self,
        db: &'a RecorderTransaction,
        filter: Condition,
        set: Assignments,
    ) -> BoxFuture<'a, Result<Vec<KeyValues>, DbErr>> {
        Box::pin(async move {
            if set.iter().any(|&(index, _)| E::PrimaryKey::from_column(Self::column(index)).is_some()) {
                return Self::update_key(db, filter, set).await;
            }
            let mut keys = Vec::new();
            for row in E::find().filter(filter).lock_exclusive().all(db).await? {
                let mut model = row.into_active_model();
                for (index, value) in &set {
                    let column = Self::column(*index);
                    if model.get(column).into_value().as_ref() != Some(value) {
                        model.try_set(column, value.clone())?;
                    }
                }
                keys.push(Self::key(&model.update(db).await?));
            }
            Ok(keys)
        })
    }

    fn delete<'a>(&'a self, db: &'a RecorderTransaction, filter: Condition) -> BoxFuture<'a, Result<u64, DbErr>> {
        Box::pin(async move {
            let mut deleted = 0;
            for row in E::find().filter(filter).lock_exclusive().all(db).await? {
                deleted += row.into_active_model().delete(db).await?.rows_affected;
            }
            Ok(deleted)
        })
    }
}

/// Builds a model from the values of all its columns.
pub(crate) fn model<E>(values: Assignments) -> Result<E::Model, DbErr>
where
    E: EntityTrait,
    E::ActiveModel: TryIntoModel<E::Model>,
{
    let mut model = <E::ActiveModel as ActiveModelTrait>::default();
    for ((_, value), column) in values.into_iter().zip(E::Column::iter()) {
        model
            .try_set(column, value)
            .map_err(|_| DbErr::Type(format!("the value of {} does not fit its field", IdenStatic::as_str(&column))))?;
    }
    model.try_into_model()
}
