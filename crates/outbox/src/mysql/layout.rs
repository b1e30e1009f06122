//! What the database's own schema says: what triggers and checks are made from.

use std::collections::HashMap;

use sqlx::{MySqlConnection, Row};

use super::{database_error, triggers::PREFIX};
use crate::{
    error::Result,
    registry::{EntityMeta, Kind},
};

/// The schema of one database.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// The type of each column, by table and column.
    columns: HashMap<(String, String), String>,
    /// The storage engine of each table; none of a view.
    engines: HashMap<String, Option<String>>,
    pub(super) sequences: Vec<String>,
    pub(super) foreign_keys: Vec<ForeignKey>,
    pub(super) triggers: Vec<Found>,
}

/// A foreign key, within the database or from outside of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ForeignKey {
    pub(super) name: String,
    pub(super) child: String,
    pub(super) parent: String,
    /// Of the child, and what each refers to.
    pub(super) columns: Vec<(String, String)>,
    pub(super) on_delete: Action,
    pub(super) on_update: Action,
    /// Whether the parent is of another database.
    pub(super) abroad: bool,
    /// Whether it refers to the parent's primary key.
    pub(super) to_primary: bool,
}

/// What becomes of rows that refer to one that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Refuse,
    Cascade,
    SetNull,
}

/// A trigger as it is in the database.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) table: String,
    /// `AFTER INSERT`, for example.
    pub(super) moment: String,
    pub(super) body: String,
    /// Its place among those of its moment, from 1.
    pub(super) order: i64,
}

impl Found {
    pub(super) fn is_ours(&self) -> bool {
        self.name.starts_with(PREFIX)
    }
}

impl Layout {
    pub(super) async fn read(conn: &mut MySqlConnection) -> Result<Self> {
        let mut layout = Self::default();
        // The catalogue's texts may come as bytes, depending on the server's version.
        const COLUMNS: &str = "SELECT CAST(table_name AS CHAR), CAST(column_name AS CHAR), CAST(data_type AS CHAR)
            FROM information_schema.columns WHERE table_schema = DATABASE()";
        for row in sqlx::query(COLUMNS).fetch_all(&mut *conn).await.map_err(database_error)? {
            layout.columns.insert((row.get(0), row.get(1)), row.get(2));
        }
        const ENGINES: &str = "SELECT CAST(table_name AS CHAR), CAST(engine AS CHAR), CAST(table_type AS CHAR)
            FROM information_schema.tables WHERE table_schema = DATABASE() ORDER BY table_name";
        for row in sqlx::query(ENGINES).fetch_all(&mut *conn).await.map_err(database_error)? {
            if row.get::<&str, _>(2) == "SEQUENCE" {
                layout.sequences.push(row.get(0));
            }
            layout.engines.insert(row.get(0), row.get(1));
        }
        const FOREIGN_KEYS: &str = "SELECT CAST(k.constraint_name AS CHAR), CAST(k.table_name AS CHAR), CAST(k.column_name AS CHAR),
              CAST(k.referenced_table_name AS CHAR), CAST(k.referenced_column_name AS CHAR), CAST(r.delete_rule AS CHAR),
              CAST(r.update_rule AS CHAR), CAST(k.referenced_table_schema <> k.table_schema AS SIGNED),
              CAST(COALESCE(r.unique_constraint_name = 'PRIMARY', FALSE) AS SIGNED)
            FROM information_schema.key_column_usage k JOIN information_schema.referential_constraints r
              ON r.constraint_schema = k.constraint_schema AND r.constraint_name = k.constraint_name AND r.table_name = k.table_name
            WHERE k.table_schema = DATABASE() ORDER BY k.table_name, k.constraint_name, k.ordinal_position";
        for row in sqlx::query(FOREIGN_KEYS).fetch_all(&mut *conn).await.map_err(database_error)? {
            let (name, child): (String, String) = (row.get(0), row.get(1));
            let columns = (row.get(2), row.get(4));
            match layout.foreign_keys.last_mut() {
                Some(last) if last.name == name && last.child == child => last.columns.push(columns),
                _ => layout.foreign_keys.push(ForeignKey {
                    name,
                    child,
                    parent: row.get(3),
                    columns: vec![columns],
                    on_delete: action(row.get(5)),
                    on_update: action(row.get(6)),
                    abroad: row.get::<i64, _>(7) != 0,
                    to_primary: row.get::<i64, _>(8) != 0,
                }),
            }
        }
        const TRIGGERS: &str = "SELECT CAST(trigger_name AS CHAR), CAST(event_object_table AS CHAR),
              CAST(CONCAT(action_timing, ' ', event_manipulation) AS CHAR), CAST(action_statement AS CHAR), CAST(action_order AS SIGNED)
            FROM information_schema.triggers WHERE trigger_schema = DATABASE() ORDER BY action_order";
        for row in sqlx::query(TRIGGERS).fetch_all(&mut *conn).await.map_err(database_error)? {
            layout.triggers.push(Found {
                name: row.get(0),
                table: row.get(1),
                moment: row.get(2),
                body: row.get(3),
                order: row.get(4),
            });
        }
        Ok(layout)
    }

    /// The type of a column in small letters, `timestamp` for example; none where there is no such column.
    pub(super) fn column_type(&self, table: &str, column: &str) -> Option<&str> {
        self.columns.get(&(table.to_owned(), column.to_owned())).map(String::as_str)
    }

    pub(super) fn has_table(&self, table: &str) -> bool {
        self.engines.contains_key(table)
    }

    /// Whether a table is kept by InnoDB, which alone has transactions that end as a whole.
    pub(super) fn is_transactional(&self, table: &str) -> bool {
        self.engines.get(table).is_some_and(|engine| engine.as_deref() == Some("InnoDB"))
    }

    /// Whether a column keeps instants: what it shows depends on the session's time zone.
    pub(super) fn is_instant(&self, entity: &EntityMeta, column: &str, kind: &Kind) -> bool {
        matches!(kind, Kind::DateTime | Kind::Timestamp | Kind::TimestampTz)
            && self.column_type(entity.name, column) == Some("timestamp")
    }
}

fn action(rule: &str) -> Action {
    match rule {
        "CASCADE" => Action::Cascade,
        // InnoDB knows no defaults here and refuses to create such a key.
        "SET NULL" => Action::SetNull,
        _ => Action::Refuse,
    }
}
