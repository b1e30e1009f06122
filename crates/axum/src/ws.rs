//! Serving `graphql-transport-ws` on a socket.
//!
//! One task per socket reads messages, runs operations, and writes. Operations take turns; what is ready goes out in one write. While the
//! client does not read, nothing is taken from the operations: they stay where they are in the log and cost nothing.

use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use axum::{extract::Request as HttpRequest, response::Response};
use futures_util::{
    FutureExt, StreamExt,
    stream::{AbortHandle, Abortable, BoxStream, SelectAll, once},
};
use serde_json::Value;
use tidewire_graphql::{Frame, Request, Subscribed};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_tungstenite::tungstenite::{
    Error, Message,
    error::CapacityError,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use crate::{
    auth::{self, Identity},
    http::{Form, Refused, no_place},
    parameters::{Parameters, Problem},
    protocol::{ACKNOWLEDGED, Action, Close, PONG, Protocol, complete, error, next_head},
    quota::{Client, Grant, Kind, Refusal},
    server::State,
    socket::{Handshake, Socket},
    stats::{add, open},
};

/// How much is written before it is flushed, in bytes.
const BATCH: usize = 256 << 10;
/// How many messages are read ahead while the client does not read.
const READ_AHEAD: usize = 64;
/// How long a close may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) fn upgrade(state: &State, mut request: HttpRequest, identity: Identity) -> Response {
    let shared = &state.0;
    let handshake = match Handshake::read(&mut request) {
        Ok(handshake) => handshake,
        Err((status, problem)) => return Refused::new(status, problem).respond(Form::Json),
    };
    let Some(gauge) = open(state, |stats| &stats.websockets, shared.options.max_connections) else {
        return no_place();
    };
    let client = shared.admission.client(request.extensions(), request.headers());
    let grant = match shared.admission.open(Kind::Connection, client, &identity.viewer) {
        Ok(grant) => grant,
        Err(refusal) => return Refused::from(refusal).respond(Form::Json),
    };
    let response = handshake.response();
    let connection = {
        let state = state.clone();
        async move {
            let _open = gauge;
            let acceptable = handshake.is_acceptable();
            let socket = match handshake.open(state.0.options.max_body_bytes).await {
                Ok(socket) => socket,
                Err(error) => return tracing::debug!(%error, "a WebSocket did not come about"),
            };
            let mut connection = Connection::new(&state, identity, client, grant, socket);
            let end = if acceptable { connection.run().await } else { End::Close(Close::not_acceptable()) };
            connection.end(end).await;
        }
    };
    tokio::spawn(shared.connections.track_future(connection));
    response
}

struct Connection<'a> {
    state: &'a State,
    identity: Identity,
    client: Client,
    /// What the connection counts against.
    grant: Option<Grant>,
    socket: Socket,
    protocol: Protocol,
    operations: SelectAll<BoxStream<'static, Output>>,
    running: HashMap<String, Running>,
    /// Messages that came while something was being written.
    received: VecDeque<Received>,
    /// When the client was last heard of.
    heard: Instant,
}

/// An operation that runs, and what it counts against. One that was refused has no grant.
struct Running {
    abort: AbortHandle,
    _grant: Option<Grant>,
}

type Received = Option<Result<Message, Error>>;

