//! Connections and flows of the netstack with the traits of tokio.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use warren_netstack::{ConnectionError, ConnectionId, FlowId, Tuple};

use crate::Network;

/// A TCP connection through the tunnel. Dropping it closes it: what was written is still
/// sent, and unread data leads to a reset.
pub struct Stream {
    network: Network,
    id: ConnectionId,
}

impl Stream {
    pub(crate) fn new(network: Network, id: ConnectionId) -> Self {
        Self { network, id }
    }

    /// Both ends; `None` when the connection does not exist any more.
    pub fn tuple(&self) -> Option<Tuple> {
        self.network.with(|state, _| state.stack.tuple(self.id))
    }

    /// Waits until the handshake is over.
    pub(crate) async fn opened(&self) -> io::Result<()> {
        poll_fn(|context| {
            self.network
                .with(|state, _| match state.stack.is_open(self.id) {
                    Ok(true) => Poll::Ready(Ok(())),
                    Ok(false) => {
                        state.wake_when_writable(self.id, context.waker());
                        Poll::Pending
                    }
                    Err(cause) => Poll::Ready(Err(error(cause))),
                })
        })
        .await
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let place = buffer.initialize_unfilled();
        let read = self.network.with(|state, now| {
            let read = state.stack.read(now, self.id, place);
            if read == Ok(None) {
                state.wake_when_readable(self.id, context.waker());
            }
            read
        });
        let read = ready!(outcome(read))?;
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.network.with(|state, now| {
            let written = state.stack.write(now, self.id, data);
            if written == Ok(None) {
                state.wake_when_writable(self.id, context.waker());
            }
            written
        });
        outcome(written)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.network
            .with(|state, now| state.stack.shut_down(now, self.id));
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.network.with(|state, now| {
            state.forget(self.id);
            state.stack.release(now, self.id);
        });
    }
}

fn outcome(result: Result<Option<usize>, ConnectionError>) -> Poll<io::Result<usize>> {
    match result {
        Ok(Some(count)) => Poll::Ready(Ok(count)),
        Ok(None) => Poll::Pending,
        Err(cause) => Poll::Ready(Err(error(cause))),
    }
}

pub(crate) fn error(cause: ConnectionError) -> io::Error {
    let kind = match cause {
        ConnectionError::Refused => io::ErrorKind::ConnectionRefused,
        ConnectionError::Reset => io::ErrorKind::ConnectionReset,
        ConnectionError::TimedOut => io::ErrorKind::TimedOut,
        ConnectionError::Closed => io::ErrorKind::BrokenPipe,
    };
    io::Error::new(kind, cause)
}

/// A UDP flow through the tunnel. It ends when it is dropped, or was not used for some
/// time.
pub struct Flow {
    network: Network,
    id: FlowId,
}

impl Flow {
    pub(crate) fn new(network: Network, id: FlowId) -> Self {
        Self { network, id }
    }

    /// The next datagram; `None` when the flow has ended.
    pub async fn receive(&self) -> Option<Vec<u8>> {
        poll_fn(|context| {
            self.network.with(|state, _| {
                if let Some(datagram) = state.stack.read_datagram(self.id) {
                    return Poll::Ready(Some(datagram));
                }
                if state.stack.flow_tuple(self.id).is_none() {
                    return Poll::Ready(None);
                }
                state.wake_for_datagram(self.id, context.waker());
                Poll::Pending
            })
        })
        .await
    }

    /// Sends a datagram. One that is too long is lost, as on any network. `false`: the
    /// flow has ended.
    pub fn send(&self, payload: &[u8]) -> bool {
        self.network.with(|state, now| {
            state.stack.send_datagram(now, self.id, payload)
                || state.stack.flow_tuple(self.id).is_some()
        })
    }

    /// Both ends; `None` when it has ended.
    pub fn tuple(&self) -> Option<Tuple> {
        self.network
            .with(|state, _| state.stack.flow_tuple(self.id))
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.network.with(|state, _| {
            state.forget_flow(self.id);
            state.stack.close_flow(self.id);
        });
    }
}
