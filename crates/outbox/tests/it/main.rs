//! The outbox against real databases.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test may panic, and has no public surface")]

mod canonical;
mod capture;
mod errors;
mod filter;
mod follow;
mod mariadb;
mod others;
mod support;
