//! The description of this machine for the coordination server and the peers.

use warren_control_types::Hostinfo;

use crate::localapi::VERSION;
use crate::localapi::prefs::Prefs;

/// The machine, and what the user wants others to know. `has_interface`: whether the
/// tunnel is an interface of the operating system. `ssh_host_keys`: the public keys of the
/// SSH server, while it is on.
pub fn describe(prefs: &Prefs, has_interface: bool, ssh_host_keys: &[String]) -> Hostinfo {
    let system = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let machine = text(system.machine());
    let release = release();
    let mut routes = prefs.advertise_routes.clone();
    routes.sort();
    routes.dedup();
    let mut tags = prefs.advertise_tags.clone();
    tags.sort();
    Hostinfo {
        ipn_version: format!("{VERSION}-warren"),
        app: "warren".to_owned(),
        os: "linux".to_owned(),
        os_version: text(system.release()),
        distro: release("ID"),
        distro_version: release("VERSION_ID"),
        distro_code_name: release("VERSION_CODENAME"),
        hostname: hostname(prefs, &text(system.nodename())),
        go_arch: match machine.as_str() {
            "x86_64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            other => other.to_owned(),
        },
        machine,
        shields_up: prefs.shields_up,
        ssh_host_keys: ssh_host_keys.to_vec(),
        peer_relay: prefs.relay_server_port.is_some(),
        no_logs_no_support: true,
        routable_ips: routes,
        request_tags: tags,
        userspace: Some(!has_interface),
        userspace_router: Some(!has_interface),
        ..Hostinfo::default()
    }
}

/// The name to be known by: the user's choice, or the first label of the
/// machine's.
fn hostname(prefs: &Prefs, machine: &str) -> String {
    if prefs.hostname.is_empty() {
        machine.split('.').next().unwrap_or(machine).to_owned()
    } else {
        prefs.hostname.clone()
    }
}

/// Looks up fields of `/etc/os-release`; what is not there is empty.
fn release() -> impl Fn(&str) -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    move |field| {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        let mut values = lines
            .filter(|(name, _)| *name == field)
            .map(|(_, value)| value);
        values
            .next()
            .unwrap_or_default()
            .trim_matches('"')
            .to_owned()
    }
}
