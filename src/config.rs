//! The settings, and where they come from. Nothing else reads the environment.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use serde::Deserialize;
use tidewire_axum::ServerOptions;
use tidewire_graphql::{Options, Policy, TimeFormat};
use tidewire_outbox::{LogOptions, RecorderOptions};

/// The defaults, with what each setting means.
pub const DEFAULTS: &str = include_str!("../config.default.toml");

/// The file that is read where none is named, if it is there.
const FILE: &str = "tidewire.toml";

/// All settings.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[database]`
    pub database: Database,
    /// `[server]`
    pub server: Server,
    /// `[graphql]`
    pub graphql: Graphql,
    /// `[log]`
    pub log: Log,
    /// `[relay]`
    pub relay: Relay,
    /// `[retention]`
    pub retention: Retention,
    /// `[logging]`
    pub logging: Logging,
    /// `[[policy]]`, each of them
    #[serde(default)]
    pub policy: Vec<Policy>,
}

/// What the file says of each is not said again here.
#[allow(missing_docs, reason = "config.default.toml documents every setting with its unit")]
mod sections {
    use serde::Deserialize;

    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Database {
        pub url: String,
        pub direct_url: String,
        pub max_readers: u32,
        pub capture: String,
        pub max_kept_log: u64,
        pub migrate: bool,
    }

    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Server {
        pub listen: String,
        pub path: String,
        pub page: bool,
        pub max_body_bytes: usize,
        pub init_timeout_ms: u64,
        pub keep_alive_ms: u64,
        pub write_timeout_ms: u64,
        pub max_operations: usize,
        pub max_connections: usize,
        pub shutdown_timeout_ms: u64,
        pub actor_header: String,
    }

    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Graphql {
        pub times: Times,
        pub max_rows: u64,
        pub max_mutation_rows: u64,
        pub max_document_bytes: usize,
        pub max_nesting: usize,
        pub max_depth: usize,
        pub max_fields: usize,
        pub max_directives: usize,
        pub introspection: bool,
        pub suggestions: bool,
        pub plan_cache: usize,
        pub snapshot_rows: usize,
        pub cursor_interval_ms: u64,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Times {
        Rfc3339,
        Seaography,
    }

    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Log {
        pub poll_max_ms: u64,
        pub poll_max_rung_ms: u64,
        pub doorbell_interval_ms: u64,
        pub ring_max_bytes: usize,
        pub ring_max_transactions: usize,
        pub chunk_changes: usize,
        pub max_snapshots: usize,
        pub snapshot_patience_ms: u64,
    }

    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Relay {
        pub url: String,
        pub stream: String,
        pub subject: String,
        pub max_age_ms: u64,
        pub max_bytes: u64,
        pub patience_ms: u64,
        pub publish: bool,
    }

    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Retention {
        pub max_age_hours: u64,
        pub max_changes: u64,
        pub interval_ms: u64,
        pub batch: usize,
    }

    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Logging {
        pub format: Format,
        pub filter: String,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Format {
        Pretty,
        Json,
    }
}

pub use self::sections::{Database, Format, Graphql, Log, Logging, Relay, Retention, Server, Times};

impl Config {
    /// Reads the settings: the defaults, a file, the environment. Flags come on top of that.
    ///
    /// # Errors
    /// A file that was named and is not there, or a setting that is unknown or of the wrong type; the error names it.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        let mut settings =
            config::Config::builder().add_source(config::File::from_str(DEFAULTS, config::FileFormat::Toml));
        settings = match file {
            Some(file) => settings.add_source(config::File::from(file).format(config::FileFormat::Toml)),
            None => settings.add_source(config::File::new(FILE, config::FileFormat::Toml).required(false)),
        };
        let environment =
            config::Environment::with_prefix("TIDEWIRE").prefix_separator("_").separator("__").try_parsing(true);
        let environment = environment.ignore_empty(true).source(Some(
            // `TIDEWIRE_TEST_…` belongs to the tests.
            std::env::vars().filter(|(name, _)| name.contains("__")).collect(),
        ));
        settings
            .add_source(environment)
            .build()
            .and_then(config::Config::try_deserialize)
            .context("the settings cannot be read")
    }

    /// How the recorder is opened.
    ///
    /// # Errors
    /// A `capture` that is none, or a relay in a program without one.
    pub fn recorder(&self) -> Result<RecorderOptions> {
        let mut log = LogOptions::default();
        self.relay(&mut log)?;
        log.poll_max = Duration::from_millis(self.log.poll_max_ms);
        log.poll_max_rung = Duration::from_millis(self.log.poll_max_rung_ms);
        log.doorbell_interval = Duration::from_millis(self.log.doorbell_interval_ms);
        log.ring_max_bytes = self.log.ring_max_bytes;
        log.ring_max_transactions = self.log.ring_max_transactions;
        log.chunk_changes = self.log.chunk_changes;
        log.max_snapshots = self.log.max_snapshots;
        log.snapshot_patience = Duration::from_millis(self.log.snapshot_patience_ms);
        let mut options = RecorderOptions::default();
        options.max_readers = self.database.max_readers;
        options.log = log;
        options.direct_url = Some(self.database.direct_url.clone()).filter(|url| !url.is_empty());
        options.max_kept_log = Some(self.database.max_kept_log).filter(|bytes| *bytes > 0);
        if !self.database.capture.is_empty() {
            options.capture = Some(self.database.capture.parse().context("`capture` in [database]")?);
        }
        Ok(options)
    }

    #[cfg(feature = "relay-nats")]
    fn relay(&self, log: &mut LogOptions) -> Result<()> {
        let settings = &self.relay;
        if !settings.url.is_empty() {
            let mut relay = tidewire_outbox::RelayOptions::new(&settings.url);
            relay.stream.clone_from(&settings.stream);
            relay.subject.clone_from(&settings.subject);
            relay.max_age = Duration::from_millis(settings.max_age_ms);
            relay.max_bytes = settings.max_bytes;
            relay.patience = Duration::from_millis(settings.patience_ms.max(1));
            relay.publish = settings.publish;
            log.relay = Some(relay);
        }
        Ok(())
    }

    #[cfg(not(feature = "relay-nats"))]
    fn relay(&self, _log: &mut LogOptions) -> Result<()> {
        anyhow::ensure!(
            self.relay.url.is_empty(),
            "`url` in [relay] is set, and this program was built without a relay. Build it with `--features relay-nats`"
        );
        Ok(())
    }

    /// How the API answers.
    pub fn graphql(&self) -> Options {
        let settings = &self.graphql;
        let mut options = Options::default();
        options.times = match settings.times {
            Times::Rfc3339 => TimeFormat::Rfc3339,
            Times::Seaography => TimeFormat::Seaography,
        };
        options.max_rows = Some(settings.max_rows).filter(|rows| *rows > 0);
        options.max_mutation_rows = settings.max_mutation_rows;
        options.max_document_bytes = settings.max_document_bytes;
        options.max_nesting = settings.max_nesting;
        options.max_depth = settings.max_depth;
        options.max_fields = settings.max_fields;
        options.max_directives = settings.max_directives;
        options.introspection = settings.introspection;
        options.suggestions = settings.suggestions;
        options.plan_cache = settings.plan_cache;
        options.snapshot_rows = settings.snapshot_rows;
        options.cursor_interval = Duration::from_millis(settings.cursor_interval_ms);
        options
    }

    /// How the server talks to its clients.
    ///
    /// # Errors
    /// An `actor_header` that is no header name.
    pub fn server(&self) -> Result<ServerOptions> {
        let settings = &self.server;
        let mut options = ServerOptions::default();
        options.path.clone_from(&settings.path);
        options.page = settings.page;
        options.max_body_bytes = settings.max_body_bytes;
        options.init_timeout = Duration::from_millis(settings.init_timeout_ms);
        options.keep_alive = Duration::from_millis(settings.keep_alive_ms);
        options.write_timeout = Duration::from_millis(settings.write_timeout_ms);
        options.max_operations = settings.max_operations;
        options.max_connections = settings.max_connections;
        options.shutdown_timeout = Duration::from_millis(settings.shutdown_timeout_ms);
        if !settings.actor_header.is_empty() {
            let name = settings.actor_header.parse().context("`actor_header` in [server] is no header name")?;
            options.actor_header = Some(name);
        }
        Ok(options)
    }
}
