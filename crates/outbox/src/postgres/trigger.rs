//! Triggers of ours: how they are made, found out of date, and removed; and what all that tell of `TRUNCATE` have in common.

use sha2::{Digest, Sha256};
use sqlx::{PgConnection, Row};

use super::{
    database_error,
    dialect::PostgresDialect,
    triggers::{image, qualified},
};
use crate::{
    error::{Error, ErrorKind, Result},
    registry::{Catalog, EntityMeta},
    sql::Dialect,
};

/// How the functions of triggers run. They are the installer's, and anybody's write runs them: so no name in them is looked up where others
/// may put something in its way (all relations stand there with their schemas), and no setting of the writer's gives values another form.
/// Policies for rows would hide some from the installer; with `row_security` off they are an error instead. Nobody but
/// the table's owner, who makes partitions, makes triggers of them: on a table of their own they would tell of rows that never were.
const SAFELY: &str = "SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off SET bytea_output = hex \
    SET extra_float_digits = 1 SET IntervalStyle = postgres SET DateStyle = ISO SET TimeZone = 'UTC'";

/// A trigger, with a function that nothing else runs.
pub(super) struct Trigger {
    name: &'static str,
    /// The table, as SQL has it, with its schema; and whose it is.
    table: String,
    owner: String,
    /// `AFTER INSERT … FOR EACH ROW`, without the table.
    when: [&'static str; 2],
    /// As SQL has it, with its schema.
    function: String,
    body: String,
}

impl Trigger {
    /// `schema` is the outbox's. The function is called after the table, cut to what PostgreSQL takes, with a tail that keeps two apart.
    pub(super) fn new(
        [name, prefix]: [&'static str; 2],
        schema: &str,
        entity: &EntityMeta,
        Part { name: table, owner, .. }: &Part,
        when: [&'static str; 2],
        body: String,
    ) -> Self {
        let tail = data_encoding::HEXLOWER.encode(&Sha256::digest(table.as_bytes())[..4]);
        let cut: String = entity.name.chars().take(30).collect();
        let mut function = format!("{schema}.");
        PostgresDialect.identifier(&format!("{prefix}_{cut}_{tail}"), &mut function);
        Self { name, table: table.clone(), owner: owner.clone(), when, function, body }
    }

    /// What tells this version from others.
    fn fingerprint(&self) -> String {
        let digest = Sha256::digest(format!("{SAFELY} {}", self.body));
        format!("tidewire {}", data_encoding::HEXLOWER.encode(&digest[..8]))
    }

    /// Makes it, or brings it up to date.
    pub(super) fn create(&self) -> String {
        let Self { name, table, owner, when: [before, after], function, body } = self;
        format!(
            "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql {SAFELY} AS $tidewire${body}$tidewire$;
             REVOKE ALL ON FUNCTION {function}() FROM PUBLIC; GRANT EXECUTE ON FUNCTION {function}() TO {owner};
             COMMENT ON FUNCTION {function}() IS '{}';
             CREATE OR REPLACE TRIGGER \"{name}\" {before} ON {table} {after} EXECUTE FUNCTION {function}(); ",
            self.fingerprint(),
        )
    }

    pub(super) fn drop(&self) -> String {
        let Self { name, table, function, .. } = self;
        format!("DROP TRIGGER IF EXISTS \"{name}\" ON {table}; DROP FUNCTION IF EXISTS {function}(); ")
    }

    /// Whether it is there, as this version makes it.
    pub(super) async fn is_there(&self, conn: &mut PgConnection) -> Result<bool> {
        sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
               WHERE c.oid = to_regclass($1) AND t.tgname = $2 AND NOT t.tgisinternal
               AND t.tgenabled IN ('O', 'A') AND has_function_privilege(c.relowner, t.tgfoid, 'EXECUTE') AND t.tgfoid = to_regprocedure($3 || '()') AND obj_description(t.tgfoid, 'pg_proc') = $4)",
        )
        .persistent(false)
        .bind(&self.table)
        .bind(self.name)
        .bind(&self.function)
        .bind(self.fingerprint())
        .fetch_one(conn)
        .await
        .map_err(database_error)
    }
}

/// A trigger that runs before `TRUNCATE` of one of an entity's tables. `tell` gives the statements that tell of the rows in a table, by its name and
/// the image of a row `t`.
///
/// Statements have the rows of their own moment only under `READ COMMITTED`: elsewhere rows that others have written since would go untold, so
/// there it is refused. A partitioned table has no rows itself, and its partitions have triggers of their own; a partition that was made later
/// has none, so there it is refused too.
pub(super) fn before_truncate(
    names: [&'static str; 2],
    schema: &str,
    entity: &EntityMeta,
    part: &Part,
    tell: impl FnOnce(&str, &str) -> String,
) -> Trigger {
    let Part { name, has_rows, .. } = part;
    let body = if *has_rows {
        format!(
            "BEGIN
               IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
                 RAISE feature_not_supported USING MESSAGE = 'what TRUNCATE removes cannot be recorded in a transaction that is '
                   || current_setting('transaction_isolation'), HINT = 'Use READ COMMITTED, or DELETE.';
               END IF;
               {}
               RETURN NULL;
             END",
            tell(name, &image(entity, "t"))
        )
    } else {
        "DECLARE other text;
         BEGIN
           SELECT p.relid::regclass INTO other FROM pg_partition_tree(TG_RELID) p WHERE p.isleaf
             AND NOT EXISTS (SELECT 1 FROM pg_trigger t WHERE t.tgrelid = p.relid AND t.tgname = TG_NAME) LIMIT 1;
           IF FOUND THEN
             RAISE feature_not_supported USING MESSAGE = 'what TRUNCATE removes from the partition ' || other || ' would not be recorded',
               HINT = 'Prepare it with `tidewire capture install`, or use DELETE.';
           END IF;
           RETURN NULL;
         END"
            .to_owned()
    };
    Trigger::new(names, schema, entity, part, ["BEFORE TRUNCATE", "FOR EACH STATEMENT"], body)
}

/// A table that an entity's rows are in: its own, or a partition of it.
pub(super) struct Part {
    /// As SQL has it, with its schema.
    pub(super) name: String,
    /// The role whose it is, as SQL has it.
    owner: String,
    /// The replica identity as `ALTER TABLE` has it.
    pub(super) identity: String,
    /// A partitioned table has no rows itself.
    pub(super) has_rows: bool,
}

/// The entity's own table first.
pub(super) async fn parts(conn: &mut PgConnection, entity: &EntityMeta) -> Result<Vec<Part>> {
    let rows = sqlx::query(
        "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname),
           CASE c.relreplident WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING' WHEN 'i' THEN coalesce('USING INDEX ' || (
             SELECT quote_ident(x.relname) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
             WHERE i.indrelid = c.oid AND i.indisreplident), 'DEFAULT') ELSE 'DEFAULT' END, c.relkind = 'r',
           quote_ident(pg_get_userbyid(c.relowner))
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p') AND (c.oid = to_regclass($1) OR c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass($1))))
         ORDER BY c.oid <> to_regclass($1), 1",
    )
    .persistent(false)
    .bind(qualified(entity))
    .fetch_all(conn)
    .await
    .map_err(database_error)?;
    Ok(rows
        .iter()
        .map(|row| Part { name: row.get(0), identity: row.get(1), has_rows: row.get(2), owner: row.get(3) })
        .collect())
}

