//! The API against a real database.

mod limits;
mod mutations;
mod plans;
mod queries;
mod subscriptions;
mod support;
