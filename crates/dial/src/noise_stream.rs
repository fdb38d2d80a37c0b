//! The control channel as a byte stream.
//!
//! [`NoiseStream`] puts the records of [`warren_channel`] under `AsyncRead`
//! and `AsyncWrite`, for either end, so that HTTP/2 can run on it. Records are
//! opened where they were received. Written bytes gather as records until
//! they are flushed or there are enough for a good-sized write, so a record never
//! costs a system call of its own.
//!
//! A client looks for the server's early payload in the first bytes it reads
//! and takes it out; it never waits for it before it speaks.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use warren_channel::early::{Peek, peek};
use warren_channel::{Channel, ClientHandshake, HandshakeError, Opener, Sealer};
use warren_wire::control::{HEADER_LEN, MAX_FRAME_LEN, MAX_PLAINTEXT_LEN};

/// Space for received bytes: a few records.
const RECEIVE_LEN: usize = 4 * MAX_FRAME_LEN;
/// So much sealed data is written out without waiting for a flush.
const SEND_LEN: usize = 32 * 1024;

/// The reason that no channel was established on an upgraded connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The connection broke.
    #[error("the connection broke during the control handshake: {0}")]
    Io(#[from] io::Error),
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

/// A client's progress with the early payload.
#[derive(Debug)]
enum Early {
    /// Not enough plaintext yet to decide; all of it so far.
    Looking(Vec<u8>),
    /// Plaintext behind (or instead of) the payload, read from the index on.
    Behind(Vec<u8>, usize),
    /// Nothing to do.
    Done,
}

/// One end of the control channel over `S`.
#[derive(Debug)]
pub struct NoiseStream<S> {
    inner: S,
    opener: Opener,
    sealer: Sealer,
    /// Received bytes; opened plaintext lies in it, too.
    incoming: Box<[u8]>,
    /// Opened and not read.
    plaintext: std::ops::Range<usize>,
    /// Received and not opened.
    sealed: std::ops::Range<usize>,
    /// Sealed records, sent up to `sent`.
    outgoing: Vec<u8>,
    sent: usize,
    early: Early,
}

impl<S> NoiseStream<S> {
    /// Puts a channel over `inner`. `received` are bytes that came behind the
    /// handshake; `first` goes out unsealed before everything else (a server's
    /// handshake response).
    pub fn new(inner: S, channel: Channel, received: &[u8], first: &[u8]) -> Self {
        let mut incoming = vec![0; RECEIVE_LEN.max(received.len())];
        incoming[..received.len()].copy_from_slice(received);
        Self {
            inner,
            opener: channel.opener,
            sealer: channel.sealer,
            incoming: incoming.into_boxed_slice(),
            plaintext: 0..0,
            sealed: 0..received.len(),
            outgoing: first.to_vec(),
            sent: 0,
            early: Early::Done,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> NoiseStream<S> {
    /// Finishes a client's handshake, whose first message has been sent.
    /// `received` are bytes that came behind the upgrade.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(
        mut inner: S,
        received: Vec<u8>,
        handshake: ClientHandshake,
    ) -> Result<Self, ConnectError> {
        let mut bytes = received;
        while bytes.len() < HEADER_LEN {
            read_more(&mut inner, &mut bytes).await?;
        }
        let header = bytes.first_chunk();
        let header = header.unwrap_or_else(|| unreachable!("there are three bytes"));
        let frame_len = warren_channel::response_frame_len(header)?;
        while bytes.len() < frame_len {
            read_more(&mut inner, &mut bytes).await?;
        }
        let (frame, behind) = bytes.split_at(frame_len);
        let mut stream = Self::new(inner, handshake.finish(frame)?, behind, &[]);
        stream.early = Early::Looking(Vec::new());
        Ok(stream)
    }

    /// Opens the next buffered record; false if none is complete.
    fn open_next(&mut self) -> io::Result<bool> {
        let opened = self.opener.open(&mut self.incoming[self.sealed.clone()]);
        let Some(opened) = opened.map_err(broken)? else {
            return Ok(false);
        };
        let start = self.sealed.start;
        self.plaintext = start + opened.plaintext.start..start + opened.plaintext.end;
        self.sealed.start += opened.consumed;
        Ok(true)
    }

    /// Receives more. Only called when all plaintext has been read.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.plaintext = 0..0;
        // A record is shorter than the buffer, so moving always frees space.
        if self.sealed.start > 0 {
            self.incoming.copy_within(self.sealed.clone(), 0);
            self.sealed = 0..self.sealed.len();
        }
        let mut space = ReadBuf::new(&mut self.incoming[self.sealed.end..]);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut space))?;
        let count = space.filled().len();
        self.sealed.end += count;
        if count == 0 && !self.sealed.is_empty() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the control connection was cut in the middle of a record",
            )));
        }
        Poll::Ready(Ok(count))
    }

    /// Takes opened plaintext past the early payload.
    fn pass_early(&mut self) -> io::Result<()> {
        let Early::Looking(seen) = &mut self.early else {
            return Ok(());
        };
        seen.extend_from_slice(&self.incoming[self.plaintext.clone()]);
        self.plaintext = 0..0;
        match peek(seen).map_err(broken)? {
            Peek::Incomplete => {}
            Peek::Absent => self.early = Early::Behind(std::mem::take(seen), 0),
            Peek::Present(json) => {
                tracing::debug!(
                    payload = %String::from_utf8_lossy(&seen[json.clone()]),
                    "the server sent an early payload"
                );
                self.early = Early::Behind(std::mem::take(seen), json.end);
            }
        }
        Ok(())
    }

    /// Moves opened plaintext into `out`.
    fn deliver(&mut self, out: &mut ReadBuf<'_>) {
        if let Early::Behind(bytes, start) = &mut self.early {
            let rest = bytes.get(*start..).unwrap_or_default();
            let count = rest.len().min(out.remaining());
            out.put_slice(&rest[..count]);
            *start += count;
            if *start < bytes.len() {
                return;
            }
            self.early = Early::Done;
        }
        let count = self.plaintext.len().min(out.remaining());
        let end = self.plaintext.start + count;
        out.put_slice(&self.incoming[self.plaintext.start..end]);
        self.plaintext.start = end;
    }

    /// Writes out all that is sealed.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.outgoing.len() {
            let rest = &self.outgoing[self.sent..];
            let count = ready!(Pin::new(&mut self.inner).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += count;
        }
        self.outgoing.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

