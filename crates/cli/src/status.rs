//! `warren status`.
//!
//! The table is exactly that of the official client, because scripts cut it into
//! columns: address, name, owner, system, state.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use jiff::Timestamp;
use unicode_width::UnicodeWidthStr as _;
use warren_control_types::{UserId, UserProfile};

use super::args::Given;
use super::{Failure, Io, not_running, shown};
use warren_local_api::VERSION;
use warren_local_api::client::Client;
use warren_local_api::ordered_json::OrderedJson;
use warren_local_api::types::{PeerStatus, Status};

pub(super) async fn run(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let show_peers = given.switch("peers").unwrap_or(true);
    let show_self = given.switch("self").unwrap_or(true);
    let active_only = given.is("active");
    let (mut raw, version) = client.raw_status(show_peers).await?;
    if !version.is_empty() && version != VERSION {
        io.note(format_args!(
            "Warning: client version {VERSION:?} != daemon version {version:?}"
        ));
    }
    if given.is("json") {
        trim(&mut raw, show_self, active_only);
        let text = warren_terminal::json(&raw).map_err(Failure::failed)?;
        return io
            .out
            .write_all(text.as_bytes())
            .and_then(|()| io.out.flush())
            .map_err(Failure::output);
    }
    let raw = serde_json::to_value(&raw).map_err(Failure::failed)?;
    let status: Status = serde_json::from_value(raw).map_err(Failure::failed)?;
    let status = shown(&status)?;
    if let Some(text) = not_running(&status) {
        io.say(text)?;
        if status.backend_state == "NeedsLogin" && !status.health.is_empty() {
            io.say(health(&status.health).trim_end())?;
        }
        return Err(Failure::Failed(String::new()));
    }
    let table = Table {
        header: given.is("header"),
        show_self,
        active_only,
        now: Timestamp::now(),
    };
    let text = table.render(&status);
    io.out
        .write_all(text.as_bytes())
        .and_then(|()| io.out.flush())
        .map_err(Failure::output)
}

/// Leaves out of the JSON form what the flags leave out of the table.
fn trim(raw: &mut OrderedJson, show_self: bool, active_only: bool) {
    if !show_self && let Some(own) = raw.get_mut("Self") {
        *own = OrderedJson::Null;
    }
    if active_only && let Some(OrderedJson::Object(peers)) = raw.get_mut("Peer") {
        peers.retain(|(_, peer)| peer.get("Active") == Some(&OrderedJson::Bool(true)));
    }
}

/// The table of the text form.
pub(super) struct Table {
    pub(super) header: bool,
    pub(super) show_self: bool,
    pub(super) active_only: bool,
    pub(super) now: Timestamp,
}

impl Table {
    pub(super) fn render(&self, status: &Status) -> String {
        let mut rows: Vec<[String; 5]> = Vec::new();
        if self.header {
            rows.push(["IP", "Hostname", "Owner", "OS", "Status"].map(str::to_owned));
            rows.push(["--", "--------", "-----", "--", "------"].map(str::to_owned));
        }
        if self.show_self {
            rows.push(self.row(&status.self_status, status));
        }
        let mut peers: Vec<&PeerStatus> = status
            .peer
            .values()
            .filter(|peer| !peer.sharee_node && (!self.active_only || peer.active))
            .filter(|peer| peer.exit_node || !peer.dns_name.ends_with(".mullvad.ts.net."))
            .collect();
        peers.sort_by(|a, b| by_name(a, b));
        rows.extend(peers.into_iter().map(|peer| self.row(peer, status)));
        let mut text = columns(&rows);
        if !status.health.is_empty() {
            text.push_str(&health(&status.health));
        }
        text
    }

    fn row(&self, peer: &PeerStatus, status: &Status) -> [String; 5] {
        [
            peer.tailscale_ips
                .first()
                .map(ToString::to_string)
                .unwrap_or_default(),
            name(peer, &status.magic_dns_suffix),
            owner(peer, &status.user),
            peer.os.clone(),
            self.state(peer),
        ]
    }

