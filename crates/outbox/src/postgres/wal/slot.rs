//! What capture by the log needs in the database: a publication, a replication slot, replica identities, and triggers that tell of `TRUNCATE`.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Row, postgres::types::Oid};

use super::changes::prefix;
use crate::{
    capture::{Capture, LogStatus},
    error::{Error, ErrorKind, Result},
    postgres::{
        code, database_error, epoch, schema,
        trigger::{self, Part, Trigger},
        triggers::{self, qualified},
    },
    registry::{Catalog, EntityId, EntityMeta},
};

/// The publication's name. A database has one.
pub(super) const PUBLICATION: &str = "tidewire";

/// What readers of the slot are called, by which the next one knows them.
pub(super) const APPLICATION: &str = "tidewire capture";

/// The trigger's name, and what the names of its functions begin with.
const TRUNCATE: [&str; 2] = ["!tidewire_log", "tidewire_log"];

/// How long the slot's creation may wait for transactions that are under way: while writers wait for it, and else.
const BRIEF: &str = "10s";
const PATIENT: &str = "30s";

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

    /// Drops it, if it is there. A node that reads it may come back at once, so it is ended as often as it does.
    pub(super) async fn drop(&self, conn: &mut PgConnection) -> Result<()> {
        let mut attempts = 0;
        while find(conn).await?.exists {
            self.release(conn).await?;
            let drop = sqlx::query("SELECT pg_drop_replication_slot($1)").bind(&self.name);
            attempts += 1;
            match drop.execute(&mut *conn).await {
                // Somebody reads it again, or somebody else has dropped it.
                Err(error)
                    if attempts < RELEASE_ATTEMPTS && matches!(code(&error).as_deref(), Some("55006" | "42704")) => {}
                result => return result.map(|_| ()).map_err(database_error),
            }
        }
        Ok(())
    }

    /// Makes it; answers where it begins. Waits for transactions that are under way.
    async fn create(&self, pool: &PgPool, patience: &str) -> Result<u64> {
        let mut transaction = pool.begin().await.map_err(database_error)?;
        let timeout = format!("SET LOCAL statement_timeout = '{patience}'");
        transaction.execute(AssertSqlSafe(timeout)).await.map_err(database_error)?;
        let create = "SELECT (lsn - '0/0'::pg_lsn)::bigint FROM pg_create_logical_replication_slot($1, 'pgoutput')";
        let created = sqlx::query_scalar::<_, i64>(create).bind(&self.name).fetch_one(&mut *transaction).await;
        let lsn = created.map_err(|error| match code(&error).as_deref() {
            Some("53400" | "55000") => Error::new(
                ErrorKind::Setup,
                "all replication slots of the server are in use. Set `max_replication_slots` higher in \
                     postgresql.conf and restart it, or drop a slot that nobody needs",
            )
            .with_source(error),
            _ => busy(error),
        })?;
        transaction.commit().await.map_err(database_error)?;
        Ok(lsn.cast_unsigned())
    }
}

/// Puts in place what is needed. What triggers recorded so far and what the log tells from then on join without a gap.
pub(super) async fn install(pool: &PgPool, conn: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    require(conn, catalog).await?;
    let was = schema::capture(conn).await?;
    let slot = find(conn).await?;
    let goes_on = was == Capture::Log && slot.usable && is_published(conn).await?;
    prepare(conn, catalog).await?;
    if goes_on {
        return Ok(());
    }
    slot.drop(conn).await?;
    if was == Capture::Log {
        return begin_anew(pool, conn, &slot).await;
    }
    let mut transaction = conn.begin().await.map_err(database_error)?;
    // Whoever writes waits until the triggers are gone and the slot is there. (A transaction that writes cannot make a slot, and a slot waits
    // for transactions that have written: so the locks are held here, without a write, while the slot is made over there. One that has written
    // and waits for a lock of ours is waited for in vain, but not for long.)
    let tables: Vec<String> = catalog.entities().iter().map(qualified).collect();
    if !tables.is_empty() {
        let lock = format!("SET LOCAL lock_timeout = '{BRIEF}'; LOCK TABLE {} IN SHARE MODE", tables.join(", "));
        transaction.execute(sqlx::raw_sql(AssertSqlSafe(lock))).await.map_err(busy)?;
    }
    let lsn = slot.create(pool, BRIEF).await?;
    triggers::remove(&mut transaction, catalog).await?;
    begin_at(&mut transaction, lsn).await?;
    transaction.commit().await.map_err(database_error)
}

/// Where there was a slot, and what it would have told is not to be had any more. Who follows starts over in any case, so no writer need wait.
async fn begin_anew(pool: &PgPool, conn: &mut PgConnection, slot: &Slot) -> Result<()> {
    tracing::error!(
        slot = slot.name,
        "what the replication slot would have told is lost: changes are missing, and all who follow start over"
    );
    let lsn = slot.create(pool, PATIENT).await?;
    let mut transaction = conn.begin().await.map_err(database_error)?;
    epoch::break_off(&mut transaction).await?;
    begin_at(&mut transaction, lsn).await?;
    transaction.commit().await.map_err(database_error)
}

