//! The API against a real database.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test may panic, and has no public surface")]

mod engine;
mod explain;
mod leaks;
mod limits;
mod live;
mod mutations;
mod plans;
mod policy;
mod queries;
mod subscriptions;
mod support;
mod wide;