/// The schema of the outbox, as SQL has it.
pub(super) async fn schema(conn: &mut PgConnection) -> Result<String> {
    sqlx::query_scalar(
        "SELECT quote_ident(n.nspname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass('tidewire_outbox')",
    )
    .persistent(false)
    .fetch_one(conn)
    .await
    .map_err(database_error)
}

/// Refuses tables whose rows come and go untold, however the database is captured: those that others inherit from show rows of those, and
/// what is not logged is emptied by a crash.
pub(super) async fn check_tables(conn: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    let problems: Vec<String> = sqlx::query_scalar(
        "SELECT CASE
             WHEN c.relkind NOT IN ('r', 'p') THEN name || ' is no table'
             WHEN inherited THEN 'other tables inherit from ' || name
             ELSE name || ' is not logged, so a crash empties it (`ALTER TABLE ' || t || ' SET LOGGED`)' END
         FROM unnest($1::text[], $2::text[]) AS of (name, t) JOIN pg_class c ON c.oid = to_regclass(t),
         LATERAL (SELECT EXISTS (SELECT 1 FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhrelid
           WHERE h.inhparent = c.oid AND NOT p.relispartition) AS inherited) i
         WHERE c.relkind NOT IN ('r', 'p') OR inherited
           OR EXISTS (SELECT 1 FROM pg_class p WHERE p.relpersistence = 'u' AND p.relkind = 'r'
                AND (p.oid = c.oid OR p.oid IN (SELECT relid FROM pg_partition_tree(c.oid))))",
    )
    .persistent(false)
    .bind(catalog.entities().iter().map(|entity| entity.name).collect::<Vec<_>>())
    .bind(catalog.entities().iter().map(qualified).collect::<Vec<_>>())
    .fetch_all(conn)
    .await
    .map_err(database_error)?;
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Setup, format!("the database cannot be captured: {}", problems.join(", "))))
}
