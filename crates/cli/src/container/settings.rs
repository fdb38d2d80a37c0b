//! The variables of a container.
//!
//! | variable | unless set | meaning |
//! |---|---|---|
//! | `TS_AUTHKEY`, `TS_AUTH_KEY` | | key of the login, or `file:PATH` |
//! | `TS_HOSTNAME` | | `--hostname` |
//! | `TS_ROUTES` | | `--advertise-routes`; empty withdraws all routes |
//! | `TS_ACCEPT_DNS` | `false` | `--accept-dns` |
//! | `TS_EXTRA_ARGS` | | more flags of `up`, for instance `--login-server` |
//! | `TS_TAILSCALED_EXTRA_ARGS` | | more flags of the daemon |
//! | `TS_USERSPACE` | `true` | without a network interface |
//! | `TS_STATE_DIR` | | folder of the state; without it the login is lost with the container |
//! | `TS_SOCKET` | `/tmp/tailscaled.sock` | the socket of the daemon |
//! | `TS_AUTH_ONCE` | `false` | log in only if there is no login; then only `set` |
//! | `TS_SOCKS5_SERVER`, `TS_OUTBOUND_HTTP_PROXY_LISTEN` | | proxies into the network |
//! | `TS_LOCAL_ADDR_PORT` | `[::]:9002` | where health and metrics are served |
//! | `TS_ENABLE_HEALTH_CHECK`, `TS_ENABLE_METRICS` | `false` | `/healthz`, `/metrics` |
//! | `TS_BOOT_TIMEOUT` | `60s` | how long the node may take to be up |
//!
//! Variables for missing features are refused, so that no container runs without what it
//! was set up for.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use crate::{Failure, duration};

const SOCKET: &str = "/tmp/tailscaled.sock";
/// A folder that is lost with the container.
const STATE_DIR: &str = "/tmp/warren";
const ADDRESS: &str = "[::]:9002";
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);

/// Variables for features that this version does not have, with what to do instead.
const MISSING: &[(&str, &str)] = &[
    (
        "TS_KUBE_SECRET",
        "keep the state in a volume: TS_KUBE_SECRET= and TS_STATE_DIR",
    ),
    ("TS_SERVE_CONFIG", "leave it out"),
    ("TS_DEST_IP", "announce the address with TS_ROUTES"),
    (
        "TS_EXPERIMENTAL_DEST_DNS_NAME",
        "announce the addresses with TS_ROUTES",
    ),
    ("TS_TAILNET_TARGET_IP", "use TS_SOCKS5_SERVER"),
    ("TS_TAILNET_TARGET_FQDN", "use TS_SOCKS5_SERVER"),
    ("TS_CLIENT_ID", "use TS_AUTHKEY"),
    ("TS_CLIENT_SECRET", "use TS_AUTHKEY"),
    ("TS_ID_TOKEN", "use TS_AUTHKEY"),
    ("TS_AUDIENCE", "use TS_AUTHKEY"),
    (
        "TS_EXPERIMENTAL_VERSIONED_CONFIG_DIR",
        "use the other variables",
    ),
    ("TS_EGRESS_PROXIES_CONFIG_PATH", "leave it out"),
    ("TS_INGRESS_PROXIES_CONFIG_PATH", "leave it out"),
    (
        "TS_HEALTHCHECK_ADDR_PORT",
        "use TS_ENABLE_HEALTH_CHECK and TS_LOCAL_ADDR_PORT",
    ),
];

/// The wishes that the variables express.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// The socket of the daemon.
    pub(super) socket: String,
    /// The flags of the daemon.
    pub(super) daemon: Vec<OsString>,
    /// The flags of `up`.
    pub(super) up: Vec<OsString>,
    /// The flags of `set`.
    pub(super) set: Vec<OsString>,
    /// The node logs in only if it is logged out.
    pub(super) auth_once: bool,
    /// The node has a network interface.
    pub(super) interface: bool,
    /// Health and metrics.
    pub(super) pages: Pages,
    /// How long the node may take to be up.
    pub(super) boot_timeout: Duration,
}

/// The pages that a container serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pages {
    /// None.
    Off,
    /// These.
    At {
        address: SocketAddr,
        health: bool,
        metrics: bool,
    },
}

impl Pages {
    pub(super) fn has_health(self) -> bool {
        matches!(self, Self::At { health: true, .. })
    }

    pub(super) fn has_metrics(self) -> bool {
        matches!(self, Self::At { metrics: true, .. })
    }
}

