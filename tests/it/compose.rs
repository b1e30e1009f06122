//! `compose.yaml`, as far as it can be tried where there are no containers: the file says what it should, and the servers of this machine take
//! the settings that it gives to those in its images.

use std::{collections::BTreeSet, fs};

use serde_yaml_ng::Value;
use tidewire_outbox::{Capture, Recorder};
#[cfg(feature = "relay-nats")]
use tidewire_testkit::NatsServer;
use tidewire_testkit::{MariadbServer, PostgresServer, TestDatabase, checker::domain};

fn compose() -> Value {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/compose.yaml")).unwrap();
    serde_yaml_ng::from_str(&text).unwrap()
}

/// The command of a service, without what only makes sense in its image.
fn settings(service: &str) -> Vec<String> {
    let command = compose()["services"][service]["command"].as_sequence().unwrap().clone();
    let words = command.into_iter().map(|word| word.as_str().unwrap().to_owned());
    words.filter(|word| !["postgres", "-c"].contains(&word.as_str()) && !word.starts_with("--store_dir")).collect()
}

fn borrowed(settings: &[String]) -> Vec<&str> {
    settings.iter().map(String::as_str).collect()
}

async fn can_be_captured(url: String, capture: Capture) -> Recorder {
    TestDatabase::at(url).captured_by(capture).recorder(domain::registry(), domain::create).await
}

#[test]
fn every_service_tells_its_health_and_only_this_machine() {
    let compose = compose();
    let services = compose["services"].as_mapping().unwrap();
    let names: BTreeSet<_> = services.keys().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["mariadb", "nats", "postgres"]));
    for (name, service) in services {
        assert!(service["image"].is_string() && service["healthcheck"]["test"].is_sequence(), "{name:?}");
        let ports = service["ports"].as_sequence().unwrap();
        assert!(ports.iter().all(|port| port.as_str().unwrap().starts_with("127.0.0.1:")), "{name:?}");
        for volume in service["volumes"].as_sequence().unwrap() {
            let name = volume.as_str().unwrap().split(':').next().unwrap();
            assert!(compose["volumes"].as_mapping().unwrap().contains_key(name), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_can_be_captured_in_every_way() {
    let settings = settings("postgres");
    let settings = [&["wal_level=replica"], &*borrowed(&settings)].concat();
    let Some(server) = PostgresServer::own(&settings).await else { return };
    for capture in [Capture::Hooks, Capture::Triggers, Capture::Log] {
        can_be_captured(server.create().await, capture).await.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_can_be_captured() {
    let settings = settings("mariadb");
    let Some(server) = MariadbServer::own(&borrowed(&settings)).await else { return };
    can_be_captured(server.create().await, Capture::Triggers).await.close().await;
}

#[cfg(feature = "relay-nats")]
#[tokio::test(flavor = "multi_thread")]
async fn nats_can_be_the_relay() {
    let settings: Vec<_> = settings("nats").into_iter().filter(|word| !word.starts_with("--http_port")).collect();
    let Some(nats) = NatsServer::with(&borrowed(&settings)).await else { return };
    let Some(database) = TestDatabase::postgres().await else { return };
    let mut options = tidewire_outbox::RecorderOptions::default();
    options.log.relay = Some(tidewire_outbox::RelayOptions::new(nats.url()));
    let recorder = Recorder::connect_with(database.url(), domain::registry(), options).await.unwrap();
    assert!(recorder.log().check_relay().await.unwrap());
}
