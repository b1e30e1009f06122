//! What a statement does, as far as the recorder must know it.
//!
//! SQLite's capture sees rows and not statements (see [`triggers`](super::triggers)), so this looks at the words of a statement only: to send reads to
//! the readers, and to refuse what would change rows, or the capture itself, behind the triggers' back.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use sqlparser::{
    dialect::SQLiteDialect,
    tokenizer::{Token, Tokenizer},
};

use crate::registry::Catalog;

/// What to do with a text of one or more statements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plan {
    /// It only reads.
    Read,
    /// It writes; so many statements.
    Write {
        /// How many statements the text holds.
        statements: usize,
    },
    /// It cannot be recorded; this is why and what to do.
    Refuse(String),
}

/// Plans by text, each read once.
#[derive(Debug)]
pub(super) struct Plans {
    catalog: Arc<Catalog>,
    /// By whether the triggers see the rows that `REPLACE` removes.
    known: [Mutex<HashMap<String, Plan>>; 2],
}

impl Plans {
    /// How many texts are remembered before all are forgotten and learnt again.
    const CAPACITY: usize = 4096;

    pub(super) fn new(catalog: Arc<Catalog>) -> Self {
        Self { catalog, known: Default::default() }
    }

    pub(super) fn get(&self, sql: &str, replace_is_seen: bool) -> Plan {
        // Most texts are single selects from SeaORM; they need no second look.
        let head = sql.trim_start().as_bytes();
        if head.len() > 6 && head[..6].eq_ignore_ascii_case(b"select") && !sql.contains(';') {
            return Plan::Read;
        }
        let mut known = self.known[usize::from(replace_is_seen)].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = known.get(sql) {
            return plan.clone();
        }
        let plan = plan(sql, &self.catalog, replace_is_seen);
        if known.len() >= Self::CAPACITY {
            known.clear();
        }
        known.insert(sql.to_owned(), plan.clone());
        plan
    }
}

/// Reads the plan for a text. `replace_is_seen` says whether the triggers see the rows that `REPLACE` removes.
fn plan(sql: &str, catalog: &Catalog, replace_is_seen: bool) -> Plan {
    let Ok(tokens) = Tokenizer::new(&SQLiteDialect {}, sql).tokenize() else {
        return Plan::Refuse(format!("a statement could not be read. {UNRECORDED}"));
    };
    let tokens: Vec<Token> = tokens.into_iter().filter(|token| !matches!(token, Token::Whitespace(_))).collect();
    let (mut statements, mut writes) = (0, false);
    for statement in tokens.split(|token| *token == Token::SemiColon).filter(|tokens| !tokens.is_empty()) {
        statements += 1;
        match (Words { tokens: statement, catalog, replace_is_seen }).effect() {
            Ok(effect) => writes |= effect == Effect::Write,
            Err(why) => return Plan::Refuse(why),
        }
    }
    if writes { Plan::Write { statements } } else { Plan::Read }
}

const UNRECORDED: &str = "To run it without recording, use the connection that `Recorder::unrecorded` gives";

#[derive(PartialEq, Eq)]
enum Effect {
    Read,
    Write,
}

struct Words<'a> {
    tokens: &'a [Token],
    catalog: &'a Catalog,
    replace_is_seen: bool,
}

