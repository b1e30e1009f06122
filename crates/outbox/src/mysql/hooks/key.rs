//! Rows by their keys, which are texts that the server itself writes: literals of SQL, to be put into statements as they are.

use super::facts::Column;

/// The literals of some columns of a row.
pub(super) type Literals = Vec<String>;

/// How a column's values are written as literals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Literal {
    /// `17`, `-0.50`
    Number,
    /// `X'00FF'`
    Bytes,
    /// `'it\'s'`, also of times, enumerations and UUIDs.
    Quoted,
    /// Floating point numbers have none that is certainly equal.
    Inexact,
}

impl Literal {
    /// By the type of the column, in small letters.
    pub(super) fn of(data_type: &str) -> Self {
        match data_type {
            "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "decimal" | "year" => Self::Number,
            "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => Self::Bytes,
            "float" | "double" => Self::Inexact,
            _ => Self::Quoted,
        }
    }

    /// The expression that writes a column's value so. NULL where that is.
    pub(super) fn write(self, column: &str) -> String {
        match self {
            Self::Quoted | Self::Inexact => format!("IF({column} IS NULL, NULL, {})", self.write_known(column)),
            Self::Number | Self::Bytes => self.write_known(column),
        }
    }

    /// The expression that writes another expression's value so, which is not NULL.
    pub(super) fn write_known(self, expression: &str) -> String {
        match self {
            Self::Number => format!("CAST({expression} AS CHAR)"),
            Self::Bytes => format!("CONCAT('X''', HEX({expression}), '''')"),
            Self::Quoted | Self::Inexact => format!("QUOTE(CONVERT({expression} USING utf8mb4))"),
        }
    }
}

/// The expressions that write columns of a row as literals.
pub(super) fn literals(columns: &[Column], row: &str) -> Vec<String> {
    columns.iter().map(|column| column.literal.write(&column.of(row))).collect()
}

/// The condition that columns of a row have one of these values.
pub(super) fn is_one_of<'a>(columns: &[Column], row: &str, rows: impl IntoIterator<Item = &'a Literals>) -> String {
    let mut rows = rows.into_iter().peekable();
    if rows.peek().is_none() {
        return "FALSE".into();
    }
    if let [column @ Column { prefix: None, .. }] = columns {
        let values: Vec<&str> = rows.filter_map(|row| row.first()).map(String::as_str).collect();
        return format!("{} IN ({})", column.of(row), values.join(", "));
    }
    let equal = |values: &Literals| {
        let parts = columns.iter().zip(values).map(|(column, value)| match column.prefix {
            Some(length) => format!("LEFT({}, {length}) = LEFT({value}, {length})", column.of(row)),
            None => format!("{} = {value}", column.of(row)),
        });
        format!("({})", parts.collect::<Vec<_>>().join(" AND "))
    };
    format!("({})", rows.map(equal).collect::<Vec<_>>().join(" OR "))
}
