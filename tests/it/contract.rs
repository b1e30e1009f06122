//! Files that say what the program does, compared with what it does.

use std::{fs, path::Path, time::Duration};

use tidewire::config::{Config, DEFAULTS, PRODUCTION};
use tidewire_axum::ServerOptions;
use tidewire_graphql::{Api, Options, TimeFormat};
use tidewire_outbox::{Recorder, RecorderOptions};

#[tokio::test]
async fn the_schema_file_is_fresh() {
    let file = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("schema.graphql")).unwrap();
    let schema = tidewire::schema().await.unwrap();
    if let Some((at, (file, schema))) = file.lines().zip(schema.lines()).enumerate().find(|(_, (a, b))| a != b) {
        panic!("schema.graphql, line {}: has {file:?}, is {schema:?}. `cargo run -- schema > schema.graphql`", at + 1);
    }
    assert_eq!(file, schema, "`cargo run -- schema > schema.graphql` writes it anew");
}

/// What the file says is what a user of the crates gets who says nothing, apart from what it says is different.
#[test]
fn the_default_settings_are_the_defaults_of_the_crates() {
    let config: Config = Config::load(None).unwrap();
    let recorder = config.recorder().unwrap();
    assert_eq!(format!("{recorder:?}"), format!("{:?}", RecorderOptions::default()));
    assert_eq!(format!("{:?}", config.server().unwrap()), format!("{:?}", ServerOptions::default()));
    let mut graphql = Options::default();
    graphql.times = TimeFormat::Rfc3339;
    assert_eq!(format!("{:?}", config.graphql()), format!("{graphql:?}"));
    assert_eq!(Duration::from_hours(config.retention.max_age_hours), Duration::from_hours(7 * 24));
}

#[test]
fn every_setting_is_documented() {
    let mut documented = false;
    for line in DEFAULTS.lines().chain(PRODUCTION.lines()) {
        let is_setting = !line.starts_with(['#', '[']) && !line.is_empty();
        assert!(documented || !is_setting, "{line} has no comment");
        documented = line.starts_with('#');
    }
}

/// What the file shows of policies can be taken as it stands.
#[tokio::test]
async fn the_policy_that_the_file_shows_is_one() {
    let (_, shown) = DEFAULTS.split_once("# [[policy]]").expect("the file shows one");
    let settings: String = shown
        .lines()
        .filter_map(|line| line.strip_prefix("# ").filter(|line| line.contains(" = ")))
        .fold("[[policy]]\n".to_owned(), |settings, line| settings + line + "\n");
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    fs::write(file.path(), &settings).unwrap();
    let config = Config::load(Some(file.path())).unwrap();
    assert_eq!(config.policy.len(), 1);
    let recorder = Recorder::connect("sqlite::memory:", entity::registry()).await.unwrap();
    Api::builder(recorder).policies(config.policy).finish().unwrap();

    fs::write(file.path(), settings.replace("update", "upddate")).unwrap();
    let error = format!("{:#}", Config::load(Some(file.path())).unwrap_err());
    assert!(error.contains("upddate"), "{error}");
}
