//! The program itself, as a process.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidewire_testkit::soon;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

/// The built program.
pub(crate) const TIDEWIRE: &str = env!("CARGO_BIN_EXE_tidewire");

/// A folder for one test to work in, with a database in it.
pub(crate) struct Workplace(TempDir);

impl Workplace {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// The database's file, which the program creates where it is not there.
    pub(crate) fn file(&self) -> PathBuf {
        self.path().join("tidewire.db")
    }

    /// Settings for the programs in this folder.
    pub(crate) fn settings(&self, toml: &str) {
        std::fs::write(self.path().join("tidewire.toml"), toml).unwrap();
    }

    /// The program with these arguments, in this folder.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(TIDEWIRE);
        command.args(arguments).current_dir(self.path()).kill_on_drop(true).stdin(Stdio::null());
        command
    }

    /// Runs the program to its end; gives whether it succeeded and what it printed, to either side.
    pub(crate) async fn run(&self, arguments: &[&str]) -> (bool, String) {
        let output = soon(self.command(arguments).output()).await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.success(), text)
    }

    /// Runs the program to its end, which must be a good one; gives what it printed.
    pub(crate) async fn succeed(&self, arguments: &[&str]) -> String {
        let (success, text) = self.run(arguments).await;
        assert!(success, "{arguments:?}: {text}");
        text
    }

    /// A migrated database with this many tasks.
    pub(crate) async fn seed(&self, rows: usize) {
        self.succeed(&["migrate", "up"]).await;
        self.succeed(&["seed", "--rows", &rows.to_string()]).await;
    }

    /// A server on a free port.
    pub(crate) async fn serve(&self) -> Running {
        Running::start(self.command(&["serve", "--listen", "127.0.0.1:0"])).await
    }
}

/// A server that has said where it listens. Killed with the value.
pub(crate) struct Running {
    pub(crate) process: Child,
    /// `127.0.0.1:43210`
    pub(crate) address: String,
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Running {
    pub(crate) async fn start(mut command: Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = soon(async {
            while let Some(line) = stdout.next_line().await.unwrap() {
                if let Some((_, url)) = line.split_once("GraphQL ") {
                    return url.trim().trim_start_matches("http://").trim_end_matches("/graphql").to_owned();
                }
            }
            panic!("the server ended before it listened");
        })
        .await;
        Self { process, address, _stdout: stdout }
    }

    pub(crate) fn http(&self) -> String {
        format!("http://{}/graphql", self.address)
    }

    pub(crate) fn websocket(&self) -> String {
        format!("ws://{}/graphql", self.address)
    }

    /// The answer to a document, errors and all; or why there was none.
    pub(crate) async fn try_ask(&self, query: &str, variables: Value) -> reqwest::Result<Value> {
        let body = json!({ "query": query, "variables": variables });
        let response = soon(reqwest::Client::new().post(self.http()).json(&body).send()).await?;
        soon(response.json()).await
    }

    /// The answer to a document, errors and all.
    pub(crate) async fn ask(&self, query: &str, variables: Value) -> Value {
        self.try_ask(query, variables).await.unwrap()
    }

    /// The data of a document that must succeed.
    pub(crate) async fn data(&self, query: &str, variables: Value) -> Value {
        let mut answer = self.ask(query, variables).await;
        assert!(answer.get("errors").is_none(), "{answer}");
        answer["data"].take()
    }

    /// Gets a page.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let response = soon(reqwest::get(format!("http://{}{path}", self.address))).await.unwrap();
        (response.status().as_u16(), soon(response.text()).await.unwrap())
    }

    /// Sends a signal, by its name without `SIG`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.process.id().expect("it still runs").to_string();
        let status = std::process::Command::new("kill").args(["-s", name, &id]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end; gives whether it was a good one.
    pub(crate) async fn ended(mut self) -> bool {
        soon(self.process.wait()).await.unwrap().success()
    }

    /// How much memory it holds, in bytes.
    #[cfg(target_os = "linux")]
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}
