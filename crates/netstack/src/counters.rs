//! The counters of a netstack.

/// Counts since the start of a [`Netstack`](crate::Netstack).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that could not be read, or whose checksum is wrong.
    pub malformed: u64,
    /// Fragments, and packets with IPv6 extension headers.
    pub unsupported: u64,
    /// SYNs that were dropped because too many waited.
    pub half_open_dropped: u64,
    /// Connections that were not opened because too many were open.
    pub connections_refused: u64,
    /// Connections that ended because the other side was silent for too long.
    pub connections_timed_out: u64,
    /// Connections that the other side opened and the application accepted.
    pub accepted: u64,
    /// Connections that the application opened.
    pub connected: u64,
    /// Resets that were sent to segments without a connection.
    pub resets: u64,
    /// UDP flows that were not opened, or ended early, because too many were open.
    pub flows_evicted: u64,
    /// Datagrams that were dropped because too many waited to be read.
    pub datagrams_dropped: u64,
    /// Answers that were dropped because too many waited to be sent.
    pub answers_dropped: u64,
}