    fn state(&self, peer: &PeerStatus) -> String {
        let traffic = peer.rx_bytes != 0 || peer.tx_bytes != 0;
        let seen = match (peer.online, peer.last_seen.0) {
            (true, _) => String::new(),
            (false, Some(at)) => format!("offline, last seen {} ago", ago(self.now, at)),
            (false, None) => "offline".to_owned(),
        };
        let offline = if seen.is_empty() {
            String::new()
        } else {
            format!("; {seen}")
        };
        let mut text = if peer.active {
            let mut text = "active; ".to_owned();
            if peer.exit_node {
                text.push_str("exit node; ");
            } else if peer.exit_node_option {
                text.push_str("offers exit node; ");
            }
            if !peer.cur_addr.is_empty() {
                text.push_str(&format!("direct {}", peer.cur_addr));
            } else if !peer.peer_relay.is_empty() {
                text.push_str(&format!("peer-relay {}", peer.peer_relay));
            } else if !peer.relay.is_empty() {
                text.push_str(&format!("relay {:?}", peer.relay));
            }
            if !peer.online {
                text.push_str("; offline");
            }
            text
        } else if peer.exit_node {
            format!("idle; exit node{offline}")
        } else if peer.exit_node_option {
            format!("idle; offers exit node{offline}")
        } else if traffic {
            format!("idle{offline}")
        } else if seen.is_empty() {
            "-".to_owned()
        } else {
            seen
        };
        if traffic {
            text.push_str(&format!(", tx {} rx {}", peer.tx_bytes, peer.rx_bytes));
        }
        text
    }
}

fn health(problems: &[String]) -> String {
    let mut text = "\n# Health check:\n".to_owned();
    for problem in problems {
        text.push_str(&format!("#     - {problem}\n"));
    }
    text
}

fn by_name(a: &PeerStatus, b: &PeerStatus) -> Ordering {
    let key = |peer: &PeerStatus| {
        let name = if peer.dns_name.is_empty() {
            &peer.host_name
        } else {
            &peer.dns_name
        };
        (
            name.to_ascii_lowercase(),
            peer.tailscale_ips.clone(),
            peer.public_key,
        )
    };
    key(a).cmp(&key(b))
}

/// The DNS name without the network's suffix, or the host name in quotes.
fn name(peer: &PeerStatus, suffix: &str) -> String {
    let full = peer.dns_name.trim_end_matches('.');
    if full.is_empty() {
        return format!("({:?})", peer.host_name);
    }
    full.strip_suffix(suffix.trim_matches('.'))
        .and_then(|short| short.strip_suffix('.'))
        .filter(|short| !suffix.is_empty() && !short.is_empty())
        .unwrap_or(full)
        .to_owned()
}

/// The owner's login up to and with the `@`.
fn owner(peer: &PeerStatus, users: &BTreeMap<UserId, UserProfile>) -> String {
    let id = if peer.alt_sharer_user_id == UserId(0) {
        peer.user_id
    } else {
        peer.alt_sharer_user_id
    };
    if id == UserId(0) {
        return "-".to_owned();
    }
    match users.get(&id) {
        None => id.to_string(),
        Some(user) => match user.login_name.split_once('@') {
            Some((front, _)) => format!("{front}@"),
            None => user.login_name.clone(),
        },
    }
}

