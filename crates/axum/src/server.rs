use std::{future::Future, io, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{
        HeaderMap, HeaderName, HeaderValue,
        header::{REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::map_response,
    response::Response,
    routing::get,
};
use serde_json::Value;
use tidewire_graphql::{Api, Viewer};
use tidewire_outbox::Actor;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    auth::{Authentication, Identity, Refusal},
    http, listen, metrics, origin, page,
    persisted::Persisted,
    quota::{Admission, Quotas},
    stats::{Stats, add},
    tls::Tls,
};

/// How the server talks to its clients.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Where GraphQL is served. Default `/graphql`.
    pub path: String,
    /// Whether the page for people is served at `/`. Default true.
    pub page: bool,
    /// The largest request body, and the largest message on a WebSocket, in bytes. Default 1 MiB.
    pub max_body_bytes: usize,
    /// How long a client may take to send `connection_init`. Default 3 s.
    pub init_timeout: Duration,
    /// How often a WebSocket is pinged; one that sends nothing for three times as long is dropped. Default 15 s.
    pub keep_alive: Duration,
    /// How long a client may leave the socket full before it is dropped. Default 60 s.
    pub write_timeout: Duration,
    /// How many operations may run on one WebSocket at once. Default 100.
    pub max_operations: usize,
    /// How many WebSockets and event streams may be open at once. Default 50,000.
    pub max_connections: usize,
    /// How long connections may take to end when the server stops. Default 10 s.
    pub shutdown_timeout: Duration,
    /// A request header that names the actor, as a proxy in front has established it. Clients that reach the server past the proxy can
    /// then name whom they like. It is not looked at where there is `authentication`. Default none.
    pub actor_header: Option<HeaderName>,
    /// Whether queries may come by GET. Mutations never may. Default true.
    pub get: bool,
    /// How many requests a JSON array may hold that is posted as one; 0 refuses arrays. Default 0.
    pub max_batch: usize,
    /// How long a client may take to send the head of a request, and to agree on TLS. Default 10 s.
    pub header_timeout: Duration,
    /// How long a client may take to send the body of a request. Default 10 s.
    pub body_timeout: Duration,
    /// The origins (`https://app.example`) whose pages may use the server from a browser, over HTTP and WebSocket; `*` is any. Default none.
    pub origins: Vec<String>,
    /// Whether pages may too whose origin is the host that they ask. Where clients choose the name of the host (a name of their own that leads
    /// to the server's address), listing origins is safer. Default true.
    pub same_host: bool,
    /// What one address and one actor may ask for. Default: whatever they like.
    pub quotas: Quotas,
    /// Operations that clients may name by their hash. Default none.
    pub persisted: Option<Persisted>,
    /// The certificate by which [`Server::serve`] speaks TLS. Default: it does not.
    pub tls: Option<Tls>,
    /// How clients say who they are. Default not at all: all of them are anonymous.
    pub authentication: Option<Authentication>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            path: "/graphql".into(),
            page: true,
            max_body_bytes: 1 << 20,
            init_timeout: Duration::from_secs(3),
            keep_alive: Duration::from_secs(15),
            write_timeout: Duration::from_secs(60),
            max_operations: 100,
            max_connections: 50_000,
            shutdown_timeout: Duration::from_secs(10),
            actor_header: None,
            get: true,
            max_batch: 0,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            origins: Vec::new(),
            same_host: true,
            quotas: Quotas::default(),
            persisted: None,
            tls: None,
            authentication: None,
        }
    }
}

/// What every request finds.
#[derive(Debug, Clone)]
pub(crate) struct State(pub(crate) Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) api: Api,
    pub(crate) options: ServerOptions,
    pub(crate) stats: Stats,
    pub(crate) admission: Admission,
    /// Cancelled when the server begins to stop.
    pub(crate) stopping: CancellationToken,
    /// The connections that axum does not wait for: upgraded ones.
    pub(crate) connections: TaskTracker,
}

impl Shared {
    /// Who sends a request with these headers.
    pub(crate) async fn identify(&self, headers: &HeaderMap) -> Result<Identity, Refusal> {
        if let Some(authentication) = &self.options.authentication {
            return authentication.identify(headers).await.map_err(|refusal| self.note(refusal));
        }
        let header = self.options.actor_header.as_ref().and_then(|name| headers.get(name)?.to_str().ok());
        Ok(Identity::unproven(match header {
            Some(user) => Viewer::default().acting_as(Actor::user(user)),
            None => Viewer::default(),
        }))
    }

    /// Who sends a payload of a WebSocket's; `None` if it does not say.
    pub(crate) async fn identify_payload(&self, payload: &Value) -> Result<Option<Identity>, Refusal> {
        match &self.options.authentication {
            Some(authentication) => {
                authentication.identify_payload(payload).await.map_err(|refusal| self.note(refusal))
            }
            None => Ok(None),
        }
    }

