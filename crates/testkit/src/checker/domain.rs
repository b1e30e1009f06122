//! The tables that the checker's writers write.
#![allow(missing_docs, reason = "columns are named for what they hold, and SeaORM's macros write undocumented items")]

use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, EntityTrait, IdenStatic, Iterable, ModelTrait};
use serde_json::{Map, Value};
use tidewire_outbox::Registry;

use crate::replica::cells_of;

pub mod parent {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "parent")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i64,
        pub name: String,
        pub n: i64,
        pub note: Option<String>,
        #[sea_orm(has_many)]
        pub children: HasMany<super::child::Entity>,
    }

    impl ActiveModelBehavior for ActiveModel {}
}

pub mod child {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "child")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub owner: i64,
        pub body: String,
        pub weight: f64,
        #[sea_orm(belongs_to, from = "owner", to = "id", on_delete = "Cascade")]
        pub parent: BelongsTo<super::parent::Entity>,
    }

    impl ActiveModelBehavior for ActiveModel {}
}

/// Each transaction of several changes writes its id, and how many changes it has, this row included.
pub mod ledger {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "ledger")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub changes: i64,
    }

    impl ActiveModelBehavior for ActiveModel {}
}

/// The checker's entities.
pub fn registry() -> Registry {
    Registry::new().entity::<parent::Entity>().entity::<child::Entity>().entity::<ledger::Entity>()
}

/// Creates the checker's tables.
pub async fn create(db: &DatabaseConnection) {
    db.get_schema_builder()
        .register(parent::Entity)
        .register(child::Entity)
        .register(ledger::Entity)
        .apply(db)
        .await
        .unwrap();
    match db.get_database_backend() {
        DbBackend::Postgres => drop(db.execute_unprepared(TALLY).await.unwrap()),
        DbBackend::MySql => drop(db.execute_unprepared(TALLY_ON_MARIADB).await.unwrap()),
        _ => {}
    }
}

/// As [`create`], for capture by the log. (Hooks refuse triggers that name a synced table, since they may write it.)
pub async fn create_for_the_log(db: &DatabaseConnection) {
    create(db).await;
    if db.get_database_backend() == DbBackend::MySql {
        tally_on_mariadb(db).await;
    }
}

/// Without a counter: a deadlock about that would end the transaction behind the server's back (error 1467).
const TALLY_ON_MARIADB: &str = "CREATE TABLE tally (tx varchar(64), KEY (tx))";

/// As [`TALLY`], by the name that a transaction gives itself. Nothing fires for what a foreign key removes, so it is counted before.
async fn tally_on_mariadb(db: &DatabaseConnection) {
    let trigger = async |name: &str, moment: &str, what: &str| {
        let text = format!("CREATE TRIGGER {name} {moment} FOR EACH ROW {what}");
        db.execute_unprepared(&text).await.unwrap();
    };
    const COUNT: &str = "INSERT INTO tally (tx) VALUES (@tally)";
    for (table, columns) in [
        ("parent", &["id", "name", "n", "note"][..]),
        ("child", &["id", "owner", "body", "weight"]),
        ("ledger", &["id"]),
    ] {
        trigger(&format!("tally_{table}_i"), &format!("AFTER INSERT ON {table}"), COUNT).await;
        trigger(&format!("tally_{table}_d"), &format!("AFTER DELETE ON {table}"), COUNT).await;
        let same = columns.iter().map(|column| format!("BINARY OLD.{column} <=> BINARY NEW.{column}"));
        let differs = format!("IF NOT ({}) THEN {COUNT}; END IF", same.collect::<Vec<_>>().join(" AND "));
        trigger(&format!("tally_{table}_u"), &format!("AFTER UPDATE ON {table}"), &differs).await;
    }
    let followers = "INSERT INTO tally (tx) SELECT @tally FROM child WHERE owner = OLD.id";
    trigger("tally_parent_followers", "BEFORE DELETE ON parent", followers).await;
}

/// Counts the changes of each transaction, without anything of Tidewire's: under capture by the log, the outbox has them later.
const TALLY: &str = "
CREATE TABLE tally (xid text NOT NULL);
CREATE INDEX tally_xid ON tally (xid);
CREATE FUNCTION count_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF TG_OP <> 'UPDATE' OR OLD IS DISTINCT FROM NEW THEN INSERT INTO tally VALUES (pg_current_xact_id()::text); END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER tally AFTER INSERT OR UPDATE OR DELETE ON parent FOR EACH ROW EXECUTE FUNCTION count_change();
CREATE TRIGGER tally AFTER INSERT OR UPDATE OR DELETE ON child FOR EACH ROW EXECUTE FUNCTION count_change();
CREATE TRIGGER tally AFTER INSERT OR UPDATE OR DELETE ON ledger FOR EACH ROW EXECUTE FUNCTION count_change();";

/// Rows by entity and key.
pub(super) type Rows = BTreeMap<(String, String), Value>;

/// All rows as they are, read through SeaORM.
pub(super) async fn tables(db: &impl ConnectionTrait) -> Rows {
    let mut rows = Rows::new();
    table::<parent::Entity>(db, &mut rows).await;
    table::<child::Entity>(db, &mut rows).await;
    table::<ledger::Entity>(db, &mut rows).await;
    rows
}

async fn table<E>(db: &impl ConnectionTrait, rows: &mut Rows)
where
    E: EntityTrait,
    E::Model: Sync,
    <E::Model as ModelTrait>::Entity: EntityTrait,
{
    for model in E::find().all(db).await.unwrap() {
        let cells = cells_of(&model);
        let row = object(E::Column::iter().map(|column| column.as_str()).zip(cells.iter().map(Option::as_deref)));
        let key = serde_json::json!({ "id": row["id"] });
        rows.insert((E::default().table_name().to_owned(), key.to_string()), row);
    }
}

/// Named cells as a JSON object.
pub(super) fn object<'a>(cells: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> Value {
    let fields = cells.map(|(name, cell)| {
        let value = cell.map_or(Value::Null, |cell| serde_json::from_str(cell).unwrap());
        (name.to_owned(), value)
    });
    Value::Object(fields.collect::<Map<_, _>>())
}
