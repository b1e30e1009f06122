//! Who sends a request: whoever a token or an API key says, or nobody in particular.
//!
//! `credentials` finds what a client shows, in headers or in a payload; `token` and `api_key` say whose it is; `key` and `jwks` hold what
//! tokens are signed with. A client that shows something is never anonymous: what cannot be accepted is a [`Refusal`].

mod api_key;
mod credentials;
mod identity;
mod jwks;
mod key;
mod provider;
mod refusal;
mod token;

use std::time::Duration;

use axum::http::HeaderMap;
use serde_json::Value;
use tidewire_graphql::Viewer;

use self::credentials::Credentials;
pub use self::{
    api_key::ApiKey,
    jwks::Jwks,
    key::{InvalidKey, TokenKey},
};
pub(crate) use self::{identity::Identity, refusal::Refusal};

/// Whom the server believes, and what for.
///
/// ```
/// # fn example() -> Result<(), tidewire_axum::InvalidKey> {
/// use tidewire_axum::{Authentication, ServerOptions, TokenKey};
///
/// let mut authentication = Authentication::default();
/// authentication.keys.push(TokenKey::secret(b"from a file, 32 bytes or more of it")?);
/// authentication.audiences.push("https://books.example".into());
/// let mut options = ServerOptions::default();
/// options.authentication = Some(authentication);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Authentication {
    /// Keys that tokens may be signed with. Default none.
    pub keys: Vec<TokenKey>,
    /// Where more of them are published. Default nowhere.
    pub jwks: Option<Jwks>,
    /// A token must be for one of these (`aud`). Default none, which takes tokens for anybody.
    pub audiences: Vec<String>,
    /// A token must be from one of these (`iss`). Default none, which takes tokens from anybody who has a key.
    pub issuers: Vec<String>,
    /// How far clocks may be apart; counts for `exp` and `nbf`, in whole seconds up to a day. Default 30 s.
    pub leeway: Duration,
    /// Whether a token must say when it ends (`exp`). Default true.
    pub require_exp: bool,
    /// The claim that holds a token's roles, as a list or as a text with spaces: its name, or the way to it with dots between
    /// (`realm_access.roles`). Default `roles`.
    pub roles_claim: String,
    /// Roles that whoever has a token has. Default `user`.
    pub token_roles: Vec<String>,
    /// The keys of services. Default none.
    pub api_keys: Vec<ApiKey>,
    /// Whether who shows nothing is refused. Default false: they are [`Viewer::ANONYMOUS`].
    pub required: bool,
    /// The role that `/metrics` asks for. Default none: everybody may read them. `/healthz` and `/readyz` ask for nothing.
    pub metrics_role: Option<String>,
}

impl Default for Authentication {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            jwks: None,
            audiences: Vec::new(),
            issuers: Vec::new(),
            leeway: Duration::from_secs(30),
            require_exp: true,
            roles_claim: "roles".into(),
            token_roles: vec!["user".into()],
            api_keys: Vec::new(),
            required: false,
            metrics_role: None,
        }
    }
}

impl Authentication {
    /// Who sends a request with these headers; nobody in particular if they show nothing.
    pub(crate) async fn identify(&self, headers: &HeaderMap) -> Result<Identity, Refusal> {
        match credentials::in_headers(headers)? {
            Some(credentials) => self.believe(credentials).await,
            None => Ok(Identity::unproven(Viewer::default())),
        }
    }

    /// Who sends this payload of a `connection_init` or a `ping`; `None` if it shows nothing.
    pub(crate) async fn identify_payload(&self, payload: &Value) -> Result<Option<Identity>, Refusal> {
        match credentials::in_payload(payload)? {
            Some(credentials) => self.believe(credentials).await.map(Some),
            None => Ok(None),
        }
    }

    async fn believe(&self, credentials: Credentials<'_>) -> Result<Identity, Refusal> {
        match credentials {
            Credentials::Token(token) => self.verify(token).await,
            Credentials::ApiKey(key) => api_key::find(&self.api_keys, key).ok_or(Refusal::ApiKey),
        }
    }

    /// Refuses who shows nothing, where something has to be shown.
    pub(crate) fn admit(&self, identity: Identity) -> Result<Identity, Refusal> {
        if self.required && !identity.is_somebody() { Err(Refusal::Missing) } else { Ok(identity) }
    }

    /// The schemes of the header `authorization` that can be accepted.
    pub(crate) fn schemes(&self) -> impl Iterator<Item = &'static str> {
        let tokens = !self.keys.is_empty() || self.jwks.is_some();
        let api_keys = !self.api_keys.is_empty();
        [tokens.then_some("Bearer"), api_keys.then_some("ApiKey")].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests;
