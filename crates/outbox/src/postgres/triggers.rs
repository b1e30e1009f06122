//! Capture by triggers.
//!
//! One function and one row trigger per table. It sees every write of every program, cascades among them.
//!
//! *Order.* Row triggers fire in the order of their names, and this one's begins with a `!`: it stands before the application's own, and before those of
//! foreign keys. That is not all of it: the triggers of a statement's rows fire when all of its rows have been written. Where the application's trigger
//! on the first row updates the second, that update is recorded before the statement's own of the second row. So each change also says where the
//! row's version before it lay, and where that after it lies (the table's file, and `ctid` in it), and a reader puts a transaction's changes of a row one
//! behind the other by that ([`order`](super::order)). An update that leaves a row as it was is no change, but it moves the row: where it finds a version
//! that may be of this transaction, which other changes may stand on both sides of, it is recorded too, and readers leave it out.

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::{
    database_error,
    dialect::PostgresDialect,
    trigger::{self, Trigger},
};
use crate::{
    error::Result,
    registry::{Catalog, EntityMeta, Kind},
    sql::{self, Dialect},
};

/// The triggers' names, and what the names of their functions begin with.
const ROW: [&str; 2] = ["!tidewire", "tidewire"];
const TRUNCATE: [&str; 2] = ["!tidewire_truncate", "tidewire_truncate"];

/// The table's name, quoted.
pub(super) fn qualified(entity: &EntityMeta) -> String {
    let mut name = String::new();
    sql::table(&PostgresDialect, entity, &mut name);
    name
}

/// A row as a JSON object; all of its columns where that does no harm, since it is faster.
pub(super) fn image(entity: &EntityMeta, row: &str) -> String {
    if !entity.columns.iter().any(|column| column.kind == Kind::Json) {
        return format!("row_to_json({row})::text");
    }
    image_of_columns(entity, row)
}

/// The entity's columns of a row as a JSON object. Documents in it are texts, which tells their null from SQL's.
pub(super) fn image_of_columns(entity: &EntityMeta, row: &str) -> String {
    let mut columns = String::new();
    for (index, column) in entity.columns.iter().enumerate() {
        let mut name = String::new();
        PostgresDialect.identifier(column.name, &mut name);
        let cast = if column.kind == Kind::Json { "::text" } else { "" };
        columns.push_str(&format!("{}{row}.{name}{cast} AS {name}", if index > 0 { ", " } else { "" }));
    }
    format!("(SELECT row_to_json(r)::text FROM (SELECT {columns}) r)")
}

/// A row's key as a record. Records are compared by their bytes, so that a type needs no operator that is found by a name.
fn key(entity: &EntityMeta, row: &str) -> String {
    let parts = entity.key_columns().map(|column| {
        let mut name = String::new();
        PostgresDialect.identifier(column.name, &mut name);
        format!("{row}.{name}")
    });
    format!("ROW({})::record", parts.collect::<Vec<_>>().join(", "))
}

/// Who writes, for whom, and for which mutation.
const CONTEXT: &str = "coalesce(nullif(current_setting('tidewire.actor', true), ''), 'database:' || session_user), \
    nullif(current_setting('tidewire.origin', true), ''), nullif(current_setting('tidewire.mutation_id', true), '')";

/// The beginning of a statement that records changes, before their operations.
fn record_into(entity: &EntityMeta, schema: &str) -> String {
    let columns = "(entity, actor, origin, mutation_id, operation, before, after, file, was_at, is_at)";
    format!("INSERT INTO {schema}.tidewire_outbox {columns} SELECT '{}', {CONTEXT}", entity.name.replace('\'', "''"))
}

fn row_body(entity: &EntityMeta, schema: &str) -> String {
    let into = record_into(entity, schema);
    let record = |operation: &str, before: &str, after: &str| {
        let place = |image: &str, row: &str| if image == "NULL" { "NULL" } else { row }.to_owned();
        let (was_at, is_at) = (place(before, "OLD.ctid"), place(after, "NEW.ctid"));
        format!("{into}, '{operation}', {before}, {after}, pg_relation_filenode(TG_RELID), {was_at}, {is_at};")
    };
    let (old, new) = (image(entity, "OLD"), image(entity, "NEW"));
    format!(
        "DECLARE was text; is_now text;
         BEGIN
           IF TG_OP = 'INSERT' THEN {}
           ELSIF TG_OP = 'DELETE' THEN {}
           ELSE
             was := {old}; is_now := {new};
             IF was = is_now AND age(OLD.xmin) > 0 THEN RETURN NULL; END IF;
             IF {} OPERATOR(pg_catalog.*<>) {} THEN {} {} ELSE {} END IF;
           END IF;
           RETURN NULL;
         END",
        record("insert", "NULL", &new),
        record("delete", &old, "NULL"),
        key(entity, "OLD"),
        key(entity, "NEW"),
        record("delete", "was", "NULL"),
        record("insert", "NULL", "is_now"),
        record("update", "was", "is_now"),
    )
}

/// The triggers that an entity's tables need.
async fn of(conn: &mut PgConnection, entity: &EntityMeta, schema: &str) -> Result<Vec<Trigger>> {
    let parts = trigger::parts(conn, entity).await?;
    let Some(whole) = parts.first() else { return Ok(Vec::new()) };
    let when = ["AFTER INSERT OR UPDATE OR DELETE", "FOR EACH ROW"];
    let mut all = vec![Trigger::new(ROW, schema, entity, whole, when, row_body(entity, schema))];
    all.extend(parts.iter().map(|part| {
        trigger::before_truncate(TRUNCATE, schema, entity, part, |table, image| {
            format!(
                "{}, 'delete', {image}, NULL, pg_relation_filenode(TG_RELID), t.ctid, NULL FROM {table} t;",
                record_into(entity, schema)
            )
        })
    }));
    Ok(all)
}

/// Installs the triggers of all entities, or brings them up to date.
pub(super) async fn install(conn: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    let schema = trigger::schema(conn).await?;
    let mut text = String::new();
    for entity in catalog.entities() {
        text.extend(of(conn, entity, &schema).await?.iter().map(Trigger::create));
    }
    conn.execute(sqlx::raw_sql(AssertSqlSafe(text))).await.map(drop).map_err(database_error)
}

/// Removes the triggers of all entities.
pub(super) async fn remove(conn: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    let schema = trigger::schema(conn).await?;
    let mut text = String::new();
    for entity in catalog.entities() {
        text.extend(of(conn, entity, &schema).await?.iter().map(Trigger::drop));
    }
    conn.execute(sqlx::raw_sql(AssertSqlSafe(text))).await.map(drop).map_err(database_error)
}

/// The tables whose triggers are missing, disabled or out of date.
pub(super) async fn drifted(conn: &mut PgConnection, catalog: &Catalog) -> Result<Vec<String>> {
    let schema = trigger::schema(conn).await?;
    let mut drifted = Vec::new();
    for entity in catalog.entities() {
        for trigger in of(conn, entity, &schema).await? {
            if !trigger.is_there(conn).await? {
                drifted.push(entity.name.to_owned());
                break;
            }
        }
    }
    Ok(drifted)
}
