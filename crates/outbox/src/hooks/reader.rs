//! Cuts statements into clauses.
//!
//! The words that separate clauses are reserved where they are looked for, outside all brackets: no expression has them there, but for
//! `IS DISTINCT FROM`.

use sqlparser::tokenizer::Token;

use super::{
    lexer::{Lexeme, Syntax, lex},
    script::{Action, Assignment, Conflict, Effect, JoinedWrite, Piece, Script, TableName, Verb, With, Write},
};

/// How many bytes of a name PostgreSQL looks at.
const POSTGRES_NAME: usize = 63;

/// Reads a text.
pub(crate) fn read(sql: &str, syntax: Syntax) -> Script {
    let Some(lexemes) = lex(sql, syntax) else {
        return Script { pieces: vec![Piece::of(sql, Effect::Unreadable)] };
    };
    let pieces = lexemes
        .split(|lexeme| lexeme.token == Token::SemiColon && lexeme.depth == 0)
        .filter(|lexemes| !lexemes.is_empty())
        .map(|lexemes| Reader { sql, lexemes, syntax }.piece());
    Script { pieces: pieces.collect() }
}

impl Piece {
    fn of(sql: &str, effect: Effect) -> Self {
        Self {
            sql: sql.to_owned(),
            effect,
            nested: Vec::new(),
            calls: Vec::new(),
            settings: Vec::new(),
            own: None,
            values: 0,
        }
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    sql: &'a str,
    lexemes: &'a [Lexeme],
    syntax: Syntax,
}

impl<'a> Reader<'a> {
    fn piece(self) -> Piece {
        let sql = self.slice(0, self.lexemes.len()).unwrap_or_default();
        Piece {
            nested: self.nested(),
            calls: self.calls(),
            settings: self.settings(),
            own: self.own(),
            values: self.values(),
            ..Piece::of(&sql, self.effect())
        }
    }

    fn effect(self) -> Effect {
        let first = self.word(0);
        let all = || Some(self.names());
        let opaque = |tables| Effect::Opaque { what: first.clone(), tables };
        match first.as_str() {
            "SELECT" | "TABLE" | "VALUES" => self.select(),
            "" if self.lexemes.first().is_some_and(|lexeme| lexeme.token == Token::LParen) => self.select(),
            "WITH" => match self.verb_behind_with() {
                Some(at) if self.is_write(at) => self.write(at).unwrap_or_else(|| self.unknown(at)),
                Some(at) if self.word(at) == "MERGE" => Effect::Opaque { what: "MERGE".into(), tables: all() },
                Some(_) => self.select(),
                None => self.unknown(0),
            },
            _ if self.is_write(0) => self.write(0).unwrap_or_else(|| self.unknown(0)),
            "BEGIN" | "START" | "COMMIT" | "END" | "ROLLBACK" | "ABORT" | "SAVEPOINT" | "RELEASE" | "XA" => {
                Effect::Control(first)
            }
            "PREPARE" if self.word(1) == "TRANSACTION" => Effect::Control(first),
            "LOCK" | "UNLOCK" if self.syntax == Syntax::MySql => Effect::Control(first),
            // A plan is made, nothing runs.
            "EXPLAIN" | "DESCRIBE" | "DESC" => {
                // `(ANALYZE)`, and `("analyze" true)` too.
                let executes =
                    |at| self.identifier(at).is_some_and(|word| word.to_ascii_lowercase().starts_with("analy"));
                let writes = |at| {
                    matches!(self.word(at).as_str(), "INSERT" | "UPDATE" | "DELETE" | "MERGE" | "EXECUTE" | "INTO")
                };
                if (1..self.lexemes.len()).any(executes) && (1..self.lexemes.len()).any(writes) {
                    return Effect::Opaque { what: "EXPLAIN ANALYZE".into(), tables: all() };
                }
                Effect::Read
            }
            "SET" | "RESET" | "SHOW" | "LISTEN" | "UNLISTEN" | "NOTIFY" | "FETCH" | "MOVE" | "CLOSE" | "DECLARE"
            | "LOCK" | "ANALYZE" | "ANALYSE" | "VACUUM" | "CHECKPOINT" | "USE" | "KILL" | "FLUSH" | "OPTIMIZE"
            | "CHECK" => Effect::Read,
            "DISCARD" => opaque(None),
            // What they run is not in the text.
            "DO" | "CALL" | "EXECUTE" | "PREPARE" | "DEALLOCATE" | "HANDLER" | "LOAD" | "IMPORT" => opaque(None),
            "MERGE" | "TRUNCATE" | "COPY" | "CLUSTER" | "REINDEX" | "REFRESH" | "COMMENT" | "GRANT" | "REVOKE"
            | "RENAME" => opaque(all()),
            "CREATE" | "ALTER" | "DROP" => self.definition(&first),
            _ => self.unknown(0),
        }
    }

    fn unknown(self, at: usize) -> Effect {
        Effect::Opaque { what: format!("{} in an unknown form", self.word(at)), tables: None }
    }

