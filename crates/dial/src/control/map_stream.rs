//! The open map stream, message by message.

use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::try_unfold;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use warren_channel::map_frames::{MapFrameError, MapFrames, Packing};
use warren_control_types::MapResponse;

use super::ControlClient;

/// The map stream is over before its end. Open a new one.
#[derive(Debug, thiserror::Error)]
pub enum MapStreamError {
    /// No complete message for too long.
    #[error("the coordination server was silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// The server ended the stream inside a message.
    #[error("the coordination server ended the map stream in the middle of a message")]
    Cut,
    /// The connection broke.
    #[error("the connection to the coordination server broke: {0}")]
    Broken(#[from] hyper::Error),
    /// A message cannot be read.
    #[error(transparent)]
    Frame(#[from] MapFrameError),
}

/// The map messages of the server, for as long as the connection lives.
#[derive(Debug)]
pub struct MapStream {
    /// The connection lives as long as some client does.
    _client: ControlClient,
    body: Incoming,
    frames: MapFrames,
    watchdog: Duration,
    /// When the next message must be complete.
    deadline: Instant,
}

impl MapStream {
    pub(super) fn new(
        client: ControlClient,
        body: Incoming,
        packing: Packing,
        watchdog: Duration,
    ) -> Self {
        let frames = MapFrames::new(packing);
        Self {
            _client: client,
            body,
            frames,
            watchdog,
            deadline: Instant::now() + watchdog,
        }
    }

    /// The next message; `None` when the server has ended the stream between
    /// two messages. May be dropped and called again without losing anything.
    ///
    /// # Errors
    /// [`MapStreamError`]; the stream is then of no more use.
    pub async fn next(&mut self) -> Result<Option<MapResponse>, MapStreamError> {
        loop {
            if let Some(message) = self.frames.next_message()? {
                self.deadline = Instant::now() + self.watchdog;
                return Ok(Some(message));
            }
            let piece = timeout_at(self.deadline, self.body.frame()).await;
            match piece.map_err(|_| MapStreamError::Silent(self.watchdog))? {
                Some(piece) => {
                    if let Some(data) = piece?.data_ref() {
                        self.frames.push(data);
                    }
                }
                None if self.frames.is_mid_frame() => return Err(MapStreamError::Cut),
                None => return Ok(None),
            }
        }
    }

    /// The same as a [`Stream`].
    pub fn into_stream(self) -> impl Stream<Item = Result<MapResponse, MapStreamError>> {
        try_unfold(self, async |mut stream| {
            let message = stream.next().await?;
            Ok(message.map(|message| (message, stream)))
        })
    }
}
