//! What fuzzers and tests do with bytes that may be anything: `fuzz/README.md`.

use std::{collections::BTreeSet, sync::LazyLock};

use axum::http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, COOKIE},
};
use data_encoding::BASE64URL_NOPAD;
use futures_util::FutureExt;
use serde_json::json;

use crate::{
    auth::{ApiKey, Authentication, TokenKey},
    protocol::{Action, Protocol},
};

/// How many operations a connection may have here.
const MOST: usize = 3;

/// Each line is a message of a client: whatever they are, the connection goes on as the protocol has it until it is closed, and is closed once.
///
/// # Panics
/// Where that is not so.
pub fn protocol(bytes: &[u8]) {
    let mut protocol = Protocol::new(MOST);
    let mut running = BTreeSet::new();
    let mut begun = false;
    for message in bytes.split(|byte| *byte == b'\n') {
        // What is no text is refused before.
        let Ok(text) = std::str::from_utf8(message) else { return };
        let action = protocol.receive(text, running.len(), |id| running.contains(id));
        match action {
            Action::Begin { .. } => assert!(!std::mem::replace(&mut begun, true), "it begins twice"),
            Action::Start { id, parameters } => {
                assert!(begun && running.len() < MOST && !id.is_empty());
                assert!(parameters.query.is_some() || parameters.id().is_some());
                assert!(running.insert(id), "two operations have one id");
            }
            Action::Stop { id } => drop(running.remove(&id)),
            Action::Send(text) => {
                let message: serde_json::Value = serde_json::from_str(&text).expect("what is sent is JSON");
                assert!(begun && running.len() == MOST && message["type"] == "error" && message["id"].is_string());
            }
            Action::Ping { .. } | Action::None => {}
            Action::Close(close) => {
                assert!(matches!(close.code, 4400 | 4401 | 4409 | 4429), "{}", close.code);
                assert!(close.reason.len() <= 123, "a close frame has no room for it");
                // Nothing is read after this.
                return;
            }
        }
        assert_eq!(protocol.is_initialised(), begun);
    }
}

static KNOWN: LazyLock<Authentication> = LazyLock::new(|| {
    let mut authentication = Authentication::default();
    let secret = b"a secret that nothing here is signed with, of 32 bytes or more";
    authentication.keys.push(TokenKey::secret(secret).expect("it is long enough"));
    authentication.api_keys.push(ApiKey::new("billing", ["writer"], &"0".repeat(64)).expect("these are digits"));
    authentication
});

/// Nothing that nobody of ours has signed is accepted, wherever it is shown.
///
/// # Panics
/// Where it is.
pub fn token(bytes: &[u8]) {
    let refuses = |name: HeaderName, value: &[u8]| {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            let headers = HeaderMap::from_iter([(name, value)]);
            let identified = KNOWN.identify(&headers).now_or_never().expect("there is nothing to wait for");
            assert!(identified.is_err(), "it is accepted");
        }
    };
    refuses(AUTHORIZATION, bytes);
    refuses(AUTHORIZATION, &[b"Bearer ", bytes].concat());
    refuses(AUTHORIZATION, &[b"ApiKey ", bytes].concat());
    refuses(HeaderName::from_static("x-api-key"), bytes);
    // As parts that can be read: header, claims and signature, a line each.
    let part = |part: &[u8]| BASE64URL_NOPAD.encode(part);
    let mut parts = bytes.splitn(3, |byte| *byte == b'\n').map(part);
    let mut next = || parts.next().unwrap_or_default();
    let (head, claims, signature) = (next(), next(), next());
    for head in [&head, &part(br#"{"alg":"HS256"}"#), &part(br#"{"alg":"none"}"#)] {
        refuses(AUTHORIZATION, format!("Bearer {head}.{claims}.{signature}").as_bytes());
        refuses(AUTHORIZATION, format!("Bearer {head}.{claims}.").as_bytes());
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        for name in ["token", "authorization", "x-api-key", "X-API-Key"] {
            let shown = KNOWN.identify_payload(&json!({ name: text })).now_or_never();
            assert!(shown.expect("there is nothing to wait for").is_err(), "it is accepted");
        }
    }
    // Cookies are not read: who shows nothing else is nobody.
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        let identity = KNOWN.identify(&HeaderMap::from_iter([(COOKIE, value)])).now_or_never();
        assert!(identity.is_some_and(|identity| identity.is_ok_and(|identity| !identity.is_somebody())));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_messages_harm_the_protocol() {
        tidewire_testkit::fuzz("protocol", 20_000, super::protocol);
    }

    #[test]
    fn no_bytes_are_taken_for_a_token() {
        tidewire_testkit::fuzz("token", 5_000, super::token);
    }
}
