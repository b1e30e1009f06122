//! A private PostgreSQL server for the tests of one process.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::{available, ordinary_user};

/// How long a server may take to begin to answer.
const START: Duration = Duration::from_secs(60);

/// A server in a temporary folder, on a free port. It ends with the process, however that ends.
#[derive(Debug)]
pub struct PostgresServer {
    port: u16,
    _folder: TempDir,
    /// Stops the server when the pipe to it closes.
    _keeper: Child,
}

/// The folder of the server's programs: the newest that Debian's packages have installed, or the one on the path.
fn programs() -> Option<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").is_file())
        .collect();
    found.sort();
    if let Some((_, bin)) = found.pop() {
        return Some(bin);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
}

impl PostgresServer {
    /// The server of this process; started by the first who asks. `None` where PostgreSQL is not installed.
    pub async fn shared() -> Option<&'static Self> {
        static SERVER: OnceCell<Option<PostgresServer>> = OnceCell::const_new();
        SERVER
            .get_or_init(|| async {
                let programs = programs();
                if !available("postgres", programs.is_some()) {
                    return None;
                }
                Some(Self::start(&programs?).await)
            })
            .await
            .as_ref()
    }

    /// Starts one.
    async fn start(programs: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cluster = folder.path().join("cluster");
        fs::create_dir(&cluster).unwrap();
        let user = ordinary_user::id(&["postgres", "nobody"]);
        if let Some((user, group)) = user {
            chown(folder.path(), Some(user), Some(group)).unwrap();
            chown(&cluster, Some(user), Some(group)).unwrap();
        }
        let initdb = ordinary_user::command(&programs.join("initdb"), user)
            .args(["--auth=trust", "--username=tidewire", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "-D"])
            .arg(&cluster)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(initdb.status.success(), "{}", String::from_utf8_lossy(&initdb.stderr));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // The keeper waits for the pipe to close, and then stops the server at once and tidies up: this process may be gone by then.
        let script = "\"$0\" -D \"$1\" -p \"$2\" -k \"$1\" -c listen_addresses=127.0.0.1 -c fsync=off -c wal_level=logical \
                      -c deadlock_timeout=20ms -c max_connections=300 -c max_prepared_transactions=10 \
                      -c max_replication_slots=1000 -c max_wal_senders=1000 -c max_slot_wal_keep_size=1GB >\"$1/log\" 2>&1 & server=$!; cat; kill -QUIT $server; wait $server; rm -rf \"${1%/*}\"";
        let keeper = ordinary_user::command(Path::new("/bin/sh"), user)
            .arg("-c")
            .arg(script)
            .arg(programs.join("postgres"))
            .arg(&cluster)
            .arg(port.to_string())
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { port, _folder: folder, _keeper: keeper };
        let began = Instant::now();
        while let Err(error) = PgConnection::connect(&server.url("postgres")).await {
            assert!(
                began.elapsed() < START,
                "{error}: {}",
                fs::read_to_string(cluster.join("log")).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://tidewire@127.0.0.1:{}/{database}", self.port)
    }

    /// An empty database.
    pub async fn create(&self) -> String {
        let name = format!("test_{}", uuid::Uuid::new_v4().simple());
        let mut connection = PgConnection::connect(&self.url("postgres")).await.unwrap();
        connection.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
        self.url(&name)
    }
}
