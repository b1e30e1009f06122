use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{MariadbServer, PostgresServer};
use sea_orm::{ConnectOptions, Database, DatabaseConnection};
use tempfile::TempDir;
use tidewire_outbox::{Capture, Recorder, RecorderOptions, Registry, install};

/// A database for one test, gone with the value.
#[derive(Debug)]
pub struct TestDatabase {
    url: String,
    /// Where a SQLite file lies. A server's database goes with its server.
    folder: Option<TempDir>,
    capture: Capture,
    /// A server of its own.
    _server: Option<Arc<PostgresServer>>,
}

impl TestDatabase {
    /// An empty SQLite file.
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}?mode=rwc", folder.path().join("test.db").display());
        Self { url, folder: Some(folder), capture: Capture::Hooks, _server: None }
    }

    /// An empty PostgreSQL database; `None` where PostgreSQL is not installed.
    pub async fn postgres() -> Option<Self> {
        Some(Self {
            url: PostgresServer::shared().await?.create().await,
            folder: None,
            capture: Capture::Hooks,
            _server: None,
        })
    }

    /// An empty MariaDB database; `None` where MariaDB is not installed.
    pub async fn mariadb() -> Option<Self> {
        Some(Self {
            url: MariadbServer::shared().await?.create().await,
            folder: None,
            capture: Capture::Triggers,
            _server: None,
        })
    }

    /// An empty database on a MariaDB server of the test's own.
    pub async fn mariadb_on(server: &MariadbServer) -> Self {
        Self { url: server.create().await, folder: None, capture: Capture::Log, _server: None }
    }

    /// An empty database on a server of the test's own.
    pub async fn postgres_on(server: &PostgresServer) -> Self {
        Self { url: server.create().await, folder: None, capture: Capture::Triggers, _server: None }
    }

    /// An empty database of the same kind, on a server of its own where it is on one: transactions of other tests hold up nothing there.
    pub async fn alone(&self) -> Self {
        if !self.is("postgres:") {
            return self.another().await;
        }
        let server = Arc::new(PostgresServer::with("").await.expect("it is installed"));
        let database = Self::postgres_on(&server).await.captured_by(self.capture);
        Self { _server: Some(server), ..database }
    }

    /// A PostgreSQL database that is there, by its URL: on a server of the test's own, or by another way to it.
    pub fn at(url: impl Into<String>) -> Self {
        Self { url: url.into(), folder: None, capture: Capture::Hooks, _server: None }
    }

    /// Another empty database of the same kind, captured in the same way.
    pub async fn another(&self) -> Self {
        let other = match self.url.split(':').next() {
            Some("postgres") => Self::postgres().await.expect("its server runs"),
            Some("mysql") => Self::mariadb().await.expect("its server runs"),
            _ => Self::sqlite(),
        };
        other.captured_by(self.capture)
    }

    /// The same database, captured in another way.
    #[must_use]
    pub fn captured_by(mut self, capture: Capture) -> Self {
        self.capture = capture;
        self
    }

    /// How it is captured.
    pub fn capture(&self) -> Capture {
        self.capture
    }

    /// Whether its URL begins with one of these schemes.
    pub fn is(&self, scheme: &str) -> bool {
        self.url.starts_with(scheme)
    }

    /// A SQLite file that begins as a copy of another.
    pub fn sqlite_from(file: &Path) -> Self {
        let database = Self::sqlite();
        std::fs::copy(file, database.path()).unwrap();
        database
    }

    /// Where the database is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The file of a SQLite database.
    pub fn path(&self) -> PathBuf {
        self.folder.as_ref().expect("a SQLite database").path().join("test.db")
    }

    /// A plain connection that records nothing: another program.
    pub async fn plain(&self) -> DatabaseConnection {
        let mut options = ConnectOptions::new(&self.url);
        options.sqlx_logging(false);
        Database::connect(options).await.unwrap()
    }

    /// Installs the outbox, lets `create` make the tables, and opens a recorder.
    pub async fn recorder(&self, registry: Registry, create: impl AsyncFnOnce(&DatabaseConnection)) -> Recorder {
        self.recorder_with(registry, RecorderOptions::default(), create).await
    }

    /// As [`recorder`](Self::recorder), with options.
    pub async fn recorder_with(
        &self,
        registry: Registry,
        mut options: RecorderOptions,
        create: impl AsyncFnOnce(&DatabaseConnection),
    ) -> Recorder {
        options.capture = Some(self.capture);
        let recorder = Recorder::connect_with(&self.url, registry, options).await.unwrap();
        install(recorder.unrecorded()).await.unwrap();
        create(recorder.unrecorded()).await;
        recorder.install_capture().await.unwrap();
        recorder.check().await.unwrap();
        recorder.start_capture().await.unwrap();
        recorder
    }
}
