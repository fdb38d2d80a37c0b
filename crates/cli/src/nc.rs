//! `warren nc HOST PORT`: standard input and output over a TCP connection through the
//! network.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::args::Given;
use super::ping::resolve;
use super::{Failure, not_running};
use warren_local_api::client::Client;
use warren_local_api::endpoints::{Dial, Dialed, GetStatus};
use warren_local_api::takeover::Duplex;

/// The time for a connection to open.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn run(given: &Given<'_>, client: &Client) -> Result<(), Failure> {
    let host = given.text("HOST").unwrap_or_default();
    let port = given.text("PORT").unwrap_or_default();
    let port: u16 = port
        .parse()
        .map_err(|_| Failure::usage(format_args!("{port:?} is not a valid port")))?;
    let status = client.call(GetStatus { peers: true }).await?;
    if let Some(text) = not_running(&status) {
        return Err(Failure::Failed(text));
    }
    if !status.tun {
        let host = host.to_owned();
        let dialed = client.call(Dial { host, port }).await?;
        let stream: Box<dyn Duplex> = match dialed {
            Dialed::Stream(stream) => stream,
            Dialed::Address(address) => Box::new(
                TcpStream::connect(address)
                    .await
                    .map_err(|error| Failure::failed(format_args!("{address}: {error}")))?,
            ),
        };
        let (from, to) = tokio::io::split(stream);
        let spliced = splice(from, to, tokio::io::stdin(), tokio::io::stdout()).await;
        return spliced.map_err(|error| Failure::failed(error.to_string()));
    }
    let address = resolve(host, &status).await?.get();
    let failed = |error: String| Failure::failed(format_args!("Dial({host:?}, {port}): {error}"));
    let stream = match tokio::time::timeout(PATIENCE, TcpStream::connect((address, port))).await {
        Ok(stream) => stream.map_err(|error| failed(error.to_string()))?,
        Err(_) => return Err(failed(format!("no answer in {} s", PATIENCE.as_secs()))),
    };
    let (from, to) = stream.into_split();
    splice(from, to, tokio::io::stdin(), tokio::io::stdout())
        .await
        .map_err(|error| failed(error.to_string()))
}

/// Copies both ways until the other side has ended. The end of our input is passed on,
/// and what is still on its way comes back.
async fn splice(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    let sending = async {
        tokio::io::copy(&mut input, &mut to).await?;
        to.shutdown().await?;
        std::future::pending::<std::io::Result<()>>().await
    };
    let receiving = async {
        tokio::io::copy(&mut from, &mut output).await?;
        output.flush().await
    };
    tokio::select! {
        failed = sending => failed,
        ended = receiving => ended,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn an_answer_after_the_end_of_the_input_arrives() {
        let (here, mut there) = tokio::io::duplex(64);
        let (from, to) = tokio::io::split(here);
        let peer = async move {
            let mut asked = String::new();
            there.read_to_string(&mut asked).await.unwrap();
            there.write_all(b"answer").await.unwrap();
            asked
        };
        let mut output = Vec::new();
        let (spliced, asked) = tokio::join!(splice(from, to, &b"question"[..], &mut output), peer);
        spliced.unwrap();
        assert_eq!(
            (asked.as_str(), output.as_slice()),
            ("question", &b"answer"[..])
        );
    }
}
