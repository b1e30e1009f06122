use anyhow::{Context, Result};
use clap::Subcommand;
use migration::{MigrationStatus, Migrator, MigratorTrait};
use tidewire_outbox::{LogStatus, Recorder};

use crate::config::Config;

/// What to do with the migrations.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum MigrateCommand {
    /// Run those that have not run
    Up,
    /// Undo the last one
    Down,
    /// Say which have run
    Status,
}

/// Runs a migration command and prints what it did.
///
/// # Errors
/// The database cannot be opened, or a migration fails.
pub async fn migrate(config: &Config, command: MigrateCommand) -> Result<()> {
    let recorder = crate::connect(config).await?;
    // A migration changes the tables that the recorder watches, so it runs on the plain connection.
    let connection = recorder.unrecorded();
    match command {
        MigrateCommand::Up => {
            let before = Migrator::get_pending_migrations(connection).await?.len();
            up(&recorder).await?;
            println!("{before} migrations run");
        }
        MigrateCommand::Down => {
            Migrator::down(connection, Some(1)).await.context("the last migration cannot be undone")?;
            println!("the last migration undone");
        }
        MigrateCommand::Status => {
            for migration in Migrator::get_migration_with_status(connection).await? {
                let status = match migration.status() {
                    MigrationStatus::Applied => "has run",
                    MigrationStatus::Pending => "pending",
                };
                println!("{status:8}  {}", migration.name());
            }
        }
    }
    recorder.close().await;
    Ok(())
}

pub(crate) async fn up(recorder: &Recorder) -> Result<()> {
    Migrator::up(recorder.unrecorded(), None).await.context("the migrations failed")?;
    recorder.install_capture().await.context("what capture needs cannot be put into the database")
}

/// What to do with what capture keeps in the database.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum CaptureCommand {
    /// Put in place what the `capture` of the settings needs, or bring it up to date
    Install,
    /// Remove it; what other programs write is not recorded from then on
    Remove,
    /// Say whether writes are recorded
    Status,
}

/// Runs a capture command and prints what it did.
///
/// # Errors
/// The database cannot be opened, or may not be changed; for `Status`, why writes are not recorded.
pub async fn capture(config: &Config, command: CaptureCommand) -> Result<()> {
    let recorder = crate::connect(config).await?;
    match command {
        CaptureCommand::Install => recorder.install_capture().await?,
        CaptureCommand::Remove => recorder.remove_capture().await?,
        CaptureCommand::Status => {
            if let Some(status) = recorder.log_status().await? {
                println!("{}", describe(&status));
            }
            recorder.check().await?;
        }
    }
    let entities = recorder.catalog().entities().len();
    println!("writes of {entities} entities are recorded by {}", recorder.capture().await?);
    recorder.close().await;
    Ok(())
}

/// How far the database's log has been read, for a person.
pub(crate) fn describe(status: &LogStatus) -> String {
    let reader = if status.active { "is being read" } else { "is read by nobody" };
    let lag = match (status.lag_bytes, status.lag_seconds) {
        (Some(bytes), Some(seconds)) => format!("{bytes} bytes are unread, the first since about {seconds} s"),
        (Some(_), None) => "all of it has been read".into(),
        (None, _) => "its place in the log is lost".into(),
    };
    let kept = status.kept_bytes.map(|bytes| format!("; the database keeps {bytes} bytes for it")).unwrap_or_default();
    format!("the database's log ({}) {reader}; {lag}{kept}", status.name)
}
