//! The status of the daemon, in the shape that the official client has.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;
use warren_control_types::{
    DerpMap, Hostinfo, Netmap, Node, NodeId, RegionId, UserId, UserProfile,
};
use warren_node_core::{Engine, PeerReport};
use warren_node_types::{Destination, PathAddr};

use crate::localapi::VERSION;
use crate::localapi::go_json::GoTime;
use crate::localapi::notify::{EngineStatus, LivePeer, NetworkMap, State};
use crate::localapi::types::{ExitNodeStatus, PeerStatus, Status, TailnetStatus};

/// Time without traffic after which a peer is not active any more.
const ACTIVE: Duration = Duration::from_secs(120);

/// The facts of a status that do not come from the engine.
pub struct StatusContext<'a> {
    /// The state of the daemon.
    pub state: State,
    /// The address at which a person logs in.
    pub auth_url: &'a str,
    /// Whether the node is logged in.
    pub have_node_key: bool,
    /// The list of problems.
    pub health: Vec<String>,
    /// Whether the tunnel has an interface in the operating system.
    pub has_interface: bool,
    /// The description of this machine, where there is no netmap that has it.
    pub hostinfo: Hostinfo,
    /// The time, since the UNIX epoch.
    pub wall: Duration,
}

/// The status of everything, or without peers.
pub fn status(
    engine: &Engine,
    context: &StatusContext<'_>,
    reports: &[PeerReport],
    peers: bool,
) -> Status {
    let netmap = engine.netmap();
    let own = netmap.self_node.as_ref();
    let mut status = Status {
        version: VERSION.to_owned(),
        tun: context.has_interface,
        backend_state: context.state.as_str().to_owned(),
        have_node_key: context.have_node_key,
        auth_url: context.auth_url.to_owned(),
        health: context.health.clone(),
        ..Status::default()
    };
    let Some(own) = own.filter(|_| context.have_node_key) else {
        status
            .self_status
            .host_name
            .clone_from(&context.hostinfo.hostname);
        status.self_status.os.clone_from(&context.hostinfo.os);
        return status;
    };
    status.tailscale_ips = addresses(own);
    status.self_status = own_status(engine, context, own);
    let suffix = magic_dns_suffix(own);
    status.current_tailnet = Some(TailnetStatus {
        name: netmap.domain.clone(),
        magic_dns_suffix: suffix.clone(),
        magic_dns_enabled: netmap.dns_config.proxied,
    });
    status.magic_dns_suffix = suffix;
    status.cert_domains = netmap.dns_config.cert_domains.clone();
    status.extra_records = netmap.dns_config.extra_records.clone();
    add_user(&mut status.user, netmap, own.user);
    if !peers {
        return status;
    }
    for report in reports {
        let Some(node) = netmap.peers.get(&report.node) else {
            continue;
        };
        let peer = peer_status(engine, context, node, report);
        add_user(&mut status.user, netmap, node.user);
        if peer.exit_node {
            status.exit_node_status = Some(ExitNodeStatus {
                id: peer.id.clone(),
                online: peer.online,
                tailscale_ips: node.addresses.clone(),
            });
        }
        status.peer.insert(node.key, peer);
    }
    // Peers whose key has ended have no place in the engine, but are shown.
    let engaged: Vec<NodeId> = reports.iter().map(|report| report.node).collect();
    for node in netmap
        .peers
        .values()
        .filter(|node| !engaged.contains(&node.id))
    {
        let mut peer = from_node(engine, node);
        peer.expired |= node.expired;
        add_user(&mut status.user, netmap, node.user);
        status.peer.insert(node.key, peer);
    }
    status
}

/// The netmap as far as local programs get to see it; `None` before the first one.
pub fn network_map(engine: &Engine, cached: bool) -> Option<NetworkMap> {
    let netmap = engine.netmap();
    let own = netmap.self_node.as_ref()?;
    Some(NetworkMap {
        cached,
        self_node: Some(own.clone()),
        all_caps: own.cap_map.keys().cloned().collect(),
        node_key: engine.node_key(),
        machine_key: own.machine,
        peers: netmap.peers.values().cloned().collect(),
        dns: netmap.dns_config.clone(),
        packet_filter_rules: netmap.filters.values().flatten().cloned().collect(),
        ssh_policy: netmap.ssh_policy.clone(),
        collect_services: netmap.collect_services.unwrap_or_default(),
        derp_map: Some(netmap.derp_map.clone()),
        display_messages: netmap.display_messages.clone(),
        tka_enabled: netmap.tka_info.as_ref().is_some_and(|info| !info.disabled),
        domain: netmap.domain.clone(),
        domain_audit_log_id: netmap.domain_data_plane_audit_log_id.clone(),
        user_profiles: netmap.user_profiles.clone(),
    })
}

/// The traffic with peers that have a live session.
pub fn engine_status(
    engine: &Engine,
    reports: &[PeerReport],
    live_derps: usize,
    wall: Duration,
) -> EngineStatus {
    let count = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let mut status = EngineStatus {
        live_derps: i64::try_from(live_derps).unwrap_or(i64::MAX),
        ..EngineStatus::default()
    };
    for report in reports {
        let (rx, tx) = (report.traffic.rx_bytes, report.traffic.tx_bytes);
        status.r_bytes = status.r_bytes.saturating_add(count(rx));
        status.w_bytes = status.w_bytes.saturating_add(count(tx));
        let known = engine.netmap().peers.contains_key(&report.node);
        if !report.has_session || !known {
            continue;
        }
        let handshake = report.last_handshake.and_then(|ago| wall.checked_sub(ago));
        status.num_live += 1;
        status.live_peers.insert(
            report.key,
            LivePeer {
                tx_bytes: count(tx),
                rx_bytes: count(rx),
                // A moment that is counted back from now differs by a fraction each time.
                last_handshake: handshake
                    .map(GoTime::from_unix)
                    .unwrap_or_default()
                    .rounded(),
                node_key: report.key,
            },
        );
    }
    status
}

