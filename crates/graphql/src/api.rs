use std::sync::Arc;

use async_graphql::{
    Request as GraphqlRequest, Response as GraphqlResponse, ServerError, Variables,
    dataloader::DataLoader,
    dynamic::{Field, Schema, SubscriptionField, Type},
    extensions::{Extension, ExtensionContext, ExtensionFactory, NextValidation},
    parser::types::OperationType,
};
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use sea_orm::{TransactionSession, TransactionTrait};
use tidewire_outbox::{Origin, Recorder};
use tokio::sync::Mutex;
use tracing::Instrument;

use crate::{
    conform::conform,
    document::{Documents, Known, texts_to_integers, with_codes},
    error::{ApiError, Code},
    explanation::Explanation,
    frame::Frame,
    limits,
    model::Model,
    names::Names,
    options::Options,
    plan::{Plan, Root, Selection},
    policy::{Access, Policies, Policy},
    resolve::{Relations, RequestVariables},
    schema::{self, Additions, MutationScope},
    subscription::Subscriptions,
    viewer::Viewer,
};

/// A request as a transport received it.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The document.
    pub query: String,
    /// Which of the document's operations.
    pub operation_name: Option<String>,
    /// The values of its variables.
    pub variables: Variables,
    /// Who sent it.
    pub viewer: Arc<Viewer>,
    /// Which replica sent it.
    pub origin: Option<Origin>,
}

/// An answer: JSON, and whether the request was understood.
#[derive(Debug, Clone)]
pub struct Response {
    /// The body.
    pub json: String,
    /// Whether an operation ran. If not, the body has errors and no data.
    pub executed: bool,
}

/// What subscribing gives.
pub enum Subscribed {
    /// Events, those together that are ready together, until the client leaves or the server stops.
    Stream(BoxStream<'static, Vec<Frame>>),
    /// The answer of an operation that is no subscription, or that was refused.
    Single(Response),
}

impl std::fmt::Debug for Subscribed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stream(_) => "Stream",
            Self::Single(_) => "Single",
        })
    }
}

/// Puts an [`Api`] together.
pub struct ApiBuilder {
    recorder: Recorder,
    options: Options,
    policies: Vec<Policy>,
    additions: Additions,
}

impl std::fmt::Debug for ApiBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiBuilder").field("options", &self.options).finish_non_exhaustive()
    }
}

impl ApiBuilder {
    /// How the API answers and what it refuses.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Adds rights. Without any, everybody may do everything; with one, nobody may do what none allows.
    #[must_use]
    pub fn policies(mut self, policies: impl IntoIterator<Item = Policy>) -> Self {
        self.policies.extend(policies);
        self
    }

    /// Adds a field to `Query`. Its resolver finds the [`Recorder`] and an `Arc` of the [`Viewer`](crate::Viewer) in the context's data. Policies do not
    /// hold for what it reads and writes.
    #[must_use]
    pub fn query(mut self, field: Field) -> Self {
        self.additions.queries.push(field);
        self
    }

    /// Adds a field to `Mutation`. It does not take part in the transaction of the document's generated fields.
    #[must_use]
    pub fn mutation(mut self, field: Field) -> Self {
        self.additions.mutations.push(field);
        self
    }

    /// Adds a field to `Subscription`.
    #[must_use]
    pub fn subscription(mut self, field: SubscriptionField) -> Self {
        self.additions.subscriptions.push(field);
        self
    }

    /// Adds a type that added fields use.
    #[must_use]
    pub fn register(mut self, ty: impl Into<Type>) -> Self {
        self.additions.types.push(ty.into());
        self
    }

    /// Adds data that added fields find in their context.
    #[must_use]
    pub fn data<T: Send + Sync + 'static>(mut self, data: T) -> Self {
        self.additions.data.insert(data);
        self
    }

    /// Builds the schema.
    ///
    /// # Errors
    /// Two things that would have the same name, an added field that does not fit in, or a policy about something that is not there.
    pub fn finish(self) -> Result<Api, BuildError> {
        let wrong = |problems: Vec<String>| BuildError(problems.join("; "));
        let catalog = self.recorder.catalog();
        let names = Names::new(catalog).map_err(wrong)?;
        let policies = Policies::new(&self.policies, catalog, &names).map_err(wrong)?;
        let documents = Documents::new(self.options.plan_cache);
        let model = Arc::new(Model { recorder: self.recorder, names, options: self.options, policies });
        let whole = schema::Whole::default();
        let schema = schema::build(&model, self.additions, &whole).map_err(|error| BuildError(error.to_string()))?;
        let subscriptions = Subscriptions::new(Arc::clone(&model));
        let inner = Arc::new(Inner { subscriptions, model, schema, documents });
        whole.set(&inner);
        Ok(Api { inner })
    }
}

