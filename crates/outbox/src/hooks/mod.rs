//! What a text of SQL writes, as far as capture must know it.
//!
//! A text is cut into its statements, and each write into its clauses, by its words alone. Clauses are the caller's own text, byte for byte:
//! nothing is ever written anew from a syntax tree, so what the database runs is what the caller said. What cannot be cut this way is not guessed
//! at: it is [`Effect::Opaque`], and a capture that must know the rows refuses it.
//!
//! The words are those of PostgreSQL, and of MySQL and MariaDB. Whether a name is a synced table's is not decided here: only the database
//! knows what a name means.

mod lexer;
mod reader;
mod script;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

pub(crate) use self::{
    lexer::Syntax,
    script::{Action, Assignment, Conflict, Effect, Piece, Script, TableName, Verb, With, Write},
};

/// Scripts by text, each read once.
#[derive(Debug)]
pub(crate) struct Scripts {
    syntax: Syntax,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    scripts: HashMap<String, Arc<Script>>,
    bytes: usize,
}

/// How many bytes of texts are remembered before all are forgotten and learnt again: programs that write values into their texts never say the same
/// one twice.
const CAPACITY: usize = 8 << 20;

impl Scripts {
    pub(crate) fn new(syntax: Syntax) -> Self {
        Self { syntax, known: Mutex::default() }
    }

    /// Reads a text, or remembers it.
    pub(crate) fn get(&self, sql: &str) -> Arc<Script> {
        if let Some(script) = self.known().scripts.get(sql) {
            return Arc::clone(script);
        }
        let script = Arc::new(reader::read(sql, self.syntax));
        let mut known = self.known();
        if known.bytes + sql.len() > CAPACITY {
            *known = Known::default();
        }
        known.bytes += sql.len();
        known.scripts.insert(sql.to_owned(), Arc::clone(&script));
        script
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
