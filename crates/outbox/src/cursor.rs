use std::{
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
    sync::Arc,
};

use crate::error::{Error, ErrorKind};

/// Tells one history of a log from another.
///
/// A database that is restored from a backup forgets changes that readers have already seen and then writes others in their place. A
/// cursor names the epoch that its last change was written in, so such a reader is answered by a resync and not by a silent gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub(crate) u64);

impl Epoch {
    /// One that no other log has.
    pub(crate) fn fresh() -> Self {
        Self(uuid::Uuid::new_v4().as_u64_pair().0)
    }
}

/// The set of transactions that its holder has seen.
///
/// Opaque outside this crate; [`Display`](fmt::Display) and [`FromStr`] give and take a text that is safe in URLs and JSON and that is
/// checked when it is read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cursor(Seen);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Seen {
    /// Nothing: a reader from here is given the whole log.
    Nothing,
    /// Everything up to a number. Enough where the database has one writer at a time.
    Through { epoch: Epoch, seq: u64 },
    /// Everything that is visible in a database snapshot, and of what a later one shows, the transactions whose last change has at most this
    /// number. For databases with many writers at a time, whose numbers are not in the order of commits.
    ///
    /// With `shown`, also what the tables showed in `base` and the outbox did not have yet, because it is appended from the database's own log
    /// after the commit: all of that is in the outbox once the log has been read to this place.
    Visible {
        epoch: Epoch,
        base: Arc<DatabaseSnapshot>,
        further: Option<(Arc<DatabaseSnapshot>, u64)>,
        shown: Option<u64>,
    },
    /// As `Visible`, where a snapshot is told by the numbers that it shows.
    Numbered { epoch: Epoch, base: Arc<Numbers>, further: Option<(Arc<Numbers>, u64)> },
}

/// Which numbers of the outbox a database shows at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Numbers {
    /// The highest.
    pub(crate) highest: u64,
    /// Ranges below it, ends included and in order, that are not shown and may yet be.
    pub(crate) holes: Vec<(u64, u64)>,
}

impl Numbers {
    /// The number up to which none is missing.
    pub(crate) fn complete_through(&self) -> u64 {
        self.holes.first().map_or(self.highest, |(low, _)| low - 1)
    }

    /// Whether everything that the other shows is shown here.
    fn covers(&self, other: &Self) -> bool {
        // A hole here is none in the other's sight, or one in the other too.
        let missing = |&(low, high): &(u64, u64)| {
            low > other.highest || other.holes.iter().any(|(from, to)| *from <= low && high.min(other.highest) <= *to)
        };
        self.highest >= other.highest && self.holes.iter().all(missing)
    }
}

/// Which transactions a database shows at one moment, by their ids.
#[derive(Debug, Clone)]
pub(crate) struct DatabaseSnapshot {
    /// The id after the newest that the outbox showed. None from this one on is visible, though some may have begun, and some ended without a
    /// change.
    pub(crate) xmax: u64,
    /// Ids before it that had not ended, in order.
    pub(crate) in_flight: Vec<u64>,
    /// The number that the outbox had given last, shortly before: says about where this is, and decides nothing.
    pub(crate) sequence: u64,
    /// How far the database's own log had been read into the outbox; 0 where it is not captured by that.
    pub(crate) log: u64,
}

/// Two that show the same are the same, though one may know of a later number.
impl PartialEq for DatabaseSnapshot {
    fn eq(&self, other: &Self) -> bool {
        self.xmax == other.xmax && self.in_flight == other.in_flight
    }
}

impl Eq for DatabaseSnapshot {}

impl Hash for DatabaseSnapshot {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.xmax, &self.in_flight).hash(state);
    }
}

impl DatabaseSnapshot {
    /// The oldest id that may not be visible.
    pub(crate) fn xmin(&self) -> u64 {
        self.in_flight.first().copied().unwrap_or(self.xmax)
    }

    /// Whether everything that the other shows is shown here. Snapshots of one database grow with time, so one of two always covers the other.
    fn covers(&self, other: &Self) -> bool {
        self.xmax >= other.xmax
            && self.in_flight.iter().all(|id| *id >= other.xmax || other.in_flight.binary_search(id).is_ok())
    }
}

impl Cursor {
    /// Before the first transaction.
    pub fn start() -> Self {
        Self(Seen::Nothing)
    }

