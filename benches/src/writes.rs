//! One autocommit insert, one update, and 1,000 rows in one statement: through the recorder, and without it.

use anyhow::Result;
use entity::task;
use sea_orm::{
    ActiveModelTrait, ConnectOptions, ConnectionTrait, Database, EntityTrait, IntoActiveModel, Set, TransactionTrait,
};

use crate::measure::{Cost, Demo, cost, median, micros, row, task as new_task};

const ROUNDS: usize = 9;
const SINGLES: usize = 500;
const BULK: usize = 1_000;

pub(crate) async fn run() -> Result<()> {
    let demo = Demo::new().await?;
    let mut options = ConnectOptions::new(&demo.url);
    // As many connections as the recorder writes with. The same pragmas too: what is measured is the recording.
    options.max_connections(1).sqlx_logging(false);
    let plain = Database::connect(options).await?;
    for pragma in ["journal_mode = WAL", "synchronous = NORMAL", "busy_timeout = 5000"] {
        plain.execute_unprepared(&format!("PRAGMA {pragma}")).await?;
    }

    println!("### Writes: the recorder against plain SeaORM\n");
    row(&["write", "plain, µs", "recorded, µs", "ratio of time", "ratio of CPU"]);
    row(&["---", "---:", "---:", "---:", "---:"]);
    report("insert of one row, autocommit", SINGLES, &demo, async |demo, recorded| {
        if recorded { insert_singly(&demo.recorder).await } else { insert_singly(&plain).await }
    })
    .await?;
    report("update of one row, autocommit", SINGLES, &demo, async |demo, recorded| {
        if recorded { update_singly(&demo.recorder).await } else { update_singly(&plain).await }
    })
    .await?;
    report("insert of 1,000 rows, one statement", 1, &demo, async |demo, recorded| {
        if recorded { insert_many(&demo.recorder).await } else { insert_many(&plain).await }
    })
    .await?;
    report("500 rows one by one, one transaction", 1, &demo, async |demo, recorded| {
        if recorded { in_one_transaction(&demo.recorder).await } else { in_one_transaction(&plain).await }
    })
    .await?;
    println!();
    Ok(())
}

async fn report(name: &str, times: usize, demo: &Demo, work: impl AsyncFn(&Demo, bool) -> Result<Cost>) -> Result<()> {
    let mut costs = [Vec::new(), Vec::new()];
    // The first round warms up caches of both.
    for round in 0..=ROUNDS {
        for recorded in [false, true] {
            demo.clear().await?;
            let cost = work(demo, recorded).await?;
            if round > 0 {
                costs[usize::from(recorded)].push(cost);
            }
        }
    }
    let wall = |costs: &[Cost]| median(costs.iter().map(|cost| micros(cost.wall)).collect()) / times as f64;
    let ratio = |of: fn(&Cost) -> f64| {
        median(costs[1].iter().zip(&costs[0]).map(|(recorded, plain)| of(recorded) / of(plain)).collect())
    };
    row(&[
        name,
        &format!("{:.0}", wall(&costs[0])),
        &format!("{:.0}", wall(&costs[1])),
        &format!("{:.2}", ratio(|cost| micros(cost.wall))),
        &format!("{:.2}", ratio(|cost| micros(cost.cpu))),
    ]);
    Ok(())
}

async fn insert_singly(db: &impl ConnectionTrait) -> Result<Cost> {
    let rows: Vec<_> = (0..SINGLES).map(new_task).collect();
    cost(async {
        for row in rows {
            row.insert(db).await?;
        }
        Ok(())
    })
    .await
}

async fn update_singly(db: &impl ConnectionTrait) -> Result<Cost> {
    task::Entity::insert_many((0..SINGLES).map(new_task)).exec_without_returning(db).await?;
    let rows = task::Entity::find().all(db).await?;
    cost(async {
        for row in rows {
            let mut row = row.into_active_model();
            row.done = Set(true);
            row.update(db).await?;
        }
        Ok(())
    })
    .await
}

async fn insert_many(db: &impl ConnectionTrait) -> Result<Cost> {
    let rows: Vec<_> = (0..BULK).map(new_task).collect();
    cost(async { Ok(task::Entity::insert_many(rows).exec_without_returning(db).await?) }).await
}

async fn in_one_transaction(db: &impl TransactionTrait) -> Result<Cost> {
    use sea_orm::TransactionSession;
    let rows: Vec<_> = (0..500).map(new_task).collect();
    cost(async {
        let transaction = db.begin().await?;
        for row in rows {
            row.insert(&transaction).await?;
        }
        Ok(transaction.commit().await?)
    })
    .await
}
