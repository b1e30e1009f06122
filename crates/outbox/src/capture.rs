use std::{fmt, str::FromStr};

use crate::error::{Error, ErrorKind};

/// How changes get into the outbox. The stream is the same for all.
///
/// A database has one at a time, and says itself which: [`Recorder::install_capture`](crate::Recorder::install_capture) changes it. Programs
/// that write should be stopped while it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Capture {
    /// The recorder records what is written through it. Nothing is needed in the database; what other programs write is not seen.
    #[default]
    Hooks,
    /// Triggers in the database record what anybody writes.
    Triggers,
    /// The database's own log (WAL, binlog) is read by one node at a time, which records what anybody has written.
    Log,
}

impl Capture {
    const NAMES: [(Self, &str); 3] = [(Self::Hooks, "hooks"), (Self::Triggers, "triggers"), (Self::Log, "log")];
}

impl fmt::Display for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, name) = Self::NAMES.iter().find(|(capture, _)| capture == self).expect("all have names");
        f.write_str(name)
    }
}

impl FromStr for Capture {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::NAMES.iter().find(|(_, name)| *name == text);
        found.map(|(capture, _)| *capture).ok_or_else(|| {
            Error::new(ErrorKind::Setup, format!("{text:?} is no way of capture; hooks, triggers and log are"))
        })
    }
}

/// How far the database's own log has been read into the outbox, under [`Capture::Log`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LogStatus {
    /// By what name the database has it: of the replication slot that keeps it for us, or of the file up to which it has been read.
    pub name: String,
    /// Whether a node reads it now.
    pub active: bool,
    /// How much the database has written since what was read last, in bytes; `None` where it keeps nothing for us any more.
    pub lag_bytes: Option<u64>,
    /// How long ago that was read, in seconds, where there is something to read.
    pub lag_seconds: Option<u64>,
    /// How much of its log the database keeps for us, in bytes; `None` where it keeps files for a time, whoever has read them.
    pub kept_bytes: Option<u64>,
    /// What keeps it from being read.
    pub trouble: Option<String>,
}

/// That a database is captured in one way and the settings say another.
pub(crate) fn mismatch(found: Capture, wanted: Capture) -> Error {
    Error::new(
        ErrorKind::Setup,
        format!(
            "the database is captured by {found}, and the settings say {wanted}. `tidewire capture install` changes the database, or \
             `Recorder::install_capture` from a program"
        ),
    )
}
