//! The test internet: hosts, the routers in front of them, and a switch that
//! stands for everything in between.
//!
//! ```text
//!  alice 192.168.11.2 ── router 203.0.113.11 ──┐
//!                                              ├── internet (bridge) ── control 203.0.113.10
//!  bob   192.168.12.2 ── router 203.0.113.12 ──┘
//! ```
//!
//! Addresses are those reserved for documentation (RFC 5737, RFC 3849). IPv6
//! is on everywhere: hosts behind a router get a routed prefix and the
//! router's stateful firewall, unless the host asks for [`HostOptions::ipv4_only`].

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::namespace::Namespace;
use crate::nat::Place;

/// Something of the lab could not be set up; the text says what and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LabError(pub(crate) String);

impl LabError {
    /// An error with this text.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl From<std::io::Error> for LabError {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// Options of a host in addition to its place.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostOptions {
    /// Gives the host no IPv6 address.
    pub ipv4_only: bool,
}

/// A whole test network. Dropping it ends every program and removes
/// everything from the kernel.
pub struct Lab {
    internet: Namespace,
    folder: tempfile::TempDir,
    next: u8,
}

/// One machine of the lab.
#[derive(Clone)]
pub struct Host {
    inner: Arc<HostInner>,
}

struct HostInner {
    // Order matters: programs in `namespace` end before the routers go.
    namespace: Namespace,
    routers: Vec<Namespace>,
    place: Place,
    address: Ipv4Addr,
    address6: Option<Ipv6Addr>,
    outside: Ipv4Addr,
    folder: PathBuf,
}

impl Lab {
    /// Makes an internet without hosts.
    ///
    /// # Errors
    /// When namespaces are not permitted, or `ip` or `nft` are not installed.
    pub fn new() -> Result<Self, LabError> {
        for (tool, package) in [("ip", "iproute2"), ("nft", "nftables")] {
            if which(tool).is_none() {
                return Err(LabError::new(format!(
                    "the lab needs the program `{tool}`: install the package {package}"
                )));
            }
        }
        let folder = tempfile::Builder::new().prefix("warren-lab-").tempdir()?;
        let internet = namespace("internet", folder.path())?;
        // With an address of its own: a bridge that may choose takes the lowest
        // of its ports', so it changes as hosts are plugged in, and hosts that know the
        // old one lose their packets until the kernel asks again.
        ip(
            &internet,
            "link set lo up
             link add br0 address 02:00:cb:00:71:01 type bridge
             addr add 203.0.113.1/24 dev br0
             addr add 2001:db8::1/64 dev br0 nodad
             link set br0 up",
        )?;
        sysctl(
            &internet,
            &["net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1"],
        )?;
        Ok(Self {
            internet,
            folder,
            next: 10,
        })
    }

    /// Where the lab keeps state folders and logs while it runs.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Adds a host at `place`.
    ///
    /// # Errors
    /// When the kernel refuses an interface or a rule; the text names it.
    pub fn host(&mut self, name: &str, place: Place) -> Result<Host, LabError> {
        self.host_with(name, place, HostOptions::default())
    }

    /// Adds a host at `place` with `options`.
    ///
    /// # Errors
    /// As [`Lab::host`].
    pub fn host_with(
        &mut self,
        name: &str,
        place: Place,
        options: HostOptions,
    ) -> Result<Host, LabError> {
        let n = self.next;
        self.next = n
            .checked_add(1)
            .ok_or_else(|| LabError::new("the lab is full"))?;
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder)?;
        let host = namespace(name, self.folder.path())?;
        ip(&host, "link set lo up")?;
        let outside = Ipv4Addr::new(203, 0, 113, n);
        let mut routers = Vec::new();

