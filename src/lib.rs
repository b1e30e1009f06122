//! The `tidewire` server: the demo's entities, recorded and served. Everything meant for reuse lives in the crates that this assembles.

mod auth;
pub mod config;
mod doctor;
mod explain;
mod graphiql;
mod migrate;
mod seed;
mod serve;
mod tail;

use anyhow::{Context, Result};
use tidewire_graphql::Api;
use tidewire_outbox::Recorder;

pub use self::{
    auth::{KeyCommand, key},
    doctor::doctor,
    explain::{ExplainOptions, explain},
    migrate::{CaptureCommand, MigrateCommand, capture, migrate},
    seed::seed,
    serve::{App, start},
    tail::{TailOptions, tail},
};
use crate::config::Config;

/// Opens the database with the demo's entities.
///
/// # Errors
/// The database cannot be opened.
pub async fn connect(config: &Config) -> Result<Recorder> {
    Recorder::connect_with(&config.database.url, entity::registry(), config.recorder()?)
        .await
        .with_context(|| format!("the database {} cannot be opened", redacted(&config.database.url)))
}

/// The GraphQL schema of the demo's entities.
///
/// # Errors
/// The schema cannot be built.
pub async fn schema() -> Result<String> {
    let recorder = Recorder::connect("sqlite::memory:", entity::registry()).await?;
    let sdl = Api::builder(recorder.clone()).finish()?.sdl();
    recorder.close().await;
    Ok(sdl)
}

/// A database URL without its password.
fn redacted(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 < at => format!("{}://…{}", &url[..scheme], &url[at..]),
        _ => url.to_owned(),
    }
}
