//! What a cursor may name where a server numbers its transactions itself, and gives numbers again: PostgreSQL and MariaDB. Each says in its own
//! `epoch` module when an epoch begins.

use crate::{
    cursor::{Cursor, Epoch},
    error::{Error, ErrorKind},
};

/// The epochs that cursors may name.
#[derive(Debug, Clone)]
pub(crate) struct History {
    /// The one that is now.
    pub(crate) epoch: Epoch,
    /// Those before it, each with the last number in it.
    pub(crate) ended: Vec<(Epoch, u64)>,
}

impl History {
    /// How many epochs that have ended are remembered.
    pub(crate) const REMEMBERED: usize = 100;

    /// Whether the cursor's holder has seen nothing that is not of this history, as far as that is known without a look.
    pub(crate) fn has(&self, cursor: &Cursor) -> bool {
        let Some((epoch, last)) = cursor.last() else { return *cursor == Cursor::start() };
        epoch == self.epoch || self.ended.iter().any(|(ended, through)| *ended == epoch && last <= *through)
    }
}

/// What somebody is told in whose middle the history has ended.
pub(crate) fn begun_anew() -> Error {
    Error::new(ErrorKind::Unavailable, "the database was started again meanwhile; try again")
}
