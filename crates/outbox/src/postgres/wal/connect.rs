//! The replication connection, which is another crate's: its options are made of those of all other connections, so that one URL means the same to
//! both.

use std::time::Duration;

use pgwire_replication::{Lsn, PgWireError, ReplicationConfig, SslMode, TlsConfig};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::slot;
use crate::{
    credentials::{file, password},
    error::{Error, ErrorKind, Result},
    postgres::Postgres,
};

/// How many messages of the log wait to be looked at.
const BUFFER_EVENTS: usize = 64;

pub(super) fn configuration(database: &Postgres, slot: &str, begin: u64) -> Result<ReplicationConfig> {
    let options = database.connections.direct_pool().connect_options();
    let user = options.get_username().to_owned();
    let name = options.get_database().unwrap_or(&user).to_owned();
    let (host, tls) = match options.get_socket() {
        // Nobody listens in on a socket of the machine's.
        Some(folder) => (folder.display().to_string(), TlsConfig::disabled()),
        None => (options.get_host().to_owned(), tls(&options)?),
    };
    let mut config = ReplicationConfig::new(host, &user, password(&*options), name, slot, slot::PUBLICATION);
    config.port = options.get_port();
    config.tls = tls;
    config.start_lsn = Lsn::from_u64(begin);
    config.status_interval = Duration::from_secs(1);
    // Events may be large, and what has been read is appended at once.
    config.buffer_events = BUFFER_EVENTS;
    config.application_name = Some(slot::APPLICATION.to_owned());
    // Values come in the form that the session's settings give them, and the server's own may be any.
    config.options = Some(
        "-c DateStyle=ISO -c IntervalStyle=postgres -c TimeZone=UTC -c bytea_output=hex -c extra_float_digits=1".into(),
    );
    Ok(config)
}

/// What a person has to mend is told apart from what passes. A failed handshake may be either, and only its text says which.
pub(super) fn stream_error(error: PgWireError) -> Error {
    const MEND: [&str; 3] = ["invalid peer certificate", "TLS config error", "server does not support TLS"];
    match &error {
        PgWireError::Tls(text) if MEND.iter().any(|mend| text.contains(mend)) => Error::new(
            ErrorKind::Setup,
            format!(
                "the database's log cannot be read over TLS as the URL says: {text}. (On this connection `verify-ca` looks at the \
                 host's name too, as `verify-full` does, and `sslrootcert` stands in place of all other authorities)"
            ),
        ),
        // What the server says of streams names no rows.
        _ => Error::new(ErrorKind::Database, format!("the database's log could not be streamed: {error}"))
            .with_source(error),
    }
}

/// The same modes. One differs in its meaning, to the safe side: see [`stream_error`].
fn tls(options: &PgConnectOptions) -> Result<TlsConfig> {
    let mode = match options.get_ssl_mode() {
        PgSslMode::Disable | PgSslMode::Allow => SslMode::Disable,
        PgSslMode::Prefer => SslMode::Prefer,
        PgSslMode::Require => SslMode::Require,
        PgSslMode::VerifyCa => SslMode::VerifyCa,
        PgSslMode::VerifyFull => SslMode::VerifyFull,
    };
    Ok(TlsConfig {
        mode,
        ca_pem_path: file(options, "sslrootcert")?,
        client_cert_pem_path: file(options, "sslcert")?,
        client_key_pem_path: file(options, "sslkey")?,
        // Else an address in numbers would be refused, which a certificate may well be for.
        sni_hostname: Some(options.get_host().to_owned()),
    })
}
