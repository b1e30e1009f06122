//! What capture by the log needs in the database: a publication, a replication slot, replica identities, and triggers that tell of `TRUNCATE`.

use std::{collections::HashMap, time::Duration};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Row};

use super::changes::prefix;
use crate::{
    capture::{Capture, LogStatus},
    error::{Error, ErrorKind, Result},
    postgres::{
        database_error, schema,
        triggers::{self, image, qualified},
    },
    registry::{Catalog, EntityId, EntityMeta},
};

/// The publication's name. A database has one.
pub(super) const PUBLICATION: &str = "tidewire";

/// What readers of the slot are called, by which the next one knows them.
pub(super) const APPLICATION: &str = "tidewire capture";

const TRUNCATE: &str = "!tidewire_log";

/// How long the slot's creation may wait for transactions that are under way.
const CREATE_TIMEOUT: &str = "30s";

/// How often an end of the slot's reader is waited for before that is an error.
const RELEASE_ATTEMPTS: u32 = 100;
const RELEASE_POLL: Duration = Duration::from_millis(50);

/// The slot, as the database shows it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: String,
    /// Whether it is there and can be read.
    pub(super) usable: bool,
    pub(super) exists: bool,
    /// Who reads it now: a process of the database's, and what it calls itself.
    pub(super) reader: Option<(i32, String)>,
    /// Up to where somebody has confirmed to have read it.
    pub(super) confirmed: u64,
    /// How much of the log is kept for it, in bytes.
    pub(super) kept: u64,
}

/// Looks for the slot. Its name says whose it is, since the slots of all databases of a server are together.
pub(super) async fn find(conn: &mut PgConnection) -> Result<Slot> {
    let row = sqlx::query(
        "SELECT n.name, s.slot_name IS NOT NULL, coalesce(s.wal_status, '') <> 'lost' AND s.plugin = 'pgoutput' AND s.restart_lsn IS NOT NULL,
           s.active_pid, coalesce(a.application_name, ''), (s.confirmed_flush_lsn - '0/0'::pg_lsn)::bigint,
           (pg_current_wal_lsn() - s.restart_lsn)::bigint
         FROM (SELECT 'tidewire_' || left(regexp_replace(lower(datname), '[^a-z0-9]', '_', 'g'), 40) || '_' || oid AS name
               FROM pg_database WHERE datname = current_database()) n
         LEFT JOIN pg_replication_slots s ON s.slot_name = n.name
         LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid",
    )
    .fetch_one(conn)
    .await
    .map_err(database_error)?;
    let number = |index| row.get::<Option<i64>, _>(index).unwrap_or_default().cast_unsigned();
    Ok(Slot {
        name: row.get(0),
        exists: row.get(1),
        usable: row.get::<Option<bool>, _>(2).unwrap_or_default(),
        reader: row.get::<Option<i32>, _>(3).map(|pid| (pid, row.get(4))),
        confirmed: number(5),
        kept: number(6),
    })
}

impl Slot {
    /// Waits until nobody reads it. A reader of ours is ended: whoever asks has its lease.
    pub(super) async fn release(&self, conn: &mut PgConnection) -> Result<()> {
        let mut slot = find(conn).await?;
        for _ in 0..RELEASE_ATTEMPTS {
            let Some((pid, application)) = &slot.reader else { return Ok(()) };
            if application == APPLICATION {
                let end = sqlx::query("SELECT pg_terminate_backend($1)").bind(pid);
                end.execute(&mut *conn).await.map_err(database_error)?;
            }
            tokio::time::sleep(RELEASE_POLL).await;
            slot = find(conn).await?;
        }
        let Some((pid, application)) = slot.reader else { return Ok(()) };
        Err(Error::new(
            ErrorKind::Setup,
            format!(
                "the replication slot {} is in use by the database's process {pid} ({application:?}), which is not Tidewire's. \
                 Only Tidewire may read it: end that process",
                self.name
            ),
        ))
    }

    /// Drops it, if it is there.
    pub(super) async fn drop(&self, conn: &mut PgConnection) -> Result<()> {
        if !find(conn).await?.exists {
            return Ok(());
        }
        self.release(conn).await?;
        let drop = sqlx::query("SELECT pg_drop_replication_slot($1)").bind(&self.name);
        drop.execute(conn).await.map(|_| ()).map_err(database_error)
    }

