//! A private PostgreSQL server for the tests of one process.

use std::{
    fs::{self, Permissions},
    io::Write,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::{Authority, available, ordinary_user};

/// Who runs it where the tests are root's.
const USERS: &[&str] = &["postgres", "nobody"];

/// How long a server may take to begin to answer.
const START: Duration = Duration::from_secs(60);
/// After how long one that does not answer is started again.
const RESTART: Duration = Duration::from_secs(10);

/// What a server for tests needs: room for many tests, nothing that waits for a disk, and everything that some test looks at.
const SETTINGS: &[&str] = &[
    "listen_addresses=127.0.0.1",
    "fsync=off",
    "wal_level=logical",
    "deadlock_timeout=20ms",
    "max_connections=300",
    "max_prepared_transactions=10",
    "max_replication_slots=1000",
    "max_wal_senders=1000",
    "max_slot_wal_keep_size=1GB",
    "max_wal_size=256MB",
];

/// A server in a temporary folder, on a free port. It ends with the process, however that ends.
#[derive(Debug)]
pub struct PostgresServer {
    port: u16,
    folder: TempDir,
    settings: Vec<String>,
    programs: PathBuf,
    /// Stops the server when the pipe to it closes. `None` while it does not run.
    keeper: Option<Child>,
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

pub(crate) fn as_ordinary_user(program: &Path) -> Command {
    ordinary_user::command(program, ordinary_user::id(USERS))
}

async fn answers(url: &str) -> Result<(), String> {
    match tokio::time::timeout(Duration::from_secs(5), PgConnection::connect(url)).await {
        Ok(connected) => connected.map(drop).map_err(|error| error.to_string()),
        Err(_) => Err("no answer".into()),
    }
}

/// A folder that the server's user may write.
pub(crate) fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    if let Some((user, group)) = ordinary_user::id(USERS) {
        chown(folder.path(), Some(user), Some(group)).unwrap();
    }
    folder
}

/// A port below those that the system gives away by itself, so that nobody takes it before the server does, or while that is stopped.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = 10_000 + u16::try_from(uuid::Uuid::new_v4().as_u128() % 22_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
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
                Some(Self::create_cluster(&programs?, &[]).await)
            })
            .await
            .as_ref()
    }

    /// A server that a test has for itself, so that it may be stopped and set up as it likes: `["max_connections=10"]`. `None` where
    /// PostgreSQL is not installed.
    pub async fn own(settings: &[&str]) -> Option<Self> {
        let programs = programs();
        if !available("postgres", programs.is_some()) {
            return None;
        }
        Some(Self::create_cluster(&programs?, settings).await)
    }

    /// A server of one test's own, with settings of its own: `-c wal_level=replica`. `None` where PostgreSQL is not installed.
    pub async fn with(settings: &str) -> Option<Self> {
        let settings: Vec<_> = settings.split_whitespace().filter(|word| *word != "-c").collect();
        Self::own(&settings).await
    }

    /// One of the programs that come with it, where it is installed.
    pub fn program(name: &str) -> Option<PathBuf> {
        Some(programs()?.join(name)).filter(|program| program.is_file())
    }

    /// Lets it crash and come back.
    pub async fn crash(&self) {
        let cluster = self.folder.path().join("cluster");
        let mut command =
            ordinary_user::command(&programs().expect("it runs").join("pg_ctl"), ordinary_user::id(USERS));
        command.args(["restart", "-w", "-m", "immediate", "-l"]).arg(cluster.join("log")).arg("-D").arg(&cluster);
        command.current_dir(self.folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let done = tokio::task::spawn_blocking(move || command.status().unwrap()).await.unwrap();
        assert!(done.success(), "{}", fs::read_to_string(cluster.join("log")).unwrap_or_default());
    }

    /// A server of one test's own, which talks TLS only, with a certificate for these names. `None` where PostgreSQL is not installed.
    ///
    /// # Panics
    /// When it cannot be set up.
    pub async fn with_tls(authority: &Authority, names: &[&str]) -> Option<Self> {
        let mut server = Self::own(&[]).await?;
        let folder = server.folder.path().to_owned();
        let files = authority.issue(names, &folder);
        for file in &files {
            fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
            if let Some((user, group)) = ordinary_user::id(USERS) {
                chown(file, Some(user), Some(group)).unwrap();
            }
        }
        let [certificate, key] = files.map(|file| file.display().to_string());
        let settings = ["ssl=on".to_owned(), format!("ssl_cert_file={certificate}"), format!("ssl_key_file={key}")];
        server.settings.extend(settings);
        fs::write(
            server.cluster().join("pg_hba.conf"),
            "hostssl all all all trust\nhostssl replication all all trust\n",
        )
        .unwrap();
        server.stop();
        server.start().await;
        Some(server)
    }

    async fn create_cluster(programs: &Path, settings: &[&str]) -> Self {
        let folder = folder();
        let cluster = folder.path().join("cluster");
        let initdb = as_ordinary_user(&programs.join("initdb"))
            .args(["--auth=trust", "--username=tidewire", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "-D"])
            .arg(&cluster)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(initdb.status.success(), "{}", String::from_utf8_lossy(&initdb.stderr));
        let port = free_port();
        let settings = [SETTINGS, settings].concat().into_iter().map(str::to_owned).collect();
        let mut server = Self { port, folder, settings, programs: programs.to_owned(), keeper: None };
        server.start().await;
        server
    }

    /// Starts it, where it does not run, and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start(&mut self) {
        let began = Instant::now();
        loop {
            if self.keeper.is_none() {
                self.keeper = Some(self.spawn());
            }
            let tried = Instant::now();
            let error = loop {
                match answers(&self.url("postgres")).await {
                    Ok(()) => return,
                    Err(error) if tried.elapsed() > RESTART => break error,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            };
            // What is left of one that was killed may have been in its way.
            let log = fs::read_to_string(self.cluster().join("log")).unwrap_or_default();
            assert!(began.elapsed() < START, "{error}: {}", &log[log.len().saturating_sub(2_000)..]);
            if error.contains("refused") {
                self.stop();
            }
        }
    }

    fn spawn(&self) -> Child {
        // The keeper waits for the pipe to close, and then stops the server at once. Unless it is told that the server will start again, it
        // removes the folder: a process has no time for that when it ends.
        let script = "folder=$1; shift; \"$@\" >>\"$folder/log\" 2>&1 & read -r word; p=$(head -n 1 \"$folder/postmaster.pid\"); \
                      kill -QUIT $p; wait; while kill -0 $p; do sleep 0.05; done; [ \"$word\" = again ] || rm -rf \"${folder%/*}\"";
        let mut command = as_ordinary_user(Path::new("/bin/sh"));
        command.args(["-c", script, "sh"]).arg(self.cluster()).arg(self.programs.join("postgres"));
        command.arg("-D").arg(self.cluster()).arg("-k").arg(self.cluster()).args(["-p", &self.port.to_string()]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        command.current_dir(self.folder.path()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// Stops it as `pg_ctl stop -m immediate` does: connections are cut, and the next start recovers from the log.
    pub fn stop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            keeper.stdin.take().unwrap().write_all(b"again\n").unwrap();
            keeper.wait().unwrap();
        }
    }

    /// Kills it, as a machine without memory does.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        let pid = fs::read_to_string(self.cluster().join("postmaster.pid")).unwrap();
        let pid = pid.lines().next().unwrap();
        assert!(Command::new("kill").args(["-KILL", pid]).status().unwrap().success());
        self.stop();
    }

    /// From now on its users need their passwords.
    ///
    /// # Panics
    /// When the server cannot be asked to read its settings again.
    pub async fn require_passwords(&self) {
        fs::write(self.cluster().join("pg_hba.conf"), "host all tidewire all trust\nhost all all all scram-sha-256\n")
            .unwrap();
        let mut connection = PgConnection::connect(&self.url("postgres")).await.unwrap();
        connection.execute("SELECT pg_reload_conf()").await.unwrap();
    }

    /// A standby of it, which follows it and can be read.
    ///
    /// # Panics
    /// When it cannot be made.
    pub async fn standby(&self) -> Self {
        self.copy(&["--write-recovery-conf"]).await
    }

    /// A backup of it that is started as it is: another history of the same cluster.
    ///
    /// # Panics
    /// When it cannot be made.
    pub async fn backup(&self) -> Self {
        self.copy(&[]).await
    }

    async fn copy(&self, how: &[&str]) -> Self {
        let folder = folder();
        let cluster = folder.path().join("cluster");
        let copied = as_ordinary_user(&self.programs.join("pg_basebackup"))
            .args(["--host=127.0.0.1", "--username=tidewire", "--checkpoint=fast", "--no-sync"])
            .args(how)
            .args(["--port", &self.port.to_string(), "-D"])
            .arg(&cluster)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        let (settings, programs) = (self.settings.clone(), self.programs.clone());
        let mut copy = Self { port: free_port(), folder, settings, programs, keeper: None };
        copy.start().await;
        copy
    }

    fn cluster(&self) -> PathBuf {
        self.folder.path().join("cluster")
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
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
