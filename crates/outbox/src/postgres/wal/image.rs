//! A row of the log as the image that the triggers would have written of it.

use std::fmt::Write as _;

use super::pgoutput::{Relation, Value};
use crate::{
    error::{Error, ErrorKind, Result},
    registry::{EntityMeta, Kind},
};

/// A table of the log, and which of its columns its entity has.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    columns: Vec<Column>,
    /// How many columns the rows have.
    width: usize,
    /// Columns of the entity that the table did not have then.
    pub(super) lacks: Vec<&'static str>,
}

#[derive(Debug)]
struct Column {
    /// The name as a JSON string.
    name: String,
    /// Where it stands in the rows of the log.
    place: usize,
    in_key: bool,
    form: Form,
}

/// How a value's text form becomes JSON, as `row_to_json` does it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Boolean,
    Number,
    /// A date or a time of day and such, and everything else: its text.
    Text,
    Instant,
    /// JSON has hexadecimal digits for bytes anyway; what stands before them is left out.
    Bytes,
    Array(Box<Form>),
}

/// The ids of types that have a form of their own, whatever the entity takes them for. They are the same in every database.
mod types {
    pub(super) const BOOL: u32 = 16;
    pub(super) const TIMESTAMP: u32 = 1114;
    pub(super) const TIMESTAMPTZ: u32 = 1184;
}

fn form(kind: &Kind, type_id: u32) -> Form {
    match (kind, type_id) {
        // The type is the array's, not the element's.
        (Kind::Array(element), _) => Form::Array(Box::new(form(element, 0))),
        (_, types::BOOL) | (Kind::Boolean, _) => Form::Boolean,
        (_, types::TIMESTAMP | types::TIMESTAMPTZ) | (Kind::DateTime | Kind::Timestamp | Kind::TimestampTz, _) => {
            Form::Instant
        }
        (Kind::Integer { .. } | Kind::Float | Kind::Double | Kind::Decimal, _) => Form::Number,
        (Kind::Bytes, _) => Form::Bytes,
        _ => Form::Text,
    }
}

/// What an update did to a row.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Nothing,
    Update,
    /// It is another row now: its key has changed.
    Moved,
}

impl Table {
    pub(super) fn new(entity: &EntityMeta, relation: &Relation<'_>) -> Self {
        let mut lacks = Vec::new();
        let mut columns = Vec::with_capacity(entity.columns.len());
        for column in &entity.columns {
            match relation.columns.iter().position(|other| other.name == column.name) {
                Some(place) => columns.push(Column {
                    name: serde_json::Value::from(column.name).to_string(),
                    place,
                    in_key: column.in_key,
                    form: form(&column.kind, relation.columns[place].type_id),
                }),
                None => lacks.push(column.name),
            }
        }
        Self { name: entity.name, columns, width: relation.columns.len(), lacks }
    }

    /// The row as a JSON object. What a change left as it was is taken from the row before.
    pub(super) fn image(&self, row: &[Value<'_>], before: Option<&[Value<'_>]>) -> Result<String> {
        self.check(row)?;
        let mut out = String::with_capacity(64);
        for (index, column) in self.columns.iter().enumerate() {
            out.push(if index == 0 { '{' } else { ',' });
            out.push_str(&column.name);
            out.push(':');
            match value(row, before, column.place) {
                Value::Null => out.push_str("null"),
                Value::Text(text) => column.form.write(text, &mut out),
                Value::Unchanged => {
                    let problem =
                        format!("a row of {} in the database's log lacks a value that it does not say", self.name);
                    return Err(Error::new(ErrorKind::Corrupt, problem));
                }
            }
        }
        out.push('}');
        Ok(out)
    }

    /// What an update did.
    pub(super) fn effect(&self, before: &[Value<'_>], after: &[Value<'_>]) -> Result<Effect> {
        self.check(before)?;
        self.check(after)?;
        let mut effect = Effect::Nothing;
        for column in &self.columns {
            if before[column.place] == value(after, Some(before), column.place) {
                continue;
            }
            if column.in_key {
                return Ok(Effect::Moved);
            }
            effect = Effect::Update;
        }
        Ok(effect)
    }

    fn check(&self, row: &[Value<'_>]) -> Result<()> {
        if row.len() == self.width {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            format!("a row of {} in the database's log has another number of columns", self.name),
        ))
    }
}

