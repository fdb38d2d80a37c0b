//! The inputs and outputs of a [`Node`](super::Node).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use warren_control_client::{Input as ControlInput, Request as ControlRequest};
use warren_control_types::{
    Changes, DerpRegion, Hostinfo, Netmap, NodeId, RegionId, RegisterRequest, StableNodeId,
    UserProfile,
};
use warren_dataplane::View;
use warren_keys::{DiscoPublic, NodePublic, NodeSecret};
use warren_lock::LockSecret;
use warren_node_types::{Destination, Family, PathAddr, SearchSocket, SocketOrder, TailnetRanges};
use warren_paths::{LocalAddresses, PortMapReport};
use warren_tunnel::{Aead, PeerIndex, Source};

use warren_wire::disco::RelayEndpoint;

use super::tailnet_lock::{KeptLock, LockAnswer, LockRequest, LockRequestId, StoredChain};
use crate::engine::RelayRequest;
use crate::{ClockPair, NodePrefs};

/// The login of a node, as it is kept on disk.
#[derive(Clone)]
pub struct Account {
    /// The node's identity to peers.
    pub node_key: NodeSecret,
    /// The key that it replaced, if it did.
    pub old_node_key: Option<NodeSecret>,
    /// The user who logged in.
    pub user_profile: UserProfile,
    /// The stable id of the node; empty before it is known.
    pub node_id: StableNodeId,
}

/// Everything about logins that must survive a restart.
#[derive(Clone, Default)]
pub struct StoredLogin {
    /// The login in force.
    pub account: Option<Account>,
    /// The key of a new login that the server has not answered yet. The server
    /// may have accepted it although its answer was lost.
    pub candidate: Option<NodeSecret>,
    /// The node's own key for tailnet lock. It signs the node keys that replace a
    /// signed one. `None`: the node makes one.
    pub lock_key: Option<LockSecret>,
    /// The identities of locks that the user turned off on this machine only.
    pub refused_locks: Vec<String>,
    /// The tags whose nodes this node signs for tailnet lock without a person.
    pub autosign_tags: BTreeSet<String>,
}

/// The last netmap, as it is kept on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeptNetmap<'a> {
    /// The clocks at that time, where the server's is known.
    pub clock: Option<ClockPair>,
    /// The netmap.
    pub netmap: Cow<'a, Netmap>,
}

/// The settings of the user that the node acts on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeSettings {
    /// Take part in the network.
    pub want_running: bool,
    /// The address of the coordination server.
    pub server: String,
    /// The preferences that concern packets.
    pub packets: NodePrefs,
    /// This machine, without the measured network.
    pub hostinfo: Hostinfo,
}

/// The network around this machine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LocalNetwork {
    /// Sockets, and addresses of interfaces.
    pub addresses: LocalAddresses,
    /// The networks that this machine is connected to, with its addresses in
    /// them.
    pub networks: Vec<IpNet>,
}

/// The outcome of the settings of the operating system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostReport {
    /// The addresses of the settings that this is the report of.
    pub addresses: Vec<IpAddr>,
    /// Settings that could not be made, and hints for the user.
    pub problems: Vec<String>,
}

/// The kind of a change of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkChange {
    /// Some address came or went.
    Minor,
    /// The way out is another one.
    Major,
    /// The machine slept: connections are likely to be broken.
    Slept,
}

/// The number of a connection to a relay. It is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// The number of a session with the coordination server. It is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// The number of a request to write the login to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SaveId(pub u64);

/// The ways to ping a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PingKind {
    /// With a path-finding message of this size in bytes; 0 for the smallest.
    Disco(usize),
    /// With a packet through the tunnel.
    Tsmp,
}

