//! What a text does, as far as capture by triggers has to know: little, since triggers see what is written however it is written.

use sqlparser::{
    dialect::MySqlDialect,
    tokenizer::{Token, Tokenizer, Whitespace},
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
    let unreadable = || "the statement cannot be read. `Recorder::unrecorded` runs it without a record".to_owned();
    let tokens = Tokenizer::new(&MySqlDialect {}, sql).tokenize().map_err(|_| unreadable())?;
    let mut words: Vec<String> = Vec::new();
    for token in &tokens {
        match token {
            // The server runs what stands in these.
            Token::Whitespace(Whitespace::MultiLineComment(text))
                if text.starts_with('!') || text.starts_with("M!") =>
            {
                return Err(unreadable());
            }
            Token::Whitespace(_) => {}
            Token::Word(word) => words.push(word.value.to_ascii_lowercase()),
            Token::SemiColon => words.push(";".to_owned()),
            Token::AtSign => words.push("@".to_owned()),
            _ => words.push(String::new()),
        }
    }
    let mut effect = Effect::Read;
    for statement in words.split(|word| word == ";").filter(|statement| !statement.is_empty()) {
        let verb = statement[0].as_str();
        if let Some(why) = refusal(verb, statement) {
            return Err(why);
        }
        let reads = match verb {
            "select" | "values" | "table" => !statement.iter().any(|word| word == "into"),
            "show" => true,
            "explain" | "desc" | "describe" => !statement.iter().any(|word| word == "analyze"),
            _ => false,
        };
        if !reads {
            effect = Effect::Write;
        }
    }
    Ok(effect)
}

fn refusal(verb: &str, statement: &[String]) -> Option<String> {
    let has = |wanted: &str| statement.iter().any(|word| word == wanted);
    let upper = verb.to_ascii_uppercase();
    match verb {
        "begin" | "start" | "commit" | "rollback" | "savepoint" | "release" | "xa" => Some(format!(
            "{upper} would steer the transaction under the recorder. Use `begin`, `commit` and `rollback` of the connection"
        )),
        // Each of these commits what is open, or may.
        "create" | "alter" | "drop" | "rename" | "truncate" | "grant" | "revoke" | "lock" | "unlock" | "analyze"
        | "optimize" | "repair" | "check" | "flush" | "reset" | "install" | "uninstall" | "call" | "execute"
        | "prepare" | "deallocate" | "handler" | "change" | "stop" | "shutdown" | "kill" | "use" => Some(format!(
            "{upper} may commit the transaction under the recorder, or change rows unseen. Migrations, and what else needs it, run over \
             `Recorder::unrecorded`"
        )),
        "set" => {
            ["autocommit", "sql_log_bin", "foreign_key_checks", "transaction", "tx_isolation", "sql_mode", "timestamp"]
                .into_iter()
                .find(|word| statement.iter().any(|found| found.trim_start_matches('@') == *word))
                .map(str::to_owned)
                .or_else(|| {
                    statement.iter().find(|word| word.trim_start_matches('@').starts_with("tidewire_")).cloned()
                })
                .map(|name| {
                    format!("SET {name} would change what the recorder relies on. `Recorder::unrecorded` runs it")
                })
        }
        "delete" if has("ignore") => Some(
            "DELETE IGNORE may leave a row in place whose cascades have been recorded. Delete without IGNORE"
                .to_owned(),
        ),
        _ if matches!(verb, "select" | "show" | "explain" | "values" | "table" | "desc" | "describe") => None,
        _ => statement
            .iter()
            .find(|word| word.starts_with("tidewire_"))
            .map(|table| format!("{table}: Tidewire's own tables are written by Tidewire alone")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_writes_and_refusals_are_told_apart() {
        for sql in
            ["SELECT 1", "  values (1)", "EXPLAIN DELETE FROM t", "", "select 'insert into t; commit'", "show tables"]
        {
            assert_eq!(effect(sql), Ok(Effect::Read), "{sql}");
        }
        for sql in [
            "INSERT INTO t VALUES (1)",
            "REPLACE INTO t VALUES ('it\\'s; COMMIT')",
            "WITH a AS (SELECT 1) DELETE FROM t WHERE id IN (SELECT * FROM a)",
            "LOAD DATA INFILE 'x' INTO TABLE t",
            "SET @mine = 1",
        ] {
            assert_eq!(effect(sql), Ok(Effect::Write), "{sql}");
        }
        for sql in [
            "COMMIT",
            "SELECT 1; ROLLBACK",
            "SELECT 1 /*! ; COMMIT */",
            "DELETE FROM tidewire_outbox",
            "UPDATE x.`Tidewire_log` SET epoch = 1",
            "TRUNCATE t",
            "ALTER TABLE t ADD x int",
            "SET autocommit = 0",
            "SET @@session.sql_log_bin = 0",
            "SET @tidewire_actor = 'user:1'",
            "DELETE IGNORE FROM t",
            "CALL p()",
        ] {
            assert!(effect(sql).is_err(), "{sql}");
        }
    }
}
