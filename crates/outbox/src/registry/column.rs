use std::sync::Arc;

use sea_orm::{
    ColumnType,
    sea_query::{ArrayType, Value},
};

/// What a column holds, independent of any database: it decides the column's canonical form (see [`crate::cell`]), how it compares and
/// how it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Boolean,
    /// An integer of 8 to 64 bits.
    Integer {
        /// 8, 16, 32 or 64.
        bits: u8,
        /// Whether it can be negative.
        signed: bool,
    },
    /// A 32-bit float.
    Float,
    /// A 64-bit float.
    Double,
    /// An exact decimal number.
    Decimal,
    /// Text of any length.
    Text,
    /// Raw bytes.
    Bytes,
    /// A JSON document.
    Json,
    /// A UUID.
    Uuid,
    /// A calendar date.
    Date,
    /// A time of day.
    Time,
    /// A date and time without a zone.
    DateTime,
    /// An instant, kept in UTC.
    Timestamp,
    /// An instant together with the offset it was written with.
    TimestampTz,
    /// One of a fixed set of texts.
    Enum(Arc<EnumMeta>),
    /// A list of values of one kind, which is itself no list and no document. PostgreSQL's arrays.
    Array(Box<Kind>),
}

impl Kind {
    /// Whether `sum` and `avg` mean something.
    pub fn is_numeric(&self) -> bool {
        matches!(self, Self::Integer { .. } | Self::Float | Self::Double | Self::Decimal)
    }

    /// What people call it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Boolean => "a boolean",
            Self::Integer { .. } => "an integer",
            Self::Float | Self::Double => "a float",
            Self::Decimal => "a decimal",
            Self::Text => "a text",
            Self::Bytes => "bytes",
            Self::Json => "a JSON document",
            Self::Uuid => "a UUID",
            Self::Date => "a date",
            Self::Time => "a time",
            Self::DateTime => "a date and time",
            Self::Timestamp | Self::TimestampTz => "an instant",
            Self::Enum(_) => "an enumeration",
            Self::Array(_) => "an array",
        }
    }

    /// Whether values have an order that people expect (so `min`, `max`, `<` and `BETWEEN` mean something).
    pub fn is_ordered(&self) -> bool {
        !matches!(self, Self::Json | Self::Bytes | Self::Array(_))
    }
}

/// A database enumeration: its name and its values as stored.
#[derive(Debug, PartialEq, Eq)]
pub struct EnumMeta {
    /// The type's name in the database, for example `task_status`.
    pub name: String,
    /// The stored values, in the order they are declared.
    pub variants: Vec<String>,
}

/// One column of a synced entity.
#[derive(Debug, Clone)]
pub struct ColumnMeta {
    /// The column's name in the database.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Whether it may be null.
    pub nullable: bool,
    /// Whether the database fills it when an insert leaves it out.
    pub has_default: bool,
    /// Whether it is part of the primary key.
    pub in_key: bool,
    /// Which `Value` variant the entity's Rust field takes.
    pub(crate) value_type: ArrayType,
}

impl ColumnMeta {
    /// A column like this one that holds what is computed from it: of that kind, and null where there is nothing to compute from.
    #[must_use]
    pub fn computed(&self, kind: Kind) -> Self {
        Self { kind, nullable: true, ..self.clone() }
    }

    /// SQL NULL, typed for this column.
    pub fn null(&self) -> Value {
        match self.kind {
            Kind::Array(_) => Value::Array(self.value_type.clone(), None),
            _ => crate::cell::null(&self.value_type),
        }
    }

    /// A column that holds an element of this one's arrays.
    #[must_use]
    pub fn element(&self) -> Option<Self> {
        match &self.kind {
            Kind::Array(element) => Some(Self { kind: (**element).clone(), nullable: false, ..self.clone() }),
            _ => None,
        }
    }
}

/// Reads a column's kind from its declared SQL type and from the Rust type of the model's field. The Rust type decides, because it says
/// what a value means once read (a `TIMESTAMP` column may be read as a zoned or as a plain time); the SQL type tells enums and JSON apart
/// from text.
///
/// Returns `None` where there is no mapping.
pub(crate) fn kind_of(column_type: &ColumnType, value_type: &ArrayType) -> Option<Kind> {
    if let ColumnType::Array(element) = column_type {
        let element = kind_of(element, value_type)?;
        return (!matches!(element, Kind::Json | Kind::Array(_))).then(|| Kind::Array(Box::new(element)));
    }
    if let ColumnType::Enum { name, variants } = column_type {
        return Some(Kind::Enum(Arc::new(EnumMeta {
            name: name.to_string(),
            variants: variants.iter().map(ToString::to_string).collect(),
        })));
    }
    let integer = |bits, signed| Some(Kind::Integer { bits, signed });
    match value_type {
        ArrayType::Bool => Some(Kind::Boolean),
        ArrayType::TinyInt => integer(8, true),
        ArrayType::SmallInt => integer(16, true),
        ArrayType::Int => integer(32, true),
        ArrayType::BigInt => integer(64, true),
        ArrayType::TinyUnsigned => integer(8, false),
        ArrayType::SmallUnsigned => integer(16, false),
        ArrayType::Unsigned => integer(32, false),
        ArrayType::BigUnsigned => integer(64, false),
        ArrayType::Float => Some(Kind::Float),
        ArrayType::Double => Some(Kind::Double),
        ArrayType::String | ArrayType::Char => Some(Kind::Text),
        ArrayType::Bytes => Some(Kind::Bytes),
        ArrayType::Json => Some(Kind::Json),
        ArrayType::ChronoDate => Some(Kind::Date),
        ArrayType::ChronoTime => Some(Kind::Time),
        ArrayType::ChronoDateTime => Some(Kind::DateTime),
        ArrayType::ChronoDateTimeUtc | ArrayType::ChronoDateTimeLocal => Some(Kind::Timestamp),
        ArrayType::ChronoDateTimeWithTimeZone => Some(Kind::TimestampTz),
        ArrayType::Uuid => Some(Kind::Uuid),
        ArrayType::Decimal => Some(Kind::Decimal),
        _ => None,
    }
}
