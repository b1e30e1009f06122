//! The server, asked over HTTP, WebSocket and server-sent events.

mod events;
mod http;
mod support;
mod websocket;
