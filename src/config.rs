//! The settings, and where they come from. Nothing else reads the environment.

use std::{net::IpAddr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tidewire_axum::{IpNet, Persisted, Quota, Rate, ServerOptions, Tls};
use tidewire_graphql::{Options, Policy, TimeFormat};
use tidewire_outbox::{LogOptions, RecorderOptions};

/// The defaults, with what each setting means.
pub const DEFAULTS: &str = include_str!("../config.default.toml");

/// The defaults that `production` changes.
pub const PRODUCTION: &str = include_str!("../config.production.toml");

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
    /// `[quotas]`
    pub quotas: Quotas,
    /// `[auth]`
    pub auth: Auth,
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
        pub production: bool,
        pub listen: String,
        pub path: String,
        pub page: bool,
        pub get: bool,
        pub max_batch: usize,
        pub max_body_bytes: usize,
        pub header_timeout_ms: u64,
        pub body_timeout_ms: u64,
        pub init_timeout_ms: u64,
        pub keep_alive_ms: u64,
        pub write_timeout_ms: u64,
        pub max_operations: usize,
        pub max_connections: usize,
        pub shutdown_timeout_ms: u64,
        pub actor_header: String,
        pub origins: Vec<String>,
        pub same_host: bool,
        pub trusted_proxies: Vec<String>,
        pub persisted: String,
        pub persisted_only: bool,
        pub tls_certificate: String,
        pub tls_key: String,
    }

    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Quotas {
        pub address_connections: usize,
        pub address_operations: usize,
        pub address_rate: f64,
        pub address_burst: u32,
        pub actor_connections: usize,
        pub actor_operations: usize,
        pub actor_rate: f64,
        pub actor_burst: u32,
    }

    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Auth {
        pub required: bool,
        pub secret: Secret,
        pub secret_file: String,
        pub public_key_files: Vec<String>,
        pub jwks_url: String,
        pub jwks_refresh_ms: u64,
        pub jwks_pause_ms: u64,
        pub jwks_timeout_ms: u64,
        pub audiences: Vec<String>,
        pub issuers: Vec<String>,
        pub leeway_s: u64,
        pub require_exp: bool,
        pub roles_claim: String,
        pub token_roles: Vec<String>,
        pub metrics_role: String,
        pub explain_role: String,
        pub api_keys: Vec<ApiKey>,
    }

    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct ApiKey {
        pub name: String,
        pub roles: Vec<String>,
        pub sha256: Secret,
    }

    /// A text that is not shown.
    #[derive(Clone, PartialEq, Deserialize)]
    pub struct Secret(pub String);

    impl std::fmt::Debug for Secret {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(if self.0.is_empty() { "none" } else { "…" })
        }
    }

    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Graphql {
        pub times: Times,
        pub max_rows: u64,
        pub max_mutation_rows: u64,
        pub max_document_bytes: usize,
        pub max_tokens: usize,
        pub max_nesting: usize,
        pub max_definitions: usize,
        pub max_depth: usize,
        pub max_fields: usize,
        pub max_root_fields: usize,
        pub max_aliases: usize,
        pub max_directives: usize,
        pub max_operation_directives: usize,
        pub max_variables_bytes: usize,
        pub max_complexity: u64,
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

pub use self::sections::{
    ApiKey, Auth, Database, Format, Graphql, Log, Logging, Quotas, Relay, Retention, Secret, Server, Times,
};

impl Config {
    /// Reads the settings: the defaults, a file, the environment. Flags come on top of that.
    ///
    /// # Errors
    /// A file that was named and is not there, or a setting that is unknown or of the wrong type; the error names it.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        let read = || -> Result<Self, config::ConfigError> {
            let settings = build(file, false)?;
            // Only who has read everything knows which defaults hold.
            let settings = if settings.get_bool("server.production")? { build(file, true)? } else { settings };
            settings.try_deserialize()
        };
        read().context("the settings cannot be read")
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
        ensure!(
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
        options.max_tokens = settings.max_tokens;
        options.max_nesting = settings.max_nesting;
        options.max_definitions = settings.max_definitions;
        options.max_depth = settings.max_depth;
        options.max_fields = settings.max_fields;
        options.max_root_fields = settings.max_root_fields;
        options.max_aliases = settings.max_aliases;
        options.max_directives = settings.max_directives;
        options.max_operation_directives = settings.max_operation_directives;
        options.max_variables_bytes = settings.max_variables_bytes;
        options.max_complexity = Some(settings.max_complexity).filter(|fields| *fields > 0);
        options.introspection = settings.introspection;
        options.suggestions = settings.suggestions;
        options.plan_cache = settings.plan_cache;
        options.snapshot_rows = settings.snapshot_rows;
        options.cursor_interval = Duration::from_millis(settings.cursor_interval_ms);
        options.explain_role = Some(self.auth.explain_role.clone()).filter(|role| !role.is_empty());
        options
    }

    /// How the server talks to its clients.
    ///
    /// # Errors
    /// A setting that is not what it should be, or a file that cannot be read; the error names the setting.
    pub fn server(&self) -> Result<ServerOptions> {
        let settings = &self.server;
        let mut options = ServerOptions::default();
        options.path.clone_from(&settings.path);
        options.page = settings.page;
        options.get = settings.get;
        options.max_batch = settings.max_batch;
        options.max_body_bytes = settings.max_body_bytes;
        options.header_timeout = Duration::from_millis(settings.header_timeout_ms);
        options.body_timeout = Duration::from_millis(settings.body_timeout_ms);
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
        options.origins.clone_from(&settings.origins);
        for origin in &settings.origins {
            let is_origin = origin.split_once("://").is_some_and(|(_, host)| !host.trim_end_matches('/').contains('/'));
            ensure!(
                is_origin || origin == "*",
                "`origins` in [server]: {origin} is no origin, as https://app.example is"
            );
        }
        options.same_host = settings.same_host;
        options.quotas = self.quotas()?;
        if !settings.persisted.is_empty() {
            let known = Persisted::load(Path::new(&settings.persisted)).context("`persisted` in [server]")?;
            options.persisted = Some(if settings.persisted_only { known.only() } else { known });
        }
        ensure!(
            !settings.persisted_only || options.persisted.is_some(),
            "`persisted_only` in [server] is set, and `persisted` names no operations"
        );
        ensure!(
            settings.tls_certificate.is_empty() == settings.tls_key.is_empty(),
            "`tls_certificate` and `tls_key` in [server] need each other"
        );
        if !settings.tls_certificate.is_empty() {
            let tls = Tls::load(Path::new(&settings.tls_certificate), Path::new(&settings.tls_key));
            options.tls = Some(tls.context("`tls_certificate` and `tls_key` in [server]")?);
        }
        options.authentication = crate::auth::authentication(&self.auth)?;
        ensure!(
            options.authentication.is_none() || options.actor_header.is_none(),
            "`actor_header` in [server] and keys in [auth] are both set. Who a client is, is said by either a proxy or a token"
        );
        Ok(options)
    }

    fn quotas(&self) -> Result<tidewire_axum::Quotas> {
        let settings = &self.quotas;
        let some = |count: usize| Some(count).filter(|count| *count > 0);
        let rate = |per_second: f64, burst: u32| -> Result<Option<Rate>> {
            ensure!(per_second >= 0.0, "a rate in [quotas] is negative");
            let burst = if burst > 0 { burst } else { per_second.ceil() as u32 };
            Ok((per_second > 0.0).then_some(Rate { per_second, burst }))
        };
        let address = Quota {
            connections: some(settings.address_connections),
            operations: some(settings.address_operations),
            rate: rate(settings.address_rate, settings.address_burst)?,
        };
        let actor = Quota {
            connections: some(settings.actor_connections),
            operations: some(settings.actor_operations),
            rate: rate(settings.actor_rate, settings.actor_burst)?,
        };
        let mut trusted_proxies = Vec::new();
        for proxy in &self.server.trusted_proxies {
            let net =
                proxy.parse::<IpNet>().or_else(|error| proxy.parse::<IpAddr>().map(IpNet::from).map_err(|_| error));
            trusted_proxies.push(net.with_context(|| format!("`trusted_proxies` in [server]: {proxy}"))?);
        }
        Ok(tidewire_axum::Quotas { address, actor, trusted_proxies })
    }

    /// What of the settings is risky where strangers can reach the server, and what to do about it.
    pub fn risks(&self) -> Vec<&'static str> {
        let (server, graphql) = (&self.server, &self.graphql);
        let strangers = !is_local(&server.listen);
        if !server.production {
            let risk = "others can reach this server, and `production` in [server] is not set: the schema, the page and GET are open, and nothing is rationed";
            return if strangers { vec![risk] } else { vec![] };
        }
        let risks = [
            (server.page, "`page` in [server] shows whoever comes how to try things"),
            (server.get, "`get` in [server] lets links and images of other sites make the server work"),
            (
                server.same_host,
                "`same_host` in [server] lets in pages of any name that leads to this address. List `origins` instead",
            ),
            (server.origins.iter().any(|origin| origin == "*"), "`origins` in [server] lets in pages of all sites"),
            (
                server.origins.iter().any(|origin| origin.starts_with("http://")),
                "`origins` in [server] lets in pages that come without TLS, and that anyone on the way can change",
            ),
            (
                strangers && server.tls_certificate.is_empty() && server.trusted_proxies.is_empty(),
                "there is no TLS: set `tls_certificate`, or `trusted_proxies` if a proxy in front speaks it",
            ),
            (
                strangers && !server.actor_header.is_empty(),
                "`actor_header` in [server] believes whoever reaches this address. Let only the proxy reach it",
            ),
            (
                self.auth.token_roles.contains(&self.auth.explain_role),
                "`explain_role` in [auth] is among `token_roles`: whoever has a token sees the keys of all rows",
            ),
            (graphql.introspection, "`introspection` in [graphql] shows the whole schema"),
            (graphql.suggestions, "`suggestions` in [graphql] give the schema away name by name"),
            (graphql.max_rows == 0, "`max_rows` in [graphql] is no limit: one query may read a whole table"),
            (
                graphql.max_complexity == 0,
                "`max_complexity` in [graphql] is no limit: lists inside lists may be of any size",
            ),
            (
                self.quotas.address_rate == 0.0,
                "`address_rate` in [quotas] is no limit: one client may ask as often as it likes",
            ),
            (
                self.quotas.address_connections == 0,
                "`address_connections` in [quotas] is no limit: one client may take every place",
            ),
        ];
        risks.into_iter().filter_map(|(holds, risk)| holds.then_some(risk)).collect()
    }
}