    pub(crate) fn through(epoch: Epoch, seq: u64) -> Self {
        Self(Seen::Through { epoch, seq })
    }

    pub(crate) fn visible(epoch: Epoch, base: Arc<DatabaseSnapshot>) -> Self {
        Self(Seen::Visible { epoch, base, further: None, shown: None })
    }

    /// The same, for a holder who was shown the tables in `base`, where the log had been written to this place at most.
    pub(crate) fn shown(mut self, place: u64) -> Self {
        if let Seen::Visible { shown, .. } = &mut self.0 {
            *shown = Some(place);
        }
        self
    }

    /// What `base` shows, and of what `further` shows, the transactions whose last change has at most this number.
    pub(crate) fn partly(epoch: Epoch, base: Arc<DatabaseSnapshot>, further: Arc<DatabaseSnapshot>, seq: u64) -> Self {
        Self(Seen::Visible { epoch, base, further: Some((further, seq)), shown: None })
    }

    /// What `base` shows, and of what `further` shows, the transactions whose last change has at most this number.
    pub(crate) fn numbered(epoch: Epoch, base: Arc<Numbers>, further: Option<(Arc<Numbers>, u64)>) -> Self {
        Self(Seen::Numbered { epoch, base, further })
    }

    /// The parts of a cursor made by [`numbered`](Self::numbered).
    #[expect(clippy::type_complexity, reason = "as it is kept")]
    pub(crate) fn numbers(&self) -> Option<(Epoch, &Arc<Numbers>, Option<(&Arc<Numbers>, u64)>)> {
        match &self.0 {
            Seen::Numbered { epoch, base, further } => {
                Some((*epoch, base, further.as_ref().map(|(numbers, seq)| (numbers, *seq))))
            }
            _ => None,
        }
    }

    /// The number up to which everything has been seen, and the epoch that number belongs to (none before the first transaction). Where
    /// numbers are not in the order of commits, it only says about where.
    pub(crate) fn position(&self) -> (Option<Epoch>, u64) {
        match &self.0 {
            Seen::Nothing => (None, 0),
            Seen::Through { epoch, seq } => (Some(*epoch), *seq),
            Seen::Visible { epoch, base, further, .. } => {
                (Some(*epoch), further.as_ref().map_or(base.sequence, |(_, seq)| *seq))
            }
            Seen::Numbered { epoch, base, further } => {
                (Some(*epoch), further.as_ref().map_or(base.highest, |(_, seq)| *seq))
            }
        }
    }

    /// The snapshots and the number of a cursor made by [`visible`](Self::visible) or [`partly`](Self::partly).
    #[expect(clippy::type_complexity, reason = "as it is kept")]
    pub(crate) fn snapshots(&self) -> Option<(Epoch, &Arc<DatabaseSnapshot>, Option<(&Arc<DatabaseSnapshot>, u64)>)> {
        match &self.0 {
            Seen::Visible { epoch, base, further, .. } => {
                Some((*epoch, base, further.as_ref().map(|(snapshot, seq)| (snapshot, *seq))))
            }
            _ => None,
        }
    }

    /// Where a server numbers its transactions itself: the highest number of one that the holder has seen, or the id of the newest transaction, and the
    /// epoch that gave it.
    pub(crate) fn last(&self) -> Option<(Epoch, u64)> {
        if let Some((epoch, base, rest)) = self.snapshots() {
            let xmax = rest.map_or(base.xmax, |(further, _)| further.xmax.max(base.xmax));
            return Some((epoch, xmax.saturating_sub(1)));
        }
        let (epoch, base, rest) = self.numbers()?;
        Some((epoch, rest.map_or(base.highest, |(further, _)| further.highest.max(base.highest))))
    }

    /// Of a cursor made by [`shown`](Self::shown), the place.
    pub(crate) fn shown_to(&self) -> Option<u64> {
        match self.0 {
            Seen::Visible { shown, .. } => shown,
            _ => None,
        }
    }

    /// Whether it is one moment of the database's, and not a place in a window between two.
    #[cfg(feature = "relay-nats")]
    pub(crate) fn is_moment(&self) -> bool {
        match &self.0 {
            Seen::Nothing | Seen::Through { .. } => true,
            Seen::Visible { further, shown, .. } => further.is_none() && shown.is_none(),
            Seen::Numbered { further, .. } => further.is_none(),
        }
    }

