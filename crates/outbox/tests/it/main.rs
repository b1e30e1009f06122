//! The outbox against a real database.

