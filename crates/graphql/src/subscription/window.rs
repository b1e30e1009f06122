//! Which changes cannot matter to a result that ends before the rows do.
//!
//! A page knows its last row. A change of a row that stood after it and still does leaves the page as it is, however long the list goes on. That
//! holds for every state of the database that the page may have been read from: if only such changes came since, none has touched the page. So changes are
//! looked at when the read that began before them has ended, against the page that it gave.

use tidewire_outbox::{
    Aggregate, Catalog, Change, Direction, EntityId, EventKind, Image, Item, Page, Select, filter::Predicate,
    json::Scanner,
};

use crate::{error::ApiError, model::Model};

/// How to tell where a page ends: by what its select reads at the end of each row.
#[derive(Debug)]
pub(super) struct Cut {
    sorting: Vec<(usize, Option<Direction>)>,
    limit: u64,
    counts: bool,
}

/// A page that is full.
#[derive(Debug)]
pub(super) struct Window {
    entity: EntityId,
    after: Predicate,
    /// Whether it matters how many rows there are in all.
    counts: bool,
}

impl Cut {
    /// Makes a select read where its page ends, one that reads no other rows of its own entity. `None` where whatever changes may change the result.
    pub(super) fn new(catalog: &Catalog, select: &mut Select) -> Option<Self> {
        let (Page::Window { limit, .. } | Page::After { limit, .. }) = select.page else { return None };
        let counts = select.total || !select.aggregates.is_empty();
        let only_counts = select.aggregates.iter().all(|aggregate| *aggregate == Aggregate::Count);
        // How many rows there are hangs on related ones too, where they decide which pass.
        let is_told = !select.previous && only_counts && (!counts || select.having.is_empty());
        if limit == 0 || select.items.is_empty() || !is_told {
            return None;
        }
        let sorting = select.sorting(catalog.entity(select.entity));
        select.items.extend(sorting.iter().map(|(column, _)| Item::Cell(*column)));
        Some(Self { sorting, limit, counts })
    }

    /// The window that a read gave; `None` where the page is not full, or what comes after it cannot be told.
    pub(super) async fn window(&self, model: &Model, select: &Select, json: &str) -> Result<Option<Window>, ApiError> {
        let (mut rows, mut last) = (0, None);
        let mut scanner = Scanner::new(json);
        scanner.open()?;
        if !scanner.take_null() {
            while scanner.next_item()? {
                last = Some(scanner.value()?);
                rows += 1;
            }
        }
        let Some(last) = last.filter(|_| rows == self.limit) else { return Ok(None) };
        let mut items = Scanner::new(last);
        for _ in 0..select.items.len() - self.sorting.len() {
            items.next_item()?;
            items.value()?;
        }
        let columns = &model.catalog().entity(select.entity).columns;
        let mut cells = Vec::new();
        for (column, _) in &self.sorting {
            items.next_item()?;
            let mut cell = String::new();
            let some = model.recorder.packed().write_canonical(&columns[*column].kind, items.value()?, &mut cell);
            cells.push(some.then_some(cell));
        }
        let after = model.log().after(select, &cells).await?;
        Ok(after.map(|after| Window { entity: select.entity, after, counts: self.counts }))
    }
}

impl Window {
    /// Whether a change may change the page, or what is told beside it.
    pub(super) fn is_touched(&self, change: &Change, kind: EventKind) -> bool {
        let is_after = |image: &Option<Image>| image.as_ref().is_some_and(|image| self.after.matches(image));
        change.entity != self.entity
            || match kind {
                EventKind::Enter => self.counts || !is_after(&change.after),
                EventKind::Leave => self.counts || !is_after(&change.before),
                EventKind::Update => !is_after(&change.before) || !is_after(&change.after),
            }
    }
}