async fn read_more<S: AsyncRead + Unpin>(inner: &mut S, bytes: &mut Vec<u8>) -> io::Result<()> {
    bytes.reserve(MAX_FRAME_LEN);
    match inner.read_buf(bytes).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

fn broken<E: std::error::Error + Send + Sync + 'static>(error: E) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for NoiseStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = out.filled().len();
        loop {
            this.deliver(out);
            if out.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if this.open_next()? {
                this.pass_early()?;
                continue;
            }
            // Hand over the plaintext before waiting for more.
            if out.filled().len() > before || ready!(this.poll_receive(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for NoiseStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(data)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.outgoing.len() >= SEND_LEN {
            ready!(this.poll_send(cx))?;
        }
        let mut accepted = 0;
        // Small slices, such as the frame headers of HTTP/2, share a record.
        let mut gathered = Vec::new();
        for slice in slices {
            let left = SEND_LEN.saturating_sub(accepted);
            let slice = &slice[..slice.len().min(left)];
            accepted += slice.len();
            if gathered.is_empty() && (slices.len() == 1 || slice.len() >= MAX_PLAINTEXT_LEN) {
                this.sealer
                    .seal(slice, &mut this.outgoing)
                    .map_err(broken)?;
            } else {
                gathered.extend_from_slice(slice);
            }
        }
        this.sealer
            .seal(&gathered, &mut this.outgoing)
            .map_err(broken)?;
        Poll::Ready(Ok(accepted))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