/// What an operation gives.
enum Output {
    Next {
        /// What stands before each.
        head: Arc<str>,
        frames: Vec<Frame>,
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
    fn new(state: &'a State, identity: Identity, client: Client, grant: Grant, socket: Socket) -> Self {
        Self {
            state,
            identity,
            client,
            grant: Some(grant),
            socket,
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
            let expires = self.identity.expires;
            let step = if self.identity.is_over() {
                Err(End::Close(Close::expired()))
            } else if let Some(received) = self.received.pop_front() {
                self.receive(received).await
            } else {
                tokio::select! {
                    () = stopping.cancelled() => Err(End::Close(Close::restart())),
                    received = poll_fn(|cx| self.socket.poll_next(cx)) => self.receive(received).await,
                    Some(output) = self.operations.next(), if !self.operations.is_empty() => self.send(output).await,
                    _ = ping.tick() => self.ping().await,
                    () = Identity::over(expires) => Err(End::Close(Close::expired())),
                    () = tokio::time::sleep_until(opened + options.init_timeout), if !self.protocol.is_initialised() => {
                        self.init_timed_out().await
                    }
                }
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Ends a connection whose client has not begun in time. Where many come at once it may have, and we have not got to it.
    async fn init_timed_out(&mut self) -> Step {
        match poll_fn(|cx| self.socket.poll_next(cx)).now_or_never() {
            Some(received) => self.receive(received).await,
            None => Err(End::Close(Close::init_timeout())),
        }
    }

    async fn receive(&mut self, received: Received) -> Step {
        self.heard = Instant::now();
        let text = match received {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Binary(_))) => return Err(End::Close(Close::binary())),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => return Ok(()),
            Some(Ok(Message::Close(_))) | None => return Err(End::Gone),
            Some(Err(Error::Capacity(CapacityError::MessageTooLong { .. }))) => {
                return Err(End::Close(Close::too_large()));
            }
            Some(Err(_)) => return Err(End::Gone),
        };
        let running = &self.running;
        match self.protocol.receive(&text, running.len(), |id| running.contains_key(id)) {
            Action::None => Ok(()),
            Action::Close(close) => Err(End::Close(close)),
            Action::Send(text) => {
                self.feed(&text);
                self.flush().await
            }
            Action::Begin { payload } => self.begin(&payload).await,
            Action::Ping { payload } => self.pong(&payload).await,
            Action::Stop { id } => {
                if let Some(operation) = self.running.remove(&id) {
                    operation.abort.abort();
                }
                Ok(())
            }
            Action::Start { id, parameters } => {
                self.start(id, parameters);
                Ok(())
            }
        }
    }

    /// Acknowledges a client, unless it should have shown something and has not, here or with the upgrade.
    async fn begin(&mut self, payload: &Value) -> Step {
        let shared = &self.state.0;
        if let Some(shown) = shared.identify_payload(payload).await.map_err(refused)? {
            self.identity = shown;
            // From now on the connection is theirs.
            self.grant = None;
            let grant = shared.admission.open(Kind::Connection, self.client, &self.identity.viewer);
            self.grant = Some(grant.map_err(|_| End::Close(Close::too_many()))?);
        }
        self.identity = shared.admit(self.identity.clone()).map_err(refused)?;
        self.feed(ACKNOWLEDGED);
        self.flush().await
    }

    /// Answers a ping. Newer credentials of the same viewer let the socket live for longer.
    async fn pong(&mut self, payload: &Value) -> Step {
        if let Some(identity) = self.state.0.identify_payload(payload).await.map_err(refused)? {
            if !identity.is_same_viewer(&self.identity) {
                return Err(End::Close(Close::another_viewer()));
            }
            self.identity.expires = identity.expires;
        }
        self.feed(PONG);
        self.flush().await
    }

    fn start(&mut self, id: String, parameters: Parameters) {
        add(&self.state.0.stats.operations, 1);
        let (abort, registration) = AbortHandle::new_pair();
        let (outputs, grant) = match self.admit(parameters) {
            Ok((request, grant)) => (self.outputs(id.clone(), request), Some(grant)),
            Err(errors) => {
                let last = Output::Last { id: id.clone(), messages: vec![error(&id, &errors)] };
                (once(async move { last }).boxed(), None)
            }
        };
        self.running.insert(id, Running { abort, _grant: grant });
        self.operations.push(Abortable::new(outputs, registration).boxed());
    }

    /// Makes a request of its parameters, if the client may begin it now; else gives the errors that say why not.
    fn admit(&self, parameters: Parameters) -> Result<(Request, Grant), String> {
        let shared = &self.state.0;
        let mut request = parameters.into_request(shared.options.persisted.as_ref()).map_err(Problem::errors)?;
        request.viewer = Arc::clone(&self.identity.viewer);
        let grant =
            shared.admission.open(Kind::Operation, self.client, &self.identity.viewer).map_err(Refusal::errors)?;
        Ok((request, grant))
    }

    fn outputs(&self, id: String, request: Request) -> BoxStream<'static, Output> {
        let api = self.state.0.api.clone();
        let head = Arc::<str>::from(next_head(&id));
        let opening = async move {
            match api.subscribe(request).await {
                Subscribed::Stream(frames) => frames
                    .map(move |frames| Output::Next { head: Arc::clone(&head), frames })
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
        // In a box of its own, which goes when the stream is there: it is ten times as large.
        opening.boxed().flatten_stream().boxed()
    }

    /// Sends an output, with whatever else is ready, and flushes once.
    async fn send(&mut self, output: Output) -> Step {
        self.write(output).await?;
        while self.socket.waiting() < BATCH {
            match self.operations.next().now_or_never() {
                Some(Some(output)) => self.write(output).await?,
                _ => break,
            }
        }
        self.flush().await
    }

    async fn write(&mut self, output: Output) -> Step {
        match output {
            Output::Next { head, frames } => {
                let head = head.as_bytes();
                for frame in frames {
                    let size = head.len() + frame.size() + 1;
                    self.socket.text(size, |out| {
                        out.extend_from_slice(head);
                        frame.write(out);
                        out.push(b'}');
                    });
                    self.count(size);
                    // What is large, and what comes together in great number, does not gather here.
                    if self.socket.waiting() >= BATCH {
                        self.flush().await?;
                    }
                }
            }
            Output::Last { id, messages } => {
                self.running.remove(&id);
                messages.iter().for_each(|message| self.feed(message));
            }
            Output::Complete { id } => {
                self.running.remove(&id);
                self.feed(&complete(&id));
            }
        }
        Ok(())
    }

    fn feed(&mut self, message: &str) {
        self.socket.text(message.len(), |out| out.extend_from_slice(message.as_bytes()));
        self.count(message.len());
    }

    fn count(&self, bytes: usize) {
        add(&self.state.0.stats.frames, 1);
        add(&self.state.0.stats.bytes, bytes as u64);
    }

    /// Waits until everything is written, and reads meanwhile: a client whose own write waits for us to read would otherwise wait for ever.
    async fn flush(&mut self) -> Step {
        let Self { socket, received, state, identity, .. } = self;
        let flushing = poll_fn(|cx| {
            if let Poll::Ready(flushed) = socket.poll_flush(cx) {
                return Poll::Ready(flushed.map_err(|_| End::Gone));
            }
            while received.len() < READ_AHEAD {
                match socket.poll_next(cx) {
                    Poll::Ready(None | Some(Err(_))) => return Poll::Ready(Err(End::Gone)),
                    Poll::Ready(message) => received.push_back(message),
                    Poll::Pending => break,
                }
            }
            Poll::Pending
        });
        let mut flushing = std::pin::pin!(flushing);
        // Nearly always there is nothing to wait for.
        if let Some(flushed) = flushing.as_mut().now_or_never() {
            return flushed;
        }
        tokio::select! {
            flushed = timeout(state.0.options.write_timeout, flushing) => flushed.unwrap_or(Err(End::Silent)),
            () = Identity::over(identity.expires) => Err(End::Close(Close::expired())),
        }
    }

    /// Asks whether the client is still there.
    async fn ping(&mut self) -> Step {
        if self.heard.elapsed() > self.state.0.options.keep_alive * 3 {
            return Err(End::Silent);
        }
        self.control(Message::Ping(Default::default()))?;
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
        let close = Message::Close(Some(CloseFrame { code: CloseCode::from(code), reason: reason.into() }));
        // A client that is gone, or does not read, is not waited for.
        let _ = timeout(CLOSE_TIMEOUT, async {
            self.control(close)?;
            poll_fn(|cx| self.socket.poll_flush(cx)).await.map_err(|_| End::Gone)?;
            while let Some(Ok(message)) = poll_fn(|cx| self.socket.poll_next(cx)).await {
                if matches!(message, Message::Close(_)) {
                    break;
                }
            }
            Ok::<_, End>(())
        })
        .await;
    }

    fn control(&mut self, message: Message) -> Step {
        self.socket.control(message).map_err(|_| End::Gone)
    }
}

fn refused(refusal: auth::Refusal) -> End {
    End::Close(Close::refused(refusal))
}

/// The array of errors in a response that has nothing else.
fn errors_of(json: &str) -> &str {
    json.strip_prefix("{\"errors\":").and_then(|rest| rest.strip_suffix('}')).unwrap_or("[]")
}
