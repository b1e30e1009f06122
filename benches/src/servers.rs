//! Writes on PostgreSQL: through the recorder by hooks and by triggers, and without it.

use anyhow::{Context, Result, bail};
use entity::task;
use futures_util::future::try_join_all;
use migration::MigratorTrait;
use sea_orm::{
    ActiveModelTrait, ConnectOptions, ConnectionTrait, Database, DatabaseConnection, EntityTrait, IntoActiveModel, Set,
};
use tidewire_outbox::{Actor, Capture, Recorder, RecorderOptions};

use crate::measure::{Cost, cost, median, micros, row, task as new_task};

const ROUNDS: usize = 15;
const SINGLES: usize = 300;
const BULK: usize = 1_000;
const WRITERS: usize = 8;

/// A database of its own for each way, so that no table is larger than another.
struct Ways {
    plain: DatabaseConnection,
    hooks: Recorder,
    triggers: Recorder,
}

pub(crate) async fn run(server: &str) -> Result<()> {
    let ways = Ways {
        plain: plain(server, "bench_plain").await?,
        hooks: recorder(server, "bench_hooks", Capture::Hooks).await?,
        triggers: recorder(server, "bench_triggers", Capture::Triggers).await?,
    };
    println!("### Writes on PostgreSQL: the recorder against plain SeaORM\n");
    row(&["write", "plain, µs", "hooks, µs", "triggers, µs", "hooks, ratio", "triggers, ratio"]);
    row(&["---", "---:", "---:", "---:", "---:", "---:"]);
    let ada = Actor::user("ada");
    let (hooks, triggers) = (&ways.hooks, &ways.triggers);
    let (hooks_by_ada, triggers_by_ada) = (hooks.clone().acting_as(ada.clone()), triggers.clone().acting_as(ada));
    report("insert of one row, autocommit", SINGLES, &ways, async |way| match way {
        0 => insert_singly(&ways.plain).await,
        1 => insert_singly(hooks).await,
        _ => insert_singly(triggers).await,
    })
    .await?;
    report("the same, in a person's name", SINGLES, &ways, async |way| match way {
        0 => insert_singly(&ways.plain).await,
        1 => insert_singly(&hooks_by_ada).await,
        _ => insert_singly(&triggers_by_ada).await,
    })
    .await?;
    report("update of one row, autocommit", SINGLES, &ways, async |way| match way {
        0 => update_singly(&ways.plain).await,
        1 => update_singly(hooks).await,
        _ => update_singly(triggers).await,
    })
    .await?;
    report("insert of 1,000 rows, one statement", 1, &ways, async |way| match way {
        0 => insert_many(&ways.plain).await,
        1 => insert_many(hooks).await,
        _ => insert_many(triggers).await,
    })
    .await?;
    report("insert of one row, 8 writers at once", SINGLES * WRITERS, &ways, async |way| match way {
        0 => insert_at_once(&ways.plain).await,
        1 => insert_at_once(hooks).await,
        _ => insert_at_once(triggers).await,
    })
    .await?;
    println!();
    Ok(())
}

/// An empty database with the demo's tables; its URL.
async fn create(server: &str, name: &str) -> Result<String> {
    let Some((base, _)) = server.rsplit_once('/') else { bail!("the URL names no database") };
    let admin = Database::connect(server).await.context("the server cannot be reached")?;
    admin.execute_unprepared(&format!("DROP DATABASE IF EXISTS {name}")).await?;
    admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await?;
    Ok(format!("{base}/{name}"))
}

async fn plain(server: &str, name: &str) -> Result<DatabaseConnection> {
    let mut options = ConnectOptions::new(create(server, name).await?);
    // As the recorder's.
    options.max_connections(14).sqlx_logging(false).test_before_acquire(false);
    let db = Database::connect(options).await?;
    migration::Migrator::up(&db, None).await?;
    fill(&db).await?;
    Ok(db)
}

async fn recorder(server: &str, name: &str, capture: Capture) -> Result<Recorder> {
    let mut options = RecorderOptions::default();
    options.capture = Some(capture);
    let recorder = Recorder::connect_with(&create(server, name).await?, entity::registry(), options).await?;
    migration::Migrator::up(recorder.unrecorded(), None).await?;
    recorder.install_capture().await?;
    recorder.check().await?;
    fill(&recorder).await?;
    Ok(recorder)
}

async fn fill(db: &impl ConnectionTrait) -> Result<()> {
    let project = entity::project::ActiveModel { name: Set("Harbour".into()), ..Default::default() };
    project.insert(db).await?;
    Ok(())
}

async fn report(name: &str, times: usize, ways: &Ways, work: impl AsyncFn(usize) -> Result<Cost>) -> Result<()> {
    let mut costs: [Vec<f64>; 3] = Default::default();
    // The first round warms up caches of all.
    for round in 0..=ROUNDS {
        for (way, costs) in costs.iter_mut().enumerate() {
            let db = [&ways.plain, ways.hooks.unrecorded(), ways.triggers.unrecorded()][way];
            db.execute_unprepared("TRUNCATE task, tidewire_outbox CASCADE").await?;
            let cost = work(way).await?;
            if round > 0 {
                costs.push(micros(cost.wall) / times as f64);
            }
        }
    }
    let ratio = |way: usize| median(costs[way].iter().zip(&costs[0]).map(|(this, plain)| this / plain).collect());
    let of = |way: usize| format!("{:.0}", median(costs[way].clone()));
    row(&[name, &of(0), &of(1), &of(2), &format!("{:.2}", ratio(1)), &format!("{:.2}", ratio(2))]);
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

async fn insert_at_once(db: &impl ConnectionTrait) -> Result<Cost> {
    cost(try_join_all((0..WRITERS).map(|_| insert_singly(db)))).await
}