        let (address, address6) = if place.has_router() {
            let router = namespace(&format!("{name}-router"), self.folder.path())?;
            ip(&router, "link set lo up")?;
            sysctl(
                &router,
                &["net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1"],
            )?;
            let address = Ipv4Addr::new(192, 168, n, 2);
            self.wire_lan(&router, &host, n, options)?;
            nft(&router, &place.router_rules(&address.to_string()))?;
            if place == Place::CarrierNat {
                let carrier = namespace(&format!("{name}-carrier"), self.folder.path())?;
                ip(&carrier, "link set lo up")?;
                sysctl(&carrier, &["net/ipv4/ip_forward=1"])?;
                veth(&carrier, "lan", &router, "wan")?;
                ip(
                    &carrier,
                    &format!("addr add 10.64.{n}.1/24 dev lan\nlink set lan up"),
                )?;
                ip(
                    &router,
                    &format!(
                        "addr add 10.64.{n}.2/24 dev wan\nlink set wan up\n\
                         route add default via 10.64.{n}.1"
                    ),
                )?;
                nft(&carrier, &place.router_rules(&format!("10.64.{n}.2")))?;
                self.plug(&carrier, "wan", n, false)?;
                routers.push(carrier);
            } else {
                self.plug(&router, "wan", n, !options.ipv4_only)?;
                if !options.ipv4_only {
                    ip(
                        &self.internet,
                        &format!("route add 2001:db8:{n:x}::/64 via 2001:db8::{n:x}"),
                    )?;
                }
            }
            routers.push(router);
            let routed6 = !options.ipv4_only && place != Place::CarrierNat;
            (
                address,
                routed6.then(|| Ipv6Addr::new(0x2001, 0xdb8, n.into(), 0, 0, 0, 0, 2)),
            )
        } else {
            self.plug(&host, "eth0", n, !options.ipv4_only)?;
            let address6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into());
            (outside, (!options.ipv4_only).then_some(address6))
        };
        if let Some(rules) = place.host_rules() {
            nft(&host, rules)?;
        }
        Ok(Host {
            inner: Arc::new(HostInner {
                namespace: host,
                routers,
                place,
                address,
                address6,
                outside,
                folder,
            }),
        })
    }

    /// Gives a host at [`Place::Open`] a private address too, at which all hosts reach it.
    ///
    /// # Errors
    /// When the kernel refuses the address or the route.
    pub fn private_address(&self, host: &Host) -> Result<Ipv4Addr, LabError> {
        let [.., n] = host.inner.outside.octets();
        let address = Ipv4Addr::new(10, 66, 0, n);
        ip(host.namespace(), &format!("addr add {address}/32 dev eth0"))?;
        ip(
            &self.internet,
            &format!("route add {address}/32 via {}", host.inner.outside),
        )?;
        Ok(address)
    }

    /// Adds a machine on a LAN of `gateway`'s own, `10.55.N.0/24` and
    /// `fd00:55:N::/64`, where the gateway is the first address and the machine
    /// the second. It knows no way beyond its LAN, and the gateway forwards
    /// nothing until a rule allows it.
    ///
    /// # Errors
    /// When the kernel refuses an interface; the text names it.
    pub fn lan_host(&mut self, name: &str, gateway: &Host) -> Result<Host, LabError> {
        let n = self.next;
        self.next = n
            .checked_add(1)
            .ok_or_else(|| LabError::new("the lab is full"))?;
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder)?;
        let host = namespace(name, self.folder.path())?;
        ip(&host, "link set lo up")?;
        let inside = gateway.namespace();
        veth(inside, &format!("lan{n}"), &host, "eth0")?;
        ip(
            inside,
            &format!(
                "addr add 10.55.{n}.1/24 dev lan{n}
                 addr add fd00:55:{n:x}::1/64 dev lan{n} nodad
                 link set lan{n} up"
            ),
        )?;
        ip(
            &host,
            &format!(
                "addr add 10.55.{n}.2/24 dev eth0
                 addr add fd00:55:{n:x}::2/64 dev eth0 nodad
                 link set eth0 up"
            ),
        )?;
        let address = Ipv4Addr::new(10, 55, n, 2);
        Ok(Host {
            inner: Arc::new(HostInner {
                namespace: host,
                routers: Vec::new(),
                place: Place::Open,
                address,
                address6: Some(Ipv6Addr::new(0xfd00, 0x55, n.into(), 0, 0, 0, 0, 2)),
                outside: address,
                folder,
            }),
        })
    }

    /// Gives the router of `host` the address `11.1.1.N` instead of the one that is reserved
    /// for documentation.
    pub(crate) fn readdress_router(&self, host: &Host) -> Result<(), LabError> {
        let router = host.router()?;
        let old = host.inner.outside;
        let n = old.octets()[3];
        ip(&self.internet, "addr replace 11.1.1.1/24 dev br0")?;
        ip(
            router,
            &format!(
                "addr add 11.1.1.{n}/24 dev wan\naddr del {old}/24 dev wan\n\
                 route replace default via 11.1.1.1"
            ),
        )
    }

    /// Connects `inside`'s interface to the internet as `203.0.113.n`.
    fn plug(&self, inside: &Namespace, interface: &str, n: u8, ipv6: bool) -> Result<(), LabError> {
        veth(&self.internet, &format!("p{n}"), inside, interface)?;
        ip(&self.internet, &format!("link set p{n} master br0 up"))?;
        ip(
            inside,
            &format!(
                "addr add 203.0.113.{n}/24 dev {interface}\nlink set {interface} up\n\
                 route add default via 203.0.113.1"
            ),
        )?;
        if ipv6 {
            ip(
                inside,
                &format!(
                    "addr add 2001:db8::{n:x}/64 dev {interface} nodad\n\
                     route add default via 2001:db8::1"
                ),
            )?;
        }
        Ok(())
    }

    /// The LAN behind a router.
    fn wire_lan(
        &self,
        router: &Namespace,
        host: &Namespace,
        n: u8,
        options: HostOptions,
    ) -> Result<(), LabError> {
        veth(router, "lan", host, "eth0")?;
        ip(
            router,
            &format!("addr add 192.168.{n}.1/24 dev lan\nlink set lan up"),
        )?;
        ip(
            host,
            &format!(
                "addr add 192.168.{n}.2/24 dev eth0\nlink set eth0 up\n\
                 route add default via 192.168.{n}.1"
            ),
        )?;
        if !options.ipv4_only {
            ip(
                router,
                &format!("addr add 2001:db8:{n:x}::1/64 dev lan nodad"),
            )?;
            ip(
                host,
                &format!(
                    "addr add 2001:db8:{n:x}::2/64 dev eth0 nodad\n\
                     route add default via 2001:db8:{n:x}::1"
                ),
            )?;
        }
        Ok(())
    }
}