    /// The number at which it stands, if that is in the same window as the other's.
    #[cfg(feature = "relay-nats")]
    pub(crate) fn in_window_of(&self, other: &Cursor) -> Option<u64> {
        let seq = match &self.0 {
            Seen::Visible { further: Some((_, seq)), .. } | Seen::Numbered { further: Some((_, seq)), .. } => *seq,
            _ => return None,
        };
        (other.in_window_at(seq).as_ref() == Some(self)).then_some(seq)
    }

    /// Another place in the same window; none where it stands in none.
    #[cfg(feature = "relay-nats")]
    pub(crate) fn in_window_at(&self, seq: u64) -> Option<Cursor> {
        let mut cursor = self.clone();
        match &mut cursor.0 {
            Seen::Visible { further: Some((_, at)), .. } | Seen::Numbered { further: Some((_, at)), .. } => *at = seq,
            _ => return None,
        }
        Some(cursor)
    }

    /// Whether its transactions are those up to a number, so that cursors are in the order of their numbers.
    pub(crate) fn is_number(&self) -> bool {
        !matches!(self.0, Seen::Visible { .. } | Seen::Numbered { .. })
    }

    /// Whether the holder of this cursor has seen all that the holder of the other has. `false` also where that is not known.
    pub fn covers(&self, other: &Cursor) -> bool {
        match (&self.0, &other.0) {
            (_, Seen::Nothing) => true,
            (Seen::Nothing, Seen::Visible { .. }) => false,
            (Seen::Nothing, Seen::Numbered { base, further, .. }) => base.highest == 0 && further.is_none(),
            (Seen::Numbered { base, .. }, Seen::Numbered { base: other, further, .. }) => {
                base.covers(other) && further.as_ref().is_none_or(|(further, _)| base.covers(further))
            }
            (Seen::Nothing, Seen::Through { seq, .. }) => *seq == 0,
            (Seen::Visible { base, .. }, Seen::Visible { base: theirs, further, shown, .. }) => {
                let shown = shown.is_none_or(|place| base.log >= place || self == other);
                shown && base.covers(theirs) && further.as_ref().is_none_or(|(further, _)| base.covers(further))
            }
            _ => self.position().1 >= other.position().1,
        }
    }
}

// The text form is base64url, without padding, of: one version byte, the payload, four bytes of CRC-32 over both. The check is against
// accidents (a cut or mixed-up text), not against malice: a cursor grants nothing.
const VERSION_NOTHING: u8 = 0;
const VERSION_THROUGH: u8 = 1;
const VERSION_VISIBLE: u8 = 2;
const VERSION_NUMBERED: u8 = 3;
/// A snapshot of a thousand transactions in flight, twice, has some room in this, and so have two thousand holes, twice.
const MAX_TEXT: usize = 64 << 10;