/// The schema could not be built.
#[derive(Debug, thiserror::Error)]
#[error("the GraphQL schema cannot be built: {0}")]
pub struct BuildError(String);

/// A GraphQL API over the entities of a [`Recorder`]. Cloning is cheap.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    model: Arc<Model>,
    schema: Schema,
    documents: Documents,
    subscriptions: Subscriptions,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

impl Api {
    /// Starts an API over a recorder's entities.
    pub fn builder(recorder: Recorder) -> ApiBuilder {
        let (options, policies) = (Options::default(), Vec::new());
        ApiBuilder { recorder, options, policies, additions: Additions::default() }
    }

    /// The schema in GraphQL's schema definition language.
    pub fn sdl(&self) -> String {
        self.inner.schema.sdl()
    }

    /// The recorder that it serves.
    pub fn recorder(&self) -> &Recorder {
        &self.inner.model.recorder
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn model(&self) -> &Model {
        &self.inner.model
    }

    /// How many subscriptions are open, and what they have been given.
    pub fn subscription_stats(&self) -> crate::SubscriptionStats {
        self.inner.subscriptions.stats()
    }

    /// Which kind of operation a request asks for; `None` where that cannot be told.
    pub fn operation(&self, request: &Request) -> Option<OperationType> {
        limits::check_text(&request.query, &self.inner.model.options).ok()?;
        let parsed = async_graphql::parser::parse_query(&request.query).ok()?;
        Some(Known::new(parsed, request.operation_name.as_deref())?.document.kind())
    }

    /// Answers a query or a mutation. What is logged on the way stands in a span `request` with the operation's name.
    pub async fn execute(&self, request: Request) -> Response {
        let span = tracing::info_span!("request", operation = name(&request));
        self.answer(request).instrument(span).await
    }

    async fn answer(&self, mut request: Request) -> Response {
        let inner = &*self.inner;
        match inner.known(&mut request) {
            Err(refused) => refused,
            Ok(known) => match known.document.kind() {
                OperationType::Query => inner.query(&known, request).await,
                OperationType::Mutation => inner.mutate(&known, request).await,
                OperationType::Subscription => Response::refused(ApiError::new(
                    Code::OperationNotAllowed,
                    "a subscription needs a transport that streams: WebSocket, or server-sent events",
                )),
            },
        }
    }

    /// Answers a query or a mutation by the resolvers, without a plan. Slower; plans are tested against it.
    #[doc(hidden)]
    pub async fn execute_resolved(&self, mut request: Request) -> Response {
        match self.inner.known(&mut request) {
            Err(refused) => refused,
            Ok(known) => self.inner.resolve(&known, request).await,
        }
    }

    /// Whether a request would be answered by a plan.
    #[doc(hidden)]
    pub fn is_planned(&self, mut request: Request) -> bool {
        let known = self.inner.known(&mut request);
        known.is_ok_and(|known| known.plan(&self.inner.model, &request.variables).is_some())
    }

    /// Starts a subscription, or answers another operation. What is logged while the stream runs stands in a span `subscription` with the
    /// operation's name.
    pub async fn subscribe(&self, request: Request) -> Subscribed {
        let span = tracing::info_span!("subscription", operation = name(&request));
        match self.open(request).instrument(span.clone()).await {
            Subscribed::Stream(mut frames) => {
                Subscribed::Stream(stream::poll_fn(move |cx| span.in_scope(|| frames.poll_next_unpin(cx))).boxed())
            }
            single => single,
        }
    }

    async fn open(&self, mut request: Request) -> Subscribed {
        let inner = &self.inner;
        let known = match inner.known(&mut request) {
            Err(refused) => return Subscribed::Single(refused),
            Ok(known) => known,
        };
        if known.document.kind() != OperationType::Subscription {
            return Subscribed::Single(self.answer(request).await);
        }
        let variables = match inner.subscription(&known, &request) {
            Ok(variables) => variables,
            Err(refused) => return Subscribed::Single(refused),
        };
        let Some(plan) = known.plan(&inner.model, &variables) else {
            let stream = inner.schema.execute_stream(inner.graphql_request(&known, &request, variables));
            return Subscribed::Stream(stream.map(|response| vec![Frame::text(serialized(response))]).boxed());
        };
        let access = inner.model.access(&request.viewer);
        match inner.subscriptions.open(plan, &request, variables, access).await {
            Ok(stream) => Subscribed::Stream(stream),
            Err(error) => Subscribed::Single(Response::refused(error)),
        }
    }

    /// Why the viewer of a request for a subscription gets the changes after a cursor, or does not: of the first `limit` transactions, and of some
    /// 1,000 changes at most. Where the subscription begins by itself does not matter.
    ///
    /// # Errors
    /// The request is for no subscription to what is generated, or the log cannot be read.
    pub async fn explain(&self, request: Request, after: &str, limit: usize) -> Result<Explanation, ApiError> {
        self.inner.explain(request, after, limit).await
    }
}

impl Inner {
    pub(crate) async fn explain(
        &self,
        mut request: Request,
        after: &str,
        limit: usize,
    ) -> Result<Explanation, ApiError> {
        let known = match self.known(&mut request) {
            Ok(known) => known,
            Err(refused) => return Ok(Explanation::refused(refused.refusal())),
        };
        if known.document.kind() != OperationType::Subscription {
            return Err(ApiError::bad_input("only subscriptions can be explained, and this document is none"));
        }
        let variables = match self.subscription(&known, &request) {
            Ok(variables) => variables,
            Err(refused) => return Ok(Explanation::refused(refused.refusal())),
        };
        let Some(plan) = known.plan(&self.model, &variables) else {
            return Err(ApiError::bad_input("what a field that was added by hand gives cannot be explained"));
        };
        let access = self.model.access(&request.viewer);
        self.subscriptions.explain(plan, &request, variables, access, after, limit).await
    }

