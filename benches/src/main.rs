//! Measures Tidewire against the limit and against its peers, in the same run.
//!
//! Machines are shared and noisy, so what counts are the ratios: each measurement alternates with what it is held against, and the median of
//! the rounds is shown. `benches/run` builds everything and runs all of it.

mod fanout;
mod latency;
mod matching;
mod measure;
mod nodes;
mod query;
mod resume;
mod server;
mod servers;
mod startup;
mod tail;
mod writes;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

#[derive(Debug, Parser)]
enum Command {
    /// Writes through the recorder against plain SeaORM
    Writes,
    /// Writes on PostgreSQL, by each capture and by plain SeaORM
    Postgres {
        /// A server where databases can be created, for example `postgres://user@localhost/postgres`
        #[arg(long)]
        server: String,
        /// The id of the server's process on this machine, to measure processor time too
        #[arg(long)]
        process: Option<u32>,
    },
    /// Writes on MariaDB, by each capture and by plain SeaORM
    Mariadb {
        /// A server where databases can be created, for example `mysql://root@localhost/mysql`
        #[arg(long)]
        server: String,
        /// The id of the server's process on this machine, to measure processor time too
        #[arg(long)]
        process: Option<u32>,
    },
    /// Events to many subscribers against a WebSocket that broadcasts the same bytes
    Fanout,
    /// Ten thousand subscriptions that all want something else, and what idle ones weigh
    Distinct,
    /// Ten thousand clients that come back at once, each with a cursor
    Storm {
        /// An empty PostgreSQL or MariaDB database; without it, an SQLite of its own
        #[arg(long)]
        database: Option<String>,
    },
    /// Finding who wants a change among a million shapes
    Matching,
    /// From a commit to a client
    Latency,
    /// Resuming after 100,000 changes against selecting them
    Resume,
    /// A list with relations against the same by hand, by Seaography and by the database
    Query {
        /// A Sakila database
        #[arg(long)]
        sakila: PathBuf,
        /// The built peer
        #[arg(long)]
        seaography: Option<PathBuf>,
    },
    /// Reading the log of a PostgreSQL or MariaDB against selecting and copying its rows
    Tail {
        /// An empty database there
        #[arg(long)]
        database: String,
    },
    /// From a commit on one node of a PostgreSQL to a client of another, and what doorbells cost writers
    Nodes {
        /// An empty PostgreSQL database
        #[arg(long)]
        database: String,
    },
    /// The time to the first answer, and idle memory
    Startup {
        /// The built program
        #[arg(long)]
        tidewire: PathBuf,
    },
    /// Serves what the others measure; they call it
    #[command(hide = true)]
    Serve {
        /// `tidewire` or `limit`
        kind: server::Kind,
        /// The database of `tidewire`
        database: String,
    },
}

fn main() -> Result<()> {
    match Command::parse() {
        // One thread serves, so that its processor time is all there is.
        Command::Serve { kind, database } => measure::one_thread()?.block_on(server::serve(kind, &database)),
        Command::Writes => measure::one_thread()?.block_on(writes::run()),
        Command::Postgres { server, process } => {
            measure::one_thread()?.block_on(servers::run("PostgreSQL", &server, servers::POSTGRES, process))
        }
        Command::Mariadb { server, process } => {
            measure::one_thread()?.block_on(servers::run("MariaDB", &server, servers::MARIADB, process))
        }
        Command::Fanout => measure::one_thread()?.block_on(fanout::run()),
        Command::Distinct => measure::one_thread()?.block_on(fanout::distinct::run()),
        Command::Storm { database } => measure::one_thread()?.block_on(fanout::storm::run(database.as_deref())),
        Command::Matching => measure::one_thread()?.block_on(matching::run()),
        Command::Latency => measure::threads()?.block_on(latency::run()),
        Command::Resume => measure::one_thread()?.block_on(resume::run()),
        Command::Query { sakila, seaography } => {
            measure::one_thread()?.block_on(query::run(&sakila, seaography.as_deref()))
        }
        Command::Tail { database } => measure::one_thread()?.block_on(tail::run(&database)),
        Command::Nodes { database } => measure::threads()?.block_on(nodes::run(&database)),
        Command::Startup { tidewire } => measure::one_thread()?.block_on(startup::run(&tidewire)),
    }
}
