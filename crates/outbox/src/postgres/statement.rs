//! What a text does, as far as capture by triggers has to know: little, since triggers see what is written however it is written.

use sqlparser::{
    dialect::PostgreSqlDialect,
    tokenizer::{Token, Tokenizer},
};

/// What running a text can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Read,
    /// It may write; a ring of the doorbell for nothing costs a look.
    Write,
}

/// Tells reads from writes, and refuses what would steer the transaction under the recorder, blind the triggers or write Tidewire's tables.
pub(super) fn effect(sql: &str) -> Result<Effect, String> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql)
        .tokenize()
        .map_err(|_| "the statement cannot be read. `Recorder::unrecorded` runs it without a record".to_owned())?;
    let words: Vec<String> = tokens
        .iter()
        .filter(|token| !matches!(token, Token::Whitespace(_)))
        .map(|token| match token {
            Token::Word(word) if word.quote_style.is_none() => word.value.to_ascii_lowercase(),
            Token::Word(word) => word.value.clone(),
            Token::SemiColon => ";".to_owned(),
            _ => String::new(),
        })
        .collect();
    let mut effect = Effect::Read;
    for statement in words.split(|word| word == ";").filter(|statement| !statement.is_empty()) {
        match statement[0].as_str() {
            verb @ ("begin" | "start" | "commit" | "end" | "rollback" | "abort" | "savepoint" | "release"
            | "prepare") => {
                return Err(format!(
                    "{} would steer the transaction under the recorder. Use `begin`, `commit` and `rollback` of the connection",
                    verb.to_ascii_uppercase()
                ));
            }
            "select" | "values" | "show" | "table" if !statement.iter().any(|word| word == "into") => {}
            "explain" if !statement.iter().any(|word| word.starts_with("analy")) => {}
            _ => {
                effect = Effect::Write;
                if let Some(table) = statement.iter().find(|word| word.starts_with("tidewire_")) {
                    return Err(format!("{table}: Tidewire's own tables are written by Tidewire alone"));
                }
            }
        }
        let blinds = |pair: &[String]| matches!(pair[0].as_str(), "disable") && pair[1] == "trigger";
        if statement.iter().any(|word| word == "session_replication_role") || statement.windows(2).any(blinds) {
            return Err("this would stop the triggers that record. `Recorder::unrecorded` runs it".to_owned());
        }
    }
    Ok(effect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_writes_and_refusals_are_told_apart() {
        for sql in ["SELECT 1", "  values (1)", "EXPLAIN DELETE FROM t", "", "select 'insert into t; commit'"] {
            assert_eq!(effect(sql), Ok(Effect::Read), "{sql}");
        }
        for sql in [
            "INSERT INTO t VALUES (1)",
            "WITH a AS (DELETE FROM t RETURNING *) SELECT * FROM a",
            "SELECT * INTO u FROM t",
            "EXPLAIN ANALYZE DELETE FROM t",
            "TRUNCATE t",
            "DO $$ BEGIN COMMIT; END $$",
        ] {
            assert_eq!(effect(sql), Ok(Effect::Write), "{sql}");
        }
        for sql in [
            "COMMIT",
            "SELECT 1; ROLLBACK",
            "DELETE FROM tidewire_outbox",
            "UPDATE public.\"tidewire_log\" SET epoch = 1",
            "ALTER TABLE t DISABLE TRIGGER ALL",
            "SET session_replication_role = replica",
        ] {
            assert!(effect(sql).is_err(), "{sql}");
        }
    }
}
