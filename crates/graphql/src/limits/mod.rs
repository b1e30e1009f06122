//! What a request may ask for. Each limit is checked before anything recursive, or anything that costs more than reading, looks at what it
//! limits; and each check reads the document once.

mod complexity;
mod document;
mod text;

use async_graphql::{Value, Variables};

pub(crate) use self::{complexity::check_complexity, document::check_document, text::check_text};
use crate::{
    error::{ApiError, Code},
    options::Options,
};

/// Refuses what there is more of than the setting of this name allows.
fn at_most(what: &str, count: usize, setting: &str, most: usize) -> Result<(), ApiError> {
    if count <= most {
        return Ok(());
    }
    Err(ApiError::new(Code::LimitExceeded, format!("the request has more than {most} {what} (`{setting}`)")))
}

/// Refuses variables that are too large.
pub(crate) fn check_variables(variables: &Variables, options: &Options) -> Result<(), ApiError> {
    let size = variables.iter().fold(0, |size, (name, value)| size + name.len() + 3 + size_of(value));
    at_most("bytes of variables", size, "max_variables_bytes", options.max_variables_bytes)
}

/// How long a value's JSON is, near enough: escapes are not counted. Values come nested no deeper than a JSON parser lets them.
fn size_of(value: &Value) -> usize {
    match value {
        Value::Null | Value::Boolean(_) | Value::Number(_) => 4,
        Value::String(text) => text.len() + 2,
        Value::Enum(name) => name.len() + 2,
        Value::Binary(bytes) => bytes.len(),
        Value::List(items) => items.iter().fold(2, |size, item| size + size_of(item) + 1),
        Value::Object(fields) => fields.iter().fold(2, |size, (name, value)| size + name.len() + size_of(value) + 4),
    }
}
