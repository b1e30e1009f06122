#![doc = include_str!("../README.md")]

mod address;
mod auth;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod listen;
mod metrics;
mod origin;
mod page;
mod parameters;
mod persisted;
mod protocol;
mod quota;
mod server;
mod socket;
mod sse;
mod stats;
mod tls;
mod ws;

pub use ipnet::IpNet;

pub use self::{
    auth::{ApiKey, Authentication, InvalidKey, Jwks, TokenKey},
    persisted::Persisted,
    quota::{Quota, Quotas, Rate},
    server::{Server, ServerOptions, router},
    tls::Tls,
};