impl Words<'_> {
    fn effect(&self) -> Result<Effect, String> {
        let verb = self.verb();
        match verb.as_str() {
            "SELECT" | "VALUES" | "EXPLAIN" => Ok(Effect::Read),
            "PRAGMA" => self.pragma(),
            "INSERT" | "REPLACE" | "UPDATE" | "DELETE" => self.write(&verb),
            "CREATE" | "DROP" | "ALTER" => self.definition(&verb),
            "ANALYZE" | "REINDEX" => Ok(Effect::Write),
            "BEGIN" | "COMMIT" | "END" | "ROLLBACK" | "SAVEPOINT" | "RELEASE" => Err(format!(
                "{verb} as a statement would end or nest a transaction without the recorder. Use `TransactionTrait::begin`, `commit` and `rollback`"
            )),
            _ => Err(format!("a {verb} statement cannot be recorded. {UNRECORDED}")),
        }
    }

    /// The word that says what the statement does; behind `WITH`, the first such word outside all parentheses.
    fn verb(&self) -> String {
        let first = self.word(0);
        if first != "WITH" {
            return first;
        }
        let words = self.outside_brackets().map(|index| self.word(index));
        let is_verb =
            |word: &String| matches!(word.as_str(), "SELECT" | "VALUES" | "INSERT" | "REPLACE" | "UPDATE" | "DELETE");
        words.into_iter().find(is_verb).unwrap_or(first)
    }

    fn write(&self, verb: &str) -> Result<Effect, String> {
        let start = self.outside_brackets().find(|&index| self.word(index) == verb).unwrap_or(0);
        let mut at = start + 1;
        let mut replaces = verb == "REPLACE";
        if self.word(at) == "OR" {
            match self.word(at + 1).as_str() {
                "REPLACE" => replaces = true,
                conflict @ ("FAIL" | "ROLLBACK") => {
                    return Err(format!(
                        "{verb} OR {conflict} would leave a half-done statement or end the transaction. Use {verb} OR ABORT, or an upsert"
                    ));
                }
                _ => {}
            }
            at += 2;
        }
        if matches!(self.word(at).as_str(), "INTO" | "FROM") {
            at += 1;
        }
        let table = self.name(at);
        if is_own(&table) {
            return Err(format!("{verb} on {table}: Tidewire's own tables are written by Tidewire alone"));
        }
        if replaces && !self.replace_is_seen && self.catalog.find_ignoring_case(&table).is_some() {
            return Err(format!(
                "{verb} on {table} may remove rows unseen, because the database has triggers of its own. Use an upsert (`on_conflict`) instead"
            ));
        }
        Ok(Effect::Write)
    }

    /// New tables, indexes and views change no row. Everything else that changes the schema may, or may blind the triggers.
    fn definition(&self, verb: &str) -> Result<Effect, String> {
        let what = (1..self.tokens.len())
            .map(|index| self.word(index))
            .find(|word| matches!(word.as_str(), "TABLE" | "INDEX" | "VIEW" | "TRIGGER"))
            .unwrap_or_default();
        let place = self.tokens.iter().position(|token| matches!(token, Token::LParen)).unwrap_or(self.tokens.len());
        if verb == "CREATE" && (1..place).any(|index| matches!(self.word(index).as_str(), "TEMP" | "TEMPORARY")) {
            return Err(
                "CREATE TEMP would hide a table from the connection that captures, and others would not see it. Use \
                        a table of the database"
                    .into(),
            );
        }
        match (verb, what.as_str()) {
            ("CREATE", "TABLE" | "INDEX" | "VIEW") | ("DROP", "INDEX" | "VIEW") => Ok(Effect::Write),
            _ => {
                Err(format!("{verb} {what} changes the schema of recorded tables. Run it as a migration. {UNRECORDED}"))
            }
        }
    }

    fn pragma(&self) -> Result<Effect, String> {
        const ABOUT_A_NAME: &[&str] = &[
            "TABLE_INFO",
            "TABLE_XINFO",
            "TABLE_LIST",
            "INDEX_LIST",
            "INDEX_INFO",
            "INDEX_XINFO",
            "FOREIGN_KEY_LIST",
            "FOREIGN_KEY_CHECK",
            "INTEGRITY_CHECK",
            "QUICK_CHECK",
        ];
        const PLAIN: &[&str] = &[
            "DATABASE_LIST",
            "COLLATION_LIST",
            "FUNCTION_LIST",
            "COMPILE_OPTIONS",
            "DATA_VERSION",
            "SCHEMA_VERSION",
            "USER_VERSION",
            "JOURNAL_MODE",
            "ENCODING",
            "PAGE_COUNT",
            "PAGE_SIZE",
            "FREELIST_COUNT",
            "FOREIGN_KEYS",
            "BUSY_TIMEOUT",
            "SYNCHRONOUS",
        ];
        let name = self.name(1).to_ascii_uppercase();
        let has_argument = self.tokens.iter().any(|token| matches!(token, Token::Eq | Token::LParen));
        if ABOUT_A_NAME.contains(&name.as_str()) || (PLAIN.contains(&name.as_str()) && !has_argument) {
            return Ok(Effect::Read);
        }
        Err(format!("PRAGMA {name} may change how the connection captures. {UNRECORDED}"))
    }

    /// The word at a place, in upper case; empty where there is none or it is quoted.
    fn word(&self, index: usize) -> String {
        match self.tokens.get(index) {
            Some(Token::Word(word)) if word.quote_style.is_none() => word.value.to_ascii_uppercase(),
            _ => String::new(),
        }
    }

    /// The places of the tokens that stand in no brackets.
    fn outside_brackets(&self) -> impl Iterator<Item = usize> {
        let mut depth = 0_u32;
        self.tokens.iter().enumerate().filter_map(move |(index, token)| {
            match token {
                Token::LParen => depth += 1,
                Token::RParen => depth = depth.saturating_sub(1),
                _ => return (depth == 0).then_some(index),
            }
            None
        })
    }

    /// The last part of the (possibly qualified, possibly quoted) name at a place.
    fn name(&self, mut index: usize) -> String {
        while self.tokens.get(index + 1) == Some(&Token::Period) {
            index += 2;
        }
        match self.tokens.get(index) {
            Some(Token::Word(word)) => word.value.clone(),
            Some(Token::SingleQuotedString(name)) => name.clone(),
            _ => String::new(),
        }
    }
}

/// Whether a name is of one of Tidewire's own tables. SQLite leaves the case of names aside.
fn is_own(name: &str) -> bool {
    name.get(..9).is_some_and(|start| start.eq_ignore_ascii_case("tidewire_"))
}

