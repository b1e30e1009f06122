//! A private MariaDB server for the tests of one process.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use sqlx::{Connection, Executor, MySqlConnection};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::{available, ordinary_user};

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
    port: u16,
    _folder: TempDir,
    /// Stops the server when the pipe to it closes.
    _keeper: Child,
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
                let (server, install) = programs?;
                Some(Self::start(&server, &install, SETTINGS).await)
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
        let (server, install) = programs?;
        Some(Self::start(&server, &install, settings).await)
    }

    /// Starts one.
    async fn start(server: &Path, install: &Path, settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        let user = ordinary_user::id(&["mysql", "nobody"]);
        if let Some((user, group)) = user {
            chown(folder.path(), Some(user), Some(group)).unwrap();
            chown(&data, Some(user), Some(group)).unwrap();
        }
        let installed = ordinary_user::command(install, user)
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .arg(format!("--datadir={}", data.display()))
            // It starts a server too, which removes the temporary tables of all who share its folder for them.
            .env("TMPDIR", folder.path())
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // The keeper waits for the pipe to close, and then stops the server at once and tidies up: this process may be gone by then. A server that
        // starts removes the temporary tables of all who share its folder for them.
        let script = "folder=$1; port=$2; shift 2; \"$0\" --no-defaults --datadir=\"$folder/data\" --tmpdir=\"$folder\" \
                      --socket=\"$folder/socket\" --pid-file=\"$folder/pid\" --port=\"$port\" --bind-address=127.0.0.1 \"$@\" \
                      >\"$folder/log\" 2>&1 & server=$!; cat; kill -KILL $server; wait $server; rm -rf \"$folder\"";
        let keeper = ordinary_user::command(Path::new("/bin/sh"), user)
            .arg("-c")
            .arg(script)
            .arg(server)
            .arg(folder.path())
            .arg(port.to_string())
            .args(settings)
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { port, _folder: folder, _keeper: keeper };
        let began = Instant::now();
        while let Err(error) = MySqlConnection::connect(&server.url("mysql")).await {
            assert!(
                began.elapsed() < START,
                "{error}: {}",
                fs::read_to_string(data.with_file_name("log")).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server
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