/// Notes where the log is read from.
async fn begin_at(conn: &mut PgConnection, lsn: u64) -> Result<()> {
    sqlx::query("UPDATE tidewire_log SET capture = 'log', lsn = $1, lsn_at = now(), trouble = NULL")
        .bind(lsn.cast_signed())
        .execute(conn)
        .await
        .map(drop)
        .map_err(database_error)
}

/// An error of a statement that gave up waiting for transactions.
fn busy(error: sqlx::Error) -> Error {
    match code(&error).as_deref() {
        Some("55P03" | "57014") => Error::new(
            ErrorKind::Busy,
            "capture by the log could not begin, because transactions have been open for long. Stop the programs that write, and try again",
        )
        .with_source(error),
        _ => database_error(error),
    }
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

/// The triggers that tell what `TRUNCATE` removes.
async fn truncate_triggers(conn: &mut PgConnection, catalog: &Catalog) -> Result<Vec<(&'static str, Trigger)>> {
    let schema = trigger::schema(conn).await?;
    let mut all = Vec::new();
    for entity in catalog.entities() {
        let literal = entity.name.replace('\'', "''");
        for part in trigger::parts(conn, entity).await? {
            let tell = |table: &str, image: &str| {
                let token = format!("(SELECT token FROM {schema}.tidewire_log) || E'\\n'");
                format!(
                    "PERFORM pg_logical_emit_message(true, '{}', convert_to({token} || '{literal}' || E'\\n' || {image}, 'UTF8')) FROM {table} t;
                     PERFORM pg_logical_emit_message(true, '{}', {token} || TG_RELID::text);",
                    prefix::REMOVED,
                    prefix::TRUNCATED,
                )
            };
            all.push((entity.name, trigger::before_truncate(TRUNCATE, &schema, entity, &part, tell)));
        }
    }
    Ok(all)
}

/// The tables that rows are in. Each has its own replica identity, and is told of by its own name.
async fn parts_with_rows(conn: &mut PgConnection, catalog: &Catalog) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for entity in catalog.entities() {
        parts.extend(trigger::parts(conn, entity).await?.into_iter().filter(|part| part.has_rows));
    }
    Ok(parts)
}

/// Statements that give the tables which lack it what they need: a replica identity, and a trigger. None where all is there.
async fn lacking(conn: &mut PgConnection, catalog: &Catalog) -> Result<String> {
    let mut text = String::new();
    for part in parts_with_rows(conn, catalog).await?.iter().filter(|part| part.identity != "FULL") {
        let [relation, clause] = [&part.name, &part.identity].map(|text| text.replace('\'', "''"));
        text.push_str(&format!(
            "INSERT INTO tidewire_identity VALUES ('{relation}', '{clause}') ON CONFLICT (relation) DO UPDATE SET identity = '{clause}';
             ALTER TABLE {} REPLICA IDENTITY FULL; ",
            part.name
        ));
    }
    for (_, trigger) in truncate_triggers(conn, catalog).await? {
        if !trigger.is_there(conn).await? {
            text.push_str(&trigger.create());
        }
    }
    Ok(text)
}

/// Prepares what was made since the last time: partitions. They are told of from the beginning, but changes before this would come without the rows
/// as they were.
pub(super) async fn prepare_parts(conn: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    let lacking = lacking(conn, catalog).await?;
    if lacking.is_empty() {
        return Ok(());
    }
    let mut transaction = conn.begin().await.map_err(database_error)?;
    let text = format!("SET LOCAL lock_timeout = '500ms'; {lacking}");
    transaction.execute(sqlx::raw_sql(AssertSqlSafe(text))).await.map_err(busy)?;
    transaction.commit().await.map_err(database_error)
}

/// What tells the publication as it is from what it was: none where it was dropped, and another where any of it was taken out and put in again.
const PUBLISHED: &str = "(SELECT concat(p.oid, ' ', p.xmin, ' ', p.puballtables, ' ', (SELECT string_agg(concat(r.oid, ':', r.xmin), ' ' ORDER BY r.oid)
    FROM pg_publication_rel r WHERE r.prpubid = p.oid)) FROM pg_publication p WHERE p.pubname = 'tidewire')";

/// Whether the publication is what was installed, so that nothing was left out.
pub(super) async fn is_published(conn: &mut PgConnection) -> Result<bool> {
    let same = format!("SELECT coalesce(publication = {PUBLISHED}, false) FROM tidewire_log");
    sqlx::query_scalar(AssertSqlSafe(same)).persistent(false).fetch_one(conn).await.map_err(database_error)
}