    /// A query, or one that makes a table of its rows.
    fn select(self) -> Effect {
        // `INTO` is reserved; behind `INSERT` and `MERGE` it is theirs.
        let into = |at: usize| self.word(at) == "INTO" && !matches!(self.word_before(at).as_str(), "INSERT" | "MERGE");
        match (0..self.lexemes.len()).find(|&at| into(at)) {
            Some(_) => Effect::Opaque { what: "SELECT INTO".into(), tables: Some(self.names()) },
            None => Effect::Read,
        }
    }

    fn definition(self, verb: &str) -> Effect {
        let head: Vec<String> = (1..self.lexemes.len().min(8)).map(|at| self.word(at)).collect();
        let kind = head.iter().find(|word| {
            matches!(
                word.as_str(),
                "TABLE"
                    | "INDEX"
                    | "VIEW"
                    | "SEQUENCE"
                    | "TYPE"
                    | "SCHEMA"
                    | "EXTENSION"
                    | "FUNCTION"
                    | "PROCEDURE"
                    | "TRIGGER"
                    | "RULE"
                    | "EVENT"
            )
        });
        let what = format!("{verb} {}", kind.map_or("", String::as_str)).trim_end().to_owned();
        // These may make other statements write, or hide what they write.
        let blinds = matches!(
            kind.map(String::as_str),
            None | Some("FUNCTION" | "PROCEDURE" | "TRIGGER" | "RULE" | "EVENT" | "SCHEMA" | "EXTENSION")
        );
        Effect::Opaque { what, tables: (!blinds).then(|| self.names()) }
    }

    /// Where the statement's own verb stands behind its `WITH`.
    fn verb_behind_with(self) -> Option<usize> {
        self.find(1, self.lexemes.len(), |at| {
            let verb = matches!(
                self.word(at).as_str(),
                "SELECT" | "INSERT" | "UPDATE" | "DELETE" | "MERGE" | "VALUES" | "TABLE" | "REPLACE"
            );
            let opens = self.lexemes[at].token == Token::LParen && self.is(at - 1, &Token::RParen);
            opens
                || (verb
                    && !matches!(self.word_before(at).as_str(), "WITH" | "RECURSIVE")
                    && !self.is(at - 1, &Token::Comma))
        })
    }

    fn is_write(self, at: usize) -> bool {
        let replaces = self.syntax == Syntax::MySql && self.word(at) == "REPLACE";
        replaces || matches!(self.word(at).as_str(), "INSERT" | "UPDATE" | "DELETE")
    }

    fn write(self, verb: usize) -> Option<Effect> {
        let with = match verb {
            0 => None,
            _ => {
                let recursive = self.word(1) == "RECURSIVE";
                Some(With { recursive, text: self.slice(1 + usize::from(recursive), verb)? })
            }
        };
        let mut at = verb + 1;
        while self.is_lead(at) {
            at += 1;
        }
        let lead_end = at;
        let lead = self.slice(verb + 1, at).unwrap_or_default();
        let words: Vec<String> = (verb..at).map(|at| self.word(at)).collect();
        let several = || {
            let joined = (verb == 0 && self.syntax == Syntax::MySql).then(|| self.joined(lead_end)).flatten();
            joined.map_or_else(
                || Effect::Opaque { what: format!("{} of several tables", words[0]), tables: Some(self.names()) },
                |write| Effect::JoinedWrite(Box::new(write)),
            )
        };
        let first = at;
        let (table, behind) = self.name(at)?;
        at = behind;
        let table_text = self.slice(first, at)?;
        if self.is(at, &Token::Mul) {
            at += 1;
        }
        let mut write = Write {
            verb: match words[0].as_str() {
                "UPDATE" => Verb::Update,
                "DELETE" => Verb::Delete,
                _ => Verb::Insert,
            },
            with,
            lead,
            replaces: words[0] == "REPLACE",
            ignores: words.iter().any(|word| word == "IGNORE"),
            table,
            table_text,
            alias: None,
            source: None,
            columns: Vec::new(),
            conflict: None,
            set: Vec::new(),
            from: None,
            filter: None,
            limit: None,
            returning: None,
        };
        let end = self.lexemes.len();
        let returning = self.keyword(at, end, "RETURNING").unwrap_or(end);
        if returning < end {
            write.returning = Some(self.returned(&write.table.name, returning + 1, end)?);
        }
        match write.verb {
            Verb::Insert => self.insert(&mut write, at, returning)?,
            Verb::Update => {
                let set = self.keyword(at, returning, "SET")?;
                if !self.alias(&mut write, at, set) {
                    return Some(several());
                }
                let from =
                    self.find(set, returning, |at| self.word(at) == "FROM" && self.word_before(at) != "DISTINCT");
                self.tail(&mut write, set, returning, from)?;
                let assigned = self.clause_end(set + 1, returning, from);
                write.set = self.assignments(set + 1, assigned)?;
            }
            Verb::Delete => {
                if self.word_before(first) != "FROM" && self.word_before(first) != "ONLY" {
                    return Some(several());
                }
                let from = self.keyword(at, returning, "USING");
                let head = self.clause_end(at, returning, from);
                if !self.alias(&mut write, at, head) || (self.syntax == Syntax::MySql && from.is_some()) {
                    return Some(several());
                }
                self.tail(&mut write, at, returning, from)?;
            }
            Verb::Merge => return None,
        }
        Some(Effect::Write(Box::new(write)))
    }

