//! Capture by triggers.
//!
//! One function and one row trigger per table. Row triggers fire in the order of their names, and this one's begins with a `!`: it stands
//! before the application's own, and before those of foreign keys, so that a row's changes are recorded in their true order whatever those
//! do. It sees every write of every program, cascades among them.

use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use super::{database_error, dialect::PostgresDialect};
use crate::{
    error::Result,
    registry::{Catalog, EntityMeta, Kind},
    sql::{self, Dialect},
};

const TRIGGER: &str = "!tidewire";
const TRUNCATE: &str = "!tidewire_truncate";
const PREFIX: &str = "tidewire";

/// The table's name, quoted.
pub(super) fn qualified(entity: &EntityMeta) -> String {
    let mut name = String::new();
    sql::table(&PostgresDialect, entity, &mut name);
    name
}

/// A function's name: the table's, cut to what PostgreSQL takes, with a tail that keeps two of them apart.
pub(super) fn function(entity: &EntityMeta, prefix: &str, table: &str) -> String {
    let tail = data_encoding::HEXLOWER.encode(&Sha256::digest(table.as_bytes())[..4]);
    let cut: String = entity.name.chars().take(30).collect();
    let mut name = String::new();
    PostgresDialect.identifier(&format!("{prefix}_{cut}_{tail}"), &mut name);
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

/// Whether the key differs between `OLD` and `NEW`.
fn key_differs(entity: &EntityMeta) -> String {
    let parts = entity.key_columns().map(|column| {
        let mut name = String::new();
        PostgresDialect.identifier(column.name, &mut name);
        format!("OLD.{name} IS DISTINCT FROM NEW.{name}")
    });
    parts.collect::<Vec<_>>().join(" OR ")
}

fn body(entity: &EntityMeta) -> String {
    let name = entity.name.replace('\'', "''");
    let record = |operation: &str, before: &str, after: &str| {
        format!(
            "INSERT INTO tidewire_outbox (entity, operation, before, after, actor, origin, mutation_id) VALUES ('{name}', '{operation}', \
             {before}, {after}, coalesce(nullif(current_setting('tidewire.actor', true), ''), 'database:' || session_user), \
             nullif(current_setting('tidewire.origin', true), ''), nullif(current_setting('tidewire.mutation_id', true), ''));"
        )
    };
    let (old, new) = (image(entity, "OLD"), image(entity, "NEW"));
    format!(
        "DECLARE was text; is_now text;
         BEGIN
           IF TG_OP = 'INSERT' THEN {}
           ELSIF TG_OP = 'DELETE' THEN {}
           ELSIF TG_OP = 'TRUNCATE' THEN
             FOR was IN SELECT {} FROM {table} t LOOP {} END LOOP;
           ELSE
             was := {old}; is_now := {new};
             IF was = is_now THEN RETURN NULL; END IF;
             IF {} THEN {} {} ELSE {} END IF;
           END IF;
           RETURN NULL;
         END",
        record("insert", "NULL", &new),
        record("delete", &old, "NULL"),
        image(entity, "t"),
        record("delete", "was", "NULL"),
        key_differs(entity),
        record("delete", "was", "NULL"),
        record("insert", "NULL", "is_now"),
        record("update", "was", "is_now"),
        table = qualified(entity),
    )
}

/// What tells this version of a table's triggers from others.
fn fingerprint(entity: &EntityMeta) -> String {
    format!("tidewire {}", data_encoding::HEXLOWER.encode(&Sha256::digest(body(entity).as_bytes())[..8]))
}

/// Installs the triggers of all entities, or brings them up to date.
pub(super) async fn install(conn: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    let mut text = String::new();
    for entity in catalog.entities() {
        let table = qualified(entity);
        let function = function(entity, PREFIX, &table);
        text.push_str(&format!(
            "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS \
             $tidewire${}$tidewire$;
             COMMENT ON FUNCTION {function}() IS '{}';
             CREATE OR REPLACE TRIGGER \"{TRIGGER}\" AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {function}();
             CREATE OR REPLACE TRIGGER \"{TRUNCATE}\" BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {function}(); ",
            body(entity),
            fingerprint(entity),
        ));
    }
    conn.execute(sqlx::raw_sql(AssertSqlSafe(text))).await.map(drop).map_err(database_error)
}

/// Removes the triggers of all entities.
pub(super) async fn remove(conn: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    for entity in catalog.entities() {
        let table = qualified(entity);
        let function = function(entity, PREFIX, &table);
        let text = format!(
            "DROP TRIGGER IF EXISTS \"{TRIGGER}\" ON {table}; DROP TRIGGER IF EXISTS \"{TRUNCATE}\" ON {table};
             DROP FUNCTION IF EXISTS {function}()"
        );
        conn.execute(sqlx::raw_sql(AssertSqlSafe(text))).await.map_err(database_error)?;
    }
    Ok(())
}

/// The tables whose triggers are missing, disabled or out of date.
pub(super) async fn drifted(conn: &mut PgConnection, catalog: &Catalog) -> Result<Vec<String>> {
    let mut drifted = Vec::new();
    for entity in catalog.entities() {
        let row = sqlx::query(
            "SELECT count(*) FILTER (WHERE t.tgenabled IN ('O', 'A')), max(obj_description(t.tgfoid, 'pg_proc'))
             FROM pg_trigger t WHERE t.tgrelid = to_regclass($1) AND t.tgname IN ($2, $3) AND NOT t.tgisinternal",
        )
        .persistent(false)
        .bind(qualified(entity))
        .bind(TRIGGER)
        .bind(TRUNCATE)
        .fetch_one(&mut *conn)
        .await
        .map_err(database_error)?;
        if row.get::<i64, _>(0) != 2 || row.get::<Option<String>, _>(1).as_deref() != Some(&fingerprint(entity)) {
            drifted.push(entity.name.to_owned());
        }
    }
    Ok(drifted)
}
