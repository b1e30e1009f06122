//! What fuzzers and a test do with bytes that may be anything: `fuzz/README.md`.

use crate::cursor::Cursor;

/// Bytes are no cursor, or one that has one text; whoever holds it, the arithmetic of cursors neither fails nor contradicts itself. Checksums keep
/// accidents out and nobody who means to, so the bytes get one too.
///
/// # Panics
/// Where that is not so.
pub fn cursor(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(cursor) = text.parse::<Cursor>()
    {
        assert_eq!(cursor.to_string(), text);
    }
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let mut cursors = Vec::new();
    for bytes in [bytes, first, second] {
        let Some(cursor) = Cursor::read(bytes) else { continue };
        let mut written = Vec::new();
        cursor.write(&mut written);
        assert_eq!(written, bytes, "a cursor has two forms");
        cursors.push(cursor);
    }
    for cursor in &cursors {
        assert_eq!(cursor.to_string().parse::<Cursor>().ok().as_ref(), Some(cursor), "its own text is another's");
        // Who stands between two moments is not known to have seen all that the later one shows.
        let is_between = cursor.numbers().is_some_and(|(_, _, further)| further.is_some())
            || cursor.snapshots().is_some_and(|(_, _, further)| further.is_some());
        assert!(is_between || cursor.shown_to().is_some() || cursor.covers(cursor));
        assert!(cursor.covers(&Cursor::start()));
        let _ = (cursor.position(), cursor.last(), cursor.shown_to());
        if let Some((_, numbers, further)) = cursor.numbers() {
            let _ = (numbers.complete_through(), further.map(|(numbers, _)| numbers.complete_through()));
        }
        if let Some((_, snapshot, further)) = cursor.snapshots() {
            let _ = (snapshot.xmin(), further.map(|(snapshot, _)| snapshot.xmin()));
        }
        for other in &cursors {
            let _ = cursor.covers(other);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_bytes_harm_the_parser_of_cursors() {
        tidewire_testkit::fuzz("cursor", 20_000, super::cursor);
    }
}
