use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use async_graphql::{
    Error as GraphqlError, ErrorExtensions, Name, Value as ConstValue,
    dynamic::{Field, FieldFuture, FieldValue, InputValue, ResolverContext, TypeRef},
    indexmap::IndexMap,
};
use sea_orm::sea_query::Value;
use sha2::{Digest, Sha256};
use tidewire_outbox::{
    Actor, EntityId, Filter, Image, KeyValues, MutationId, OnConflict, Page, RecorderTransaction, Remembered, cell,
    filter::Comparison,
};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};

use super::{Described, outputs};
use crate::{
    error::{ApiError, Code},
    input::{Reader, list},
    model::Model,
    policy::{self, Access, Scope, Usage},
    resolve::Row,
};

type Arguments = IndexMap<Name, ConstValue>;

/// The transaction that a mutation document runs in. All its fields share it, and it commits only if all of them succeed.
pub(crate) struct MutationScope(pub(crate) Mutex<Option<RecorderTransaction>>);

/// The transaction of the mutation document that a field added by hand is part of. What the field writes must go through it: on SQLite there
/// is one writer, and the document has the turn. Other fields of the document wait until the guard is dropped.
///
/// # Errors
/// Outside of a mutation.
pub async fn transaction<'a>(
    context: &'a ResolverContext<'_>,
) -> Result<MappedMutexGuard<'a, RecorderTransaction>, GraphqlError> {
    let guard = context.data::<Arc<MutationScope>>()?.0.lock().await;
    MutexGuard::try_map(guard, Option::as_mut).map_err(|_| "the mutation's transaction has ended".into())
}

/// What the generated mutations do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    CreateOne,
    CreateBatch,
    Upsert,
    Update,
    Delete,
}

/// What a mutation gave.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
enum Outcome {
    /// Rows, as the canonical cells of all their columns.
    Rows(Vec<Vec<Option<String>>>),
    Count(u64),
}

/// The generated mutations of an entity.
pub(super) fn fields(entity: Described<'_>) -> Vec<Field> {
    let one = TypeRef::named_nn(entity.of("Basic"));
    let many = TypeRef::named_nn_list_nn(entity.of("Basic"));
    let insert = || InputValue::new("data", TypeRef::named_nn(entity.of("InsertInput")));
    let on_conflict = || InputValue::new("onConflict", TypeRef::named(entity.of("OnConflictInput")));
    let filter = || InputValue::new("filter", TypeRef::named(entity.of("FilterInput")));
    let if_match = || InputValue::new("ifMatch", TypeRef::named(entity.of("MatchInput")));
    vec![
        field(entity, "CreateOne", Action::CreateOne, one.clone(), vec![insert(), on_conflict()]),
        field(
            entity,
            "CreateBatch",
            Action::CreateBatch,
            many.clone(),
            vec![InputValue::new("data", TypeRef::named_nn_list_nn(entity.of("InsertInput"))), on_conflict()],
        ),
        field(entity, "Upsert", Action::Upsert, one, vec![insert(), on_conflict()]),
        field(
            entity,
            "Update",
            Action::Update,
            many,
            vec![InputValue::new("data", TypeRef::named_nn(entity.of("UpdateInput"))), filter(), if_match()],
        ),
        field(entity, "Delete", Action::Delete, TypeRef::named_nn(TypeRef::INT), vec![filter(), if_match()]),
    ]
}

fn field(entity: Described<'_>, suffix: &str, action: Action, ty: TypeRef, arguments: Vec<InputValue>) -> Field {
    let id = entity.meta.id;
    let name = format!("{}{suffix}", entity.names().field);
    let field = Field::new(name, ty, move |ctx| {
        FieldFuture::new(async move {
            let model = ctx.data::<Arc<Model>>()?;
            let mut transaction = transaction(&ctx).await?;
            let arguments = Model::arguments(&ctx);
            let mutation = Mutation { model, access: ctx.data::<Arc<Access>>()?, entity: id, action };
            let outcome = mutation.once(&mut transaction, ctx.field().name(), &arguments).await?;
            Ok(Some(mutation.answer(outcome)?))
        })
    });
    let id = InputValue::new("mutationId", TypeRef::named(TypeRef::STRING)).description(
        "Chosen by the client. A second mutation with the same id does nothing and answers as the first did.",
    );
    arguments.into_iter().chain([id]).fold(field, Field::argument)
}

struct Mutation<'a> {
    model: &'a Arc<Model>,
    access: &'a Arc<Access>,
    entity: EntityId,
    action: Action,
}

/// The key of a written row, with what was done to it. `Read` where it was left as it is.
type Written = (KeyValues, policy::Action);

