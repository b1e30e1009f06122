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
    lexer::{Syntax, placeholders, words},
    reader::read,
    script::{Action, Assignment, Conflict, Effect, JoinedWrite, Piece, Script, TableName, Verb, Write},
};

/// What was made of texts, each once.
#[derive(Debug)]
pub(crate) struct Texts<T> {
    known: Mutex<Known<T>>,
}

#[derive(Debug)]
struct Known<T> {
    texts: HashMap<String, Arc<T>>,
    bytes: usize,
}

/// How many bytes of texts are remembered before all are forgotten and learnt again: programs that write values into their texts never say the
/// same one twice.
const CAPACITY: usize = 8 << 20;

impl<T> Default for Texts<T> {
    fn default() -> Self {
        Self { known: Mutex::new(Known { texts: HashMap::new(), bytes: 0 }) }
    }
}

impl<T> Texts<T> {
    /// What was made of a text, or is now.
    pub(crate) fn get(&self, sql: &str, make: impl FnOnce() -> T) -> Arc<T> {
        if let Some(made) = self.known().texts.get(sql) {
            return Arc::clone(made);
        }
        let made = Arc::new(make());
        let mut known = self.known();
        if known.bytes + sql.len() > CAPACITY {
            *known = Known { texts: HashMap::new(), bytes: 0 };
        }
        known.bytes += sql.len();
        known.texts.insert(sql.to_owned(), Arc::clone(&made));
        made
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known<T>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
