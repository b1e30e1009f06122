//! A WebSocket that writes its own frames.
//!
//! Most of what a server sends is the same text to many clients behind some bytes of each client's own. So frames are written straight into the
//! buffer that goes to the network, once, with no message between. What comes in, and everything about closing and pinging, is tungstenite's:
//! what it writes ends in the same buffer, frame after frame.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    body::Body,
    extract::Request,
    http::{
        HeaderMap, HeaderValue, Method, StatusCode, Version,
        header::{
            CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
        },
    },
    response::{IntoResponse, Response},
};
use futures_util::{Sink, Stream};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

/// How much is read at once, in bytes: clients say little.
const READ: usize = 4 << 10;
/// How much an idle socket's buffer may keep, in bytes.
const KEPT: usize = 16 << 10;
/// How much tungstenite may put into the buffer of a client that does not read, in bytes: answers to pings.
const ANSWERS: usize = 64 << 10;

/// A request for a WebSocket that has been found to be one.
pub(crate) struct Handshake {
    accept: String,
    offered: bool,
    upgrade: OnUpgrade,
}

/// What is wrong with a request for a WebSocket.
pub(crate) type Refusal = (StatusCode, &'static str);

impl Handshake {
    /// Reads a request that has an `Upgrade` header.
    pub(crate) fn read(request: &mut Request) -> Result<Self, Refusal> {
        let bad = |problem| (StatusCode::BAD_REQUEST, problem);
        let headers = request.headers();
        if request.method() != Method::GET || request.version() != Version::HTTP_11 {
            return Err(bad("a WebSocket is opened by GET over HTTP/1.1"));
        }
        if !has_token(headers, UPGRADE.as_str(), "websocket") || !has_token(headers, CONNECTION.as_str(), "upgrade") {
            return Err(bad("the only upgrade is `Upgrade: websocket`, with `Connection: upgrade`"));
        }
        if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return Err((StatusCode::UPGRADE_REQUIRED, "`Sec-WebSocket-Version` must be 13"));
        }
        let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| bad("`Sec-WebSocket-Key` is missing"))?;
        let accept = derive_accept_key(key.as_bytes());
        let offered = has_token(headers, SEC_WEBSOCKET_PROTOCOL.as_str(), crate::protocol::SUBPROTOCOL);
        let upgrade = request
            .extensions_mut()
            .remove()
            .ok_or((StatusCode::UPGRADE_REQUIRED, "the connection cannot be upgraded"))?;
        Ok(Self { accept, offered, upgrade })
    }

    /// The answer, after which the socket opens.
    pub(crate) fn response(&self) -> Response {
        let mut response = (StatusCode::SWITCHING_PROTOCOLS, Body::empty()).into_response();
        let headers = response.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        if self.offered {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(crate::protocol::SUBPROTOCOL));
        }
        response
    }

    /// Whether the client speaks our protocol.
    pub(crate) fn is_acceptable(&self) -> bool {
        self.offered
    }

    /// Waits for the connection, once the answer has gone.
    pub(crate) async fn open(self, max_message_bytes: usize) -> hyper::Result<Socket> {
        let io = TokioIo::new(self.upgrade.await?);
        let config = WebSocketConfig::default()
            .max_message_size(Some(max_message_bytes))
            .max_frame_size(Some(max_message_bytes))
            .read_buffer_size(READ)
            .write_buffer_size(0);
        let buffered = Buffered { io, out: Vec::new(), written: 0 };
        Ok(Socket(WebSocketStream::from_raw_socket(buffered, Role::Server, Some(config)).await))
    }
}

/// Whether a header that lists tokens has this one.
fn has_token(headers: &HeaderMap, name: &str, token: &str) -> bool {
    let lists = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|one| one.trim().eq_ignore_ascii_case(token))
}

/// An open WebSocket.
pub(crate) struct Socket(WebSocketStream<Buffered>);

impl Socket {
    /// Appends a text frame of so many bytes, which `write` must append exactly. Nothing is sent before [`poll_flush`](Self::poll_flush).
    pub(crate) fn text(&mut self, size: usize, write: impl FnOnce(&mut Vec<u8>)) {
        const FINAL_TEXT: u8 = 0x81;
        let out = &mut self.0.get_mut().out;
        out.reserve(size + 10);
        out.push(FINAL_TEXT);
        match (u8::try_from(size), u16::try_from(size)) {
            (Ok(size @ ..126), _) => out.push(size),
            (_, Ok(size)) => {
                out.push(126);
                out.extend_from_slice(&size.to_be_bytes());
            }
            _ => {
                out.push(127);
                out.extend_from_slice(&(size as u64).to_be_bytes());
            }
        }
        let before = out.len();
        write(out);
        debug_assert_eq!(out.len() - before, size, "a frame has the size that its head says");
    }

    /// How many bytes wait to be sent.
    pub(crate) fn waiting(&mut self) -> usize {
        let buffered = self.0.get_mut();
        buffered.out.len() - buffered.written
    }

    /// Appends a message that is no text of ours: a ping, or a close.
    pub(crate) fn control(&mut self, message: Message) -> Result<(), Error> {
        Pin::new(&mut self.0).start_send(message)
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    /// The next message; `None` when the connection is over.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message, Error>>> {
        Pin::new(&mut self.0).poll_next(cx)
    }
}

/// A connection with what has yet to be written to it.
struct Buffered {
    io: TokioIo<Upgraded>,
    out: Vec<u8>,
    /// How much of it has been written.
    written: usize,
}

impl Buffered {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.out.len() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out[self.written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        self.written = 0;
        self.out.clear();
        self.out.shrink_to(KEPT);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Buffered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

/// What tungstenite writes: whole frames, which may only follow whole frames.
impl AsyncWrite for Buffered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.out.len() - self.written > ANSWERS {
            ready!(self.poll_drain(cx))?;
        }
        self.out.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