impl Cursor {
    /// The version and the payload.
    pub(crate) fn write(&self, bytes: &mut Vec<u8>) {
        match &self.0 {
            Seen::Nothing => bytes.push(VERSION_NOTHING),
            Seen::Visible { epoch, base, further, shown } => {
                bytes.push(VERSION_VISIBLE);
                bytes.extend_from_slice(&epoch.0.to_be_bytes());
                // One more than the place; 0 for none. No place is the last number of all.
                write_number(shown.map_or(0, |place| place.saturating_add(1)), bytes);
                write_snapshot(base, bytes);
                if let Some((further, seq)) = further {
                    write_snapshot(further, bytes);
                    write_number(*seq, bytes);
                }
            }
            Seen::Numbered { epoch, base, further } => {
                bytes.push(VERSION_NUMBERED);
                bytes.extend_from_slice(&epoch.0.to_be_bytes());
                write_numbers(base, bytes);
                if let Some((further, seq)) = further {
                    write_numbers(further, bytes);
                    write_number(*seq, bytes);
                }
            }
            Seen::Through { epoch, seq } => {
                bytes.push(VERSION_THROUGH);
                bytes.extend_from_slice(&epoch.0.to_be_bytes());
                bytes.extend_from_slice(&seq.to_be_bytes());
            }
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(24);
        self.write(&mut bytes);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
        f.write_str(&data_encoding::BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| {
            Error::new(
                ErrorKind::Cursor,
                "this is not a cursor; use one that Tidewire gave, unchanged, or none to start anew",
            )
        })
    }
}

fn parse(text: &str) -> Option<Cursor> {
    // No cursor of any version is longer; a longer text is not worth decoding.
    if text.len() > MAX_TEXT {
        return None;
    }
    let bytes = data_encoding::BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
    let (body, check) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_be_bytes(*check) {
        return None;
    }
    Cursor::read(body)
}

impl Cursor {
    /// Reads what [`write`](Self::write) wrote.
    pub(crate) fn read(bytes: &[u8]) -> Option<Cursor> {
        match *bytes {
            [VERSION_NOTHING] => Some(Cursor::start()),
            [VERSION_THROUGH, ref payload @ ..] => {
                let (epoch, rest) = payload.split_first_chunk::<8>()?;
                let seq: &[u8; 8] = rest.try_into().ok()?;
                Some(Cursor::through(Epoch(u64::from_be_bytes(*epoch)), u64::from_be_bytes(*seq)))
            }
            [VERSION_VISIBLE, ref payload @ ..] => {
                let (epoch, mut rest) = payload.split_first_chunk::<8>()?;
                let epoch = Epoch(u64::from_be_bytes(*epoch));
                let shown = read_number(&mut rest)?.checked_sub(1);
                let base = Arc::new(read_snapshot(&mut rest)?);
                let further = if rest.is_empty() {
                    None
                } else {
                    Some((Arc::new(read_snapshot(&mut rest)?), read_number(&mut rest)?))
                };
                rest.is_empty().then_some(Cursor(Seen::Visible { epoch, base, further, shown }))
            }
            [VERSION_NUMBERED, ref payload @ ..] => {
                let (epoch, mut rest) = payload.split_first_chunk::<8>()?;
                let epoch = Epoch(u64::from_be_bytes(*epoch));
                let base = Arc::new(read_numbers(&mut rest)?);
                if rest.is_empty() {
                    return Some(Cursor::numbered(epoch, base, None));
                }
                let further = Arc::new(read_numbers(&mut rest)?);
                let seq = read_number(&mut rest)?;
                rest.is_empty().then(|| Cursor::numbered(epoch, base, Some((further, seq))))
            }
            _ => None,
        }
    }
}

/// The ids in flight lie close together below the end, so they are written as steps down from it.
fn write_snapshot(snapshot: &DatabaseSnapshot, out: &mut Vec<u8>) {
    write_number(snapshot.xmax, out);
    write_number(snapshot.sequence, out);
    write_number(snapshot.log, out);
    write_number(snapshot.in_flight.len() as u64, out);
    let mut last = snapshot.xmax;
    for id in snapshot.in_flight.iter().rev() {
        write_number(last - id, out);
        last = *id;
    }
}

fn read_snapshot(bytes: &mut &[u8]) -> Option<DatabaseSnapshot> {
    let (xmax, sequence, log) = (read_number(bytes)?, read_number(bytes)?, read_number(bytes)?);
    let count = read_number(bytes)?;
    let mut in_flight = Vec::new();
    let mut last = xmax;
    for _ in 0..count {
        last = last.checked_sub(read_number(bytes).filter(|step| *step > 0)?)?;
        in_flight.push(last);
    }
    in_flight.reverse();
    Some(DatabaseSnapshot { xmax, in_flight, sequence, log })
}

/// As steps down from the highest: to a hole's end, and to its beginning.
fn write_numbers(numbers: &Numbers, out: &mut Vec<u8>) {
    write_number(numbers.highest, out);
    write_number(numbers.holes.len() as u64, out);
    let mut last = numbers.highest;
    for (low, high) in numbers.holes.iter().rev() {
        write_number(last - high, out);
        write_number(high - low, out);
        last = *low;
    }
}

fn read_numbers(bytes: &mut &[u8]) -> Option<Numbers> {
    let (highest, count) = (read_number(bytes)?, read_number(bytes)?);
    let mut holes = Vec::new();
    let mut last = highest;
    for _ in 0..count {
        let high = last.checked_sub(read_number(bytes).filter(|step| *step > 0)?)?;
        let low = high.checked_sub(read_number(bytes)?).filter(|low| *low > 0)?;
        holes.push((low, high));
        last = low;
    }
    holes.reverse();
    Some(Numbers { highest, holes })
}

/// Seven bits a byte, the lowest first; the eighth says that more follow.
pub(crate) fn write_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(crate) fn read_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte < 0x80 {
            // A number has one form: nothing is added to its end that says nothing.
            return (byte > 0 || shift == 0).then_some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_snapshot_covers_an_earlier_one() {
        let snapshot = |xmax, in_flight: &[u64]| {
            let in_flight = in_flight.to_vec();
            Cursor::visible(Epoch(1), Arc::new(DatabaseSnapshot { xmax, in_flight, sequence: 0, log: xmax }))
        };
        let (early, later, latest) = (snapshot(10, &[7, 9]), snapshot(12, &[9, 11]), snapshot(12, &[11]));
        assert!(later.covers(&early) && latest.covers(&later) && latest.covers(&early) && early.covers(&early));
        assert!(!early.covers(&later) && !later.covers(&latest));
        assert!(early.covers(&Cursor::start()) && !Cursor::start().covers(&early));

        // Who was shown the tables has seen what the outbox has when the log has been read that far.
        let shown = early.clone().shown(12);
        assert!(!early.covers(&shown) && later.covers(&shown) && shown.covers(&shown) && shown.covers(&early));
    }

    #[test]
    fn numbers_that_show_more_cover_those_that_show_less() {
        let of = |highest, holes: &[(u64, u64)]| {
            Cursor::numbered(Epoch(1), Arc::new(Numbers { highest, holes: holes.to_vec() }), None)
        };
        let (early, later, latest) = (of(10, &[(3, 5), (8, 8)]), of(15, &[(4, 5), (12, 14)]), of(15, &[(12, 12)]));
        assert!(later.covers(&early) && latest.covers(&later) && latest.covers(&early) && early.covers(&early));
        assert!(!early.covers(&later) && !later.covers(&latest));
        assert!(!of(15, &[(3, 6)]).covers(&early) && !of(15, &[(7, 7)]).covers(&early), "6 and 7 were shown");
        assert!(early.covers(&Cursor::start()) && !Cursor::start().covers(&early));
        let numbers = Numbers { highest: 10, holes: vec![(3, 5), (8, 8)] };
        assert_eq!(numbers.complete_through(), 2);
    }

    #[test]
    fn a_cursor_survives_its_text_and_nothing_else_parses() {
        let snapshot = |xmax, in_flight: &[u64], sequence| {
            Arc::new(DatabaseSnapshot { xmax, in_flight: in_flight.to_vec(), sequence, log: sequence / 2 })
        };
        for cursor in [
            Cursor::start(),
            Cursor::through(Epoch(7), 0),
            Cursor::through(Epoch(u64::MAX), u64::MAX),
            Cursor::visible(Epoch(7), snapshot(1000, &[], 0)),
            Cursor::visible(Epoch(7), snapshot(1000, &[998], 5)).shown(0),
            Cursor::partly(Epoch(7), snapshot(1000, &[3, 990, 999], 77), snapshot(u64::MAX, &[3], u64::MAX), 78),
            Cursor::numbered(Epoch(7), Arc::default(), None),
            Cursor::numbered(
                Epoch(7),
                Arc::new(Numbers { highest: 1000, holes: vec![(1, 1), (3, 999)] }),
                Some((Arc::new(Numbers { highest: u64::MAX, holes: vec![(2, 2), (5, u64::MAX - 1)] }), 78)),
            ),
        ] {
            let text = cursor.to_string();
            assert_eq!(text.parse::<Cursor>().expect("our own text"), cursor);

            for cut in 0..text.len() {
                assert!(text[..cut].parse::<Cursor>().is_err(), "cut at {cut}");
            }
            for (index, _) in text.char_indices() {
                let mut other = text.clone().into_bytes();
                other[index] = if other[index] == b'A' { b'B' } else { b'A' };
                let other = String::from_utf8(other).expect("ASCII");
                assert!(other == text || other.parse::<Cursor>().is_err(), "changed at {index}");
            }
        }
        for text in ["", "0", "not a cursor", "🦀", &"A".repeat(10_000)] {
            assert!(text.parse::<Cursor>().is_err());
        }
    }
}
