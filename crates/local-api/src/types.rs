//! The answers of the local interface, as JSON objects.
//!
//! Names, order and the choice between `null`, empty and left out follow the
//! official client, because scripts read these objects. Every type can also be
//! read back: the command line uses the same types on its side.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use warren_control_types::{ClientVersion, DnsRecord, Node, UserId, UserProfile};
use warren_keys::NodePublic;

use crate::address::{CanonicalIp, CanonicalSocket};
use crate::go_json::{GoTime, is_default, is_false, null_is_default, nullable};

/// Everything there is to see about a node and its peers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Status {
    /// Long version of the daemon.
    pub version: String,
    /// Whether there is a network interface (else: userspace only).
    #[serde(rename = "TUN")]
    pub tun: bool,
    /// Name of the [`super::notify::State`].
    pub backend_state: String,
    /// Whether there is a node key, which means that a login exists.
    #[serde(skip_serializing_if = "is_false")]
    pub have_node_key: bool,
    /// The address for the login that the daemon waits for; else empty.
    #[serde(rename = "AuthURL")]
    pub auth_url: String,
    /// Our addresses in the tailnet, IPv4 first.
    #[serde(rename = "TailscaleIPs", with = "nullable")]
    pub tailscale_ips: Vec<IpAddr>,
    /// This node: without a login it has no more than a host name and a system. It is
    /// an object in every state, because the official command line does not check.
    #[serde(rename = "Self", deserialize_with = "null_is_default")]
    pub self_status: PeerStatus,
    /// The exit node in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_node_status: Option<ExitNodeStatus>,
    /// Problems, one sentence each; always present.
    pub health: Vec<String>,
    /// Name of the tailnet in DNS, without dots around it.
    #[serde(rename = "MagicDNSSuffix")]
    pub magic_dns_suffix: String,
    /// The tailnet, once known.
    pub current_tailnet: Option<TailnetStatus>,
    /// Names for which we may get certificates.
    #[serde(with = "nullable")]
    pub cert_domains: Vec<String>,
    /// Additional DNS records of the tailnet.
    #[serde(with = "nullable")]
    pub extra_records: Vec<DnsRecord>,
    /// The peers by node key.
    #[serde(with = "nullable")]
    pub peer: BTreeMap<NodePublic, PeerStatus>,
    /// The users that own us and the peers.
    #[serde(with = "nullable")]
    pub user: BTreeMap<UserId, UserProfile>,
    /// The statement of the coordination server about versions.
    pub client_version: Option<ClientVersion>,
}

impl Status {
    /// The stable id of the peer with this address, if it offers to be an exit
    /// node.
    pub fn exit_node_at(&self, ip: IpAddr) -> Option<&str> {
        let mut peers = self.peer.values();
        let found = peers.find(|peer| peer.exit_node_option && peer.tailscale_ips.contains(&ip));
        found.map(|peer| peer.id.as_str())
    }
}

/// The exit node in use.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ExitNodeStatus {
    /// Its stable id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Whether it is connected to the coordination server.
    pub online: bool,
    /// Its addresses, as prefixes.
    #[serde(rename = "TailscaleIPs", with = "nullable")]
    pub tailscale_ips: Vec<IpNet>,
}

/// The tailnet that we belong to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TailnetStatus {
    /// Its name.
    pub name: String,
    /// Its name in DNS, without dots around it.
    #[serde(rename = "MagicDNSSuffix")]
    pub magic_dns_suffix: String,
    /// Whether names resolve.
    #[serde(rename = "MagicDNSEnabled")]
    pub magic_dns_enabled: bool,
}