    /// Whether a word may stand between the verb and the table.
    fn is_lead(self, at: usize) -> bool {
        match self.word(at).as_str() {
            "INTO" | "FROM" | "ONLY" => true,
            "LOW_PRIORITY" | "HIGH_PRIORITY" | "DELAYED" | "QUICK" | "IGNORE" => self.syntax == Syntax::MySql,
            _ => false,
        }
    }

    /// Reads MySQL's `UPDATE a JOIN b … SET …`, `DELETE a FROM a JOIN b …` and `DELETE FROM a USING a JOIN b …`, from behind the verb's words on.
    /// `None` for those with derived tables, partitions, or an `ORDER BY`.
    fn joined(self, at: usize) -> Option<JoinedWrite> {
        let end = self.lexemes.len();
        let updates = self.word(0) == "UPDATE";
        let filter = self.keyword(at, end, "WHERE").unwrap_or(end);
        // What `DELETE HISTORY` removes are no rows of now.
        let of_history = self.word(at) == "HISTORY" && self.word(at + 1) == "FROM";
        if of_history || self.limit(at, end).is_some() || self.keyword(at, end, "RETURNING").is_some() {
            return None;
        }
        let (start, behind) = if updates {
            (at, self.keyword(at, filter, "SET")?)
        } else {
            let from = self.keyword(at, filter, "FROM").or_else(|| self.keyword(at, filter, "USING"))?;
            (from + 1, filter)
        };
        Some(JoinedWrite {
            verb: if updates { Verb::Update } else { Verb::Delete },
            head: self.slice(0, filter)?,
            sources: self.slice(start, behind)?,
            tables: self.tables(start, behind)?,
            set: if updates { self.assignments(behind + 1, filter)? } else { Vec::new() },
            filter: if filter < end { Some(self.slice(filter + 1, end)?) } else { None },
        })
    }

    /// The tables of a `FROM`, each with how its columns are qualified. `None` where one of them is no plain table.
    fn tables(self, start: usize, end: usize) -> Option<Vec<(TableName, String)>> {
        let mut found = Vec::new();
        let mut at = start;
        while at < end {
            let (name, behind) = self.name(at)?;
            let explicit = self.word(behind) == "AS";
            let place = behind + usize::from(explicit);
            let named = place < end && matches!(self.lexemes[place].token, Token::Word(_));
            let aliased = explicit || (named && !follows_a_table(&self.word(place)));
            if matches!(self.word(behind).as_str(), "PARTITION" | "FOR") || (explicit && !named) {
                return None;
            }
            let qualifier = if aliased { self.slice(place, place + 1)? } else { self.slice(at, behind)? };
            found.push((name, qualifier));
            let separates =
                |at: usize| self.is(at, &Token::Comma) || matches!(self.word(at).as_str(), "JOIN" | "STRAIGHT_JOIN");
            at = self.find(behind, end, separates).map_or(end, |separator| separator + 1);
        }
        Some(found)
    }

    /// Reads `[AS] alias` that fills the range; whether it does.
    fn alias(self, write: &mut Write, at: usize, end: usize) -> bool {
        let start = at + usize::from(self.word(at) == "AS");
        match end.checked_sub(start) {
            Some(0) => start == at,
            Some(1) if matches!(self.lexemes[start].token, Token::Word(_)) => {
                write.alias = self.slice(start, end);
                true
            }
            _ => false,
        }
    }

    /// Where the clause that begins at a place ends: before `FROM`, `WHERE`, `ORDER BY`, `LIMIT`, or the end.
    fn clause_end(self, at: usize, end: usize, from: Option<usize>) -> usize {
        let filter = self.keyword(at, end, "WHERE").unwrap_or(end);
        filter.min(from.unwrap_or(end)).min(self.limit(at, end).unwrap_or(end))
    }

    /// Where `ORDER BY` or `LIMIT` of a write begins. PostgreSQL has none.
    fn limit(self, at: usize, end: usize) -> Option<usize> {
        if self.syntax == Syntax::Postgres {
            return None;
        }
        let ordered = self.find(at, end, |at| self.word(at) == "ORDER" && self.word(at + 1) == "BY");
        ordered.or_else(|| self.keyword(at, end, "LIMIT"))
    }

    /// Reads `FROM` or `USING`, `WHERE`, `ORDER BY` and `LIMIT`.
    fn tail(self, write: &mut Write, at: usize, end: usize, from: Option<usize>) -> Option<()> {
        let filter = self.keyword(at, end, "WHERE");
        let limit = self.limit(at, end);
        if let Some(from) = from {
            write.from = Some(self.slice(from + 1, filter.unwrap_or(end))?);
        }
        if let Some(filter) = filter {
            write.filter = Some(self.slice(filter + 1, limit.unwrap_or(end))?);
        }
        if let Some(limit) = limit {
            write.limit = Some(self.slice(limit, end)?);
        }
        Some(())
    }