    /// Makes it; answers where it begins. Waits for transactions that are under way.
    async fn create(&self, pool: &PgPool) -> Result<u64> {
        let mut transaction = pool.begin().await.map_err(database_error)?;
        let timeout = format!("SET LOCAL statement_timeout = '{CREATE_TIMEOUT}'");
        transaction.execute(AssertSqlSafe(timeout)).await.map_err(database_error)?;
        let create = "SELECT (lsn - '0/0'::pg_lsn)::bigint FROM pg_create_logical_replication_slot($1, 'pgoutput')";
        let created = sqlx::query_scalar::<_, i64>(create).bind(&self.name).fetch_one(&mut *transaction).await;
        let lsn = created.map_err(|error| {
            let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
            let problem = match code.as_str() {
                "53400" => {
                    "all replication slots of the server are in use. Set `max_replication_slots` higher in \
                     postgresql.conf and restart it, or drop a slot that nobody needs"
                }
                "57014" => {
                    "the replication slot could not be made, because transactions have been open for long. Stop the \
                     programs that write, and try again"
                }
                _ => return database_error(error),
            };
            Error::new(if code == "53400" { ErrorKind::Setup } else { ErrorKind::Busy }, problem).with_source(error)
        })?;
        transaction.commit().await.map_err(database_error)?;
        Ok(lsn.cast_unsigned())
    }
}

/// Puts in place what is needed. What triggers recorded so far and what the log tells from then on join without a gap.
pub(super) async fn install(pool: &PgPool, conn: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    require(conn, catalog).await?;
    prepare(conn, catalog).await?;
    let was = schema::capture(conn).await?;
    let slot = find(conn).await?;
    if was == Capture::Log && slot.usable {
        return Ok(());
    }
    slot.drop(conn).await?;
    let mut transaction = conn.begin().await.map_err(database_error)?;
    // Whoever writes waits until the triggers are gone and the slot is there. (A transaction that writes cannot make a slot, and a slot waits
    // for transactions that have written: so the locks are held here, without a write, while the slot is made over there.)
    let tables: Vec<String> = catalog.entities().iter().map(qualified).collect();
    if !tables.is_empty() {
        let lock = format!("LOCK TABLE {} IN SHARE MODE", tables.join(", "));
        transaction.execute(AssertSqlSafe(lock)).await.map_err(database_error)?;
    }
    let lsn = slot.create(pool).await?;
    triggers::remove(&mut transaction, catalog).await?;
    if was == Capture::Log {
        // There was a slot, and what it would have told is not to be had any more.
        tracing::error!(
            slot = slot.name,
            "the replication slot was gone or had lost its place: changes are missing, and all who follow start over"
        );
        break_off(&mut transaction).await?;
    }
    sqlx::query("UPDATE tidewire_log SET capture = 'log', lsn = $1, lsn_at = now(), trouble = NULL")
        .bind(lsn.cast_signed())
        .execute(&mut *transaction)
        .await
        .map_err(database_error)?;
    transaction.commit().await.map_err(database_error)
}

/// Ends the log's history: changes are missing after this, so all who follow start over.
pub(super) async fn break_off(conn: &mut PgConnection) -> Result<()> {
    let fresh = i64::from_be_bytes(uuid::Uuid::new_v4().into_bytes()[..8].try_into().expect("eight bytes of sixteen"));
    sqlx::query("DELETE FROM tidewire_outbox").execute(&mut *conn).await.map_err(database_error)?;
    // All ids that a snapshot from now on can have in flight are later.
    sqlx::query(
        "UPDATE tidewire_log SET epoch = $1, trimmed_xid = greatest(trimmed_xid, pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1)",
    )
    .bind(fresh)
    .execute(conn)
    .await
    .map(drop)
    .map_err(database_error)
}

