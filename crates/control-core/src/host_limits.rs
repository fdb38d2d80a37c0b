//! Limits on what a machine says about itself.
//!
//! A description is stored with the node and sent to all its peers with each
//! change, so its size is bounded where it comes in: lists and texts are cut to
//! more than a real machine has. The pattern in [`bounded`] names every field, so
//! a new field does not compile until it has a limit.

use warren_control_types::{Hostinfo, Location, NetInfo, Service, StableNodeId, TpmInfo};

/// The longest text, in bytes.
const MAX_TEXT: usize = 256;
/// The longest protocol, program, hardware address or name of a latency, in bytes.
const MAX_SHORT_TEXT: usize = 64;
/// The longest public SSH host key, in bytes.
const MAX_SSH_KEY: usize = 1024;
/// Offered routes.
const MAX_ROUTES: usize = 1024;
/// Claimed tags. A registration with more is refused, because a cut list would
/// give the node fewer tags than it asked for.
pub(crate) const MAX_TAGS: usize = 64;
/// Hardware addresses.
const MAX_MACS: usize = 64;
/// Listening ports.
const MAX_SERVICES: usize = 64;
/// Public SSH host keys.
const MAX_SSH_KEYS: usize = 16;
/// Latencies to relays: one for each region and family.
const MAX_LATENCIES: usize = 256;

/// The description, cut to the limits of this module.
pub(crate) fn bounded(host: &Hostinfo) -> Hostinfo {
    let Hostinfo {
        ipn_version,
        frontend_log_id,
        backend_log_id,
        os,
        os_version,
        container,
        env,
        distro,
        distro_version,
        distro_code_name,
        app,
        desktop,
        package,
        device_model,
        push_device_token,
        hostname,
        shields_up,
        sharee_node,
        no_logs_no_support,
        remote_config,
        wire_ingress,
        ingress_enabled,
        allows_update,
        machine,
        go_arch,
        go_arch_var,
        go_version,
        routable_ips,
        request_tags,
        wol_macs,
        services,
        net_info,
        ssh_host_keys,
        cloud,
        userspace,
        userspace_router,
        app_connector,
        services_hash,
        peer_relay,
        exit_node_id,
        location,
        tpm,
        state_encrypted,
    } = host;
    Hostinfo {
        ipn_version: text(ipn_version),
        frontend_log_id: text(frontend_log_id),
        backend_log_id: text(backend_log_id),
        os: text(os),
        os_version: text(os_version),
        container: *container,
        env: text(env),
        distro: text(distro),
        distro_version: text(distro_version),
        distro_code_name: text(distro_code_name),
        app: text(app),
        desktop: *desktop,
        package: text(package),
        device_model: text(device_model),
        push_device_token: text(push_device_token),
        hostname: text(hostname),
        shields_up: *shields_up,
        sharee_node: *sharee_node,
        no_logs_no_support: *no_logs_no_support,
        remote_config: *remote_config,
        wire_ingress: *wire_ingress,
        ingress_enabled: *ingress_enabled,
        allows_update: *allows_update,
        machine: text(machine),
        go_arch: text(go_arch),
        go_arch_var: text(go_arch_var),
        go_version: text(go_version),
        routable_ips: list(routable_ips, MAX_ROUTES, |route| *route),
        request_tags: list(request_tags, MAX_TAGS, |tag| text(tag)),
        wol_macs: list(wol_macs, MAX_MACS, |mac| cut(mac, MAX_SHORT_TEXT)),
        services: list(services, MAX_SERVICES, service),
        net_info: net_info.as_ref().map(bounded_net_info),
        ssh_host_keys: list(ssh_host_keys, MAX_SSH_KEYS, |key| cut(key, MAX_SSH_KEY)),
        cloud: text(cloud),
        userspace: *userspace,
        userspace_router: *userspace_router,
        app_connector: *app_connector,
        services_hash: text(services_hash),
        peer_relay: *peer_relay,
        exit_node_id: exit_node_id.as_ref().map(|id| StableNodeId(text(&id.0))),
        location: location.as_ref().map(bounded_location),
        tpm: tpm.as_ref().map(bounded_tpm),
        state_encrypted: *state_encrypted,
    }
}