    fn insert(self, write: &mut Write, mut at: usize, end: usize) -> Option<()> {
        if self.word(at) == "AS" {
            write.alias = self.slice(at + 1, at + 2);
            at += 2;
        }
        let conflicts = |at: usize| {
            self.word(at) == "ON"
                && match self.word(at + 1).as_str() {
                    "CONFLICT" => self.is(at + 2, &Token::LParen) || matches!(self.word(at + 2).as_str(), "ON" | "DO"),
                    "DUPLICATE" => self.word(at + 2) == "KEY",
                    _ => false,
                }
        };
        let conflict = (at..end).rev().find(|&at| self.lexemes[at].depth == 0 && conflicts(at));
        let source_end = conflict.unwrap_or(end);
        let opens = self.is(at, &Token::LParen)
            && !matches!(self.word(at + 1).as_str(), "SELECT" | "WITH" | "VALUES" | "TABLE");
        if opens && !self.is(at + 1, &Token::LParen) {
            let close = self.find(at + 1, source_end, |at| self.is(at, &Token::RParen))?;
            write.columns = self.columns(at + 1, close)?;
        } else if !self.is(at, &Token::LParen)
            && !matches!(
                self.word(at).as_str(),
                "VALUES" | "VALUE" | "DEFAULT" | "SELECT" | "WITH" | "TABLE" | "OVERRIDING" | "SET" | "PARTITION"
            )
        {
            return None;
        }
        write.source = Some(self.slice(at, source_end)?);
        if let Some(conflict) = conflict {
            write.conflict = Some(self.conflict(conflict, end)?);
        }
        Some(())
    }

    fn conflict(self, at: usize, end: usize) -> Option<Conflict> {
        if self.word(at + 1) == "DUPLICATE" {
            let set = self.assignments(at + 4, end)?;
            return Some(Conflict { target: String::new(), action: Action::Update { set, filter: None } });
        }
        let verb = self.find(at + 2, end, |at| {
            self.word(at) == "DO" && matches!(self.word(at + 1).as_str(), "NOTHING" | "UPDATE")
        })?;
        let target = self.slice(at + 2, verb).unwrap_or_default();
        if self.word(verb + 1) == "NOTHING" {
            return (verb + 2 == end).then_some(Conflict { target, action: Action::Nothing });
        }
        if self.word(verb + 2) != "SET" {
            return None;
        }
        let filter = self.keyword(verb + 3, end, "WHERE");
        let set = self.assignments(verb + 3, filter.unwrap_or(end))?;
        let filter = match filter {
            Some(filter) => Some(self.slice(filter + 1, end)?),
            None => None,
        };
        Some(Conflict { target, action: Action::Update { set, filter } })
    }

    fn assignments(self, start: usize, end: usize) -> Option<Vec<Assignment>> {
        let of = |(start, end): (usize, usize)| {
            let text = self.slice(start, end)?;
            let equals = self.find(start, end, |at| self.is(at, &Token::Eq))?;
            let columns = if self.is(start, &Token::LParen) {
                self.columns(start + 1, equals.checked_sub(1)?)?
            } else {
                vec![self.column(start, equals)?]
            };
            let (target, value) = (self.slice(start, equals)?, self.slice(equals + 1, end)?);
            Some(Assignment { columns, text, target, value })
        };
        self.commas(start, end).into_iter().map(of).collect()
    }

    fn columns(self, start: usize, end: usize) -> Option<Vec<String>> {
        self.commas(start, end).into_iter().map(|(start, end)| self.column(start, end)).collect()
    }

    /// The column that is assigned: `a`, `t.a` (MySQL's), and of `a[1]` and `a.b` (PostgreSQL's) the `a`.
    fn column(self, start: usize, end: usize) -> Option<String> {
        let place = match self.syntax {
            Syntax::Postgres => start,
            Syntax::MySql => end.checked_sub(1)?,
        };
        (start < end).then(|| self.identifier(place)).flatten()
    }

    /// The items of a `RETURNING`. A schema before the table's name is left out, since what answers them may be a query of that name; but not beside
    /// queries, which may mean another schema's.
    fn returned(self, table: &str, start: usize, end: usize) -> Option<Vec<String>> {
        let is_schema = |at: usize| {
            !self.is(at.wrapping_sub(1), &Token::Period)
                && [at + 1, at + 3].iter().all(|&at| self.is(at, &Token::Period))
                && self.identifier(at + 2).is_some_and(|name| name == table)
        };
        let item = |(start, end): (usize, usize)| {
            let mut text = String::new();
            let mut from = start;
            let has_query = (start..end).any(|at| self.word(at) == "SELECT");
            for at in (start..end).filter(|&at| !has_query && is_schema(at)) {
                text.push_str(&self.sql[self.lexemes[from].start..self.lexemes[at].start]);
                from = at + 2;
            }
            Some(text + &self.slice(from, end)?)
        };
        self.commas(start, end).into_iter().map(item).collect()
    }