/// Something that happened to the node.
pub enum NodeInput {
    // ---- from the network and the data plane ----
    /// A datagram that is not tunnel data.
    Udp {
        /// The sender.
        from: SocketAddr,
        /// The datagram.
        packet: Vec<u8>,
    },
    /// A datagram at a socket of a port search.
    SearchUdp {
        /// The socket.
        socket: SearchSocket,
        /// The sender.
        from: SocketAddr,
        /// The datagram.
        packet: Vec<u8>,
    },
    /// A packet from a relay that is not tunnel data.
    Relay {
        /// The relay.
        region: RegionId,
        /// The sender.
        from: NodePublic,
        /// The packet.
        packet: Vec<u8>,
    },
    /// Payload for a relay to which no connection is open.
    RelayData {
        /// The relay.
        region: RegionId,
        /// The receiver.
        to: NodePublic,
        /// The packet.
        packet: Vec<u8>,
    },
    /// Packets wait for a session with this peer.
    NeedSession(PeerIndex),
    /// The first packet of a session authenticated.
    SessionConfirmed(u32),
    /// Authenticated traffic of the peer came from there.
    ReceivedFrom(PeerIndex, Source),
    /// A peer sent its disco key inside the tunnel.
    DiscoAdvertised(PeerIndex, DiscoPublic),
    /// A peer answered a ping through the tunnel with this content.
    TsmpPong([u8; 8]),

    // ---- relays ----
    /// The connection is open and the login sent: packets may follow.
    RelayOpened {
        /// The relay.
        region: RegionId,
        /// The connection.
        link: LinkId,
        /// The local address that it leaves from, if known.
        local: Option<IpAddr>,
    },
    /// The relay accepted the login.
    RelayUp(RegionId, LinkId),
    /// The connection ended, or was not made.
    RelayDown(RegionId, LinkId),
    /// The relay does not have that peer.
    RelayPeerGone {
        /// The relay.
        region: RegionId,
        /// The peer.
        peer: NodePublic,
    },
    /// The answer to [`NodeOutput::ProbeRelayHttps`].
    RelayLatency(RegionId, Duration),
    /// The answer to [`NodeOutput::ResolveHost`]; empty when nothing was found.
    Resolved(String, Vec<IpAddr>),
    /// The answer to [`NodeOutput::RelayEndpointRequested`].
    RelayEndpoint(RelayRequest, Box<RelayEndpoint>),
    /// The port mapper has something to report, after
    /// [`NodeOutput::WantPortMapping`].
    PortMap(PortMapReport),

    // ---- the coordination server ----
    /// The result of a request, or a message of the map stream.
    Control(SessionId, ControlInput),
    /// The answer to [`NodeOutput::LockRequest`], or why there is none.
    LockAnswer(LockRequestId, Result<Box<LockAnswer>, String>),
    /// The answer to [`NodeOutput::StoreLock`]: written, or the reason why not.
    LockStored(Result<(), String>),
    /// The answer to [`NodeOutput::SaveLogin`]: written, or the reason why not.
    LoginSaved(SaveId, Result<(), String>),

    // ---- this machine and its user ----
    /// The network around changed.
    Network(NetworkChange, Box<LocalNetwork>),
    /// The operating system was set up after [`NodeOutput::Host`].
    HostApplied(HostReport),
    /// The user changed settings.
    Settings(Box<NodeSettings>),
    /// The user wants the node to run with these settings.
    Start {
        /// The settings.
        settings: Box<NodeSettings>,
        /// Make a new login even if there is one.
        force_login: bool,
        /// A key that lets the node in.
        auth_key: Option<String>,
    },
    /// The user wants to log in, interactively unless a key came with a
    /// [`Start`](Self::Start) just before.
    LogIn,
    /// Give up the login, at the server and here.
    LogOut,
    /// Forget the login here only.
    ResetLogin,
    /// Turn tailnet lock off on this machine only.
    DisableLockHere,
    /// Sign nodes that have none but these tags without a person.
    Autosign(BTreeSet<String>),
    /// Use another stored login, or none, in the place of the one in force. The server
    /// of the old one is not notified. Both are on disk already.
    UseLogin {
        /// The settings that belong to it.
        settings: Box<NodeSettings>,
        /// The login.
        stored: Box<StoredLogin>,
        /// Its tailnet lock.
        lock: Box<KeptLock>,
    },
    /// Ping the peer with this address.
    Ping {
        /// A number of the caller's; a new one for each ping.
        id: u64,
        /// An address of the peer, or one that it routes to.
        address: IpAddr,
        /// The way to ping.
        kind: PingKind,
    },
    /// Measure the network around again.
    Remeasure,
    /// Look for paths again, as after a change of the network.
    FindPaths,
    /// The node ends.
    Stop,
}

