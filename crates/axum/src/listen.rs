//! Serving connections, where the server listens itself: what axum's own loop does, with patience that ends.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::ConnectInfo, http::Request};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::server::ServerOptions;

/// The longest head of a request, in bytes: a GET may carry a document.
const MAX_HEAD: usize = 64 << 10;

/// Takes connections until the server stops, and waits until those that it has taken have ended.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    options: &ServerOptions,
    stopping: &CancellationToken,
) -> io::Result<()> {
    let connections = TaskTracker::new();
    let server =
        Arc::new(Server { router, options: options.clone(), stopping: stopping.clone(), http: builder(options) });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => break,
        };
        match accepted {
            Ok((stream, address)) => {
                let server = Arc::clone(&server);
                connections.spawn(async move { server.connection(stream, address).await });
            }
            // The client was gone before it was taken.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {
            }
            Err(error) => {
                // Most likely there are too many open files; some will be closed.
                tracing::error!(%error, "a connection could not be taken");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
    Ok(())
}

fn builder(options: &ServerOptions) -> Builder<TokioExecutor> {
    let mut http = Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(options.header_timeout).max_buf_size(MAX_HEAD);
    http.http2().timer(TokioTimer::new()).keep_alive_interval(options.keep_alive);
    http
}

struct Server {
    router: Router,
    options: ServerOptions,
    stopping: CancellationToken,
    http: Builder<TokioExecutor>,
}

impl Server {
    async fn connection(&self, stream: TcpStream, address: SocketAddr) {
        // Frames are written when they are complete, so waiting for more to send brings nothing.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection without TCP_NODELAY");
        }
        let Some(tls) = &self.options.tls else { return self.http(stream, address).await };
        match timeout(self.options.header_timeout, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => self.http(stream, address).await,
            Ok(Err(error)) => tracing::debug!(%error, "no TLS came about"),
            Err(_) => tracing::debug!("no TLS came about in time"),
        }
    }

    async fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: S, address: SocketAddr) {
        let asked = Arc::new(AtomicBool::new(false));
        let service = service_fn(|mut request: Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(ConnectInfo(address));
            self.router.clone().oneshot(request)
        });
        let connection = self.http.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        // hyper's own timeout begins when it knows which HTTP is spoken; before that a client may be silent.
        let mut first = std::pin::pin!(sleep(self.options.header_timeout));
        let (mut is_waiting, mut is_stopping) = (true, false);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection has failed");
                    }
                    return;
                }
                () = first.as_mut(), if is_waiting => {
                    is_waiting = false;
                    if !asked.load(Ordering::Relaxed) {
                        return;
                    }
                }
                () = self.stopping.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}
