//! `warren wait`: until connected, for scripts and service units.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use super::args::Given;
use super::{Failure, duration};
use warren_local_api::client::{Client, ClientError};
use warren_local_api::endpoints::{GetStatus, WatchBus};
use warren_local_api::notify::{NotifyMask, State};

/// The pause between two looks at the daemon and at the network interface.
const RETRY: Duration = Duration::from_millis(100);

pub(super) async fn run(given: &Given<'_>, client: &Client) -> Result<(), Failure> {
    let timeout = duration::parse(given.text("timeout").unwrap_or("0"))
        .map_err(|why| Failure::usage(format_args!("--timeout: {why}")))?;
    if timeout.is_zero() {
        return wait(client).await;
    }
    match tokio::time::timeout(timeout, wait(client)).await {
        Ok(result) => result,
        Err(_) => Err(Failure::failed(format_args!(
            "not connected after {}; look at: warren status",
            duration::millis(timeout)
        ))),
    }
}

async fn wait(client: &Client) -> Result<(), Failure> {
    // The daemon may be started after us.
    let mask = NotifyMask::INITIAL_STATE;
    let mut events = loop {
        match client.call(WatchBus { mask }).await {
            Ok(events) => break events,
            Err(ClientError::Unreachable { .. }) => tokio::time::sleep(RETRY).await,
            Err(error) => return Err(error.into()),
        }
    };
    loop {
        let Some(notify) = events.next().await? else {
            return Err(Failure::failed("the daemon ended"));
        };
        if notify.state != Some(State::Running) {
            continue;
        }
        let status = client.call(GetStatus { peers: false }).await?;
        let Some(first) = status.tailscale_ips.first() else {
            continue;
        };
        while status.tun && !is_ours(*first) {
            tokio::time::sleep(RETRY).await;
        }
        return Ok(());
    }
}

/// Whether an interface of this machine has the address.
fn is_ours(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}
