//! What leads from one result of a live query to a later one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OnceCell;

use super::diff::diff;
use crate::{
    frame::{Hole, Template},
    plan::{Encoder, Failed, Keyed, List, LiveRow, LiveRows, PatchField, UpsertField, boolean, object, separate},
};

/// A result as it was at some time.
#[derive(Debug)]
pub(super) struct Version {
    number: u64,
    rows: Vec<Arc<LiveRow>>,
    /// What stands beside the rows.
    beside: Vec<String>,
}

/// The newest result, with the patches that have been asked for so far.
#[derive(Debug)]
pub(super) struct Newest {
    pub(super) version: Arc<Version>,
    /// By the number of the version that they begin with; none for the one that begins with nothing.
    patches: Mutex<HashMap<Option<u64>, Arc<Patch>>>,
}

/// The patch from one version to another, once it is written; `None` where they are the same.
type Patch = OnceCell<Option<Arc<Template>>>;

impl Newest {
    pub(super) fn first((rows, beside): LiveRows) -> Self {
        Self::new(Version { number: 0, rows: rows.into_iter().map(Arc::new).collect(), beside })
    }

    /// The result after this one; `None` where it is the same.
    pub(super) fn next(&self, (rows, beside): LiveRows) -> Option<Self> {
        let known = &self.version;
        // Versions share the rows that they have in common, so that one who is slow and holds an old one holds little else.
        let by_key: HashMap<&str, &Arc<LiveRow>> = known.rows.iter().map(|row| (&*row.key, row)).collect();
        let share = |row: LiveRow| match by_key.get(&*row.key) {
            Some(known) if ***known == row => Arc::clone(known),
            _ => Arc::new(row),
        };
        let rows: Vec<_> = rows.into_iter().map(share).collect();
        let is_same = beside == known.beside && rows == known.rows;
        (!is_same).then(|| Self::new(Version { number: known.number + 1, rows, beside }))
    }

    fn new(version: Version) -> Self {
        Self { version: Arc::new(version), patches: Mutex::default() }
    }

    /// What one is to be told who has this version, or nothing; `None` where that is the same. Written once, whoever asks first.
    pub(super) async fn since(&self, seen: Option<&Version>, writer: &Writer<'_>) -> Option<Arc<Template>> {
        let patch = {
            let mut patches = self.patches.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(patches.entry(seen.map(|seen| seen.number)).or_default())
        };
        patch.get_or_init(async || writer.patch(seen, &self.version).map(Arc::new)).await.clone()
    }
}

/// Writes the patches of one live query.
pub(super) struct Writer<'a> {
    pub(super) encoder: Encoder<'a>,
    pub(super) key: &'a str,
    pub(super) list: &'a List,
    pub(super) fields: &'a [Keyed<PatchField>],
}

impl Writer<'_> {
    fn patch(&self, from: Option<&Version>, to: &Version) -> Option<Template> {
        let old = from.map_or(&[][..], |from| &from.rows);
        let diff = diff(old, &to.rows);
        if from.is_some_and(|from| diff.is_empty() && from.beside == to.beside) {
            return None;
        }
        let mut template = Template::default();
        template.text.push_str("{\"data\":{");
        template.text.push_str(self.key);
        template.text.push('{');
        let mut first = true;
        for (key, field) in self.fields {
            separate(&mut first, &mut template.text);
            template.text.push_str(key);
            let out = &mut template.text;
            match field {
                PatchField::Typename(name) => out.push_str(name),
                PatchField::Sequence => template.leave(Hole::Sequence),
                PatchField::Reset => boolean(from.is_none(), out),
                PatchField::Removals(key) => {
                    let write = |place: &usize, out: &mut String| {
                        self.encoder.live_key(self.list.entity, key, &old[*place], out)
                    };
                    array(&diff.removals, out, write);
                }
                PatchField::Upserts(fields) => {
                    let write = |place: &usize, out: &mut String| self.upsert(fields, *place, &to.rows[*place], out);
                    array(&diff.upserts, out, write);
                }
                PatchField::Beside(place) => out.push_str(&to.beside[*place]),
            }
        }
        template.text.push_str("}}}");
        Some(template)
    }

    fn upsert(
        &self,
        fields: &[Keyed<UpsertField>],
        place: usize,
        row: &LiveRow,
        out: &mut String,
    ) -> Result<(), Failed> {
        object(fields, out, |field, out| {
            match field {
                UpsertField::Typename(name) => out.push_str(name),
                UpsertField::Index => out.push_str(&place.to_string()),
                UpsertField::Key(key) => self.encoder.live_key(self.list.entity, key, row, out)?,
                UpsertField::Node(node) => out.push_str(&row.nodes[*node]),
            }
            Ok(())
        })
    }
}

fn array<T>(items: &[T], out: &mut String, write: impl Fn(&T, &mut String) -> Result<(), Failed>) {
    out.push('[');
    let mut first = true;
    for item in items {
        separate(&mut first, out);
        // A lenient encoder does not fail.
        let _ = write(item, out);
    }
    out.push(']');
}
