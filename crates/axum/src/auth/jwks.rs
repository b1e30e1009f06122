//! Keys that somebody publishes as a JSON web key set (RFC 7517), and changes from time to time.

use std::{
    error::Error,
    fmt,
    sync::{Arc, OnceLock, RwLock, Weak},
    time::Duration,
};

use axum::http::{Request, StatusCode, Uri, header::ACCEPT, uri::Scheme};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, crypto::ring};
use serde_json::Value;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};

use super::{
    key::{InvalidKey, TokenKey},
    refusal::Refusal,
};

/// How large a set may be, in bytes. The largest known ones have a tenth of it.
const LARGEST: usize = 256 << 10;
/// The shortest time between two looks that nobody has asked for.
const SHORTEST: Duration = Duration::from_millis(100);
/// How many keys of a set are used. A token that names none may be tried with each.
const MOST: usize = 64;

/// A URL where keys are published, and the keys as they were last seen there.
///
/// They are fetched when the first token comes or the server starts, then again each `refresh`, and at once when a token names a key that is not
/// among them, though not more often than `pause`. While the URL cannot be reached or answers nonsense, the keys stay as they were. A key
/// that is no longer published is no longer accepted.
#[derive(Clone)]
pub struct Jwks(Arc<Shared>);

type HttpClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

struct Shared {
    url: Uri,
    client: HttpClient,
    refresh: Duration,
    pause: Duration,
    patience: Duration,
    /// What was published last; `None` before anything was.
    keys: RwLock<Option<Arc<[TokenKey]>>>,
    /// When it was last asked for. Whoever holds this asks, and the others wait for what comes of it.
    asked: Mutex<Option<Instant>>,
    /// Set once the keys are looked after.
    watched: OnceLock<()>,
}

impl Jwks {
    /// Keys that are published at a URL. Redirections are not followed.
    ///
    /// # Errors
    /// This is no URL of `https` or `http`.
    pub fn new(url: &str) -> Result<Self, InvalidKey> {
        let url: Uri = url.parse().map_err(|_| InvalidKey("that is no URL"))?;
        let spoken = url.scheme() == Some(&Scheme::HTTPS) || url.scheme() == Some(&Scheme::HTTP);
        if !spoken || url.host().is_none_or(str::is_empty) {
            return Err(InvalidKey("keys are published at a URL of `https:` or `http:`"));
        }
        let [refresh, pause, patience] = [300, 10, 5].map(Duration::from_secs);
        Ok(Self(Arc::new(Shared::new(url, client()?, refresh, pause, patience))))
    }

    /// The same, asked for each `refresh` (default 5 min), at most each `pause` (10 s), and for an answer within `patience` (5 s). Nothing is
    /// known yet of the keys.
    #[must_use]
    pub fn timed(self, refresh: Duration, pause: Duration, patience: Duration) -> Self {
        let Shared { url, client, .. } = &*self.0;
        Self(Arc::new(Shared::new(url.clone(), client.clone(), refresh, pause, patience)))
    }

    /// Fetches the keys and tells how many of them can be used.
    ///
    /// # Errors
    /// Why there are none, without what the URL has answered.
    pub async fn check(&self) -> Result<usize, String> {
        self.0.fetch().await.map(|keys| keys.len())
    }

    /// Looks after the keys from now on, for as long as anybody has this value.
    pub(crate) fn watch(&self) {
        self.0.watched.get_or_init(|| {
            tokio::spawn(watch(Arc::downgrade(&self.0)));
        });
    }

    /// The keys that a token that names this one, or none, may be signed with. If there is none, the URL is asked whether there is one by now.
    pub(super) async fn named(&self, id: Option<&str>) -> Result<Vec<TokenKey>, Refusal> {
        self.watch();
        match self.0.named(id) {
            Some(keys) if !keys.is_empty() => return Ok(keys),
            _ => {}
        }
        let shared = Arc::clone(&self.0);
        // Goes on if the client does not wait, so that others need not ask again.
        let asking = tokio::spawn(async move { shared.ask_after(shared.pause).await });
        let _ = asking.await;
        self.0.named(id).ok_or(Refusal::NoKeys)
    }
}

