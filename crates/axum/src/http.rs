//! GraphQL over HTTP, by its specification.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request as HttpRequest, State as AxumState},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode, Uri,
        header::{
            ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, UPGRADE,
            WWW_AUTHENTICATE,
        },
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use tidewire_graphql::{Request, async_graphql::parser::types::OperationType};
use tokio::time::timeout;

use crate::{
    auth::{self, Authentication, Identity},
    origin,
    parameters::{Parameters, Problem},
    quota::{Client, Grant, Kind, Refusal, jittered},
    server::State,
    sse,
    stats::add,
    ws,
};

const RESPONSE_JSON: &str = "application/graphql-response+json";
const JSON: &str = "application/json";
const EVENT_STREAM: &str = "text/event-stream";

/// The form that the client wants its answer in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `application/graphql-response+json`: the status tells whether the request was understood.
    Response,
    /// `application/json`: a well-formed request is answered with 200, whatever comes of it.
    Json,
    /// `text/event-stream`
    Events,
}

/// What a request says apart from its parameters.
struct Asked<'a> {
    method: &'a Method,
    client: Client,
    identity: Identity,
    form: Form,
}

impl<'a> Asked<'a> {
    /// What the head of a request says, if it may come and can be answered.
    async fn new(state: &State, parts: &'a Parts) -> Result<Self, Response> {
        let shared = &state.0;
        let form = accepted(&parts.headers);
        let refuse = |refused: Refused| refused.respond(form.unwrap_or(Form::Json));
        origin::check(&shared.options, &parts.headers, &parts.uri).map_err(refuse)?;
        let identity = async { shared.admit(shared.identify(&parts.headers).await?) };
        let identity = identity.await.map_err(|refusal| self::refused(state, form.unwrap_or(Form::Json), refusal))?;
        let client = shared.admission.client(&parts.extensions, &parts.headers);
        let form = form.ok_or_else(|| refuse(not_acceptable()))?;
        Ok(Self { method: &parts.method, client, identity, form })
    }
}

pub(crate) async fn get(AxumState(state): AxumState<State>, request: HttpRequest) -> Response {
    if request.headers().contains_key(UPGRADE) {
        if let Err(refused) = origin::check(&state.0.options, request.headers(), request.uri()) {
            return refused.respond(Form::Json);
        }
        // Who shows nothing here may do so by `connection_init`: a browser cannot set headers.
        return match state.0.identify(request.headers()).await {
            Ok(identity) => ws::upgrade(&state, request, identity),
            Err(refusal) => refused(&state, Form::Json, refusal),
        };
    }
    let (parts, _) = request.into_parts();
    let asked = match Asked::new(&state, &parts).await {
        Ok(asked) => asked,
        Err(refusal) => return refusal,
    };
    if !state.0.options.get {
        return by_post(Refused::new(StatusCode::METHOD_NOT_ALLOWED, "send requests by POST"), asked.form);
    }
    match query_parameters(&parts.uri) {
        Ok(parameters) => answer(&state, &asked, parameters).await,
        Err(problem) => problem_response(asked.form, StatusCode::BAD_REQUEST, &problem),
    }
}

pub(crate) async fn post(AxumState(state): AxumState<State>, request: HttpRequest) -> Response {
    let (parts, body) = request.into_parts();
    let asked = match Asked::new(&state, &parts).await {
        Ok(asked) => asked,
        Err(refusal) => return refusal,
    };
    let body = match read(&state, &parts, body).await {
        Ok(body) => body,
        Err(refused) => return refused.respond(asked.form),
    };
    let malformed = |error: serde_json::Error| {
        problem_response(asked.form, StatusCode::BAD_REQUEST, &format!("the body is not a GraphQL request: {error}"))
    };
    if body.trim_ascii_start().first() == Some(&b'[') {
        let most = state.0.options.max_batch;
        if most == 0 {
            return too_many("send one request at a time, and no array of them (`max_batch`)", asked.form);
        }
        return match serde_json::from_slice::<Vec<Parameters>>(&body) {
            Ok(batch) if batch.len() > most => {
                too_many(&format!("the array has more than {most} requests (`max_batch`)"), asked.form)
            }
            Ok(batch) => answer_all(&state, &asked, batch).await,
            Err(error) => malformed(error),
        };
    }
    match serde_json::from_slice::<Parameters>(&body) {
        Ok(parameters) => answer(&state, &asked, parameters).await,
        Err(error) => malformed(error),
    }
}