/// One node, ourselves or a peer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PeerStatus {
    /// Stable id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Numeric id.
    #[serde(rename = "NodeID")]
    pub node_id: i64,
    /// Node key.
    pub public_key: NodePublic,
    /// The name the machine gives itself; neither unique nor fit for DNS.
    pub host_name: String,
    /// The name in DNS, with a dot at the end; empty: none.
    #[serde(rename = "DNSName")]
    pub dns_name: String,
    /// Operating system.
    #[serde(rename = "OS")]
    pub os: String,
    /// Owner.
    #[serde(rename = "UserID")]
    pub user_id: UserId,
    /// The user who shared it with us, if not the owner.
    #[serde(rename = "AltSharerUserID", skip_serializing_if = "is_default")]
    pub alt_sharer_user_id: UserId,
    /// Addresses in the tailnet.
    #[serde(rename = "TailscaleIPs", with = "nullable")]
    pub tailscale_ips: Vec<IpAddr>,
    /// The addresses that may come from it and are sent to it.
    #[serde(
        rename = "AllowedIPs",
        skip_serializing_if = "Vec::is_empty",
        with = "nullable"
    )]
    pub allowed_ips: Vec<IpNet>,
    /// Tags, which replace the owner.
    #[serde(skip_serializing_if = "Vec::is_empty", with = "nullable")]
    pub tags: Vec<String>,
    /// The subnet routes that it currently serves.
    #[serde(skip_serializing_if = "Vec::is_empty", with = "nullable")]
    pub primary_routes: Vec<IpNet>,
    /// Addresses at which it may be reached outside the tailnet.
    #[serde(with = "nullable")]
    pub addrs: Vec<String>,
    /// The address of the direct path in use; empty: not direct.
    pub cur_addr: String,
    /// Code of its home relay.
    pub relay: String,
    /// The peer relay in use, `ip:port:vni:N`; empty: none.
    pub peer_relay: String,
    /// Bytes received from it.
    pub rx_bytes: i64,
    /// Bytes sent to it.
    pub tx_bytes: i64,
    /// When it was registered.
    pub created: GoTime,
    /// When a packet was last sent to it.
    pub last_write: GoTime,
    /// When it was last connected to the coordination server; never: it is now.
    pub last_seen: GoTime,
    /// When the last WireGuard handshake was finished.
    pub last_handshake: GoTime,
    /// Whether it is connected to the coordination server.
    pub online: bool,
    /// Whether it is the exit node in use.
    pub exit_node: bool,
    /// Whether it could be an exit node.
    pub exit_node_option: bool,
    /// Whether packets went to it or came from it recently.
    pub active: bool,
    /// The addresses of its peer interface.
    #[serde(rename = "PeerAPIURL", with = "nullable")]
    pub peer_api_url: Vec<String>,
    /// Whether files can be sent to it (0: unknown).
    pub taildrop_target: i64,
    /// The reason why no file can be sent to it.
    pub no_file_sharing_reason: String,
    /// Capabilities, old form.
    #[serde(skip_serializing_if = "Vec::is_empty", with = "nullable")]
    pub capabilities: Vec<String>,
    /// Capabilities with their values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", with = "nullable")]
    pub cap_map: BTreeMap<String, Value>,
    /// SSH host keys.
    #[serde(
        rename = "sshHostKeys",
        skip_serializing_if = "Vec::is_empty",
        with = "nullable"
    )]
    pub ssh_host_keys: Vec<String>,
    /// It belongs to a user of another tailnet to whom one of our nodes is shared.
    #[serde(skip_serializing_if = "is_false")]
    pub sharee_node: bool,
    /// It is in the netmap.
    pub in_network_map: bool,
    /// The path finder knows it.
    pub in_magic_sock: bool,
    /// WireGuard knows it.
    pub in_engine: bool,
    /// Its key has expired.
    #[serde(skip_serializing_if = "is_false")]
    pub expired: bool,
    /// When its key expires; `None`: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<GoTime>,
    /// Its geographical location.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Value>,
}

/// The ways to ping a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PingType {
    /// By the path finder, over whatever path packets take.
    #[default]
    Disco,
    /// Through the tunnel, answered by the other daemon.
    Tsmp,
    /// Through the tunnel, answered by the other operating system.
    Icmp,
    /// By a request to the other node's peer interface.
    PeerApi,
}

impl PingType {
    /// The name on the local interface.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disco => "disco",
            Self::Tsmp => "TSMP",
            Self::Icmp => "ICMP",
            Self::PeerApi => "peerapi",
        }
    }
}

