//! systemd-resolved over D-Bus: our interface's own servers and domains.
//!
//! Interface `org.freedesktop.resolve1.Manager`; addresses travel as (family,
//! bytes), domains as (name, routing-only). Every call is limited to one
//! second: at boot D-Bus may be there and its services not.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zbus::Connection;
use zbus::zvariant::DynamicType;

use super::{OsDnsConfig, ResolverError};

const SERVICE: &str = "org.freedesktop.resolve1";
const PATH: &str = "/org/freedesktop/resolve1";
const INTERFACE: &str = "org.freedesktop.resolve1.Manager";

const CALL_LIMIT: Duration = Duration::from_secs(1);

/// How resolved names E2BIG: more domains than it takes for one link.
const TOO_MANY: &str = "System.Error.E2BIG";

pub(super) struct Resolved {
    link: Link,
    /// Sets the link again when resolved was restarted.
    keeper: Option<JoinHandle<()>>,
}

/// One interface, as resolved sees it.
#[derive(Clone)]
struct Link {
    connection: Connection,
    index: i32,
}

impl Resolved {
    /// Connects to the system bus and makes sure that resolved is there.
    pub(super) async fn connect(interface: &str) -> Result<Resolved, ResolverError> {
        let failed = |reason: String| ResolverError::Resolved {
            method: "to talk over D-Bus",
            reason,
        };
        let connection = timeout(CALL_LIMIT, Connection::system())
            .await
            .map_err(|_| failed("no answer from the system bus".to_owned()))?
            .map_err(|error| failed(error.to_string()))?;
        let resolved = Resolved::with_connection(connection, interface)?;
        // `FlushCaches` changes nothing of note and starts resolved if the bus
        // can do that.
        resolved.link.call("FlushCaches", &()).await?;
        Ok(resolved)
    }

    fn with_connection(connection: Connection, interface: &str) -> Result<Resolved, ResolverError> {
        let index = index_of(interface).map_err(|source| ResolverError::NoInterface {
            name: interface.to_owned(),
            source,
        })?;
        Ok(Resolved {
            link: Link { connection, index },
            keeper: None,
        })
    }

    pub(super) async fn apply(&mut self, config: &OsDnsConfig) -> Result<(), ResolverError> {
        self.stop_keeping();
        self.link.apply(config).await?;
        if self.link.connection.is_bus() {
            self.keeper = Some(tokio::spawn(keep(self.link.clone(), config.clone())));
        }
        Ok(())
    }

    pub(super) async fn revert(&mut self) -> Result<(), ResolverError> {
        self.stop_keeping();
        self.link.call("RevertLink", &(self.link.index,)).await?;
        self.link.call("FlushCaches", &()).await
    }

    fn stop_keeping(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.abort();
        }
    }
}

impl Drop for Resolved {
    fn drop(&mut self) {
        self.stop_keeping();
    }
}

impl Link {
    async fn apply(&self, config: &OsDnsConfig) -> Result<(), ResolverError> {
        let index = self.index;
        let takes_all = config.match_domains.is_empty();
        let servers: Vec<(i32, Vec<u8>)> = config.nameservers.iter().map(address).collect();
        self.call("SetLinkDNS", &(index, servers)).await?;

        let domains = domains(config);
        match self.call("SetLinkDomains", &(index, &domains)).await {
            Err(ResolverError::Resolved { reason, .. }) if reason.contains(TOO_MANY) => {
                // Forward names matter more to people than reverse ones.
                let forward: Vec<_> = domains
                    .iter()
                    .filter(|(name, _)| !name.ends_with(".arpa"))
                    .collect();
                self.call("SetLinkDomains", &(index, forward)).await?;
            }
            other => other?,
        }
        // Older versions lack some of these; names resolve without them.
        let optional = [
            self.call("SetLinkDefaultRoute", &(index, takes_all)).await,
            self.call("SetLinkLLMNR", &(index, "no")).await,
            self.call("SetLinkMulticastDNS", &(index, "no")).await,
            self.call("SetLinkDNSSEC", &(index, "no")).await,
            self.call("SetLinkDNSOverTLS", &(index, "no")).await,
            self.call("FlushCaches", &()).await,
        ];
        for error in optional.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "a setting of systemd-resolved is left out");
        }
        Ok(())
    }

    async fn call<B>(&self, method: &'static str, body: &B) -> Result<(), ResolverError>
    where
        B: zbus::export::serde::Serialize + DynamicType,
    {
        let call = self
            .connection
            .call_method(Some(SERVICE), PATH, Some(INTERFACE), method, body);
        match timeout(CALL_LIMIT, call).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(ResolverError::Resolved {
                method,
                reason: error.to_string(),
            }),
            Err(_) => Err(ResolverError::Resolved {
                method,
                reason: "no answer within a second".to_owned(),
            }),
        }
    }
}

/// The number of an interface in the calling thread's network namespace.
fn index_of(interface: &str) -> std::io::Result<i32> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    let index = netdevice::name_to_index(&socket, interface)?;
    i32::try_from(index).map_err(std::io::Error::other)
}

fn address(address: &IpAddr) -> (i32, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    }
}

/// Search domains, then those that only route; the root routes everything.
fn domains(config: &OsDnsConfig) -> Vec<(String, bool)> {
    let clean = |name: &String| name.trim_end_matches('.').to_owned();
    let search = config
        .search_domains
        .iter()
        .map(|name| (clean(name), false));
    let routing = config.match_domains.iter().map(|name| (clean(name), true));
    let root = config
        .match_domains
        .is_empty()
        .then(|| (".".to_owned(), true));
    search.chain(routing).chain(root).collect()
}