/// Reads a body that is what it should be, while the client sends it.
async fn read(state: &State, parts: &Parts, body: Body) -> Result<Bytes, Refused> {
    // What is small on the way could be large when it is unpacked.
    if parts.headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send the request without `content-encoding`"));
    }
    // This also keeps away forms, which any page may send.
    if !is_json(&parts.headers) {
        let problem = "send the request as `application/json` in UTF-8";
        return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, problem));
    }
    // What is announced as too large need not be waited for.
    let announced = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > state.0.options.max_body_bytes) {
        let problem = format!("the body is longer than {} bytes (`max_body_bytes`)", state.0.options.max_body_bytes);
        return Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, &problem));
    }
    let mut whole = HttpRequest::new(body);
    // The limit of a body's size is among these.
    *whole.extensions_mut() = parts.extensions.clone();
    match timeout(state.0.options.body_timeout, Bytes::from_request(whole, state)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(rejection)) => Err(Refused::new(rejection.status(), &rejection.body_text())),
        Err(_) => Err(Refused::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}

/// Answers preflight checks of clients on the same origin; others need a layer that knows whom to trust.
pub(crate) async fn options() -> Response {
    (StatusCode::NO_CONTENT, [(ALLOW, "GET, POST, OPTIONS")]).into_response()
}

/// Makes a request of its parameters, if the client may send it now.
fn admit(state: &State, asked: &Asked<'_>, parameters: Parameters) -> Result<(Request, Grant), Refused> {
    let shared = &state.0;
    add(&shared.stats.requests, 1);
    let mut request = parameters.into_request(shared.options.persisted.as_ref())?;
    request.viewer = Arc::clone(&asked.identity.viewer);
    let grant = shared.admission.open(Kind::Operation, asked.client, &request.viewer)?;
    // A GET must be safe to repeat, and to be made by a link or by any page's event source.
    if *asked.method == Method::GET && shared.api.operation(&request) == Some(OperationType::Mutation) {
        return Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, "send mutations by POST"));
    }
    Ok((request, grant))
}

async fn answer(state: &State, asked: &Asked<'_>, parameters: Parameters) -> Response {
    let form = asked.form;
    let (request, grant) = match admit(state, asked, parameters) {
        Ok(admitted) => admitted,
        Err(refused) if refused.status == StatusCode::METHOD_NOT_ALLOWED => return by_post(refused, form),
        Err(refused) => return refused.respond(form),
    };
    if form == Form::Events {
        return sse::respond(state, request, asked.client, asked.identity.expires, grant).await;
    }
    let response = state.0.api.execute(request).await;
    let status = if response.executed || form == Form::Json { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    json_response(form, status, response.json)
}

/// Answers several requests, one after the other, by an array of their answers.
async fn answer_all(state: &State, asked: &Asked<'_>, batch: Vec<Parameters>) -> Response {
    if asked.form == Form::Events {
        return problem_response(asked.form, StatusCode::BAD_REQUEST, "an event stream is of one request");
    }
    let mut answers = Vec::with_capacity(batch.len());
    for parameters in batch {
        answers.push(match admit(state, asked, parameters) {
            Ok((request, _grant)) => state.0.api.execute(request).await.json,
            Err(refused) => refused.json(),
        });
    }
    json_response(asked.form, StatusCode::OK, format!("[{}]", answers.join(",")))
}

/// What who shows nothing, or nothing good, is answered.
pub(crate) fn refused(state: &State, form: Form, refusal: auth::Refusal) -> Response {
    let mut response = problem_response(form, refusal.status(), refusal.message());
    let headers = response.headers_mut();
    if refusal.status() == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("5"));
        return response;
    }
    for scheme in state.0.options.authentication.iter().flat_map(Authentication::schemes) {
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
    }
    response
}

