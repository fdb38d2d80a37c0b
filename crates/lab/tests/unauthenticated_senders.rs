//! Each listener of our programs under attack by senders that prove nothing: idle
//! in each phase, slow in each phase, too many, from one source and from many.
//! The programs stay within the files and the memory that they promise, an honest
//! node gets in meanwhile, and everything is given back afterwards. The same holds for
//! a member of the network that takes what it can.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use warren_control_types::{CapabilityVersion, MapRequest, RegisterAuth, RegisterRequest};
use warren_dial::control::ControlClient;
use warren_dial::{Dialer, SystemEntropy};
use warren_keys::{MachineSecret, NodeSecret};
use warren_lab::scenario::{Tailnet, address, installed, lab, skip, traffic_flows};
use warren_lab::{Control, Host, Kind, Lab, Node, PATIENCE, Place, Program, RelayKind, until};

/// Unidentified connections that one source may have: `dial/src/connections.rs`.
const PER_SOURCE: usize = 256;
/// Connections of one user that a LocalAPI serves, and refusals under way beside them.
const LOCAL_API: usize = 32 + 32;
/// Files that a program opens for other reasons while a test runs.
const OTHER_FILES: usize = 64;
/// Connections of an attack from one source.
const FROM_ONE: usize = 1500;
/// Addresses of an attack from many sources, and connections of each.
const SOURCES: u8 = 48;
const FROM_EACH: usize = 120;
/// Memory that an unidentified connection may cost a server.
const PER_CONNECTION: u64 = 48 << 10;
/// Memory that a program may gain for other reasons: new nodes, caches, the
/// allocator's own.
const OTHER_MEMORY: u64 = 24 << 20;

/// The files that a test needs itself: it holds thousands of sockets.
const OWN_FILES: u64 = 8192;

/// Raises the limit of open files to the hard limit; `None`, with the reason printed,
/// where that is too low.
fn raise_file_limit() -> Option<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    match limit.maximum {
        Some(files) if files < OWN_FILES => skip(&format!(
            "the system allows {files} open files, the test needs {OWN_FILES} (ulimit -Hn)"
        )),
        _ => Some(()),
    }
}

/// A lab, where our programs are built and a test may hold thousands of sockets.
fn lab_for_attacks() -> Option<Lab> {
    let lab = lab()?;
    installed(Kind::Warren)?;
    raise_file_limit()?;
    Some(lab)
}

/// The files that a program has open.
fn files(program: &Program) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", program.pid()))
        .unwrap()
        .count()
}

/// Files and memory of a program before an attack.
struct Baseline {
    files: usize,
    memory: u64,
}

impl Baseline {
    fn of(program: &Program) -> Self {
        Self {
            files: files(program),
            memory: program.resident_bytes().unwrap(),
        }
    }

    /// The program is alive and holds no more than `connections` cost. Connections that
    /// it closes may take a moment to end.
    fn holds(&self, program: &mut Program, connections: usize) {
        program.check_alive().unwrap();
        self.until_files(program, connections + OTHER_FILES);
        let grown = program
            .resident_bytes()
            .unwrap()
            .saturating_sub(self.memory);
        let allowed = OTHER_MEMORY + connections as u64 * PER_CONNECTION;
        assert!(grown <= allowed, "{grown} bytes more than before");
    }

    /// All files of the attack are closed.
    fn returns(&self, program: &Program) {
        self.until_files(program, OTHER_FILES);
    }

    fn until_files(&self, program: &Program, more: usize) {
        until("the program to close connections", PATIENCE, || {
            let files = files(program);
            if files <= self.files + more {
                Ok(())
            } else {
                Err(format!("{files} files, {} before", self.files))
            }
        })
        .unwrap();
    }
}

