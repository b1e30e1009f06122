//! Rows of more columns than a database's functions take arguments.

use sea_orm::{ActiveModelTrait, EntityTrait, IntoActiveModel, Schema, Set};
use serde_json::{Value, json};
use tidewire_graphql::{Api, Options};
use tidewire_outbox::{Cursor, EntityMeta, Image, Registry, Step};
use tidewire_testkit::{cells_of, on_every_target, soon, zoo::wide};

use crate::support::{Zoo, request};

/// A row as the API says it: the entity's names are the API's.
fn node(meta: &EntityMeta, row: &wide::Model) -> Value {
    let cells =
        cells_of(row).into_iter().map(|cell| cell.map_or(Value::Null, |cell| serde_json::from_str(&cell).unwrap()));
    meta.columns.iter().map(|column| column.name.to_owned()).zip(cells).collect::<serde_json::Map<_, _>>().into()
}

on_every_target! {
    async fn a_wide_row_is_read_streamed_and_recorded_whole(database: TestDatabase) {
        // GIVEN rows of 151 columns
        let registry = Registry::new().entity::<wide::Entity>();
        let recorder = database
            .recorder(registry, async |db| {
                let schema = Schema::new(sea_orm::ConnectionTrait::get_database_backend(db));
                sea_orm::ConnectionTrait::execute(db, &schema.create_table_from_entity(wide::Entity)).await.unwrap();
            })
            .await;
        let api = Api::builder(recorder.clone()).options(Options::default()).finish().unwrap();
        let zoo = Zoo { api, recorder, database };
        let meta = zoo.recorder.catalog().of::<wide::Entity>().unwrap();
        let columns: String = meta.columns.iter().map(|column| format!("{} ", column.name)).collect();
        let rows = [1, 2, 3].map(wide::Model::example);
        wide::Entity::insert_many(rows.clone().map(IntoActiveModel::into_active_model)).exec(&zoo.recorder).await.unwrap();
        assert_eq!(wide::Entity::find_by_id(2).one(&zoo.recorder).await.unwrap().as_ref(), Some(&rows[1]));

        // WHEN they are asked for, with everything that can be computed of a column
        let numbers: String = meta.columns.iter().filter(|c| c.kind.is_numeric()).map(|c| format!("{} ", c.name)).collect();
        let document = format!("{{ wide {{ nodes {{ {columns} }} aggregate {{ min {{ {numbers} }} max {{ {numbers} }} }} }} }}");
        let answer = zoo.data(&document).await;

        // THEN they are there as they were written, whoever puts the answer together
        let expected: Vec<Value> = rows.iter().map(|row| node(meta, row)).collect();
        assert_eq!(answer["wide"]["nodes"], json!(expected));
        assert_eq!(answer["wide"]["aggregate"]["max"]["i01"], json!(rows.iter().filter_map(|row| row.i01).max()));
        assert_eq!(answer["wide"]["aggregate"]["min"]["d50"], json!(rows.iter().filter_map(|row| row.d50).reduce(f64::min)));
        assert!(zoo.api.is_planned(request(&document, json!({}))));
        let planned = zoo.api.execute(request(&document, json!({}))).await.json;
        assert_eq!(planned, zoo.api.execute_resolved(request(&document, json!({}))).await.json);

        // and a subscriber gets them, and what becomes of them
        let document = format!(
            "subscription {{ wideChanges(snapshot: true) {{ changes {{ operation node {{ {columns} }} previous {{ {columns} }} }} }} }}"
        );
        let mut events = zoo.subscribe(&document, json!({})).await;
        let first = events.changes().await;
        let first: Vec<_> = first.as_array().unwrap().iter().map(|change| change["node"].clone()).collect();
        assert_eq!(first, expected);
        let changed = wide::Model { t50: Some("later".into()), d01: None, ..rows[2].clone() };
        let active = wide::ActiveModel { id: Set(3), t50: Set(changed.t50.clone()), d01: Set(None), ..Default::default() };
        active.update(&zoo.recorder).await.unwrap();
        wide::Entity::delete_by_id(1).exec(&zoo.recorder).await.unwrap();
        let update = events.changes().await;
        assert_eq!((&update[0]["node"], &update[0]["previous"]), (&node(meta, &changed), &expected[2]));
        assert_eq!(events.changes().await[0]["previous"], expected[0]);

        // and the outbox has all of it.
        let mut follower = zoo.recorder.log().follow_all(Cursor::start()).await.unwrap();
        let mut recorded = Vec::new();
        while recorded.len() < 5 {
            if let Step::Transactions { transactions, .. } = soon(follower.next()).await.unwrap() {
                recorded.extend(transactions.iter().flat_map(|transaction| transaction.changes.clone()));
            }
        }
        let cells = |image: &Option<Image>| image.as_ref().map(|image| image.cells().map(|c| c.map(str::to_owned)).collect::<Vec<_>>());
        let [a, b, c] = rows.each_ref().map(|row| Some(cells_of(row)));
        let images: Vec<_> = recorded.iter().map(|change| (cells(&change.before), cells(&change.after))).collect();
        assert!(images == [(None, a.clone()), (None, b), (None, c.clone()), (c, Some(cells_of(&changed))), (a, None)]);
    }
}
