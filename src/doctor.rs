use anyhow::Result;
use migration::{MigrationStatus, Migrator, MigratorTrait};
use sea_orm::{ConnectionTrait, DbBackend};
use tidewire_outbox::{Recorder, SCHEMA_VERSION};

use crate::config::Config;

/// What a check found.
enum Finding {
    Fine(String),
    /// It works, but not as well as it could.
    Lesser(String),
    Wrong(String),
}

/// Looks at everything that sync depends on, prints what it finds, and answers whether all is well.
///
/// # Errors
/// The settings are wrong. What is wrong with the database is a finding.
pub async fn doctor(config: &Config) -> Result<bool> {
    let mut findings = authentication(config).await;
    let url = crate::redacted(&config.database.url);
    let recorder = match crate::connect(config).await {
        Ok(recorder) => recorder,
        Err(error) => {
            findings.push(Finding::Wrong(format!("{error:#}")));
            findings.iter().for_each(print);
            return Ok(false);
        }
    };
    findings.push(Finding::Fine(format!("{url} can be opened")));
    findings.push(outbox(&recorder).await);
    findings.push(migrations(&recorder).await);
    findings.push(capture(&recorder).await);
    findings.extend(doorbells(&recorder).await);
    #[cfg(feature = "relay-nats")]
    findings.extend(relay(&recorder).await);
    findings.extend(database_log(&recorder).await);
    findings.push(retention(&recorder, config).await);
    findings.extend(config.risks().into_iter().map(|risk| Finding::Lesser(risk.into())));
    recorder.close().await;
    findings.iter().for_each(print);
    Ok(findings.iter().all(|finding| !matches!(finding, Finding::Wrong(_))))
}

fn print(finding: &Finding) {
    match finding {
        Finding::Fine(text) => println!("ok     {text}"),
        Finding::Lesser(text) => println!("note   {text}"),
        Finding::Wrong(text) => println!("WRONG  {text}"),
    }
}

/// Who is asked who they are, and whether the keys for it can be had.
async fn authentication(config: &Config) -> Vec<Finding> {
    let options = match config.server() {
        Ok(options) => options,
        Err(error) => return vec![Finding::Wrong(format!("{error:#}"))],
    };
    let Some(authentication) = options.authentication else {
        let text = "there is no authentication ([auth]): whoever reaches the server is anonymous";
        return vec![Finding::Lesser(text.into())];
    };
    let mut findings = vec![Finding::Fine(crate::auth::describe(&authentication))];
    if let Some(jwks) = &authentication.jwks {
        let url = crate::redacted(&config.auth.jwks_url);
        findings.push(match jwks.check().await {
            Ok(keys) => Finding::Fine(format!("{url} publishes {keys} keys that can be used")),
            Err(error) => Finding::Wrong(format!("{url} publishes no keys: {error}")),
        });
        if !config.auth.jwks_url.starts_with("https:") {
            findings.push(Finding::Lesser(format!("{url} is not encrypted: who is on the way can change the keys")));
        }
    }
    let tokens = authentication.jwks.is_some() || !authentication.keys.is_empty();
    if tokens && authentication.audiences.is_empty() {
        let text = "`audiences` in [auth] is empty: tokens that were made for other services are accepted";
        findings.push(Finding::Lesser(text.into()));
    }
    findings
}

async fn outbox(recorder: &Recorder) -> Finding {
    match tidewire_outbox::installed(recorder.unrecorded()).await {
        Ok(0) => Finding::Wrong("there is no outbox. `tidewire migrate up` creates it".into()),
        Ok(SCHEMA_VERSION) => Finding::Fine(format!("the outbox is there, version {SCHEMA_VERSION}")),
        Ok(version) if version < SCHEMA_VERSION => Finding::Wrong(format!(
            "the outbox is of version {version}, and this program works with {SCHEMA_VERSION}. `tidewire migrate up` brings it up"
        )),
        Ok(version) => {
            Finding::Wrong(format!("the outbox is of version {version}, newer than this program. Use a newer program"))
        }
        Err(error) => Finding::Wrong(format!("the outbox cannot be read: {error:?}")),
    }
}

async fn migrations(recorder: &Recorder) -> Finding {
    match Migrator::get_migration_with_status(recorder.unrecorded()).await {
        Ok(all) => {
            let pending: Vec<_> = all
                .iter()
                .filter(|migration| matches!(migration.status(), MigrationStatus::Pending))
                .map(|migration| migration.name().to_owned())
                .collect();
            if pending.is_empty() {
                Finding::Fine(format!("all {} migrations have run", all.len()))
            } else {
                Finding::Wrong(format!(
                    "{} pending: {}. `tidewire migrate up` runs them",
                    pending.len(),
                    pending.join(", ")
                ))
            }
        }
        Err(error) => Finding::Wrong(format!("the migrations cannot be read: {error}")),
    }
}

async fn capture(recorder: &Recorder) -> Finding {
    match recorder.check().await {
        Ok(()) => Finding::Fine(format!("writes of {} entities can be recorded", recorder.catalog().entities().len())),
        Err(error) => Finding::Wrong(format!("writes cannot be recorded: {error:?}")),
    }
}

/// Only several processes on one server have any.
async fn doorbells(recorder: &Recorder) -> Option<Finding> {
    let postgres = recorder.get_database_backend() == DbBackend::Postgres;
    match recorder.log().check_doorbell().await {
        Ok(true) => Some(Finding::Fine("commits of other processes are rung for".into())),
        Ok(false) => {
            let text = "doorbells are off (`doorbell_interval_ms`): writes of other processes are found by looking";
            postgres.then(|| Finding::Lesser(text.into()))
        }
        Err(error) => Some(Finding::Lesser(error.to_string())),
    }
}

/// Only where there is one.
#[cfg(feature = "relay-nats")]
async fn relay(recorder: &Recorder) -> Option<Finding> {
    match recorder.log().check_relay().await {
        Ok(true) => Some(Finding::Fine("the relay can be used".into())),
        Ok(false) => None,
        Err(error) => Some(Finding::Lesser(format!("{error}: each process reads the database"))),
    }
}

/// Only where the database's own log is captured.
async fn database_log(recorder: &Recorder) -> Option<Finding> {
    let status = recorder.log_status().await.ok()??;
    let text = crate::migrate::describe(&status);
    Some(if status.active {
        Finding::Fine(text)
    } else {
        Finding::Wrong(format!("{text}. Is a server running on this database?"))
    })
}

async fn retention(recorder: &Recorder, config: &Config) -> Finding {
    let stats = match recorder.log().stats().await {
        Ok(stats) => stats,
        Err(error) => return Finding::Wrong(format!("the log cannot be read: {error:?}")),
    };
    let age = stats.oldest_at.map_or(0, |oldest| (chrono::Utc::now() - oldest).num_hours());
    let limit = i64::try_from(config.retention.max_age_hours).unwrap_or(i64::MAX);
    // A day of grace: retention runs only while a server does.
    if limit > 0 && age > limit.saturating_add(24) {
        return Finding::Wrong(format!(
            "the oldest change is {age} hours old, and retention is {limit}. Is a server running on this database?"
        ));
    }
    Finding::Fine(format!("the log holds {} changes, the oldest {age} hours old", stats.changes))
}
