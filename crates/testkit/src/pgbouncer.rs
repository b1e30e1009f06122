//! A private PgBouncer that lends connections of a PostgreSQL server for a transaction at a time.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::{
    PostgresServer, available,
    postgres::{as_ordinary_user, folder, free_port},
};

/// How long it may take to begin to answer.
const START: Duration = Duration::from_secs(30);

/// Gone with the value.
#[derive(Debug)]
pub struct PgBouncer {
    port: u16,
    server: u16,
    process: Child,
    _folder: TempDir,
}

fn program() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join("pgbouncer"))
        .find(|program| program.is_file())
}

impl PgBouncer {
    /// Lends up to so many connections of a server, to any number of clients. `None` where PgBouncer is not installed.
    pub async fn before(server: &PostgresServer, connections: u32) -> Option<Self> {
        let program = program();
        if !available("pgbouncer", program.is_some()) {
            return None;
        }
        let (folder, port) = (folder(), free_port());
        let settings = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = transaction\nmax_client_conn = 500\ndefault_pool_size = {connections}\n",
            server.port()
        );
        // With `auth_type = any` the user of the server has to be named.
        let text = text.replace("* = ", "* = user=tidewire ");
        fs::write(&settings, text).unwrap();
        let process = start(&program?, &settings);
        let bouncer = Self { port, server: server.port(), process, _folder: folder };
        let began = Instant::now();
        let url = bouncer.url(&server.url("postgres"));
        // PgBouncer refuses what sqlx asks for by itself, which is an answer too.
        while let Err(error) = PgConnection::connect(&url).await {
            if error.as_database_error().is_some() {
                break;
            }
            assert!(began.elapsed() < START, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Some(bouncer)
    }

    /// A URL of the server's, as it leads through here.
    pub fn url(&self, url: &str) -> String {
        url.replace(&format!(":{}/", self.server), &format!(":{}/", self.port))
    }
}

fn start(program: &Path, settings: &Path) -> Child {
    let mut command: Command = as_ordinary_user(program);
    command
        .arg("--quiet")
        .arg(settings)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
