//! The server, asked over HTTP, WebSocket and server-sent events.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test may panic, and has no public surface")]

mod auth;
mod events;
mod frames;
mod hardening;
mod http;
mod support;
mod tokens;
mod websocket;
