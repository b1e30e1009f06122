use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::soon;

/// A client of `graphql-transport-ws` that does what it is told, right or wrong.
#[derive(Debug)]
pub struct WebSocketClient {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl WebSocketClient {
    /// Connects and says hello.
    pub async fn connect(url: &str) -> Self {
        let mut client = Self::open(url, Some("graphql-transport-ws")).await;
        client.send(json!({ "type": "connection_init" })).await;
        assert_eq!(client.next().await, json!({ "type": "connection_ack" }));
        client
    }

    /// Connects with a subprotocol and says nothing.
    pub async fn open(url: &str, subprotocol: Option<&'static str>) -> Self {
        let mut request = url.into_client_request().unwrap();
        if let Some(subprotocol) = subprotocol {
            request.headers_mut().insert("sec-websocket-protocol", subprotocol.parse().unwrap());
        }
        let (socket, _) = soon(connect_async(request)).await.unwrap();
        Self { socket }
    }

    /// Sends a message.
    pub async fn send(&mut self, message: Value) {
        self.send_raw(Message::text(message.to_string())).await;
    }

    /// Sends whatever.
    pub async fn send_raw(&mut self, message: Message) {
        soon(self.socket.send(message)).await.unwrap();
    }

    /// Starts an operation.
    pub async fn subscribe(&mut self, id: &str, query: &str, variables: Value) {
        let payload = json!({ "query": query, "variables": variables });
        self.send(json!({ "type": "subscribe", "id": id, "payload": payload })).await;
    }

    /// The next message.
    ///
    /// # Panics
    /// When none comes.
    pub async fn next(&mut self) -> Value {
        match self.next_or_close().await {
            Ok(message) => message,
            Err(code) => panic!("the socket was closed with {code:?}"),
        }
    }

    /// The payload of the next message, which must be a `next`.
    pub async fn payload(&mut self) -> Value {
        let mut message = self.next().await;
        assert_eq!(message["type"], "next", "{message}");
        message["payload"].take()
    }

    /// What a subscription's field gives next.
    pub async fn event(&mut self, field: &str) -> Value {
        let mut payload = self.payload().await;
        assert!(payload["data"][field].is_object(), "{payload}");
        payload["data"][field].take()
    }

    /// Reads up to the close of the socket; its code, if it has one.
    pub async fn closed(&mut self) -> Option<u16> {
        loop {
            if let Err(code) = self.next_or_close().await {
                return code;
            }
        }
    }

    async fn next_or_close(&mut self) -> Result<Value, Option<u16>> {
        // Pings are no answer.
        soon(async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                    Some(Ok(Message::Close(frame))) => return Err(frame.map(|frame| frame.code.into())),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Err(None),
                }
            }
        })
        .await
    }

    /// Closes the socket as one should.
    pub async fn close(mut self) {
        let _ = soon(self.socket.close(None)).await;
    }

    /// The TCP stream underneath, for those who would rather not speak WebSocket any more.
    pub fn tcp(&mut self) -> &mut TcpStream {
        match self.socket.get_mut() {
            MaybeTlsStream::Plain(stream) => stream,
            _ => unreachable!("built without TLS"),
        }
    }
}
