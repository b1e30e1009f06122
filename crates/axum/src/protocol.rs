//! The protocol `graphql-transport-ws`: what each message means, and what is answered, apart from any socket.

use serde::Deserialize;
use serde_json::Value;

use crate::{auth::Refusal, parameters::Parameters};

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

    pub(crate) fn refused(refusal: Refusal) -> Self {
        Self::new(refusal.close_code(), short(refusal.message()))
    }

    /// Clients come back after this, with another token if they have one.
    pub(crate) fn expired() -> Self {
        Self::new(4403, "Token expired")
    }

    /// Whoever the client says it is has as many connections as they may.
    pub(crate) fn too_many() -> Self {
        Self::new(1013, "Too many connections")
    }

    /// Who is another now has to open another socket.
    pub(crate) fn another_viewer() -> Self {
        Self::new(4403, "Token of another viewer")
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
    /// The client says hello, and perhaps who it is: acknowledge, if that may be.
    Begin {
        payload: Value,
    },
    /// The client asks whether we are there, and perhaps shows newer credentials.
    Ping {
        payload: Value,
    },
    /// Run this operation; its results carry this id.
    Start {
        id: String,
        parameters: Parameters,
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
    ConnectionInit {
        #[serde(default)]
        payload: Value,
    },
    Ping {
        #[serde(default)]
        payload: Value,
    },
    Pong {},
    Subscribe {
        id: String,
        payload: Parameters,
    },
    Complete {
        id: String,
    },
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
            Message::ConnectionInit { .. } if self.initialised => {
                Action::Close(Close::new(4429, "Too many initialisation requests"))
            }
            Message::ConnectionInit { payload } => {
                self.initialised = true;
                Action::Begin { payload }
            }
            Message::Ping { payload } => Action::Ping { payload },
            Message::Pong {} => Action::None,
            Message::Subscribe { .. } if !self.initialised => Action::Close(Close::new(4401, "Unauthorized")),
            Message::Subscribe { id, .. } if id.is_empty() => {
                Action::Close(Close::new(4400, "Invalid message: the id is empty"))
            }
            Message::Subscribe { payload, .. } if payload.query.is_none() && payload.id().is_none() => {
                Action::Close(Close::new(4400, "Invalid message: the payload has no query"))
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
            Message::Subscribe { id, payload } => Action::Start { id, parameters: payload },
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

/// What answers `connection_init`.
pub(crate) const ACKNOWLEDGED: &str = "{\"type\":\"connection_ack\"}";

/// What answers `ping`.
pub(crate) const PONG: &str = "{\"type\":\"pong\"}";

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
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

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
        assert!(matches!(protocol.receive(init, 0, |_| false), Action::Begin { payload } if payload["token"] == "x"));
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
            r#"{"type":"subscribe","id":"1","payload":{}}"#,
            r#"{"type":"subscribe","id":"1","payload":{"query":"","variables":[]}}"#,
            r#"{"type":"complete"}"#,
        ] {
            assert_eq!(code(protocol.receive(text, 0, |_| false)), 4400, "{text}");
        }
    }

    /// What a client sends, as far as the protocol tells it apart.
    #[derive(Debug, Clone)]
    enum Sent {
        Init,
        Ping,
        Pong,
        Subscribe {
            id: u8,
            has_query: bool,
        },
        Complete(u8),
        /// An operation ends by itself, which the client does not send.
        Ended(u8),
        Garbage(String),
    }

    impl Sent {
        fn text(&self) -> String {
            match self {
                Self::Init => r#"{"type":"connection_init","payload":{"a":[1]}}"#.into(),
                Self::Ping => r#"{"payload":null,"type":"ping"}"#.into(),
                Self::Pong => r#"{"type":"pong"}"#.into(),
                Self::Subscribe { id, has_query } => {
                    let payload = if *has_query { r#"{"query":"{ a }","variables":{"b":1}}"# } else { "{}" };
                    format!(r#"{{"id":"{id}","payload":{payload},"type":"subscribe"}}"#)
                }
                Self::Complete(id) => format!(r#"{{"type":"complete","id":"{id}"}}"#),
                Self::Ended(_) => unreachable!("it is not sent"),
                Self::Garbage(text) => text.clone(),
            }
        }
    }

    fn sent() -> impl Strategy<Value = Sent> {
        prop_oneof![
            2 => Just(Sent::Init),
            1 => Just(Sent::Ping),
            1 => Just(Sent::Pong),
            8 => (0..6_u8, prop::bool::weighted(0.95)).prop_map(|(id, has_query)| Sent::Subscribe { id, has_query }),
            4 => (0..6_u8).prop_map(Sent::Complete),
            2 => (0..6_u8).prop_map(Sent::Ended),
            1 => ".{0,30}".prop_map(Sent::Garbage),
            1 => r#"\{"(type|id)":("(subscribe|complete|ping|x)"|1|null|\[\])\}"#.prop_map(Sent::Garbage),
        ]
    }

    /// What the protocol says, in as few words as it takes: either the code of a close, or what is done.
    fn expected(sent: &Sent, is_ready: bool, running: &BTreeSet<u8>, most: usize) -> Result<&'static str, u16> {
        match sent {
            Sent::Init if is_ready => Err(4429),
            Sent::Init => Ok("begin"),
            Sent::Ping => Ok("ping"),
            Sent::Pong => Ok("nothing"),
            Sent::Subscribe { .. } if !is_ready => Err(4401),
            Sent::Subscribe { has_query: false, .. } => Err(4400),
            Sent::Subscribe { id, .. } if running.contains(id) => Err(4409),
            Sent::Subscribe { .. } if running.len() >= most => Ok("error"),
            Sent::Subscribe { .. } => Ok("start"),
            Sent::Complete(_) => Ok("stop"),
            Sent::Ended(_) => unreachable!("it is not sent"),
            // `{"type":"ping"}` may come of it by chance.
            Sent::Garbage(text) if text == r#"{"type":"ping"}"# => Ok("ping"),
            Sent::Garbage(_) => Err(4400),
        }
    }

    fn done(action: &Action) -> Result<&'static str, u16> {
        match action {
            Action::None => Ok("nothing"),
            Action::Begin { .. } => Ok("begin"),
            Action::Ping { .. } => Ok("ping"),
            Action::Start { .. } => Ok("start"),
            Action::Stop { .. } => Ok("stop"),
            Action::Close(close) => Err(close.code),
            Action::Send(text) => {
                let message: serde_json::Value = serde_json::from_str(text).expect("JSON");
                assert_eq!(message["type"], "error");
                Ok("error")
            }
        }
    }

    proptest! {
        /// Whatever a client sends, the protocol does what a model of a few lines says.
        #[test]
        fn the_protocol_does_as_its_model(messages in prop::collection::vec(sent(), 0..60), most in 1..5_usize) {
            let mut protocol = Protocol::new(most);
            let (mut is_ready, mut running) = (false, BTreeSet::new());
            for message in messages {
                if let Sent::Ended(id) = message {
                    running.remove(&id);
                    continue;
                }
                let action = protocol.receive(&message.text(), running.len(), |id| {
                    id.parse().is_ok_and(|id| running.contains(&id))
                });
                let expected = expected(&message, is_ready, &running, most);
                prop_assert_eq!(done(&action), expected, "{:?}", message);
                match (&message, action) {
                    // The socket is closed; what would come is not read.
                    (_, Action::Close(close)) => {
                        prop_assert!(close.reason.len() <= 123);
                        break;
                    }
                    (Sent::Subscribe { id, .. }, Action::Start { id: started, parameters }) => {
                        prop_assert_eq!(id.to_string(), started);
                        prop_assert_eq!(parameters.query.as_deref(), Some("{ a }"));
                        running.insert(*id);
                    }
                    (Sent::Complete(id), _) => {
                        running.remove(id);
                    }
                    _ => {}
                }
                is_ready |= matches!(message, Sent::Init);
                prop_assert_eq!(protocol.is_initialised(), is_ready);
            }
        }
    }
}