/// Something for the runtime to do.
pub enum NodeOutput {
    // ---- to the network and the data plane ----
    /// Send a datagram from the node's UDP socket.
    SendUdp {
        /// The receiver.
        to: SocketAddr,
        /// The datagram.
        packet: Vec<u8>,
    },
    /// Do this with the sockets of a port search; report what arrives at them, but for those
    /// that are kept, with [`NodeInput::SearchUdp`].
    Sockets(SocketOrder),
    /// Send a packet through this connection, which is open.
    SendRelay {
        /// The relay.
        region: RegionId,
        /// The connection.
        link: LinkId,
        /// The receiver.
        to: NodePublic,
        /// The packet.
        packet: Vec<u8>,
    },
    /// The data plane should go on with this view.
    View(Arc<View>),
    /// Send an empty packet to the peer through its session.
    Keepalive(PeerIndex),
    /// Drop the packets that wait for the peer: it does not answer.
    DropStaged(PeerIndex),
    /// Send an IP packet of the node's own to the peer through its session.
    Inject {
        /// The peer.
        peer: PeerIndex,
        /// The packet.
        packet: Vec<u8>,
    },

    /// Packets for this peer take another path from now on. Nothing to do: the
    /// view has it too.
    Path {
        /// The peer.
        node: NodeId,
        /// The path.
        destination: Destination,
    },

    // ---- relays ----
    /// Connect to this relay, as [`Node::node_key`](super::Node::node_key), and
    /// answer with [`NodeInput::RelayOpened`] or [`NodeInput::RelayDown`].
    DialRelay {
        /// The relay.
        region: RegionId,
        /// The number of the new connection.
        link: LinkId,
        /// The hosts of the relay.
        definition: Box<DerpRegion>,
        /// Whether it is the home relay.
        is_home: bool,
    },
    /// Close this connection, or stop making it.
    CloseRelay(RegionId, LinkId),
    /// Send the relay whether it is the home relay now.
    NoteHome(RegionId, LinkId, bool),
    /// Measure the latency of a relay over HTTPS, because UDP does not get there.
    ProbeRelayHttps(RegionId),
    /// Find the addresses of a relay's host name, around the tunnel.
    ResolveHost(String),
    /// A peer that may use the relay server of this node asks for an endpoint. Answer
    /// with [`NodeInput::RelayEndpoint`], or not at all if there is no server.
    RelayEndpointRequested(RelayRequest),
    /// Keep a mapping at the router to this UDP port of the node, or give it up;
    /// report it with [`NodeInput::PortMap`]. After a change of the network the
    /// mapping is given up first.
    WantPortMapping {
        /// The family of the socket.
        family: Family,
        /// The local port; `None`: no mapping is needed.
        port: Option<u16>,
    },

    // ---- the coordination server ----
    /// Open a session with the server of the settings. It carries the requests
    /// with the same number.
    OpenSession(SessionId),
    /// End the session and everything that is under way in it.
    CloseSession(SessionId),
    /// Carry out this request.
    Control(SessionId, ControlRequest),
    /// Answer this HTTP request of the server with
    /// [`ControlInput::C2nAnswer`].
    C2n {
        /// The session.
        session: SessionId,
        /// The number of the request.
        id: u64,
        /// A whole HTTP/1.1 request.
        request: Vec<u8>,
    },
    /// Send this request, which gives up the login, outside of any session.
    Unregister(Box<RegisterRequest>),