impl fmt::Display for PingType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PingType {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Disco, Self::Tsmp, Self::Icmp, Self::PeerApi]
            .into_iter()
            .find(|kind| kind.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| {
                format!("unknown ping type {text:?}; it is disco, TSMP, ICMP or peerapi")
            })
    }
}

/// The answer to one ping.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PingResult {
    /// The address asked for.
    #[serde(rename = "IP")]
    pub ip: String,
    /// Address of the node that serves it (another one for a subnet route).
    #[serde(rename = "NodeIP")]
    pub node_ip: String,
    /// First part of its DNS name, or its host name.
    pub node_name: String,
    /// The error; empty: none.
    pub err: String,
    /// Time there and back, in seconds.
    pub latency_seconds: f64,
    /// The direct path it came over, `ip:port`; empty: not direct.
    pub endpoint: String,
    /// The peer relay it came over, `ip:port:vni:N`.
    pub peer_relay: String,
    /// The relay region it came over; 0: none.
    #[serde(rename = "DERPRegionID")]
    pub derp_region_id: u16,
    /// Code of that region.
    #[serde(rename = "DERPRegionCode")]
    pub derp_region_code: String,
    /// Port of the peer interface, for TSMP.
    #[serde(rename = "PeerAPIPort", skip_serializing_if = "is_default")]
    pub peer_api_port: u16,
    /// Address of the peer interface that answered.
    #[serde(rename = "PeerAPIURL", skip_serializing_if = "String::is_empty")]
    pub peer_api_url: String,
    /// The address is our own; nothing was sent.
    #[serde(rename = "IsLocalIP", skip_serializing_if = "is_false")]
    pub is_local_ip: bool,
}

/// The subject of a `whois` request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhoIsTarget {
    /// The node with this address, or with a route to it.
    Ip(CanonicalIp),
    /// The node at the other end of a connection from here.
    Socket(CanonicalSocket),
    /// The node with this node key.
    Key(NodePublic),
}

impl fmt::Display for WhoIsTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Socket(address) => address.fmt(f),
            Self::Key(key) => key.fmt(f),
        }
    }
}

impl FromStr for WhoIsTarget {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with(NodePublic::PREFIX) {
            return text
                .parse()
                .map(Self::Key)
                .map_err(|error| format!("{text:?}: {error}"));
        }
        if let Ok(ip) = text.parse() {
            return Ok(Self::Ip(ip));
        }
        text.parse()
            .map(Self::Socket)
            .map_err(|_| format!("{text:?} is not a valid address, address:port or node key"))
    }
}

/// The node with an address, and its user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct WhoIsResponse {
    /// The node.
    pub node: Node,
    /// Its owner.
    pub user_profile: UserProfile,
    /// Capabilities that the policy grants it on this node.
    #[serde(default, with = "nullable")]
    pub cap_map: BTreeMap<String, Value>,
}

/// A stored login.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct LoginProfile {
    /// Its id, four hexadecimal digits; empty: not stored yet.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// The network it belongs to.
    pub network_profile: NetworkProfile,
    /// The key of its preferences in the state file.
    pub key: String,
    /// The user.
    pub user_profile: UserProfile,
    /// Stable id of our node.
    #[serde(rename = "NodeID")]
    pub node_id: String,
    /// The user of this machine it belongs to (Windows).
    #[serde(rename = "LocalUserID")]
    pub local_user_id: String,
    /// Its coordination server.
    #[serde(rename = "ControlURL")]
    pub control_url: String,
    /// When it was made.
    #[serde(skip_serializing_if = "GoTime::is_never")]
    pub created: GoTime,
}

/// The network of a stored login.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetworkProfile {
    /// DNS suffix.
    #[serde(rename = "MagicDNSName")]
    pub magic_dns_name: String,
    /// Domain of the tailnet.
    pub domain_name: String,
    /// The name to display.
    pub display_name: String,
}

