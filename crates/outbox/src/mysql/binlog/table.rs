//! Rows of the log as the images that the triggers would have written of them.

use std::collections::HashMap;

use super::{
    events::{Bits, Column, Input, RowsKind, Type, damaged},
    value::{Charset, Form, unreadable},
};
use crate::{error::Result, registry::EntityMeta};

/// The names of character sets by the numbers of collations.
pub(super) type Charsets = HashMap<u64, String>;

/// A row of the log: each column's bytes, or none for NULL.
pub(super) type Row<'a> = Vec<Option<&'a [u8]>>;

/// Takes a row with all of its columns off the front.
pub(super) fn take_row<'a>(types: &[Type], input: &mut Input<'a>) -> Result<Row<'a>> {
    let nulls: Bits<'_> = input.bits(types.len())?;
    let value = |(index, kind): (usize, &Type)| match nulls.is_set(index) {
        true => Ok(None),
        false => kind.take(input).map(Some),
    };
    types.iter().enumerate().map(value).collect()
}

/// A change of a row, as the log has it.
#[derive(Debug)]
pub(super) struct Written<'a> {
    pub(super) before: Option<Row<'a>>,
    pub(super) after: Option<Row<'a>>,
}

/// Takes the next change off the front.
pub(super) fn take_change<'a>(kind: RowsKind, types: &[Type], input: &mut Input<'a>) -> Result<Written<'a>> {
    let before = if kind == RowsKind::Write { None } else { Some(take_row(types, input)?) };
    let after = if kind == RowsKind::Delete { None } else { Some(take_row(types, input)?) };
    Ok(Written { before, after })
}

/// A table of an entity, as it was when the rows were written.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) types: Vec<Type>,
    cells: Vec<Cell>,
    /// Columns of the entity that the table did not have then.
    pub(super) lacks: Vec<&'static str>,
}

#[derive(Debug)]
struct Cell {
    /// The name as a JSON string.
    name: String,
    /// Where it stands in the rows of the log.
    place: usize,
    in_key: bool,
    form: Form,
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
    /// # Errors
    /// [`Setup`](crate::ErrorKind::Setup) naming a column that cannot be read.
    pub(super) fn new(entity: &EntityMeta, columns: &[Column], charsets: &Charsets) -> Result<Self> {
        let mut lacks = Vec::new();
        let mut cells = Vec::with_capacity(entity.columns.len());
        if let Some(column) = columns.iter().find(|column| !column.kind.is_readable()) {
            let why = "is compressed, of a geometry, or in the form of an old server";
            return Err(unreadable(entity.name, &column.name, why));
        }
        for column in &entity.columns {
            let Some(place) = columns.iter().position(|other| other.name == column.name) else {
                lacks.push(column.name);
                continue;
            };
            let found = &columns[place];
            let charset = charsets.get(&found.collation).map_or("utf8mb4", String::as_str);
            let charset = Charset::named(charset)
                .ok_or_else(|| unreadable(entity.name, column.name, &format!("has the character set {charset}")))?;
            cells.push(Cell {
                name: serde_json::Value::from(column.name).to_string(),
                place,
                in_key: column.in_key,
                form: Form::new(column.kind.clone(), found.clone(), charset),
            });
        }
        let types = columns.iter().map(|column| column.kind).collect();
        Ok(Self { name: entity.name, types, cells, lacks })
    }

    /// The row as a JSON object.
    pub(super) fn image(&self, row: &Row<'_>) -> Result<String> {
        let mut out = String::with_capacity(64);
        for (index, cell) in self.cells.iter().enumerate() {
            out.push(if index == 0 { '{' } else { ',' });
            out.push_str(&cell.name);
            out.push(':');
            match row.get(cell.place).ok_or_else(damaged)? {
                None => out.push_str("null"),
                Some(value) => cell.form.write(value, &mut out)?,
            }
        }
        out.push('}');
        Ok(out)
    }

    /// What an update did.
    pub(super) fn effect(&self, before: &Row<'_>, after: &Row<'_>) -> Effect {
        let mut effect = Effect::Nothing;
        for cell in self.cells.iter().filter(|cell| before[cell.place] != after[cell.place]) {
            if cell.in_key {
                return Effect::Moved;
            }
            effect = Effect::Update;
        }
        effect
    }
}

/// A table of ours, whose texts are read by name.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) table: &'static str,
    pub(super) types: Vec<Type>,
    names: Vec<String>,
}

impl Own {
    pub(super) fn new(table: &'static str, columns: &[Column]) -> Self {
        Self {
            table,
            types: columns.iter().map(|column| column.kind).collect(),
            names: columns.iter().map(|column| column.name.clone()).collect(),
        }
    }

    /// Whether the log names its columns.
    pub(super) fn is_named(&self) -> bool {
        self.names.iter().any(|name| !name.is_empty())
    }

    fn bytes<'a>(&self, row: &Row<'a>, name: &str) -> Result<Option<&'a [u8]>> {
        let place = self.names.iter().position(|other| other == name).ok_or_else(damaged)?;
        row.get(place).copied().ok_or_else(damaged)
    }

    pub(super) fn text<'a>(&self, row: &Row<'a>, name: &str) -> Result<Option<&'a str>> {
        let text = self.bytes(row, name)?.map(std::str::from_utf8);
        text.transpose().map_err(|_| damaged())
    }

    pub(super) fn number(&self, row: &Row<'_>, name: &str) -> Result<u64> {
        let bytes = self.bytes(row, name)?.ok_or_else(damaged)?;
        Input(bytes).number(bytes.len().min(8))
    }
}