impl Settings {
    /// Reads the variables; an empty one counts as not set, except for `TS_ROUTES`.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let text = |name: &str| variable(name).filter(|text| !text.is_empty());
        check_missing(&variable)?;
        let switch = |name: &str, default| read_switch(name, text(name), default);
        let interface = !switch("TS_USERSPACE", true)?;
        let extra: Vec<String> = split(text("TS_EXTRA_ARGS"));
        let mut set = Vec::new();
        if !mentions(&extra, "accept-dns") {
            set.push(format!("--accept-dns={}", switch("TS_ACCEPT_DNS", false)?));
        }
        for (name, flag, value) in [
            ("TS_ROUTES", "advertise-routes", variable("TS_ROUTES")),
            ("TS_HOSTNAME", "hostname", text("TS_HOSTNAME")),
        ] {
            if let Some(value) = value {
                refuse_twice(&extra, flag, name)?;
                set.push(format!("--{flag}={value}"));
            }
        }
        let mut up = set.clone();
        if let Some(key) = text("TS_AUTHKEY").or_else(|| text("TS_AUTH_KEY")) {
            refuse_twice(&extra, "authkey", "TS_AUTHKEY")?;
            refuse_twice(&extra, "auth-key", "TS_AUTHKEY")?;
            up.push(format!("--auth-key={key}"));
        }
        up.extend(extra);
        Ok(Self {
            socket: text("TS_SOCKET").unwrap_or_else(|| SOCKET.to_owned()),
            daemon: daemon_flags(&text, interface),
            up: up.into_iter().map(OsString::from).collect(),
            set: set.into_iter().map(OsString::from).collect(),
            auth_once: switch("TS_AUTH_ONCE", false)?,
            interface,
            pages: read_pages(
                text("TS_LOCAL_ADDR_PORT"),
                switch("TS_ENABLE_HEALTH_CHECK", false)?,
                switch("TS_ENABLE_METRICS", false)?,
            )?,
            boot_timeout: match text("TS_BOOT_TIMEOUT") {
                None => BOOT_TIMEOUT,
                Some(time) => duration::parse(&time)
                    .map_err(|why| Failure::usage(format_args!("TS_BOOT_TIMEOUT: {why}")))?,
            },
        })
    }
}

fn daemon_flags(text: &impl Fn(&str) -> Option<String>, interface: bool) -> Vec<OsString> {
    let mut flags = match text("TS_STATE_DIR") {
        Some(folder) => vec![format!("--state-dir={folder}")],
        None => vec![format!("--state-dir={STATE_DIR}")],
    };
    flags.push(match interface {
        true => "--tun=tailscale0".to_owned(),
        false => "--tun=userspace-networking".to_owned(),
    });
    for (name, flag) in [
        ("TS_SOCKS5_SERVER", "socks5-server"),
        (
            "TS_OUTBOUND_HTTP_PROXY_LISTEN",
            "outbound-http-proxy-listen",
        ),
        ("TS_DEBUG_ADDR_PORT", "debug"),
    ] {
        flags.extend(text(name).map(|value| format!("--{flag}={value}")));
    }
    flags.extend(split(text("TS_TAILSCALED_EXTRA_ARGS")));
    flags.into_iter().map(OsString::from).collect()
}

/// Fails if a variable asks for a feature that is missing.
fn check_missing(variable: &impl Fn(&str) -> Option<String>) -> Result<(), Failure> {
    let is_set = |name: &str| variable(name).is_some_and(|text| !text.is_empty());
    if let Some((name, remedy)) = MISSING.iter().find(|(name, _)| is_set(name)) {
        return Err(Failure::failed(format_args!(
            "{name} is not in this version yet; {remedy}"
        )));
    }
    // There, the official entry point keeps the state in the secret "tailscale".
    if is_set("KUBERNETES_SERVICE_HOST") && variable("TS_KUBE_SECRET").is_none() {
        return Err(Failure::failed(
            "state in a Kubernetes secret is not in this version yet; keep it in a volume: set \
             TS_KUBE_SECRET to an empty text, and TS_STATE_DIR",
        ));
    }
    Ok(())
}

