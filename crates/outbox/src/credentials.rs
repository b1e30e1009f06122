//! What a database's connections are given by its URL, for those that are another crate's: one URL means the same to all. The options of the others tell
//! their password and their files only as a URL again.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use sqlx::ConnectOptions;

use crate::error::{Error, ErrorKind, Result};

pub(crate) fn password(options: &impl ConnectOptions) -> String {
    let url = options.to_url_lossy();
    percent_decode_str(url.password().unwrap_or_default()).decode_utf8_lossy().into_owned()
}

/// A file of certificates or keys, by its name in the URL.
///
/// # Errors
/// [`ErrorKind::Setup`] where it was given by its content.
pub(crate) fn file(options: &impl ConnectOptions, name: &str) -> Result<Option<PathBuf>> {
    let url = options.to_url_lossy();
    let Some((_, value)) = url.query_pairs().find(|(key, _)| key == name) else { return Ok(None) };
    match value.strip_prefix("file: ") {
        Some(path) => Ok(Some(path.into())),
        None => Err(Error::new(
            ErrorKind::Setup,
            format!("capture by the database's own log reads `{name}` from a file; name one in the URL"),
        )),
    }
}
