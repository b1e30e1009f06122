//! Health and metrics.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use axum::{
    extract::State as AxumState,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use tidewire_graphql::SubscriptionStats;
use tidewire_outbox::{LogStatus, Stats as OutboxStats, TailStats};
use tokio::time::timeout;

use crate::{auth::Refusal, http, server::State};

/// How long the database may take to answer here. Whoever asks has little patience.
const PATIENCE: Duration = Duration::from_secs(2);

/// The process runs.
pub(crate) async fn alive() -> &'static str {
    "ok\n"
}

/// The process can do its work: it is not about to stop, and the database answers.
pub(crate) async fn ready(AxumState(state): AxumState<State>) -> Response {
    let shared = &state.0;
    if shared.stopping.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    let log = shared.api.recorder().log();
    if !log.tail_stats().healthy {
        return (StatusCode::SERVICE_UNAVAILABLE, "the outbox, or the database's log, cannot be read\n")
            .into_response();
    }
    match timeout(PATIENCE, log.stats()).await {
        Ok(Ok(_)) => return "ready\n".into_response(),
        Ok(Err(error)) => tracing::warn!(%error, "not ready"),
        Err(_) => tracing::warn!("not ready: the database does not answer in time"),
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n").into_response()
}

/// The metrics, as Prometheus reads them.
pub(crate) async fn metrics(AxumState(state): AxumState<State>, headers: HeaderMap) -> Response {
    if let Some(refused) = not_for(&state, &headers).await {
        return refused;
    }
    let api = &state.0.api;
    let log = api.recorder().log();
    // Without the database there is still something to tell, that it does not answer among it.
    let outbox = timeout(PATIENCE, log.stats()).await.ok().and_then(Result::ok);
    let database_log = match &outbox {
        Some(_) => timeout(PATIENCE, api.recorder().log_status()).await.ok().and_then(Result::ok).flatten(),
        None => None,
    };
    let (tail, subscriptions) = (log.tail_stats(), api.subscription_stats());
    let snapshot = Snapshot { outbox, tail, subscriptions, database_log, state };
    let mut registry = Registry::with_prefix("tidewire");
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    if encode(&mut text, &registry).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}

/// Refuses who has not the role that reads metrics, if they need one.
async fn not_for(state: &State, headers: &HeaderMap) -> Option<Response> {
    let authentication = state.0.options.authentication.as_ref()?;
    let role = authentication.metrics_role.as_ref()?;
    match state.0.identify(headers).await {
        Ok(identity) if identity.viewer.roles.contains(role) => None,
        Ok(identity) if identity.is_somebody() => {
            Some((StatusCode::FORBIDDEN, "these credentials have not the role that reads metrics\n").into_response())
        }
        Ok(_) => Some(http::refused(state, http::Form::Json, Refusal::Missing)),
        Err(refusal) => Some(http::refused(state, http::Form::Json, refusal)),
    }
}

#[derive(Debug)]
struct Snapshot {
    outbox: Option<OutboxStats>,
    tail: TailStats,
    subscriptions: SubscriptionStats,
    /// Where the database's own log is captured.
    database_log: Option<LogStatus>,
    state: State,
}

impl Snapshot {
    /// From the newest change that the tail has read to the newest that there is.
    fn lag_seconds(&self, lag: u64) -> u64 {
        match (self.outbox.as_ref().and_then(|outbox| outbox.newest_at), self.tail.newest_at) {
            (Some(newest), Some(read)) if lag > 0 => u64::try_from((newest - read).num_seconds()).unwrap_or(0),
            _ => 0,
        }
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stats = &self.state.0.stats;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut gauge = |name: &str, help: &str, value: u64| {
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        if let Some(outbox) = &self.outbox {
            let lag = outbox.newest_seq.unwrap_or(0).saturating_sub(self.tail.newest_seq.unwrap_or(0));
            gauge("outbox_changes", "Changes that the outbox holds", outbox.changes)?;
            gauge(
                "tail_lag_changes",
                "Numbers of changes that the tail has yet to read",
                if self.tail.running { lag } else { 0 },
            )?;
            gauge(
                "tail_lag_seconds",
                "Seconds between the newest change and the newest that the tail has read",
                self.lag_seconds(lag),
            )?;
        }
        gauge("tail_healthy", "Whether the outbox can be read", u64::from(self.tail.healthy))?;
        gauge("tail_rung", "Whether every other process tells of its writes", u64::from(self.tail.rung))?;
        if let Some(relay) = &self.tail.relay {
            gauge(
                "relay_publishing",
                "Whether this process reads the database for others",
                u64::from(relay.publishing),
            )?;
            gauge(
                "relay_live",
                "Whether another process is heard to read the database for this one",
                u64::from(relay.live),
            )?;
        }
        gauge("ring_transactions", "Transactions kept in memory", self.tail.ring_transactions)?;
        gauge("ring_bytes", "Bytes of transactions kept in memory", self.tail.ring_bytes)?;
        gauge("followers", "Readers that follow the log", self.tail.followers)?;
        gauge(
            "followers_behind",
            "Readers that read the outbox, since their place is not in memory",
            self.tail.followers_behind,
        )?;
        gauge("queue_depth", "Transactions in memory that the slowest reader has yet to take", self.tail.queue_depth)?;
        gauge("subscriptions", "Subscriptions that are open", self.subscriptions.open)?;
        gauge("subscriptions_live", "Subscriptions that wait for changes", self.subscriptions.live)?;
        gauge("subscription_groups", "Groups of like subscriptions", self.subscriptions.groups)?;
        gauge("websockets", "WebSockets that are open", load(&stats.websockets))?;
        gauge("event_streams", "Streams of server-sent events that are open", load(&stats.event_streams))?;
        if let Some(log) = &self.database_log {
            gauge("database_log_lag_bytes", "Bytes of the database's log that are unread", log.lag_bytes.unwrap_or(0))?;
            gauge("database_log_lag_seconds", "Seconds since the unread part began", log.lag_seconds.unwrap_or(0))?;
            gauge("database_log_kept_bytes", "Bytes that the database keeps for us", log.kept_bytes.unwrap_or(0))?;
            let healthy = log.trouble.is_none() && log.lag_bytes.is_some();
            gauge("database_log_healthy", "Whether the database's log can be read", u64::from(healthy))?;
        }
        let mut counter = |name: &str, help: &str, value: u64| {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        if let Some(outbox) = &self.outbox {
            counter("captured_changes", "Changes that were ever recorded in the outbox", outbox.recorded)?;
        }
        counter("tail_reads", "Times that the tail asked the database what is new", self.tail.reads)?;
        counter(
            "outbox_reads",
            "Times that the outbox was read for those whose place is not in memory",
            self.tail.outbox_reads,
        )?;
        if let Some(relay) = &self.tail.relay {
            counter("relay_published", "Stretches of the log that were given to others", relay.published)?;
            counter("relay_taken", "Stretches of the log that were taken from another process", relay.taken)?;
            counter(
                "relay_fallbacks",
                "Times that something was missing and the tail asked the database",
                relay.fallbacks,
            )?;
        }
        counter("tailed_transactions", "Transactions that the tail has read", self.tail.transactions)?;
        counter("tailed_changes", "Changes that the tail has read", self.tail.changes)?;
        counter("delivered_events", "Events that were handed to subscribers", self.subscriptions.events)?;
        counter(
            "delivered_changes",
            "Changes in the events that were handed to subscribers",
            self.subscriptions.changes,
        )?;
        counter("resyncs", "Subscribers that had to start over", self.subscriptions.resyncs)?;
        counter(
            "left_behind",
            "Subscribers that were too slow to be told, and read the log instead",
            self.subscriptions.left_behind,
        )?;
        counter("live_queries", "Times that live queries were read", self.subscriptions.queries)?;
        counter("http_requests", "GraphQL requests over HTTP", load(&stats.requests))?;
        counter("operations", "Operations over WebSockets and event streams", load(&stats.operations))?;
        counter("frames", "Messages written to clients", load(&stats.frames))?;
        counter("frame_bytes", "Bytes of messages written to clients", load(&stats.bytes))?;
        counter(
            "dropped_clients",
            "Clients that were dropped because they did not read or answer",
            load(&stats.dropped),
        )?;
        counter("refused_credentials", "Times that credentials were refused, or missing", load(&stats.refused))
    }
}
