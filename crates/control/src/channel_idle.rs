//! When a control channel has to end because it is not used.
//!
//! After the Noise handshake the client has [`FIRST_REQUEST`] for the start of
//! HTTP/2 and its first request. From then on a channel may be idle for [`IDLE`]
//! if its machine has no node with a valid key: then no request is open, not even one that waits
//! for approval. Channels of nodes may be idle as long as they answer pings.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// The time for the start of HTTP/2 and the first request, from the Noise
/// handshake on. Clients open a channel because they have a request.
pub const FIRST_REQUEST: Duration = Duration::from_secs(15);
/// How long a channel may be idle whose machine has no node with a valid key.
pub const IDLE: Duration = Duration::from_secs(60);

/// Why a channel ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unused {
    /// The client did not ask for anything.
    #[error("no request came within {} s", FIRST_REQUEST.as_secs())]
    NoRequest,
    /// The machine has no node with a valid key, and no request open.
    #[error("its machine has no valid node and waited for nothing")]
    Idle,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    begun: u64,
    open: u32,
}

/// The requests of one channel.
#[derive(Debug, Clone, Default)]
pub struct OpenRequests(watch::Sender<Count>);

/// A request whose answer is not complete yet.
#[derive(Debug)]
pub struct OpenRequest(watch::Sender<Count>);

impl OpenRequests {
    /// Counts a request until the result is dropped.
    pub fn begin(&self) -> OpenRequest {
        self.0.send_modify(|count| {
            count.begun += 1;
            count.open += 1;
        });
        OpenRequest(self.0.clone())
    }

    /// Completes when the channel has been unused for too long. `has_valid_node`
    /// says whether the machine has a node with a valid key at that moment.
    pub async fn unused(&self, has_valid_node: impl Fn() -> bool) -> Unused {
        let mut count = self.0.subscribe();
        let first = count.wait_for(|count| count.begun > 0);
        if timeout(FIRST_REQUEST, first).await.is_err() {
            return Unused::NoRequest;
        }
        loop {
            // Waiting fails only without a sender, and `self` is one.
            let begun = match count.wait_for(|count| count.open == 0).await {
                Ok(count) => count.begun,
                Err(_) => return Unused::Idle,
            };
            let next = count.wait_for(|count| count.begun != begun);
            if timeout(IDLE, next).await.is_err() && !has_valid_node() {
                return Unused::Idle;
            }
        }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.send_modify(|count| count.open -= 1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_channel_without_a_request_ends() {
        let start = Instant::now();
        let requests = OpenRequests::default();
        assert_eq!(requests.unused(|| true).await, Unused::NoRequest);
        assert_eq!(start.elapsed().as_secs(), FIRST_REQUEST.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_request_keeps_the_channel() {
        let requests = OpenRequests::default();
        let waiting = requests.begin();
        let unused = requests.unused(|| false);
        tokio::pin!(unused);
        assert!(timeout(10 * IDLE, &mut unused).await.is_err());
        let start = Instant::now();
        drop(waiting);
        assert_eq!(unused.await, Unused::Idle);
        assert_eq!(start.elapsed().as_secs(), IDLE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn each_request_begins_a_new_minute() {
        let start = Instant::now();
        let requests = OpenRequests::default();
        drop(requests.begin());
        let again = async {
            sleep(IDLE / 2).await;
            drop(requests.begin());
            std::future::pending::<()>().await;
        };
        tokio::select! {
            unused = requests.unused(|| false) => assert_eq!(unused, Unused::Idle),
            () = again => {}
        }
        assert_eq!(start.elapsed().as_secs(), (IDLE + IDLE / 2).as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn the_channel_of_a_node_may_be_idle() {
        let requests = OpenRequests::default();
        drop(requests.begin());
        assert!(timeout(10 * IDLE, requests.unused(|| true)).await.is_err());
    }
}