    /// The variables of a subscription, which must have one field and variables that fit.
    fn subscription(&self, known: &Known, request: &Request) -> Result<Variables, Response> {
        let roots = Selection { document: &known.document, variables: &request.variables }.root().len();
        if roots != 1 {
            let problem = format!("a subscription selects one field at its root, and this one {roots}");
            return Err(Response::refused(ApiError::new(Code::ValidationFailed, problem)));
        }
        known.variables(&self.schema, &request.variables).ok_or_else(|| self.misfit(known, request))
    }

    /// A request's document, which is valid and asks for no more than is allowed; and makes the request's variables ready for it.
    fn known(&self, request: &mut Request) -> Result<Arc<Known>, Response> {
        let options = &self.model.options;
        let known = self.documents.get(&request.query, request.operation_name.as_deref());
        // A text that is known has been looked at.
        if known.is_none() {
            limits::check_text(&request.query, options).map_err(Response::refused)?;
        }
        limits::check_variables(&request.variables, options).map_err(Response::refused)?;
        let known = match known {
            Some(known) => {
                texts_to_integers(&known, &self.schema, &mut request.variables);
                known
            }
            None => self.read(request)?,
        };
        limits::check_complexity(&known, self.schema.registry(), &request.variables, options)
            .map_err(Response::refused)?;
        Ok(known)
    }

    /// Parses a request's document, validates it and remembers it.
    fn read(&self, request: &mut Request) -> Result<Arc<Known>, Response> {
        let operation_name = request.operation_name.as_deref();
        let parsed = async_graphql::parser::parse_query(&request.query).map_err(|error| {
            let mut error = ServerError::from(error);
            // The parser draws the line where it stopped; what it expected there stands behind.
            let expected = error.message.rsplit("= ").next().unwrap_or_default();
            error.message = format!("the document is not GraphQL: {expected}");
            let mut errors = [error];
            with_codes(&mut errors, Code::ParseFailed);
            Response::from_errors(&errors)
        })?;
        limits::check_document(&parsed, &self.model.options).map_err(Response::refused)?;
        let known = Known::new(parsed, operation_name).ok_or_else(|| {
            Response::refused(ApiError::new(
                Code::BadUserInput,
                match operation_name {
                    Some(_) => "the document has no operation of this name",
                    None => "the document has several operations; name one in `operationName`",
                },
            ))
        })?;
        texts_to_integers(&known, &self.schema, &mut request.variables);
        self.validate(&known, request)?;
        let known = Arc::new(known);
        self.documents.insert(&request.query, request.operation_name.as_deref(), Arc::clone(&known));
        Ok(known)
    }