fn split(text: Option<String>) -> Vec<String> {
    let text = text.unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Whether a flag is among the words, in any of its spellings.
fn mentions(words: &[String], flag: &str) -> bool {
    words.iter().any(|word| {
        let name = word.trim_start_matches('-');
        let name = name.split('=').next().unwrap_or_default();
        word.starts_with('-') && name == flag
    })
}

fn refuse_twice(extra: &[String], flag: &str, variable: &str) -> Result<(), Failure> {
    if mentions(extra, flag) {
        return Err(Failure::usage(format_args!(
            "TS_EXTRA_ARGS has --{flag}, which {variable} sets too; leave one of them out"
        )));
    }
    Ok(())
}

fn read_switch(name: &str, text: Option<String>, default: bool) -> Result<bool, Failure> {
    match text.as_deref() {
        None => Ok(default),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(Failure::usage(format_args!(
            "{name}: {other:?} is not a truth value; write true or false"
        ))),
    }
}

fn read_pages(address: Option<String>, health: bool, metrics: bool) -> Result<Pages, Failure> {
    if !health && !metrics {
        return Ok(Pages::Off);
    }
    let address = address.unwrap_or_else(|| ADDRESS.to_owned());
    let address = address.parse().map_err(|_| {
        Failure::usage(format_args!(
            "TS_LOCAL_ADDR_PORT: {address:?} is not an address and a port; write 127.0.0.1:9002, \
             or [::]:9002 for all addresses"
        ))
    })?;
    Ok(Pages::At {
        address,
        health,
        metrics,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, Failure> {
        Settings::read(|name| {
            let mut all = variables.iter();
            let found = all.find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn line(words: &[OsString]) -> String {
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn without_variables_the_defaults_of_the_official_entry_point_hold() {
        let settings = read(&[]).unwrap();
        assert_eq!(settings.socket, "/tmp/tailscaled.sock");
        assert_eq!(
            line(&settings.daemon),
            "--state-dir=/tmp/warren --tun=userspace-networking"
        );
        assert_eq!(line(&settings.up), "--accept-dns=false");
        assert_eq!(settings.pages, Pages::Off);
        assert_eq!(settings.boot_timeout, Duration::from_secs(60));
        assert!(!settings.auth_once && !settings.interface);
    }

    #[test]
    fn variables_become_flags() {
        let settings = read(&[
            ("TS_AUTH_KEY", "k"),
            ("TS_HOSTNAME", "box"),
            ("TS_ROUTES", "10.1.0.0/16,10.2.0.0/16"),
            ("TS_ACCEPT_DNS", "true"),
            (
                "TS_EXTRA_ARGS",
                " --login-server=http://x  --accept-routes ",
            ),
            ("TS_TAILSCALED_EXTRA_ARGS", "--verbose=1 --port=0"),
            ("TS_USERSPACE", "false"),
            ("TS_STATE_DIR", "/state"),
            ("TS_SOCKET", "/run/x.sock"),
            ("TS_AUTH_ONCE", "1"),
            ("TS_SOCKS5_SERVER", ":1055"),
            ("TS_OUTBOUND_HTTP_PROXY_LISTEN", ":1056"),
            ("TS_LOCAL_ADDR_PORT", "127.0.0.1:9003"),
            ("TS_ENABLE_HEALTH_CHECK", "true"),
            ("TS_BOOT_TIMEOUT", "1m30s"),
            ("TS_KUBE_SECRET", ""),
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
        ])
        .unwrap();
        let set = "--accept-dns=true --advertise-routes=10.1.0.0/16,10.2.0.0/16 --hostname=box";
        assert_eq!(line(&settings.set), set);
        assert_eq!(
            line(&settings.up),
            format!("{set} --auth-key=k --login-server=http://x --accept-routes")
        );
        assert_eq!(
            line(&settings.daemon),
            "--state-dir=/state --tun=tailscale0 --socks5-server=:1055 \
             --outbound-http-proxy-listen=:1056 --verbose=1 --port=0"
        );
        assert_eq!(settings.socket, "/run/x.sock");
        assert!(settings.auth_once && settings.interface);
        assert!(settings.pages.has_health() && !settings.pages.has_metrics());
        assert_eq!(settings.boot_timeout, Duration::from_secs(90));
        let settings = read(&[("TS_ROUTES", ""), ("TS_HOSTNAME", "")]).unwrap();
        assert_eq!(
            line(&settings.set),
            "--accept-dns=false --advertise-routes="
        );
        let settings = read(&[("TS_EXTRA_ARGS", "-accept-dns"), ("TS_ACCEPT_DNS", "false")]);
        assert_eq!(line(&settings.unwrap().up), "-accept-dns");
    }

    #[test]
    fn wrong_and_missing_settings_are_refused_with_a_reason() {
        for (variables, part) in [
            (&[("TS_USERSPACE", "maybe")][..], "write true or false"),
            (&[("TS_BOOT_TIMEOUT", "soon")], "TS_BOOT_TIMEOUT"),
            (
                &[
                    ("TS_ENABLE_METRICS", "true"),
                    ("TS_LOCAL_ADDR_PORT", ":9002"),
                ],
                "TS_LOCAL_ADDR_PORT",
            ),
            (
                &[("TS_AUTHKEY", "k"), ("TS_EXTRA_ARGS", "--authkey=x")],
                "leave one of them out",
            ),
            (
                &[("TS_HOSTNAME", "a"), ("TS_EXTRA_ARGS", "-hostname b")],
                "leave one of them out",
            ),
            (&[("TS_KUBE_SECRET", "x")], "TS_STATE_DIR"),
            (&[("KUBERNETES_SERVICE_HOST", "x")], "TS_STATE_DIR"),
            (&[("TS_DEST_IP", "10.0.0.1")], "TS_ROUTES"),
            (&[("TS_CLIENT_ID", "x")], "TS_AUTHKEY"),
        ] {
            match read(variables) {
                Err(Failure::Usage(text) | Failure::Failed(text)) => {
                    assert!(text.contains(part), "{variables:?}: {text}");
                }
                Ok(_) => panic!("{variables:?}"),
            }
        }
    }
}
