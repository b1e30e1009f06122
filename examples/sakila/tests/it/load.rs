//! Brings Sakila's rows into other databases.

use std::path::Path;

use sea_orm::{ConnectionTrait, Database, DatabaseConnection, Statement, TransactionTrait};

/// Creates PostgreSQL's schema, which lies beside the SQLite file, and copies the file's rows.
pub(crate) async fn postgres(db: &DatabaseConnection, file: &Path) {
    let schema = std::fs::read_to_string(file.with_file_name("postgres-sakila-schema.sql")).unwrap();
    // Roles are the author's own. Functions come before those that they call.
    let others = |line: &&str| {
        !line.contains(" OWNER TO ") && !["SET ", "REVOKE ", "GRANT "].iter().any(|word| line.starts_with(word))
    };
    let lines = schema.lines().filter(others);
    let lines = lines.collect::<Vec<_>>().join("\n");
    db.execute_unprepared(&format!("BEGIN; SET LOCAL check_function_bodies = off; {lines}; COMMIT")).await.unwrap();
    let source = Database::connect(format!("sqlite://{}?mode=ro", file.display())).await.unwrap();
    let transaction = db.begin().await.unwrap();
    // Stores and their managers refer to each other.
    transaction.execute_unprepared("SET LOCAL session_replication_role = replica").await.unwrap();
    for table in tables(&transaction).await {
        if table == "film" {
            // A trigger fills a column of its own.
            transaction.execute_unprepared("SET LOCAL session_replication_role = origin").await.unwrap();
        }
        copy(&source, &transaction, &table).await;
    }
    transaction.commit().await.unwrap();
}

/// Runs the scripts of MySQL's schema and rows, which lie beside the SQLite file.
pub(crate) async fn mysql(db: &DatabaseConnection, file: &Path) {
    // What the scripts set is the connection's.
    let one = db.begin().await.unwrap();
    for name in ["mysql-sakila-schema.sql", "mysql-sakila-data.sql"] {
        let script = std::fs::read_to_string(file.with_file_name(name)).unwrap();
        // The database is there and has another name, and delimiters are the client's own business: the server knows where a body ends.
        let others = |line: &&str| {
            !["DROP SCHEMA", "CREATE SCHEMA", "USE ", "DELIMITER "].iter().any(|word| line.starts_with(word))
        };
        let text = script.lines().filter(others).collect::<Vec<_>>().join("\n");
        let text = ["END;;", "END //", "END $$"].iter().fold(text, |text, end| text.replace(end, "END;"));
        one.execute_unprepared(&text.replace("sakila.", "")).await.unwrap();
    }
    one.commit().await.unwrap();
}

/// The tables, those that a film refers to before it.
async fn tables(db: &impl ConnectionTrait) -> Vec<String> {
    let mut tables = texts(
        db,
        "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'
         AND table_name NOT LIKE 'tidewire%'",
    )
    .await;
    tables.sort_by_key(|table| table == "film");
    tables
}

async fn copy(source: &impl ConnectionTrait, target: &impl ConnectionTrait, table: &str) {
    let theirs = texts(source, &format!("SELECT name FROM pragma_table_info('{table}')")).await;
    let ours = "SELECT column_name || ' ' || udt_name FROM information_schema.columns WHERE table_name = ";
    let columns: Vec<(String, String)> = texts(target, &format!("{ours}'{table}'"))
        .await
        .iter()
        .map(|column| column.split_once(' ').unwrap())
        .filter(|(column, _)| theirs.iter().any(|theirs| theirs == column))
        .map(|(column, kind)| (column.to_owned(), kind.to_owned()))
        .collect();
    let pairs = columns.iter().map(|(column, kind)| {
        let value = match kind.as_str() {
            "bool" => format!("CASE {column} WHEN 1 THEN 'true' WHEN 0 THEN 'false' END"),
            "bytea" => format!("'\\x' || hex({column})"),
            "_text" => format!("'{{\"' || replace({column}, ',', '\",\"') || '\"}}'"),
            _ => column.clone(),
        };
        format!("'{column}', {value}")
    });
    // Five payments are for no rental, which this schema does not allow.
    let but_not = if table == "payment" { "WHERE rental_id IS NOT NULL" } else { "" };
    let pairs = pairs.collect::<Vec<_>>().join(", ");
    let rows = format!("SELECT json_group_array(json_object({pairs})) FROM {table} {but_not}");
    let rows = texts(source, &rows).await.remove(0);
    let names = columns.into_iter().map(|(column, _)| column).collect::<Vec<_>>().join(", ");
    let insert =
        format!("INSERT INTO {table} ({names}) SELECT {names} FROM json_populate_recordset(NULL::{table}, $1::json)");
    let statement = Statement::from_sql_and_values(target.get_database_backend(), insert, [rows.into()]);
    target.execute_raw(statement).await.unwrap();
}

async fn texts(db: &impl ConnectionTrait, sql: &str) -> Vec<String> {
    let rows = db.query_all_raw(Statement::from_string(db.get_database_backend(), sql)).await.unwrap();
    rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
}