/// The beginnings of a conversation, one for each phase in which a sender may stop.
fn phases() -> Vec<Vec<u8>> {
    let mut hello = vec![22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    hello.extend([7; 200]);
    [
        // Nothing, a part of a head, a part of a TLS record.
        b"".to_vec(),
        b"GET /key?v=119 HTTP/1.1\r\nHost: x\r\nX-Half: ".to_vec(),
        hello,
        // A part of a body.
        b"POST /verify HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n{".to_vec(),
        // A kept connection after an answer.
        b"GET /key?v=119 HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        // An upgrade whose handshake does not follow.
        b"GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n".to_vec(),
    ]
    .into()
}

/// Opens `count` connections from `source`, spread over the phases. A connection
/// that the server refuses or closes is one attack less.
fn connections(from: &Host, source: IpAddr, to: SocketAddr, count: usize) -> Vec<TcpStream> {
    from.inside(move || {
        let phases = phases();
        (0..count)
            .filter_map(|n| {
                // Programs that the lab starts must not inherit thousands of files.
                let socket = rustix::net::socket_with(
                    rustix::net::AddressFamily::INET,
                    rustix::net::SocketType::STREAM,
                    rustix::net::SocketFlags::CLOEXEC,
                    None,
                )
                .unwrap();
                rustix::net::bind(&socket, &SocketAddr::new(source, 0)).unwrap();
                rustix::net::connect(&socket, &to).ok()?;
                let mut stream = TcpStream::from(socket);
                stream.write_all(&phases[n % phases.len()]).ok()?;
                Some(stream)
            })
            .collect()
    })
}

/// Sends one byte after the other on each connection until it is dropped.
struct Drip {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Vec<TcpStream>>>,
}

impl Drip {
    fn start(mut streams: Vec<TcpStream>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // A connection that the server closed is given up.
                streams.retain_mut(|stream| stream.write_all(b"a").is_ok());
                std::thread::park_timeout(Duration::from_millis(200));
            }
            streams
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Drip {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            drop(thread.join());
        }
    }
}

/// A host of the attacker with [`SOURCES`] addresses more.
fn attacker(lab: &mut Lab) -> (Host, Vec<IpAddr>) {
    let host = lab.host("attacker", Place::Open).unwrap();
    let sources: Vec<IpAddr> = (0..SOURCES)
        .map(|n| IpAddr::from(Ipv4Addr::new(203, 0, 113, 128 + n)))
        .collect();
    for source in &sources {
        let address = format!("{source}/24");
        host.run("ip", &["address", "add", &address, "dev", "eth0"])
            .unwrap();
    }
    (host, sources)
}

/// Attacks a TCP listener from one source and from many; `honest` is called while
/// each attack lasts.
fn attack(
    lab: &mut Lab,
    to: SocketAddr,
    mut program: impl FnMut(&mut dyn FnMut(&mut Program)),
    mut honest: impl FnMut(&mut Lab, &str),
) {
    let (host, sources) = attacker(lab);
    let mut before = None;
    program(&mut |program| before = Some(Baseline::of(program)));
    let before = before.unwrap();

    let one = connections(&host, host.address(), to, FROM_ONE);
    assert!(one.len() > PER_SOURCE, "the attack is too small");
    program(&mut |program| before.holds(program, PER_SOURCE));
    let drip = Drip::start(one);
    honest(lab, "first");
    program(&mut |program| before.holds(program, PER_SOURCE));
    drop(drip);
    program(&mut |program| before.returns(program));

    let all = sources.len() * FROM_EACH;
    let many: Vec<TcpStream> = sources
        .iter()
        .flat_map(|source| connections(&host, *source, to, FROM_EACH))
        .collect();
    program(&mut |program| before.holds(program, all));
    let drip = Drip::start(many);
    honest(lab, "second");
    program(&mut |program| before.holds(program, all));
    drop(drip);
    program(&mut |program| before.returns(program));
}

#[test]
fn nodes_join_while_unauthenticated_senders_hold_connections_of_the_server() {
    let Some(mut lab) = lab_for_attacks() else {
        return;
    };
    let host = lab.host("control", Place::Open).unwrap();
    let control = std::cell::RefCell::new(Control::start(&host, None).unwrap());
    let key = control.borrow().auth_key("ann").unwrap();
    let url = control.borrow().url().to_owned();
    let join = |lab: &mut Lab, name: &str| {
        let node = Node::start(&lab.host(name, Place::Open).unwrap(), Kind::Warren).unwrap();
        node.up(&url, &key, &[]).unwrap();
        node
    };
    let early = join(&mut lab, "early");
    let mut late = Vec::new();
    attack(
        &mut lab,
        SocketAddr::new(host.address(), 8080),
        |act| act(control.borrow_mut().program()),
        |lab, name| {
            // The node that was there before gets the new peer: its stream lives.
            let node = join(lab, name);
            traffic_flows(&early, &node);
            late.push(node);
        },
    );
}

