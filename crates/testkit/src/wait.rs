use std::{future::Future, panic::Location, time::Duration};

use tokio::time::{sleep, timeout};

/// How long a test waits for what should come at once. Long, because machines that run tests are busy; a test that passes never waits
/// for it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a future.
///
/// # Panics
/// When it takes longer than [`PATIENCE`], naming the line that waits.
#[track_caller]
pub fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = Location::caller();
    async move {
        match timeout(PATIENCE, future).await {
            Ok(output) => output,
            Err(_) => panic!("{caller}: waited {} s in vain", PATIENCE.as_secs()),
        }
    }
}

/// Asks again and again until the answer is yes. For what nothing tells of; where something does, wait for that.
///
/// # Panics
/// When it takes longer than [`PATIENCE`], naming the line that waits.
#[track_caller]
pub fn eventually<F: Future<Output = bool>>(mut ask: impl FnMut() -> F) -> impl Future<Output = ()> {
    soon(async move {
        while !ask().await {
            sleep(Duration::from_millis(5)).await;
        }
    })
}
