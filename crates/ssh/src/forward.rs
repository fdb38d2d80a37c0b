//! Data between a channel and a socket of this machine, or a stream like it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::limits::CONNECT_PATIENCE;
use crate::transport::{ChannelEnd, FromClient, Incoming};

/// Bytes that are read at once.
const READ: usize = 32 * 1024;

/// Copies both ways until both have ended, or the client has closed the channel.
pub(crate) async fn pump(
    end: ChannelEnd,
    mut incoming: Incoming,
    socket: impl AsyncRead + AsyncWrite,
) {
    let (mut from, mut to) = tokio::io::split(socket);
    let (in_ended, out_ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let inward = async {
        while let Some(message) = incoming.recv().await {
            let done = match message {
                FromClient::Data(data) => {
                    let written = to.write_all(&data).await;
                    end.consumed(data.len());
                    written
                }
                FromClient::Eof => {
                    in_ended.store(true, Relaxed);
                    to.shutdown().await
                }
            };
            if done.is_err() || (in_ended.load(Relaxed) && out_ended.load(Relaxed)) {
                return;
            }
        }
    };
    let outward = async {
        copy_out(&mut from, &end, false).await;
        end.eof().await;
        out_ended.store(true, Relaxed);
    };
    let both = async {
        tokio::pin!(inward);
        tokio::select! {
            () = &mut inward => {}
            () = outward => if !in_ended.load(Relaxed) {
                inward.await;
            }
        }
    };
    tokio::select! {
        () = both => {}
        () = end.closed() => {}
    }
    end.close().await;
}

/// Sends all that comes from `from`, as standard error if it `is_error`.
pub(crate) async fn copy_out(
    from: &mut (impl AsyncRead + Unpin),
    end: &ChannelEnd,
    is_error: bool,
) {
    let mut buffer = vec![0; READ];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let data = Bytes::copy_from_slice(&buffer[..read]);
        if end.send(data, is_error).await.is_err() {
            return;
        }
    }
}

/// Connects to a destination that a client names.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let connecting = TcpStream::connect((host, port));
    let stream = tokio::time::timeout(CONNECT_PATIENCE, connecting)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Listens for a client that wants a port of this machine, for programs of this machine
/// only, as OpenSSH does unless it is configured otherwise. Ports below 1024 are for root.
pub(crate) async fn listen(address: &str, port: u16, is_root: bool) -> io::Result<TcpListener> {
    if port != 0 && port < 1024 && !is_root {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    let wants_v6 = address
        .parse::<IpAddr>()
        .is_ok_and(|address| address.is_ipv6());
    let loopback: IpAddr = match wants_v6 {
        true => Ipv6Addr::LOCALHOST.into(),
        false => Ipv4Addr::LOCALHOST.into(),
    };
    TcpListener::bind(SocketAddr::new(loopback, port)).await
}
