use std::{fmt, sync::Arc};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER, HEXLOWER_PERMISSIVE};
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom, SystemRandom},
};
use subtle::ConstantTimeEq;
use tidewire_graphql::Viewer;
use tidewire_outbox::Actor;

use super::{identity::Identity, key::InvalidKey};

/// Tells people, and those who search for lost secrets, what a key is of.
const PREFIX: &str = "tidewire_";

/// The key of a service, of which only a hash is kept.
///
/// Keys are long and random, so that one round of SHA-256 hides them; a password would need more.
#[derive(Clone)]
pub struct ApiKey {
    viewer: Arc<Viewer>,
    sha256: [u8; 32],
}

impl ApiKey {
    /// The key with this SHA-256 in hexadecimal digits. Who shows it is the actor `service:name` and has these roles.
    ///
    /// # Errors
    /// These are not 64 hexadecimal digits, or there is no name, or control characters in it.
    pub fn new<R: Into<String>>(
        name: &str,
        roles: impl IntoIterator<Item = R>,
        sha256: &str,
    ) -> Result<Self, InvalidKey> {
        if name.is_empty() || name.contains(char::is_control) {
            return Err(InvalidKey("an API key needs the name of its service, without control characters"));
        }
        let sha256 = HEXLOWER_PERMISSIVE.decode(sha256.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        let sha256 = sha256.ok_or(InvalidKey("an API key is given by its SHA-256, which is 64 hexadecimal digits"))?;
        let viewer = Viewer::with_roles(roles).acting_as(Actor::service(name));
        Ok(Self { viewer: Arc::new(viewer), sha256 })
    }

    /// A new random key, and its SHA-256 in hexadecimal digits for [`new`](Self::new).
    ///
    /// # Errors
    /// The operating system has no random bytes.
    pub fn generate() -> Result<(String, String), InvalidKey> {
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).map_err(|_| InvalidKey("the operating system gives no random bytes"))?;
        let key = format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes));
        let hash = HEXLOWER.encode(digest(&SHA256, key.as_bytes()).as_ref());
        Ok((key, hash))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("viewer", &self.viewer).finish_non_exhaustive()
    }
}

/// Whose key it is. All of them are compared, to their ends, so that the time tells nothing.
pub(super) fn find(keys: &[ApiKey], shown: &str) -> Option<Identity> {
    let hash = digest(&SHA256, shown.as_bytes());
    let mut found = None;
    for key in keys {
        if key.sha256.ct_eq(hash.as_ref()).into() {
            found = Some(Identity::proven(Arc::clone(&key.viewer)));
        }
    }
    found
}
