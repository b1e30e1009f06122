//! What a text does, as far as every capture has to know it. Triggers see what is written however it is written.

use crate::{
    error::{Error, ErrorKind, Result},
    hooks::{Effect, Piece, Script, Syntax, Texts, read},
};

/// Why a statement is refused whatever the capture: it would steer the transaction under the recorder, blind the triggers or write Tidewire's
/// own tables.
pub(super) fn refusal(piece: &Piece) -> Option<String> {
    match &piece.effect {
        Effect::Control(verb) => {
            return Some(format!(
                "{verb} would steer the transaction under the recorder. Use `begin`, `commit` and `rollback` of the connection"
            ));
        }
        Effect::Unreadable => {
            return Some("the statement cannot be read. `Recorder::unrecorded` runs it without a record".into());
        }
        Effect::Read if piece.nested.is_empty() => {}
        Effect::Read | Effect::Write(_) | Effect::JoinedWrite(_) | Effect::Opaque { .. } => {
            if let Some(table) = &piece.own {
                return Some(format!("{table}: Tidewire's own tables are written by Tidewire alone"));
            }
        }
    }
    if piece.settings.iter().any(|name| name == "session_replication_role") || disables_triggers(piece) {
        return Some("this would stop the triggers that record. `Recorder::unrecorded` runs it".into());
    }
    None
}

fn disables_triggers(piece: &Piece) -> bool {
    let Effect::Opaque { what, tables: Some(names) } = &piece.effect else { return false };
    let has = |word: &str| names.iter().any(|name| name.name == word);
    what.starts_with("ALTER") && has("disable") && has("trigger")
}

/// Texts that were read.
#[derive(Debug, Default)]
pub(super) struct Scripts(Texts<Script>);

impl Scripts {
    /// Whether running a text may write: a ring of the doorbell for nothing costs a look.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] with the reason.
    pub(super) fn writes(&self, sql: &str) -> Result<bool> {
        let script = self.0.get(sql, || read(sql, Syntax::Postgres));
        if let Some(why) = script.pieces.iter().find_map(refusal) {
            return Err(Error::new(ErrorKind::Refused, why));
        }
        Ok(script.pieces.iter().any(|piece| piece.effect != Effect::Read || !piece.nested.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effect(sql: &str) -> Option<bool> {
        Scripts::default().writes(sql).ok()
    }

    #[test]
    fn reads_writes_and_refusals_are_told_apart() {
        for sql in ["SELECT 1", "  values (1)", "EXPLAIN DELETE FROM t", "", "select 'insert into t; commit'"] {
            assert_eq!(effect(sql), Some(false), "{sql}");
        }
        for sql in [
            "INSERT INTO t VALUES (1)",
            "WITH a AS (DELETE FROM t RETURNING *) SELECT * FROM a",
            "SELECT * INTO u FROM t",
            "EXPLAIN ANALYZE DELETE FROM t",
            "TRUNCATE t",
            "DO $$ BEGIN COMMIT; END $$",
        ] {
            assert_eq!(effect(sql), Some(true), "{sql}");
        }
        for sql in [
            "COMMIT",
            "SELECT 1; ROLLBACK",
            "DELETE FROM tidewire_outbox",
            "UPDATE public.\"tidewire_log\" SET epoch = 1",
            "ALTER TABLE t DISABLE TRIGGER ALL",
            "SET session_replication_role = replica",
        ] {
            assert_eq!(effect(sql), None, "{sql}");
        }
    }
}
