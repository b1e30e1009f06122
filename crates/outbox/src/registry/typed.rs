//! The one place that still knows an entity's Rust type: writes that must go through its `ActiveModel`.

use std::{fmt, marker::PhantomData};

use futures_util::future::BoxFuture;
use sea_orm::{
    ActiveModelBehavior, ActiveModelTrait, ActiveValue, Condition, DbErr, EntityTrait, IdenStatic, IntoActiveModel,
    Iterable, ModelTrait, PrimaryKeyToColumn, QueryFilter, TryIntoModel,
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

    /// Updates every row that the filter finds, one statement a row. Answers the keys as they are afterwards.
    fn update<'a>(
        &'a self,
        db: &'a RecorderTransaction,
        filter: Condition,
        set: Assignments,
    ) -> BoxFuture<'a, Result<Vec<KeyValues>, DbErr>>;

    /// Deletes every row that the filter finds, one statement a row, and answers how many.
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
        let rows = E::update_many().set(model).filter(filter).exec_with_returning(db).await?;
        let keys = rows.iter().map(Self::key).collect();
        for row in rows {
            <E::ActiveModel as ActiveModelBehavior>::after_save(row, db, false).await?;
        }
        Ok(keys)
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
            let mut clause = sea_query::OnConflict::columns(target);
            // What `before_save` sets on top of the given values (a time stamp) belongs to the update too.
            let update: Vec<E::Column> = on_conflict
                .update
                .iter()
                .map(|&index| Self::column(index))
                .filter(|&column| matches!(model.get(column), ActiveValue::Set(_)))
                .collect();
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
            for row in E::find().filter(filter).all(db).await? {
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
            for row in E::find().filter(filter).all(db).await? {
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
