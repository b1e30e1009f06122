use std::{
    borrow::Cow,
    cmp::Ordering,
    hash::{Hash, Hasher},
    sync::Arc,
};

use rust_decimal::Decimal;
use sea_orm::sea_query::{OptionEnum, Value};

use super::{ArrayOperator, Collation, Comparison, Filter, Like, Part, Semantics, until_zero};
use crate::{
    cell,
    error::{Error, ErrorKind, Result},
    image::Image,
    json::minified,
    registry::{EntityMeta, Kind},
};

/// A filter made ready to be asked of images.
#[derive(Debug, Clone)]
pub struct Predicate(pub(super) Node);

#[derive(Debug, Clone)]
pub(super) enum Node {
    All(Box<[Node]>),
    Any(Box<[Node]>),
    Not(Box<Node>),
    IsNull(usize),
    Compare(Operand, Comparison, Option<Scalar>),
    In(Operand, Box<[Scalar]>, /* has a NULL */ bool),
    Between(Operand, Option<Scalar>, Option<Scalar>),
    Like(usize, LikePattern),
    EqualsIgnoringCase(usize, Box<str>),
    Array(Operand, ArrayOperator, Box<[Scalar]>),
}

/// A column and how to compare what it holds.
#[derive(Debug, Clone)]
pub(super) struct Operand {
    pub(super) column: usize,
    pub(super) compare: Compare,
}

#[derive(Debug, Clone)]
pub(super) enum Compare {
    Boolean,
    Integer,
    /// 64-bit floats; and decimals where the database keeps them as floats.
    Real,
    /// 32-bit floats.
    Real32,
    Decimal,
    Text(Collation),
    /// By its place among an enumeration's values.
    Place(Arc<[String]>),
    Instant,
    Json,
}

#[derive(Debug, Clone)]
pub(super) enum Scalar {
    Integer(i128),
    /// Never NaN, nor -0.
    Real(f64),
    Decimal(Decimal),
    Text(Box<str>),
    /// Seconds since 1970 and nanoseconds.
    Instant(i64, u32),
}

impl Predicate {
    /// Prepares a filter on rows of an entity.
    ///
    /// # Errors
    /// [`ErrorKind::Filter`] where the filter nests too deeply, or where only the database knows what a comparison means (a collation
    /// of its own).
    pub fn compile(filter: &Filter, entity: &EntityMeta, semantics: &Semantics) -> Result<Self> {
        filter.check_depth()?;
        Ok(Self(Compiler { entity, semantics }.node(filter)?))
    }

    /// Whether the row passes. Unknown is not passing, as in SQL.
    pub fn matches(&self, image: &Image) -> bool {
        self.0.eval(image) == Some(true)
    }
}

struct Compiler<'a> {
    entity: &'a EntityMeta,
    semantics: &'a Semantics,
}