#[test]
fn nodes_use_a_relay_while_unauthenticated_senders_hold_its_connections() {
    let Some(mut lab) = lab_for_attacks() else {
        return;
    };
    let Some(tailnet) = Tailnet::new(&mut lab, RelayKind::Warren) else {
        return;
    };
    // Without UDP, all packets of this node go through a relay.
    let early = tailnet.join(&lab.host("early", Place::NoUdp).unwrap(), Kind::Warren);
    let relay = tailnet.relays[0].host().address();
    let (control, key) = (tailnet.control.url().to_owned(), tailnet.key.clone());
    let relays = std::cell::RefCell::new(tailnet.relays);
    let mut late = Vec::new();
    attack(
        &mut lab,
        SocketAddr::new(relay, 443),
        |act| act(relays.borrow_mut()[0].program()),
        |lab, name| {
            let node = Node::start(&lab.host(name, Place::NoUdp).unwrap(), Kind::Warren).unwrap();
            node.up(&control, &key, &[]).unwrap();
            traffic_flows(&early, &node);
            late.push(node);
        },
    );
}

/// Channels that one node opens to the server, and holds until this is dropped.
struct ChannelsOfOneNode {
    _end: tokio::sync::oneshot::Sender<()>,
}

impl ChannelsOfOneNode {
    /// Joins as a node and opens so many channels, with an answered request on each.
    fn open(from: &Host, server: &str, key: &str, count: usize) -> Self {
        let (server, key) = (server.to_owned(), key.to_owned());
        let (end, ended) = tokio::sync::oneshot::channel();
        let (opened, wait) = std::sync::mpsc::channel();
        from.inside(move || {
            // A thread has the network of the thread that starts it.
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let channels = open_channels(&server, &key, count).await;
                    opened.send(channels.len()).unwrap();
                    // Ends when the other half is dropped.
                    let _ended = ended.await;
                });
            });
        });
        assert_eq!(wait.recv(), Ok(count));
        Self { _end: end }
    }
}

async fn open_channels(server: &str, key: &str, count: usize) -> Vec<ControlClient> {
    let machine = MachineSecret::generate(&mut SystemEntropy);
    let node_key = NodeSecret::generate(&mut SystemEntropy).public();
    let client = || ControlClient::new(server.parse().unwrap(), machine.clone(), Dialer::new());
    let registration = RegisterRequest {
        version: CapabilityVersion::CURRENT,
        node_key,
        auth: Some(RegisterAuth {
            auth_key: key.to_owned(),
        }),
        ..RegisterRequest::default()
    };
    let answer = client().register(&registration).await.unwrap();
    assert_eq!(answer.error, "");
    let update = MapRequest {
        version: CapabilityVersion::CURRENT,
        node_key,
        omit_peers: true,
        ..MapRequest::default()
    };
    let mut channels = Vec::new();
    for _ in 0..count {
        let channel = client();
        channel.update(&update).await.unwrap();
        channels.push(channel);
    }
    channels
}

#[test]
fn one_member_cannot_keep_other_nodes_out() {
    /// Channels that a node may have: `dial/src/connections.rs`.
    const PER_OWNER: usize = 8;
    /// Channels that it opens, more than the server has slots.
    const CHANNELS: usize = 800;
    let Some(mut lab) = lab_for_attacks() else {
        return;
    };
    let host = lab.host("control", Place::Open).unwrap();
    let mut control = Control::start_with(&host, None, &["--max-connections=400"]).unwrap();
    let key = control.auth_key("ann").unwrap();
    let url = control.url().to_owned();
    let member = lab.host("member", Place::Open).unwrap();
    let mut join = |name: &str| {
        let node = Node::start(&lab.host(name, Place::Open).unwrap(), Kind::Warren).unwrap();
        node.up(&url, &key, &[]).unwrap();
        node
    };
    let early = join("early");
    let before = Baseline::of(control.program());
    let held = ChannelsOfOneNode::open(&member, &url, &key, CHANNELS);
    before.holds(control.program(), PER_OWNER);
    let late = join("late");
    traffic_flows(&early, &late);
    before.holds(control.program(), PER_OWNER);
    drop(held);
    before.returns(control.program());
}

/// Opens connections to the socket as a user without rights, and sends a part of a
/// request on each.
///
/// # Errors
/// This process cannot act as another user.
fn local_connections(
    socket: &std::path::Path,
    count: usize,
) -> rustix::io::Result<Vec<UnixStream>> {
    let socket = socket.to_owned();
    as_user(65534, move || {
        let opened = (0..count).filter_map(|n| {
            let mut stream = UnixStream::connect(&socket).ok()?;
            let part: &[u8] = match n % 3 {
                0 => b"",
                1 => b"GET /localapi/v0/status HTTP/1.1\r\nHost: x",
                _ => b"POST /localapi/v0/start HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{",
            };
            stream.write_all(part).ok()?;
            Some(stream)
        });
        opened.collect()
    })
}