    /// Runs async-graphql's validation and nothing else.
    fn validate(&self, known: &Known, request: &Request) -> Result<(), Response> {
        let graphql = self.graphql_request(known, request, Variables::default()).data(ValidateOnly);
        // With nothing to wait for, it ends at the first poll.
        let response = futures_util::FutureExt::now_or_never(self.schema.execute(graphql));
        let mut errors = response.map(|response| response.errors).unwrap_or_default();
        if errors.len() == 1 && errors[0].message == VALID {
            return Ok(());
        }
        with_codes(&mut errors, Code::ValidationFailed);
        Err(Response::from_errors(&errors))
    }

    /// The answer where a variable is missing or does not fit its type. async-graphql says it best, where it sees it.
    fn misfit(&self, known: &Known, request: &Request) -> Response {
        self.validate(known, request).err().unwrap_or_else(|| {
            Response::refused(ApiError::new(Code::ValidationFailed, "a variable does not fit its type"))
        })
    }

    async fn query(&self, known: &Arc<Known>, request: Request) -> Response {
        if let Some(variables) = known.variables(&self.schema, &request.variables)
            && let Some(plan) = known.plan(&self.model, &variables)
            && let Plan::Query(roots) = &*plan
        {
            match self.run(roots, &variables, &self.model.access(&request.viewer)).await {
                Ok(json) => return Response { json, executed: true },
                Err(()) => tracing::debug!("a plan could not answer; resolving field by field"),
            }
        }
        self.resolve(known, request).await
    }

    /// Runs a plan: reads everything in one statement, then writes the answer.
    async fn run(&self, roots: &[Root], variables: &Variables, access: &Access) -> Result<String, ()> {
        let preparer = self.model.preparer(variables, access);
        let mut selects = Vec::new();
        let mut prepared = Vec::new();
        for root in roots {
            prepared.push(match preparer.root(root).map_err(drop)? {
                Some((select, list)) => {
                    selects.push(select);
                    Some(list)
                }
                None => None,
            });
        }
        let parts =
            if selects.is_empty() { Vec::new() } else { self.model.recorder.fetch(&selects).await.map_err(drop)? };
        let mut parts = parts.iter();
        let size: usize = parts.as_slice().iter().map(String::len).sum();
        let mut out = String::with_capacity(size * 2 + 64);
        out.push_str("{\"data\":{");
        let encoder = self.model.encoder();
        let mut first = true;
        for (root, prepared) in roots.iter().zip(&prepared) {
            crate::plan::separate(&mut first, &mut out);
            out.push_str(&root.key);
            let part = prepared.as_ref().and_then(|prepared| Some((prepared, parts.next()?.as_str())));
            encoder.root(root, part, &mut out).map_err(drop)?;
        }
        out.push_str("}}");
        Ok(out)
    }

    /// Runs the document by its resolvers.
    async fn resolve(&self, known: &Known, request: Request) -> Response {
        let Some(variables) = known.variables(&self.schema, &request.variables) else {
            return self.misfit(known, &request);
        };
        let mut response = self.schema.execute(self.graphql_request(known, &request, variables.clone())).await;
        let selection = Selection { document: &known.document, variables: &variables };
        conform(self.schema.registry(), selection, &mut response);
        Response::from_graphql(response)
    }

    /// Runs a mutation document: all of it in one transaction.
    async fn mutate(&self, known: &Known, request: Request) -> Response {
        let mut recorder = self.model.recorder.clone();
        if let Some(actor) = &request.viewer.actor {
            recorder = recorder.acting_as(actor.clone());
        }
        if let Some(origin) = &request.origin {
            recorder = recorder.from(origin.clone());
        }
        // A document that does not fit its variables must not wait for the right to write.
        let Some(variables) = known.variables(&self.schema, &request.variables) else {
            return self.misfit(known, &request);
        };
        let transaction = match recorder.begin().await {
            Ok(transaction) => transaction,
            Err(error) => return Response::failed(error.into()),
        };
        let scope = Arc::new(MutationScope(Mutex::new(Some(transaction))));
        let graphql = self.graphql_request(known, &request, variables).data(Arc::clone(&scope));
        let response = self.schema.execute(graphql).await;
        let transaction = scope.0.lock().await.take();
        let Some(transaction) = transaction else { return Response::from_graphql(response) };
        if response.is_err() {
            if let Err(error) = transaction.rollback().await {
                tracing::warn!(%error, "a mutation could not be rolled back");
            }
            // Nothing of it happened, so nothing of it is told.
            return Response::from_graphql(GraphqlResponse::from_errors(response.errors));
        }
        match transaction.commit().await {
            Ok(()) => Response::from_graphql(response),
            Err(error) => Response::failed(error.into()),
        }
    }

