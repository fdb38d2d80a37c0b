//! Garbage on every port.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use warren_lab::{Control, Host, Kind, Lab, Node, Place, RelayKind};

use warren_lab::scenario::{Tailnet, installed, lab, traffic_flows};

/// Bytes that mean nothing, the same in every run.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        // xorshift64 (Marsaglia 2003).
        (0..len)
            .map(|_| {
                self.0 ^= self.0 << 13;
                self.0 ^= self.0 >> 7;
                self.0 ^= self.0 << 17;
                self.0.to_le_bytes()[3]
            })
            .collect()
    }
}

/// Sends `parts` on a connection of its own and lets the other side react;
/// whatever it does is fine as long as it lives.
fn tcp_shot(from: &Host, to: SocketAddr, parts: Vec<Vec<u8>>) {
    let result = from.inside(move || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        for part in parts {
            if stream.write_all(&part).is_err() {
                return Ok(()); // the peer closed its side
            }
        }
        drop(stream.shutdown(Shutdown::Write));
        let mut answer = [0; 512];
        while matches!(stream.read(&mut answer), Ok(len) if len > 0) {}
        Ok(())
    });
    result.unwrap();
}

/// Input of an unauthenticated sender for a port that speaks HTTP, TLS or DERP.
fn tcp_garbage(noise: &mut Noise) -> Vec<Vec<Vec<u8>>> {
    let mut shots = Vec::new();
    for len in [0, 1, 3, 5, 24, 1000, 100_000] {
        shots.push(vec![noise.bytes(len)]);
    }
    // TLS records: nonsense in a handshake, and a length that is never reached.
    let mut hello = vec![22, 3, 1, 2, 0, 1, 0, 1, 252];
    hello.extend(noise.bytes(508));
    shots.push(vec![hello]);
    shots.push(vec![vec![22, 3, 3, 255, 255, 1]]);
    for head in [
        "GET / HTTP/1.1",
        "GET /key?v=99999999999999999999 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /key?v=1 HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /machine/map HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n{}}",
        "POST /verify HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551615\r\n\r\n{",
        "POST /verify HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{",
        "POST /verify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        "GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n",
        "GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: derp\r\nSec-WebSocket-Key: AAAA\r\n\r\n",
        "POST /ts2021 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tailscale-control-protocol\r\n\
         X-Tailscale-Handshake: AAAA\r\n\r\n",
        "POST /ts2021 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
         Upgrade: tailscale-control-protocol\r\nX-Tailscale-Handshake: !!!!\r\n\r\n",
        "\r\n\r\n\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        shots.push(vec![head.as_bytes().to_vec(), noise.bytes(300)]);
    }
    // A head without end, and a body without end.
    let line = format!("X-Long: {}\r\n", "a".repeat(8000));
    let mut endless = vec![b"GET / HTTP/1.1\r\nHost: x\r\n".to_vec()];
    endless.extend(std::iter::repeat_n(line.into_bytes(), 500));
    shots.push(endless);
    let mut huge =
        vec![b"POST /verify HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n".to_vec()];
    huge.extend(std::iter::repeat_n(vec![b' '; 100_000], 80));
    shots.push(huge);
    let mut many = vec![b"GET / HTTP/1.1\r\nHost: x\r\n".to_vec()];
    many.extend((0..2000).map(|n| format!("X-{n}: y\r\n").into_bytes()));
    many.push(b"\r\n".to_vec());
    shots.push(many);
    // DERP frames after an upgrade: a length of four gigabytes, unknown kinds.
    for frame in [
        vec![2, 255, 255, 255, 255],
        vec![99, 0, 0, 0, 1, 7],
        vec![4, 0, 0, 0, 3, 1, 2, 3],
    ] {
        let head = b"GET /derp HTTP/1.1\r\nHost: x\r\nDerp-Fast-Start: 1\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n";
        shots.push(vec![head.to_vec(), frame, noise.bytes(2000)]);
    }
    shots
}