/// The files and the environment, over the defaults.
fn build(file: Option<&Path>, production: bool) -> Result<config::Config, config::ConfigError> {
    let toml = |text| config::File::from_str(text, config::FileFormat::Toml);
    let mut settings = config::Config::builder().add_source(toml(DEFAULTS));
    if production {
        settings = settings.add_source(toml(PRODUCTION));
    }
    settings = match file {
        Some(file) => settings.add_source(config::File::from(file).format(config::FileFormat::Toml)),
        None => settings.add_source(config::File::new(FILE, config::FileFormat::Toml).required(false)),
    };
    let mut environment =
        config::Environment::with_prefix("TIDEWIRE").prefix_separator("_").separator("__").try_parsing(true);
    // Lists are written with commas between.
    environment = environment.list_separator(",");
    for list in ["server.origins", "server.trusted_proxies"] {
        environment = environment.with_list_parse_key(list);
    }
    for list in ["public_key_files", "audiences", "issuers", "token_roles"] {
        environment = environment.with_list_parse_key(&format!("auth.{list}"));
    }
    let environment = environment.ignore_empty(true).source(Some(
        // `TIDEWIRE_TEST_…` belongs to the tests.
        std::env::vars().filter(|(name, _)| name.contains("__")).collect(),
    ));
    settings.add_source(environment).build()
}

/// Whether only this machine can reach an address.
fn is_local(listen: &str) -> bool {
    let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
