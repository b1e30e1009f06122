use sea_orm::sea_query::{BinOper, ColumnName, ColumnRef, Expr, Keyword, UnOper, Value};

use super::{Comparison, Filter, Like};
use crate::{
    error::{Error, ErrorKind, Result},
    registry::EntityMeta,
};

impl Filter {
    /// Reads a condition that was built with SeaORM's and SeaQuery's expressions.
    ///
    /// # Errors
    /// [`ErrorKind::Filter`] for an expression that is not a comparison of one of the entity's columns with values, or `AND`, `OR` and
    /// `NOT` of such.
    pub fn from_expr(entity: &EntityMeta, expr: &Expr) -> Result<Self> {
        let filter = Reader { entity }.filter(expr)?;
        filter.check_depth()?;
        Ok(filter)
    }
}

struct Reader<'a> {
    entity: &'a EntityMeta,
}

impl Reader<'_> {
    fn filter(&self, expr: &Expr) -> Result<Filter> {
        match expr {
            Expr::Unary(UnOper::Not, inner) => Ok(Filter::Not(Box::new(self.filter(inner)?))),
            Expr::Binary(left, BinOper::And, right) => Ok(Filter::All(vec![self.filter(left)?, self.filter(right)?])),
            Expr::Binary(left, BinOper::Or, right) => Ok(Filter::Any(vec![self.filter(left)?, self.filter(right)?])),
            Expr::Binary(left, oper, right) => self.binary(left, oper, right),
            // `is_in` of nothing and the like.
            Expr::Value(Value::Bool(Some(holds))) | Expr::Constant(Value::Bool(Some(holds))) => Ok(constant(*holds)),
            _ => Err(self.unsupported("this kind of expression")),
        }
    }

    fn binary(&self, left: &Expr, oper: &BinOper, right: &Expr) -> Result<Filter> {
        if let (Some(a), Some(b)) = (value(left), value(right)) {
            return match oper {
                BinOper::Equal => Ok(constant(a == b)),
                BinOper::NotEqual => Ok(constant(a != b)),
                _ => Err(self.unsupported("a comparison of two values")),
            };
        }
        // A value may stand on the left too: `1 < priority`.
        let (column, oper, right) = match self.column(left) {
            Some(column) => (column?, *oper, right),
            None => match self.column(right) {
                Some(column) => (column?, mirrored(*oper), left),
                None => return Err(self.unsupported("a condition without a column")),
            },
        };
        let compare = |comparison| match value(right) {
            Some(value) => Ok(Filter::Compare(column, comparison, value.clone())),
            None => Err(self.unsupported("a comparison with something that is not a value")),
        };
        let negated = |filter: Result<Filter>| filter.map(|filter| Filter::Not(Box::new(filter)));
        match oper {
            BinOper::Equal => compare(Comparison::Equal),
            BinOper::NotEqual => compare(Comparison::NotEqual),
            BinOper::SmallerThan => compare(Comparison::Less),
            BinOper::SmallerThanOrEqual => compare(Comparison::LessOrEqual),
            BinOper::GreaterThan => compare(Comparison::Greater),
            BinOper::GreaterThanOrEqual => compare(Comparison::GreaterOrEqual),
            BinOper::Is if matches!(right, Expr::Keyword(Keyword::Null)) => Ok(Filter::IsNull(column)),
            BinOper::IsNot if matches!(right, Expr::Keyword(Keyword::Null)) => {
                Ok(Filter::Not(Box::new(Filter::IsNull(column))))
            }
            BinOper::In => self.is_in(column, right),
            BinOper::NotIn => negated(self.is_in(column, right)),
            BinOper::Between => self.between(column, right),
            BinOper::NotBetween => negated(self.between(column, right)),
            BinOper::Like => self.like(column, right),
            BinOper::NotLike => negated(self.like(column, right)),
            _ => Err(self.unsupported("this operator")),
        }
    }

    fn is_in(&self, column: usize, list: &Expr) -> Result<Filter> {
        let values: Option<Vec<Value>> = match list {
            Expr::Tuple(items) => items.iter().map(|item| value(item).cloned()).collect(),
            Expr::Values(values) => Some(values.clone()),
            _ => None,
        };
        values
            .map(|values| Filter::In(column, values))
            .ok_or_else(|| self.unsupported("IN with something other than values"))
    }

    fn between(&self, column: usize, bounds: &Expr) -> Result<Filter> {
        if let Expr::Binary(low, BinOper::And, high) = bounds
            && let (Some(low), Some(high)) = (value(low), value(high))
        {
            return Ok(Filter::Between(column, low.clone(), high.clone()));
        }
        Err(self.unsupported("BETWEEN with something other than values"))
    }

    fn like(&self, column: usize, pattern: &Expr) -> Result<Filter> {
        let (pattern, escape) = match pattern {
            Expr::Binary(pattern, BinOper::Escape, escape) => (&**pattern, Some(&**escape)),
            pattern => (pattern, None),
        };
        let text = |expr: &Expr| match value(expr) {
            Some(Value::String(Some(text))) => Some(text.clone()),
            Some(Value::Char(Some(c))) => Some(c.to_string()),
            _ => None,
        };
        let pattern = text(pattern).ok_or_else(|| self.unsupported("LIKE with something other than a text"))?;
        let escape = escape.and_then(text).and_then(|text| text.chars().next());
        Ok(Filter::Like(column, Like { pattern, escape }))
    }

    /// The column that an expression is, if it is one.
    fn column(&self, expr: &Expr) -> Option<Result<usize>> {
        let Expr::Column(ColumnRef::Column(ColumnName(table, name))) = expr else { return None };
        if table.as_ref().is_some_and(|table| table.1.inner() != self.entity.name) {
            return Some(Err(self.unsupported("a column of another table")));
        }
        let name = name.inner();
        Some(
            self.entity
                .column_index(&name)
                .ok_or_else(|| Error::new(ErrorKind::Filter, format!("{} has no column {name}", self.entity.name))),
        )
    }

    fn unsupported(&self, what: &str) -> Error {
        Error::new(ErrorKind::Filter, format!("a filter on {} uses {what}, which cannot be followed", self.entity.name))
    }
}

fn constant(holds: bool) -> Filter {
    if holds { Filter::All(Vec::new()) } else { Filter::Any(Vec::new()) }
}

fn value(expr: &Expr) -> Option<&Value> {
    match expr {
        Expr::Value(value) | Expr::Constant(value) => Some(value),
        Expr::AsEnum(_, inner) => value(inner),
        _ => None,
    }
}

fn mirrored(oper: BinOper) -> BinOper {
    match oper {
        BinOper::SmallerThan => BinOper::GreaterThan,
        BinOper::SmallerThanOrEqual => BinOper::GreaterThanOrEqual,
        BinOper::GreaterThan => BinOper::SmallerThan,
        BinOper::GreaterThanOrEqual => BinOper::SmallerThanOrEqual,
        other => other,
    }
}
