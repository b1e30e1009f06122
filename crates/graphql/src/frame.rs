use std::sync::Arc;

/// One payload for one subscriber: the JSON of a GraphQL response, without the envelope of the transport.
///
/// What many subscribers get is written once and shared; what differs between them (how many events each has had, whether it is up to date)
/// is put in as it is sent.
#[derive(Debug, Clone)]
pub struct Frame {
    template: Arc<Template>,
    sequence: u64,
    up_to_date: bool,
}

/// JSON with places that are filled in for each subscriber.
#[derive(Debug, Default)]
pub(crate) struct Template {
    pub(crate) text: String,
    holes: Vec<(usize, Hole)>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Hole {
    Sequence,
    UpToDate,
}

impl Template {
    /// Leaves a place here.
    pub(crate) fn leave(&mut self, hole: Hole) {
        self.holes.push((self.text.len(), hole));
    }
}

impl Frame {
    pub(crate) fn new(template: Arc<Template>, sequence: u64, up_to_date: bool) -> Self {
        Self { template, sequence, up_to_date }
    }

    pub(crate) fn text(text: String) -> Self {
        Self::new(Arc::new(Template { text, holes: Vec::new() }), 0, false)
    }

    /// Appends the JSON.
    pub fn write(&self, out: &mut String) {
        let mut from = 0;
        for (at, hole) in &self.template.holes {
            out.push_str(&self.template.text[from..*at]);
            match hole {
                Hole::Sequence => {
                    // Writing to a `String` cannot fail.
                    let _ = std::fmt::Write::write_fmt(out, format_args!("{}", self.sequence));
                }
                Hole::UpToDate => out.push_str(if self.up_to_date { "true" } else { "false" }),
            }
            from = *at;
        }
        out.push_str(&self.template.text[from..]);
    }

    /// About how many bytes [`write`](Self::write) appends.
    pub fn size(&self) -> usize {
        self.template.text.len() + 8
    }
}