/// How a table's columns collate, read from its `CREATE TABLE` statement: column name in lower case, collation name in upper case.
pub(super) fn collations(create_table: &str) -> Vec<(String, String)> {
    let Ok(tokens) = Tokenizer::new(&SQLiteDialect {}, create_table).tokenize() else { return Vec::new() };
    let mut found = Vec::new();
    let mut depth = 0_u32;
    let mut column: Option<String> = None;
    let mut after_collate = false;
    for token in tokens {
        match token {
            Token::Whitespace(_) => {}
            Token::LParen => {
                depth += 1;
            }
            Token::RParen => depth = depth.saturating_sub(1),
            Token::Comma if depth == 1 => column = None,
            Token::Word(word) if depth == 1 => {
                if after_collate {
                    found.extend(column.clone().map(|column| (column, word.value.to_ascii_uppercase())));
                    after_collate = false;
                } else if column.is_none() {
                    column = Some(word.value.to_ascii_lowercase());
                } else {
                    after_collate = word.quote_style.is_none() && word.value.eq_ignore_ascii_case("collate");
                }
            }
            _ => {}
        }
    }
    found
}

/// Whether a text (a trigger's, a table's) resolves conflicts in a way that removes rows or leaves statements half done.
pub(super) fn resolves_conflicts_unseen(sql: &str) -> bool {
    let Ok(tokens) = Tokenizer::new(&SQLiteDialect {}, sql).tokenize() else { return true };
    let words: Vec<String> = tokens
        .into_iter()
        .filter(|token| !matches!(token, Token::Whitespace(_)))
        .map(|token| match token {
            Token::Word(word) if word.quote_style.is_none() => word.value.to_ascii_uppercase(),
            other => other.to_string(),
        })
        .collect();
    words.windows(2).any(|pair| {
        let (first, second) = (pair[0].as_str(), pair[1].as_str());
        matches!((first, second), ("OR" | "CONFLICT", "REPLACE" | "FAIL" | "ROLLBACK") | ("REPLACE", "INTO"))
    }) || words.windows(3).any(|three| three[0] == "RAISE" && matches!(three[2].as_str(), "FAIL" | "ROLLBACK"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Registry;

    fn of(sql: &str) -> Plan {
        plan(sql, &Registry::new().catalog().expect("an empty registry"), true)
    }

    #[test]
    fn reads_and_writes_are_told_apart() {
        for sql in [
            "SELECT 1",
            "  select * from t where a = ';'",
            "WITH a AS (DELETE_ME) SELECT 1",
            "WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n) SELECT x FROM n",
            "EXPLAIN DELETE FROM t",
            "PRAGMA table_info('t')",
            "-- nothing\nVALUES (1)",
            "",
        ] {
            assert_eq!(of(sql), Plan::Read, "{sql}");
        }
        for (sql, statements) in [
            ("INSERT INTO t VALUES (1)", 1),
            ("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", 1),
            ("/* x */ update t set a = 1;", 1),
            ("DELETE FROM t; DELETE FROM u", 2),
            ("CREATE TABLE IF NOT EXISTS t (a)", 1),
        ] {
            assert_eq!(of(sql), Plan::Write { statements }, "{sql}");
        }
    }

    #[test]
    fn what_cannot_be_recorded_is_refused() {
        for sql in [
            "BEGIN",
            "COMMIT",
            "SELECT 1; ROLLBACK",
            "ATTACH 'x' AS y",
            "DROP TABLE t",
            "ALTER TABLE t ADD COLUMN a",
            "CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END",
            "PRAGMA recursive_triggers = OFF",
            "PRAGMA foreign_keys(0)",
            "INSERT OR FAIL INTO t VALUES (1)",
            "DELETE FROM tidewire_outbox",
            "DELETE FROM TIDEWIRE_OUTBOX",
            "WITH a AS (SELECT replace('a', 'b', 'c')) REPLACE INTO \"Tidewire_log\" VALUES (1)",
            "CREATE TEMP TABLE t (a)",
            "CREATE TEMPORARY VIEW t AS SELECT 1",
            "CREATE TABLE temp.t (a)",
            "UPDATE main.\"tidewire_outbox\" SET seq = 1",
            "VACUUM",
            "INSERT INTO t VALUES ('open",
            "/* open",
        ] {
            assert!(matches!(of(sql), Plan::Refuse(_)), "{sql}");
        }
    }

    #[test]
    fn collations_are_found_in_a_table_definition() {
        let sql = "CREATE TABLE t (a TEXT COLLATE NOCASE, \"b\" VARCHAR(10) DEFAULT (lower('x,y')) NOT NULL COLLATE rtrim, c TEXT)";
        assert_eq!(collations(sql), [("a".into(), "NOCASE".into()), ("b".into(), "RTRIM".into())]);
    }
}
