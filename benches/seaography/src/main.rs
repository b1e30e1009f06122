//! `seaography-bench URL DOCUMENT REQUESTS` prints the processor time of one request, in µs.

use std::time::Duration;

use async_graphql::dynamic::Schema;
use rustix::time::{ClockId, clock_gettime};
use sea_orm::{ConnectOptions, Database};
use seaography::{Builder, BuilderContext, lazy_static};

#[rustfmt::skip]
#[allow(unused_imports, reason = "the files are as the generator wrote them")]
mod entities;

lazy_static::lazy_static! {
    static ref CONTEXT: BuilderContext = BuilderContext::default();
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, url, document, requests] = &arguments[..] else { return Err("URL DOCUMENT REQUESTS".into()) };
    let requests: u32 = requests.parse()?;
    let mut options = ConnectOptions::new(url);
    options.sqlx_logging(false).max_connections(8);
    let db = Database::connect(options).await?;
    let schema = entities::register_entity_modules(Builder::new(&CONTEXT, db.clone()))
        .set_depth_limit(None)
        .set_complexity_limit(None)
        .schema_builder()
        .data(db)
        .finish()?;
    // Warm up, and look whether it answers at all.
    for _ in 0..requests / 10 {
        let answer = ask(&schema, document).await?;
        if answer.contains("\"errors\"") || answer.len() < 10_000 {
            return Err(answer.into());
        }
    }
    let before = cpu();
    for _ in 0..requests {
        ask(&schema, document).await?;
    }
    println!("{}", (cpu() - before).as_secs_f64() * 1e6 / f64::from(requests));
    Ok(())
}

async fn ask(schema: &Schema, document: &str) -> Result<String, serde_json::Error> {
    serde_json::to_string(&schema.execute(document).await)
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