    fn graphql_request(&self, known: &Known, request: &Request, variables: Variables) -> GraphqlRequest {
        let access = self.model.access(&request.viewer);
        let relations = Relations { model: Arc::clone(&self.model), access: Arc::clone(&access) };
        let mut graphql = GraphqlRequest::new(request.query.clone())
            .variables(request.variables.clone())
            .data(RequestVariables(variables))
            .data(Arc::clone(&request.viewer))
            .data(DataLoader::new(relations, tokio::spawn))
            .data(access);
        graphql.operation_name = request.operation_name.clone();
        graphql.set_parsed_query(known.parsed.clone());
        graphql
    }
}

impl Response {
    /// An answer to a request that was not understood or is not allowed.
    pub fn refused(error: ApiError) -> Self {
        Self::from_errors(&[server_error(error)])
    }

    /// An answer to a request that was understood and could not be carried out.
    fn failed(error: ApiError) -> Self {
        Self::from_graphql(GraphqlResponse::from_errors(vec![server_error(error)]))
    }

    fn from_errors(errors: &[ServerError]) -> Self {
        let errors = serde_json::to_string(errors).unwrap_or_else(|_| "[]".into());
        Self { json: format!("{{\"errors\":{errors}}}"), executed: false }
    }

    /// The first error of an answer that is nothing else: its code and its message.
    fn refusal(&self) -> String {
        let answer: serde_json::Value = serde_json::from_str(&self.json).unwrap_or_default();
        let error = &answer["errors"][0];
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        format!("{}: {}", text(&error["extensions"]["code"]), text(&error["message"]))
    }

    fn from_graphql(mut response: GraphqlResponse) -> Self {
        // async-graphql refuses a document (then nothing ran) with errors that have no path.
        let refused = response.data == async_graphql::Value::Null
            && !response.errors.is_empty()
            && response
                .errors
                .iter()
                .all(|error| error.path.is_empty() && error.extensions.is_none() && error.source.is_none());
        if refused {
            with_codes(&mut response.errors, Code::ValidationFailed);
            return Self::from_errors(&response.errors);
        }
        with_codes(&mut response.errors, Code::ExecutionFailed);
        Self { json: serialized(response), executed: true }
    }
}

/// What a client calls its operation, for logs: never the document, and no more than a name's length.
fn name(request: &Request) -> &str {
    const LONGEST: usize = 64;
    let name = request.operation_name.as_deref().unwrap_or_default();
    name.char_indices().nth(LONGEST).map_or(name, |(end, _)| &name[..end])
}

/// An error of the whole request, which has no place in the document.
fn server_error(error: ApiError) -> ServerError {
    let mut server_error = ServerError::new(error.message, None);
    server_error.extensions.get_or_insert_default().set("code", error.code.as_str());
    server_error
}

fn serialized(response: GraphqlResponse) -> String {
    serde_json::to_string(&response).unwrap_or_else(|_| "{\"data\":null}".into())
}

/// Asks for validation alone.
struct ValidateOnly;

/// What a valid document's validation says when it was asked for alone.
const VALID: &str = "valid";

/// Stops after validation where that was all that was asked for.
pub(crate) struct Validation;

impl ExtensionFactory for Validation {
    fn create(&self) -> Arc<dyn Extension> {
        Arc::new(Self)
    }
}

#[async_graphql::async_trait::async_trait]
impl Extension for Validation {
    async fn validation(
        &self,
        ctx: &ExtensionContext<'_>,
        next: NextValidation<'_>,
    ) -> Result<async_graphql::ValidationResult, Vec<ServerError>> {
        let result = next.run(ctx).await?;
        match ctx.data_opt::<ValidateOnly>() {
            Some(_) => Err(vec![ServerError::new(VALID, None)]),
            None => Ok(result),
        }
    }
}