/// Input of an unauthenticated sender for a UDP port that speaks WireGuard, disco or STUN.
fn udp_garbage(noise: &mut Noise) -> Vec<Vec<u8>> {
    let mut packets: Vec<Vec<u8>> = (0..1500).step_by(37).map(|len| noise.bytes(len)).collect();
    // WireGuard's four kinds in their right and in wrong lengths.
    for (kind, len) in [
        (1, 148),
        (2, 92),
        (3, 64),
        (4, 32),
        (4, 1400),
        (1, 147),
        (2, 4),
        (4, 15),
    ] {
        let mut packet = vec![kind, 0, 0, 0];
        packet.extend(noise.bytes(len - 4));
        packets.push(packet);
    }
    // Disco's magic with an unknown sender.
    for len in [0, 31, 32, 56, 80, 500] {
        let mut packet = b"TS\xf0\x9f\x92\xac".to_vec();
        packet.extend(noise.bytes(len));
        packets.push(packet);
    }
    // STUN's cookie: requests, unsolicited answers, attributes that are too long.
    for kind in [[0_u8, 1], [1, 1], [1, 17], [0, 17]] {
        for body in [
            vec![],
            vec![0, 32, 0, 255, 1],
            vec![0, 32, 0, 8, 0, 1, 1, 1, 9, 9, 9, 9],
            noise.bytes(64),
        ] {
            let mut packet = kind.to_vec();
            packet.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
            packet.extend([0x21, 0x12, 0xa4, 0x42]);
            packet.extend(noise.bytes(12));
            packet.extend(body);
            packets.push(packet);
        }
    }
    packets
}

#[test]
fn garbage_on_every_port_is_dropped_and_good_clients_are_served() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        let mut tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        let own_host = lab.host("own", Place::Open).unwrap();
        let mut own = Control::start(&own_host, None).unwrap();
        let mut alice = tailnet.join(&lab.host("alice", Place::Open).unwrap(), Kind::Warren);
        let bob = tailnet.join(&lab.host("bob", Place::Open).unwrap(), Kind::Warren);
        traffic_flows(&alice, &bob);
        let outsider = lab.host("outsider", Place::Open).unwrap();
        let mut noise = Noise(0x5eed_0bad_f00d_cafe);

        let control_ip = tailnet.control.host().address();
        let relay_ip = tailnet.relays[0].host().address();
        let tcp = [
            (control_ip, 8080),
            (relay_ip, 443),
            (own_host.address(), 8080),
        ];
        let udp = [
            (relay_ip, 3478),
            (own_host.address(), 3478),
            (alice.host().address(), 41641),
        ];
        let programs = |tailnet: &mut Tailnet, own: &mut Control, alice: &mut Node| {
            let mut before = Vec::new();
            for program in [
                tailnet.control.program(),
                tailnet.relays[0].program(),
                own.program(),
                alice.daemon(),
            ] {
                program.check_alive().unwrap();
                before.push((program.pid(), program.resident_bytes().unwrap()));
            }
            before
        };
        let before = programs(&mut tailnet, &mut own, &mut alice);

        // Half a request each, held open to the end.
        let mut held = Vec::new();
        for (ip, port) in tcp {
            for n in 0..100_u32 {
                let halves: [&[u8]; 4] = [b"", b"G", b"GET /derp HTTP/1.1\r\nHo", &[22, 3, 1, 2]];
                let half = halves[usize::try_from(n % 4).unwrap()].to_vec();
                let stream = outsider.inside(move || {
                    let mut stream = TcpStream::connect((ip, port))?;
                    stream.write_all(&half)?;
                    Ok::<_, std::io::Error>(stream)
                });
                held.push(stream.unwrap());
            }
        }
        for (ip, port) in tcp {
            for shot in tcp_garbage(&mut noise) {
                tcp_shot(&outsider, SocketAddr::new(ip, port), shot);
            }
        }
        for (ip, port) in udp {
            udp_shots(&outsider, ip, port, udp_garbage(&mut noise));
        }

        // A good client is served meanwhile.
        let carol = tailnet.join(&lab.host("carol", Place::NoUdp).unwrap(), Kind::Warren);
        traffic_flows(&carol, &alice);
        traffic_flows(&alice, &bob);
        let dave = Node::start(&lab.host("dave", Place::NoUdp).unwrap(), Kind::Warren).unwrap();
        dave.up(own.url(), &own.auth_key("default").unwrap(), &[])
            .unwrap();
        let after = programs(&mut tailnet, &mut own, &mut alice);
        for ((pid, bytes), (pid_after, bytes_after)) in before.into_iter().zip(after) {
            assert_eq!(pid, pid_after);
            let grown = bytes_after.saturating_sub(bytes);
            assert!(grown < 32 << 20, "{bytes} bytes became {bytes_after}");
        }
        drop(held);
        Some(())
    };
    run(&mut lab);
}

fn udp_shots(from: &Host, ip: IpAddr, port: u16, packets: Vec<Vec<u8>>) {
    let sent = from.inside(move || -> std::io::Result<()> {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        for packet in packets {
            socket.send_to(&packet, (ip, port))?;
        }
        Ok(())
    });
    sent.unwrap();
}
