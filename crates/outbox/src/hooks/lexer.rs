use std::collections::HashSet;

use sqlparser::{
    dialect::{Dialect, MySqlDialect, PostgreSqlDialect},
    tokenizer::{Location, Token, Tokenizer},
};

/// Whose words a text is read by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Syntax {
    Postgres,
    /// MariaDB's too.
    MySql,
}

/// A token that is no white space, with its place in the text.
#[derive(Debug)]
pub(super) struct Lexeme {
    pub(super) token: Token,
    /// In bytes.
    pub(super) start: usize,
    pub(super) end: usize,
    /// In how many brackets it stands. A bracket itself stands outside.
    pub(super) depth: u32,
}

/// Cuts a text into words. `None` where it cannot be read.
pub(super) fn lex(sql: &str, syntax: Syntax) -> Option<Vec<Lexeme>> {
    let dialect: &dyn Dialect = match syntax {
        Syntax::Postgres => &PostgreSqlDialect {},
        Syntax::MySql => &MySqlDialect {},
    };
    // MySQL runs what stands in such comments.
    if syntax == Syntax::MySql && (sql.contains("/*!") || sql.contains("/*M!")) {
        return None;
    }
    let tokens = Tokenizer::new(dialect, sql).with_unescape(false).tokenize_with_location().ok()?;
    let mut places = Places { rest: sql.char_indices(), at: Location { line: 1, column: 1 }, len: sql.len() };
    let mut lexemes = Vec::with_capacity(tokens.len() / 2 + 1);
    let mut depth = 0_u32;
    for token in tokens {
        let start = places.byte(token.span.start)?;
        let end = places.byte(token.span.end)?;
        match token.token {
            Token::Whitespace(_) => continue,
            Token::RParen | Token::RBracket => depth = depth.checked_sub(1)?,
            _ => {}
        }
        let opens = matches!(token.token, Token::LParen | Token::LBracket);
        lexemes.push(Lexeme { token: token.token, start, end, depth });
        depth += u32::from(opens);
    }
    (depth == 0).then_some(lexemes)
}

/// Turns lines and columns, which only grow, into bytes.
struct Places<'a> {
    rest: std::str::CharIndices<'a>,
    at: Location,
    len: usize,
}

impl Places<'_> {
    fn byte(&mut self, place: Location) -> Option<usize> {
        while self.at != place {
            let (_, char) = self.rest.next()?;
            if char == '\n' {
                self.at = Location { line: self.at.line + 1, column: 1 };
            } else {
                self.at.column += 1;
            }
        }
        let offset = self.rest.offset();
        (offset <= self.len).then_some(offset)
    }
}

/// How many values a clause takes by placeholders without numbers. `None` where it cannot be read.
pub(crate) fn placeholders(clause: &str, syntax: Syntax) -> Option<usize> {
    let is_one = |lexeme: &Lexeme| matches!(lexeme.token, Token::Placeholder(_));
    Some(lex(clause, syntax)?.iter().filter(|lexeme| is_one(lexeme)).count())
}

/// The words of a text, quoted ones too, in lower case. `None` where it cannot be read.
pub(crate) fn words(sql: &str, syntax: Syntax) -> Option<HashSet<String>> {
    let word = |lexeme: Lexeme| match lexeme.token {
        Token::Word(word) => Some(word.value.to_lowercase()),
        _ => None,
    };
    Some(lex(sql, syntax)?.into_iter().filter_map(word).collect())
}