impl Compiler<'_> {
    fn node(&self, filter: &Filter) -> Result<Node> {
        let nodes = |parts: &[Filter]| parts.iter().map(|part| self.node(part)).collect::<Result<Box<[_]>>>();
        Ok(match filter {
            Filter::All(parts) => Node::All(nodes(parts)?),
            Filter::Any(parts) => Node::Any(nodes(parts)?),
            Filter::Not(inner) => Node::Not(Box::new(self.node(inner)?)),
            Filter::IsNull(column) => Node::IsNull(*column),
            Filter::Compare(column, comparison, value) => {
                let operand = self.operand(*column)?;
                let value = scalar(&operand.compare, value);
                Node::Compare(operand, *comparison, value)
            }
            Filter::In(column, values) => {
                let operand = self.operand(*column)?;
                let scalars: Vec<_> = values.iter().map(|value| scalar(&operand.compare, value)).collect();
                let has_null = scalars.contains(&None);
                Node::In(operand, scalars.into_iter().flatten().collect(), has_null)
            }
            Filter::Between(column, low, high) => {
                let operand = self.operand(*column)?;
                let (low, high) = (scalar(&operand.compare, low), scalar(&operand.compare, high));
                Node::Between(operand, low, high)
            }
            Filter::Like(column, like) => Node::Like(*column, LikePattern::new(like)),
            Filter::Array(column, operator, values) => {
                let operand = self.operand(*column)?;
                let scalars = values.iter().filter_map(|value| scalar(&operand.compare, value)).collect();
                Node::Array(operand, *operator, scalars)
            }
            Filter::EqualsIgnoringCase(column, text) => {
                Node::EqualsIgnoringCase(*column, text.to_ascii_lowercase().into_boxed_str())
            }
        })
    }

    fn operand(&self, column: usize) -> Result<Operand> {
        let meta = &self.entity.columns[column];
        // Of an array its elements are compared.
        let kind = if let Kind::Array(element) = &meta.kind { element } else { &meta.kind };
        let compare = match kind {
            Kind::Boolean => Compare::Boolean,
            Kind::Integer { .. } => Compare::Integer,
            Kind::Float => Compare::Real32,
            Kind::Decimal if self.semantics.exact_decimals => Compare::Decimal,
            Kind::Double | Kind::Decimal => Compare::Real,
            Kind::DateTime | Kind::Timestamp | Kind::TimestampTz => Compare::Instant,
            Kind::Json => Compare::Json,
            Kind::Text | Kind::Enum(_) => {
                let collations = self.semantics.collations.get(self.entity.id.index());
                match collations.and_then(|columns| columns.get(column)).cloned().unwrap_or_default() {
                    Collation::Other => {
                        return Err(Error::new(
                            ErrorKind::Filter,
                            format!(
                                "{}.{} has a collation that only the database knows, so changes cannot be filtered by it",
                                self.entity.name, meta.name
                            ),
                        ));
                    }
                    Collation::Listed(values) => Compare::Place(values),
                    collation => Compare::Text(collation),
                }
            }
            // The canonical texts of these compare as their values do.
            Kind::Bytes | Kind::Uuid | Kind::Date | Kind::Time | Kind::Array(_) => Compare::Text(Collation::Binary),
        };
        Ok(Operand { column, compare })
    }
}

impl Node {
    pub(super) fn eval(&self, image: &Image) -> Option<bool> {
        match self {
            // SQL's AND and OR: a false (a true) decides whatever is unknown.
            Self::All(parts) => fold(parts, image, false),
            Self::Any(parts) => fold(parts, image, true),
            Self::Not(inner) => inner.eval(image).map(|holds| !holds),
            Self::IsNull(column) => Some(image.cell(*column).is_none()),
            Self::Compare(operand, comparison, scalar) => {
                let ordering = operand.cmp(image, scalar.as_ref()?)?;
                Some(match comparison {
                    Comparison::Equal => ordering.is_eq(),
                    Comparison::NotEqual => ordering.is_ne(),
                    Comparison::Less => ordering.is_lt(),
                    Comparison::LessOrEqual => ordering.is_le(),
                    Comparison::Greater => ordering.is_gt(),
                    Comparison::GreaterOrEqual => ordering.is_ge(),
                })
            }
            Self::In(_, scalars, false) if scalars.is_empty() => Some(false),
            Self::In(operand, scalars, has_null) => {
                image.cell(operand.column)?;
                if scalars.iter().any(|scalar| operand.cmp(image, scalar) == Some(Ordering::Equal)) {
                    Some(true)
                } else {
                    (!has_null).then_some(false)
                }
            }
            Self::Between(operand, low, high) => {
                let above = low.as_ref().and_then(|low| operand.cmp(image, low)).map(Ordering::is_ge);
                let below = high.as_ref().and_then(|high| operand.cmp(image, high)).map(Ordering::is_le);
                match (above, below) {
                    (Some(false), _) | (_, Some(false)) => Some(false),
                    (Some(true), Some(true)) => Some(true),
                    _ => None,
                }
            }
            Self::Like(column, pattern) => Some(pattern.matches(&cell::text(image.cell(*column)?))),
            Self::Array(operand, operator, scalars) => {
                let cell = image.cell(operand.column)?;
                let is = |element: Option<&str>, scalar| {
                    element.and_then(|element| operand.compare.cmp(element, scalar)) == Some(Ordering::Equal)
                };
                let in_array = |scalar| cell::elements(cell).any(|element| is(element, scalar));
                Some(match operator {
                    ArrayOperator::Contains => scalars.iter().all(in_array),
                    ArrayOperator::Contained => {
                        cell::elements(cell).all(|element| scalars.iter().any(|scalar| is(element, scalar)))
                    }
                    ArrayOperator::Overlaps => scalars.iter().any(in_array),
                })
            }
            Self::EqualsIgnoringCase(column, text) => Some(cell::text(image.cell(*column)?).eq_ignore_ascii_case(text)),
        }
    }
}

