//! Tidewire's promises, checked as a user would check them.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test may panic, and has no public surface")]

mod checker;