fn value<'a>(row: &[Value<'a>], before: Option<&[Value<'a>]>, place: usize) -> Value<'a> {
    match (row[place], before) {
        (Value::Unchanged, Some(before)) => before[place],
        (value, _) => value,
    }
}

impl Form {
    fn write(&self, text: &str, out: &mut String) {
        match self {
            Self::Boolean if text == "t" => out.push_str("true"),
            Self::Boolean if text == "f" => out.push_str("false"),
            Self::Number if is_number(text) => out.push_str(text),
            Self::Instant => write_instant(text, out),
            // Bounds other than the usual stand before it: `[0:1]={1,2}`.
            Self::Array(element) => match text.find('{') {
                Some(start) => write_array(&text[start..], element, out),
                None => quote(text, out),
            },
            Self::Bytes => quote(text.strip_prefix("\\x").unwrap_or(text), out),
            _ => quote(text, out),
        }
    }
}

/// Whether it is a number in JSON too: infinities and what is none are texts there.
fn is_number(text: &str) -> bool {
    text.as_bytes().iter().any(u8::is_ascii_digit)
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e'))
}

/// `2026-11-20 16:43:00.5+00` is `2026-11-20T16:43:00.5+00:00` in JSON.
fn write_instant(text: &str, out: &mut String) {
    let Some((date, rest)) = text.split_once(' ').filter(|(date, _)| date.ends_with(|c: char| c.is_ascii_digit()))
    else {
        return quote(text, out);
    };
    let (time, era) = rest.split_once(' ').map_or((rest, ""), |(time, era)| (time, era));
    let hours_only = time.rfind(['+', '-']).is_some_and(|sign| time.len() - sign == 3);
    let _ = write!(out, "\"{date}T{time}{}", if hours_only { ":00" } else { "" });
    if !era.is_empty() {
        let _ = write!(out, " {era}");
    }
    out.push('"');
}

/// `{1,NULL,"a \"b\""}` is `[1,null,"a \"b\""]` in JSON; arrays in arrays alike.
fn write_array(text: &str, element: &Form, out: &mut String) {
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' => out.push('['),
            '}' => out.push(']'),
            ',' => out.push(','),
            '"' => {
                let mut value = String::new();
                while let Some(c) = chars.next().filter(|c| *c != '"') {
                    value.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
                }
                element.write(&value, out);
            }
            first => {
                let mut value = String::from(first);
                while let Some(c) = chars.next_if(|c| !matches!(c, ',' | '}')) {
                    value.push(c);
                }
                if value == "NULL" { out.push_str("null") } else { element.write(&value, out) }
            }
        }
    }
}

fn quote(text: &str, out: &mut String) {
    if text.bytes().all(|byte| byte >= 0x20 && !matches!(byte, b'"' | b'\\')) {
        out.push('"');
        out.push_str(text);
        out.push('"');
        return;
    }
    crate::cell::write_text(text, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_form_that_the_database_gives_them_in_json() {
        let written = |form: Form, text| {
            let mut out = String::new();
            form.write(text, &mut out);
            out
        };
        for (form, text, json) in [
            (Form::Boolean, "t", "true"),
            (Form::Boolean, "f", "false"),
            (Form::Number, "-1.5e-07", "-1.5e-07"),
            (Form::Number, "-Infinity", "\"-Infinity\""),
            (Form::Number, "NaN", "\"NaN\""),
            (Form::Bytes, "\\x00ff", "\"00ff\""),
            (Form::Text, "say \"no\"\n", "\"say \\\"no\\\"\\n\""),
            (Form::Instant, "2026-11-20 16:43:00.5", "\"2026-11-20T16:43:00.5\""),
            (Form::Instant, "2026-11-20 16:43:00+00", "\"2026-11-20T16:43:00+00:00\""),
            (Form::Instant, "2026-11-20 16:43:00.123456-03:30", "\"2026-11-20T16:43:00.123456-03:30\""),
            (Form::Instant, "0044-03-15 10:00:00+00 BC", "\"0044-03-15T10:00:00+00:00 BC\""),
            (Form::Instant, "infinity", "\"infinity\""),
            (Form::Array(Box::new(Form::Number)), "{}", "[]"),
            (Form::Array(Box::new(Form::Number)), "[0:1]={1,NULL}", "[1,null]"),
            (Form::Array(Box::new(Form::Number)), "{{1,2},{NaN,4}}", "[[1,2],[\"NaN\",4]]"),
            (Form::Array(Box::new(Form::Boolean)), "{t,f}", "[true,false]"),
            (
                Form::Array(Box::new(Form::Text)),
                r#"{a,"b, \"c\" \\ }","",NULL,"NULL"}"#,
                r#"["a","b, \"c\" \\ }","",null,"NULL"]"#,
            ),
            (Form::Array(Box::new(Form::Instant)), r#"{"2026-11-20 16:43:00"}"#, r#"["2026-11-20T16:43:00"]"#),
        ] {
            assert_eq!(written(form, text), json);
        }
    }
}
