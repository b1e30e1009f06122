use std::{fmt, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};

use crate::{
    cursor::Cursor,
    database::SnapshotSource,
    error::{Error, ErrorKind, Result},
    image::Image,
};

/// The rows of one moment, read in parts, in the order of their key.
///
/// An open snapshot holds a connection and keeps the database from tidying up behind it. So there are only a few at a time, the next part is
/// read while the last is being handled, and one whose reader takes nothing for [`LogOptions::snapshot_patience`](super::LogOptions) is given
/// up.
pub struct Snapshot {
    cursor: Cursor,
    parts: mpsc::Receiver<Part>,
    ended: bool,
    patience: Duration,
}

type Part = Result<(Vec<Image>, /* is the last */ bool)>;

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("cursor", &self.cursor).field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Snapshot {
    pub(super) fn start(
        source: Box<dyn SnapshotSource>,
        rows: usize,
        patience: Duration,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let cursor = source.cursor().clone();
        // One part waits while its reader handles another; the next is read when it has been taken.
        let (sender, parts) = mpsc::channel(1);
        tokio::spawn(async move {
            let _permit = permit;
            read(source, rows.max(1), patience, sender).await;
        });
        Self { cursor, parts, ended: false, patience }
    }

    /// Where a reader stands that has all of these rows.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// The next rows; `None` when there are no more. Only the last part may be empty.
    ///
    /// # Errors
    /// The snapshot is lost: the database failed, or the reader was too slow ([`ErrorKind::Busy`]). Open another and start over.
    pub async fn next(&mut self) -> Result<Option<Vec<Image>>> {
        if self.ended {
            return Ok(None);
        }
        match self.parts.recv().await {
            Some(Ok((rows, last))) => {
                self.ended = last;
                Ok(Some(rows))
            }
            Some(Err(error)) => Err(error),
            None => Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "a snapshot was given up because its reader took no rows for {} s",
                    self.patience.as_secs_f32()
                ),
            )),
        }
    }

    /// Whether the part that came last was the last of all.
    pub fn is_ended(&self) -> bool {
        self.ended
    }
}

async fn read(mut source: Box<dyn SnapshotSource>, rows: usize, patience: Duration, sender: mpsc::Sender<Part>) {
    loop {
        let part = source.next(rows).await.map(|images| {
            let last = images.len() < rows;
            (images, last)
        });
        let goes_on = matches!(part, Ok((_, false)));
        let sent = timeout(patience, sender.send(part)).await;
        if !goes_on || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

/// How many snapshots may be open at once.
#[derive(Debug)]
pub(super) struct Snapshots(Arc<tokio::sync::Semaphore>);

impl Snapshots {
    pub(super) fn new(max: usize) -> Self {
        Self(Arc::new(tokio::sync::Semaphore::new(max.max(1))))
    }

    pub(super) async fn permit(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.0).acquire_owned().await.expect("the semaphore is never closed")
    }
}
