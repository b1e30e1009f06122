//! The outbox against real databases.

mod canonical;
mod capture;
mod errors;
mod filter;
mod follow;
mod support;
