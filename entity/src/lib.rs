//! The entities of the demo, a task tracker: plain SeaORM entities that know nothing of sync.
//!
//! [`registry`] lists the ones that are synced. A Rust service that depends on this crate alone can write tasks through a
//! [`Recorder`](tidewire_outbox::Recorder), and whoever follows sees them.

#![allow(missing_docs, reason = "columns are named for what they hold, and SeaORM's macros write undocumented items")]

pub mod attachment;
pub mod comment;
pub mod label;
pub mod member;
pub mod project;
pub mod task;
pub mod task_label;
pub mod user;

use tidewire_outbox::Registry;

/// Every entity of the demo is synced.
pub fn registry() -> Registry {
    Registry::new()
        .entity::<user::Entity>()
        .entity::<project::Entity>()
        .entity::<member::Entity>()
        .entity::<task::Entity>()
        .entity::<comment::Entity>()
        .entity::<label::Entity>()
        .entity::<task_label::Entity>()
        .entity::<attachment::Entity>()
}