/// The code of a region, or its number where it has none.
pub fn region_code(map: &DerpMap, region: RegionId) -> String {
    let code = map
        .regions
        .get(&region)
        .map(|region| region.region_code.clone());
    code.filter(|code| !code.is_empty())
        .unwrap_or_else(|| region.0.to_string())
}

/// The part of the node's full name behind its own name.
pub fn magic_dns_suffix(own: &Node) -> String {
    let rest = own
        .name
        .split_once('.')
        .map(|(_, rest)| rest)
        .unwrap_or_default();
    rest.trim_end_matches('.').to_owned()
}

fn add_user(users: &mut BTreeMap<UserId, UserProfile>, netmap: &Netmap, user: UserId) {
    if let Some(profile) = netmap.user_profiles.get(&user) {
        users.entry(user).or_insert_with(|| profile.clone());
    }
}

fn addresses(node: &Node) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = node.addresses.iter().map(|prefix| prefix.addr()).collect();
    addresses.sort();
    addresses
}

fn own_status(engine: &Engine, context: &StatusContext<'_>, own: &Node) -> PeerStatus {
    let mut status = from_node(engine, own);
    let report = engine.control_report();
    status.addrs = report
        .endpoints
        .iter()
        .map(|(address, _)| address.to_string())
        .collect();
    let home = report
        .net_info
        .as_ref()
        .and_then(|info| info.preferred_derp);
    if let Some(home) = home {
        status.relay = region_code(&engine.netmap().derp_map, home);
    }
    status.online = context.state != State::Stopped;
    let end = own.key_expiry.map(|end| end.as_second());
    let end = end.map(|end| u64::try_from(end).unwrap_or(0));
    status.expired |= end.is_some_and(|end| end <= context.wall.as_secs());
    // Our node is now; the moment is of interest for peers only.
    status.last_seen = GoTime::default();
    status
}

fn from_node(engine: &Engine, node: &Node) -> PeerStatus {
    let derp_map = &engine.netmap().derp_map;
    let hostinfo = node.hostinfo.as_ref();
    PeerStatus {
        id: node.stable_id.0.clone(),
        node_id: node.id.0,
        public_key: node.key,
        host_name: hostinfo
            .map(|info| info.hostname.clone())
            .unwrap_or_default(),
        dns_name: node.name.clone(),
        os: hostinfo.map(|info| info.os.clone()).unwrap_or_default(),
        user_id: node.user,
        alt_sharer_user_id: node.sharer.unwrap_or_default(),
        tailscale_ips: addresses(node),
        allowed_ips: node.allowed_ips().to_vec(),
        tags: node.tags.clone(),
        primary_routes: node.primary_routes.clone(),
        addrs: node.endpoints.iter().map(ToString::to_string).collect(),
        relay: node
            .home_region()
            .map(|home| region_code(derp_map, home))
            .unwrap_or_default(),
        created: GoTime(node.created),
        // Of a peer that is connected, it would be the moment of its connection.
        last_seen: GoTime(node.last_seen.filter(|_| node.online != Some(true))),
        online: node.online.unwrap_or_default(),
        exit_node_option: node
            .allowed_ips()
            .iter()
            .any(|prefix| prefix.prefix_len() == 0),
        cap_map: node
            .cap_map
            .iter()
            .map(|(name, values)| (name.clone(), Value::from(values.clone())))
            .collect(),
        ssh_host_keys: hostinfo
            .map(|info| info.ssh_host_keys.clone())
            .unwrap_or_default(),
        in_network_map: true,
        expired: node.expired,
        key_expiry: node.key_expiry.map(|expiry| GoTime(Some(expiry)).rounded()),
        ..PeerStatus::default()
    }
}

fn peer_status(
    engine: &Engine,
    context: &StatusContext<'_>,
    node: &Node,
    report: &PeerReport,
) -> PeerStatus {
    let mut peer = from_node(engine, node);
    // A packet that waits for its session is as good as a sign of life.
    let last = [report.last_sent, report.last_received]
        .into_iter()
        .flatten()
        .min();
    peer.active = last.is_some_and(|ago| ago < ACTIVE);
    let traffic = report.traffic;
    peer.rx_bytes = i64::try_from(traffic.rx_bytes).unwrap_or(i64::MAX);
    peer.tx_bytes = i64::try_from(traffic.tx_bytes).unwrap_or(i64::MAX);
    match report.destination {
        Destination::One(PathAddr::Udp(address)) => peer.cur_addr = address.to_string(),
        Destination::One(path @ PathAddr::PeerRelay { .. }) => peer.peer_relay = path.to_string(),
        Destination::One(PathAddr::Derp(_)) | Destination::Both(..) | Destination::None => {}
    }
    let ago = |ago: Option<Duration>| {
        ago.and_then(|ago| context.wall.checked_sub(ago))
            .map(GoTime::from_unix)
            .unwrap_or_default()
    };
    peer.last_write = ago(report.last_sent);
    peer.last_handshake = ago(report.last_handshake);
    peer.in_magic_sock = true;
    peer.in_engine = report.last_handshake.is_some();
    peer.exit_node = engine.prefs().exit_node.as_ref() == Some(&node.stable_id);
    peer
}
