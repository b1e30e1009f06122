use tidewire_outbox::Capture;

use crate::TestDatabase;

/// A database with one of the ways of capture that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named for what they are")]
pub enum Target {
    SqliteHooks,
    SqliteTriggers,
    PostgresHooks,
    PostgresTriggers,
    PostgresLog,
    MariadbHooks,
    MariadbTriggers,
    MariadbLog,
}

impl Target {
    /// A fresh database; `None`, having said so, where its server is not installed.
    pub async fn database(self) -> Option<TestDatabase> {
        let (database, capture) = match self {
            Self::SqliteHooks => (Some(TestDatabase::sqlite()), Capture::Hooks),
            Self::SqliteTriggers => (Some(TestDatabase::sqlite()), Capture::Triggers),
            Self::PostgresHooks => (TestDatabase::postgres().await, Capture::Hooks),
            Self::PostgresTriggers => (TestDatabase::postgres().await, Capture::Triggers),
            Self::PostgresLog => (TestDatabase::postgres().await, Capture::Log),
            Self::MariadbHooks => (TestDatabase::mariadb().await, Capture::Hooks),
            Self::MariadbTriggers => (TestDatabase::mariadb().await, Capture::Triggers),
            Self::MariadbLog => (TestDatabase::mariadb().await, Capture::Log),
        };
        Some(database?.captured_by(capture))
    }
}

/// Makes a test of each target of a function that takes a [`TestDatabase`]: of `rows_are_recorded` the tests
/// `rows_are_recorded::sqlite_hooks` and so on.
///
/// ```
/// # mod tests {
/// tidewire_testkit::on_every_target! {
///     /// What it proves.
///     async fn rows_are_recorded(database: TestDatabase) {
///         assert!(!database.url().is_empty());
///     }
/// }
/// # }
/// ```
#[macro_export]
macro_rules! on_every_target {
    ($(#[$meta:meta])* async fn $name:ident($database:ident: TestDatabase) $body:block) => {
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports, reason = "a body may need nothing")]
            use super::*;

            async fn body($database: $crate::TestDatabase) $body

            $crate::on_every_target! { @each
                sqlite_hooks: SqliteHooks,
                sqlite_triggers: SqliteTriggers,
                postgres_hooks: PostgresHooks,
                postgres_triggers: PostgresTriggers,
                postgres_log: PostgresLog,
                mariadb_hooks: MariadbHooks,
                mariadb_triggers: MariadbTriggers,
                mariadb_log: MariadbLog,
            }
        }
    };
    (@each $($test:ident: $target:ident,)*) => {
        $(
            #[::tokio::test(flavor = "multi_thread")]
            async fn $test() {
                if let Some(database) = $crate::Target::$target.database().await {
                    body(database).await;
                }
            }
        )*
    };
}
