//! Live queries that come as patches: what is selected of them, and the rows that they are made from.

use async_graphql::parser::types::Field;
use tidewire_outbox::{EntityId, json::Scanner};

use super::{
    Arguments, Keyed, List, NodeField, PreparedList, StreamField,
    compile::{Compiler, quoted, string},
    encode::{Encoder, Failed, Parts, Result, object},
};

/// A field of `TaskPatch`.
#[derive(Debug)]
pub(crate) enum PatchField {
    Typename(String),
    Sequence,
    Reset,
    /// `removals`: keys.
    Removals(Vec<Keyed<NodeField>>),
    Upserts(Vec<Keyed<UpsertField>>),
    /// What a connection has beside its rows; the number is the place in [`List::fields`].
    Beside(usize),
}

/// A field of `TaskUpsert`.
#[derive(Debug)]
pub(crate) enum UpsertField {
    Typename(String),
    Index,
    Key(Vec<Keyed<NodeField>>),
    /// `node`; the number is its place in [`List::nodes`].
    Node(usize),
}

/// A row of a live query's result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LiveRow {
    /// The cells of the key, as the database gave them.
    pub(crate) key: Box<str>,
    /// What is written for each of the list's nodes.
    pub(crate) nodes: Vec<Box<str>>,
}

/// The rows of a result, and what is written for each of the list's fields, which stand beside them.
pub(crate) type LiveRows = (Vec<LiveRow>, Vec<String>);

impl<'a> Compiler<'a> {
    /// `taskLive(…)`
    pub(super) fn patches(&self, entity: EntityId, fields: &[&'a Field]) -> Option<StreamField> {
        let names = self.names.entity(entity);
        let mut list = List::new(entity, Arguments::of(fields[0]));
        list.needs.keys = true;
        let mut answer = Vec::new();
        for (key, fields) in self.selection.of(fields) {
            let field = match fields[0].name.node.as_str() {
                "__typename" => PatchField::Typename(string(&names.of("Patch"))),
                "sequence" => PatchField::Sequence,
                "reset" => PatchField::Reset,
                "removals" => PatchField::Removals(self.key(entity, &fields)?),
                "upserts" => PatchField::Upserts(self.upserts(&mut list, &fields)?),
                _ => {
                    let field = self.beside_rows(&mut list, &fields)?;
                    list.fields.push((quoted(key), field));
                    PatchField::Beside(list.fields.len() - 1)
                }
            };
            answer.push((quoted(key), field));
        }
        Some(StreamField::Patches { list, fields: answer })
    }

    fn upserts(&self, list: &mut List, fields: &[&'a Field]) -> Option<Vec<Keyed<UpsertField>>> {
        let mut upserts = Vec::new();
        for (key, fields) in self.selection.of(fields) {
            let field = match fields[0].name.node.as_str() {
                "__typename" => UpsertField::Typename(string(&self.names.entity(list.entity).of("Upsert"))),
                "index" => UpsertField::Index,
                "key" => UpsertField::Key(self.key(list.entity, &fields)?),
                "node" => {
                    list.nodes.push(self.node(list.entity, &fields)?);
                    UpsertField::Node(list.nodes.len() - 1)
                }
                _ => return None,
            };
            upserts.push((quoted(key), field));
        }
        Some(upserts)
    }
}

impl Encoder<'_> {
    /// Writes the parts that patches are made from.
    pub(crate) fn live_rows(&self, list: &List, prepared: &PreparedList, json: &str) -> Result<LiveRows> {
        let parts = Parts::read(json, prepared.pagination.limit())?;
        let rows = parts.rows.iter().map(|row| {
            let nodes = (0..list.nodes.len()).map(|place| {
                let mut node = String::new();
                self.placed_node(list, prepared, place, row, &mut node)?;
                Ok(node.into())
            });
            Ok(LiveRow { key: self.row_key(list, row)?.into(), nodes: nodes.collect::<Result<_>>()? })
        });
        let rows = rows.collect::<Result<_>>()?;
        let beside = list.fields.iter().map(|(_, field)| {
            let mut out = String::new();
            self.list_field(list, prepared, &parts, field, &mut out)?;
            Ok(out)
        });
        Ok((rows, beside.collect::<Result<_>>()?))
    }

    /// Writes the key of a row as an object.
    pub(crate) fn live_key(
        &self,
        entity: EntityId,
        fields: &[Keyed<NodeField>],
        row: &LiveRow,
        out: &mut String,
    ) -> Result {
        let entity = self.catalog.entity(entity);
        object(fields, out, |field, out| match field {
            NodeField::Typename(name) => {
                out.push_str(name);
                Ok(())
            }
            NodeField::Column(column) => {
                let mut cells = Scanner::new(&row.key);
                for &part in &entity.key {
                    cells.next_item()?;
                    let cell = cells.value()?;
                    if part == *column {
                        return Ok(self.wire.packed(&entity.columns[part], cell, out)?);
                    }
                }
                Err(Failed)
            }
            NodeField::One(..) | NodeField::Many(..) => Err(Failed),
        })
    }
}