impl Host {
    /// The host's name.
    pub fn name(&self) -> &str {
        self.inner.namespace.name()
    }

    /// The place of the host.
    pub fn place(&self) -> Place {
        self.inner.place
    }

    /// Its own address, which may be private.
    pub fn address(&self) -> IpAddr {
        self.inner.address.into()
    }

    /// Its own IPv6 address, if it has one.
    pub fn address6(&self) -> Option<Ipv6Addr> {
        self.inner.address6
    }

    /// The address that the internet sees.
    pub fn outside_address(&self) -> IpAddr {
        self.inner.outside.into()
    }

    /// A folder for state and logs.
    pub fn folder(&self) -> &Path {
        &self.inner.folder
    }

    /// Runs `job` in the host's network, for example to open a socket there.
    pub fn inside<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.inner.namespace.inside(job)
    }

    /// Runs a program to its end in the host's network and returns what it
    /// printed.
    ///
    /// # Errors
    /// When it cannot be started or fails; the text holds what it printed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String, LabError> {
        let mut command = Command::new(program);
        command.args(arguments);
        run(&self.inner.namespace, command, None)
    }

    /// Lets the host forward packets, as its administrator would.
    ///
    /// # Errors
    /// When the kernel refuses the settings.
    pub fn allow_forwarding(&self) -> Result<(), LabError> {
        sysctl(
            &self.inner.namespace,
            &["net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1"],
        )
    }

    /// Loads nftables rules into the host itself.
    ///
    /// # Errors
    /// When `nft` refuses them.
    pub fn nft(&self, rules: &str) -> Result<(), LabError> {
        nft(&self.inner.namespace, rules)
    }

    /// Loads nftables rules into the router next to the host.
    ///
    /// # Errors
    /// When there is no router, or `nft` refuses them.
    pub fn router_nft(&self, rules: &str) -> Result<(), LabError> {
        nft(self.router()?, rules)
    }

    /// Runs a program with these words as arguments in the router next to the host, and
    /// returns what it printed.
    ///
    /// # Errors
    /// When there is no router, or the program fails.
    pub fn router_run(&self, program: &str, words: &str) -> Result<String, LabError> {
        let mut command = Command::new(program);
        command.args(words.split_ascii_whitespace());
        run(self.router()?, command, None)
    }

    /// The router next to the host.
    pub(crate) fn router(&self) -> Result<&Namespace, LabError> {
        let router = self.inner.routers.last();
        router.ok_or_else(|| LabError::new(format!("{} has no router", self.name())))
    }

    /// Stops UDP of this host to and from `other`'s internet address, as a
    /// cable pulled on the way would; the relay stays reachable.
    ///
    /// # Errors
    /// When `nft` refuses the rule.
    pub fn block_udp_with(&self, other: &Host) -> Result<(), LabError> {
        let mut rules =
            String::from("table inet cut { chain cut_in { type filter hook input priority -10;");
        let mut out = String::from("chain cut_out { type filter hook output priority -10;");
        let mut addresses = vec![other.outside_address(), other.address()];
        addresses.extend(other.address6().map(IpAddr::V6));
        for address in addresses {
            let family = if address.is_ipv4() { "ip" } else { "ip6" };
            rules += &format!(" {family} saddr {address} meta l4proto udp drop;");
            out += &format!(" {family} daddr {address} meta l4proto udp drop;");
        }
        self.nft(&format!("{rules} }} {out} }} }}"))
    }

    /// Takes back [`Host::block_udp_with`].
    ///
    /// # Errors
    /// When nothing was blocked.
    pub fn unblock(&self) -> Result<(), LabError> {
        self.nft("delete table inet cut")
    }

    /// Loses `percent` of the packets that arrive at the host.
    ///
    /// # Errors
    /// When `nft` refuses the rule.
    pub fn lose(&self, percent: u8) -> Result<(), LabError> {
        self.nft(&format!(
            "table inet loss {{ chain loss {{ type filter hook prerouting priority -20; \
             iifname \"eth0\" numgen random mod 100 < {percent} drop; }} }}"
        ))
    }

    /// The namespace in which this host lives.
    pub fn namespace(&self) -> &Namespace {
        &self.inner.namespace
    }
}