/// A time in the past, in its largest unit.
pub(super) fn ago(now: Timestamp, at: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(at.as_second()).max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Rows as columns, two spaces apart; the last one has no padding. Wide characters
/// take two columns.
fn columns(rows: &[[String; 5]]) -> String {
    let mut widths = [0; 5];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    let mut text = String::new();
    for row in rows {
        let [cells @ .., last] = row;
        for (cell, width) in cells.iter().zip(widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width + 2 - cell.width()));
        }
        text.push_str(last);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use warren_keys::NodePublic;
    use warren_local_api::go_json::GoTime;

    const NOW: i64 = 1_700_000_000;

    fn table() -> Table {
        Table {
            header: false,
            show_self: true,
            active_only: false,
            now: Timestamp::new(NOW, 0).unwrap(),
        }
    }

    fn peer(number: u8, name: &str) -> PeerStatus {
        PeerStatus {
            public_key: NodePublic::from_bytes([number; 32]),
            dns_name: format!("{name}.net.example."),
            host_name: name.to_owned(),
            os: "linux".into(),
            user_id: UserId(1),
            tailscale_ips: vec![format!("100.64.0.{number}").parse().unwrap()],
            online: true,
            ..PeerStatus::default()
        }
    }

    fn seen(peer: PeerStatus, seconds_ago: i64) -> PeerStatus {
        let at = Timestamp::new(NOW - seconds_ago, 0).unwrap();
        PeerStatus {
            online: false,
            last_seen: GoTime(Some(at)),
            ..peer
        }
    }

    #[test]
    fn table_matches_the_official_client() {
        let peers = [
            PeerStatus {
                active: true,
                relay: "ams".into(),
                tx_bytes: 2,
                rx_bytes: 1,
                ..peer(3, "nas")
            },
            PeerStatus {
                active: true,
                cur_addr: "198.51.100.7:41641".into(),
                relay: "ams".into(),
                ..peer(2, "db")
            },
            seen(peer(4, "phone"), 720),
            PeerStatus {
                dns_name: String::new(),
                user_id: UserId(0),
                ..peer(5, "odd\u{1b}[2J")
            },
            PeerStatus {
                sharee_node: true,
                ..peer(6, "hidden")
            },
        ];
        let status = Status {
            magic_dns_suffix: "net.example".into(),
            self_status: peer(1, "laptop"),
            peer: peers
                .into_iter()
                .map(|peer| (peer.public_key, peer))
                .collect(),
            user: [(
                UserId(1),
                UserProfile {
                    login_name: "ann@example.com".into(),
                    ..UserProfile::default()
                },
            )]
            .into(),
            health: vec!["no relay".into()],
            ..Status::default()
        };
        assert_eq!(
            table().render(&shown(&status).unwrap()),
            "100.64.0.1  laptop       ann@  linux  -\n\
             100.64.0.2  db           ann@  linux  active; direct 198.51.100.7:41641\n\
             100.64.0.3  nas          ann@  linux  active; relay \"ams\", tx 2 rx 1\n\
             100.64.0.5  (\"odd\u{fffd}[2J\")  -     linux  -\n\
             100.64.0.4  phone        ann@  linux  offline, last seen 12m ago\n\
             \n\
             # Health check:\n\
             #     - no relay\n"
        );
    }

    #[test]
    fn states_follow_the_grammar() {
        let base = peer(1, "a");
        let traffic = PeerStatus {
            tx_bytes: 5,
            rx_bytes: 6,
            ..base.clone()
        };
        let cases = [
            (base.clone(), "-"),
            (traffic.clone(), "idle, tx 5 rx 6"),
            (
                PeerStatus {
                    online: false,
                    ..base.clone()
                },
                "offline",
            ),
            (
                seen(traffic, 5),
                "idle; offline, last seen 5s ago, tx 5 rx 6",
            ),
            (
                PeerStatus {
                    exit_node: true,
                    ..base.clone()
                },
                "idle; exit node",
            ),
            (
                seen(
                    PeerStatus {
                        exit_node_option: true,
                        ..base.clone()
                    },
                    7200,
                ),
                "idle; offers exit node; offline, last seen 2h ago",
            ),
            (
                PeerStatus {
                    active: true,
                    exit_node: true,
                    relay: "ams".into(),
                    online: false,
                    ..base.clone()
                },
                "active; exit node; relay \"ams\"; offline",
            ),
            (
                PeerStatus {
                    active: true,
                    peer_relay: "192.0.2.1:7:vni:3".into(),
                    ..base
                },
                "active; peer-relay 192.0.2.1:7:vni:3",
            ),
        ];
        for (peer, expected) in cases {
            assert_eq!(table().state(&peer), expected);
        }
    }
}
