//! Places in the binary log.

use std::{collections::BTreeMap, fmt};

use super::events::damaged;
use crate::error::{Error, ErrorKind, Result};

/// A place in the log: of the history of one server, they are in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(in crate::mysql) struct Place(u64);

/// How many bits the place in a file has: a file is of a gigabyte or so, but may hold one transaction of any size more.
const POSITION_BITS: u32 = 40;

impl Place {
    /// `bin.000123` and what is before the place in that file, in bytes.
    pub(super) fn new(file: &str, position: u64) -> Result<Self> {
        let number = file.rsplit_once('.').and_then(|(_, number)| number.parse::<u64>().ok());
        let number = number.filter(|number| *number < 1 << (63 - POSITION_BITS) && position < 1 << POSITION_BITS);
        number.map(|number| Self(number << POSITION_BITS | position)).ok_or_else(|| {
            Error::new(ErrorKind::Setup, format!("the name of a file of the binary log has no number: {file:?}"))
        })
    }

    pub(super) fn of_number(number: u64) -> Self {
        Self(number)
    }

    pub(super) fn number(self) -> u64 {
        self.0
    }

    /// What is before it in its file, in bytes.
    pub(super) fn position(self) -> u64 {
        self.0 & ((1 << POSITION_BITS) - 1)
    }
}

/// The last transaction of each domain up to a place: what a server is asked to go on behind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Gtids(BTreeMap<u32, (u32, u64)>);

impl Gtids {
    /// Reads `0-1-8,7-1-1`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let one = |text: &str| {
            let mut parts = text.trim().split('-');
            let (domain, server, sequence) = (parts.next()?, parts.next()?, parts.next()?);
            Some((domain.parse().ok()?, (server.parse().ok()?, sequence.parse().ok()?)))
        };
        let ids = text.split(',').filter(|text| !text.trim().is_empty());
        ids.map(one).collect::<Option<_>>().map(Self).ok_or_else(damaged)
    }

    pub(super) fn set(&mut self, domain: u32, server: u32, sequence: u64) {
        self.0.insert(domain, (server, sequence));
    }
}

impl fmt::Display for Gtids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (domain, (server, sequence))) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{domain}-{server}-{sequence}")?;
        }
        Ok(())
    }
}

/// Up to where the log has been read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Position {
    pub(super) gtids: Gtids,
    pub(super) file: String,
    pub(super) place: Place,
}

impl Position {
    /// The log goes on in a file, from there on. A stream may begin with files that have been read.
    pub(super) fn rotate(&mut self, file: &str, position: u64) -> Result<()> {
        let place = Place::new(file, position)?;
        if place > self.place {
            file.clone_into(&mut self.file);
            self.place = place;
        }
        Ok(())
    }

    /// Takes the place of an event from the lower half that it tells. From MariaDB 11.4 on, those inside a transaction tell none.
    pub(super) fn advance(&mut self, low: u32) -> Result<Place> {
        if low == 0 {
            return Ok(self.place);
        }
        let before = self.place.position();
        let mut position = before & !u64::from(u32::MAX) | u64::from(low);
        if position < before {
            position += 1 << 32;
        }
        self.place = Place::new(&self.file, position)?;
        Ok(self.place)
    }

    /// The same, where it is further on and no more than that is sure.
    pub(super) fn advance_to(&mut self, low: u32) -> Result<()> {
        let place = Place::new(&self.file, self.place.position() & !u64::from(u32::MAX) | u64::from(low))?;
        self.place = self.place.max(place);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_in_order_over_files_and_beyond_their_lower_half() {
        let mut position = Position::default();
        position.rotate("bin.000009", 4).unwrap();
        let mut last = position.place;
        for (file, low) in [("bin.000009", 500), ("bin.000009", u32::MAX), ("bin.000009", 7), ("bin.000010", 300)] {
            position.rotate(file, 4).unwrap();
            let next = position.advance(low).unwrap();
            assert!(next > last, "{file} {low}");
            last = next;
        }
        assert_eq!(position.advance(0).unwrap(), last);
        assert_eq!(last, Place::new("bin.000010", 300).unwrap());
        assert!(Place::new("bin", 4).is_err());
        for text in ["", "0-1-8", "0-1-8,7-3-18446744073709551615"] {
            assert_eq!(Gtids::parse(text).unwrap().to_string(), text);
        }
    }
}
