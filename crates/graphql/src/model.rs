//! What everything that answers requests shares.

use std::sync::Arc;

use tidewire_outbox::{Catalog, Log, Recorder};

use crate::{
    names::Names,
    options::Options,
    plan::{Encoder, Preparer},
    policy::{Access, Policies},
    viewer::Viewer,
    wire::Wire,
};

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) recorder: Recorder,
    pub(crate) names: Names,
    pub(crate) options: Options,
    pub(crate) policies: Policies,
}

impl Model {
    pub(crate) fn catalog(&self) -> &Arc<Catalog> {
        self.recorder.catalog()
    }

    pub(crate) fn log(&self) -> &Log {
        self.recorder.log()
    }

    pub(crate) fn wire(&self) -> Wire<'_> {
        Wire { names: &self.names, times: self.options.times, packed: self.recorder.packed(), lenient: false }
    }

    pub(crate) fn encoder(&self) -> Encoder<'_> {
        Encoder { wire: self.wire(), catalog: self.catalog() }
    }

    /// An encoder that never fails on a value.
    pub(crate) fn stream_encoder(&self) -> Encoder<'_> {
        Encoder { wire: Wire { lenient: true, ..self.wire() }, catalog: self.catalog() }
    }

    /// What a viewer may do.
    pub(crate) fn access(&self, viewer: &Viewer) -> Arc<Access> {
        self.policies.access(viewer, self.catalog(), &self.names)
    }

    pub(crate) fn preparer<'a>(&'a self, variables: &'a async_graphql::Variables, access: &'a Access) -> Preparer<'a> {
        let max_rows = self.options.max_rows;
        Preparer { names: &self.names, catalog: self.catalog(), variables, max_rows, access }
    }
}
