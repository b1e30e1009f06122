//! Serving `graphql-transport-ws` on a socket.
//!
//! One task per socket reads messages, runs operations, and writes. Operations take turns; what is ready goes out in one write. While the
//! client does not read, nothing is taken from the operations: they stay where they are in the log and cost nothing.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::{
        WebSocketUpgrade,
        ws::{CloseFrame, Message, Utf8Bytes, WebSocket},
    },
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use futures_util::{
    FutureExt, SinkExt, StreamExt,
    stream::{AbortHandle, Abortable, BoxStream, SelectAll, SplitSink, SplitStream, once},
};
use tidewire_graphql::{Frame, Request, Subscribed, Viewer};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::{
    protocol::{Action, Close, Protocol, SUBPROTOCOL, complete, error, next_head},
    server::State,
    stats::{add, open},
};

/// How much is written before it is flushed, in bytes.
const BATCH: usize = 256 << 10;
/// How many messages are read ahead while the client does not read.
const READ_AHEAD: usize = 64;
/// How long a close may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) fn upgrade(state: &State, upgrade: WebSocketUpgrade, headers: &HeaderMap) -> Response {
    let shared = &state.0;
    let Some(gauge) = open(state, |stats| &stats.websockets, shared.options.max_connections) else {
        return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "5")], "too many connections").into_response();
    };
    let viewer = shared.viewer(headers);
    let state = state.clone();
    let limit = shared.options.max_body_bytes;
    upgrade.protocols([SUBPROTOCOL]).max_message_size(limit).max_frame_size(limit).on_upgrade(move |socket| {
        let connections = state.0.connections.clone();
        connections.track_future(async move {
            let acceptable = socket.protocol().is_some_and(|protocol| protocol == SUBPROTOCOL);
            let _open = gauge;
            let (sink, stream) = socket.split();
            let mut connection = Connection::new(&state, viewer, sink, stream);
            let end = if acceptable { connection.run().await } else { End::Close(Close::not_acceptable()) };
            connection.end(end).await;
        })
    })
}

struct Connection<'a> {
    state: &'a State,
    viewer: Arc<Viewer>,
    sink: SplitSink<WebSocket, Message>,
    stream: SplitStream<WebSocket>,
    protocol: Protocol,
    operations: SelectAll<BoxStream<'static, Output>>,
    running: HashMap<String, AbortHandle>,
    /// Messages that came while something was being written.
    received: VecDeque<Received>,
    /// When the client was last heard of.
    heard: Instant,
}

type Received = Option<Result<Message, axum::Error>>;

/// What an operation gives.
enum Output {
    Next {
        head: Utf8Bytes,
        frame: Frame,
    },
    /// A message as it is, after which the operation is over.
    Last {
        id: String,
        messages: Vec<String>,
    },
    Complete {
        id: String,
    },
}

/// Why a connection ends.
enum End {
    Close(Close),
    /// The client has closed, or is gone.
    Gone,
    /// The client does not answer, or does not read.
    Silent,
}

type Step<T = ()> = Result<T, End>;

impl<'a> Connection<'a> {
    fn new(
        state: &'a State,
        viewer: Arc<Viewer>,
        sink: SplitSink<WebSocket, Message>,
        stream: SplitStream<WebSocket>,
    ) -> Self {
        Self {
            state,
            viewer,
            sink,
            stream,
            protocol: Protocol::new(state.0.options.max_operations),
            operations: SelectAll::new(),
            running: HashMap::new(),
            received: VecDeque::new(),
            heard: Instant::now(),
        }
    }

