use std::fmt;

/// A text: its statements in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Script {
    pub(crate) pieces: Vec<Piece>,
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The caller's own text, without the semicolon.
    pub(crate) sql: String,
    pub(crate) effect: Effect,
    /// The tables that statements inside this one write (in a `WITH`).
    pub(crate) nested: Vec<(Verb, TableName)>,
    /// The functions that it calls. Words before brackets that are none stand here too.
    pub(crate) calls: Vec<TableName>,
    /// The settings that it changes, by `SET`, `RESET` or `set_config`, in lower case.
    pub(crate) settings: Vec<String>,
    /// The first name in it that begins as those of Tidewire's own tables do.
    pub(crate) own: Option<String>,
    /// How many values it takes: the highest number of a placeholder, or how many placeholders without numbers there are.
    pub(crate) values: usize,
}

/// What running a statement can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Reads rows; or, like `SET` and `LISTEN`, touches none.
    Read,
    /// Writes rows of one table.
    Write(Box<Write>),
    /// Writes rows of joined tables, as MySQL can.
    JoinedWrite(Box<JoinedWrite>),
    /// Writes in another way, or may: `TRUNCATE`, `COPY`, definitions.
    Opaque {
        /// `TRUNCATE`, `ALTER TABLE`.
        what: String,
        /// Every name in it; `None` where it may write tables that it does not name.
        tables: Option<Vec<TableName>>,
    },
    /// Would begin or end a transaction, or a savepoint, by itself: its first word.
    Control(String),
    /// Cannot be read.
    Unreadable,
}

/// The statements that write rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Insert,
    Update,
    Delete,
    Merge,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Merge => "MERGE",
        })
    }
}

/// A table's or a function's name, as the database would look it up: on PostgreSQL in lower case where it is not quoted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TableName {
    pub(crate) schema: Option<String>,
    pub(crate) name: String,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        f.write_str(&self.name)
    }
}

/// An `INSERT`, `UPDATE` or `DELETE` with its clauses. Texts are the caller's own, without the words that introduce them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    /// Never [`Verb::Merge`].
    pub(crate) verb: Verb,
    pub(crate) with: Option<With>,
    /// What stands between the verb and the table: `INTO`, `FROM ONLY`, `IGNORE INTO`.
    pub(crate) lead: String,
    /// `REPLACE INTO`.
    pub(crate) replaces: bool,
    /// `INSERT IGNORE`, `UPDATE IGNORE`.
    pub(crate) ignores: bool,
    pub(crate) table: TableName,
    /// The table as written.
    pub(crate) table_text: String,
    /// Its alias as written.
    pub(crate) alias: Option<String>,
    /// An insert's columns and rows, from behind the table on: `(a, b) VALUES …`, `DEFAULT VALUES`, `SELECT …`.
    pub(crate) source: Option<String>,
    /// The columns that an insert names; empty where it names none.
    pub(crate) columns: Vec<String>,
    pub(crate) conflict: Option<Conflict>,
    /// What an update assigns.
    pub(crate) set: Vec<Assignment>,
    /// An update's `FROM`, a delete's `USING`.
    pub(crate) from: Option<String>,
    /// The `WHERE`.
    pub(crate) filter: Option<String>,
    /// MySQL's `ORDER BY … LIMIT …`, with these words.
    pub(crate) limit: Option<String>,
    pub(crate) returning: Option<Vec<String>>,
}

/// MySQL's `UPDATE` or `DELETE` of rows of joined tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JoinedWrite {
    /// [`Verb::Update`] or [`Verb::Delete`].
    pub(crate) verb: Verb,
    /// Everything before the `WHERE`.
    pub(crate) head: String,
    /// The joined tables, as a `FROM` has them.
    pub(crate) sources: String,
    /// Each of them, and how its columns are qualified.
    pub(crate) tables: Vec<(TableName, String)>,
    /// What an update assigns.
    pub(crate) set: Vec<Assignment>,
    /// The `WHERE`.
    pub(crate) filter: Option<String>,
}

/// A `WITH` before a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct With {
    pub(crate) recursive: bool,
    pub(crate) text: String,
}

/// One assignment; or several in brackets, `(a, b) = (…)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assignment {
    pub(crate) columns: Vec<String>,
    pub(crate) text: String,
    /// What stands before the equals sign, and behind it.
    pub(crate) target: String,
    pub(crate) value: String,
}

/// `ON CONFLICT …`, `ON DUPLICATE KEY UPDATE …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// Between `ON CONFLICT` and `DO`; empty where nothing stands there.
    pub(crate) target: String,
    pub(crate) action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Nothing,
    Update { set: Vec<Assignment>, filter: Option<String> },
}

impl Write {
    /// The columns that an update, or an insert where a row is in the way, assigns.
    pub(crate) fn assigned(&self) -> impl Iterator<Item = &str> {
        let conflict = match &self.conflict {
            Some(Conflict { action: Action::Update { set, .. }, .. }) => set.as_slice(),
            _ => &[],
        };
        self.set.iter().chain(conflict).flat_map(|assignment| &assignment.columns).map(String::as_str)
    }

    /// How columns of the table are qualified in the statement.
    pub(crate) fn qualifier(&self) -> &str {
        self.alias.as_deref().unwrap_or(&self.table_text)
    }
}
