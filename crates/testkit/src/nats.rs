//! A private NATS server with JetStream.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{available, postgres::free_port};

/// How long a server may take to begin to answer.
const START: Duration = Duration::from_secs(30);

/// A server in a temporary folder, on a free port. It ends with the process, however that ends.
#[derive(Debug)]
pub struct NatsServer {
    port: u16,
    program: PathBuf,
    folder: TempDir,
    settings: Vec<String>,
    /// Kills the server when the pipe to it closes. `None` while it does not run.
    keeper: Option<Child>,
}

/// On the path, or where Debian's package puts it.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join("nats-server")).find(|program| program.is_file())
}

impl NatsServer {
    /// Starts one. `None` where it is not installed.
    pub async fn own() -> Option<Self> {
        Self::with(&["--jetstream"]).await
    }

    /// As [`own`](Self::own), with settings of its own alone.
    pub async fn with(settings: &[&str]) -> Option<Self> {
        let program = program();
        if !available("nats", program.is_some()) {
            return None;
        }
        let settings = settings.iter().copied().map(str::to_owned).collect();
        let folder = tempfile::tempdir().unwrap();
        let mut server = Self { port: free_port(), program: program?, folder, settings, keeper: None };
        server.start().await;
        Some(server)
    }

    /// Starts it, where it does not run, and waits until it listens.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start(&mut self) {
        if self.keeper.is_none() {
            self.keeper = Some(self.spawn());
        }
        let began = Instant::now();
        while TcpStream::connect_timeout(&self.address(), Duration::from_secs(1)).is_err() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(began.elapsed() < START, "{}", &log[log.len().saturating_sub(2_000)..]);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn spawn(&self) -> Child {
        // Unless the keeper is told that the server will start again, it removes the folder.
        let script = "folder=$1; shift; \"$@\" >>\"$folder/log\" 2>&1 & p=$!; read -r word; kill -KILL $p; wait; \
                      [ \"$word\" = again ] || rm -rf \"$folder\"";
        let mut command = Command::new(Path::new("/bin/sh"));
        command.args(["-c", script, "sh"]).arg(self.folder.path()).arg(&self.program);
        command.args(["--addr", "127.0.0.1", "--port", &self.port.to_string(), "--store_dir"]);
        command.arg(self.store()).args(&self.settings);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// Kills it, as a machine without memory does. What it has stored stays.
    pub fn kill(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            keeper.stdin.take().unwrap().write_all(b"again\n").unwrap();
            keeper.wait().unwrap();
        }
    }

    /// Kills it and removes what it has stored, as a machine does whose disk was not asked to keep that.
    pub fn kill_and_forget(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(self.store());
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}
