//! Every column type survives the way through the outbox without loss.

use proptest::{prelude::*, test_runner::TestRunner};
use sea_orm::{ActiveModelTrait, EntityTrait, IntoActiveModel};
use tidewire_outbox::{Image, cell};
use tidewire_testkit::{
    TestDatabase, cells_of,
    zoo::{arbitrary, everything},
};

use crate::support::Zoo;

#[test]
fn every_value_survives_the_way_through_the_outbox() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let zoo = runtime.block_on(Zoo::new());
    survive(&runtime, &zoo, |row| row);
}

#[test]
fn every_value_survives_the_way_through_the_outbox_on_mariadb() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let Some(database) = runtime.block_on(TestDatabase::mariadb()) else { return };
    let zoo = runtime.block_on(Zoo::of(database));
    survive(&runtime, &zoo, arbitrary::for_mariadb);
}

#[test]
fn every_value_survives_the_way_through_the_log_of_mariadb() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let Some(database) = runtime.block_on(TestDatabase::mariadb()) else { return };
    let zoo = runtime.block_on(Zoo::of(database.captured_by(tidewire_outbox::Capture::Log)));
    survive(&runtime, &zoo, arbitrary::for_mariadb);
}

fn survive(runtime: &tokio::runtime::Runtime, zoo: &Zoo, fit: fn(everything::Model) -> everything::Model) {
    let meta = zoo.recorder.catalog().of::<everything::Entity>().unwrap();
    let mut runner = TestRunner::new(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() });
    let rows = (arbitrary::everything(), arbitrary::everything());
    let result = runner.run(&rows, |(first, second)| {
        runtime.block_on(async {
            // GIVEN a place in the log
            let before = zoo.recorder.log().position().await.unwrap();

            // WHEN a row is inserted, changed in every column, and deleted
            let (first, second) = (fit(first), fit(second));
            let mut row = first.into_active_model().reset_all();
            row.id = sea_orm::ActiveValue::NotSet;
            let id = row.insert(&zoo.recorder).await.unwrap().id;
            let inserted = everything::Entity::find_by_id(id).one(&zoo.recorder).await.unwrap().unwrap();
            let mut row = second.into_active_model().reset_all();
            row.id = sea_orm::ActiveValue::Unchanged(id);
            row.update(&zoo.recorder).await.unwrap();
            let updated = everything::Entity::find_by_id(id).one(&zoo.recorder).await.unwrap().unwrap();
            everything::Entity::delete_by_id(id).exec(&zoo.recorder).await.unwrap();

            // THEN the images are the rows as SeaORM reads them, as models and as canonical cells
            let transactions = zoo.transactions(before).await;
            let changes: Vec<_> = transactions.iter().flat_map(|transaction| &transaction.changes).collect();
            let images: Vec<&Image> =
                changes.iter().flat_map(|change| [&change.before, &change.after]).flatten().collect();
            let expected =
                if inserted == updated { vec![&inserted; 2] } else { vec![&inserted, &inserted, &updated, &updated] };
            prop_assert_eq!(images.len(), expected.len());
            for (image, model) in images.into_iter().zip(expected) {
                for ((column, cell), expected) in meta.columns.iter().zip(image.cells()).zip(cells_of(model)) {
                    prop_assert_eq!(cell, expected.as_deref(), "{}", column.name);
                    let value = cell::read_value(column, cell).unwrap();
                    let mut again = String::new();
                    let some = cell::write_value(&value, &mut again);
                    prop_assert_eq!(some.then_some(again), expected, "{}", column.name);
                }
                prop_assert_eq!(&image.model::<everything::Entity>(meta).unwrap(), model);
            }
            Ok(())
        })
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}
