//! The protocol `graphql-transport-ws`: what each message means, and what is answered, apart from any socket.

use serde::Deserialize;
use tidewire_graphql::{Request, async_graphql::Variables};

/// The subprotocol's name.
pub(crate) const SUBPROTOCOL: &str = "graphql-transport-ws";

/// Why the server closes a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Close {
    pub(crate) code: u16,
    pub(crate) reason: String,
}

impl Close {
    fn new(code: u16, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }

    pub(crate) fn init_timeout() -> Self {
        Self::new(4408, "Connection initialisation timeout")
    }

    pub(crate) fn not_acceptable() -> Self {
        Self::new(4406, "Subprotocol not acceptable")
    }

    pub(crate) fn binary() -> Self {
        Self::new(4400, "Messages are text, and this one is binary")
    }

    pub(crate) fn too_large() -> Self {
        Self::new(1009, "Message too large")
    }

    /// Clients come back after this.
    pub(crate) fn restart() -> Self {
        Self::new(1012, "Service restart")
    }
}

/// What a message asks for.
#[derive(Debug)]
pub(crate) enum Action {
    /// Send this.
    Send(String),
    /// Run this operation; its results carry this id.
    Start {
        id: String,
        request: Request,
    },
    /// The client wants no more of this operation.
    Stop {
        id: String,
    },
    /// Nothing.
    None,
    Close(Close),
}

/// Where a connection stands.
#[derive(Debug)]
pub(crate) struct Protocol {
    initialised: bool,
    max_operations: usize,
}

/// Any message of a client. Unknown types, and fields of other types than these, are violations.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Message {
    ConnectionInit {},
    Ping {},
    Pong {},
    Subscribe { id: String, payload: Payload },
    Complete { id: String },
}

#[derive(Debug, Deserialize)]
struct Payload {
    query: String,
    #[serde(rename = "operationName", default)]
    operation_name: Option<String>,
    #[serde(default)]
    variables: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Protocol {
    pub(crate) fn new(max_operations: usize) -> Self {
        Self { initialised: false, max_operations }
    }

    pub(crate) fn is_initialised(&self) -> bool {
        self.initialised
    }

    /// What a message means. `is_running` tells whether an operation with an id is running, `running` how many are.
    pub(crate) fn receive(&mut self, text: &str, running: usize, is_running: impl FnOnce(&str) -> bool) -> Action {
        let message = match serde_json::from_str(text) {
            Ok(message) => message,
            // serde's words tell where the message is wrong and not what is in it.
            Err(error) => return Action::Close(Close::new(4400, short(&format!("Invalid message: {error}")))),
        };
        match message {
            Message::ConnectionInit {} if self.initialised => {
                Action::Close(Close::new(4429, "Too many initialisation requests"))
            }
            Message::ConnectionInit {} => {
                self.initialised = true;
                Action::Send("{\"type\":\"connection_ack\"}".into())
            }
            Message::Ping {} => Action::Send("{\"type\":\"pong\"}".into()),
            Message::Pong {} => Action::None,
            Message::Subscribe { .. } if !self.initialised => Action::Close(Close::new(4401, "Unauthorized")),
            Message::Subscribe { id, .. } if id.is_empty() => {
                Action::Close(Close::new(4400, "Invalid message: the id is empty"))
            }
            Message::Subscribe { id, .. } if is_running(&id) => {
                Action::Close(Close::new(4409, short(&format!("Subscriber for {id} already exists"))))
            }
            Message::Subscribe { id, .. } if running >= self.max_operations => {
                let errors = serde_json::json!([{
                    "message": format!("at most {} operations may run on one connection", self.max_operations),
                    "extensions": { "code": "LIMIT_EXCEEDED" },
                }]);
                Action::Send(error(&id, &errors.to_string()))
            }
            Message::Subscribe { id, payload } => {
                let variables =
                    payload.variables.map(|variables| Variables::from_json(serde_json::Value::Object(variables)));
                let request = Request {
                    query: payload.query,
                    operation_name: payload.operation_name,
                    variables: variables.unwrap_or_default(),
                    ..Request::default()
                };
                Action::Start { id, request }
            }
            Message::Complete { id } => Action::Stop { id },
        }
    }
}

/// A close reason may have 123 bytes at most.
fn short(reason: &str) -> String {
    let mut end = reason.len().min(120);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].to_owned()
}

/// The head of a `next` message, up to its payload; a `}` ends the message.
pub(crate) fn next_head(id: &str) -> String {
    format!("{{\"id\":{},\"type\":\"next\",\"payload\":", json(id))
}

/// An `error` message. `errors` is a JSON array.
pub(crate) fn error(id: &str, errors: &str) -> String {
    format!("{{\"id\":{},\"type\":\"error\",\"payload\":{errors}}}", json(id))
}

/// A `complete` message.
pub(crate) fn complete(id: &str) -> String {
    format!("{{\"id\":{},\"type\":\"complete\"}}", json(id))
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(action: Action) -> u16 {
        match action {
            Action::Close(close) => {
                assert!(close.reason.len() <= 123);
                close.code
            }
            other => panic!("{other:?} is no close"),
        }
    }

    #[test]
    fn violations_have_their_codes() {
        let subscribe = r#"{"type":"subscribe","id":"1","payload":{"query":"{ __typename }"}}"#;
        let init = r#"{"type":"connection_init","payload":{"token":"x"}}"#;
        let mut protocol = Protocol::new(1);
        assert_eq!(code(protocol.receive(subscribe, 0, |_| false)), 4401);
        assert!(matches!(protocol.receive(init, 0, |_| false), Action::Send(_)));
        assert_eq!(code(protocol.receive(init, 0, |_| false)), 4429);
        assert!(matches!(protocol.receive(subscribe, 0, |_| false), Action::Start { .. }));
        assert_eq!(code(protocol.receive(subscribe, 0, |_| true)), 4409);
        assert!(
            matches!(protocol.receive(subscribe, 1, |_| false), Action::Send(text) if text.contains("LIMIT_EXCEEDED"))
        );
        let long = format!(r#"{{"type":"subscribe","id":"{}","payload":{{"query":""}}}}"#, "ü".repeat(500));
        assert_eq!(code(protocol.receive(&long, 0, |_| true)), 4409);
        for text in [
            "",
            "null",
            "[]",
            "{}",
            "\"ping\"",
            r#"{"type":"start"}"#,
            r#"{"type":"subscribe"}"#,
            r#"{"type":"subscribe","id":1,"payload":{}}"#,
            r#"{"type":"subscribe","id":"","payload":{"query":""}}"#,
            r#"{"type":"subscribe","id":"1","payload":{"query":1}}"#,
            r#"{"type":"subscribe","id":"1","payload":{"query":"","variables":[]}}"#,
            r#"{"type":"complete"}"#,
        ] {
            assert_eq!(code(protocol.receive(text, 0, |_| false)), 4400, "{text}");
        }
    }
}
