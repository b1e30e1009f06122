#![doc = include_str!("../README.md")]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "what helps tests panics where a test would")]

mod authority;
pub mod checker;
mod database;
mod fuzz;
mod mariadb;
mod nats;
mod ordinary_user;
mod pgbouncer;
mod postgres;
mod proxy;
mod replica;
mod require;
mod target;
mod wait;
mod websocket;
pub mod zoo;

pub use self::{
    authority::Authority,
    database::TestDatabase,
    fuzz::fuzz,
    mariadb::MariadbServer,
    nats::NatsServer,
    pgbouncer::PgBouncer,
    postgres::PostgresServer,
    proxy::{Proxy, Side},
    replica::{Replica, cells_of},
    require::{available, sakila},
    target::Target,
    wait::{PATIENCE, eventually, soon},
    websocket::WebSocketClient,
};
