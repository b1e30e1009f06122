#![doc = include_str!("../README.md")]

mod http;
mod metrics;
mod page;
mod protocol;
mod server;
mod socket;
mod sse;
mod stats;
mod ws;

pub use self::server::{Server, ServerOptions, router};
