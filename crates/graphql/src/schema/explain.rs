//! `explainChanges`: why a subscriber gets changes, or does not. It is there for one role alone.

use std::sync::{Arc, OnceLock, Weak};

use async_graphql::{
    Error as GraphqlError, Name, Value as ConstValue, Variables,
    dynamic::{Enum, EnumItem, Field, FieldFuture, FieldValue, InputValue, Object, ResolverContext, Type, TypeRef},
    indexmap::IndexMap,
};
use serde_json::{Map, Value as Json};

use super::JSON;
use crate::{
    api::{Inner, Request},
    error::{ApiError, Code},
    explanation::{Explanation, Outcome},
    input::list,
    model::Model,
    viewer::Viewer,
};

/// How many transactions are explained where it is not said.
const LIMIT: u64 = 10;
/// How many may be asked for.
const MAX_LIMIT: u64 = 100;

/// What runs the subscriptions that are explained. It owns the schema that this is in, and is set when that is built.
#[derive(Clone, Default)]
pub(crate) struct Whole(Arc<OnceLock<Weak<Inner>>>);

impl Whole {
    pub(crate) fn set(&self, inner: &Arc<Inner>) {
        let _ = self.0.set(Arc::downgrade(inner));
    }

    async fn explain(&self, request: Request, after: &str, limit: usize) -> Result<Explanation, ApiError> {
        let inner = self.0.get().and_then(Weak::upgrade);
        let inner = inner.ok_or_else(|| ApiError::new(Code::Unavailable, "the server is stopping"))?;
        inner.explain(request, after, limit).await
    }
}

/// `explainChanges(after, subscription, …)`
pub(super) fn field(role: String, whole: Whole) -> Field {
    let field = Field::new("explainChanges", TypeRef::named_nn("Explanation"), move |ctx| {
        let (role, whole) = (role.clone(), whole.clone());
        FieldFuture::new(async move {
            if !ctx.data::<Arc<Viewer>>()?.roles.contains(&role) {
                let problem = "the role to explain changes is not among those of this request";
                return Err(ApiError::new(Code::Forbidden, problem).into_graphql());
            }
            let asked = Asked::read(&ctx).map_err(ApiError::into_graphql)?;
            let explained = whole.explain(asked.request, &asked.after, asked.limit).await;
            let explained = explained.map_err(ApiError::into_graphql)?;
            let value = serde_json::to_value(&explained).map_err(GraphqlError::from)?;
            Ok(Some(FieldValue::owned_any(value)))
        })
    });
    let argument = |name: &str, ty: TypeRef, description: &str| InputValue::new(name, ty).description(description);
    field
        .description("Why a subscriber gets the changes after a cursor, or does not.")
        .argument(argument("after", TypeRef::named_nn(TypeRef::STRING), "The cursor that the subscriber has."))
        .argument(argument("subscription", TypeRef::named_nn(TypeRef::STRING), "The subscriber's document."))
        .argument(argument("operationName", TypeRef::named(TypeRef::STRING), "Which operation of the document."))
        .argument(argument("variables", TypeRef::named(JSON), "The values of its variables."))
        .argument(argument("actor", TypeRef::named(TypeRef::STRING), "The `sub` of the subscriber's token."))
        .argument(argument("roles", TypeRef::named_nn_list(TypeRef::STRING), "The subscriber's roles."))
        .argument(argument("claims", TypeRef::named(JSON), "What the subscriber's token claims."))
        .argument(argument(
            "limit",
            TypeRef::named(TypeRef::INT),
            "How many transactions, 10 if left out, at most 100. After some 1,000 changes it ends too.",
        ))
}

/// What `explainChanges` was asked.
struct Asked {
    request: Request,
    after: String,
    limit: usize,
}

impl Asked {
    fn read(ctx: &ResolverContext<'_>) -> Result<Self, ApiError> {
        let arguments = Model::arguments(ctx);
        let text = |name: &str| match arguments.get(name) {
            Some(ConstValue::String(text)) => Some(text.clone()),
            _ => None,
        };
        let roles = arguments.get("roles").map(|roles| list(roles).into_owned()).unwrap_or_default();
        let roles =
            roles.into_iter().filter_map(|role| if let ConstValue::String(role) = role { Some(role) } else { None });
        let mut viewer = Viewer::with_roles(roles);
        if let Some(sub) = text("actor") {
            viewer = viewer.signed_in_as(&sub);
        }
        viewer.claims.extend(object(&arguments, "claims")?);
        let limit = match arguments.get("limit") {
            None | Some(ConstValue::Null) => LIMIT,
            Some(ConstValue::Number(limit)) => {
                let limit = limit.as_u64().filter(|limit| (1..=MAX_LIMIT).contains(limit));
                limit.ok_or_else(|| ApiError::bad_input(format!("`limit` must be from 1 to {MAX_LIMIT}")))?
            }
            Some(_) => return Err(ApiError::bad_input("`limit` must be a whole number")),
        };
        let request = Request {
            query: text("subscription").unwrap_or_default(),
            operation_name: text("operationName"),
            variables: Variables::from_json(object(&arguments, "variables")?.into()),
            viewer: Arc::new(viewer),
            origin: None,
        };
        Ok(Self { request, after: text("after").unwrap_or_default(), limit: limit as usize })
    }
}

fn object(arguments: &IndexMap<Name, ConstValue>, name: &str) -> Result<Map<String, Json>, ApiError> {
    let value = arguments.get(name).cloned().unwrap_or_default().into_json();
    match value {
        Ok(Json::Object(object)) => Ok(object),
        Ok(Json::Null) => Ok(Map::new()),
        _ => Err(ApiError::bad_input(format!("`{name}` must be an object"))),
    }
}