/// What the server and the user must be able to do.
async fn require(conn: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    let refuse = |problem: String| Err(Error::new(ErrorKind::Setup, problem));
    let row = sqlx::query(
        "SELECT current_setting('wal_level'), current_setting('server_version_num')::int, current_user::text,
           EXISTS (SELECT 1 FROM pg_roles WHERE rolname = current_user AND (rolreplication OR rolsuper))
             OR EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'rds_replication' AND pg_has_role(current_user, oid, 'MEMBER')),
           has_database_privilege(current_database(), 'CREATE')",
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(database_error)?;
    let level: String = row.get(0);
    if level != "logical" {
        return refuse(format!(
            "the server writes its log with wal_level = {level}, which does not tell of rows. Set `wal_level = logical` in postgresql.conf \
             and restart the server, or use another capture (hooks, triggers)"
        ));
    }
    if row.get::<i32, _>(1) < 140_000 {
        return refuse("capture by the log needs PostgreSQL 14 or later. Use another capture (hooks, triggers)".into());
    }
    let user: String = row.get(2);
    if !row.get::<bool, _>(3) {
        return refuse(format!(
            "the user {user} may not read the log: `ALTER ROLE {user} REPLICATION` (as a superuser) lets them"
        ));
    }
    if !row.get::<bool, _>(4) {
        return refuse(format!(
            "the user {user} may not make a publication: `GRANT CREATE ON DATABASE … TO {user}` (as a superuser) lets them"
        ));
    }
    let mut foreign = Vec::new();
    for entity in catalog.entities() {
        let owned = "SELECT pg_has_role(current_user, relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass($1)";
        let owned: Option<bool> = sqlx::query_scalar(owned)
            .bind(qualified(entity))
            .fetch_optional(&mut *conn)
            .await
            .map_err(database_error)?;
        if owned == Some(false) {
            foreign.push(entity.name);
        }
    }
    if !foreign.is_empty() {
        return refuse(format!(
            "the user {user} does not own {}, and only owners may publish tables and set their replica identity",
            foreign.join(", ")
        ));
    }
    let generated = generated(conn, catalog).await?;
    if !generated.is_empty() {
        return refuse(format!(
            "the log does not tell the generated columns {}. Use another capture (hooks, triggers), or take them out of the entity",
            generated.join(", ")
        ));
    }
    Ok(())
}

async fn generated(conn: &mut PgConnection, catalog: &Catalog) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entity in catalog.entities() {
        let names: Vec<String> = sqlx::query_scalar(
            "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1) AND attgenerated <> '' AND NOT attisdropped",
        )
        .bind(qualified(entity))
        .fetch_all(&mut *conn)
        .await
        .map_err(database_error)?;
        let ours = names.into_iter().filter(|name| entity.column_index(name).is_some());
        found.extend(ours.map(|name| format!("{}.{name}", entity.name)));
    }
    Ok(found)
}

/// A table that holds rows of an entity: its own, or a partition of it.
struct Holder {
    /// Quoted.
    name: String,
    /// The replica identity as `ALTER TABLE` has it.
    identity: String,
}

async fn holders(conn: &mut PgConnection, entity: &EntityMeta) -> Result<Vec<Holder>> {
    let rows = sqlx::query(
        "SELECT n.nspname || '.' || c.relname, quote_ident(n.nspname) || '.' || quote_ident(c.relname),
           CASE c.relreplident WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING' WHEN 'i' THEN coalesce('USING INDEX ' || (
             SELECT quote_ident(x.relname) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
             WHERE i.indrelid = c.oid AND i.indisreplident), 'DEFAULT') ELSE 'DEFAULT' END
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'r' AND (c.oid = to_regclass($1) OR c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass($1))))
         ORDER BY 1",
    )
    .bind(qualified(entity))
    .fetch_all(conn)
    .await
    .map_err(database_error)?;
    Ok(rows.iter().map(|row| Holder { name: row.get(1), identity: row.get(2) }).collect())
}

/// The function that tells what `TRUNCATE` removes, and its name.
fn truncate_function(entity: &EntityMeta, holder: &Holder) -> (String, String) {
    let name = triggers::function(entity, "tidewire_log", &holder.name);
    let literal = entity.name.replace('\'', "''");
    let body = format!(
        "BEGIN
           PERFORM pg_logical_emit_message(true, '{}', '{literal}' || E'\\n' || {}) FROM {} t;
           PERFORM pg_logical_emit_message(true, '{}', '{literal}');
           RETURN NULL;
         END",
        prefix::REMOVED,
        image(entity, "t"),
        holder.name,
        prefix::TRUNCATED,
    );
    (name, body)
}