/// The first folder of `PATH` that holds `tool`.
pub fn which(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders
        .into_iter()
        .map(|folder| folder.join(tool))
        .find(|file| file.is_file())
}

fn namespace(name: &str, folder: &Path) -> Result<Namespace, LabError> {
    let resolv_conf = folder.join(format!("{name}.resolv.conf"));
    std::fs::write(
        &resolv_conf,
        "# written by the lab: this host has no resolver yet\n",
    )?;
    let namespace = Namespace::new(name, resolv_conf)?;
    // Addresses are unique by construction; waiting a second to find that out
    // would make every first packet of a test a late one.
    sysctl(
        &namespace,
        &[
            "net/ipv6/conf/default/accept_dad=0",
            "net/ipv6/conf/default/dad_transmits=0",
            "net/ipv6/conf/all/accept_dad=0",
        ],
    )?;
    Ok(namespace)
}

/// Runs a batch of `ip` commands, one per line.
fn ip(inside: &Namespace, batch: &str) -> Result<(), LabError> {
    let mut command = Command::new(which("ip").unwrap_or_else(|| "ip".into()));
    command.args(["-batch", "-"]);
    let batch: String = batch
        .lines()
        .map(|line| format!("{}\n", line.trim()))
        .collect();
    run(inside, command, Some(batch)).map(drop)
}

fn nft(inside: &Namespace, rules: &str) -> Result<(), LabError> {
    let mut command = Command::new(which("nft").unwrap_or_else(|| "nft".into()));
    command.args(["-f", "-"]);
    // Older versions of nft want every brace that closes on a line of its own.
    run(inside, command, Some(rules.replace('}', "\n}\n"))).map(drop)
}

/// A cable from `a` to `b`.
fn veth(a: &Namespace, a_name: &str, b: &Namespace, b_name: &str) -> Result<(), LabError> {
    ip(
        a,
        &format!(
            "link add {a_name} type veth peer name {b_name} netns {}",
            b.id()
        ),
    )
}

fn sysctl(inside: &Namespace, settings: &[&str]) -> Result<(), LabError> {
    let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
    inside.inside(move || {
        for setting in settings {
            let (name, value) = setting.split_once('=').unwrap_or((&setting, "1"));
            std::fs::write(format!("/proc/sys/{name}"), value)
                .map_err(|error| LabError::new(format!("cannot set {name}: {error}")))?;
        }
        Ok(())
    })
}

/// Only the start happens on the host's thread: a command that takes long does
/// not keep others from starting there.
fn run(
    inside: &Namespace,
    mut command: Command,
    input: Option<String>,
) -> Result<String, LabError> {
    let host = inside.name();
    let shown = format!("{command:?}");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = inside.inside(move || command.spawn());
    let mut child =
        child.map_err(|error| LabError::new(format!("{host}: cannot run {shown}: {error}")))?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input.as_ref()) {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(LabError::new(format!(
        "{host}: {shown} failed ({}): {}{}{text}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        input
            .map(|input| format!("\ninput was:\n{input}\n"))
            .unwrap_or_default(),
    )))
}