fn bounded_net_info(info: &NetInfo) -> NetInfo {
    let latencies = info.derp_latency.iter().take(MAX_LATENCIES);
    NetInfo {
        link_type: text(&info.link_type),
        firewall_mode: text(&info.firewall_mode),
        derp_latency: latencies
            .map(|(name, seconds)| (cut(name, MAX_SHORT_TEXT), *seconds))
            .collect(),
        mapping_varies_by_dest_ip: info.mapping_varies_by_dest_ip,
        working_ipv6: info.working_ipv6,
        os_has_ipv6: info.os_has_ipv6,
        working_udp: info.working_udp,
        working_icmpv4: info.working_icmpv4,
        have_port_map: info.have_port_map,
        upnp: info.upnp,
        pmp: info.pmp,
        pcp: info.pcp,
        preferred_derp: info.preferred_derp,
    }
}

fn bounded_location(location: &Location) -> Location {
    Location {
        country: text(&location.country),
        country_code: text(&location.country_code),
        city: text(&location.city),
        city_code: text(&location.city_code),
        latitude: location.latitude,
        longitude: location.longitude,
        priority: location.priority,
    }
}

fn bounded_tpm(tpm: &TpmInfo) -> TpmInfo {
    TpmInfo {
        manufacturer: text(&tpm.manufacturer),
        vendor: text(&tpm.vendor),
        model: tpm.model,
        firmware_version: tpm.firmware_version,
        spec_revision: tpm.spec_revision,
        family_indicator: text(&tpm.family_indicator),
    }
}

fn service(service: &Service) -> Service {
    Service {
        proto: cut(&service.proto, MAX_SHORT_TEXT),
        port: service.port,
        description: cut(&service.description, MAX_SHORT_TEXT),
    }
}

fn text(text: &str) -> String {
    cut(text, MAX_TEXT)
}

fn cut(text: &str, max: usize) -> String {
    text[..text.floor_char_boundary(max)].to_owned()
}

fn list<T>(items: &[T], max: usize, bounded: impl Fn(&T) -> T) -> Vec<T> {
    items.iter().take(max).map(bounded).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    /// The most that a bounded description takes as JSON, where a byte of text may
    /// be escaped as six.
    const MAX_JSON: usize = 512 * 1024;

    /// A description with texts and lists of these sizes.
    fn description(chars: &str, len: usize, items: usize) -> Hostinfo {
        let text = chars.repeat(len);
        let texts = vec![text.clone(); items];
        // All texts of the JSON at once, also those of fields to come.
        let mut json = serde_json::to_value(Hostinfo {
            routable_ips: vec!["2001:db8:1234:5678::/64".parse().unwrap(); items],
            request_tags: texts.clone(),
            wol_macs: texts.clone(),
            ssh_host_keys: texts,
            services: vec![
                Service {
                    proto: text.clone(),
                    port: 443,
                    description: text.clone(),
                };
                items
            ],
            net_info: Some(NetInfo {
                derp_latency: (0..items).map(|n| (format!("{n}{text}"), 0.1)).collect(),
                ..NetInfo::default()
            }),
            ..Hostinfo::default()
        })
        .unwrap();
        for field in [
            "IPNVersion",
            "FrontendLogID",
            "BackendLogID",
            "OS",
            "OSVersion",
            "Env",
            "Distro",
            "DistroVersion",
            "DistroCodeName",
            "App",
            "Package",
            "DeviceModel",
            "PushDeviceToken",
            "Hostname",
            "Machine",
            "GoArch",
            "GoArchVar",
            "GoVersion",
            "Cloud",
            "ServicesHash",
            "ExitNodeID",
        ] {
            json[field] = text.clone().into();
        }
        serde_json::from_value(json).unwrap()
    }

    proptest! {
        #[test]
        fn bounded_description_has_a_largest_size_and_is_left_alone_after(
            chars in prop_oneof![Just("a"), Just("\u{1}"), Just("\u{e9}"), Just("\u{1f310}")],
            len in 0_usize..2_000,
            items in 0_usize..3_000,
        ) {
            // Not both at their largest: the test should not take gigabytes.
            let items = items.min(200_000 / (len + 1));
            let host = description(chars, len, items);
            let once = bounded(&host);
            prop_assert!(serde_json::to_vec(&once).unwrap().len() <= MAX_JSON);
            prop_assert_eq!(bounded(&once), once.clone());
            if len * chars.len() + 4 <= MAX_SHORT_TEXT && items <= MAX_SSH_KEYS {
                prop_assert_eq!(once, host);
            }
        }
    }
}
