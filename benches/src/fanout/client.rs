//! A WebSocket client that costs next to nothing: it finds the ends of frames and counts them.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

pub(crate) struct Client {
    socket: Option<TcpStream>,
    reading: Option<JoinHandle<()>>,
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(reading) = &self.reading {
            reading.abort();
        }
    }
}

impl Client {
    /// Opens a WebSocket and exchanges greetings.
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self> {
        let mut socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let request = format!(
            "GET /graphql HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: graphql-transport-ws\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(socket.read_u8().await?);
        }
        ensure!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
        send(&mut socket, r#"{"type":"connection_init"}"#).await?;
        let mut header = [0; 2];
        socket.read_exact(&mut header).await?;
        let mut answer = vec![0; header[1].into()];
        socket.read_exact(&mut answer).await?;
        ensure!(answer == br#"{"type":"connection_ack"}"#, "{}", String::from_utf8_lossy(&answer));
        Ok(Self { socket: Some(socket), reading: None })
    }

    /// Subscribes, and counts from now on every frame that carries a change.
    pub(crate) async fn subscribe(
        &mut self,
        query: &str,
        after: Option<&str>,
        received: &Arc<AtomicU64>,
    ) -> Result<()> {
        let received = Arc::clone(received);
        self.watch(query, &json!({ "after": after }), move |frames| {
            received.fetch_add(frames, Ordering::Relaxed);
        })
        .await
    }

    /// Subscribes, and tells from now on how many frames have come that carry a change, as they come.
    pub(crate) async fn watch(
        &mut self,
        query: &str,
        variables: &Value,
        came: impl FnMut(u64) + Send + 'static,
    ) -> Result<()> {
        let Some(mut socket) = self.socket.take() else { return Ok(()) };
        let payload = json!({ "query": query, "variables": variables });
        send(&mut socket, &json!({ "id": "1", "type": "subscribe", "payload": payload }).to_string()).await?;
        self.reading = Some(tokio::spawn(async move {
            let _ = count(socket, came).await;
        }));
        Ok(())
    }
}

/// Sends a text message, masked with zeros as a client must.
async fn send(socket: &mut TcpStream, text: &str) -> Result<()> {
    let mut frame = vec![0x81];
    match u16::try_from(text.len())? {
        length @ 0..126 => frame.push(0x80 | u8::try_from(length)?),
        length => {
            frame.push(0x80 | 126);
            frame.extend(length.to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(text.as_bytes());
    Ok(socket.write_all(&frame).await?)
}

/// A frame shorter than this carries no change: it is a ping, or the first event.
const SHORT: usize = 250;

async fn count(mut socket: TcpStream, mut came: impl FnMut(u64)) -> Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut filled = 0;
    // How much of the current frame is still to come beyond the buffer.
    loop {
        let read = socket.read(&mut buffer[filled..]).await?;
        ensure!(read > 0, "the server has gone");
        filled += read;
        let mut at = 0;
        let mut counted = 0;
        while let Some((header, length)) = frame(&buffer[at..filled]) {
            if at + header + length > filled {
                break;
            }
            at += header + length;
            counted += u64::from(length >= SHORT);
        }
        if counted > 0 {
            came(counted);
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
    }
}

/// The lengths of a frame's header and of its payload.
fn frame(bytes: &[u8]) -> Option<(usize, usize)> {
    match bytes.get(1)? & 0x7f {
        126 => Some((4, u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?).into())),
        127 => Some((10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?)),
        length => Some((2, length.into())),
    }
}
