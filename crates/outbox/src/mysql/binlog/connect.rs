//! The connection that reads the binary log, which is another crate's: its options are made of those of all other connections.

use std::time::Duration;

use mysql_async::{
    BinlogStream, BinlogStreamRequest, ClientIdentity, Conn, Opts, OptsBuilder, SslOpts, prelude::Queryable,
};
use sqlx::{
    MySqlConnection, Row,
    mysql::{MySqlConnectOptions, MySqlSslMode},
};

use super::{events::damaged, place::Position};
use crate::{
    credentials::{file, password},
    error::{Error, ErrorKind, Result},
    mysql::{Mysql, database_error},
};

/// How often the server says that nothing has happened.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The longest event that is read: as long as an event can be, since the server's own limit is for statements, and an update of a row has it twice.
const LONGEST: usize = 1 << 30;

/// Opens a stream that goes on behind a place. `conn` is another connection to the same server.
pub(super) async fn open(database: &Mysql, conn: &mut MySqlConnection, from: &Position) -> Result<BinlogStream> {
    let connect = database.pool.connect_options();
    let tls = tls(&connect, is_encrypted(conn).await?)?;
    let mut stream = Conn::new(options(&connect, tls)).await.map_err(connect_error)?;
    let settings = format!(
        "SET @mariadb_slave_capability = 4, @slave_connect_state = '{}', @slave_gtid_strict_mode = 0, @slave_gtid_ignore_duplicates = 0,
         @master_heartbeat_period = {}",
        from.gtids,
        HEARTBEAT.as_nanos(),
    );
    stream.query_drop(settings).await.map_err(stream_error)?;
    stream.get_binlog_stream(BinlogStreamRequest::new(reader(conn).await?)).await.map_err(stream_error)
}

fn options(connect: &MySqlConnectOptions, tls: Option<SslOpts>) -> Opts {
    OptsBuilder::default()
        .ip_or_hostname(connect.get_host())
        .tcp_port(connect.get_port())
        .prefer_socket(false)
        .socket(connect.get_socket().map(|path| path.display().to_string()))
        .user(Some(connect.get_username()))
        .pass(Some(password(connect)).filter(|password| !password.is_empty()))
        .db_name(connect.get_database())
        .ssl_opts(tls)
        .max_allowed_packet(Some(LONGEST))
        .into()
}

/// The same modes; where the server may choose, what it has chosen for the other connection.
fn tls(connect: &MySqlConnectOptions, is_encrypted: bool) -> Result<Option<SslOpts>> {
    let mode = connect.get_ssl_mode();
    if !is_encrypted || matches!(mode, MySqlSslMode::Disabled) {
        return Ok(None);
    }
    let identity = match (file(connect, "ssl-cert")?, file(connect, "ssl-key")?) {
        (Some(certificate), Some(key)) => Some(ClientIdentity::new(certificate.into(), key.into())),
        _ => None,
    };
    let authorities = file(connect, "ssl-ca")?.into_iter().map(Into::into).collect();
    let verifies = matches!(mode, MySqlSslMode::VerifyCa | MySqlSslMode::VerifyIdentity);
    let tls = SslOpts::default()
        .with_client_identity(identity)
        .with_root_certs(authorities)
        .with_danger_accept_invalid_certs(!verifies)
        .with_danger_skip_domain_validation(!matches!(mode, MySqlSslMode::VerifyIdentity));
    Ok(Some(tls))
}

async fn is_encrypted(conn: &mut MySqlConnection) -> Result<bool> {
    let cipher = sqlx::query("SHOW SESSION STATUS LIKE 'Ssl_cipher'").fetch_optional(conn).await;
    Ok(cipher.map_err(database_error)?.is_some_and(|row| !row.get::<String, _>(1).is_empty()))
}

/// The number by which the server knows this reader. It ends an earlier reader with the same, so it is the database's own.
async fn reader(conn: &mut MySqlConnection) -> Result<u32> {
    const NAME: &str = "SELECT CAST(CRC32(CONCAT(DATABASE(), '/', epoch)) | 0x80000000 AS UNSIGNED) FROM tidewire_log";
    let number = sqlx::query(NAME).fetch_one(conn).await.map_err(database_error)?.get::<u64, _>(0);
    u32::try_from(number).map_err(|_| damaged())
}

/// That the user may not read the log.
pub(super) fn denied(why: &str) -> Error {
    let lets = "`GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.* TO …` lets them";
    Error::new(ErrorKind::Setup, format!("the user may not read the binary log: {lets} ({why})"))
}

/// Who it is, and what they may not do: only a person mends that.
const DENIED: [u16; 4] = [1044, 1045, 1227, 1698];

fn connect_error(error: mysql_async::Error) -> Error {
    match &error {
        mysql_async::Error::Server(refusal) if DENIED.contains(&refusal.code) => {
            let why = format!("the server refuses the connection that reads the binary log: {}", refusal.message);
            Error::new(ErrorKind::Setup, why)
        }
        _ => stream_error(error),
    }
}

pub(super) fn stream_error(error: mysql_async::Error) -> Error {
    match &error {
        mysql_async::Error::Server(refusal) if DENIED.contains(&refusal.code) => denied(&refusal.message),
        mysql_async::Error::Io(failure) if failure.to_string().contains("certificate") => Error::new(
            ErrorKind::Setup,
            format!(
                "the binary log cannot be read over TLS as the URL says: {failure}. (On this connection `VERIFY_CA` looks at the host's name too, \
                 as `VERIFY_IDENTITY` does)"
            ),
        ),
        mysql_async::Error::Io(_) => {
            Error::new(ErrorKind::Unavailable, "the database cannot be reached").with_source(error)
        }
        _ => Error::new(ErrorKind::Database, "the binary log could not be streamed").with_source(error),
    }
}
