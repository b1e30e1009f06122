//! One URL means the same to all connections to a database: whether they are encrypted, and who is believed to be the server.

use std::path::Path;

use sea_orm::{ActiveModelTrait, Set};
use tidewire_outbox::{Capture, Recorder, RecorderOptions, Step, install};
use tidewire_testkit::{
    Authority, MariadbServer, PostgresServer, TestDatabase, soon,
    zoo::{self, food},
};

use crate::support::Zoo;

/// A way to a server which talks to nobody without TLS.
fn way(url: &str, host: &str, mode: &str, trusted: Option<&Path>) -> String {
    let url = url.replace("127.0.0.1", host);
    let trusted = trusted.map_or_else(String::new, |file| format!("&sslrootcert={}", file.display()));
    format!("{url}?sslmode={mode}{trusted}")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_databases_log_is_read_as_privately_as_everything_else() {
    let authority = Authority::new();
    // GIVEN a server whose certificate is for one of its names
    let Some(server) = PostgresServer::with_tls(&authority, &["localhost"]).await else { return };
    let file = authority.file();
    for (host, mode, trusted) in [
        ("127.0.0.1", "prefer", None),
        ("127.0.0.1", "require", None),
        ("localhost", "verify-ca", Some(&*file)),
        ("localhost", "verify-full", Some(&*file)),
    ] {
        // WHEN it is captured by its log, THEN what is written is told: so both kinds of connections are encrypted
        let url = way(&server.create().await, host, mode, trusted);
        let zoo = Zoo::of(TestDatabase::at(url).captured_by(Capture::Log)).await;
        let log = zoo.recorder.log();
        let mut follower = log.follow_all(log.position().await.unwrap()).await.unwrap();
        let row = food::ActiveModel { name: Set(mode.into()), ..Default::default() };
        row.insert(&zoo.recorder).await.unwrap();
        loop {
            match soon(follower.next()).await.unwrap() {
                Step::Transactions { transactions, .. } if transactions.is_empty() => {}
                Step::Transactions { .. } => break,
                other => panic!("{mode}: {other:?}"),
            }
        }
        zoo.recorder.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_an_address_in_numbers_is_one() {
    let authority = Authority::new();
    let Some(server) = PostgresServer::with_tls(&authority, &["127.0.0.1"]).await else { return };
    let url = way(&server.create().await, "127.0.0.1", "verify-full", Some(&authority.file()));
    let zoo = Zoo::of(TestDatabase::at(url).captured_by(Capture::Log)).await;
    zoo.populate().await;
    zoo.assert_replays().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_may_be_another_is_not_talked_to() {
    let authority = Authority::new();
    let Some(server) = PostgresServer::with_tls(&authority, &["localhost"]).await else { return };
    let url = server.create().await;
    let (file, other) = (authority.file(), Authority::new());
    for (host, mode, trusted) in [
        ("127.0.0.1", "disable", None),
        ("127.0.0.1", "verify-full", Some(&*file)),
        ("localhost", "verify-ca", None),
        ("localhost", "verify-full", Some(&*other.file())),
    ] {
        let way = way(&url, host, mode, trusted);
        let connected = Recorder::connect(&way, zoo::registry()).await;
        let reached = match connected {
            Ok(recorder) => recorder.log().position().await.map(drop),
            Err(error) => Err(error),
        };
        assert!(reached.is_err(), "{host} {mode}");
    }
}

/// There, `verify-ca` is stricter than elsewhere. That is said, and not only that nothing comes.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_certificate_is_told() {
    let authority = Authority::new();
    let Some(server) = PostgresServer::with_tls(&authority, &["localhost"]).await else { return };
    let url = way(&server.create().await, "127.0.0.1", "verify-ca", Some(&authority.file()));
    let zoo = Zoo::of(TestDatabase::at(url).captured_by(Capture::Log)).await;
    let error = zoo.recorder.log().position().await.unwrap_err().to_string();
    assert!(error.contains("certificate") && error.contains("`verify-ca`"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_log_is_read_as_privately_as_everything_else() {
    let authority = Authority::new();
    let Some(server) = MariadbServer::with_tls(&authority, &["localhost"]).await else { return };
    let trusted = format!("&ssl-ca={}", authority.file().display());
    for (host, mode, trusted) in [
        ("127.0.0.1", "PREFERRED", ""),
        ("127.0.0.1", "REQUIRED", ""),
        ("localhost", "VERIFY_CA", &trusted),
        ("localhost", "VERIFY_IDENTITY", &trusted),
    ] {
        let url = format!("{}?ssl-mode={mode}{trusted}", server.create().await.replace("127.0.0.1", host));
        let zoo = Zoo::of(TestDatabase::at(url).captured_by(Capture::Log)).await;
        zoo.populate().await;
        zoo.assert_replays().await;
        zoo.recorder.close().await;
    }
    // There, `VERIFY_CA` is stricter than elsewhere. That is said.
    let url = format!("{}?ssl-mode=VERIFY_CA{trusted}", server.create().await);
    let mut options = RecorderOptions::default();
    options.capture = Some(Capture::Log);
    let recorder = Recorder::connect_with(&url, zoo::registry(), options).await.unwrap();
    install(recorder.unrecorded()).await.unwrap();
    let error = recorder.install_capture().await.unwrap_err().to_string();
    assert!(error.contains("certificate") && error.contains("`VERIFY_CA`"), "{error}");
}
