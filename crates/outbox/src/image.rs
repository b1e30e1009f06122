use std::fmt;

use sea_orm::{DbErr, EntityTrait, TryIntoModel, sea_query::Value};

use crate::{
    cell,
    database::Packed,
    error::{Error, ErrorKind, Result},
    json::Scanner,
    registry::{self, EntityMeta},
};

/// A row's columns at one moment, in canonical form (see [`cell`]).
///
/// The cells stand one after another in one text, so a row costs two allocations however many columns it has, and most of what is sent to
/// clients is copied from it without being decoded.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    text: Box<str>,
    /// Where each column's cell ends; an empty cell is SQL NULL, since no canonical form is empty.
    ends: Box<[u32]>,
}

impl Image {
    /// Builds an image from its cells, in column order.
    pub fn from_cells<'a>(cells: impl IntoIterator<Item = Option<&'a str>>) -> Self {
        let mut image = ImageBuilder::default();
        for cell in cells {
            image.text.push_str(cell.unwrap_or_default());
            image.end_cell();
        }
        image.finish()
    }

    /// Reads an image from a row's array of packed cells, one for each column of the entity, in order.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where the array has another shape.
    pub fn from_packed(entity: &EntityMeta, packed: &dyn Packed, scanner: &mut Scanner<'_>) -> Result<Self> {
        let mut image = ImageBuilder::with_capacity(entity.columns.len(), 64);
        for column in &entity.columns {
            scanner.next_item()?;
            packed.write_canonical(&column.kind, scanner.value()?, &mut image.text);
            image.end_cell();
        }
        scanner.take(b']');
        Ok(image.finish())
    }

    /// Reads an image as capture writes it: a JSON object of column names and packed values.
    pub(crate) fn from_object(entity: &EntityMeta, packed: &dyn Packed, json: &str) -> Result<Self> {
        let mut scanner = Scanner::new(json);
        let mut values: Vec<Option<&str>> = vec![None; entity.columns.len()];
        // Capture writes the columns in the entity's own order, so the next value is nearly always the next column's. Not so in an image
        // that was written before a column was added or moved.
        let mut expected = 0;
        let mut more = scanner.take(b'{') && scanner.peek() != Some(b'}');
        while more {
            let name = cell::text(scanner.value()?);
            scanner.take(b':');
            let value = scanner.value()?;
            let index = match entity.columns.get(expected) {
                Some(column) if column.name == name => Some(expected),
                _ => entity.column_index(&name),
            };
            if let Some(index) = index {
                values[index] = Some(value);
                expected = index + 1;
            }
            more = scanner.take(b',');
        }
        let mut image = ImageBuilder::with_capacity(entity.columns.len(), json.len());
        for (column, value) in entity.columns.iter().zip(values) {
            if let Some(value) = value {
                packed.write_canonical(&column.kind, value, &mut image.text);
            }
            image.end_cell();
        }
        Ok(image.finish())
    }

    /// The cell of the column at this index, or `None` for SQL NULL.
    pub fn cell(&self, column: usize) -> Option<&str> {
        let start = if column == 0 { 0 } else { self.ends[column - 1] };
        let cell = &self.text[start as usize..self.ends[column] as usize];
        (!cell.is_empty()).then_some(cell)
    }

    /// The values of the primary key.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where one is not of its column's type.
    pub(crate) fn key_values(&self, entity: &EntityMeta) -> Result<Vec<Value>> {
        let values = entity.key.iter().map(|&index| cell::read_value(&entity.columns[index], self.cell(index)));
        values.collect::<Option<_>>().ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("a key of {} holds a value that is not of its type", entity.name))
        })
    }

    /// All cells, in column order.
    pub fn cells(&self) -> impl ExactSizeIterator<Item = Option<&str>> {
        (0..self.ends.len()).map(|column| self.cell(column))
    }

    /// The bytes that this image keeps in memory.
    pub fn size(&self) -> usize {
        self.text.len() + self.ends.len() * size_of::<u32>() + size_of::<Self>()
    }

    /// The row as the entity's own model.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where a column holds what its Rust type cannot (SQLite lets any type into any column).
    pub fn model<E>(&self, meta: &EntityMeta) -> Result<E::Model>
    where
        E: EntityTrait,
        E::ActiveModel: TryIntoModel<E::Model>,
    {
        let values = meta
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                let value = cell::read_value(column, self.cell(index)).ok_or_else(|| {
                    Error::new(
                        ErrorKind::Corrupt,
                        format!("{}.{} holds a value that is not of its type", meta.name, column.name),
                    )
                })?;
                Ok((index, value))
            })
            .collect::<Result<_>>()?;
        registry::model::<E>(values).map_err(|error: DbErr| {
            Error::new(ErrorKind::Corrupt, format!("a row of {} does not fit its model", meta.name)).with_source(error)
        })
    }
}

/// Shows that there is a row, never what is in it (promise I11).
impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} columns, {} bytes)", self.ends.len(), self.text.len())
    }
}

/// Builds an image cell by cell, in column order.
#[derive(Debug, Default)]
pub(crate) struct ImageBuilder {
    pub(crate) text: String,
    ends: Vec<u32>,
}

impl ImageBuilder {
    pub(crate) fn with_capacity(columns: usize, bytes: usize) -> Self {
        Self { text: String::with_capacity(bytes), ends: Vec::with_capacity(columns) }
    }

    /// Ends the current cell with what has been written to `text` since the last.
    pub(crate) fn end_cell(&mut self) {
        self.ends.push(u32::try_from(self.text.len()).unwrap_or(u32::MAX));
    }

    pub(crate) fn finish(self) -> Image {
        Image { text: self.text.into_boxed_str(), ends: self.ends.into_boxed_slice() }
    }
}
