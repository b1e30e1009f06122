use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Row};

use super::END;

/// A well-known way of reading an outbox on PostgreSQL that loses changes or their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// `WHERE seq > last ORDER BY seq`: what commits late is lost.
    NumbersInOrder,
    /// `WHERE xid < xmin ORDER BY xid`: ids are given before rows are locked, so a row's changes come out of order.
    IdsInOrder,
}

/// A reader that makes a mistake, so that the checker is seen to find it.
#[derive(Debug, Clone)]
pub struct Control {
    /// The mistake.
    pub mistake: Mistake,
    /// The database.
    pub url: String,
}

/// What a control was given.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Given {
    changes: u64,
    /// Changes that did not follow from those before.
    misfits: u64,
}

impl Control {
    /// Reads up to the last row; counts what does not fit as the checker would find it, and goes on.
    pub(super) async fn read(self) -> Given {
        let (mut given, mut rows): (_, BTreeMap<(String, String), Value>) = (Given::default(), BTreeMap::new());
        let (mut seq, mut xid) = (0_i64, 0_i64);
        let statement = match self.mistake {
            Mistake::NumbersInOrder => "SELECT * FROM tidewire_outbox WHERE seq > $1 AND $2 >= 0 ORDER BY seq",
            Mistake::IdsInOrder => {
                "SELECT * FROM tidewire_outbox WHERE (xid, seq) > ($2, $1) AND xid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
                 ORDER BY xid, seq"
            }
        };
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        // The last row is not the last that such a reader is given: so it reads for a while longer.
        let mut rounds = 200;
        while rounds > 0 {
            let Ok(found) = sqlx::query(statement).bind(seq).bind(xid).fetch_all(&mut connection).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                if let Ok(again) = PgConnection::connect(&self.url).await {
                    connection = again;
                }
                continue;
            };
            for row in &found {
                (seq, xid) = (row.get("seq"), row.get("xid"));
                let image =
                    |name| row.get::<Option<&str>, _>(name).map(|text| serde_json::from_str::<Value>(text).unwrap());
                let (before, after): (Option<Value>, Option<Value>) = (image("before"), image("after"));
                let id = before.as_ref().or(after.as_ref()).unwrap()["id"].clone();
                let ended = id == json!(END);
                let place = (row.get::<String, _>("entity"), id.to_string());
                given.changes += 1;
                given.misfits += u64::from(rows.remove(&place) != before);
                rows.extend(after.map(|after| (place, after)));
                rounds = if ended { rounds.min(20) } else { rounds };
            }
            if rounds < 200 {
                rounds -= 1;
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        given
    }

    /// # Panics
    /// When nothing is wrong with what it was given: then the checker's writers are too tame to tell right from wrong.
    pub(super) fn assert_wrong(&self, given: Given, changes: u64) {
        println!("{:?}: {} of {changes} changes, {} out of order", self.mistake, given.changes, given.misfits);
        match self.mistake {
            Mistake::NumbersInOrder => assert!(given.changes < changes, "{given:?} of {changes} and nothing lost"),
            Mistake::IdsInOrder => assert!(given.misfits > 0, "{given:?} of {changes} and nothing out of order"),
        }
    }
}