/// Publication, replica identities and triggers; all of them or none.
async fn prepare(conn: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    let mut transaction = conn.begin().await.map_err(database_error)?;
    let mut text = String::new();
    for entity in catalog.entities() {
        for holder in holders(&mut transaction, entity).await? {
            let Holder { name, identity } = &holder;
            if identity != "FULL" {
                let [relation, clause] = [name, identity].map(|text| text.replace('\'', "''"));
                text.push_str(&format!(
                    "INSERT INTO tidewire_identity VALUES ('{relation}', '{clause}') ON CONFLICT (relation) DO UPDATE SET identity = '{clause}';
                     ALTER TABLE {name} REPLICA IDENTITY FULL; "
                ));
            }
            let (function, body) = truncate_function(entity, &holder);
            text.push_str(&format!(
                "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS \
                 $tidewire${body}$tidewire$;
                 CREATE OR REPLACE TRIGGER \"{TRUNCATE}\" BEFORE TRUNCATE ON {name} FOR EACH STATEMENT EXECUTE FUNCTION {function}(); "
            ));
        }
    }
    let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_publication WHERE pubname = $1)")
        .bind(PUBLICATION)
        .fetch_one(&mut *transaction)
        .await
        .map_err(database_error)?;
    let options = "(publish = 'insert, update, delete, truncate', publish_via_partition_root = true)";
    let tables: Vec<String> = catalog.entities().iter().map(qualified).collect();
    match (there, tables.is_empty()) {
        (true, false) => text.push_str(&format!(
            "ALTER PUBLICATION {PUBLICATION} SET TABLE {}; ALTER PUBLICATION {PUBLICATION} SET {options}",
            tables.join(", ")
        )),
        (false, false) => {
            text.push_str(&format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE {} WITH {options}", tables.join(", ")))
        }
        (false, true) => text.push_str(&format!("CREATE PUBLICATION {PUBLICATION} WITH {options}")),
        (true, true) => {}
    }
    transaction.execute(sqlx::raw_sql(AssertSqlSafe(text))).await.map_err(database_error)?;
    transaction.commit().await.map_err(database_error)
}

/// Removes what [`install`] put in place, and puts replica identities back.
pub(super) async fn remove(conn: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    find(conn).await?.drop(conn).await?;
    let mut transaction = conn.begin().await.map_err(database_error)?;
    let mut text = format!("DROP PUBLICATION IF EXISTS {PUBLICATION}; ");
    for row in sqlx::query("SELECT relation, identity FROM tidewire_identity")
        .fetch_all(&mut *transaction)
        .await
        .map_err(database_error)?
    {
        let (relation, identity): (String, String) = (row.get(0), row.get(1));
        text.push_str(&format!("ALTER TABLE IF EXISTS {relation} REPLICA IDENTITY {identity}; "));
    }
    for entity in catalog.entities() {
        for holder in holders(&mut transaction, entity).await? {
            let (function, _) = truncate_function(entity, &holder);
            text.push_str(&format!(
                "DROP TRIGGER IF EXISTS \"{TRUNCATE}\" ON {}; DROP FUNCTION IF EXISTS {function}(); ",
                holder.name
            ));
        }
    }
    text.push_str("DELETE FROM tidewire_identity");
    transaction.execute(sqlx::raw_sql(AssertSqlSafe(text))).await.map_err(database_error)?;
    transaction.commit().await.map_err(database_error)
}

