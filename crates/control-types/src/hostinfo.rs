//! A node's description of its machine and of the network around it.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{RegionId, StableNodeId, json};

/// A machine, as it describes itself. No field can be relied on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Hostinfo {
    /// Version of the software.
    #[serde(
        rename = "IPNVersion",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub ipn_version: String,
    /// Log id of the user interface.
    #[serde(
        rename = "FrontendLogID",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub frontend_log_id: String,
    /// Log id of the daemon.
    #[serde(
        rename = "BackendLogID",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub backend_log_id: String,
    /// `linux`, `windows`, `macOS`, `iOS`, `android` ...
    #[serde(
        rename = "OS",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub os: String,
    /// Version of the kernel or system.
    #[serde(
        rename = "OSVersion",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    /// Whether it runs in a container.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub container: Option<bool>,
    /// Short code of the hosting environment, as `k8s`.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub env: String,
    /// Distribution, as `debian`.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub distro: String,
    /// Its version.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub distro_version: String,
    /// Its code name.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub distro_code_name: String,
    /// Name of the program that embeds a node.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub app: String,
    /// Whether a desktop was seen.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub desktop: Option<bool>,
    /// How it was packaged.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub package: String,
    /// Model of a phone, and the like.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub device_model: String,
    /// Token to wake a phone.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub push_device_token: String,
    /// Name of the machine, raw; the server makes it safe for DNS.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub hostname: String,
    /// Whether the user blocks incoming connections.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub shields_up: bool,
    /// A node that exists because it was shared in.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub sharee_node: bool,
    /// No logs are sent, no support can be given.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub no_logs_no_support: bool,
    /// The node lets the server change its settings.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub remote_config: bool,
    /// The node wants to be reachable through Funnel.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub wire_ingress: bool,
    /// The node has Funnel switched on.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub ingress_enabled: bool,
    /// The server may start an update.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub allows_update: bool,
    /// Processor, as printed by `uname -m`.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub machine: String,
    /// Processor, in Go's name.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub go_arch: String,
    /// Variant of it.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub go_arch_var: String,
    /// Version of the toolchain.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub go_version: String,
    /// Routes the node offers, sorted. An exit node offers both default routes.
    #[serde(
        rename = "RoutableIPs",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub routable_ips: Vec<IpNet>,
    /// Tags the node claims; the policy decides.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub request_tags: Vec<String>,
    /// Hardware addresses for wake-on-LAN.
    #[serde(
        rename = "WoLMACs",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub wol_macs: Vec<String>,
    /// Ports that listen, and where peers reach the node's own API.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub services: Vec<Service>,
    /// The node's findings about its network; absent is "not yet known".
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub net_info: Option<NetInfo>,
    /// Public SSH host keys; present when the SSH server is on.
    #[serde(
        rename = "sshHostKeys",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub ssh_host_keys: Vec<String>,
    /// Hosting provider.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub cloud: String,
    /// Whether packets are handled without a TUN device.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub userspace: Option<bool>,
    /// Whether subnet routing is handled that way.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub userspace_router: Option<bool>,
    /// Whether the node is an app connector.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub app_connector: Option<bool>,
    /// Digest over the services the node hosts.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub services_hash: String,
    /// Whether the node relays for peers.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub peer_relay: bool,
    /// The exit node it uses.
    #[serde(
        rename = "ExitNodeID",
        with = "json::zeroable",
        skip_serializing_if = "Option::is_none"
    )]
    pub exit_node_id: Option<StableNodeId>,
    /// Where it is.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub location: Option<Location>,
    /// Its security chip.
    #[serde(
        rename = "TPM",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub tpm: Option<TpmInfo>,
    /// Whether its state is encrypted on disk.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub state_encrypted: Option<bool>,
}

/// Something that listens on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Service {
    /// `tcp`, `udp`, `peerapi4`, `peerapi6` or `peerapi-dns-proxy`.
    #[serde(deserialize_with = "json::or_zero")]
    pub proto: String,
    /// The port; 1 for `peerapi-dns-proxy`.
    #[serde(deserialize_with = "json::or_zero")]
    pub port: u16,
    /// Name of the program.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub description: String,
}

/// Where a node is, for the choice among exit nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Location {
    /// Name of the country.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub country: String,
    /// Its two letters.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub country_code: String,
    /// Name of the city.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub city: String,
    /// Its short code.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub city_code: String,
    /// Degrees north.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub latitude: f64,
    /// Degrees east.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub longitude: f64,
    /// Higher is preferred.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub priority: i64,
}

/// A security chip.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TpmInfo {
    /// Four letters of the maker.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub manufacturer: String,
    /// Name of the maker.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub vendor: String,
    /// Number of the model.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub model: i64,
    /// Version of the firmware.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub firmware_version: u64,
    /// Revision of the specification.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub spec_revision: i64,
    /// Family, as `2.0`.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub family_indicator: String,
}

/// The findings of a node about its network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetInfo {
    /// The NAT maps to another port for another destination ("hard" NAT).
    #[serde(
        rename = "MappingVariesByDestIP",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub mapping_varies_by_dest_ip: Option<bool>,
    /// IPv6 reaches the internet.
    #[serde(
        rename = "WorkingIPv6",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub working_ipv6: Option<bool>,
    /// The system has IPv6 at all.
    #[serde(
        rename = "OSHasIPv6",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub os_has_ipv6: Option<bool>,
    /// UDP reaches the internet.
    #[serde(
        rename = "WorkingUDP",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub working_udp: Option<bool>,
    /// ICMP over IPv4 reaches the internet.
    #[serde(
        rename = "WorkingICMPv4",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub working_icmpv4: Option<bool>,
    /// A port mapping is held.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub have_port_map: bool,
    /// UPnP answers.
    #[serde(
        rename = "UPnP",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub upnp: Option<bool>,
    /// NAT-PMP answers.
    #[serde(
        rename = "PMP",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub pmp: Option<bool>,
    /// PCP answers.
    #[serde(
        rename = "PCP",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub pcp: Option<bool>,
    /// The home relay region; absent is "unknown yet", not "none".
    #[serde(
        rename = "PreferredDERP",
        with = "json::zeroable",
        skip_serializing_if = "Option::is_none"
    )]
    pub preferred_derp: Option<RegionId>,
    /// `wired`, `wifi` or `mobile`.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub link_type: String,
    /// Seconds to relays, by `<region>-v4` or `<region>-v6`.
    #[serde(
        rename = "DERPLatency",
        deserialize_with = "json::map_without_nulls",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub derp_latency: BTreeMap<String, f64>,
    /// How the firewall is driven, as `nft-forced`.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub firewall_mode: String,
}
