//! A private MariaDB server for the tests of one process.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use sqlx::{Connection, Executor, MySqlConnection};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::{Authority, available, ordinary_user};

/// Whom the server may run as, where the tests run as root.
const USERS: &[&str] = &["mysql", "nobody"];

/// How long a server may take to begin to answer.
const START: Duration = Duration::from_secs(60);

/// What a server for tests needs: the binary log, room for many tests, and nothing that waits for a disk.
const SETTINGS: &[&str] = &[
    "--server-id=1",
    "--log-bin=bin",
    "--binlog-format=ROW",
    "--binlog-row-image=FULL",
    "--binlog-row-metadata=FULL",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-fast-shutdown=2",
    "--max-connections=300",
    "--character-set-server=utf8mb4",
];

/// A server in a temporary folder, on a free port, with the binary log on. It ends with the process, however that ends.
#[derive(Debug)]
pub struct MariadbServer {
    program: PathBuf,
    settings: Vec<String>,
    port: u16,
    folder: TempDir,
    /// Each stops the server that it has started when the pipe to it closes.
    keepers: Vec<Child>,
}

/// The server's program, and the one that makes its tables: on the path, or where Debian's packages put them.
fn programs() -> Option<(PathBuf, PathBuf)> {
    let path = std::env::var_os("PATH")?;
    let find = |name: &str| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/usr/bin".into()])
            .map(|folder: PathBuf| folder.join(name))
            .find(|program| program.is_file())
    };
    Some((find("mariadbd")?, find("mariadb-install-db")?))
}

impl MariadbServer {
    /// The server of this process; started by the first who asks. `None` where MariaDB is not installed.
    pub async fn shared() -> Option<&'static Self> {
        static SERVER: OnceCell<Option<MariadbServer>> = OnceCell::const_new();
        SERVER
            .get_or_init(|| async {
                let programs = programs();
                if !available("mariadb", programs.is_some()) {
                    return None;
                }
                Some(Self::make(programs?, SETTINGS).await)
            })
            .await
            .as_ref()
    }

    /// A server that a test has for itself, with settings of its own alone. `None` where MariaDB is not installed.
    pub async fn own(settings: &[&str]) -> Option<Self> {
        let programs = programs();
        if !available("mariadb", programs.is_some()) {
            return None;
        }
        Some(Self::make(programs?, settings).await)
    }

    /// A server of the test's own, with settings that stand over the usual ones (`--sync-binlog=1`). `None` where MariaDB is not installed.
    pub async fn with(settings: &[&str]) -> Option<Self> {
        Self::own(&[SETTINGS, settings].concat()).await
    }

    /// A server of one test's own, which talks TLS only, with a certificate for these names. `None` where MariaDB is not installed.
    pub async fn with_tls(authority: &Authority, names: &[&str]) -> Option<Self> {
        let mut server = Self::with(&[]).await?;
        let files = authority.issue(names, server.folder.path());
        for file in &files {
            if let Some((user, group)) = ordinary_user::id(USERS) {
                chown(file, Some(user), Some(group)).unwrap();
            }
        }
        let [certificate, key] = files.map(|file| file.display().to_string());
        server.settings.extend([format!("--ssl-cert={certificate}"), format!("--ssl-key={key}")]);
        server.settings.push("--require-secure-transport=ON".to_owned());
        server.crash().await;
        Some(server)
    }

    async fn make((program, install): (PathBuf, PathBuf), settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        let user = ordinary_user::id(USERS);
        if let Some((user, group)) = user {
            chown(folder.path(), Some(user), Some(group)).unwrap();
            chown(&data, Some(user), Some(group)).unwrap();
        }
        let installed = ordinary_user::command(&install, user)
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .arg(format!("--datadir={}", data.display()))
            // It starts a server too, which removes the temporary tables of all who share its folder for them.
            .env("TMPDIR", folder.path())
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = settings.iter().map(ToString::to_string).collect();
        let mut server = Self { program, settings, port, folder, keepers: Vec::new() };
        server.start().await;
        server
    }

    /// Starts it, also again.
    pub async fn start(&mut self) {
        // The keeper waits for the pipe to close, and then stops the server at once and tidies up: this process may be gone by then. A server that
        // starts removes the temporary tables of all who share its folder for them.
        let script = "folder=$1; port=$2; shift 2; \"$0\" --no-defaults --datadir=\"$folder/data\" --tmpdir=\"$folder\" \
                      --socket=\"$folder/socket\" --pid-file=\"$folder/pid\" --port=\"$port\" --bind-address=127.0.0.1 \"$@\" \
                      >>\"$folder/log\" 2>&1 & server=$!; cat; kill -KILL $server; wait $server; rm -rf \"$folder\"";
        let user = ordinary_user::id(USERS);
        let keeper = ordinary_user::command(Path::new("/bin/sh"), user)
            .arg("-c")
            .arg(script)
            .arg(&self.program)
            .arg(self.folder.path())
            .arg(self.port.to_string())
            .args(&self.settings)
            .current_dir(self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.keepers.push(keeper);
        let began = Instant::now();
        while let Err(error) = MySqlConnection::connect(&self.url("mysql")).await {
            assert!(
                began.elapsed() < START,
                "{error}: {}",
                fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills it in the middle of whatever it does, and starts it again.
    pub async fn crash(&mut self) {
        let pid = fs::read_to_string(self.folder.path().join("pid")).unwrap();
        let killed = Command::new("kill").args(["-KILL", pid.trim()]).status().unwrap();
        assert!(killed.success(), "{pid}");
        while Path::new("/proc").join(pid.trim()).join("exe").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.start().await;
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("mysql://root@127.0.0.1:{}/{database}", self.port)
    }

    /// An empty database.
    pub async fn create(&self) -> String {
        let name = format!("test_{}", uuid::Uuid::new_v4().simple());
        let mut connection = MySqlConnection::connect(&self.url("mysql")).await.unwrap();
        connection.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
        self.url(&name)
    }
}