/// Runs a job as another user.
///
/// # Errors
/// This process cannot act as another user.
fn as_user<T: Send + 'static>(
    uid: u32,
    job: impl FnOnce() -> T + Send + 'static,
) -> rustix::io::Result<T> {
    std::thread::spawn(move || {
        // Only this thread becomes another user.
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(uid))?;
        Ok(job())
    })
    .join()
    .unwrap()
}

/// The answer of the daemon to a user that asks for its status.
fn status_as(socket: &std::path::Path, uid: u32) -> String {
    let socket = socket.to_owned();
    as_user(uid, move || {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let request = b"GET /localapi/v0/status HTTP/1.1\r\nHost: local-tailscaled.sock\r\nConnection: close\r\n\r\n";
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
    .unwrap()
}

#[test]
fn the_administrator_is_served_while_users_hold_connections_of_the_local_api() {
    let Some(mut lab) = lab_for_attacks() else {
        return;
    };
    let Some(tailnet) = Tailnet::new(&mut lab, RelayKind::Warren) else {
        return;
    };
    let mut alice = tailnet.join(&lab.host("alice", Place::Open).unwrap(), Kind::Warren);
    let bob = tailnet.join(&lab.host("bob", Place::Open).unwrap(), Kind::Warren);
    // The other user may reach the socket.
    let folder = alice.host().folder().to_owned();
    for open in [lab.folder(), &folder, &folder.join("node")] {
        std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o711)).unwrap();
    }
    let before = Baseline::of(alice.daemon());
    let held = match local_connections(&folder.join("node/s.sock"), 1000) {
        Ok(held) => held,
        Err(error) => {
            skip::<()>(&format!("cannot act as another user: {error}"));
            return;
        }
    };
    assert!(held.len() > LOCAL_API, "the attack is too small");
    before.holds(alice.daemon(), LOCAL_API);
    for _ in 0..20 {
        alice.status_json().unwrap();
        let other = status_as(&folder.join("node/s.sock"), 65533);
        assert!(other.starts_with("HTTP/1.1 200"), "{other}");
    }
    traffic_flows(&alice, &bob);
    before.holds(alice.daemon(), LOCAL_API);
    drop(held);
    before.returns(alice.daemon());
    alice.status_json().unwrap();
}

/// The name server of a node.
const MAGIC_DNS: (Ipv4Addr, u16) = (Ipv4Addr::new(100, 100, 100, 100), 53);

/// A question for the A records of a name.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

#[test]
fn names_of_nodes_resolve_while_the_upstream_is_silent_under_a_flood_of_questions() {
    /// Questions in flight to upstreams, at most.
    const EXCHANGES: usize = 512;
    let Some(mut lab) = lab_for_attacks() else {
        return;
    };
    let Some(tailnet) = Tailnet::new(&mut lab, RelayKind::Warren) else {
        return;
    };
    // A resolver that takes questions and never answers.
    let silent = lab.host("silent", Place::Open).unwrap();
    let resolver = silent.inside(|| UdpSocket::bind("0.0.0.0:53").unwrap());
    let host = lab.host("alice", Place::Open).unwrap();
    let line = format!("echo nameserver {} > /etc/resolv.conf", silent.address());
    host.run("sh", &["-c", &line]).unwrap();
    let mut alice = tailnet.join(&host, Kind::Warren);
    let bob = tailnet.join(&lab.host("bob", Place::Open).unwrap(), Kind::Warren);
    traffic_flows(&alice, &bob);
    let name = alice.peer("bob").unwrap()["DNSName"]
        .as_str()
        .unwrap()
        .trim_end_matches('.')
        .to_owned();
    let IpAddr::V4(bob_address) = address(&bob, false) else {
        unreachable!("the first family is IPv4")
    };

    let before = Baseline::of(alice.daemon());
    let flood = move || {
        let sockets: Vec<UdpSocket> = (0..16)
            .map(|_| UdpSocket::bind("0.0.0.0:0").unwrap())
            .collect();
        for n in 0..20_000_u16 {
            let outside = format!("n{n}.example.org");
            // The daemon may drop what comes too fast.
            let _sent = sockets[usize::from(n % 16)].send_to(&question(n, &outside), MAGIC_DNS);
        }
    };
    let ask = move || -> Result<Vec<u8>, std::io::Error> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.send_to(&question(7, &name), MAGIC_DNS)?;
        let mut answer = vec![0; 1500];
        let len = socket.recv(&mut answer)?;
        answer.truncate(len);
        Ok(answer)
    };
    for _ in 0..3 {
        host.inside(flood);
        let ask = ask.clone();
        let answer = until("an own name to resolve", PATIENCE, || {
            host.inside(ask.clone())
        })
        .unwrap();
        assert!(answer.ends_with(&bob_address.octets()), "{answer:?}");
        before.holds(alice.daemon(), EXCHANGES);
    }
    // The attack reached the upstream: the flood was not simply lost.
    let mut one = [0; 1500];
    resolver.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(resolver.recv(&mut one).unwrap() > 12);
    traffic_flows(&alice, &bob);
    before.returns(alice.daemon());
}

