use std::fmt;

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde_json::Value;

use super::provider;

/// A key that cannot be used, and why not. It never holds the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidKey(pub(super) &'static str);

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidKey {}

/// A key that tokens may be signed with.
///
/// It is for one algorithm, which follows from its kind and never from a token: RSA for RS256, P-256 for ES256, Ed25519 for EdDSA, a secret
/// for HS256. So a public key is never taken for a secret, and no token goes unsigned.
#[derive(Clone)]
pub struct TokenKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl TokenKey {
    /// The shortest secret, in bytes: as long as what HS256 makes of it.
    const SECRET: usize = 32;
    /// The shortest RSA key, in bytes of its modulus; ring verifies with none that is shorter.
    const MODULUS: usize = 256;
    /// A point of P-256, not compressed.
    const P256: usize = 65;
    /// A point of Ed25519.
    const ED25519: usize = 32;

    /// A secret that is shared with whoever signs (HS256).
    ///
    /// # Errors
    /// It has fewer than 32 bytes.
    pub fn secret(secret: &[u8]) -> Result<Self, InvalidKey> {
        if secret.len() < Self::SECRET {
            return Err(InvalidKey("the secret is too short. HS256 needs 32 random bytes or more"));
        }
        Ok(Self::new(Algorithm::HS256, DecodingKey::from_secret(secret)))
    }

    /// A public key as PEM: RSA of 2048 bits or more (RS256), P-256 (ES256) or Ed25519 (EdDSA).
    ///
    /// # Errors
    /// It is none of these, or private.
    pub fn pem(pem: &[u8]) -> Result<Self, InvalidKey> {
        if pem.windows(b"PRIVATE KEY".len()).any(|window| window == b"PRIVATE KEY") {
            return Err(InvalidKey(
                "that is a private key. The server needs the public one, and whoever signs keeps this",
            ));
        }
        let key = if let Ok(key) = DecodingKey::from_rsa_pem(pem) {
            Self::new(Algorithm::RS256, key)
        } else if let Ok(key) = DecodingKey::from_ec_pem(pem) {
            Self::new(Algorithm::ES256, key)
        } else if let Ok(key) = DecodingKey::from_ed_pem(pem) {
            Self::new(Algorithm::EdDSA, key)
        } else {
            return Err(InvalidKey("that is not the PEM of a public key of RSA, P-256 or Ed25519"));
        };
        key.checked().ok_or(InvalidKey("the key is not RSA of 2048 bits or more, P-256 or Ed25519"))
    }

    /// The same key, for tokens only that name this key (`kid`) or none.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// A key that was published. Those for other uses, and secrets, which nobody should publish, are none.
    pub(super) fn published(jwk: &Value) -> Option<Self> {
        let jwk = serde_json::from_value::<Jwk>(jwk.clone()).ok()?;
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
            _ => return None,
        };
        let common = &jwk.common;
        let named = common.key_algorithm.is_none_or(|named| named == KeyAlgorithm::from(algorithm));
        let signs = common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature);
        if !named || !signs {
            return None;
        }
        let key = Self::new(algorithm, DecodingKey::from_jwk(&jwk).ok()?);
        Self { id: common.key_id.clone(), ..key }.checked()
    }

    fn new(algorithm: Algorithm, key: DecodingKey) -> Self {
        provider::install();
        Self { id: None, algorithm, key }
    }

    /// The key, if its length is one that can be right.
    fn checked(self) -> Option<Self> {
        let length = provider::length(&self.key);
        let right = match self.algorithm {
            Algorithm::RS256 => length >= Self::MODULUS,
            Algorithm::ES256 => length == Self::P256,
            Algorithm::EdDSA => length == Self::ED25519,
            _ => true,
        };
        right.then_some(self)
    }

    /// Whether a token that names this key, or none, may be signed with it.
    pub(super) fn is_named(&self, id: Option<&str>) -> bool {
        match (&self.id, id) {
            (Some(own), Some(id)) => own == id,
            _ => true,
        }
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn key(&self) -> &DecodingKey {
        &self.key
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey").field("id", &self.id).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}
