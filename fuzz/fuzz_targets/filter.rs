#![no_main]

use std::sync::LazyLock;

use tidewire_graphql::{Api, fuzzing::Rows};
use tidewire_testkit::{TestDatabase, zoo};
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("there is a runtime"));

/// The database's files go with the first value.
static ROWS: LazyLock<(TestDatabase, Rows)> = LazyLock::new(|| {
    RUNTIME.block_on(async {
        let database = TestDatabase::sqlite();
        let recorder = database.recorder(zoo::registry(), zoo::create).await;
        zoo::fill(&recorder).await;
        let api = Api::builder(recorder).finish().expect("the names differ");
        (database, Rows::new(api, "everything").await)
    })
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| RUNTIME.block_on(ROWS.1.filter(bytes)));
