//! Ports, sockets and rights that a program needs and does not get.

use std::net::UdpSocket;

use warren_lab::{Kind, Node, PATIENCE, Place, Program, ours, until};

use crate::refusals::{ends, ends_as, lab_with_control, traces};
use warren_lab::scenario::{installed, lab, skip, traffic_flows};

#[test]
fn a_taken_port_or_socket_is_named() {
    let Some((mut lab, control)) = lab_with_control() else {
        return;
    };
    let host = lab.host("crowded", Place::Open).unwrap();
    let ip = host.address();
    let tcp = host
        .inside(move || std::net::TcpListener::bind((ip, 8080)))
        .unwrap();
    let udp = host.inside(move || UdpSocket::bind((ip, 3478))).unwrap();
    let at = |flag: &str, port: u16| format!("--{flag}={ip}:{port}");
    let state = |name: &str| format!("--state-dir={}", host.folder().join(name).display());

    let gives_up = |name: &str, more: &[&str], words: &[&str]| {
        ends(&host, name, &[&["serve"], more].concat(), words);
    };
    let (listen, stun) = (|port| at("listen", port), |port| at("stun-listen", port));
    let server = state("c");
    gives_up(
        "warren-control",
        &[&server, &listen(8080)],
        &["8080", "another program", "--listen"],
    );
    gives_up(
        "warren-control",
        &[&server, &listen(8081)],
        &["3478", "another program", "--stun-listen"],
    );
    let (relay, name) = (state("r"), format!("--hostname={ip}"));
    gives_up(
        "warren-relay",
        &[&relay, &name, &listen(8080), &stun(3479)],
        &["8080", "DERP", "another port"],
    );
    gives_up(
        "warren-relay",
        &[&relay, &name, &listen(8082), &stun(3478)],
        &["3478", "STUN", "another port"],
    );
    drop((tcp, udp));
    // The attempt that failed left nothing that blocks the next one.
    let arguments = ["serve".to_owned(), state("c"), at("listen", 8080)];
    let mut second = Program::start(
        &host,
        "control",
        &ours("warren-control").unwrap(),
        &arguments,
        &[],
    )
    .unwrap();
    until("it to serve", PATIENCE, || {
        second.check_alive()?;
        let (state, binary) = (state("c"), ours("warren-control")?.display().to_string());
        host.run(&binary, &[&state, "users", "list"])
    })
    .unwrap();

    // Two servers on one state would overwrite each other.
    let same = format!(
        "--state-dir={}",
        lab.folder().join("control/control").display()
    );
    gives_up(
        "warren-control",
        &[&same, &listen(8083), "--stun-listen=off"],
        &["another warren-control", "--state-dir"],
    );
    drop(control);
}

#[test]
fn a_node_falls_back_to_another_port_and_never_takes_a_socket_away() {
    let Some((mut lab, control)) = lab_with_control() else {
        return;
    };
    let key = control.auth_key("default").unwrap();
    let host = lab.host("alice", Place::Open).unwrap();
    let taken = host.inside(|| {
        Ok::<_, std::io::Error>((
            UdpSocket::bind("0.0.0.0:41641")?,
            UdpSocket::bind("[::]:41641").ok(),
        ))
    });
    let taken = taken.unwrap();
    let alice = Node::start(&host, Kind::Warren).unwrap();
    alice.up(control.url(), &key, &[]).unwrap();
    let bob = Node::start(&lab.host("bob", Place::Easy).unwrap(), Kind::Warren).unwrap();
    bob.up(control.url(), &key, &[]).unwrap();
    traffic_flows(&bob, &alice);
    let direct = bob.wait_until_direct("alice").unwrap();
    assert!(!direct.ends_with(":41641"), "{direct}");
    drop(taken);

    let socket = format!("--socket={}", host.folder().join("node/s.sock").display());
    let other = format!("--state-dir={}", host.folder().join("other").display());
    ends(
        &host,
        "warren",
        &["daemon", &socket, &other, "--tun=warren1"],
        &["s.sock", "another daemon", "--socket"],
    );
    alice.status_json().unwrap();
    let file = host.folder().join("a-file");
    std::fs::write(&file, "precious").unwrap();
    ends(
        &host,
        "warren",
        &[
            "daemon",
            &format!("--socket={}", file.display()),
            &other,
            "--tun=warren1",
        ],
        &["a-file", "not a socket"],
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    let socket = format!("--socket={}", host.folder().join("new.sock").display());
    let before = traces(&host);
    ends(
        &host,
        "warren",
        &["daemon", &socket, &other, "--tun=warren0"],
        &["warren0"],
    );
    assert!(
        !host.folder().join("new.sock").exists(),
        "the socket stays behind"
    );
    assert_eq!(
        traces(&host),
        before,
        "the daemon that runs keeps its rules"
    );
    traffic_flows(&bob, &alice);
}

#[test]
fn without_the_right_to_make_an_interface_nothing_is_left_behind() {
    let Some(mut lab) = lab() else { return };
    if installed(Kind::Warren).is_none() {
        return;
    }
    let host = lab.host("alice", Place::Open).unwrap();
    let before = traces(&host);
    let state = format!("--state-dir={}", host.folder().join("n").display());
    let path = host.folder().join("n.sock");
    let socket = format!("--socket={}", path.display());
    let daemon = ["daemon", &state, &socket, "--tun=warren0"];

    let warren = ours("warren").unwrap().display().to_string();
    let mut powerless = vec![
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--",
        warren.as_str(),
    ];
    powerless.extend(daemon);
    if let Err(error) = host.run(
        "setpriv",
        &["--bounding-set=-all", "--inh-caps=-all", "--", "true"],
    ) {
        skip::<()>(&format!("rights cannot be taken away here: {error}"));
    } else {
        ends_as(&host, "setpriv", &powerless, &["not permitted", "root"]);
        assert!(!path.exists(), "the socket stays behind");
        assert_eq!(traces(&host), before);
    }

    host.run("mount", &["-t", "tmpfs", "none", "/dev/net"])
        .unwrap();
    ends(&host, "warren", &daemon, &["/dev/net/tun", "modprobe tun"]);
    assert!(!path.exists(), "the socket stays behind");
    assert_eq!(traces(&host), before);
    host.run("umount", &["/dev/net"]).unwrap();
    let arguments: Vec<String> = daemon.iter().map(|&word| word.to_owned()).collect();
    let mut started =
        Program::start(&host, "warren", &ours("warren").unwrap(), &arguments, &[]).unwrap();
    until("the daemon to answer", PATIENCE, || {
        started.check_alive()?;
        host.run(&warren, &[&socket, "status", "--json"])
    })
    .unwrap();
}
