//! Server-sent events, in the distinct connections mode of `graphql-sse`: each operation is a request, each result an event.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use tidewire_graphql::{Request, Subscribed};
use tokio::time::{Instant, timeout};

use crate::{
    auth::Identity,
    http::{Form, Refused, no_place},
    quota::{Client, Grant, Kind},
    server::State,
    stats::{add, open},
};

/// How often a comment is sent while nothing else is, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(12);

/// Runs an operation, whose grant this is, and its events until the credentials of its sender expire.
pub(crate) async fn respond(
    state: &State,
    request: Request,
    client: Client,
    expires: Option<Instant>,
    grant: Grant,
) -> Response {
    let shared = &state.0;
    let Some(gauge) = open(state, |stats| &stats.event_streams, shared.options.max_connections) else {
        return no_place();
    };
    let connection = match shared.admission.open(Kind::Connection, client, &request.viewer) {
        Ok(connection) => connection,
        Err(refusal) => return Refused::from(refusal).respond(Form::Events),
    };
    let open = (gauge, connection, grant);
    add(&shared.stats.operations, 1);
    let events = match shared.api.subscribe(request).await {
        Subscribed::Single(response) => {
            let mut text = Vec::new();
            event(response.json.as_bytes(), &mut text);
            text.extend_from_slice(COMPLETE);
            stream::iter([text]).left_stream()
        }
        Subscribed::Stream(frames) => {
            let stats_of = state.clone();
            let frames = frames.map(move |frames| {
                let mut text = Vec::with_capacity(frames.iter().map(|frame| frame.size() + 24).sum());
                let mut json = Vec::new();
                for frame in &frames {
                    json.clear();
                    frame.write(&mut json);
                    event(&json, &mut text);
                }
                add(&stats_of.0.stats.frames, frames.len() as u64);
                add(&stats_of.0.stats.bytes, text.len() as u64);
                text
            });
            // Without a `complete`, the client knows that it should come back.
            let complete = stream::once(async { COMPLETE.to_vec() });
            let stopping = shared.stopping.clone().cancelled_owned();
            let ending = async move {
                tokio::select! {
                    () = stopping => {}
                    () = Identity::over(expires) => {}
                }
            };
            let frames = frames.chain(complete).take_until(ending);
            stream::unfold((Box::pin(frames), open), |(mut frames, open)| async move {
                let text = match timeout(KEEP_ALIVE, frames.next()).await {
                    Ok(text) => text?,
                    Err(_) => b":\n\n".to_vec(),
                };
                Some((text, (frames, open)))
            })
            .right_stream()
        }
    };
    let body = Body::from_stream(events.map(|text| Ok::<_, Infallible>(Bytes::from(text))));
    let headers = [(CONTENT_TYPE, "text/event-stream; charset=utf-8"), (CACHE_CONTROL, "no-cache")];
    (headers, [("x-accel-buffering", "no")], body).into_response()
}

const COMPLETE: &[u8] = b"event: complete\ndata: \n\n";

/// Writes a `next` event. White space inside a JSON column may hold line breaks, which end a line of data here.
fn event(json: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"event: next\n");
    for line in json.split(|byte| matches!(byte, b'\n' | b'\r')) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out.push(b'\n');
}
