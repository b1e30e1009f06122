use axum::http::StatusCode;

/// Why credentials are not accepted. It never says what was in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Missing,
    Several,
    Scheme,
    TooLong,
    Malformed,
    UnknownKey,
    Algorithm,
    Signature,
    Expired,
    NotYetValid,
    NoExpiry,
    Audience,
    Issuer,
    Subject,
    ApiKey,
    /// Not the client's fault: no key was ever published.
    NoKeys,
}

impl Refusal {
    /// For people, and short enough for the reason of a WebSocket's close.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::Missing => "credentials are required",
            Self::Several => "more than one credential was sent, and it is not said which counts",
            Self::Scheme => "credentials are `Bearer`, with a token, or `ApiKey`, with a key",
            Self::TooLong => "the token is longer than 8192 bytes",
            Self::Malformed => "the token is not a JWT that is signed as this server accepts it",
            Self::UnknownKey => "the token is signed with a key that is not known here",
            Self::Algorithm => "the token is signed by another algorithm than its key is for",
            Self::Signature => "the token's signature is wrong",
            Self::Expired => "the token has expired",
            Self::NotYetValid => "the token is not valid yet",
            Self::NoExpiry => "the token does not say when it expires",
            Self::Audience => "the token is for another audience",
            Self::Issuer => "the token is from another issuer",
            Self::Subject => "the token's subject is not a text of at most 255 bytes without control characters",
            Self::ApiKey => "the API key is not known here",
            Self::NoKeys => "tokens cannot be verified at the moment",
        }
    }

    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::NoKeys => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNAUTHORIZED,
        }
    }

    /// The code that a WebSocket is closed with. Clients of `graphql-ws` give up at 4401 and come back after the others, then with what
    /// their `connectionParams` give anew.
    pub(crate) fn close_code(self) -> u16 {
        match self {
            Self::Missing => 4401,
            Self::NoKeys => 1013,
            _ => 4403,
        }
    }
}
