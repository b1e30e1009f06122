//! Claims in the places of values.

use std::collections::BTreeSet;

use async_graphql::Value as ConstValue;
use sea_orm::sea_query::Value;
use serde_json::{Map, Value as Json};
use tidewire_outbox::{Filter, Kind};

use super::Claim;
use crate::input::Reader;

/// What a text in the configuration stands for: `$name` a claim, `$$…` a text that begins with one dollar less.
pub(crate) enum WrittenClaim<'a> {
    Claim(&'a str),
    Text(&'a str),
}

/// Reads a text of a rule in the configuration.
pub(crate) fn written_claim(text: &str) -> WrittenClaim<'_> {
    match text.strip_prefix('$') {
        Some(rest) if rest.starts_with('$') => WrittenClaim::Text(rest),
        Some(name) => WrittenClaim::Claim(name),
        None => WrittenClaim::Text(text),
    }
}

/// What the viewer is known to be under this name. Null is nothing.
pub(super) fn find<'a>(claims: &'a Map<String, Json>, name: &str) -> Option<&'a Json> {
    let found = match claims.get(name) {
        Some(claim) => Some(claim),
        None => {
            let (outer, inner) = name.split_once('.')?;
            inner.split('.').try_fold(claims.get(outer)?, |claim, name| claim.get(name))
        }
    };
    found.filter(|claim| !claim.is_null())
}

/// Adds the names of the claims that a rule asks for.
pub(super) fn add_names(rule: &Filter, names: &mut BTreeSet<String>) {
    let mut add = |value: &Value| names.extend(Claim::named_by(value).map(str::to_owned));
    match rule {
        Filter::All(parts) | Filter::Any(parts) => parts.iter().for_each(|part| add_names(part, names)),
        Filter::Not(inner) => add_names(inner, names),
        Filter::Compare(_, _, value) => add(value),
        Filter::In(_, values) | Filter::Array(_, _, values) => values.iter().for_each(add),
        Filter::Between(_, low, high) => [low, high].into_iter().for_each(add),
        Filter::IsNull(_) | Filter::Like(..) | Filter::EqualsIgnoringCase(..) => {}
    }
}

/// Puts claims into rules of one entity.
pub(super) struct Fill<'a> {
    pub(super) reader: Reader<'a>,
    pub(super) claims: &'a Map<String, Json>,
}

impl Fill<'_> {
    /// The rule as a filter; `None` where a claim is missing, or is not of its column's type.
    pub(super) fn rule(&self, rule: &Filter) -> Option<Filter> {
        let parts = |parts: &[Filter]| parts.iter().map(|part| self.rule(part)).collect::<Option<_>>();
        Some(match rule {
            Filter::All(all) => Filter::All(parts(all)?),
            Filter::Any(any) => Filter::Any(parts(any)?),
            Filter::Not(inner) => Filter::Not(Box::new(self.rule(inner)?)),
            Filter::Compare(column, comparison, value) => {
                Filter::Compare(*column, *comparison, self.value(*column, value)?)
            }
            Filter::Between(column, low, high) => {
                Filter::Between(*column, self.value(*column, low)?, self.value(*column, high)?)
            }
            Filter::In(column, values) => Filter::In(*column, self.values(*column, values)?),
            Filter::Array(column, operator, values) => Filter::Array(*column, *operator, self.values(*column, values)?),
            Filter::IsNull(_) | Filter::Like(..) | Filter::EqualsIgnoringCase(..) => rule.clone(),
        })
    }

    fn value(&self, column: usize, value: &Value) -> Option<Value> {
        match Claim::named_by(value) {
            Some(_) if self.reader.entity.columns[column].element().is_some() => None,
            Some(name) => self.converted(column, find(self.claims, name)?),
            None => Some(value.clone()),
        }
    }

    /// A claim among several values may be a list, and then stands for all that is in it.
    fn values(&self, column: usize, values: &[Value]) -> Option<Vec<Value>> {
        let mut all = Vec::with_capacity(values.len());
        for value in values {
            match Claim::named_by(value).map(|name| find(self.claims, name)) {
                Some(claim) => match claim? {
                    Json::Array(items) => {
                        for item in items {
                            all.push(self.converted(column, item)?);
                        }
                    }
                    single => all.push(self.converted(column, single)?),
                },
                None => all.push(value.clone()),
            }
        }
        Some(all)
    }

    /// A claim as a value of the column's type, of its elements' type where it holds lists.
    fn converted(&self, column: usize, claim: &Json) -> Option<Value> {
        let kind = &self.reader.entity.columns[column].kind;
        if let Kind::Array(_) = kind {
            let list = ConstValue::List(vec![ConstValue::from_json(claim.clone()).ok()?]);
            let Value::Array(_, Some(values)) = self.reader.value(column, &list).ok()? else { return None };
            return values.into_iter().next();
        }
        // Issuers write numbers as texts (`sub` always is one), and texts as numbers.
        let claim = match (kind, claim) {
            (_, Json::Null) | (Kind::Text, Json::Array(_) | Json::Object(_) | Json::Bool(_)) => return None,
            (Kind::Integer { .. }, Json::String(text)) => ConstValue::from(text.parse::<i64>().ok()?),
            (Kind::Text, Json::Number(number)) => ConstValue::String(number.to_string()),
            (_, claim) => ConstValue::from_json(claim.clone()).ok()?,
        };
        self.reader.value(column, &claim).ok()
    }
}
