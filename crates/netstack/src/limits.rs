//! Limits of a netstack, and the memory that connections get.

use std::time::Duration;

/// Limits of a [`Netstack`](crate::Netstack). The default is for a node with many
/// clients; the memory is used only as far as data waits in it.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at the same time, opened from either side.
    pub connections: usize,
    /// Incoming connections of one source address at the same time.
    pub connections_per_source: usize,
    /// SYNs that wait for the application. Above it the oldest is dropped.
    pub half_open: usize,
    /// SYNs of one source address that wait. Above it new ones are dropped.
    pub half_open_per_source: usize,
    /// The buffers that every connection gets: bytes in each direction.
    pub least_buffer: usize,
    /// The largest buffer: bytes in each direction.
    pub largest_buffer: usize,
    /// Bytes for all buffers beyond [`least_buffer`](Self::least_buffer). A connection
    /// gets up to 1/32 of what is left when it opens.
    pub pool_bytes: usize,
    /// UDP flows at the same time. Above it the one that was idle longest ends.
    pub flows: usize,
    /// Incoming flows of one source address at the same time.
    pub flows_per_source: usize,
    /// Datagrams of one flow that wait to be read.
    pub datagrams_per_flow: usize,
    /// Bytes of all datagrams that wait to be read.
    pub datagram_bytes: usize,
    /// The time for a connection to open, and for the application to accept one.
    pub opening: Duration,
    /// The time without a sign of the other side while data waits for its
    /// acknowledgment.
    pub unanswered: Duration,
    /// The time without a sign of the other side while nothing is sent.
    pub idle: Duration,
    /// The interval of keep-alive probes on an idle connection.
    pub keep_alive: Duration,
    /// The time without a sign of the other side on a connection that this side has
    /// closed for writing.
    pub half_closed: Duration,
    /// The same, when the application has released the connection.
    pub released: Duration,
    /// The time in which a connection that the application has released must end.
    pub released_total: Duration,
    /// The time for which a closed pair of addresses answers with its last ACK.
    pub time_wait: Duration,
    /// Closed pairs of addresses that are remembered. Above it the oldest is dropped.
    pub time_waits: usize,
    /// The time without a datagram after which a flow ends.
    pub flow_idle: Duration,
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Limits {
    /// The limits of a node.
    pub const DEFAULT: Self = Self {
        connections: 8192,
        connections_per_source: 2048,
        half_open: 1024,
        half_open_per_source: 128,
        least_buffer: 16 * 1024,
        largest_buffer: 2 * 1024 * 1024,
        pool_bytes: 256 * 1024 * 1024,
        flows: 4096,
        flows_per_source: 1024,
        datagrams_per_flow: 128,
        datagram_bytes: 32 * 1024 * 1024,
        opening: Duration::from_secs(30),
        unanswered: minutes(15),
        idle: minutes(120),
        keep_alive: minutes(15),
        half_closed: minutes(10),
        released: minutes(1),
        released_total: minutes(5),
        time_wait: Duration::from_secs(10),
        time_waits: 4096,
        flow_idle: minutes(2),
    };
}

/// The part of a connection's share that comes from the pool.
const SHARE: usize = 32;

/// The memory for buffers.
#[derive(Debug)]
pub(crate) struct Pool {
    left: usize,
    least: usize,
    largest: usize,
}

/// The size of a connection's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Bytes in each direction.
    pub(crate) buffer: usize,
    from_pool: usize,
}

impl Pool {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            left: limits.pool_bytes,
            least: limits.least_buffer.max(1),
            largest: limits.largest_buffer.max(limits.least_buffer),
        }
    }

    pub(crate) fn take(&mut self) -> Grant {
        let most = 2 * (self.largest - self.least);
        let extra = (self.left / SHARE).min(most) / 2;
        self.left -= 2 * extra;
        Grant {
            buffer: self.least + extra,
            from_pool: 2 * extra,
        }
    }

    pub(crate) fn give_back(&mut self, grant: Grant) {
        self.left += grant.from_pool;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_never_add_up_to_more_than_the_pool_and_the_least_of_each() {
        let limits = Limits::default();
        let mut pool = Pool::new(&limits);
        let grants: Vec<Grant> = (0..limits.connections).map(|_| pool.take()).collect();
        let total: usize = grants.iter().map(|grant| 2 * grant.buffer).sum();
        assert!(total <= limits.pool_bytes + 2 * limits.least_buffer * limits.connections);
        assert_eq!(grants[0].buffer, limits.largest_buffer);
        assert!(
            grants
                .iter()
                .all(|grant| grant.buffer >= limits.least_buffer)
        );
        for grant in grants {
            pool.give_back(grant);
        }
        assert_eq!(pool.left, limits.pool_bytes);
    }
}