/// Sets the link again whenever resolved comes back under its name.
async fn keep(link: Link, config: OsDnsConfig) {
    let Ok(bus) = zbus::fdo::DBusProxy::new(&link.connection).await else {
        return;
    };
    let Ok(mut changes) = bus
        .receive_name_owner_changed_with_args(&[(0, SERVICE)])
        .await
    else {
        return;
    };
    while let Some(change) = changes.next().await {
        let came_back = change.args().is_ok_and(|args| args.new_owner().is_some());
        if came_back {
            match link.apply(&config).await {
                Ok(()) => tracing::info!("systemd-resolved was restarted; name servers set again"),
                Err(error) => tracing::warn!(%error, "name servers are not set any more"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::sync::{Arc, Mutex};

    /// A resolved that records its calls.
    #[derive(Default)]
    struct Fake {
        calls: Arc<Mutex<Vec<String>>>,
        most_domains: usize,
    }

    #[derive(Debug, zbus::DBusError)]
    #[zbus(prefix = "System.Error")]
    enum FakeError {
        #[zbus(error)]
        ZBus(zbus::Error),
        #[zbus(name = "E2BIG")]
        TooBig(String),
    }

    impl Fake {
        fn note(&self, call: String) {
            self.calls.lock().unwrap().push(call);
        }
    }

    /// The signatures are those of `man 5 org.freedesktop.resolve1`; one older
    /// method is left out on purpose.
    #[zbus::interface(name = "org.freedesktop.resolve1.Manager")]
    impl Fake {
        #[zbus(name = "SetLinkDNS")]
        fn set_link_dns(&self, index: i32, servers: Vec<(i32, Vec<u8>)>) {
            self.note(format!("dns {index} {servers:?}"));
        }

        fn set_link_domains(
            &self,
            index: i32,
            domains: Vec<(String, bool)>,
        ) -> Result<(), FakeError> {
            if domains.len() > self.most_domains {
                return Err(FakeError::TooBig("Argument list too long".to_owned()));
            }
            self.note(format!("domains {index} {domains:?}"));
            Ok(())
        }

        fn set_link_default_route(&self, index: i32, on: bool) {
            self.note(format!("default {index} {on}"));
        }

        #[zbus(name = "SetLinkLLMNR")]
        fn set_link_llmnr(&self, index: i32, mode: String) {
            self.note(format!("llmnr {index} {mode}"));
        }

        #[zbus(name = "SetLinkMulticastDNS")]
        fn set_link_multicast_dns(&self, index: i32, mode: String) {
            self.note(format!("mdns {index} {mode}"));
        }

        #[zbus(name = "SetLinkDNSSEC")]
        fn set_link_dnssec(&self, index: i32, mode: String) {
            self.note(format!("dnssec {index} {mode}"));
        }

        fn flush_caches(&self) {
            self.note("flush".to_owned());
        }

        fn revert_link(&self, index: i32) {
            self.note(format!("revert {index}"));
        }
    }

    /// A connection to a fake that takes at most so many domains, its notes,
    /// and what keeps it alive.
    async fn fake(most_domains: usize) -> (Resolved, Arc<Mutex<Vec<String>>>, Connection) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let fake = Fake {
            calls: calls.clone(),
            most_domains,
        };
        let server = zbus::connection::Builder::unix_stream(theirs)
            .server(zbus::Guid::generate())
            .p2p()
            .serve_at(PATH, fake)
            .build();
        let client = zbus::connection::Builder::unix_stream(ours).p2p().build();
        let (server, client) = tokio::try_join!(server, client).unwrap();
        let resolved = Resolved::with_connection(client, "lo").unwrap();
        (resolved, calls, server)
    }

    fn config(match_domains: &[&str]) -> OsDnsConfig {
        OsDnsConfig {
            nameservers: vec!["100.100.100.100".parse().unwrap()],
            search_domains: vec!["tail.example.".to_owned()],
            match_domains: match_domains.iter().map(|it| (*it).to_owned()).collect(),
        }
    }

    #[tokio::test]
    async fn all_names_come_to_us_unless_domains_are_given() {
        let (mut resolved, calls, _server) = fake(9).await;
        resolved.apply(&config(&[])).await.unwrap();
        resolved.revert().await.unwrap();
        // The version that the fake plays has no DNS over TLS; all else holds.
        let expected = [
            "dns 1 [(2, [100, 100, 100, 100])]",
            "domains 1 [(\"tail.example\", false), (\".\", true)]",
            "default 1 true",
            "llmnr 1 no",
            "mdns 1 no",
            "dnssec 1 no",
            "flush",
            "revert 1",
            "flush",
        ];
        assert_eq!(*calls.lock().unwrap(), expected);

        calls.lock().unwrap().clear();
        resolved.apply(&config(&["corp.example"])).await.unwrap();
        let calls = calls.lock().unwrap();
        let domains = "domains 1 [(\"tail.example\", false), (\"corp.example\", true)]";
        assert_eq!(calls[1], domains);
        assert_eq!(calls[2], "default 1 false");
    }

    #[tokio::test]
    async fn too_many_domains_are_tried_without_the_reverse_ones() {
        let (mut resolved, calls, _server) = fake(2).await;
        let many = config(&["corp.example", "64.100.in-addr.arpa"]);
        resolved.apply(&many).await.unwrap();
        let domains = "domains 1 [(\"tail.example\", false), (\"corp.example\", true)]";
        assert_eq!(calls.lock().unwrap()[1], domains);

        let error = resolved
            .apply(&config(&["a.example", "b.example"]))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("SetLinkDomains"), "{error}");
    }
}