    /// The parts of a range between commas.
    fn commas(self, start: usize, end: usize) -> Vec<(usize, usize)> {
        let Some(depth) = self.lexemes.get(start).filter(|_| start < end).map(|lexeme| lexeme.depth) else {
            return Vec::new();
        };
        let mut parts = Vec::new();
        let mut from = start;
        for at in start..end {
            if self.lexemes[at].depth == depth && self.lexemes[at].token == Token::Comma {
                parts.push((from, at));
                from = at + 1;
            }
        }
        parts.push((from, end));
        parts
    }

    /// The tables that inner statements write. They stand in brackets, and begin there or behind a `WITH` of their own, which ends with a bracket or
    /// with the column of a `SEARCH … SET` or `CYCLE … USING`.
    fn nested(self) -> Vec<(Verb, TableName)> {
        let mut found = Vec::new();
        for at in 1..self.lexemes.len() {
            let behind_column = matches!(self.word_before(at - 1).as_str(), "SET" | "USING");
            let begins = behind_column || self.is(at - 1, &Token::LParen) || self.is(at - 1, &Token::RParen);
            if self.lexemes[at].depth == 0 || !begins {
                continue;
            }
            let verb = match self.word(at).as_str() {
                "INSERT" => Verb::Insert,
                "UPDATE" => Verb::Update,
                "DELETE" => Verb::Delete,
                "MERGE" => Verb::Merge,
                _ => continue,
            };
            let mut name = at + 1;
            while matches!(self.word(name).as_str(), "INTO" | "FROM" | "ONLY") {
                name += 1;
            }
            found.extend(self.name(name).map(|(table, _)| (verb, table)));
        }
        found
    }

    fn calls(self) -> Vec<TableName> {
        let mut found: Vec<TableName> = Vec::new();
        let mut at = 0;
        while at < self.lexemes.len() {
            match self.name(at) {
                Some((name, behind)) => {
                    if self.is(behind, &Token::LParen) && !found.contains(&name) {
                        found.push(name);
                    }
                    at = behind;
                }
                None => at += 1,
            }
        }
        found
    }

    fn settings(self) -> Vec<String> {
        let mut found = Vec::new();
        if matches!(self.word(0).as_str(), "SET" | "RESET") {
            let at = if matches!(self.word(1).as_str(), "LOCAL" | "SESSION" | "GLOBAL") { 2 } else { 1 };
            let at = if self.word(1) == "SESSION" && self.word(2) == "AUTHORIZATION" { 1 } else { at };
            found.extend(self.identifier(at).map(|name| name.to_ascii_lowercase()));
        }
        // The name is the first argument. One that is not just a plain text can be any.
        for at in 0..self.lexemes.len() {
            if self.identifier(at).is_some_and(|name| name == "set_config") && self.is(at + 1, &Token::LParen) {
                found.push(match self.lexemes.get(at + 2).map(|lexeme| &lexeme.token) {
                    Some(Token::SingleQuotedString(name)) if self.is(at + 3, &Token::Comma) => {
                        name.to_ascii_lowercase()
                    }
                    _ => "all".into(),
                });
            }
        }
        found
    }

    fn own(self) -> Option<String> {
        let names = self.lexemes.iter().filter_map(|lexeme| match &lexeme.token {
            Token::Word(word) => Some(&word.value),
            _ => None,
        });
        names.into_iter().find(|name| is_own(name)).cloned()
    }

    fn values(self) -> usize {
        let mut plain = 0;
        let mut highest = 0;
        for lexeme in self.lexemes {
            if let Token::Placeholder(text) = &lexeme.token {
                match text.strip_prefix('$').and_then(|number| number.parse::<usize>().ok()) {
                    Some(number) => highest = highest.max(number),
                    None => plain += 1,
                }
            }
        }
        highest.max(plain)
    }

    /// Every name in the text.
    fn names(self) -> Vec<TableName> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < self.lexemes.len() {
            match self.name(at) {
                Some((name, behind)) => {
                    if !found.contains(&name) {
                        found.push(name);
                    }
                    at = behind;
                }
                None => at += 1,
            }
        }
        found
    }

    /// The name at a place, and where it ends.
    fn name(self, at: usize) -> Option<(TableName, usize)> {
        let mut name = TableName { schema: None, name: self.identifier(at)? };
        let mut at = at + 1;
        while self.is(at, &Token::Period) {
            let next = self.identifier(at + 1)?;
            name = TableName { schema: Some(name.name), name: next };
            at += 2;
        }
        Some((name, at))
    }

    /// The identifier at a place, as the database looks it up.
    fn identifier(self, at: usize) -> Option<String> {
        let Token::Word(word) = &self.lexemes.get(at)?.token else { return None };
        let mut name = match (word.quote_style, self.syntax) {
            // Other letters than these keep their case.
            (None, Syntax::Postgres) => word.value.to_ascii_lowercase(),
            (None, Syntax::MySql) => word.value.clone(),
            (Some(quote), _) => word.value.replace(&format!("{quote}{quote}"), &quote.to_string()),
        };
        if self.syntax == Syntax::Postgres {
            name.truncate(name.floor_char_boundary(POSTGRES_NAME));
        }
        Some(name)
    }

