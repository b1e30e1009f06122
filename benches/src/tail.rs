//! Reading the log of a server, against a plain `SELECT` of the same rows, and against `COPY` where there is one.

use std::time::Instant;

use anyhow::Result;
use futures_util::TryStreamExt;
use sea_orm::EntityTrait;
use sqlx::{Connection, MySqlConnection, PgConnection, Row};
use tidewire_outbox::{Cursor, Recorder, Step};

use crate::measure::{connect, cpu, fill, median, row, task};

const CHANGES: usize = 100_000;
const ROUNDS: usize = 5;

/// In an empty database of a server's.
pub(crate) async fn run(database: &str) -> Result<()> {
    let recorder = prepare(database).await?;
    let (mut select, mut copy, mut follow) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        select.push(selected(database).await?);
        if is_postgres(database) {
            copy.push(copied(database).await?);
        }
        follow.push(followed(database).await?);
    }
    recorder.close().await;
    let title = if is_postgres(database) { "PostgreSQL" } else { "MariaDB" };
    println!("### Tail: {CHANGES} changes from {title}, in transactions of ten\n");
    row(&["how", "changes/s", "of the `SELECT`", "changes per second of this process's CPU"]);
    row(&["---", "---:", "---:", "---:"]);
    let base = median(select.iter().map(|(wall, _)| *wall).collect());
    for (name, times) in
        [("`SELECT` of the outbox's rows", select), ("`COPY` of them", copy), ("followed in process, decoded", follow)]
    {
        if times.is_empty() {
            continue;
        }
        let (wall, cpu): (Vec<_>, Vec<_>) = times.into_iter().unzip();
        let (wall, cpu) = (median(wall), median(cpu));
        let rate = |seconds: f64| format!("{:.0}", CHANGES as f64 / seconds);
        row(&[name, &rate(wall), &format!("{:.2}", base / wall), &rate(cpu)]);
    }
    println!();
    Ok(())
}

async fn prepare(database: &str) -> Result<Recorder> {
    let recorder = connect(database).await?;
    fill(&recorder).await?;
    for chunk in 0..CHANGES / 10 {
        let rows = (0..10).map(|number| task(chunk * 10 + number));
        entity::task::Entity::insert_many(rows).exec_without_returning(&recorder).await?;
    }
    Ok(recorder)
}

/// The seconds, and those of this process's processor time.
async fn timed(work: impl Future<Output = Result<()>>) -> Result<(f64, f64)> {
    let (began, before) = (Instant::now(), cpu());
    work.await?;
    Ok((began.elapsed().as_secs_f64(), (cpu() - before).as_secs_f64()))
}

fn is_postgres(database: &str) -> bool {
    database.starts_with("postgres")
}

/// Every column of every row is fetched, and nothing is done with it.
async fn selected(database: &str) -> Result<(f64, f64)> {
    macro_rules! fetch {
        ($connection:ty, $sql:literal) => {{
            let mut connection = <$connection>::connect(database).await?;
            timed(async {
                let mut rows = sqlx::query($sql).fetch(&mut connection);
                let mut bytes = 0;
                while let Some(row) = rows.try_next().await? {
                    bytes += row.try_get::<Option<&str>, _>("after")?.map_or(0, str::len);
                }
                assert!(bytes > CHANGES * 100, "{bytes}");
                Ok(())
            })
            .await
        }};
    }
    if is_postgres(database) {
        fetch!(
            PgConnection,
            "SELECT seq, xid, entity, operation, before, after, actor, origin, mutation_id, at FROM tidewire_outbox ORDER BY seq"
        )
    } else {
        fetch!(
            MySqlConnection,
            "SELECT seq, tx, entity, operation, `before`, `after`, actor, origin, mutation_id, at FROM tidewire_outbox ORDER BY seq"
        )
    }
}

async fn copied(database: &str) -> Result<(f64, f64)> {
    let mut connection = PgConnection::connect(database).await?;
    timed(async {
        let mut parts = connection.copy_out_raw("COPY tidewire_outbox TO STDOUT").await?;
        let mut bytes = 0;
        while let Some(part) = parts.try_next().await? {
            bytes += part.len();
        }
        assert!(bytes > CHANGES * 100, "{bytes}");
        Ok(())
    })
    .await
}

async fn followed(database: &str) -> Result<(f64, f64)> {
    let recorder = connect(database).await?;
    let took = timed(async {
        let mut follower = recorder.log().follow_all(Cursor::start()).await?;
        let mut changes = 0;
        while changes < CHANGES {
            if let Step::Transactions { transactions, .. } = follower.next().await? {
                changes += transactions.iter().map(|transaction| transaction.changes.len()).sum::<usize>();
            }
        }
        Ok(())
    })
    .await;
    recorder.close().await;
    took
}
