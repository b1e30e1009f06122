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
}

impl Target {
    /// A fresh database; `None`, having said so, where its server is not installed.
    pub async fn database(self) -> Option<TestDatabase> {
        match self {
            Self::SqliteHooks => Some(TestDatabase::sqlite()),
            Self::SqliteTriggers => Some(TestDatabase::sqlite().captured_by(Capture::Triggers)),
            Self::PostgresHooks => TestDatabase::postgres().await,
            Self::PostgresTriggers => Some(TestDatabase::postgres().await?.captured_by(Capture::Triggers)),
            Self::PostgresLog => Some(TestDatabase::postgres().await?.captured_by(Capture::Log)),
        }
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

            async fn on(target: $crate::Target) {
                if let Some(database) = target.database().await {
                    body(database).await;
                }
            }

            #[::tokio::test(flavor = "multi_thread")]
            async fn sqlite_hooks() {
                on($crate::Target::SqliteHooks).await;
            }

            #[::tokio::test(flavor = "multi_thread")]
            async fn sqlite_triggers() {
                on($crate::Target::SqliteTriggers).await;
            }

            #[::tokio::test(flavor = "multi_thread")]
            async fn postgres_hooks() {
                on($crate::Target::PostgresHooks).await;
            }

            #[::tokio::test(flavor = "multi_thread")]
            async fn postgres_triggers() {
                on($crate::Target::PostgresTriggers).await;
            }

            #[::tokio::test(flavor = "multi_thread")]
            async fn postgres_log() {
                on($crate::Target::PostgresLog).await;
            }
        }
    };
}
