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
    (depth == 0 && (syntax == Syntax::MySql || is_certain(sql, &lexemes))).then_some(lexemes)
}

/// Whether PostgreSQL cuts the text in the same places. It does not
/// - in an operator with the beginning of a comment in it, `||/* … */`, where the comment begins;
/// - behind `E'…'` and a line's end, where another text goes on with the first one's escapes;
/// - at `U&"…"`, which is a name.
fn is_certain(sql: &str, lexemes: &[Lexeme]) -> bool {
    let text = |lexeme: &Lexeme| &sql[lexeme.start..lexeme.end];
    let is_operator = |lexeme: &Lexeme| text(lexeme).bytes().all(|byte| b"+-*/<>=~!@#%^&|`?".contains(&byte));
    let mut operator = 0;
    for (at, lexeme) in lexemes.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| &lexemes[before]);
        let adjoins = before.is_some_and(|before| before.end == lexeme.start);
        if is_operator(lexeme) {
            if !adjoins || !before.is_some_and(is_operator) {
                operator = lexeme.start;
            }
            if ["--", "/*"].iter().any(|comment| sql[operator..lexeme.end].contains(comment)) {
                return false;
            }
        }
        let escaped = before.is_some_and(|before| matches!(before.token, Token::EscapedStringLiteral(_)));
        let of_unicode = before.is_some_and(|before| text(before).eq_ignore_ascii_case("u"));
        if (escaped && text(lexeme).starts_with('\''))
            || (of_unicode && adjoins && sql[lexeme.start..].starts_with("&\""))
        {
            return false;
        }
    }
    true
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_postgres_cuts_in_another_way_is_not_read() {
        for sql in [
            "SELECT E'a'\n'\\''; DELETE FROM task; --'",
            "SELECT e'a' /* c */ '\\''",
            "SELECT 1 ||/* '*/ 2; DELETE FROM task; --'",
            "SELECT 1 <>-- '\n 2",
            "UPDATE U&\"t\\0061sk\" SET a = 1",
            "UPDATE u&\"task\" SET a = 1",
        ] {
            assert!(lex(sql, Syntax::Postgres).is_none(), "{sql}");
        }
        for sql in [
            "SELECT a - -1, b || 'x', '{}'::jsonb @> $1, c -> 'd', e ? 'f' -- g",
            "SELECT E'a', 'b' /* c */, u & \"a\", U&'x', 2 * /* d */ 3, count(*)-- e",
            "SELECT 'a'\n'b', 1 /* -- */ + 2",
        ] {
            assert!(lex(sql, Syntax::Postgres).is_some(), "{sql}");
        }
    }
}
