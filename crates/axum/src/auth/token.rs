use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{
    Algorithm, Header, Validation, decode, decode_header,
    errors::{Error, ErrorKind},
};
use serde_json::{Map, Value};
use tidewire_graphql::Viewer;
use tidewire_outbox::Actor;

use super::{Authentication, Identity, Refusal, TokenKey};

/// The longest token, in bytes. Headers have room for little more, and nobody should have to read more to find it wrong.
const LONGEST: usize = 8192;
/// The longest leeway, in seconds: beyond a day, clocks are not the problem.
const DAY: u64 = 86_400;
/// The longest subject, in bytes, as OpenID Connect has it.
const SUBJECT: usize = 255;

type Claims = Map<String, Value>;

impl Authentication {
    /// Whose token it is, if it is good.
    pub(super) async fn verify(&self, token: &str) -> Result<Identity, Refusal> {
        if token.len() > LONGEST {
            return Err(Refusal::TooLong);
        }
        let header = decode_header(token).map_err(|_| Refusal::Malformed)?;
        // Whoever names extensions that must be understood means servers that do (RFC 7515, 4.1.11).
        if header.crit.is_some() {
            return Err(Refusal::Malformed);
        }
        match (&self.jwks, self.check(token, &header, &self.keys)) {
            // What our own keys do not fit may be signed with a published one.
            (Some(jwks), Err(Refusal::UnknownKey | Refusal::Algorithm | Refusal::Signature)) => {
                self.check(token, &header, &jwks.named(header.kid.as_deref()).await?)
            }
            (_, checked) => checked,
        }
    }

    /// Whose token it is, if one of these keys has signed it.
    fn check(&self, token: &str, header: &Header, keys: &[TokenKey]) -> Result<Identity, Refusal> {
        let mut refusal = Refusal::UnknownKey;
        for key in keys.iter().filter(|key| key.is_named(header.kid.as_deref())) {
            if key.algorithm() != header.alg {
                // It says more than that no key is known, and less than that one is and does not fit.
                if refusal == Refusal::UnknownKey {
                    refusal = Refusal::Algorithm;
                }
                continue;
            }
            match decode::<Claims>(token, key.key(), &self.validation(key.algorithm())).map_err(|error| refused(&error))
            {
                Ok(token) => return self.identity(token.claims),
                // Another key may fit.
                Err(Refusal::Signature) => refusal = Refusal::Signature,
                Err(refusal) => return Err(refusal),
            }
        }
        Err(refusal)
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.leeway();
        validation.validate_nbf = true;
        validation.validate_aud = !self.audiences.is_empty();
        let mut required = HashSet::new();
        if self.require_exp {
            required.insert("exp".to_owned());
        }
        if !self.audiences.is_empty() {
            validation.set_audience(&self.audiences);
            required.insert("aud".to_owned());
        }
        if !self.issuers.is_empty() {
            validation.set_issuer(&self.issuers);
            required.insert("iss".to_owned());
        }
        validation.required_spec_claims = required;
        validation
    }

    /// In seconds, as tokens count.
    fn leeway(&self) -> u64 {
        self.leeway.as_secs().min(DAY)
    }

    fn identity(&self, claims: Claims) -> Result<Identity, Refusal> {
        let mut roles = roles(&claims, &self.roles_claim);
        roles.extend(self.token_roles.iter().cloned());
        let mut viewer = Viewer::with_roles(roles);
        match claims.get("sub") {
            None | Some(Value::Null) => {}
            Some(Value::String(subject)) if subject.len() <= SUBJECT && !subject.contains(char::is_control) => {
                viewer = viewer.acting_as(Actor::user(subject));
            }
            Some(_) => return Err(Refusal::Subject),
        }
        let remaining = claims.get("exp").and_then(seconds).map(|expires| {
            let end = Duration::from_secs(expires.saturating_add(self.leeway()));
            end.saturating_sub(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
        });
        viewer.claims = claims;
        let identity = Identity::proven(Arc::new(viewer));
        Ok(match remaining {
            Some(remaining) => identity.ending_in(remaining),
            None => identity,
        })
    }
}

/// A time as tokens have it: seconds, with a fraction perhaps.
fn seconds(time: &Value) -> Option<u64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
    time.as_u64().or_else(|| Some(time.as_f64()?.round() as u64))
}

/// The roles in the claim of this name, or at the end of this way. What is no text is no role.
fn roles(claims: &Claims, path: &str) -> BTreeSet<String> {
    let claim = claims.get(path).or_else(|| {
        let mut names = path.split('.');
        let first = claims.get(names.next()?)?;
        names.try_fold(first, |claim, name| claim.get(name))
    });
    let texts: Vec<&str> = match claim {
        Some(Value::String(text)) => text.split_whitespace().collect(),
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    texts.into_iter().map(str::to_owned).collect()
}

fn refused(error: &Error) -> Refusal {
    match error.kind() {
        ErrorKind::InvalidSignature => Refusal::Signature,
        ErrorKind::ExpiredSignature => Refusal::Expired,
        ErrorKind::ImmatureSignature => Refusal::NotYetValid,
        ErrorKind::InvalidAudience => Refusal::Audience,
        ErrorKind::InvalidIssuer => Refusal::Issuer,
        ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
            "aud" => Refusal::Audience,
            "iss" => Refusal::Issuer,
            _ => Refusal::NoExpiry,
        },
        _ => Refusal::Malformed,
    }
}
