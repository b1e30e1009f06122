#![doc = include_str!("../README.md")]

mod capture;
pub mod cell;
mod change;
mod context;
mod credentials;
mod cursor;
mod database;
mod error;
pub mod filter;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod history;
mod hooks;
mod image;
mod install;
pub mod json;
mod lease;
mod log;
mod mysql;
mod postgres;
mod recorder;
mod registry;
mod sql;
mod sqlite;
mod times;

#[cfg(feature = "relay-nats")]
pub use self::log::RelayOptions;
pub use self::{
    capture::{Capture, LogStatus},
    change::{Change, Operation, Transaction},
    context::{Actor, MutationId, Origin},
    cursor::{Cursor, Epoch},
    database::{Packed, Pruned, ResyncReason, Stats},
    error::{Error, ErrorKind, Result},
    filter::Filter,
    image::Image,
    install::{SCHEMA_VERSION, install, installed, uninstall},
    lease::Lease,
    log::{
        Audience, Batch, Event, EventKind, Events, Follower, Log, LogOptions, News, RelayStats, Route, Seat, Shape,
        Snapshot, Start, Step, TailStats, Wants, classify,
    },
    recorder::{Recorder, RecorderOptions, RecorderTransaction, Remembered},
    registry::{
        Assignments, Catalog, ColumnMeta, EntityId, EntityMeta, EntityOps, EnumMeta, Junction, KeyValues, Kind,
        OnConflict, Registry, RelationMeta,
    },
    sql::{Aggregate, Direction, Having, Item, Page, Select, Sql},
};