impl Shared {
    /// Of which nothing is known yet.
    fn new(url: Uri, client: HttpClient, refresh: Duration, pause: Duration, patience: Duration) -> Self {
        let (keys, asked, watched) = Default::default();
        Self { url, client, refresh, pause, patience, keys, asked, watched }
    }

    fn named(&self, id: Option<&str>) -> Option<Vec<TokenKey>> {
        let keys = self.keys.read().expect("nobody panics with it").clone()?;
        Some(keys.iter().filter(|key| key.is_named(id)).cloned().collect())
    }

    /// Asks for the keys unless that was done not longer ago than this.
    async fn ask_after(&self, pause: Duration) {
        let mut asked = self.asked.lock().await;
        if asked.is_some_and(|asked| asked.elapsed() < pause) {
            return;
        }
        *asked = Some(Instant::now());
        match self.fetch().await {
            Ok(keys) => {
                tracing::debug!(keys = keys.len(), "fetched the keys of tokens");
                *self.keys.write().expect("nobody panics with it") = Some(keys.into());
            }
            Err(error) => tracing::warn!(error, "the keys of tokens cannot be fetched; those known stay"),
        }
    }

    async fn fetch(&self) -> Result<Vec<TokenKey>, String> {
        let asking = async {
            let request = Request::get(self.url.clone()).header(ACCEPT, "application/jwk-set+json, application/json");
            let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
            let response = self.client.request(request).await.map_err(|error| reasons(&error))?;
            if response.status() != StatusCode::OK {
                return Err(format!("answered with status {}", response.status().as_u16()));
            }
            let body = Limited::new(response.into_body(), LARGEST).collect().await;
            Ok(body.map_err(|_| format!("broke off, or has more than {LARGEST} bytes"))?.to_bytes())
        };
        let body = timeout(self.patience, asking).await;
        let body = body.map_err(|_| format!("no answer within {} ms", self.patience.as_millis()))??;
        usable(&body).ok_or_else(|| "the answer is no key set with a key that can be used".to_owned())
    }
}

/// The keys of a set that can be used; `None` if there are none: whoever publishes nothing of use has made a mistake.
fn usable(set: &[u8]) -> Option<Vec<TokenKey>> {
    let set: Value = serde_json::from_slice(set).ok()?;
    let keys: Vec<_> = set.get("keys")?.as_array()?.iter().filter_map(TokenKey::published).take(MOST).collect();
    (!keys.is_empty()).then_some(keys)
}

/// Asks again and again, until nobody needs the keys any more.
async fn watch(shared: Weak<Shared>) {
    while let Some(shared) = shared.upgrade() {
        shared.ask_after(Duration::ZERO).await;
        let known = shared.keys.read().expect("nobody panics with it").is_some();
        let pause = if known { shared.refresh } else { shared.refresh.min(shared.pause) };
        drop(shared);
        sleep(pause.max(SHORTEST)).await;
    }
}

/// A client that trusts whom the system trusts, or where that names nobody, whom Mozilla does.
fn client() -> Result<HttpClient, InvalidKey> {
    let config = || {
        ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|_| InvalidKey("TLS cannot be spoken"))
    };
    let config = match config()?.with_native_roots() {
        Ok(config) => config.with_no_client_auth(),
        Err(_) => config()?.with_webpki_roots().with_no_client_auth(),
    };
    let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

/// An error and what caused it: "cannot connect" alone helps nobody.
fn reasons(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl fmt::Debug for Jwks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The path may hold a secret; the host does not.
        f.debug_struct("Jwks").field("host", &self.0.url.host()).finish_non_exhaustive()
    }
}
