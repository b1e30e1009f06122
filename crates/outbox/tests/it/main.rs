//! The outbox against real databases.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test may panic, and has no public surface")]

mod binlog;
mod canonical;
mod capture;
mod crash;
mod differential;
mod doorbell;
mod errors;
mod filter;
mod follow;
mod hooks;
mod lease;
mod mariadb;
mod mariadb_hooks;
mod others;
mod pooler;
#[cfg(feature = "relay-nats")]
mod relay;
mod support;
mod tls;
mod triggers;
mod wal;