/// Whether all of it is in place, and the log is being read.
///
/// # Errors
/// [`ErrorKind::Setup`] saying what is not.
pub(in super::super) async fn check(conn: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    require(conn, catalog).await?;
    let mut drifted = Vec::new();
    for entity in catalog.entities() {
        let row = sqlx::query(
            "SELECT EXISTS (SELECT 1 FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                            WHERE p.pubname = $2 AND r.prrelid = to_regclass($1)),
               (SELECT count(*) FROM pg_trigger t WHERE t.tgname = $3 AND t.tgenabled IN ('O', 'A') AND NOT t.tgisinternal
                  AND (t.tgrelid = to_regclass($1) OR t.tgrelid IN (SELECT relid FROM pg_partition_tree(to_regclass($1)))))",
        )
        .bind(qualified(entity))
        .bind(PUBLICATION)
        .bind(TRUNCATE)
        .fetch_one(&mut *conn)
        .await
        .map_err(database_error)?;
        let holders = holders(conn, entity).await?;
        let complete = holders.iter().all(|holder| holder.identity == "FULL");
        let triggers = usize::try_from(row.get::<i64, _>(1)).unwrap_or_default();
        if !row.get::<bool, _>(0) || !complete || triggers < holders.len() {
            drifted.push(entity.name);
        }
    }
    let refuse = |problem: String| {
        Err(Error::new(
            ErrorKind::Setup,
            format!(
                "{problem}. `tidewire capture install` puts it in place, or `Recorder::install_capture` from a program"
            ),
        ))
    };
    if !drifted.is_empty() {
        return refuse(format!(
            "what capture by the log needs of {} is missing or out of date (publication, replica identity, trigger for TRUNCATE)",
            drifted.join(", ")
        ));
    }
    let slot = find(conn).await?;
    if !slot.usable {
        return refuse(format!("the replication slot {} is missing, or has lost its place in the log", slot.name));
    }
    let trouble: Option<String> =
        sqlx::query_scalar("SELECT trouble FROM tidewire_log").fetch_one(conn).await.map_err(database_error)?;
    match trouble {
        Some(trouble) => Err(Error::new(ErrorKind::Setup, trouble)),
        None => Ok(()),
    }
}

/// How far the log has been read.
pub(super) async fn status(conn: &mut PgConnection) -> Result<LogStatus> {
    let slot = find(conn).await?;
    let row = sqlx::query(
        "SELECT greatest((pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint - lsn, 0),
           greatest(extract(epoch FROM now() - lsn_at), 0)::bigint, trouble FROM tidewire_log",
    )
    .fetch_one(conn)
    .await
    .map_err(database_error)?;
    let behind = row.get::<i64, _>(0).cast_unsigned();
    // A reader that is there has confirmed what concerns us, and the rest of the log is of no concern.
    let lag = if slot.reader.is_some() { behind.min(slot.kept) } else { behind };
    Ok(LogStatus {
        active: slot.reader.is_some(),
        lag_bytes: slot.usable.then_some(lag),
        lag_seconds: row.get::<Option<i64>, _>(1).filter(|_| lag > 0).map(i64::cast_unsigned),
        kept_bytes: slot.usable.then_some(slot.kept),
        trouble: row.get(2),
        name: slot.name,
    })
}

/// The entities by schema and name of their tables; and refuses where the publication has a table that is no entity's, whose changes this
/// program could not record.
pub(super) async fn entities(
    conn: &mut PgConnection,
    catalog: &Catalog,
) -> Result<HashMap<(String, String), EntityId>> {
    let mut entities = HashMap::new();
    for entity in catalog.entities() {
        let found =
            "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                     WHERE c.oid = to_regclass($1)";
        let row =
            sqlx::query(found).bind(qualified(entity)).fetch_optional(&mut *conn).await.map_err(database_error)?;
        if let Some(row) = row {
            entities.insert((row.get(0), row.get(1)), entity.id);
        }
    }
    let published =
        sqlx::query("SELECT schemaname::text, tablename::text FROM pg_publication_tables WHERE pubname = $1")
            .bind(PUBLICATION)
            .fetch_all(conn)
            .await
            .map_err(database_error)?;
    let unknown: Vec<String> = published
        .iter()
        .filter(|row| !entities.contains_key(&(row.get(0), row.get(1))))
        .map(|row| row.get(1))
        .collect();
    if !unknown.is_empty() {
        return Err(Error::new(
            ErrorKind::Setup,
            format!(
                "this program cannot read the database's log, because it has no entities for {}, which the publication {PUBLICATION} has. \
                 Another program reads it, or `tidewire capture install` makes the publication anew",
                unknown.join(", ")
            ),
        ));
    }
    Ok(entities)
}

/// The columns of a table, as it is now.
pub(super) async fn columns(conn: &mut PgConnection, entity: &EntityMeta) -> Result<Vec<String>> {
    let columns =
        "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped";
    sqlx::query_scalar(columns).bind(qualified(entity)).fetch_all(conn).await.map_err(database_error)
}