/// A field whose value stands under its name in the JSON of its parent.
fn member(name: &'static str, ty: TypeRef, description: &str) -> Field {
    field_of(name, ty, description, |value| Ok(FieldValue::value(ConstValue::from_json(value)?)))
}

/// The same where that is an object, or a list of them.
fn part(name: &'static str, ty: TypeRef, description: &str) -> Field {
    field_of(name, ty, description, |value| {
        Ok(match value {
            Json::Array(items) => FieldValue::list(items.into_iter().map(FieldValue::owned_any)),
            object => FieldValue::owned_any(object),
        })
    })
}

fn field_of(
    name: &'static str,
    ty: TypeRef,
    description: &str,
    answer: fn(Json) -> Result<FieldValue<'static>, GraphqlError>,
) -> Field {
    let field = Field::new(name, ty, move |ctx| {
        let value = ctx.parent_value.try_downcast_ref::<Json>().map(|parent| parent.get(name).cloned());
        let answer = value.and_then(|value| value.filter(|value| !value.is_null()).map(answer).transpose());
        FieldFuture::new(async move { answer })
    });
    field.description(description)
}

/// The types of what it answers: those of `explanation.rs`.
pub(super) fn types() -> Vec<Type> {
    let text = || TypeRef::named(TypeRef::STRING);
    let some_text = || TypeRef::named_nn(TypeRef::STRING);
    let texts = || TypeRef::named_nn_list_nn(TypeRef::STRING);
    let (maybe, truth) = (|| TypeRef::named(TypeRef::BOOLEAN), || TypeRef::named_nn(TypeRef::BOOLEAN));
    let outcome = Outcome::ALL
        .into_iter()
        .fold(Enum::new("ExplainedOutcome").description("What became of a change."), |outcome, (name, description)| {
            outcome.item(EnumItem::new(name).description(description))
        });
    let by = Enum::new("ExplainedIndexBy")
        .description("How changes are found that concern a subscription.")
        .item(EnumItem::new("KEYS").description("Conditions are looked up."))
        .item(EnumItem::new("EACH").description("The filter is evaluated for each change."))
        .item(EnumItem::new("ENTITY").description("Every change of the entity concerns it."));
    let explanation = Object::new("Explanation")
        .field(member("refusal", text(), "Why there is no such subscription for this viewer: code and message."))
        .field(member("filter", text(), "What was asked for, without what the policy adds."))
        .field(part(
            "transactions",
            TypeRef::named_nn_list_nn("ExplainedTransaction"),
            "Those after the cursor, in order.",
        ))
        .field(member("resync", TypeRef::named("ResyncReason"), "Why the subscriber has to start over after these."))
        .field(member("cursor", text(), "Where one stands after these."))
        .field(member("upToDate", truth(), "Whether there are no more."));
    let transaction = Object::new("ExplainedTransaction")
        .field(member("cursor", some_text(), "Where one stands who has seen it."))
        .field(part("changes", TypeRef::named_nn_list_nn("ExplainedChange"), "Its changes, in order."))
        .field(member(
            "omitted",
            TypeRef::named_nn(TypeRef::INT),
            "How many of its changes are left out, because there are so many.",
        ));
    let change = Object::new("ExplainedChange")
        .field(member("entity", some_text(), "The entity's field name, for example `task`."))
        .field(member("key", TypeRef::named_nn(JSON), "The row's primary key."))
        .field(member("operation", TypeRef::named_nn("ChangeOperation"), "What happened to the row."))
        .field(part(
            "index",
            TypeRef::named("ExplainedIndex"),
            "How it is found to concern the subscription. Null where no change of its entity does.",
        ))
        .field(part("before", TypeRef::named("ExplainedImage"), "What is made of the row as it was."))
        .field(part("after", TypeRef::named("ExplainedImage"), "What is made of the row as it is."))
        .field(member("hiddenFields", texts(), "What the viewer may not see of such rows."))
        .field(member("event", TypeRef::named("ChangeEvent"), "What the subscriber is told."))
        .field(member("outcome", TypeRef::named_nn("ExplainedOutcome"), "What became of it."))
        .field(member("reason", some_text(), "The outcome as a sentence."));
    let index = Object::new("ExplainedIndex")
        .field(member("by", TypeRef::named_nn("ExplainedIndexBy"), "How it is found."))
        .field(member("keys", texts(), "The conditions that are looked up, of which a row has to meet one."))
        .field(member("before", truth(), "Whether the row as it was leads to the subscription."))
        .field(member("after", truth(), "Whether the row as it is does."));
    let image = Object::new("ExplainedImage")
        .field(member("filter", maybe(), "Whether it passes the filter. Null where only the database knows."))
        .field(member("deciding", texts(), "The conditions of the filter that decide that."))
        .field(member(
            "policy",
            maybe(),
            "Whether the policy lets the viewer see it. Null where only the database knows.",
        ))
        .field(part(
            "rules",
            TypeRef::named_nn_list_nn("ExplainedRule"),
            "The rules that apply to the viewer. Without policies there is none.",
        ));
    let rule = Object::new("ExplainedRule")
        .field(member("role", some_text(), "Whose rule it is."))
        .field(member("rule", text(), "The rule, with the viewer's claims in it. Null where only the database knows."))
        .field(member("passes", maybe(), "Whether the row passes."))
        .field(member("deciding", texts(), "The conditions that decide that."));
    let objects = [explanation, transaction, change, index, image, rule].map(Type::from);
    objects.into_iter().chain([outcome.into(), by.into()]).collect()
}
