//! The outbox against a real database.
mod smoke;
