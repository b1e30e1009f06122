//! The outbox against real databases.

mod canonical;
mod capture;
mod filter;
mod support;
