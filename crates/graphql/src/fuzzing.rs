//! What fuzzers and a test do with bytes that may be anything: `fuzz/README.md`.

use async_graphql::Value as ConstValue;
use tidewire_outbox::{EntityId, Filter, Image, Item, json::Scanner};

use crate::{Api, input::Reader, model::Model, viewer::Viewer};

/// The rows of an entity as they are, to ask them whatever filters there are. Nobody may write them meanwhile.
pub struct Rows {
    api: Api,
    entity: EntityId,
    images: Vec<Image>,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").field("entity", &self.entity).finish_non_exhaustive()
    }
}

impl Rows {
    /// The rows of the entity with this field name.
    ///
    /// # Panics
    /// There is none, or its rows cannot be read.
    pub async fn new(api: Api, entity: &str) -> Self {
        let model = api.model();
        let entity = model.names.by_field(entity).expect("it is registered");
        let meta = model.catalog().entity(entity);
        let mut snapshot = model.log().snapshot(meta, Filter::all(), 1_000).await.expect("the rows can be read");
        let images = snapshot.next().await.expect("the rows can be read").unwrap_or_default();
        Self { api, entity, images }
    }

    /// Bytes are no filter of a client's, or one that the database and the predicate agree about for each row.
    ///
    /// # Panics
    /// Where that is not so.
    pub async fn filter(&self, bytes: &[u8]) {
        let Ok(input) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
        let Ok(input) = ConstValue::from_json(input) else { return };
        let model: &Model = self.api.model();
        let (meta, access) = (model.catalog().entity(self.entity), model.access(&Viewer::default()));
        let Ok(filter) = Reader::new(&model.names, meta, &access).filter(&input) else { return };
        let predicate = model.log().predicate(meta, &filter).await.expect("it is no deeper than it may be");
        let passes = self.images.iter().filter(|image| predicate.matches(image));
        let passes: Vec<_> = passes.map(|image| image.cell(meta.key[0]).unwrap_or_default().to_owned()).collect();

        let mut select = access.select(self.entity, &model.names).expect("there are no policies");
        select.items = vec![Item::Cell(meta.key[0])];
        select.filter = filter;
        select.order = vec![(meta.key[0], tidewire_outbox::Direction::Ascending)];
        let found = model.recorder.fetch(&[select]).await.expect("the database understands every filter");
        assert_eq!(keys(&found[0]), passes, "the database finds other rows than the predicate");
    }
}

/// The only cells of rows.
fn keys(json: &str) -> Vec<String> {
    let mut rows = Scanner::new(json);
    let mut keys = Vec::new();
    rows.open().expect("an array");
    while rows.next_item().expect("an array") {
        let mut row = Scanner::new(rows.value().expect("a row"));
        row.next_item().expect("a row");
        keys.push(row.value().expect("a cell").to_owned());
    }
    keys
}

#[cfg(test)]
mod tests {
    use tidewire_testkit::{TestDatabase, zoo};

    use super::*;

    #[test]
    fn no_filter_means_another_thing_to_the_database() {
        let runtime = tokio::runtime::Runtime::new().expect("there is a runtime");
        let database = TestDatabase::sqlite();
        let rows = runtime.block_on(async {
            let recorder = database.recorder(zoo::registry(), zoo::create).await;
            zoo::fill(&recorder).await;
            Rows::new(Api::builder(recorder).finish().expect("the names differ"), "everything").await
        });
        tidewire_testkit::fuzz("filter", 3_000, |bytes| runtime.block_on(rows.filter(bytes)));
    }
}
