//! The command line of `tidewire`.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use tidewire::{
    CaptureCommand, ExplainOptions, KeyCommand, MigrateCommand, TailOptions,
    config::{Config, Format},
};

/// Serves SQL tables over GraphQL, with subscriptions that stream every change.
///
/// Without a command: migrates and seeds a SQLite file in this folder if it is not there yet, and serves the demo.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Global {
    /// A file with settings; `config.default.toml` in the source shows them all
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The database, for example `sqlite://tidewire.db?mode=rwc` `postgres://user@host/database` or `mysql://user@host/database`
    #[arg(long, global = true, value_name = "URL")]
    database: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API
    Serve {
        /// Address and port, for example `127.0.0.1:8000`
        #[arg(long, value_name = "ADDR")]
        listen: Option<String>,
    },
    /// Bring the database's tables up to date, or back
    Migrate {
        #[command(subcommand)]
        command: MigrateCommand,
    },
    /// Put what capture needs into the database, or take it out
    Capture {
        #[command(subcommand)]
        command: CaptureCommand,
    },
    /// Fill an empty database with rows that look real, the same each time
    Seed {
        /// How many tasks; everything else in proportion
        #[arg(long, default_value_t = 200, value_name = "N")]
        rows: usize,
    },
    /// Print the GraphQL schema
    Schema,
    /// Print changes as they happen
    Tail(TailOptions),
    /// Say why a subscriber gets changes, or does not
    Explain(ExplainOptions),
    /// Make keys for services
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Look for what is wrong with the database and the settings
    Doctor,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", reasons(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and what caused it, without repeating what has been said: some errors show their cause in their own text.
fn reasons(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&cause);
        }
    }
    text
}

async fn run(cli: Cli) -> Result<ExitCode> {
    let mut config = Config::load(cli.global.config.as_deref())?;
    if let Some(url) = cli.global.database {
        config.database.url = url;
    }
    match cli.command {
        None => {
            start_logging(&config)?;
            serve(config, true).await?;
        }
        Some(Command::Serve { listen }) => {
            if let Some(listen) = listen {
                config.server.listen = listen;
            }
            start_logging(&config)?;
            serve(config, false).await?;
        }
        Some(Command::Migrate { command }) => tidewire::migrate(&config, command).await?,
        Some(Command::Capture { command }) => tidewire::capture(&config, command).await?,
        Some(Command::Seed { rows }) => {
            let recorder = tidewire::connect(&config).await?;
            let seeded = tidewire::seed(&recorder, rows).await?;
            recorder.close().await;
            println!("{seeded}");
        }
        Some(Command::Schema) => print!("{}", tidewire::schema().await?),
        Some(Command::Tail(options)) => tidewire::tail(&config, options).await?,
        Some(Command::Explain(options)) => print!("{}", tidewire::explain(&config, options).await?),
        Some(Command::Key { command }) => print!("{}", tidewire::key(&command)?),
        Some(Command::Doctor) => {
            let healthy = tidewire::doctor(&config).await?;
            return Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: Config, seed: bool) -> Result<()> {
    let app = tidewire::start(&config, seed).await?;
    println!("{}", app.where_to_look());
    app.run(stop_signal()).await
}

/// Resolves when the process is asked to stop.
async fn stop_signal() {
    let interrupt = async {
        // Without a handler the default action ends the process, which is what the signal asks for.
        let _ = tokio::signal::ctrl_c().await;
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}

fn start_logging(config: &Config) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::builder().parse(&config.logging.filter)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.logging.format {
        Format::Pretty => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        Format::Json => builder.json().init(),
    }
    Ok(())
}
