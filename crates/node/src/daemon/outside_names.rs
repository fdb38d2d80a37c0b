//! Names of the coordination server and of relays, resolved outside the tunnel.
//!
//! While the tailnet's resolvers are in use, the system asks our own name server
//! or servers inside the tunnel. Neither can be relied on for the names that the
//! tunnel itself depends on: their upstreams may be behind the tunnel, and a
//! netmap may contain a domain that covers the server's own name. So these names
//! are asked of the name servers that the machine had without us, on sockets
//! that bypass the tunnel. `/etc/hosts` comes first, as for all programs. Names
//! that these servers do not know are looked up by the system.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use warren_dial::SystemEntropy;
use warren_dial::names::{ResolveNames, Resolving, SystemResolver};
use warren_dns::lookup::{Family, addresses, query};
use warren_dns::{ClientId, Forwarder, Output, Transport};

use super::magic_dns::exchanges::{Exchanges, Routing};

const HOSTS: &str = "/etc/hosts";

/// After this the answers that are there must do, or the system is asked.
const TIMEOUT: Duration = Duration::from_secs(2);

/// IPv6 first: the connecting code tries IPv4 soon after.
const FAMILIES: [Family; 2] = [Family::V6, Family::V4];

/// Resolves names by the servers that the machine had without us.
#[derive(Debug, Default)]
pub struct OutsideNames {
    /// Empty while the system's resolver is as it was without us.
    servers: RwLock<Vec<SocketAddr>>,
}

impl OutsideNames {
    /// Asks these servers from now on; none: asks the system.
    pub fn set_servers(&self, servers: impl IntoIterator<Item = SocketAddr>) {
        let servers = servers.into_iter().collect();
        *self.servers.write().unwrap_or_else(PoisonError::into_inner) = servers;
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let servers = self.servers.read();
        servers.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolveNames for OutsideNames {
    fn resolve<'a>(&'a self, host: &'a str) -> Resolving<'a> {
        let servers = self.servers();
        // A name without a dot needs the search domains of the system.
        if servers.is_empty() || !host.contains('.') {
            return SystemResolver.resolve(host);
        }
        Box::pin(async move {
            let hosts = tokio::task::spawn_blocking(|| std::fs::read_to_string(HOSTS)).await;
            let mut found = match hosts {
                Ok(Ok(hosts)) => in_hosts(&hosts, host),
                Ok(Err(_)) | Err(_) => Vec::new(),
            };
            if found.is_empty() {
                found = ask(host, &servers, TIMEOUT).await;
            }
            if found.is_empty() {
                return SystemResolver.resolve(host).await;
            }
            Ok(found)
        })
    }
}

/// The addresses of a name in a hosts file.
fn in_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let name = name.trim_end_matches('.');
    let lines = hosts.lines().filter_map(|line| line.split('#').next());
    let addresses = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words
            .any(|word| word.eq_ignore_ascii_case(name))
            .then_some(address)
    });
    addresses.collect()
}

/// Asks the servers for the addresses of both families; empty when they know
/// none, or do not answer within `limit`.
async fn ask(host: &str, servers: &[SocketAddr], limit: Duration) -> Vec<IpAddr> {
    let mut found = BTreeMap::new();
    let asking = ask_all(host, servers, &mut found);
    if tokio::time::timeout(limit, asking).await.is_err() {
        tracing::debug!("a name server of this machine is slow or does not answer");
    }
    found.into_values().flatten().collect()
}

/// Puts the answers into `found`, as they come, in the order of [`FAMILIES`].
async fn ask_all(host: &str, servers: &[SocketAddr], found: &mut BTreeMap<ClientId, Vec<IpAddr>>) {
    let mut forwarder = Forwarder::new(Box::new(SystemEntropy));
    let mut exchanges = Exchanges::new(Routing::OutsideTunnel);
    let mut waiting = 0;
    for (client, family) in (0..).zip(FAMILIES) {
        if let Some(query) = query(host, family) {
            waiting += 1;
            // We take answers of any length, as a client over TCP does.
            let transport = Transport::Tcp;
            forwarder.start(Instant::now(), client, transport, query, servers.to_vec());
        }
    }
    loop {
        while let Some(output) = forwarder.poll_output() {
            match output {
                Output::Send {
                    exchange,
                    to,
                    transport,
                    query,
                } => exchanges.start(exchange, to, transport, query),
                Output::Close { exchange } => exchanges.end(exchange),
                Output::Answer { client, answer } => {
                    waiting -= 1;
                    found.insert(client, addresses(&answer));
                }
            }
        }
        if waiting == 0 {
            return;
        }
        exchanges.drive(&mut forwarder).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::net::UdpSocket;

    const V4: [u8; 4] = [192, 0, 2, 1];
    const V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    /// A name server that answers `count` questions with one address each.
    async fn serve(socket: &UdpSocket, count: usize) {
        for _ in 0..count {
            let mut buffer = [0; 512];
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            let mut answer = buffer[..len].to_vec();
            answer[2] |= 0x80;
            answer[7] = 1;
            let kind = answer[len - 3];
            let address: &[u8] = if kind == 1 { &V4 } else { &V6 };
            answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, address.len() as u8]);
            answer.extend(address);
            socket.send_to(&answer, from).await.unwrap();
        }
    }

    #[tokio::test]
    async fn servers_of_the_machine_are_asked_for_both_families() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let servers = [server.local_addr().unwrap()];
        let asking = ask("control.example.com", &servers, Duration::from_secs(60));
        let (found, ()) = tokio::join!(asking, serve(&server, 2));
        assert_eq!(found, [IpAddr::from(V6), IpAddr::from(V4)]);
    }

    #[tokio::test]
    async fn dead_server_of_the_machine_is_not_waited_for() {
        let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        dead.connect(dead.local_addr().unwrap()).await.unwrap();
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let servers = [dead.local_addr().unwrap(), server.local_addr().unwrap()];
        let asking = ask("control.example.com", &servers, Duration::from_secs(60));
        let (found, ()) = tokio::join!(asking, serve(&server, 2));
        assert_eq!(found.len(), 2);
    }

    #[tokio::test]
    async fn names_are_asked_of_the_system_until_servers_are_set() {
        let names = OutsideNames::default();
        let found = names.resolve("localhost").await.unwrap();
        assert!(found.iter().all(IpAddr::is_loopback));
        names.set_servers(["192.0.2.53:53".parse().unwrap()]);
        assert_eq!(names.servers(), ["192.0.2.53:53".parse().unwrap()]);
        names.set_servers([]);
        assert!(names.servers().is_empty());
    }

    #[test]
    fn hosts_file_is_read_by_word_and_without_comments() {
        let hosts = "127.0.0.1 localhost\n\
                     192.0.2.7\tControl.example.com ctl # control.example.org\n\
                     2001:db8::7 control.example.com\nbroken control.example.com\n";
        let expected: [IpAddr; 2] = ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        assert_eq!(in_hosts(hosts, "control.example.com."), expected);
        assert!(in_hosts(hosts, "control.example.org").is_empty());
        assert!(in_hosts(hosts, "example.com").is_empty());
    }
}