fn fold(parts: &[Node], image: &Image, decisive: bool) -> Option<bool> {
    let mut unknown = false;
    for part in parts {
        match part.eval(image) {
            Some(holds) if holds == decisive => return Some(decisive),
            Some(_) => {}
            None => unknown = true,
        }
    }
    (!unknown).then_some(!decisive)
}

impl Operand {
    /// How the row's value stands to the scalar; `None` where the row's value is NULL, or not of the column's type.
    fn cmp(&self, image: &Image, scalar: &Scalar) -> Option<Ordering> {
        self.compare.cmp(image.cell(self.column)?, scalar)
    }
}

impl Scalar {
    fn real(value: f64) -> Option<Self> {
        // -0 is 0.
        (!value.is_nan()).then_some(Self::Real(value + 0.0))
    }
}

/// Scalars of one column compare as its values do; what is of different columns has some order.
impl Ord for Scalar {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Integer(left), Self::Integer(right)) => left.cmp(right),
            (Self::Real(left), Self::Real(right)) => left.total_cmp(right),
            (Self::Decimal(left), Self::Decimal(right)) => left.cmp(right),
            (Self::Text(left), Self::Text(right)) => left.cmp(right),
            (Self::Instant(left, nanos), Self::Instant(right, others)) => (left, nanos).cmp(&(right, others)),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl Scalar {
    fn rank(&self) -> u8 {
        match self {
            Self::Integer(_) => 0,
            Self::Real(_) => 1,
            Self::Decimal(_) => 2,
            Self::Text(_) => 3,
            Self::Instant(..) => 4,
        }
    }
}

impl PartialOrd for Scalar {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scalar {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Scalar {}

impl Hash for Scalar {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Integer(value) => value.hash(state),
            Self::Real(value) => value.to_bits().hash(state),
            Self::Decimal(value) => value.hash(state),
            Self::Text(value) => value.hash(state),
            Self::Instant(seconds, nanos) => (seconds, nanos).hash(state),
        }
    }
}

impl Compare {
    /// What a canonical cell holds, as values of the column compare; `None` where it is not of the column's type.
    pub(super) fn read(&self, cell: &str) -> Option<Scalar> {
        let text = || cell::text(cell);
        Some(match self {
            Self::Boolean => Scalar::Integer(i128::from(cell == "true")),
            Self::Integer => Scalar::Integer(text().parse().ok()?),
            // A 32-bit float's shortest text is another number when it is read as 64 bits.
            Self::Real32 => return Scalar::real(f64::from(text().parse::<f32>().ok()?)),
            Self::Real => return Scalar::real(text().parse().ok()?),
            Self::Decimal => Scalar::Decimal(text().parse().ok()?),
            Self::Instant => {
                let (seconds, nanos) = cell::instant(&text())?;
                Scalar::Instant(seconds, nanos)
            }
            Self::Json => Scalar::Text(minified(cell).into()),
            Self::Text(collation) => Scalar::Text(collated(collation, &text()).into()),
            // A value that the enumeration has got since stands at its end, where most are added.
            Self::Place(values) => Scalar::Integer(place(values, &text()).unwrap_or(values.len() as i128)),
        })
    }

    /// How a canonical cell stands to the scalar; `None` where it is not of that type.
    fn cmp(&self, cell: &str, scalar: &Scalar) -> Option<Ordering> {
        match (self, scalar) {
            // As below, without a copy of what is compared most.
            (Self::Text(collation), Scalar::Text(right)) => Some(compare_text(collation, &cell::text(cell), right)),
            _ => Some(self.read(cell)?.cmp(scalar)),
        }
    }
}

fn place(values: &[String], value: &str) -> Option<i128> {
    values.iter().position(|known| known == value).map(|place| place as i128)
}

/// A text in the form in which its bytes compare as the collation has it.
fn collated<'a>(collation: &Collation, text: &'a str) -> Cow<'a, str> {
    match collation {
        Collation::NoCase => text.to_ascii_lowercase().into(),
        Collation::RTrim => text.trim_end_matches(' ').into(),
        Collation::Binary | Collation::Listed(_) | Collation::Other => text.into(),
    }
}