/// Asks MagicDNS of the host for many names, over and over, until this is dropped.
struct QuestionFlood {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl QuestionFlood {
    fn start(from: &Host) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = from.inside(move || {
            std::thread::spawn(move || {
                let sockets: Vec<UdpSocket> = (0..16)
                    .map(|_| UdpSocket::bind("0.0.0.0:0").unwrap())
                    .collect();
                let mut n = 0_u16;
                while !stopped.load(Ordering::Relaxed) {
                    n = n.wrapping_add(1);
                    let name = format!("n{n}.example.org");
                    let socket = &sockets[usize::from(n % 16)];
                    // The daemon may drop what comes too fast.
                    let _sent = socket.send_to(&question(n, &name), MAGIC_DNS);
                }
            })
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for QuestionFlood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Answers questions for one name, each after as many others as there are places for
/// questions under way in MagicDNS, and no other question.
fn slow_upstream(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    const PLACES: usize = 256;
    let wanted = question(0, name)[12..].to_vec();
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let mut waiting: Vec<(Vec<u8>, SocketAddr, usize)> = Vec::new();
    let mut buffer = [0; 1500];
    while !stop.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let asked = &buffer[..len];
        if asked.get(12..12 + wanted.len()) == Some(&wanted[..]) {
            let mut answer = asked[..12 + wanted.len()].to_vec();
            // One answer, without other records: 192.0.2.7.
            answer[2] |= 0x80;
            answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
            waiting.push((answer, from, 0));
        }
        waiting.retain_mut(|(answer, from, others)| {
            *others += 1;
            if *others < 2 * PLACES {
                return true;
            }
            let _sent = socket.send_to(answer, *from);
            false
        });
    }
}

/// The other names are asked from a few ports, the honest one from its own.
#[test]
fn names_of_others_resolve_beside_a_flood_of_questions() {
    const NAME: &str = "honest.example.com";
    let Some(mut lab) = lab_for_attacks() else {
        return;
    };
    let Some(tailnet) = Tailnet::new(&mut lab, RelayKind::Warren) else {
        return;
    };
    let upstream = lab.host("upstream", Place::Open).unwrap();
    let socket = upstream.inside(|| UdpSocket::bind("0.0.0.0:53").unwrap());
    let host = lab.host("alice", Place::Open).unwrap();
    let line = format!("echo nameserver {} > /etc/resolv.conf", upstream.address());
    host.run("sh", &["-c", &line]).unwrap();
    let mut alice = tailnet.join(&host, Kind::Warren);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let answering = std::thread::spawn(move || slow_upstream(&socket, NAME, &stopped));
    let flood = QuestionFlood::start(&host);
    let ask = || -> Result<Vec<u8>, std::io::Error> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send_to(&question(7, NAME), MAGIC_DNS)?;
        let mut answer = vec![0; 1500];
        let len = socket.recv(&mut answer)?;
        answer.truncate(len);
        match answer.ends_with(&[192, 0, 2, 7]) {
            true => Ok(answer),
            false => Err(std::io::Error::other("an error of MagicDNS")),
        }
    };
    until("a name of others to resolve", PATIENCE, || host.inside(ask)).unwrap();
    alice.daemon().check_alive().unwrap();
    drop(flood);
    stop.store(true, Ordering::Relaxed);
    answering.join().unwrap();
}