    /// The first place in a range, outside all brackets of it, that passes.
    fn find(self, start: usize, end: usize, pass: impl Fn(usize) -> bool) -> Option<usize> {
        let floor = self.lexemes.get(start..end)?.iter().map(|lexeme| lexeme.depth).min()?;
        (start..end).find(|&at| self.lexemes[at].depth == floor && pass(at))
    }

    /// The first place in a range, outside all brackets of it, with this word.
    fn keyword(self, start: usize, end: usize, word: &str) -> Option<usize> {
        self.find(start, end, |at| self.word(at) == word && !self.is(at.wrapping_sub(1), &Token::Period))
    }

    fn is(self, at: usize, token: &Token) -> bool {
        self.lexemes.get(at).is_some_and(|lexeme| lexeme.token == *token)
    }

    /// The unquoted word at a place, in upper case; empty where there is none.
    fn word(self, at: usize) -> String {
        match self.lexemes.get(at).map(|lexeme| &lexeme.token) {
            Some(Token::Word(word)) if word.quote_style.is_none() => word.value.to_ascii_uppercase(),
            _ => String::new(),
        }
    }

    fn word_before(self, at: usize) -> String {
        at.checked_sub(1).map(|at| self.word(at)).unwrap_or_default()
    }

    /// The text of a range. `None` where that is empty.
    fn slice(self, start: usize, end: usize) -> Option<String> {
        let range = self.lexemes.get(start..end)?;
        Some(self.sql[range.first()?.start..range.last()?.end].to_owned())
    }
}

/// Whether an unquoted word behind a table in a `FROM` is no alias of it.
fn follows_a_table(word: &str) -> bool {
    matches!(
        word,
        "ON" | "USING"
            | "JOIN"
            | "INNER"
            | "LEFT"
            | "RIGHT"
            | "CROSS"
            | "NATURAL"
            | "STRAIGHT_JOIN"
            | "USE"
            | "FORCE"
            | "IGNORE"
            | "PARTITION"
    )
}