fn json_response(form: Form, status: StatusCode, json: String) -> Response {
    let content_type = match form {
        Form::Response => "application/graphql-response+json; charset=utf-8",
        Form::Json | Form::Events => "application/json; charset=utf-8",
    };
    // Another viewer may ask the same and be answered otherwise.
    (status, [(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-store")], Body::from(json)).into_response()
}

/// Why a request is not run.
#[derive(Debug)]
pub(crate) struct Refused {
    status: StatusCode,
    code: &'static str,
    problem: String,
    retry_after: Option<Duration>,
}

impl Refused {
    pub(crate) fn new(status: StatusCode, problem: &str) -> Self {
        let code = match status {
            StatusCode::PAYLOAD_TOO_LARGE => "LIMIT_EXCEEDED",
            StatusCode::METHOD_NOT_ALLOWED => "OPERATION_NOT_ALLOWED",
            StatusCode::FORBIDDEN => "FORBIDDEN",
            StatusCode::UNAUTHORIZED => "UNAUTHENTICATED",
            StatusCode::SERVICE_UNAVAILABLE => "UNAVAILABLE",
            _ => "BAD_REQUEST",
        };
        Self { status, code, problem: problem.into(), retry_after: None }
    }

    fn json(&self) -> String {
        serde_json::json!({ "errors": [{ "message": self.problem, "extensions": { "code": self.code } }] }).to_string()
    }

    pub(crate) fn respond(self, form: Form) -> Response {
        let mut response = json_response(form, self.status, self.json());
        if let Some(wait) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds(wait));
        }
        response
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self { code: problem.code, ..Self::new(StatusCode::BAD_REQUEST, problem.message) }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let status = StatusCode::TOO_MANY_REQUESTS;
        Self { status, code: "LIMIT_EXCEEDED", problem: refusal.problem, retry_after: Some(refusal.retry_after) }
    }
}

fn seconds(wait: Duration) -> HeaderValue {
    HeaderValue::from(wait.as_millis().div_ceil(1_000).try_into().unwrap_or(u64::MAX))
}

/// There is no place for another connection. Those who hear so come back at different times.
pub(crate) fn no_place() -> Response {
    let wait = seconds(jittered(Duration::from_secs(5)));
    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, wait)], "too many connections").into_response()
}

fn by_post(refused: Refused, form: Form) -> Response {
    let mut response = refused.respond(form);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    response
}

fn too_many(problem: &str, form: Form) -> Response {
    Refused { code: "LIMIT_EXCEEDED", ..Refused::new(StatusCode::BAD_REQUEST, problem) }.respond(form)
}

fn problem_response(form: Form, status: StatusCode, problem: &str) -> Response {
    Refused::new(status, problem).respond(form)
}

fn not_acceptable() -> Refused {
    Refused::new(StatusCode::NOT_ACCEPTABLE, &format!("accept one of {RESPONSE_JSON}, {JSON}, {EVENT_STREAM}"))
}

/// Reads the parameters from a URL.
fn query_parameters(uri: &Uri) -> Result<Parameters, String> {
    let mut parameters = Parameters::default();
    let object = |name: &str, text: &str| match serde_json::from_str(text) {
        Ok(serde_json::Value::Object(object)) => Ok(Some(object)),
        Ok(serde_json::Value::Null) => Ok(None),
        _ => Err(format!("{name} must be a JSON object")),
    };
    for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        match name.as_ref() {
            "query" => parameters.query = Some(value.into_owned()),
            "documentId" => parameters.document_id = Some(value.into_owned()),
            "operationName" if !value.is_empty() => parameters.operation_name = Some(value.into_owned()),
            "variables" => parameters.variables = object("variables", &value)?,
            "extensions" => parameters.extensions = object("extensions", &value)?,
            _ => {}
        }
    }
    Ok(parameters)
}

/// Which form to answer in; `None` where the client wants none that there is.
fn accepted(headers: &HeaderMap) -> Option<Form> {
    let mut best: Option<(Form, f32)> = None;
    let mut any = false;
    for header in headers.get_all(ACCEPT) {
        any = true;
        for range in header.to_str().unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let form = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                RESPONSE_JSON => Form::Response,
                // Until every client knows the newer form, those that take anything get the older.
                JSON | "*/*" | "application/*" => Form::Json,
                EVENT_STREAM => Form::Events,
                _ => continue,
            };
            let mut quality = 1.0;
            let mut fits = true;
            for parameter in parts {
                let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "charset" => fits = value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8"),
                    _ => {}
                }
            }
            if fits && quality > best.map_or(0.0, |(_, quality)| quality) {
                best = Some((form, quality));
            }
        }
    }
    if any { best.map(|(form, _)| form) } else { Some(Form::Json) }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let mut parts = content_type.split(';').map(str::trim);
    let json = parts.next().is_some_and(|essence| essence.eq_ignore_ascii_case(JSON));
    json && parts.all(|parameter| match parameter.split_once('=') {
        Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
            value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        _ => true,
    })
}