/// The network around this machine, as measured.
///
/// Latencies are in nanoseconds, by region id.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetcheckReport {
    /// The time at which the measurement ended.
    pub now: GoTime,
    /// A STUN server answered over UDP.
    #[serde(rename = "UDP")]
    pub udp: bool,
    /// One answered over IPv6.
    #[serde(rename = "IPv6")]
    pub ipv6: bool,
    /// One answered over IPv4.
    #[serde(rename = "IPv4")]
    pub ipv4: bool,
    /// An IPv6 packet could be sent.
    #[serde(rename = "IPv6CanSend")]
    pub ipv6_can_send: bool,
    /// An IPv4 packet could be sent.
    #[serde(rename = "IPv4CanSend")]
    pub ipv4_can_send: bool,
    /// The operating system has IPv6.
    #[serde(rename = "OSHasIPv6")]
    pub os_has_ipv6: bool,
    /// An ICMP answer came back, where UDP did not.
    #[serde(rename = "ICMPv4")]
    pub icmpv4: bool,
    /// The NAT gives each destination another port ("hard NAT").
    #[serde(rename = "MappingVariesByDestIP")]
    pub mapping_varies_by_dest_ip: Option<bool>,
    /// The router speaks UPnP.
    #[serde(rename = "UPnP")]
    pub upnp: Option<bool>,
    /// The router speaks NAT-PMP.
    #[serde(rename = "PMP")]
    pub pmp: Option<bool>,
    /// The router speaks PCP.
    #[serde(rename = "PCP")]
    pub pcp: Option<bool>,
    /// The nearest relay region; 0: none.
    #[serde(rename = "PreferredDERP")]
    pub preferred_derp: u16,
    /// Best latency per region.
    #[serde(with = "nullable")]
    pub region_latency: BTreeMap<u16, u64>,
    /// Best latency per region over IPv4.
    #[serde(rename = "RegionV4Latency")]
    pub region_v4_latency: BTreeMap<u16, u64>,
    /// Best latency per region over IPv6.
    #[serde(rename = "RegionV6Latency")]
    pub region_v6_latency: BTreeMap<u16, u64>,
    /// Our address as seen from outside, IPv4; empty: unknown.
    #[serde(rename = "GlobalV4")]
    pub global_v4: String,
    /// Our address as seen from outside, IPv6; empty: unknown.
    #[serde(rename = "GlobalV6")]
    pub global_v6: String,
    /// A captive portal is between us and the Internet.
    pub captive_portal: Option<bool>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn keys(value: &Value) -> Vec<&str> {
        value
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect()
    }

    #[test]
    fn an_empty_status_has_the_documented_keys() {
        let status = serde_json::to_value(Status::default()).unwrap();
        let mut expected = vec![
            "Version",
            "TUN",
            "BackendState",
            "AuthURL",
            "TailscaleIPs",
            "Self",
            "Health",
            "MagicDNSSuffix",
            "CurrentTailnet",
            "CertDomains",
            "ExtraRecords",
            "Peer",
            "User",
            "ClientVersion",
        ];
        expected.sort_unstable();
        let mut found = keys(&status);
        found.sort_unstable();
        assert_eq!(found, expected);
        assert!(status["Self"].is_object());
        for null in [
            "TailscaleIPs",
            "CurrentTailnet",
            "CertDomains",
            "ExtraRecords",
            "Peer",
            "User",
            "ClientVersion",
        ] {
            assert!(status[null].is_null(), "{null} must be null when empty");
        }
        assert_eq!(status["Health"], serde_json::json!([]));
    }

    #[test]
    fn an_empty_peer_has_the_documented_keys() {
        let peer = serde_json::to_value(PeerStatus::default()).unwrap();
        let mut expected = vec![
            "ID",
            "NodeID",
            "PublicKey",
            "HostName",
            "DNSName",
            "OS",
            "UserID",
            "TailscaleIPs",
            "Addrs",
            "CurAddr",
            "Relay",
            "PeerRelay",
            "RxBytes",
            "TxBytes",
            "Created",
            "LastWrite",
            "LastSeen",
            "LastHandshake",
            "Online",
            "ExitNode",
            "ExitNodeOption",
            "Active",
            "PeerAPIURL",
            "TaildropTarget",
            "NoFileSharingReason",
            "InNetworkMap",
            "InMagicSock",
            "InEngine",
        ];
        expected.sort_unstable();
        let mut found = keys(&peer);
        found.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(peer["LastSeen"], "0001-01-01T00:00:00Z");
        assert_eq!(peer["UserID"], 0);
        assert!(
            peer["PublicKey"]
                .as_str()
                .unwrap()
                .starts_with("nodekey:0000")
        );
    }

    #[test]
    fn a_full_peer_adds_the_optional_keys() {
        let peer = PeerStatus {
            alt_sharer_user_id: UserId(7),
            allowed_ips: vec!["100.64.0.1/32".parse().unwrap()],
            tags: vec!["tag:a".into()],
            primary_routes: vec!["10.0.0.0/8".parse().unwrap()],
            capabilities: vec!["c".into()],
            cap_map: [("c".to_owned(), Value::Null)].into(),
            ssh_host_keys: vec!["ssh-ed25519 AAAA".into()],
            sharee_node: true,
            expired: true,
            key_expiry: Some(GoTime::default()),
            location: Some(serde_json::json!({})),
            ..PeerStatus::default()
        };
        let value = serde_json::to_value(&peer).unwrap();
        for key in [
            "AltSharerUserID",
            "AllowedIPs",
            "Tags",
            "PrimaryRoutes",
            "Capabilities",
            "CapMap",
            "sshHostKeys",
            "ShareeNode",
            "Expired",
            "KeyExpiry",
            "Location",
        ] {
            assert!(value.get(key).is_some(), "{key} missing");
        }
        assert_eq!(serde_json::from_value::<PeerStatus>(value).unwrap(), peer);
    }

    #[test]
    fn peers_and_users_are_keyed_by_text() {
        let key = NodePublic::from_bytes([7; 32]);
        let status = Status {
            peer: [(
                key,
                PeerStatus {
                    public_key: key,
                    ..PeerStatus::default()
                },
            )]
            .into(),
            user: [(UserId(42), UserProfile::default())].into(),
            ..Status::default()
        };
        let value = serde_json::to_value(&status).unwrap();
        assert!(value["Peer"].get(key.to_string()).is_some());
        assert!(value["User"].get("42").is_some());
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
    }

    #[test]
    fn ping_and_netcheck_keep_their_names() {
        let ping = serde_json::to_value(PingResult::default()).unwrap();
        let mut found = keys(&ping);
        found.sort_unstable();
        assert_eq!(
            found,
            [
                "DERPRegionCode",
                "DERPRegionID",
                "Endpoint",
                "Err",
                "IP",
                "LatencySeconds",
                "NodeIP",
                "NodeName",
                "PeerRelay"
            ]
        );
        let report = serde_json::to_value(NetcheckReport::default()).unwrap();
        for key in [
            "Now",
            "UDP",
            "IPv4",
            "IPv6",
            "MappingVariesByDestIP",
            "UPnP",
            "PMP",
            "PCP",
            "PreferredDERP",
            "RegionLatency",
            "RegionV4Latency",
            "RegionV6Latency",
            "GlobalV4",
            "GlobalV6",
            "CaptivePortal",
        ] {
            assert!(report.get(key).is_some(), "{key} missing");
        }
    }

    #[test]
    fn whois_takes_addresses_and_keys() {
        assert_eq!(
            "100.64.0.1".parse(),
            Ok(WhoIsTarget::Ip("100.64.0.1".parse().unwrap()))
        );
        assert_eq!(
            "100.64.0.1:22".parse(),
            Ok(WhoIsTarget::Socket("100.64.0.1:22".parse().unwrap()))
        );
        assert!("nodekey:xyz".parse::<WhoIsTarget>().is_err());
        assert!("".parse::<WhoIsTarget>().is_err());
    }
}