    async fn run(&mut self) -> End {
        let options = &self.state.0.options;
        let stopping = self.state.0.stopping.clone();
        let opened = Instant::now();
        let mut ping = interval(options.keep_alive);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.reset();
        loop {
            let step = if let Some(received) = self.received.pop_front() {
                self.receive(received).await
            } else {
                tokio::select! {
                    () = stopping.cancelled() => Err(End::Close(Close::restart())),
                    received = self.stream.next() => self.receive(received).await,
                    Some(output) = self.operations.next(), if !self.operations.is_empty() => self.send(output).await,
                    _ = ping.tick() => self.ping().await,
                    () = tokio::time::sleep_until(opened + options.init_timeout), if !self.protocol.is_initialised() => {
                        Err(End::Close(Close::init_timeout()))
                    }
                }
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn receive(&mut self, received: Received) -> Step {
        self.heard = Instant::now();
        let text = match received {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Binary(_))) => return Err(End::Close(Close::binary())),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => return Ok(()),
            Some(Ok(Message::Close(_))) | None => return Err(End::Gone),
            Some(Err(error)) if error.to_string().contains("too long") => return Err(End::Close(Close::too_large())),
            Some(Err(_)) => return Err(End::Gone),
        };
        let running = &self.running;
        match self.protocol.receive(&text, running.len(), |id| running.contains_key(id)) {
            Action::None => Ok(()),
            Action::Close(close) => Err(End::Close(close)),
            Action::Send(text) => {
                self.feed(Message::text(text)).await?;
                self.flush().await
            }
            Action::Stop { id } => {
                if let Some(operation) = self.running.remove(&id) {
                    operation.abort();
                }
                Ok(())
            }
            Action::Start { id, request } => {
                self.start(id, request);
                Ok(())
            }
        }
    }

    fn start(&mut self, id: String, mut request: Request) {
        add(&self.state.0.stats.operations, 1);
        request.viewer = Arc::clone(&self.viewer);
        let api = self.state.0.api.clone();
        let head = Utf8Bytes::from(next_head(&id));
        let (abort, registration) = AbortHandle::new_pair();
        self.running.insert(id.clone(), abort);
        let opening = async move {
            match api.subscribe(request).await {
                Subscribed::Stream(frames) => frames
                    .map(move |frame| Output::Next { head: head.clone(), frame })
                    .chain(once(async move { Output::Complete { id } }))
                    .left_stream(),
                Subscribed::Single(response) => {
                    let messages = if response.executed {
                        vec![format!("{head}{}}}", response.json), complete(&id)]
                    } else {
                        vec![error(&id, errors_of(&response.json))]
                    };
                    once(async move { Output::Last { id, messages } }).right_stream()
                }
            }
        };
        self.operations.push(Abortable::new(opening.flatten_stream(), registration).boxed());
    }

    /// Sends an output, with whatever else is ready, and flushes once.
    async fn send(&mut self, output: Output) -> Step {
        let mut written = self.write(output).await?;
        while written < BATCH {
            match self.operations.next().now_or_never() {
                Some(Some(output)) => written += self.write(output).await?,
                _ => break,
            }
        }
        self.flush().await
    }

    async fn write(&mut self, output: Output) -> Step<usize> {
        match output {
            Output::Next { head, frame } => {
                let mut text = String::with_capacity(head.len() + frame.size() + 1);
                text.push_str(&head);
                frame.write(&mut text);
                text.push('}');
                let size = text.len();
                self.feed(Message::text(text)).await?;
                Ok(size)
            }
            Output::Last { id, messages } => {
                self.running.remove(&id);
                let mut size = 0;
                for message in messages {
                    size += message.len();
                    self.feed(Message::text(message)).await?;
                }
                Ok(size)
            }
            Output::Complete { id } => {
                self.running.remove(&id);
                self.feed(Message::text(complete(&id))).await?;
                Ok(0)
            }
        }
    }

    async fn feed(&mut self, message: Message) -> Step {
        if let Message::Text(text) = &message {
            add(&self.state.0.stats.frames, 1);
            add(&self.state.0.stats.bytes, text.len() as u64);
        }
        let feeding = self.sink.feed(message);
        while_reading(feeding, &mut self.stream, &mut self.received, self.state.0.options.write_timeout).await
    }

    async fn flush(&mut self) -> Step {
        let flushing = self.sink.flush();
        while_reading(flushing, &mut self.stream, &mut self.received, self.state.0.options.write_timeout).await
    }

    /// Asks whether the client is still there.
    async fn ping(&mut self) -> Step {
        if self.heard.elapsed() > self.state.0.options.keep_alive * 3 {
            return Err(End::Silent);
        }
        self.feed(Message::Ping(Default::default())).await?;
        self.flush().await
    }

    async fn end(mut self, end: End) {
        self.operations.clear();
        let Close { code, reason } = match end {
            End::Close(close) => close,
            End::Gone => Close { code: 1000, reason: String::new() },
            End::Silent => {
                add(&self.state.0.stats.dropped, 1);
                // One that is there after all should come back.
                Close { code: 1001, reason: "Not heard from, or not reading".into() }
            }
        };
        tracing::debug!(code, reason, "closing a WebSocket");
        let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
        // A client that is gone, or does not read, is not waited for.
        let _ = timeout(CLOSE_TIMEOUT, async {
            self.sink.send(close).await?;
            while let Some(Ok(message)) = self.stream.next().await {
                if matches!(message, Message::Close(_)) {
                    break;
                }
            }
            Ok::<_, axum::Error>(())
        })
        .await;
    }
}

/// Waits for a write, and reads meanwhile: a client whose own write waits for us to read would otherwise wait for ever.
async fn while_reading(
    writing: impl Future<Output = Result<(), axum::Error>>,
    stream: &mut SplitStream<WebSocket>,
    received: &mut VecDeque<Received>,
    limit: Duration,
) -> Step {
    let mut writing = std::pin::pin!(writing);
    // Nearly always there is nothing to wait for.
    if let Some(written) = writing.as_mut().now_or_never() {
        return written.map_err(|_| End::Gone);
    }
    let deadline = tokio::time::sleep(limit);
    let mut deadline = std::pin::pin!(deadline);
    loop {
        tokio::select! {
            written = &mut writing => return written.map_err(|_| End::Gone),
            () = &mut deadline => return Err(End::Silent),
            message = stream.next(), if received.len() < READ_AHEAD => {
                if matches!(message, None | Some(Err(_))) {
                    return Err(End::Gone);
                }
                received.push_back(message);
            }
        }
    }
}

/// The array of errors in a response that has nothing else.
fn errors_of(json: &str) -> &str {
    json.strip_prefix("{\"errors\":").and_then(|rest| rest.strip_suffix('}')).unwrap_or("[]")
}
