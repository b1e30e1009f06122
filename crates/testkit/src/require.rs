use std::{env, path::PathBuf};

/// Whether a test that needs something can run; says that it was skipped if not.
///
/// # Panics
/// When the thing is missing and `TIDEWIRE_TEST_REQUIRE`, a list of names separated by commas, has its name.
#[track_caller]
pub fn available(name: &str, found: bool) -> bool {
    let required = env::var("TIDEWIRE_TEST_REQUIRE").unwrap_or_default();
    if !found {
        assert!(!required.split(',').any(|required| required.trim() == name), "{name} is required and was not found");
        println!("skipped: {name} was not found");
    }
    found
}

/// The path of the Sakila database, where it can be found: at `TIDEWIRE_TEST_SAKILA`, or in the folder that the project shares with its
/// neighbours.
pub fn sakila() -> Option<PathBuf> {
    let shared = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/sakila/sakila.sqlite3");
    let path = env::var_os("TIDEWIRE_TEST_SAKILA").map_or_else(|| PathBuf::from(shared), PathBuf::from);
    available("sakila", path.is_file()).then_some(path)
}