impl Mutation<'_> {
    fn reader(&self) -> Reader<'_> {
        Reader::new(&self.model.names, self.model.catalog().entity(self.entity), self.access)
    }

    /// The rows that the viewer may do something with.
    fn rows(&self, action: policy::Action) -> Result<Filter, ApiError> {
        self.access.rows(action, self.entity, &self.model.names)
    }

    /// Performs the mutation, unless one with the same id has been performed: then gives what that one gave (promise I12).
    async fn once(
        &self,
        transaction: &mut RecorderTransaction,
        field: &str,
        arguments: &Arguments,
    ) -> Result<Outcome, GraphqlError> {
        let id = match arguments.get("mutationId") {
            Some(ConstValue::String(id)) if !(1..=200).contains(&id.chars().count()) => {
                return Err(ApiError::bad_input("mutationId must have 1 to 200 characters").into());
            }
            Some(ConstValue::String(id)) => MutationId::new(id),
            _ => return self.perform(transaction, arguments).await,
        };
        let fingerprint = fingerprint(transaction.actor(), self.access.scope(), arguments);
        if let Some(first) = transaction.recall(&id, field).await.map_err(ApiError::from)? {
            if first.fingerprint != fingerprint {
                return Err(ApiError::new(
                    Code::MutationIdReused,
                    "this mutationId was used before, with other arguments or by another",
                )
                .into());
            }
            return serde_json::from_str(&first.result).map_err(|_| {
                ApiError::new(Code::Internal, "the first result of this mutationId cannot be read").into()
            });
        }
        transaction.set_mutation(Some(id.clone()));
        let outcome = self.perform(transaction, arguments).await;
        transaction.set_mutation(None);
        let outcome = outcome?;
        let result =
            serde_json::to_string(&outcome).map_err(|_| ApiError::new(Code::Internal, "the result cannot be kept"))?;
        transaction.remember(&id, field, &Remembered { fingerprint, result }).await.map_err(ApiError::from)?;
        Ok(outcome)
    }

    async fn perform(&self, transaction: &RecorderTransaction, arguments: &Arguments) -> Result<Outcome, GraphqlError> {
        let argument = |name: &str| arguments.get(name).unwrap_or(&ConstValue::Null);
        match self.action {
            Action::CreateOne | Action::CreateBatch | Action::Upsert => {
                self.rows(policy::Action::Insert)?;
                let data = list(argument("data"));
                self.check_size(data.len() as u64)?;
                let on_conflict = match (argument("onConflict"), self.action) {
                    (ConstValue::Null, Action::Upsert) => Some(ConstValue::Object(IndexMap::new())),
                    (ConstValue::Null, _) => None,
                    (input, _) => Some(input.clone()),
                };
                let mut keys = Vec::with_capacity(data.len());
                for row in data.iter() {
                    keys.push(self.insert(transaction, row, on_conflict.as_ref()).await?);
                }
                self.read_back(transaction, keys).await
            }
            Action::Update | Action::Delete => {
                let (right, is_delete) = match self.action {
                    Action::Delete => (policy::Action::Delete, true),
                    _ => (policy::Action::Update, false),
                };
                // Rows that may not be written are as if they were not there.
                let filter = self.reader().filter(argument("filter"))?.and(self.rows(right)?);
                self.check_rows(transaction, &filter, argument("ifMatch")).await?;
                let meta = self.model.catalog().entity(self.entity);
                let condition = self.model.recorder.condition(meta, &filter).map_err(ApiError::from)?;
                if is_delete {
                    let deleted = meta.ops().delete(transaction, condition).await.map_err(ApiError::from)?;
                    return Ok(Outcome::Count(deleted));
                }
                let set = self.reader().assignments(argument("data"), Usage::Update)?;
                let keys = meta.ops().update(transaction, condition, set).await.map_err(ApiError::from)?;
                self.read_back(transaction, keys.into_iter().map(|key| (key, right)).collect()).await
            }
        }
    }

    async fn insert(
        &self,
        transaction: &RecorderTransaction,
        row: &ConstValue,
        on_conflict: Option<&ConstValue>,
    ) -> Result<Written, ApiError> {
        let meta = self.model.catalog().entity(self.entity);
        let values = self.reader().insert(row)?;
        let on_conflict = on_conflict.map(|input| self.reader().on_conflict(input)).transpose()?;
        match on_conflict {
            Some(on_conflict) if self.access.is_limited() => {
                if let Some(written) = self.write_existing(transaction, &values, &on_conflict).await? {
                    return Ok(written);
                }
            }
            Some(on_conflict) => {
                let given = values.clone();
                return match meta.ops().upsert(transaction, values, on_conflict.clone()).await? {
                    Some(key) => Ok((key, policy::Action::Insert)),
                    None => self.existing(transaction, &given, &on_conflict).await?.ok_or_else(|| {
                        ApiError::new(Code::Internal, "the row in the way is not there, or its key cannot be read")
                    }),
                };
            }
            None => {}
        }
        Ok((meta.ops().insert(transaction, values).await?, policy::Action::Insert))
    }

    /// Does what an upsert does with a row that is in the way, where policies tell what may be done with rows that are there from what may be
    /// done with new ones. Rows that the viewer may not write are as if they were not there: then there is a unique key in the way of the
    /// insert that follows.
    async fn write_existing(
        &self,
        transaction: &RecorderTransaction,
        given: &[(usize, Value)],
        on_conflict: &OnConflict,
    ) -> Result<Option<Written>, ApiError> {
        if on_conflict.update.is_empty() {
            return self.existing(transaction, given, on_conflict).await;
        }
        let meta = self.model.catalog().entity(self.entity);
        let (Some(filter), Ok(rows)) = (self.in_the_way(given, on_conflict), self.rows(policy::Action::Update)) else {
            return Ok(None);
        };
        let set: Vec<_> = given.iter().filter(|(column, _)| on_conflict.update.contains(column)).cloned().collect();
        for (column, _) in &set {
            self.access.check(Usage::Update, self.entity, *column, &self.model.names)?;
        }
        let condition = self.model.recorder.condition(meta, &filter.and(rows))?;
        let keys = meta.ops().update(transaction, condition, set).await?;
        Ok(keys.into_iter().next().map(|key| (key, policy::Action::Update)))
    }

    /// The key of the row that is in the way and is left as it is; `None` where the viewer sees none.
    async fn existing(
        &self,
        transaction: &RecorderTransaction,
        given: &[(usize, Value)],
        on_conflict: &OnConflict,
    ) -> Result<Option<Written>, ApiError> {
        let meta = self.model.catalog().entity(self.entity);
        let Some(filter) = self.in_the_way(given, on_conflict) else { return Ok(None) };
        let rows = self.select(transaction, filter, 1).await?;
        let key = rows.first().and_then(|row| {
            let cells = meta.key.iter().map(|&column| cell::read_value(&meta.columns[column], row.image.cell(column)));
            cells.collect::<Option<KeyValues>>()
        });
        Ok(key.map(|key| (key, policy::Action::Read)))
    }

    /// The row that has the values of the unique key that decides; `None` where not all of them were given.
    fn in_the_way(&self, given: &[(usize, Value)], on_conflict: &OnConflict) -> Option<Filter> {
        let meta = self.model.catalog().entity(self.entity);
        let target = if on_conflict.target.is_empty() { &meta.key } else { &on_conflict.target };
        let parts = target.iter().map(|column| {
            let (_, value) = given.iter().find(|(given, _)| given == column)?;
            Some(Filter::Compare(*column, Comparison::Equal, value.clone()))
        });
        parts.collect::<Option<_>>().map(Filter::All)
    }

    /// Refuses a write that would change too many rows, or rows that are not as the client takes them to be.
    async fn check_rows(
        &self,
        transaction: &RecorderTransaction,
        filter: &Filter,
        if_match: &ConstValue,
    ) -> Result<(), GraphqlError> {
        let rows =
            self.select(transaction, filter.clone(), self.model.options.max_mutation_rows.saturating_add(1)).await?;
        self.check_size(rows.len() as u64)?;
        if *if_match == ConstValue::Null {
            return Ok(());
        }
        let meta = self.model.catalog().entity(self.entity);
        // As a filter, so that equal means what it means in the database: a decimal may be written in several ways.
        let expected = self.reader().assignments(if_match, Usage::Filter)?.into_iter().map(|(column, value)| {
            match cell::write_value(&value, &mut String::new()) {
                true => Filter::Compare(column, Comparison::Equal, value),
                false => Filter::IsNull(column),
            }
        });
        // Locked first, so that nobody changes them between this and the write.
        let seen = filter.clone().and(self.model.whole_rows(self.access, self.entity)?.filter);
        let found = self.lock(transaction, &seen).await?;
        if found > 0 && self.lock(transaction, &seen.and(Filter::All(expected.collect()))).await? == found {
            return Ok(());
        }
        let rows = self.select(transaction, filter.clone(), found).await?;
        let encoder = self.model.encoder();
        let current = rows.iter().map(|row| {
            let mut json = String::new();
            let seen = (0..meta.columns.len()).filter(|&column| self.access.allows(Usage::Read, self.entity, column));
            encoder.row_json(self.entity, &row.image, seen, &mut json);
            serde_json::from_str(&json).unwrap_or_default()
        });
        let current = ConstValue::List(current.collect());
        let error =
            ApiError::new(Code::Conflict, "the row is not as `ifMatch` says. `extensions.current` has it as it is");
        Err(error.into_graphql().extend_with(|_, extensions| extensions.set("current", current)))
    }

    async fn lock(&self, transaction: &RecorderTransaction, filter: &Filter) -> Result<u64, ApiError> {
        let meta = self.model.catalog().entity(self.entity);
        let condition = self.model.recorder.condition(meta, filter)?;
        Ok(meta.ops().lock(transaction, condition).await?)
    }

    fn check_size(&self, rows: u64) -> Result<(), ApiError> {
        let limit = self.model.options.max_mutation_rows;
        if rows > limit {
            return Err(ApiError::new(Code::LimitExceeded, format!("a mutation may change at most {limit} rows")));
        }
        Ok(())
    }

    /// Whole rows of those that the viewer may read.
    async fn select(
        &self,
        transaction: &RecorderTransaction,
        filter: Filter,
        limit: u64,
    ) -> Result<Vec<Row>, ApiError> {
        let mut select = self.model.whole_rows(self.access, self.entity)?;
        select.filter = filter.and(select.filter);
        select.page = Page::Window { offset: 0, limit };
        self.model.rows(self.entity, &transaction.fetch(&select).await?)
    }

    /// Reads the written rows as they are stored: defaults and triggers have done their part. Refuses a write that left a row which the viewer
    /// may not write so, or not read.
    async fn read_back(
        &self,
        transaction: &RecorderTransaction,
        written: Vec<Written>,
    ) -> Result<Outcome, GraphqlError> {
        const AT_ONCE: usize = 500;
        let meta = self.model.catalog().entity(self.entity);
        let mut found: HashMap<Vec<Option<String>>, Arc<Image>> = HashMap::new();
        for right in [policy::Action::Insert, policy::Action::Update, policy::Action::Read] {
            let keys: Vec<_> = written.iter().filter(|(_, done)| *done == right).map(|(key, _)| key).collect();
            for keys in keys.chunks(AT_ONCE) {
                let any = keys.iter().map(|key| {
                    let parts = meta.key.iter().zip(*key);
                    let equal = parts.map(|(&column, value)| Filter::Compare(column, Comparison::Equal, value.clone()));
                    Filter::All(equal.collect())
                });
                let filter = Filter::Any(any.collect()).and(self.rows(right)?);
                for row in self.select(transaction, filter, u64::MAX >> 1).await? {
                    let key = meta.key.iter().map(|&column| row.image.cell(column).map(str::to_owned)).collect();
                    found.insert(key, row.image);
                }
            }
        }
        let mut rows = Vec::with_capacity(written.len());
        for (key, right) in &written {
            let cells = key.iter().map(|value| {
                let mut canonical = String::new();
                cell::write_value(value, &mut canonical).then_some(canonical)
            });
            match found.get(&cells.collect::<Vec<_>>()) {
                Some(image) => rows.push(image.cells().map(|cell| cell.map(str::to_owned)).collect()),
                None if self.access.is_limited() => {
                    return Err(Access::refusal(*right, self.entity, &self.model.names).into());
                }
                None => {}
            }
        }
        Ok(Outcome::Rows(rows))
    }

    fn answer(&self, outcome: Outcome) -> Result<FieldValue<'static>, GraphqlError> {
        let rows = match outcome {
            Outcome::Count(count) => return Ok(FieldValue::value(ConstValue::from(count))),
            Outcome::Rows(rows) => rows,
        };
        let rows = rows
            .into_iter()
            .map(|cells| Row {
                entity: self.entity,
                image: Arc::new(Image::from_cells(cells.iter().map(Option::as_deref))),
            })
            .collect();
        match self.action {
            Action::CreateOne | Action::Upsert => Ok(outputs::one_row(rows)?),
            _ => Ok(outputs::row_values(rows)),
        }
    }
}

/// Tells whether two mutations ask for the same thing in the same name, and with the same rights: the first's answer is given again.
fn fingerprint(actor: &Actor, scope: &Scope, arguments: &Arguments) -> String {
    // As JSON values, whose objects are in the order of their keys: a client may write the same in another order.
    let others = arguments.iter().filter(|(name, _)| name.as_str() != "mutationId");
    let others: BTreeMap<_, _> =
        others.map(|(name, value)| (name.as_str(), serde_json::to_value(value).unwrap_or_default())).collect();
    let text = serde_json::to_string(&(actor.as_str(), scope.as_str(), others)).unwrap_or_default();
    data_encoding::HEXLOWER.encode(&Sha256::digest(text.as_bytes()))
}