    /// Refuses who has shown nothing, where that is required.
    pub(crate) fn admit(&self, identity: Identity) -> Result<Identity, Refusal> {
        match &self.options.authentication {
            Some(authentication) => authentication.admit(identity).map_err(|refusal| self.note(refusal)),
            None => Ok(identity),
        }
    }

    fn note(&self, refusal: Refusal) -> Refusal {
        add(&self.stats.refused, 1);
        tracing::debug!(reason = refusal.message(), "refused a client");
        refusal
    }
}

/// A GraphQL server.
///
/// ```no_run
/// # async fn example(api: tidewire_graphql::Api) -> std::io::Result<()> {
/// use tidewire_axum::{Server, ServerOptions};
///
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:8000").await?;
/// let stop = async { tokio::signal::ctrl_c().await.expect("a signal handler") };
/// Server::new(api, ServerOptions::default()).serve(listener, stop).await
/// # }
/// ```
#[derive(Debug)]
pub struct Server {
    state: State,
    more: Router,
}

impl Server {
    /// A server for an API.
    pub fn new(api: Api, options: ServerOptions) -> Self {
        let shared = Shared {
            api,
            admission: Admission::new(&options.quotas, options.max_connections),
            options,
            stats: Stats::default(),
            stopping: CancellationToken::new(),
            connections: TaskTracker::new(),
        };
        Self { state: State(Arc::new(shared)), more: Router::new() }
    }

    /// Serves other routes too.
    #[must_use]
    pub fn merge(mut self, routes: Router) -> Self {
        self.more = self.more.merge(routes);
        self
    }

    /// The routes, to be merged into an application of your own. [`stop`](Self::stop) then belongs into that application's shutdown.
    pub fn router(&self) -> Router {
        let State(shared) = &self.state;
        let mut graphql = get(http::get).post(http::post).options(http::options);
        if !shared.options.origins.is_empty() {
            graphql = graphql.layer(origin::cors(&shared.options));
        }
        let mut router = Router::new()
            .route(&shared.options.path, graphql)
            .route("/healthz", get(metrics::alive))
            .route("/readyz", get(metrics::ready))
            .route("/metrics", get(metrics::metrics));
        if shared.options.page {
            router = router.merge(page::routes(&shared.options.path));
        }
        router
            .layer(DefaultBodyLimit::max(shared.options.max_body_bytes))
            .with_state(self.state.clone())
            .merge(self.more.clone())
            .layer(map_response(with_security_headers))
    }

    /// Serves until `stop` resolves, then ends in order: takes no new connections, finishes the requests it has accepted, and closes
    /// WebSockets with code 1012, which tells clients to come back.
    ///
    /// # Errors
    /// None that is foreseen: what goes wrong with a connection ends that connection.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let State(shared) = &self.state;
        // So that the first token need not wait for its key, and who runs the server is told if there is none.
        if let Some(jwks) = shared.options.authentication.as_ref().and_then(|known| known.jwks.as_ref()) {
            jwks.watch();
        }
        let stopping = shared.stopping.clone();
        let ending = stopping.clone();
        tokio::spawn(async move {
            stop.await;
            stopping.cancel();
        });
        let timeout = shared.options.shutdown_timeout;
        let serving = listen::serve(listener, self.router(), &shared.options, &ending);
        tokio::select! {
            result = serving => result?,
            () = async { ending.cancelled().await; tokio::time::sleep(timeout).await } => {
                tracing::warn!("some requests did not end in time");
            }
        }
        self.stop().await;
        Ok(())
    }

    /// Closes WebSockets and event streams, waits for them to end, and closes the recorder.
    pub async fn stop(&self) {
        let State(shared) = &self.state;
        shared.stopping.cancel();
        shared.connections.close();
        if tokio::time::timeout(shared.options.shutdown_timeout, shared.connections.wait()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
        // What still runs on the database's connections is waited for as long, and no longer.
        if tokio::time::timeout(shared.options.shutdown_timeout, shared.api.recorder().close()).await.is_err() {
            tracing::warn!("some connections to the database did not end in time");
        }
    }
}

/// Tells browsers to take every answer for what it says it is, and to tell no other site where it was found.
async fn with_security_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// The routes for an API with default options, to be merged into an application of your own.
///
/// ```
/// # fn example(api: tidewire_graphql::Api) -> axum::Router {
/// axum::Router::new().merge(tidewire_axum::router(api))
/// # }
/// ```
pub fn router(api: Api) -> Router {
    Server::new(api, ServerOptions::default()).router()
}
