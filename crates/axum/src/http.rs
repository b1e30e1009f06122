//! GraphQL over HTTP, by its specification.

use axum::{
    body::{Body, Bytes},
    extract::{Request as HttpRequest, State as AxumState, rejection::BytesRejection},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode, Uri,
        header::{ACCEPT, ALLOW, CONTENT_TYPE, UPGRADE},
    },
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use tidewire_graphql::{
    Request,
    async_graphql::{Variables, parser::types::OperationType},
};

use crate::{server::State, sse, stats::add, ws};

const RESPONSE_JSON: &str = "application/graphql-response+json";
const JSON: &str = "application/json";
const EVENT_STREAM: &str = "text/event-stream";

/// The form that the client wants its answer in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `application/graphql-response+json`: the status tells whether the request was understood.
    Response,
    /// `application/json`: a well-formed request is answered with 200, whatever comes of it.
    Json,
    /// `text/event-stream`
    Events,
}

/// The parameters of a request, as JSON has them.
#[derive(Debug, Deserialize)]
struct Parameters {
    query: String,
    #[serde(rename = "operationName", default)]
    operation_name: Option<String>,
    #[serde(default)]
    variables: Option<serde_json::Map<String, serde_json::Value>>,
    #[serde(default)]
    #[expect(dead_code, reason = "read to see that it is an object, as the specification asks")]
    extensions: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Parameters {
    fn into_request(self) -> Request {
        Request {
            query: self.query,
            operation_name: self.operation_name,
            variables: self.variables.map_or_else(Variables::default, |variables| {
                Variables::from_json(serde_json::Value::Object(variables))
            }),
            ..Request::default()
        }
    }
}

pub(crate) async fn get(AxumState(state): AxumState<State>, request: HttpRequest) -> Response {
    if request.headers().contains_key(UPGRADE) {
        return ws::upgrade(&state, request);
    }
    let (parts, _) = request.into_parts();
    let Some(form) = accepted(&parts.headers) else { return not_acceptable() };
    match query_parameters(&parts.uri) {
        Ok(parameters) => answer(&state, &parts.headers, form, &parts.method, parameters.into_request()).await,
        Err(problem) => problem_response(form, StatusCode::BAD_REQUEST, &problem),
    }
}

pub(crate) async fn post(
    AxumState(state): AxumState<State>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let Some(form) = accepted(&headers) else { return not_acceptable() };
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return problem_response(form, rejection.status(), &rejection.body_text()),
    };
    if !is_json(&headers) {
        return problem_response(
            form,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "send the request as `application/json` in UTF-8",
        );
    }
    match serde_json::from_slice::<Parameters>(&body) {
        Ok(parameters) => answer(&state, &headers, form, &Method::POST, parameters.into_request()).await,
        Err(error) => {
            problem_response(form, StatusCode::BAD_REQUEST, &format!("the body is not a GraphQL request: {error}"))
        }
    }
}

/// Answers preflight checks of clients on the same origin; others need a layer that knows whom to trust.
pub(crate) async fn options() -> Response {
    (StatusCode::NO_CONTENT, [(ALLOW, "GET, POST, OPTIONS")]).into_response()
}

async fn answer(state: &State, headers: &HeaderMap, form: Form, method: &Method, mut request: Request) -> Response {
    let shared = &state.0;
    add(&shared.stats.requests, 1);
    request.viewer = shared.viewer(headers);
    // A GET must be safe to repeat, and to be made by a link or by any page's event source.
    if *method == Method::GET && shared.api.operation(&request) == Some(OperationType::Mutation) {
        let mut response = problem_response(form, StatusCode::METHOD_NOT_ALLOWED, "send mutations by POST");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    if form == Form::Events {
        return sse::respond(state, request).await;
    }
    let response = shared.api.execute(request).await;
    let status = if response.executed || form == Form::Json { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    json_response(form, status, response.json)
}

fn json_response(form: Form, status: StatusCode, json: String) -> Response {
    let content_type = match form {
        Form::Response => "application/graphql-response+json; charset=utf-8",
        Form::Json | Form::Events => "application/json; charset=utf-8",
    };
    (status, [(CONTENT_TYPE, content_type)], Body::from(json)).into_response()
}

fn problem_response(form: Form, status: StatusCode, problem: &str) -> Response {
    let code = match status {
        StatusCode::PAYLOAD_TOO_LARGE => "LIMIT_EXCEEDED",
        StatusCode::METHOD_NOT_ALLOWED => "OPERATION_NOT_ALLOWED",
        _ => "BAD_REQUEST",
    };
    let errors = serde_json::json!({ "errors": [{ "message": problem, "extensions": { "code": code } }] });
    json_response(form, status, errors.to_string())
}

fn not_acceptable() -> Response {
    let problem = format!("accept one of {RESPONSE_JSON}, {JSON}, {EVENT_STREAM}");
    problem_response(Form::Json, StatusCode::NOT_ACCEPTABLE, &problem)
}

/// Reads `query`, `operationName`, `variables` and `extensions` from a URL.
fn query_parameters(uri: &Uri) -> Result<Parameters, String> {
    let mut query = None;
    let mut operation_name = None;
    let mut variables = None;
    let mut extensions = None;
    let object = |name: &str, text: &str| match serde_json::from_str(text) {
        Ok(serde_json::Value::Object(object)) => Ok(Some(object)),
        Ok(serde_json::Value::Null) => Ok(None),
        _ => Err(format!("{name} must be a JSON object")),
    };
    for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        match name.as_ref() {
            "query" => query = Some(value.into_owned()),
            "operationName" if !value.is_empty() => operation_name = Some(value.into_owned()),
            "variables" => variables = object("variables", &value)?,
            "extensions" => extensions = object("extensions", &value)?,
            _ => {}
        }
    }
    let query = query.ok_or("the URL has no `query`")?;
    Ok(Parameters { query, operation_name, variables, extensions })
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
