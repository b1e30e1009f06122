//! Conditions on rows, written once and meant twice: as SQL for reads and as a predicate for streams.
//!
//! Both forms follow SQL's three-valued logic, and a property test holds them equal against the database. Where a meaning belongs to the
//! database (a column's collation, what `LIKE` does with case, how it compares decimals) the predicate takes it from the database's
//! [`Semantics`].

mod after;
mod expr;
mod index;
mod predicate;
mod ranges;
mod trace;

use std::{collections::BTreeSet, sync::Arc};

use sea_orm::sea_query::Value;

pub(crate) use self::after::after;
pub use self::{
    index::{PredicateId, PredicateIndex},
    predicate::Predicate,
    trace::Deciding,
};
use crate::error::{Error, ErrorKind};

/// A condition on the columns of one entity. Columns are indices into [`EntityMeta::columns`](crate::EntityMeta::columns); values are of
/// the columns' own types.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// All must hold; none is true.
    All(Vec<Filter>),
    /// One must hold; none is false.
    Any(Vec<Filter>),
    /// It must not hold.
    Not(Box<Filter>),
    /// The column is NULL.
    IsNull(usize),
    /// The column compares so with the value. With NULL the answer is unknown, as in SQL.
    Compare(usize, Comparison, Value),
    /// The column equals one of the values.
    In(usize, Vec<Value>),
    /// The column lies between the values, both included.
    Between(usize, Value, Value),
    /// The text column matches.
    Like(usize, Like),
    /// The text column equals the text when the case of ASCII letters is left aside.
    EqualsIgnoringCase(usize, String),
    /// The array column stands so to the list of values, each of the kind of its elements.
    Array(usize, ArrayOperator, Vec<Value>),
}

/// How an array stands to a list. The order of either, and how often something is in it, do not matter; NULL is in nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrayOperator {
    /// All of the list is in the array: `@>`.
    Contains,
    /// All of the array is in the list: `<@`.
    Contained,
    /// Something is in both: `&&`.
    Overlaps,
}

/// How two values compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `=`
    Equal,
    /// `<>`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

/// A `LIKE` pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Like {
    /// The pattern: `%` stands for any text, `_` for one character.
    pub pattern: String,
    /// The character that takes the meaning from the next, if any.
    pub escape: Option<char>,
}

/// A piece of a `LIKE` pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Any text.
    Many,
    /// One character, whichever it is.
    One,
    /// This character.
    Char(char),
}

impl Like {
    /// A pattern as a user wrote it, without an escape character.
    pub fn pattern(pattern: impl Into<String>) -> Self {
        Self { pattern: pattern.into(), escape: None }
    }

    /// What the pattern asks for, piece by piece. It ends at a zero character, as on SQLite, or at an escape character with nothing behind it.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Part> {
        let mut chars = until_zero(&self.pattern).chars();
        std::iter::from_fn(move || {
            Some(match chars.next()? {
                c if Some(c) == self.escape => Part::Char(chars.next()?),
                '%' => Part::Many,
                '_' => Part::One,
                c => Part::Char(c),
            })
        })
    }

    /// Text that has the given text at its start, end or anywhere, taken literally.
    pub fn literal(text: &str, any_before: bool, any_after: bool) -> Self {
        let mut pattern = String::with_capacity(text.len() + 2);
        if any_before {
            pattern.push('%');
        }
        for c in text.chars() {
            if matches!(c, '%' | '_' | '\\') {
                pattern.push('\\');
            }
            pattern.push(c);
        }
        if any_after {
            pattern.push('%');
        }
        Self { pattern, escape: Some('\\') }
    }
}

fn until_zero(text: &str) -> &str {
    text.split('\0').next().unwrap_or_default()
}

/// How deeply a filter may nest. Evaluation is recursive, so this bounds the stack.
pub const MAX_DEPTH: usize = 64;

impl Filter {
    /// The filter that every row passes.
    pub fn all() -> Self {
        Self::All(Vec::new())
    }

    /// Whether every row passes without a look at it.
    pub fn is_all(&self) -> bool {
        matches!(self, Self::All(parts) if parts.is_empty())
    }

    /// Both must hold.
    #[must_use]
    pub fn and(self, other: Filter) -> Self {
        match (self, other) {
            (one, other) if other.is_all() => one,
            (one, other) if one.is_all() => other,
            (Self::All(mut parts), other) => {
                parts.push(other);
                Self::All(parts)
            }
            (one, other) => Self::All(vec![one, other]),
        }
    }

    /// The columns that it reads.
    pub fn columns(&self) -> BTreeSet<usize> {
        let mut columns = BTreeSet::new();
        self.visit(&mut |filter| {
            if let Some(column) = filter.column() {
                columns.insert(column);
            }
        });
        columns
    }

    fn column(&self) -> Option<usize> {
        match self {
            Self::All(_) | Self::Any(_) | Self::Not(_) => None,
            Self::IsNull(column)
            | Self::Compare(column, ..)
            | Self::In(column, _)
            | Self::Between(column, ..)
            | Self::Like(column, _)
            | Self::EqualsIgnoringCase(column, _)
            | Self::Array(column, ..) => Some(*column),
        }
    }

    fn visit(&self, f: &mut impl FnMut(&Filter)) {
        f(self);
        match self {
            Self::All(parts) | Self::Any(parts) => parts.iter().for_each(|part| part.visit(f)),
            Self::Not(inner) => inner.visit(f),
            _ => {}
        }
    }

    /// Refuses a filter that nests deeper than [`MAX_DEPTH`].
    ///
    /// # Errors
    /// [`ErrorKind::Filter`].
    pub fn check_depth(&self) -> Result<(), Error> {
        fn deeper_than(filter: &Filter, limit: usize) -> bool {
            let Some(limit) = limit.checked_sub(1) else { return true };
            match filter {
                Filter::All(parts) | Filter::Any(parts) => parts.iter().any(|part| deeper_than(part, limit)),
                Filter::Not(inner) => deeper_than(inner, limit),
                _ => false,
            }
        }
        if deeper_than(self, MAX_DEPTH) {
            return Err(Error::new(ErrorKind::Filter, format!("the filter nests deeper than {MAX_DEPTH} levels")));
        }
        Ok(())
    }
}

/// What comparisons mean in the database at hand, as far as the predicate must know it.
#[derive(Debug, Clone, Default)]
pub struct Semantics {
    /// Per entity, per column: how text compares.
    pub(crate) collations: Vec<Vec<Collation>>,
    /// Whether decimals compare digit by digit; otherwise as 64-bit floats.
    pub(crate) exact_decimals: bool,
    /// Whether a column keeps its values in one form, so that they are sorted as they compare. Otherwise the same time or UUID may be stored in several.
    pub(crate) one_form: bool,
}

/// How text compares and when two texts are equal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Collation {
    /// Byte by byte.
    #[default]
    Binary,
    /// As `Binary`, with ASCII letters folded to one case (SQLite's `NOCASE`).
    NoCase,
    /// As `Binary`, with spaces at the end left aside (SQLite's `RTRIM`).
    RTrim,
    /// In the order in which the database's own enumeration lists its values.
    Listed(Arc<[String]>),
    /// Something that only the database knows.
    Other,
}