/// Whether a name is of one of Tidewire's own tables.
fn is_own(name: &str) -> bool {
    name.get(..9).is_some_and(|start| start.eq_ignore_ascii_case("tidewire_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(sql: &str) -> Piece {
        let mut pieces = read(sql, Syntax::Postgres).pieces;
        assert_eq!(pieces.len(), 1, "{sql}");
        pieces.remove(0)
    }

    fn write(sql: &str) -> Write {
        match one(sql).effect {
            Effect::Write(write) => *write,
            other => panic!("{sql}: {other:?}"),
        }
    }

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn reads_writes_and_the_rest_are_told_apart() {
        for sql in [
            "SELECT 1",
            "  values (1)",
            "(select 1) union (select 2)",
            "SELECT * FROM task FOR UPDATE",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n) SEARCH DEPTH FIRST BY x SET o SELECT x FROM n",
            "EXPLAIN DELETE FROM task",
            "EXPLAIN ANALYZE SELECT 1",
            "SELECT 'insert into t; commit' AS into_",
            "SET search_path = x",
            "NOTIFY x",
            "-- a comment;\nSHOW x /* ; */",
        ] {
            assert_eq!(one(sql).effect, Effect::Read, "{sql}");
        }
        for sql in ["COMMIT", "begin", "SAVEPOINT a", "RELEASE a", "PREPARE TRANSACTION 'x'"] {
            assert!(matches!(one(sql).effect, Effect::Control(_)), "{sql}");
        }
        for (sql, named) in [
            ("TRUNCATE task", true),
            ("MERGE INTO task USING x ON TRUE WHEN MATCHED THEN DELETE", true),
            ("WITH x AS (SELECT 1) MERGE INTO task USING x ON TRUE WHEN MATCHED THEN DELETE", true),
            ("COPY public.task FROM STDIN", true),
            ("EXPLAIN (ANALYZE) DELETE FROM task", true),
            ("EXPLAIN (\"analyze\" true) DELETE FROM task", true),
            ("SELECT * INTO u FROM task", true),
            ("CREATE TABLE u AS SELECT * FROM task", true),
            ("ALTER TABLE ONLY task ADD COLUMN x int", true),
            ("DO $$ BEGIN DELETE FROM task; END $$", false),
            ("CALL f()", false),
            ("EXECUTE f", false),
            ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", false),
            ("CREATE RULE r AS ON INSERT TO x DO ALSO DELETE FROM task", false),
            ("SOMETHING new", false),
        ] {
            let Effect::Opaque { tables, .. } = one(sql).effect else { panic!("{sql}") };
            let task = |names: &Vec<TableName>| names.iter().any(|name| name.name == "task");
            assert_eq!(tables.is_some_and(|tables| task(&tables)), named, "{sql}");
        }
        for sql in ["INSERT INTO t VALUES ('open", "/* open", "SELECT (1", "INSERT INTO U&\"t\" VALUES (1)"] {
            assert_eq!(one(sql).effect, Effect::Unreadable, "{sql}");
        }
        for sql in ["UPDATE t", "= 1", "WITH x"] {
            assert!(matches!(one(sql).effect, Effect::Opaque { tables: None, .. }), "{sql}");
        }
        assert!(read(" ; ;", Syntax::Postgres).pieces.is_empty());
    }

    #[test]
    fn inserts_are_cut_into_clauses() {
        let insert = write(
            "INSERT INTO public.\"Task\" AS x (id, \"a\"\"b\") VALUES ($1, 'é; )') -- a\n ON CONFLICT (id) WHERE a > 0 DO UPDATE SET \
             (a, b) = (1, 2), c[1] = excluded.c WHERE x.a IS DISTINCT FROM 1 RETURNING id, count(a, b)",
        );
        assert_eq!(insert.verb, Verb::Insert);
        assert_eq!(insert.table, TableName { schema: text("public"), name: "Task".into() });
        assert_eq!((insert.table_text.as_str(), insert.alias.as_deref()), ("public.\"Task\"", Some("x")));
        assert_eq!(insert.columns, ["id", "a\"b"]);
        assert_eq!(insert.source, text("(id, \"a\"\"b\") VALUES ($1, 'é; )')"));
        assert_eq!(insert.assigned().collect::<Vec<_>>(), ["a", "b", "c"]);
        let Some(Conflict { target, action: Action::Update { filter, .. } }) = &insert.conflict else { panic!() };
        assert_eq!((target.as_str(), filter), ("(id) WHERE a > 0", &text("x.a IS DISTINCT FROM 1")));
        assert_eq!(insert.returning, Some(vec!["id".into(), "count(a, b)".into()]));

        let insert = write("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a ON CONFLICT DO NOTHING;");
        assert_eq!(insert.with, Some(With { recursive: false, text: "a AS (SELECT 1)".into() }));
        assert_eq!(insert.source, text("SELECT * FROM a"));
        assert_eq!(insert.conflict, Some(Conflict { target: String::new(), action: Action::Nothing }));
        assert_eq!(write("insert into t default values").source, text("default values"));
        assert_eq!(write("insert into t (select 1, 2)").source, text("(select 1, 2)"));
    }

    #[test]
    fn updates_and_deletes_are_cut_into_clauses() {
        let update = write(
            "UPDATE ONLY task AS t SET a = CASE WHEN b IS DISTINCT FROM c THEN 1 END, \"From\" = (SELECT 1 FROM x WHERE y), set = 2 \
             FROM k JOIN l ON TRUE WHERE t.id = $3 AND a = $1 RETURNING *",
        );
        assert_eq!((update.lead.as_str(), update.alias.as_deref()), ("ONLY", Some("t")));
        assert_eq!(update.assigned().collect::<Vec<_>>(), ["a", "From", "set"]);
        assert_eq!(update.from, text("k JOIN l ON TRUE"));
        assert_eq!(update.filter, text("t.id = $3 AND a = $1"));
        assert_eq!(update.returning, Some(vec!["*".into()]));
        let update = write("UPDATE t SET a = 1");
        assert_eq!((update.from, update.filter, update.returning), (None, None, None));
        let update = write(
            "UPDATE s.t SET a = 1 RETURNING s.t.a, f(s.t.*, s.u.a, \"S\".T.a || s.T . b), s.t(1), r.s.t.a, (SELECT s.t.a)",
        );
        let items = ["t.a", "f(t.*, s.u.a, T.a || T . b)", "s.t(1)", "r.s.t.a", "(SELECT s.t.a)"];
        assert_eq!(update.returning, Some(items.map(str::to_owned).to_vec()));

        let delete = write("DELETE FROM task t USING k, l WHERE t.id = k.id");
        assert_eq!((delete.alias, delete.from, delete.filter), (text("t"), text("k, l"), text("t.id = k.id")));
    }

    #[test]
    fn what_stands_inside_a_statement_is_found() {
        let piece = one(
            "WITH a AS (DELETE FROM s.task RETURNING *), b AS (WITH c AS (SELECT 1) UPDATE ONLY u SET x = 1) SELECT f(x), g.h (1) FROM a",
        );
        assert_eq!(piece.effect, Effect::Read);
        let nested: Vec<String> = piece.nested.iter().map(|(verb, name)| format!("{verb} {name}")).collect();
        assert_eq!(nested, ["DELETE s.task", "UPDATE u"]);
        assert!(piece.calls.contains(&TableName { schema: text("g"), name: "h".into() }));
        for of_its_own in ["SEARCH DEPTH FIRST BY x SET o", "CYCLE x SET c TO 1 DEFAULT 0 USING p"] {
            let n = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)";
            let piece = one(&format!("WITH d AS ({n} {of_its_own} DELETE FROM task RETURNING id) SELECT * FROM d"));
            assert_eq!(piece.nested.len(), 1, "{of_its_own}");
        }
        assert_eq!(one("SELECT set_config('Search_Path', 'x', true)").settings, ["search_path"]);
        assert_eq!(one("SELECT \"set_config\"('search_path', 'x', true)").settings, ["search_path"]);
        for name in ["$1", "'search' || '_path'", "'search'\n'_path'", "setting_name => 'search_path'"] {
            assert_eq!(one(&format!("SELECT set_config({name}, 'x', true)")).settings, ["all"], "{name}");
        }
        assert_eq!(one("SET LOCAL role x").settings, ["role"]);
        assert_eq!(one("SELECT $2, $10, $2").values, 10);
        assert_eq!(one("DELETE FROM \"tidewire_outbox\"").own, text("tidewire_outbox"));
        assert_eq!(read("UPDATE t SET a = ';'; DELETE FROM u; ", Syntax::Postgres).pieces.len(), 2);
    }

    #[test]
    fn names_are_those_that_postgres_looks_up() {
        let (long, cut) = ("é".repeat(40), "é".repeat(31));
        let quoted = format!("\"{long}\"");
        for (written, name) in [
            ("Task", "task"),
            ("\"Task\"", "Task"),
            // Only these letters have a lower case; and 63 bytes count, without half a letter.
            ("TÄSK", "tÄsk"),
            (long.as_str(), cut.as_str()),
            (quoted.as_str(), cut.as_str()),
        ] {
            assert_eq!(write(&format!("DELETE FROM {written}")).table.name, name, "{written}");
        }
        // Words of MySQL's that are names here
        for name in ["delayed", "quick", "ignore", "low_priority"] {
            assert_eq!(write(&format!("UPDATE {name} SET a = 1")).table.name, name);
            assert_eq!(write(&format!("INSERT INTO {name} VALUES (1)")).table.name, name);
        }
    }

    #[test]
    fn mysqls_words_are_read() {
        let one = |sql| read(sql, Syntax::MySql).pieces.remove(0).effect;
        let Effect::Write(write) =
            one("INSERT IGNORE INTO `a``b` (`id`) VALUES (?) ON DUPLICATE KEY UPDATE `id` = VALUES(`id`)")
        else {
            panic!()
        };
        assert!(write.ignores && !write.replaces && write.table.name == "a`b");
        assert_eq!(write.assigned().collect::<Vec<_>>(), ["id"]);
        let Effect::Write(write) = one("UPDATE t SET t.a = 1 WHERE b = 'it\\'s' ORDER BY c LIMIT 1") else { panic!() };
        assert_eq!((write.filter, write.limit), (text("b = 'it\\'s'"), text("ORDER BY c LIMIT 1")));
        assert_eq!(write.set[0].columns, ["a"]);
        for (sql, head, sources, tables, filter) in [
            (
                "UPDATE a JOIN b ON f(a, b) SET a.x = 1",
                "UPDATE a JOIN b ON f(a, b) SET a.x = 1",
                "a JOIN b ON f(a, b)",
                "a/a b/b",
                "",
            ),
            (
                "UPDATE s.a AS x, `b` y SET x.x = 1 WHERE y.z",
                "UPDATE s.a AS x, `b` y SET x.x = 1",
                "s.a AS x, `b` y",
                "s.a/x b/y",
                "y.z",
            ),
            (
                "DELETE a FROM a LEFT JOIN b USING (i) WHERE 1",
                "DELETE a FROM a LEFT JOIN b USING (i)",
                "a LEFT JOIN b USING (i)",
                "a/a b/b",
                "1",
            ),
            (
                "DELETE FROM x USING a x NATURAL JOIN b",
                "DELETE FROM x USING a x NATURAL JOIN b",
                "a x NATURAL JOIN b",
                "a/x b/b",
                "",
            ),
        ] {
            let Effect::JoinedWrite(write) = one(sql) else { panic!("{sql}") };
            let named: Vec<String> = write.tables.iter().map(|(name, row)| format!("{name}/{row}")).collect();
            assert_eq!((write.head.as_str(), write.sources.as_str()), (head, sources), "{sql}");
            assert_eq!(
                (named.join(" ").as_str(), write.filter.unwrap_or_default().as_str()),
                (tables, filter),
                "{sql}"
            );
        }
        for sql in [
            "UPDATE a PARTITION (p), b SET a.x = 1",
            "UPDATE a FOR PORTION OF p FROM 1 TO 2 SET x = 1",
            "DELETE FROM a FOR PORTION OF p FROM 1 TO 2",
            "UPDATE a, (SELECT 1) b SET a.x = 1",
            "UPDATE a, b SET a.x = 1 ORDER BY a.x LIMIT 1",
            "DELETE HISTORY FROM a",
        ] {
            assert!(matches!(one(sql), Effect::Opaque { .. }), "{sql}: {:?}", one(sql));
        }
        assert!(matches!(one("REPLACE INTO t VALUES (1)"), Effect::Write(write) if write.replaces));
        assert_eq!(one("/*!50000 DELETE FROM t */"), Effect::Unreadable);
    }
}
