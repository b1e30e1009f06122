//! Fifty films with their language and their actors: Tidewire, the same by hand, the same by Seaography, and the database's own JSON.

mod by_hand;

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use serde_json::Value;
use tidewire_graphql::{Api, Request};
use tidewire_outbox::Recorder;

use crate::measure::{cost, median, micros, row};

const ROUNDS: usize = 9;
const REQUESTS: usize = 300;

const DOCUMENT: &str = "{ film(pagination: { page: { limit: 50, page: 0 } }) { nodes { filmId title description releaseYear rentalDuration \
     rentalRate length replacementCost rating lastUpdate language1 { name } actor { nodes { firstName lastName } } } } }";

/// What the database can say by itself.
const JSON: &str = "SELECT json_group_array(json_object('filmId', f.film_id, 'title', f.title, 'description', f.description, \
     'releaseYear', f.release_year, 'rentalDuration', f.rental_duration, 'rentalRate', f.rental_rate, 'length', f.length, \
     'replacementCost', f.replacement_cost, 'rating', f.rating, 'lastUpdate', f.last_update, \
     'language1', (SELECT json_object('name', l.name) FROM language l WHERE l.language_id = f.language_id), \
     'actor', json_object('nodes', (SELECT json_group_array(json_object('firstName', a.first_name, 'lastName', a.last_name)) \
       FROM film_actor j JOIN actor a ON a.actor_id = j.actor_id WHERE j.film_id = f.film_id)))) \
     FROM (SELECT * FROM film ORDER BY film_id LIMIT 50) f";

pub(crate) async fn run(sakila: &Path, seaography: Option<&Path>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("sakila.db");
    std::fs::copy(sakila, &file).context("the Sakila database cannot be copied")?;
    let url = format!("sqlite://{}", file.display());

    let recorder = Recorder::connect(&url, sakila::registry()).await?;
    tidewire_outbox::install(recorder.unrecorded()).await?;
    let api = Api::builder(recorder).finish()?;
    let mut options = ConnectOptions::new(&url);
    options.sqlx_logging(false).max_connections(8);
    let db = Database::connect(options).await?;
    let by_hand = by_hand::schema(db.clone());
    check(&api, &by_hand, &db).await?;

    let mut times = [const { Vec::new() }; 3];
    let mut peer = Vec::new();
    for _ in 0..ROUNDS {
        let ours = many(async || {
            let request = Request { query: DOCUMENT.to_owned(), ..Request::default() };
            Ok(api.execute(request).await.json.len())
        });
        times[0].push(ours.await?);
        let theirs = many(async || Ok(serde_json::to_string(&by_hand.execute(by_hand::DOCUMENT).await)?.len()));
        times[1].push(theirs.await?);
        times[2].push(many(async || Ok(json(&db).await?.len())).await?);
        if let Some(program) = seaography {
            let output = Command::new(program).args([url.as_str(), DOCUMENT, &REQUESTS.to_string()]).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            peer.push(String::from_utf8(output.stdout)?.trim().parse()?);
        }
    }

    println!("### Query: 50 films with language and actors\n");
    row(&["who answers", "CPU µs a request", "Tidewire's CPU against it"]);
    row(&["---", "---:", "---:"]);
    row(&["Tidewire", &format!("{:.0}", median(times[0].clone())), "1"]);
    let against = |name: &str, theirs: &[f64]| {
        if !theirs.is_empty() {
            let ratio = median(times[0].iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect());
            row(&[name, &format!("{:.0}", median(theirs.to_vec())), &format!("{ratio:.2}")]);
        }
    };
    against("async-graphql and SeaORM by hand, with loaders", &times[1]);
    against("Seaography 2.0.0-rc.9", &peer);
    against("the database's own JSON statement", &times[2]);
    println!();
    Ok(())
}

/// The processor time of one call, in µs, after some that warm up.
async fn many(call: impl AsyncFn() -> Result<usize>) -> Result<f64> {
    let mut bytes = 0;
    for _ in 0..REQUESTS / 10 {
        bytes += call().await?;
    }
    let cost = cost(async {
        for _ in 0..REQUESTS {
            bytes += call().await?;
        }
        Ok(())
    });
    let cpu: Duration = cost.await?.cpu;
    ensure!(bytes > REQUESTS * 10_000, "the answers are too short");
    Ok(micros(cpu) / REQUESTS as f64)
}

async fn json(db: &DatabaseConnection) -> Result<String> {
    let rows = db.query_all_raw(Statement::from_string(DbBackend::Sqlite, JSON)).await?;
    Ok(rows.first().context("one row")?.try_get_by_index(0)?)
}

/// All of them give the same films, with the same actors.
async fn check(api: &Api, by_hand: &by_hand::ByHand, db: &DatabaseConnection) -> Result<()> {
    let request = Request { query: DOCUMENT.to_owned(), ..Request::default() };
    let ours: Value = serde_json::from_str(&api.execute(request).await.json)?;
    let theirs = serde_json::to_value(by_hand.execute(by_hand::DOCUMENT).await)?;
    let plain: Value = serde_json::from_str(&json(db).await?)?;
    let summary = |films: &Value, actors: &str| -> Vec<(String, usize)> {
        let films = films.as_array().map_or(&[][..], Vec::as_slice);
        films
            .iter()
            .map(|film| (film["title"].to_string(), film.pointer(actors).and_then(Value::as_array).map_or(0, Vec::len)))
            .collect()
    };
    let ours = summary(&ours["data"]["film"]["nodes"], "/actor/nodes");
    ensure!(ours.len() == 50 && ours.iter().any(|(_, actors)| *actors > 1), "{ours:?}");
    ensure!(ours == summary(&theirs["data"]["film"], "/actor"), "by hand gives other films");
    ensure!(ours == summary(&plain, "/actor/nodes"), "the database gives other films");
    Ok(())
}
