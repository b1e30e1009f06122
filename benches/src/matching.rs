//! What it costs to find who wants a change, among few shapes and among a million.

use std::time::Instant;

use anyhow::{Context, Result};
use sea_orm::{EntityTrait, sea_query::Value};
use tidewire_outbox::{
    Filter, Image, Step,
    filter::{Comparison, Like, PredicateIndex},
};

use crate::measure::{Demo, cpu, median, micros, row, task};

const SIZES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
const CHANGES: usize = 1_000;
const ROUNDS: usize = 7;

pub(crate) async fn run() -> Result<()> {
    println!("### Matching: finding who wants a change\n");
    println!(
        "A third of the shapes asks for a title, a third for a range of priorities, a third for the beginning of a body and a status.\n"
    );
    row(&[
        "shapes",
        "µs to add one",
        "µs to find who wants a change (one image)",
        "changes a second",
        "of 1,000 shapes",
    ]);
    row(&["---:", "---:", "---:", "---:", "---:"]);
    let images = images().await?;
    let mut least = None;
    for size in SIZES {
        let began = cpu();
        let index = index(size).await?;
        let adding = micros(cpu() - began) / size as f64;
        let mut found = Vec::new();
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let (began, mut wanted) = (Instant::now(), 0);
            for image in &images {
                index.find(image, &mut found);
                wanted += found.len();
            }
            anyhow::ensure!(wanted >= CHANGES.min(size / 3), "{wanted} were found");
            times.push(micros(began.elapsed()) / CHANGES as f64);
        }
        let time = median(times);
        let first = *least.get_or_insert(time);
        row(&[
            &size.to_string(),
            &format!("{adding:.2}"),
            &format!("{time:.2}"),
            &format!("{:.0}", 1e6 / time),
            &format!("{:.2}", time / first),
        ]);
    }
    println!();
    Ok(())
}

/// Rows as the log gives them.
async fn images() -> Result<Vec<Image>> {
    let demo = Demo::new().await?;
    let mut follower = demo.recorder.log().follow_all(demo.recorder.log().position().await?).await?;
    for number in 0..CHANGES {
        entity::task::Entity::insert(task(number)).exec_without_returning(&demo.recorder).await?;
    }
    let mut images = Vec::new();
    while images.len() < CHANGES {
        if let Step::Transactions { transactions, .. } = follower.next().await? {
            let changes = transactions.iter().flat_map(|transaction| &transaction.changes);
            images.extend(changes.filter_map(|change| change.after.clone()));
        }
    }
    Ok(images)
}

async fn index(size: usize) -> Result<PredicateIndex> {
    let demo = Demo::new().await?;
    let log = demo.recorder.log();
    let meta = log.catalog().of::<entity::task::Entity>().context("tasks are registered")?;
    let column = |name: &str| meta.column_index(name).context("a column of tasks");
    let (title, priority, body, status) = (column("title")?, column("priority")?, column("body")?, column("status")?);
    let mut index = PredicateIndex::default();
    for number in 0..size {
        let filter = match number % 3 {
            0 => {
                Filter::Compare(title, Comparison::Equal, Value::from(format!("Paint the buoy at pier {}", number / 3)))
            }
            1 => {
                let from = i32::try_from(number)? * 10;
                Filter::Between(priority, Value::from(from + 4), Value::from(from + 9))
            }
            _ => Filter::All(vec![
                Filter::Like(body, Like::pattern(format!("{number} coats%"))),
                Filter::Compare(status, Comparison::Equal, Value::from("open")),
            ]),
        };
        index.insert(log.predicate(meta, &filter).await?);
    }
    Ok(index)
}
