use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use clap::Args;
use tidewire_outbox::{Catalog, Change, Cursor, Step, cell};

use crate::config::Config;

/// What to print.
#[derive(Debug, Clone, Default, Args)]
pub struct TailOptions {
    /// Only changes of this entity, by its table's name
    #[arg(long, value_name = "NAME")]
    pub entity: Option<String>,
    /// Begin after this cursor; `start` for the beginning of the log. Left out: begin now
    #[arg(long, value_name = "CURSOR")]
    pub after: Option<String>,
    /// One JSON object a line, with the rows
    #[arg(long)]
    pub json: bool,
}

/// Prints changes as they happen, until the process is stopped or the output is closed.
///
/// # Errors
/// The database cannot be read, the cursor cannot be continued, or there is no such entity.
pub async fn tail(config: &Config, options: TailOptions) -> Result<()> {
    let recorder = crate::connect(config).await?;
    let catalog = recorder.catalog();
    let entity = match &options.entity {
        Some(name) => match catalog.find(name) {
            Some(entity) => Some(entity.id),
            None => {
                let names: Vec<_> = catalog.entities().iter().map(|entity| entity.name).collect();
                bail!("there is no entity {name}; there are {}", names.join(", "));
            }
        },
        None => None,
    };
    let after = match options.after.as_deref() {
        None => recorder.log().position().await?,
        Some("start") => Cursor::start(),
        Some(cursor) => cursor.parse().context("`--after`")?,
    };
    let mut follower = recorder.log().follow_all(after).await?;
    loop {
        match follower.next().await? {
            Step::Ended => return Ok(()),
            Step::Resync(reason) => {
                bail!("the log cannot be continued from there ({reason:?}): read the tables, then follow from now on");
            }
            Step::Transactions { transactions, .. } => {
                let mut out = io::stdout().lock();
                for transaction in &transactions {
                    for change in
                        transaction.changes.iter().filter(|change| entity.is_none_or(|id| id == change.entity))
                    {
                        let line = if options.json {
                            json(catalog, change, &transaction.cursor)
                        } else {
                            pretty(catalog, change)
                        };
                        if let Err(error) = writeln!(out, "{line}") {
                            // Whoever read has enough.
                            return if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error.into()) };
                        }
                    }
                }
                out.flush()?;
            }
        }
    }
}

/// `16:43:00.123  update  task 018f…  title, done  user:7`
fn pretty(catalog: &Catalog, change: &Change) -> String {
    let meta = catalog.entity(change.entity);
    let key: Vec<_> =
        change.key(meta).map(|cell| cell.map_or_else(String::new, |cell| cell::text(cell).into_owned())).collect();
    let columns: Vec<_> = match change.before {
        Some(_) => change.changed_columns().map(|column| meta.columns[column].name).collect(),
        None => Vec::new(),
    };
    let mut line = format!(
        "{}  {:6}  {} {}",
        change.at.format("%H:%M:%S%.3f"),
        change.operation.as_str(),
        meta.name,
        key.join(",")
    );
    if !columns.is_empty() {
        line.push_str("  ");
        line.push_str(&columns.join(", "));
    }
    if let Some(actor) = &change.actor {
        line.push_str("  ");
        line.push_str(actor);
    }
    line
}

fn json(catalog: &Catalog, change: &Change, cursor: &Cursor) -> String {
    let meta = catalog.entity(change.entity);
    let row = |image: &Option<tidewire_outbox::Image>| {
        let Some(image) = image else { return serde_json::Value::Null };
        let cells = meta.columns.iter().zip(image.cells()).map(|(column, cell)| {
            let value = cell.and_then(|cell| serde_json::from_str(cell).ok()).unwrap_or(serde_json::Value::Null);
            (column.name.to_owned(), value)
        });
        serde_json::Value::Object(cells.collect())
    };
    serde_json::json!({
        "seq": change.seq,
        "cursor": cursor.to_string(),
        "entity": meta.name,
        "operation": change.operation.as_str(),
        "before": row(&change.before),
        "after": row(&change.after),
        "actor": change.actor.as_deref(),
        "origin": change.origin.as_deref(),
        "mutationId": change.mutation_id.as_deref(),
        "at": change.at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
    })
    .to_string()
}