/// Publication, replica identities and triggers; all of them or none.
async fn prepare(conn: &mut PgConnection, catalog: &Catalog) -> Result<()> {
    let mut transaction = conn.begin().await.map_err(database_error)?;
    let mut text = lacking(&mut transaction, catalog).await?;
    // Each partition by its own name, with what its own replica identity gives.
    let options = "(publish = 'insert, update, delete, truncate', publish_via_partition_root = false)";
    let wanted: Vec<String> = catalog.entities().iter().map(qualified).collect();
    let (there, was_installed): (bool, bool) = sqlx::query_as(
        "SELECT EXISTS (SELECT 1 FROM pg_publication WHERE pubname = $1), publication IS NOT NULL FROM tidewire_log",
    )
    .bind(PUBLICATION)
    .fetch_one(&mut *transaction)
    .await
    .map_err(database_error)?;
    if there && !was_installed {
        return Err(Error::new(
            ErrorKind::Setup,
            format!(
                "the publication {PUBLICATION} is there already: another outbox of this database, in another schema, is captured by its log. A \
                 database has one of these; where nobody needs it, `DROP PUBLICATION {PUBLICATION}` takes it away"
            ),
        ));
    }
    if !there {
        text.push_str(&format!("CREATE PUBLICATION {PUBLICATION} WITH {options}; "));
    }
    let published: Vec<(String, bool)> = sqlx::query_as(
        "SELECT r.prrelid::regclass::text, r.prrelid IN (SELECT to_regclass(t) FROM unnest($2::text[]) t)
         FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $1",
    )
    .bind(PUBLICATION)
    .bind(&wanted)
    .fetch_all(&mut *transaction)
    .await
    .map_err(database_error)?;
    let others: Vec<&str> = published.iter().filter(|(_, ours)| !ours).map(|(name, _)| name.as_str()).collect();
    if !others.is_empty() {
        return Err(Error::new(
            ErrorKind::Setup,
            format!(
                "the publication {PUBLICATION} has {}, which this program has no entities for: another one captures the database. Install \
                 from a program that has all of them; where nobody needs them, `ALTER PUBLICATION {PUBLICATION} DROP TABLE` takes them out",
                others.join(", ")
            ),
        ));
    }
    if published.len() < wanted.len() {
        text.push_str(&format!("ALTER PUBLICATION {PUBLICATION} SET TABLE {}; ", wanted.join(", ")));
    }
    text.push_str(&format!(
        "ALTER PUBLICATION {PUBLICATION} SET {options}; UPDATE tidewire_log SET publication = {PUBLISHED}"
    ));
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
    text.extend(truncate_triggers(&mut transaction, catalog).await?.iter().map(|(_, trigger)| trigger.drop()));
    text.push_str("DELETE FROM tidewire_identity; UPDATE tidewire_log SET publication = NULL");
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
        let published: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                            WHERE p.pubname = $2 AND r.prrelid = to_regclass($1))",
        )
        .bind(qualified(entity))
        .bind(PUBLICATION)
        .fetch_one(&mut *conn)
        .await
        .map_err(database_error)?;
        let parts = trigger::parts(conn, entity).await?;
        if !published || parts.iter().any(|part| part.has_rows && part.identity != "FULL") {
            drifted.push(entity.name);
        }
    }
    for (entity, trigger) in truncate_triggers(conn, catalog).await? {
        if !drifted.contains(&entity) && !trigger.is_there(conn).await? {
            drifted.push(entity);
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

/// The entities by the ids of their tables and of those' partitions; and refuses where the publication has a table that is no entity's, whose changes this
/// program could not record.
pub(super) async fn entities(conn: &mut PgConnection, catalog: &Catalog) -> Result<HashMap<u32, EntityId>> {
    // First what is published: a partition that is made meanwhile is found among the tables then. One that is dropped is published no more.
    let mut published = published(conn).await?;
    let mut entities = HashMap::new();
    for entity in catalog.entities() {
        let found = "SELECT oid FROM pg_class
                     WHERE oid = to_regclass($1) OR oid IN (SELECT relid FROM pg_partition_tree(to_regclass($1)))";
        let rows = sqlx::query(found).bind(qualified(entity)).fetch_all(&mut *conn).await.map_err(database_error)?;
        // A partition's changes are told as its own.
        entities.extend(rows.iter().map(|row| (row.get::<Oid, _>(0).0, entity.id)));
    }
    published.retain(|table, _| !entities.contains_key(table));
    if !published.is_empty() {
        let still = self::published(conn).await?;
        published.retain(|table, _| still.contains_key(table));
    }
    if !published.is_empty() {
        let unknown: Vec<String> = published.into_values().collect();
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

/// The names of published tables by their ids; of a partitioned table, its partitions.
async fn published(conn: &mut PgConnection) -> Result<BTreeMap<u32, String>> {
    let rows = sqlx::query(
        "SELECT c.oid, t.tablename::text FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname
           JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename WHERE t.pubname = $1",
    )
    .bind(PUBLICATION)
    .fetch_all(conn)
    .await
    .map_err(database_error)?;
    Ok(rows.iter().map(|row| (row.get::<Oid, _>(0).0, row.get(1))).collect())
}

/// The columns of a table, as it is now.
pub(super) async fn columns(conn: &mut PgConnection, entity: &EntityMeta) -> Result<Vec<String>> {
    let columns =
        "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped";
    sqlx::query_scalar(columns).bind(qualified(entity)).fetch_all(conn).await.map_err(database_error)
}
