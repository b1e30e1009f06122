//! Tidewire's promises, checked as a user would check them.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test may panic, and has no public surface")]

mod auth;
mod binary;
mod checker;
mod cli;
mod clients;
mod compose;
mod contract;
mod faults;
mod locks;
mod mariadb;
mod outages;
mod postgres;
mod privacy;
mod scanners;
