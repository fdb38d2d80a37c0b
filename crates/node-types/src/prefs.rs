//! The preferences of the user, and changes to some of them.
//!
//! One table (the `preferences!` call) names every preference once. From it come
//! [`Prefs`], the whole set, and [`MaskedPrefs`], a change of those that are
//! `Some`. Their JSON forms are in the crate `warren-local-api`, their flags in
//! `warren-cli`.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde_json::Value;

/// The handling of the firewall (Linux).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetfilterMode {
    /// Touch nothing.
    Off,
    /// Make our chains, but do not jump to them.
    NoDivert,
    /// Make our chains and use them.
    On,
}

impl Default for NetfilterMode {
    /// The meaning of a change without a value, as for every number: zero. The
    /// default of the preference is [`NetfilterMode::On`].
    fn default() -> Self {
        Self::Off
    }
}

/// Whether to look for updates, and whether to install them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoUpdate {
    /// Look for them.
    pub check: bool,
    /// Install them; `None`: as the tailnet decides.
    pub apply: Option<bool>,
}

impl Default for AutoUpdate {
    fn default() -> Self {
        Self {
            check: true,
            apply: None,
        }
    }
}

/// Whether this node offers to be an app connector.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AppConnector {
    /// Offer it.
    pub advertise: bool,
}