/// How a text stands to one that is [`collated`] already.
fn compare_text(collation: &Collation, left: &str, right: &str) -> Ordering {
    match collation {
        Collation::NoCase => left.bytes().map(|byte| byte.to_ascii_lowercase()).cmp(right.bytes()),
        _ => collated(collation, left).as_ref().cmp(right),
    }
}

/// A value in the form that the comparison takes; `None` for NULL.
fn scalar(compare: &Compare, value: &Value) -> Option<Scalar> {
    if matches!(compare, Compare::Real | Compare::Real32) {
        return Scalar::real(match value {
            Value::Float(v) => f64::from((*v)?),
            Value::Double(v) => (*v)?,
            // Not by `to_f64`, which may give a neighbour.
            Value::Decimal(v) => v.as_ref()?.to_string().parse().ok()?,
            other => canonical(other)?.parse().ok()?,
        });
    }
    let text = canonical(value)?;
    Some(match compare {
        Compare::Boolean => Scalar::Integer(i128::from(text == "true" || text == "1")),
        Compare::Integer => Scalar::Integer(text.parse().ok()?),
        Compare::Place(values) => Scalar::Integer(place(values, &text)?),
        Compare::Decimal => Scalar::Decimal(text.parse().ok()?),
        Compare::Instant => {
            let (seconds, nanos) = cell::instant(&text)?;
            Scalar::Instant(seconds, nanos)
        }
        Compare::Json => match value {
            Value::Json(Some(document)) => Scalar::Text(document.to_string().into_boxed_str()),
            _ => Scalar::Text(minified(&text).into()),
        },
        Compare::Text(collation) => Scalar::Text(collated(collation, &text).into()),
        Compare::Real | Compare::Real32 => return None,
    })
}

fn canonical(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => return text.clone(),
        Value::Enum(OptionEnum::Some(value)) => return Some(value.value.to_string()),
        _ => {}
    }
    let mut out = String::new();
    cell::write_value(value, &mut out).then(|| cell::text(&out).into_owned())
}

/// A `LIKE` pattern, cut into its parts. ASCII letters match in either case, and pattern and text end at a zero character, as SQLite has it.
#[derive(Debug, Clone)]
pub(super) struct LikePattern(pub(super) Box<[Part]>);

impl LikePattern {
    fn new(like: &Like) -> Self {
        let mut parts: Vec<Part> = like.parts().collect();
        // Two wildcards in a row say what one says.
        parts.dedup_by(|part, before| (*part, *before) == (Part::Many, Part::Many));
        Self(parts.into_boxed_slice())
    }

    /// Matches greedily, going back only to the latest `%`: linear for most patterns, never worse than pattern times text.
    fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = until_zero(text).chars().collect();
        let (mut at, mut part) = (0, 0);
        let mut retry: Option<(usize, usize)> = None;
        while at < text.len() {
            match self.0.get(part) {
                Some(Part::Many) => {
                    retry = Some((at, part + 1));
                    part += 1;
                }
                Some(Part::One) => (at, part) = (at + 1, part + 1),
                Some(Part::Char(c)) if c.eq_ignore_ascii_case(&text[at]) => (at, part) = (at + 1, part + 1),
                _ => match &mut retry {
                    Some((from, after)) => {
                        *from += 1;
                        (at, part) = (*from, *after);
                    }
                    None => return false,
                },
            }
        }
        self.0[part..].iter().all(|part| *part == Part::Many)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_matches_as_sqlite_does() {
        let matches = |pattern: &str, text: &str| LikePattern::new(&Like::pattern(pattern)).matches(text);
        assert!(matches("%", ""));
        assert!(matches("a%c", "ABBC"));
        assert!(matches("_ü_", "xüy"));
        assert!(!matches("ü", "Ü"), "only ASCII letters fold");
        assert!(!matches("a_", "a"));
        assert!(matches("%ab%ab", "xabyabzab"));
        assert!(matches("a", "a\0b"));
        assert!(LikePattern::new(&Like::literal("5%", true, false)).matches("15%"));
        assert!(!LikePattern::new(&Like::literal("5%", true, true)).matches("150"));
    }

    #[test]
    fn minified_json_keeps_the_space_inside_strings() {
        assert_eq!(minified(r#"{ "a b" : [ 1, "x \" y" ] }"#), r#"{"a b":[1,"x \" y"]}"#);
    }
}
