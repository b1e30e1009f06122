use axum::http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use data_encoding::BASE64URL_NOPAD;
use futures_util::FutureExt;
use proptest::prelude::*;
use ring::hmac;
use serde_json::{Value, json};

use super::*;

const SECRET: &[u8] = b"a secret that only tests know, of 32 bytes or more";

fn known() -> Authentication {
    let mut authentication = Authentication::default();
    authentication.keys.push(TokenKey::secret(SECRET).unwrap());
    authentication.api_keys.push(ApiKey::new("billing", ["writer"], &"0".repeat(64)).unwrap());
    authentication
}

/// A token with these claims, which ends when clocks of 32 bits do.
fn token(mut claims: Value) -> String {
    claims["exp"] = json!(u32::MAX);
    sign(&claims)
}

fn sign(claims: &Value) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let signed = format!("{}.{}", part(&json!({ "alg": "HS256" })), part(claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), signed.as_bytes());
    format!("{signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
}

/// Without published keys nothing is waited for.
fn verify(authentication: &Authentication, token: &str) -> Result<Identity, Refusal> {
    authentication.verify(token).now_or_never().expect("there is nothing to wait for")
}

fn roles(path: &str, claims: Value) -> Vec<String> {
    let mut authentication = known();
    authentication.roles_claim = path.into();
    authentication.token_roles.clear();
    let identity = verify(&authentication, &token(claims)).unwrap();
    identity.viewer.roles.iter().cloned().collect()
}

#[test]
fn roles_are_found_where_the_settings_say() {
    assert_eq!(roles("roles", json!({ "roles": ["b", "a", 7, null] })), ["a", "b"]);
    assert_eq!(roles("scope", json!({ "scope": " read  write" })), ["read", "write"]);
    assert_eq!(roles("realm_access.roles", json!({ "realm_access": { "roles": ["a"] } })), ["a"]);
    // A name may have dots itself, as those that begin with a URL do.
    assert_eq!(roles("https://x.example/roles", json!({ "https://x.example/roles": ["a"] })), ["a"]);
    for claims in [json!({}), json!({ "a": 1 }), json!({ "a": { "b": { "c": "d" } } }), json!({ "a": { "b": true } })] {
        assert_eq!(roles("a.b", claims), [Viewer::ANONYMOUS]);
    }
}

#[test]
fn a_viewer_is_what_its_token_says() {
    let claims = json!({ "sub": "7", "org": { "id": 1 }, "roles": ["reader"] });
    let identity = verify(&known(), &token(claims)).unwrap();
    assert_eq!(identity.viewer.actor.as_ref().unwrap().as_str(), "user:7");
    assert_eq!(identity.viewer.roles.iter().collect::<Vec<_>>(), ["reader", "user"]);
    assert_eq!(identity.viewer.claims["org"], json!({ "id": 1 }));
    // A token may be of nobody in particular, and is a token.
    let nobody = verify(&known(), &token(json!({}))).unwrap();
    assert!(nobody.viewer.actor.is_none() && nobody.is_somebody());
}

proptest! {
    #[test]
    fn garbage_is_refused_and_harms_nobody(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,200}") {
        let authentication = known();
        prop_assert!(verify(&authentication, &text).is_err());
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
            prop_assert!(authentication.identify(&headers).now_or_never().unwrap().is_err());
        }
        for payload in [json!({ "token": text }), json!({ "authorization": text }), json!({ "x-api-key": text })] {
            prop_assert!(authentication.identify_payload(&payload).now_or_never().unwrap().is_err());
        }
        // Also where it looks like a token.
        let encoded = BASE64URL_NOPAD.encode(&bytes);
        let header = BASE64URL_NOPAD.encode(br#"{"alg":"HS256"}"#);
        for token in [format!("{encoded}.{encoded}.{encoded}"), format!("{header}.{encoded}."), format!("{header}..{encoded}")] {
            prop_assert!(verify(&authentication, &token).is_err());
        }
    }

    #[test]
    fn a_token_with_another_byte_is_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let good = token(json!({ "sub": "ada" }));
        let mut bytes = good.into_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        // The last character of each part carries bits that are no part of a byte; a decoder that ignored them would take several texts for one.
        if let Ok(text) = String::from_utf8(bytes) {
            prop_assert!(verify(&known(), &text).is_err(), "{text}");
        }
    }

    #[test]
    fn any_claims_of_a_signed_token_harm_nobody(exp in any::<f64>(), nbf in any::<i64>(), sub in ".{0,300}", leeway in any::<u64>()) {
        let mut authentication = known();
        authentication.leeway = Duration::from_secs(leeway);
        let claims = json!({ "exp": exp, "nbf": nbf, "sub": sub, "aud": sub, "iss": [sub] });
        if let Ok(identity) = verify(&authentication, &sign(&claims)) {
            prop_assert!(!identity.is_over());
        }
    }
}
