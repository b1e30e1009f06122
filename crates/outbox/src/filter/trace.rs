//! Predicates as text, and which of their conditions decide: for whoever asks why a row passes, or does not.

use std::fmt::{self, Display, Formatter, Write};

use chrono::{DateTime, SecondsFormat};

use super::{
    ArrayOperator, Comparison, Part,
    predicate::{Compare, LikePattern, Node, Operand, Predicate, Scalar},
};
use crate::image::Image;

/// A condition on one column that makes a row pass, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deciding {
    /// The condition, with the value that the filter has there: `priority > 3`.
    pub condition: String,
    /// Whether it holds of the row; `None` where that is unknown, as of NULL.
    pub holds: Option<bool>,
}

impl Predicate {
    /// The predicate as text, with a name for each column of the entity.
    pub fn text(&self, names: &[String]) -> String {
        Shown(&self.0, names).to_string()
    }

    /// The conditions on single columns because of which a row passes, or does not: the others could be otherwise without making a difference.
    pub fn deciding(&self, image: &Image, names: &[String]) -> Vec<Deciding> {
        let mut found = Vec::new();
        decide(&self.0, image, &mut |node, holds| {
            found.push(Deciding { condition: Shown(node, names).to_string(), holds });
        });
        found
    }
}

/// Calls for each condition that decides. Of parts that are joined, those do that are as the whole is.
fn decide(node: &Node, image: &Image, found: &mut impl FnMut(&Node, Option<bool>)) {
    let holds = node.eval(image);
    match node {
        Node::All(parts) | Node::Any(parts) => {
            parts.iter().filter(|part| part.eval(image) == holds).for_each(|part| decide(part, image, found));
        }
        Node::Not(inner) => decide(inner, image, found),
        _ => found(node, holds),
    }
}

/// A node with the names of the columns.
#[derive(Clone, Copy)]
pub(super) struct Shown<'a>(pub(super) &'a Node, pub(super) &'a [String]);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(node, names) = *self;
        let name = |column: &usize| names.get(*column).map_or("?", String::as_str);
        match node {
            Node::All(parts) if parts.is_empty() => f.write_str("all rows"),
            Node::Any(parts) if parts.is_empty() => f.write_str("no row"),
            Node::All(parts) => joined(f, parts, names, " and "),
            Node::Any(parts) => joined(f, parts, names, " or "),
            Node::Not(inner) => write!(f, "not ({})", Self(inner, names)),
            Node::IsNull(column) => write!(f, "{} is null", name(column)),
            Node::Compare(Operand { column, compare }, comparison, scalar) => {
                write!(f, "{} {} {}", name(column), sign(*comparison), Valued(compare, scalar.as_ref()))
            }
            Node::In(Operand { column, compare }, scalars, has_null) => {
                write!(f, "{} in {}", name(column), Listed(compare, scalars, *has_null))
            }
            Node::Between(Operand { column, compare }, low, high) => {
                let (low, high) = (Valued(compare, low.as_ref()), Valued(compare, high.as_ref()));
                write!(f, "{} between {low} and {high}", name(column))
            }
            Node::Like(column, pattern) => write!(f, "{} like {:?}", name(column), pattern.text()),
            Node::EqualsIgnoringCase(column, text) => write!(f, "{} is {text:?} in any case", name(column)),
            Node::Array(Operand { column, compare }, operator, scalars) => {
                let operator = match operator {
                    ArrayOperator::Contains => "contains all of",
                    ArrayOperator::Contained => "has nothing but",
                    ArrayOperator::Overlaps => "has one of",
                };
                write!(f, "{} {operator} {}", name(column), Listed(compare, scalars, false))
            }
        }
    }
}

fn joined(f: &mut Formatter<'_>, parts: &[Node], names: &[String], word: &str) -> fmt::Result {
    for (at, part) in parts.iter().enumerate() {
        f.write_str(if at == 0 { "" } else { word })?;
        let shown = Shown(part, names);
        match part {
            Node::All(inner) | Node::Any(inner) if inner.len() > 1 => write!(f, "({shown})")?,
            _ => write!(f, "{shown}")?,
        }
    }
    Ok(())
}

fn sign(comparison: Comparison) -> &'static str {
    match comparison {
        Comparison::Equal => "=",
        Comparison::NotEqual => "<>",
        Comparison::Less => "<",
        Comparison::LessOrEqual => "<=",
        Comparison::Greater => ">",
        Comparison::GreaterOrEqual => ">=",
    }
}

/// A value as those of its column are written.
pub(super) struct Valued<'a>(pub(super) &'a Compare, pub(super) Option<&'a Scalar>);

impl Display for Valued<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (self.0, self.1) {
            (_, None) => f.write_str("null"),
            (Compare::Boolean, Some(Scalar::Integer(value))) => write!(f, "{}", *value != 0),
            (Compare::Place(values), Some(Scalar::Integer(place))) => {
                let value = usize::try_from(*place).ok().and_then(|place| values.get(place));
                write!(f, "{:?}", value.map_or("", String::as_str))
            }
            (Compare::Json, Some(Scalar::Text(json))) => f.write_str(json),
            (_, Some(Scalar::Integer(value))) => write!(f, "{value}"),
            (_, Some(Scalar::Real(value))) => write!(f, "{value}"),
            (_, Some(Scalar::Decimal(value))) => write!(f, "{value}"),
            (_, Some(Scalar::Text(text))) => write!(f, "{text:?}"),
            (_, Some(Scalar::Instant(seconds, nanos))) => match DateTime::from_timestamp(*seconds, *nanos) {
                Some(at) => f.write_str(&at.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
                None => write!(f, "{seconds} s after 1970"),
            },
        }
    }
}

struct Listed<'a>(&'a Compare, &'a [Scalar], /* and NULL */ bool);

impl Display for Listed<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let scalars = self.1.iter().map(Some).chain(self.2.then_some(None));
        f.write_char('[')?;
        for (at, scalar) in scalars.enumerate() {
            write!(f, "{}{}", if at == 0 { "" } else { ", " }, Valued(self.0, scalar))?;
        }
        f.write_char(']')
    }
}

impl LikePattern {
    /// The pattern as it is written, with `\` as the escape character.
    fn text(&self) -> String {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Many => text.push('%'),
                Part::One => text.push('_'),
                Part::Char(c) => {
                    if matches!(c, '%' | '_' | '\\') {
                        text.push('\\');
                    }
                    text.push(*c);
                }
            }
        }
        text
    }
}