macro_rules! preferences {
    ($( $(#[$doc:meta])* $field:ident : $ty:ty, )*) => {
        /// The preferences of a node.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Prefs {
            $( $(#[$doc])* pub $field: $ty, )*
            /// Looking for updates and installing them.
            pub auto_update: AutoUpdate,
        }

        /// A change: every preference that is `Some` is set to that value.
        #[derive(Debug, Clone, PartialEq, Default)]
        pub struct MaskedPrefs {
            $( $(#[$doc])* pub $field: Option<$ty>, )*
            /// Whether to look for updates.
            pub auto_update_check: Option<bool>,
            /// Whether to install updates.
            pub auto_update_apply: Option<Option<bool>>,
        }

        impl MaskedPrefs {
            /// The change that takes every preference from `prefs`.
            pub fn all(prefs: &Prefs) -> Self {
                Self {
                    $( $field: Some(prefs.$field.clone()), )*
                    auto_update_check: Some(prefs.auto_update.check),
                    auto_update_apply: Some(prefs.auto_update.apply),
                }
            }

            /// Applies the change.
            pub fn apply_to(&self, prefs: &mut Prefs) {
                $( if let Some(value) = &self.$field { prefs.$field = value.clone(); } )*
                if let Some(check) = self.auto_update_check { prefs.auto_update.check = check; }
                if let Some(apply) = self.auto_update_apply { prefs.auto_update.apply = apply; }
            }
        }
    };
}

preferences! {
    /// Address of the coordination server; empty: none chosen yet.
    control_url: String,
    /// Accept subnet routes of other nodes.
    route_all: bool,
    /// Stable id of the exit node; empty: none.
    exit_node_id: String,
    /// Address of the exit node, until the daemon turned it into an id.
    exit_node_ip: Option<IpAddr>,
    /// `any`: let the daemon choose the exit node; else empty.
    auto_exit_node: String,
    /// The exit node used last; not settable by clients.
    internal_exit_node_prior: String,
    /// Reach the local network directly while an exit node is in use.
    exit_node_allow_lan_access: bool,
    /// Use the DNS configuration of the tailnet.
    corp_dns: bool,
    /// Run the SSH server.
    run_ssh: bool,
    /// Run the web interface.
    run_web_client: bool,
    /// Be connected.
    want_running: bool,
    /// The user logged out on purpose.
    logged_out: bool,
    /// Refuse incoming connections.
    shields_up: bool,
    /// Tags to ask for at login.
    advertise_tags: Vec<String>,
    /// Name to use instead of the machine's; empty: the machine's.
    hostname: String,
    /// Kept for compatibility, without effect.
    notepad_urls: bool,
    /// Stay connected when the user logs off (Windows).
    force_daemon: bool,
    /// Kept for compatibility, without effect.
    egg: bool,
    /// Routes to offer; both default routes: offer to be an exit node.
    advertise_routes: Vec<IpNet>,
    /// Services (`svc:name`) to offer.
    advertise_services: Vec<String>,
    /// Talk to the coordination server; `None` counts as true.
    sync: Option<bool>,
    /// Do not hide subnet-route traffic behind this node's address.
    no_snat: bool,
    /// Do not filter forwarded traffic statefully.
    no_stateful_filtering: Option<bool>,
    /// The handling of the firewall.
    netfilter_mode: NetfilterMode,
    /// The user that may change settings without being root.
    operator_user: String,
    /// Name of this profile.
    profile_name: String,
    /// App connector.
    app_connector: AppConnector,
    /// Report device posture.
    posture_checking: bool,
    /// `iptables`, `nftables`, or empty for whatever fits.
    netfilter_kind: String,
    /// Let the coordination server edit everything.
    remote_config: bool,
    /// Shared folders.
    drive_shares: Vec<Value>,
    /// Port of the peer relay server; 0: any; `None`: off.
    relay_server_port: Option<u16>,
    /// Addresses under which the peer relay server can be reached.
    relay_server_static_endpoints: Vec<SocketAddr>,
    /// Take no part in searches for a path through a NAT with random ports.
    no_port_search: bool,
}

impl Default for Prefs {
    fn default() -> Self {
        Self {
            control_url: String::new(),
            route_all: false,
            exit_node_id: String::new(),
            exit_node_ip: None,
            auto_exit_node: String::new(),
            internal_exit_node_prior: String::new(),
            exit_node_allow_lan_access: false,
            corp_dns: true,
            run_ssh: false,
            run_web_client: false,
            want_running: false,
            logged_out: false,
            shields_up: false,
            advertise_tags: Vec::new(),
            hostname: String::new(),
            notepad_urls: false,
            force_daemon: false,
            egg: false,
            advertise_routes: Vec::new(),
            advertise_services: Vec::new(),
            sync: None,
            no_snat: false,
            no_stateful_filtering: Some(true),
            netfilter_mode: NetfilterMode::On,
            operator_user: String::new(),
            profile_name: String::new(),
            app_connector: AppConnector::default(),
            posture_checking: false,
            netfilter_kind: String::new(),
            remote_config: false,
            drive_shares: Vec::new(),
            relay_server_port: None,
            relay_server_static_endpoints: Vec::new(),
            no_port_search: false,
            auto_update: AutoUpdate::default(),
        }
    }
}

impl Prefs {
    /// Whether these preferences ask for something this build cannot do.
    ///
    /// The text says which one and what to do; it is shown to the user as is.
    pub fn check(&self) -> Result<(), String> {
        let missing = [
            (self.run_web_client, "the web interface", "--webclient"),
            (
                self.auto_update.apply == Some(true),
                "updating itself",
                "--auto-update",
            ),
            (
                self.remote_config,
                "being set up by the server",
                "--remote-config",
            ),
            (
                !self.advertise_services.is_empty(),
                "serving a service",
                "AdvertiseServices",
            ),
            (
                !self.drive_shares.is_empty(),
                "sharing folders",
                "DriveShares",
            ),
        ];
        if let Some((_, feature, setting)) = missing.iter().find(|(wanted, ..)| *wanted) {
            return Err(format!(
                "{feature} is not in this version yet; leave out {setting}"
            ));
        }
        if !self.auto_exit_node.is_empty() {
            return Err(
                "choosing an exit node automatically (auto:any) is not in this version yet; \
                        name one with --exit-node"
                    .to_owned(),
            );
        }
        if let (true, Some(ip)) = (self.exit_node_id.is_empty(), self.exit_node_ip) {
            return Err(format!(
                "no known node with the address {ip} offers to be an exit node; \
                 connect without one, look at: warren status, then: warren set --exit-node NAME"
            ));
        }
        if !self.hostname.is_empty() {
            check_hostname(&self.hostname)?;
        }
        Ok(())
    }

    /// Whether both default routes are offered.
    pub fn advertises_exit_node(&self) -> bool {
        let (v4, v6) = exit_routes();
        self.advertise_routes.contains(&v4) && self.advertise_routes.contains(&v6)
    }
}

/// The two default routes that make an exit node.
pub fn exit_routes() -> (IpNet, IpNet) {
    use std::net::{Ipv4Addr, Ipv6Addr};
    (
        IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
        IpNet::V6(ipnet::Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
    )
}

/// Checks a host name: letters, digits and hyphens in labels of at most 63,
/// at most 253 in all.
pub fn check_hostname(name: &str) -> Result<(), String> {
    let bad = |why: &str| Err(format!("host name {name:?} is not usable in DNS: {why}"));
    if name.len() > 253 {
        return bad("it is longer than 253 characters");
    }
    for label in name.split('.') {
        if label.is_empty() {
            return bad("it has an empty part");
        }
        if label.len() > 63 {
            return bad("a part is longer than 63 characters");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return bad("a part starts or ends with a hyphen");
        }
        if !label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            return bad("only letters, digits and hyphens are allowed");
        }
    }
    Ok(())
}
