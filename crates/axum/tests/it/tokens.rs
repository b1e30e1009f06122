//! Those who sign tokens, well and badly, and who publish keys.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use data_encoding::BASE64URL_NOPAD;
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
        RsaPublicKeyComponents,
    },
};
use serde_json::{Value, json};
use tidewire_axum::{Authentication, ServerOptions, TokenKey};
use tokio::net::TcpListener;

pub(crate) const SECRET: &[u8] = b"a secret that only tests know, of 32 bytes or more";
pub(crate) const RSA_PUBLIC: &[u8] = include_bytes!("keys/rsa_public.pem");
pub(crate) const RSA_SHORT: &[u8] = include_bytes!("keys/rsa_short.pem");

pub(crate) enum Signer {
    Secret(Vec<u8>),
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    pub(crate) fn secret() -> Self {
        Self::Secret(SECRET.to_vec())
    }

    pub(crate) fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::from_pkcs8(include_bytes!("keys/rsa_private.der")).unwrap())
    }

    pub(crate) fn p256() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self::P256(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap())
    }

    pub(crate) fn ed25519() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::Ed25519(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap())
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Secret(_) => "HS256",
            Self::Rsa(_) => "RS256",
            Self::P256(_) => "ES256",
            Self::Ed25519(_) => "EdDSA",
        }
    }

    /// A token with these claims, by the key of this name.
    pub(crate) fn sign(&self, kid: &str, claims: &Value) -> String {
        self.sign_as(&json!({ "alg": self.algorithm(), "typ": "JWT", "kid": kid }), claims)
    }

    /// A token with any header.
    pub(crate) fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.signature(signed.as_bytes());
        format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
    }

    fn signature(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Secret(secret) => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec(),
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Self::P256(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed25519(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// The public key as somebody publishes it.
    pub(crate) fn jwk(&self, kid: &str) -> Value {
        let text = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        match self {
            Self::Secret(secret) => json!({ "kty": "oct", "kid": kid, "k": text(secret) }),
            Self::Rsa(key) => {
                let RsaPublicKeyComponents { n, e } = RsaPublicKeyComponents::<Vec<u8>>::from(key.public());
                json!({ "kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "n": text(&n), "e": text(&e) })
            }
            Self::P256(key) => {
                let point = &key.public_key().as_ref()[1..];
                json!({ "kty": "EC", "crv": "P-256", "kid": kid, "x": text(&point[..32]), "y": text(&point[32..]) })
            }
            Self::Ed25519(key) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": text(key.public_key().as_ref()) })
            }
        }
    }

    /// The public key of Ed25519 as PEM.
    pub(crate) fn pem(&self) -> Vec<u8> {
        let Self::Ed25519(key) = self else { panic!("only Ed25519 is written here") };
        let mut der = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        der.extend_from_slice(key.public_key().as_ref());
        let text = data_encoding::BASE64.encode(&der);
        format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n").into_bytes()
    }
}

/// Seconds from now, as tokens count.
pub(crate) fn from_now(seconds: i64) -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap() + seconds
}

/// What ada's token says, for so long.
pub(crate) fn ada(seconds: i64) -> Value {
    json!({ "sub": "ada", "iss": "tests", "aud": "tidewire", "exp": from_now(seconds), "roles": ["reader"] })
}

/// Options that know the secret, and ask everybody.
pub(crate) fn guarded() -> Authentication {
    let mut authentication = Authentication::default();
    authentication.keys.push(TokenKey::secret(SECRET).unwrap());
    authentication.audiences.push("tidewire".into());
    authentication.issuers.push("tests".into());
    authentication.leeway = Duration::ZERO;
    authentication.required = true;
    authentication
}

pub(crate) fn with(authentication: Authentication) -> ServerOptions {
    let mut options = ServerOptions::default();
    options.authentication = Some(authentication);
    options
}

/// What whoever asks for keys is answered.
#[derive(Clone)]
pub(crate) enum Published {
    Keys(Vec<Value>),
    Text(String),
    Status(StatusCode),
    /// Nothing, ever.
    Silence,
}

/// A server that publishes keys.
#[derive(Clone)]
pub(crate) struct Publisher(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    published: Mutex<Published>,
    asked: AtomicUsize,
}

impl Publisher {
    pub(crate) async fn start(published: Published) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let publisher =
            Self(Arc::new(Inner { address, published: Mutex::new(published), asked: AtomicUsize::default() }));
        let router = Router::new().route("/keys", get(Self::answer)).with_state(publisher.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        publisher
    }

    async fn answer(State(publisher): State<Self>) -> Response {
        publisher.0.asked.fetch_add(1, Ordering::SeqCst);
        let published = publisher.0.published.lock().unwrap().clone();
        match published {
            Published::Keys(keys) => json!({ "keys": keys }).to_string().into_response(),
            Published::Text(text) => text.into_response(),
            Published::Status(status) => status.into_response(),
            Published::Silence => std::future::pending().await,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/keys", self.0.address)
    }

    pub(crate) fn publish(&self, published: Published) {
        *self.0.published.lock().unwrap() = published;
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.0.asked.load(Ordering::SeqCst)
    }
}

/// Headers of a request.
pub(crate) type Headers = HashMap<&'static str, String>;

pub(crate) fn bearer(token: &str) -> Headers {
    HashMap::from([("authorization", format!("Bearer {token}"))])
}
