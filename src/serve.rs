use std::{future::Future, net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use sea_orm::{EntityTrait, PaginatorTrait};
use tidewire_axum::{Server, Tls};
use tidewire_graphql::Api;
use tidewire_outbox::{Lease, Recorder};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::config::{Config, Retention};

/// How many tasks the demo starts with.
const DEMO_ROWS: usize = 200;

/// A server that listens and has yet to run.
#[derive(Debug)]
pub struct App {
    server: Server,
    listener: TcpListener,
    address: SocketAddr,
    path: String,
    page: bool,
    is_tls: bool,
    /// What runs beside the server, and ends with it.
    tasks: Vec<JoinHandle<()>>,
}

/// Opens the database, brings its tables up to date, and listens. With `demo`, an empty database is given rows.
///
/// # Errors
/// The database cannot be opened or captured, or the address cannot be listened on.
pub async fn start(config: &Config, demo: bool) -> Result<App> {
    let recorder = crate::connect(config).await?;
    if config.database.migrate {
        crate::migrate::up(&recorder).await?;
    }
    recorder.check().await.context("the database cannot be captured. `tidewire doctor` says more")?;
    recorder.start_capture().await?;
    if demo && entity::task::Entity::find().count(&recorder).await? == 0 {
        crate::seed(&recorder, DEMO_ROWS).await?;
    }
    let api = Api::builder(recorder.clone()).options(config.graphql()).policies(config.policy.clone()).finish()?;
    let listener = TcpListener::bind(&config.server.listen).await.with_context(|| {
        format!(
            "cannot listen on {}. Is another server running there? `--listen` takes another address",
            config.server.listen
        )
    })?;
    let address = listener.local_addr()?;
    let mut tasks = vec![tokio::spawn(retain(recorder, config.retention.clone()))];
    let options = config.server()?;
    let is_tls = options.tls.is_some();
    if let Some(tls) = options.tls.clone() {
        tasks.push(reload(tls)?);
    }
    let mut server = Server::new(api, options);
    if config.server.page {
        server = server.merge(crate::graphiql::routes(&config.server.path));
    }
    for risk in config.risks() {
        tracing::warn!("{risk}");
    }
    Ok(App { server, listener, address, path: config.server.path.clone(), page: config.server.page, is_tls, tasks })
}

impl App {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What to tell a person.
    pub fn where_to_look(&self) -> String {
        let Self { address, path, .. } = self;
        let (http, ws) = if self.is_tls { ("https", "wss") } else { ("http", "ws") };
        let page = if self.page { format!("  a page to try things    {http}://{address}/\n") } else { String::new() };
        format!(
            "Tidewire serves\n{page}  GraphQL                 {http}://{address}{path}\n  subscriptions           {ws}://{address}{path}\n  \
             metrics and health      {http}://{address}/metrics /healthz /readyz"
        )
    }

    /// Serves until `stop` resolves, then ends in order.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<()> {
        let served = self.server.serve(self.listener, stop).await;
        self.tasks.iter().for_each(JoinHandle::abort);
        Ok(served?)
    }
}

/// Reads the certificate anew whenever the process is told to (SIGHUP).
#[cfg(unix)]
fn reload(tls: Tls) -> Result<JoinHandle<()>> {
    let mut told = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
    Ok(tokio::spawn(async move {
        while told.recv().await.is_some() {
            match tls.reload() {
                Ok(()) => tracing::info!("the certificate has been read again"),
                Err(error) => tracing::error!(%error, "the certificate cannot be read again; the one before goes on"),
            }
        }
    }))
}

/// There is nothing to tell the process by.
#[cfg(not(unix))]
fn reload(_: Tls) -> Result<JoinHandle<()>> {
    Ok(tokio::spawn(std::future::ready(())))
}

/// How long a node that removes old changes may be silent before another does it.
const RETENTION_LEASE: Duration = Duration::from_secs(30);

/// Removes old changes from time to time, if no other node of this database does.
async fn retain(recorder: Recorder, settings: Retention) {
    if settings.max_age_hours == 0 && settings.max_changes == 0 {
        return;
    }
    loop {
        match Lease::acquire(&recorder, "retention", RETENTION_LEASE).await {
            // Two at once would be in each other's way and do no harm, so that nothing here is fenced.
            Ok(lease) => tokio::select! {
                () = lease.lost() => {}
                () = prune(&recorder, &settings) => {}
            },
            Err(error) => {
                tracing::warn!(%error, "the lease of retention could not be had; trying again later");
                tokio::time::sleep(Duration::from_millis(settings.interval_ms)).await;
            }
        }
    }
}

async fn prune(recorder: &Recorder, settings: &Retention) {
    let keep = Some(settings.max_changes).filter(|changes| *changes > 0);
    loop {
        tokio::time::sleep(Duration::from_millis(settings.interval_ms)).await;
        let age = chrono::TimeDelta::try_hours(i64::try_from(settings.max_age_hours).unwrap_or(i64::MAX));
        let before = age.filter(|age| !age.is_zero()).and_then(|age| chrono::Utc::now().checked_sub_signed(age));
        loop {
            match recorder.log().prune(before, keep, settings.batch).await {
                Ok(pruned) => {
                    if pruned.changes > 0 {
                        tracing::debug!(changes = pruned.changes, "removed old changes");
                    }
                    if !pruned.more {
                        break;
                    }
                    // Others want to write too.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "old changes could not be removed; trying again later");
                    break;
                }
            }
        }
    }
}