    /// Send this request in the session and answer with [`NodeInput::LockAnswer`].
    LockRequest {
        /// The session.
        session: SessionId,
        /// The number of the request.
        id: LockRequestId,
        /// The request.
        request: Box<LockRequest>,
    },

    // ---- the disk ----
    /// Write the chain of tailnet lock to disk, or remove it, and answer with
    /// [`NodeInput::LockStored`]. The view that follows from it comes after this.
    StoreLock(Option<Box<StoredChain>>),
    /// Write [`Node::stored_login`](super::Node::stored_login) to disk now and
    /// answer with [`NodeInput::LoginSaved`].
    SaveLogin(SaveId),
    /// Write the netmap to disk.
    SaveNetmap,
    /// Remove the netmap from the disk.
    ForgetNetmap,
    /// Write this floor of handshake timestamps to disk, as time since the UNIX
    /// epoch.
    SaveClock(Duration),

    // ---- this machine and its user ----
    /// The operating system may have to be set up differently: see
    /// [`Node::host_config`](super::Node::host_config).
    Host,
    /// A ping ended.
    PingEnded {
        /// The number that came with the ping.
        id: u64,
        /// The result; `None` when no peer has the address.
        report: Option<PingReport>,
    },
    /// Something for listeners.
    Notice(Notice),
}

/// An event for programs that listen.
pub enum Notice {
    /// The state is another one.
    State(NodeState),
    /// A person must open this address.
    BrowseTo(String),
    /// The server accepted a login.
    LoginFinished,
    /// A request of the user failed.
    Error(String),
    /// The list of problems changed.
    Health,
    /// A node was signed by its tags, or not for this reason.
    SignedByTags(NodeId, Result<(), String>),
    /// These parts of the netmap changed.
    Netmap(Box<Changes>),
}

/// The state of a node, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// A login is needed.
    NeedsLogin,
    /// Logged in; an administrator must approve the machine.
    NeedsMachineAuth,
    /// Logged in, and stopped by the user.
    Stopped,
    /// On the way up.
    Starting,
    /// Part of the network.
    Running,
}

impl NodeState {
    /// Whether the node takes part in the network.
    pub fn is_engaged(self) -> bool {
        matches!(self, Self::Starting | Self::Running)
    }
}

/// The result of a ping.
#[derive(Debug, Clone, PartialEq)]
pub struct PingReport {
    /// The address that was asked for.
    pub asked: IpAddr,
    /// The peer's own address.
    pub node_ip: IpAddr,
    /// The peer's name; empty when the address is our own.
    pub node_name: String,
    /// The answer, or why there is none.
    pub outcome: Result<PingReply, PingFailure>,
}

/// A ping was answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PingReply {
    /// The time there and back.
    pub latency: Duration,
    /// The path; `None` for a ping through the tunnel.
    pub via: Option<PathAddr>,
}

/// A ping was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PingFailure {
    /// The address is our own.
    OwnAddress,
    /// Any other reason, as shown to the user.
    Failed(String),
}

/// The configuration of a node.
pub struct NodeConfig {
    /// The logins on disk.
    pub stored: StoredLogin,
    /// The tailnet lock on disk.
    pub lock: KeptLock,
    /// The floor of handshake timestamps on disk: time since the UNIX epoch.
    pub clock_floor: Duration,
    /// The settings of the user.
    pub settings: NodeSettings,
    /// The network around.
    pub network: LocalNetwork,
    /// The number of entries in the memory of flows; `None` for the usual.
    pub flow_slots: Option<usize>,
    /// The implementation of the cipher of the tunnel.
    pub aead: Aead,
    /// The address ranges of the tailnet.
    pub ranges: TailnetRanges,
    /// Whether the server is to remove the node when it is gone.
    pub ephemeral: bool,
}
