//! The bounds of the server.

use std::time::Duration;

/// Connections that have not logged in yet: in total, and of one peer.
pub const LOGGING_IN: usize = 128;
/// See [`LOGGING_IN`].
pub const LOGGING_IN_OF_PEER: usize = 16;
/// Logins about which the coordination server decides: in total, and of one peer.
pub const HELD: usize = 64;
/// See [`HELD`].
pub const HELD_OF_PEER: usize = 8;
/// Connections in total, and of one peer.
pub const CONNECTIONS: usize = 1024;
/// See [`CONNECTIONS`].
pub const CONNECTIONS_OF_PEER: usize = 128;
/// Time from the first byte to the login, without the time that the server decides in.
pub const LOGIN_PATIENCE: Duration = Duration::from_secs(60);
/// Time for the server to decide about a login.
pub const CHECK_PATIENCE: Duration = Duration::from_secs(30 * 60);
/// Channels of a connection: sessions, forwarded connections, agents.
pub const CHANNELS: usize = 256;
/// Sessions with a process, of a connection.
pub const SESSIONS: usize = 32;
/// Ports of this machine that lead to one client.
pub const FORWARDED_PORTS: usize = 32;
/// Bytes that a client may send into a channel before they are read.
pub const WINDOW: u32 = 2 * 1024 * 1024;
/// Bytes of a connection, and of all connections, that wait to be read. The channel that
/// exceeds it is closed.
pub const BYTES_OF_CONNECTION: usize = 32 * 1024 * 1024;
/// See [`BYTES_OF_CONNECTION`].
pub const BYTES: usize = 256 * 1024 * 1024;
/// Variables that a client may set for a session.
pub const VARIABLES: usize = 128;
/// Time for a destination to take a forwarded connection.
pub const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Time for a process to end after SIGHUP, before SIGKILL.
pub const HANGUP_PATIENCE: Duration = Duration::from_secs(2);
/// A client that is silent for so long, and does not answer then, is gone.
pub const KEEPALIVE: Duration = Duration::from_secs(60);
