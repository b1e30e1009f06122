use super::{Comparison, Filter, Predicate, Semantics};
use crate::{
    cell,
    registry::{EntityMeta, Kind},
    sql::Direction,
};

/// How far the order in which a database sorts a column's values is known without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Not,
    /// Of two values that differ, which is first; but two that look equal here may differ there.
    Coarsely,
    Exactly,
}

impl Semantics {
    fn order(&self, kind: &Kind) -> Known {
        match kind {
            Kind::Integer { .. } | Kind::Text => Known::Exactly,
            Kind::Uuid | Kind::Date | Kind::Time | Kind::DateTime | Kind::Timestamp | Kind::TimestampTz
                if self.one_form =>
            {
                Known::Exactly
            }
            Kind::Decimal if self.exact_decimals => Known::Exactly,
            // Digits are left out of images, or there are numbers where truths should be.
            Kind::Decimal | Kind::Float | Kind::Double | Kind::Boolean => Known::Coarsely,
            // Values may have been added to an enumeration since.
            _ => Known::Not,
        }
    }
}

/// The rows that certainly come after one whose cells in the columns that decide are given, where that can be told. Others may come after it too: what
/// is NULL has its place at another end on each database, and is among them.
pub(crate) fn after(
    sorting: &[(usize, Option<Direction>)],
    cells: &[Option<String>],
    entity: &EntityMeta,
    semantics: &Semantics,
) -> Option<Predicate> {
    let mut alternatives = Vec::new();
    let mut equal = Vec::new();
    for (&(column, asked), cell) in sorting.iter().zip(cells) {
        let meta = &entity.columns[column];
        let known = match semantics.order(&meta.kind) {
            // What nobody asked to sort by has the order of its index, which is the language's.
            _ if asked.is_none() && meta.kind == Kind::Text => Known::Not,
            known => known,
        };
        let value = cell.as_deref().and_then(|cell| cell::read_value(meta, Some(cell)));
        let Some(value) = value.filter(|_| known != Known::Not) else { break };
        let comparison = if asked == Some(Direction::Descending) { Comparison::Less } else { Comparison::Greater };
        let further = Filter::Compare(column, comparison, value.clone());
        alternatives.push(Filter::All(equal.iter().cloned().chain([further]).collect()));
        if known == Known::Coarsely {
            break;
        }
        equal.push(Filter::Compare(column, Comparison::Equal, value));
    }
    if alternatives.is_empty() {
        return None;
    }
    Predicate::compile(&Filter::Any(alternatives), entity, semantics).ok()
}
