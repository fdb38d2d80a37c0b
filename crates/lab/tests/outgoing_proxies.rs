//! Nodes whose network lets nothing out but an HTTP proxy.
#![allow(clippy::unwrap_used)]

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use warren_lab::scenario::{Tailnet, installed, lab, more, traffic_flows};
use warren_lab::{Host, Kind, Lab, Node, PATIENCE, Path, Place, RelayKind, until};

const PORT: u16 = 3128;
/// `me:pass`.
const CREDENTIALS: &str = "Basic bWU6cGFzcw==";

/// A proxy with a password: CONNECT, and requests with a whole URL.
struct Proxy {
    address: IpAddr,
    /// The targets of the requests, in order.
    targets: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Serves on `host` until the test ends.
    fn start(host: &Host) -> Self {
        let address = host.address();
        let targets = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&targets);
        // Threads that begin in a namespace stay in it.
        host.inside(move || {
            let listener = TcpListener::bind((address, PORT)).unwrap();
            std::thread::spawn(move || {
                while let Ok((client, _)) = listener.accept() {
                    let seen = Arc::clone(&seen);
                    // A client that leaves ends its own thread only.
                    std::thread::spawn(move || drop(serve(client, &seen)));
                }
            });
        });
        Self { address, targets }
    }

    /// The variables that lead to it, with this user and password.
    fn variables(&self, credentials: &str) -> [(&'static str, String); 2] {
        let url = format!("http://{credentials}@{}:{PORT}", self.address);
        [("HTTPS_PROXY", url.clone()), ("http_proxy", url)]
    }

    fn was_asked_for(&self, target: &str) -> bool {
        let targets = self.targets.lock().unwrap();
        targets.iter().any(|asked| asked.contains(target))
    }
}

/// Serves one connection.
fn serve(mut client: TcpStream, seen: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let has_password = head.lines().any(|line| {
        let field = line.split_once(": ");
        field.is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("proxy-authorization") && value == CREDENTIALS
        })
    });
    if !has_password {
        return client.write_all(
            b"HTTP/1.1 407 Proxy Authentication Required\r\n\
              Proxy-Authenticate: Basic realm=\"firm\"\r\nContent-Length: 0\r\n\
              Connection: close\r\n\r\n",
        );
    }
    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
    seen.lock().unwrap().push(target.clone());
    let mut server = match target.strip_prefix("http://") {
        None => {
            let server = TcpStream::connect(&target)?;
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
            server
        }
        Some(rest) => {
            let (authority, _) = rest.split_once('/').unwrap_or((rest, ""));
            let mut server = TcpStream::connect(authority)?;
            let path = &rest[authority.len()..];
            server.write_all(head.replacen(&target, path, 1).as_bytes())?;
            server
        }
    };
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        drop(io::copy(&mut from_client, &mut to_server));
        drop(to_server.shutdown(Shutdown::Write));
    });
    drop(io::copy(&mut server, &mut client));
    client.shutdown(Shutdown::Both)
}

/// A host whose router drops all but packets to and from `proxy`.
fn confined(lab: &mut Lab, name: &str, proxy: IpAddr) -> Host {
    let host = lab.host(name, Place::Easy).unwrap();
    host.router_nft(&format!(
        "table inet firm {{ chain forward {{ type filter hook forward priority -10; \
         meta nfproto ipv6 drop; ip daddr {proxy} accept; ip saddr {proxy} accept; drop; }} }}"
    ))
    .unwrap();
    host
}

fn start(host: &Host, kind: Kind, variables: &[(&'static str, String)]) -> Node {
    let variables: Vec<_> = variables
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    Node::start_with(host, kind, &variables).unwrap()
}

#[test]
fn node_behind_a_proxy_joins_and_exchanges_packets_by_relay() {
    let Some(mut lab) = lab() else { return };
    let Some(()) = installed(Kind::Warren) else {
        return;
    };
    let Some(tailnet) = Tailnet::new(&mut lab, RelayKind::Warren) else {
        return;
    };
    let proxy = Proxy::start(&lab.host("proxy", Place::Open).unwrap());
    let bob = lab.host("bob", Place::Open).unwrap();
    let bob = tailnet.join(&bob, Kind::Warren);
    for kind in [Kind::Warren, Kind::Tailscale] {
        if installed(kind).is_none() {
            continue;
        }
        let name = match kind {
            Kind::Warren => "alice",
            _ => "carol",
        };
        let host = confined(&mut lab, name, proxy.address);
        let node = start(&host, kind, &proxy.variables("me:pass"));
        node.up(tailnet.control.url(), &tailnet.key, more(kind))
            .unwrap();
        until("the peer", PATIENCE, || node.peer("bob")).unwrap();
        traffic_flows(&node, &bob);
        assert!(matches!(node.path_to("bob").unwrap(), Path::Relay(_)));
    }
    let server = tailnet.control.url().trim_start_matches("http://");
    assert!(proxy.was_asked_for(server), "the server");
    let relays = &tailnet.relays;
    let by_relay = relays
        .iter()
        .any(|relay| proxy.was_asked_for(&relay.host().address().to_string()));
    assert!(by_relay, "a relay");
}

#[test]
fn wrong_password_for_the_proxy_is_reported() {
    let Some(mut lab) = lab() else { return };
    let Some(()) = installed(Kind::Warren) else {
        return;
    };
    let Some(tailnet) = Tailnet::new(&mut lab, RelayKind::Warren) else {
        return;
    };
    let proxy = Proxy::start(&lab.host("proxy", Place::Open).unwrap());
    let host = confined(&mut lab, "alice", proxy.address);
    let node = start(&host, Kind::Warren, &proxy.variables("me:guess"));
    let server = format!("--login-server={}", tailnet.control.url());
    let key = format!("--auth-key={}", tailnet.key);
    let up = node.cli(&["up", &server, &key, "--timeout=3s"]);
    let error = up.unwrap_err().to_string();
    let named = format!("the proxy http://{}:{PORT} (http_proxy)", proxy.address);
    for text in [&named, "refuses the user and the password in http_proxy"] {
        assert!(error.contains(text), "{error}");
    }
    assert!(!error.contains("guess"), "{error}");
}
