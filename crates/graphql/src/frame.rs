use std::{io::Write, sync::Arc};

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

    /// Appends the JSON, in UTF-8.
    pub fn write(&self, out: &mut Vec<u8>) {
        let text = self.template.text.as_bytes();
        let mut from = 0;
        for (at, hole) in &self.template.holes {
            out.extend_from_slice(&text[from..*at]);
            match hole {
                Hole::Sequence => {
                    // Writing to a `Vec` cannot fail.
                    let _ = write!(out, "{}", self.sequence);
                }
                Hole::UpToDate => out.extend_from_slice(self.up_to_date().as_bytes()),
            }
            from = *at;
        }
        out.extend_from_slice(&text[from..]);
    }

    /// How many bytes [`write`](Self::write) appends.
    pub fn size(&self) -> usize {
        let filled = self.template.holes.iter().map(|(_, hole)| match hole {
            Hole::Sequence => self.sequence.checked_ilog10().map_or(1, |more| more as usize + 1),
            Hole::UpToDate => self.up_to_date().len(),
        });
        self.template.text.len() + filled.sum::<usize>()
    }

    fn up_to_date(&self) -> &'static str {
        if self.up_to_date { "true" } else { "false" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_what_is_written() {
        let mut template = Template { text: "{\"ü\":".into(), ..Template::default() };
        template.leave(Hole::Sequence);
        template.text.push(',');
        template.leave(Hole::UpToDate);
        template.text.push('}');
        let template = Arc::new(template);
        for sequence in [0, 1, 9, 10, 99, 100, u64::MAX] {
            for up_to_date in [false, true] {
                let frame = Frame::new(Arc::clone(&template), sequence, up_to_date);
                let mut out = Vec::new();
                frame.write(&mut out);
                assert_eq!(out, format!("{{\"ü\":{sequence},{up_to_date}}}").into_bytes());
                assert_eq!(frame.size(), out.len());
            }
        }
    }
}
