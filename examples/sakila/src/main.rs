//! Serves Sakila: `sakila serve --database sqlite://sakila.db --listen 127.0.0.1:8000`.

use anyhow::Result;
use clap::Parser;
use tidewire_axum::{Server, ServerOptions};
use tidewire_graphql::Api;
use tidewire_outbox::{Capture, Recorder, RecorderOptions};
use tokio::net::TcpListener;

/// The Sakila database over GraphQL, with subscriptions that stream every change.
#[derive(Debug, Parser)]
enum Command {
    /// Serve the API
    Serve {
        /// A copy of Sakila, for example `sqlite://sakila.db` or `postgres://localhost/sakila`. The outbox is installed beside its tables
        #[arg(long, value_name = "URL")]
        database: String,
        /// Address and port
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
        listen: String,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().init();
    let Command::Serve { database, listen } = Command::parse();
    let registry = match database.split(':').next() {
        Some("postgres" | "postgresql") => sakila::postgres::registry(),
        Some("mysql" | "mariadb") => sakila::mysql::registry(),
        _ => sakila::registry(),
    };
    let mut options = RecorderOptions::default();
    if database.starts_with("mysql:") || database.starts_with("mariadb:") {
        // Triggers of its own write `film_text`, which hooks would not see there.
        options.capture = Some(Capture::Triggers);
    }
    let recorder = Recorder::connect_with(&database, registry, options).await?;
    tidewire_outbox::install(recorder.unrecorded()).await?;
    recorder.install_capture().await?;
    recorder.check().await?;
    let api = Api::builder(recorder).finish()?;
    let listener = TcpListener::bind(&listen).await?;
    println!("Sakila is served at http://{}", listener.local_addr()?);
    let stop = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    Server::new(api, ServerOptions::default()).serve(listener, stop).await?;
    Ok(())
}
