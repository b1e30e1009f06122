use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

/// A network between a program and a server, with whatever can go wrong in one. Gone with the value.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    /// The server's port.
    target: u16,
    weather: watch::Sender<Weather>,
    trap: Mutex<Option<Trap>>,
    connections: AtomicUsize,
    accepted: AtomicU64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    /// Counts the cuts.
    cuts: u64,
    refuses: bool,
    stalls: bool,
    delay: Duration,
}

/// Cuts where a client says something.
struct Trap {
    words: &'static [u8],
    side: Side,
}

/// On which side of a message a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The server never hears it.
    Before,
    /// The server hears it, and its answer is lost.
    After,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("port", &self.port).field("target", &self.shared.target).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Forwards to a port of this machine.
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            target,
            weather: watch::Sender::new(Weather::default()),
            trap: Mutex::default(),
            connections: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { port, shared, accepting }
    }

    /// A URL of the server's, as it leads through here.
    pub fn url(&self, url: &str) -> String {
        let target = format!(":{}/", self.shared.target);
        assert!(url.contains(&target), "{url} does not lead to the proxy's target");
        url.replace(&target, &format!(":{}/", self.port))
    }

    /// Cuts all connections. New ones are let through.
    pub fn cut(&self) {
        self.shared.weather.send_modify(|weather| weather.cuts += 1);
    }

    /// Cuts a connection whose client says these words, once.
    pub fn cut_at(&self, words: &'static str, side: Side) {
        *self.shared.trap() = Some(Trap { words: words.as_bytes(), side });
    }

    /// Whether the words of [`cut_at`](Self::cut_at) have yet to be said.
    pub fn is_armed(&self) -> bool {
        self.shared.trap().is_some()
    }

    /// Turns new connections away, or lets them through again.
    pub fn refuse(&self, refuses: bool) {
        self.shared.weather.send_modify(|weather| weather.refuses = refuses);
    }

    /// Lets no byte through, in either direction, and loses none.
    pub fn stall(&self, stalls: bool) {
        self.shared.weather.send_modify(|weather| weather.stalls = stalls);
    }

    /// Keeps everything back for so long, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.shared.weather.send_modify(|weather| weather.delay = delay);
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// How many have ever been let through.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

impl Shared {
    fn trap(&self) -> std::sync::MutexGuard<'_, Option<Trap>> {
        self.trap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Springs the trap if the words are said.
    fn sprung(&self, said: &[u8]) -> Option<Side> {
        let mut trap = self.trap();
        let Trap { words, side } = trap.as_ref()?;
        let found = said.windows(words.len()).any(|window| window == *words).then_some(*side)?;
        *trap = None;
        Some(found)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        if shared.weather.borrow().refuses {
            continue;
        }
        tokio::spawn(forward(client, Arc::clone(&shared)));
    }
}

async fn forward(client: TcpStream, shared: Arc<Shared>) {
    let mut weather = shared.weather.subscribe();
    let cuts = weather.borrow_and_update().cuts;
    let Ok(server) = TcpStream::connect(("127.0.0.1", shared.target)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    shared.connections.fetch_add(1, Ordering::Relaxed);
    shared.accepted.fetch_add(1, Ordering::Relaxed);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let muted = AtomicBool::new(false);
    tokio::select! {
        () = carry(from_client, to_server, Some(&shared), &muted, shared.weather.subscribe()) => {}
        () = carry(from_server, to_client, None, &muted, shared.weather.subscribe()) => {}
        _ = weather.wait_for(|now| now.cuts != cuts) => {}
    }
    shared.connections.fetch_sub(1, Ordering::Relaxed);
}

/// Carries bytes until one end closes, or the trap springs.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    trapped: Option<&Shared>,
    // Whether the server's answers are lost already.
    muted: &AtomicBool,
    mut weather: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let delay = weather.borrow_and_update().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        if weather.wait_for(|now| !now.stalls).await.is_err() {
            return;
        }
        if trapped.is_none() && muted.load(Ordering::Relaxed) {
            continue;
        }
        let sprung = trapped.and_then(|shared| shared.sprung(&buffer[..read]));
        if sprung == Some(Side::After) {
            muted.store(true, Ordering::Relaxed);
        }
        if sprung == Some(Side::Before) || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        if sprung == Some(Side::After) {
            // Time for the server to do what it was told.
            sleep(Duration::from_millis(100)).await;
            return;
        }
    }
}
