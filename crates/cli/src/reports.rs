//! Commands that show what one request to the daemon answers: `metrics`, `bugreport`,
//! `exit-node`, `syspolicy`; and those that only print a text: `licenses`, `update`.

use std::io::Write as _;
use std::path::Path;

use super::args::Given;
use super::{Failure, Io, shown};
use warren_local_api::client::Client;
use warren_local_api::endpoints::{BugReport, GetStatus, GetUserMetrics};
use warren_local_api::types::{PeerStatus, Status};

/// `metrics print` and `metrics write FILE`.
pub(super) async fn metrics(
    given: &Given<'_>,
    client: &Client,
    io: &mut Io,
) -> Result<(), Failure> {
    let text = client.call(GetUserMetrics).await?;
    match given.0.subcommand() {
        Some(("write", given)) => {
            let path = Given(given).text("FILE").unwrap_or_default();
            write_atomically(Path::new(path), text.as_bytes())
                .map_err(|error| Failure::failed(format_args!("cannot write {path}: {error}")))
        }
        _ => io.say(text.trim_end()),
    }
}

/// Writes a file as a whole: a collector that reads at any time finds the old content or
/// the new one.
fn write_atomically(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = std::fs::File::create(&partial)
        .and_then(|mut file| file.write_all(text))
        .and_then(|()| std::fs::rename(&partial, path));
    if written.is_err() {
        // The reason is what the user gets to read.
        let _ = std::fs::remove_file(&partial);
    }
    written
}

/// `bugreport`: a marker for the log of the daemon.
pub(super) async fn bug_report(
    given: &Given<'_>,
    client: &Client,
    io: &mut Io,
) -> Result<(), Failure> {
    let note = given.text("NOTE").unwrap_or_default().to_owned();
    io.say(
        client
            .call(BugReport { note: note.clone() })
            .await?
            .trim_end(),
    )?;
    if !given.is("record") {
        return Ok(());
    }
    io.note("Do now what goes wrong, then press Enter.");
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(Failure::failed)?;
    io.say(client.call(BugReport { note }).await?.trim_end())
}

/// `exit-node list` and `exit-node suggest`.
pub(super) async fn exit_node(
    given: &Given<'_>,
    client: &Client,
    io: &mut Io,
) -> Result<(), Failure> {
    let status = shown(&client.call(GetStatus { peers: true }).await?)?;
    match given.0.subcommand() {
        Some(("list", given)) => {
            io.say(exit_nodes(&status, Given(given).text("filter").unwrap_or_default())?.trim_end())
        }
        _ => Err(Failure::failed(
            "suggesting an exit node is not in this version yet; choose one: warren exit-node list",
        )),
    }
}

/// The table of all exit nodes; with a filter, of those in one country.
fn exit_nodes(status: &Status, filter: &str) -> Result<String, Failure> {
    let place = |peer: &PeerStatus, key: &str| {
        let location = peer.location.as_ref();
        let value = location.and_then(|location| location.get(key)?.as_str());
        value
            .filter(|text| !text.is_empty())
            .unwrap_or("-")
            .to_owned()
    };
    let mut peers: Vec<&PeerStatus> = status
        .peer
        .values()
        .filter(|peer| peer.exit_node_option)
        .filter(|peer| filter.is_empty() || place(peer, "Country").eq_ignore_ascii_case(filter))
        .collect();
    if peers.is_empty() {
        return Err(Failure::failed(match filter {
            "" => "no exit nodes found".to_owned(),
            filter => format!("no exit nodes found for {filter:?}"),
        }));
    }
    peers.sort_by_key(|peer| {
        (
            place(peer, "Country"),
            place(peer, "City"),
            peer.dns_name.clone(),
        )
    });
    let mut rows = vec![["IP", "HOSTNAME", "COUNTRY", "CITY", "STATUS"].map(str::to_owned)];
    rows.extend(peers.into_iter().map(|peer| {
        let ip = peer.tailscale_ips.first();
        [
            ip.map(ToString::to_string).unwrap_or_default(),
            peer.dns_name.trim_end_matches('.').to_owned(),
            place(peer, "Country"),
            place(peer, "City"),
            match (peer.exit_node, peer.online) {
                (true, true) => "selected",
                (true, false) => "selected but offline",
                (false, true) => "-",
                (false, false) => "offline",
            }
            .to_owned(),
        ]
    }));
    let mut text = String::from("\n");
    for line in table(&rows) {
        text.push_str(&format!(" {line}\n"));
    }
    text.push_str(
        "\n# To use an exit node: warren set --exit-node=HOSTNAME (or its IP)\n\
         # To use none:         warren set --exit-node=\n",
    );
    Ok(text)
}

/// The rows with columns of equal width, four spaces apart.
fn table<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths);
        cells
            .map(|(cell, width)| format!("{cell:<width$}    "))
            .collect::<String>()
            .trim_end()
            .to_owned()
    };
    rows.iter().map(line).collect()
}

/// `licenses`.
pub(super) fn licenses(io: &mut Io) -> Result<(), Failure> {
    io.say(
        "Warren is licensed under MIT or Apache-2.0, at your option; the texts are in LICENSE-MIT \
         and LICENSE-APACHE of its source.\n\
         The licenses of the libraries in this program: cargo deny list (in its source).",
    )
}

/// `update`: this program is updated by what installed it.
pub(super) fn update(given: &Given<'_>, io: &mut Io) -> Result<(), Failure> {
    io.say(
        "Warren does not update itself. Where a package of this system installed it, update it \
         with that system\n(Debian: sudo apt-get install ./warren_VERSION_ARCHITECTURE.deb); where it was \
         built from source, build it again.",
    )?;
    match given.is("check") || given.is("dry-run") {
        true => Ok(()),
        false => Err(Failure::Failed(String::new())),
    }
}

/// `syspolicy`: there are no policy settings of the operating system here.
pub(super) fn syspolicy(io: &mut Io) -> Result<(), Failure> {
    io.say("No policy settings")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use warren_keys::NodePublic;

    #[test]
    fn exit_nodes_are_listed_with_their_place_and_state() {
        assert!(exit_nodes(&Status::default(), "").is_err());
        let node = |number: u8, name: &str| PeerStatus {
            public_key: NodePublic::from_bytes([number; 32]),
            dns_name: format!("{name}.net.example."),
            tailscale_ips: vec![format!("100.64.0.{number}").parse().unwrap()],
            exit_node_option: true,
            online: true,
            ..PeerStatus::default()
        };
        let plain = PeerStatus {
            exit_node_option: false,
            ..node(4, "plain")
        };
        let oslo = PeerStatus {
            location: Some(serde_json::json!({"Country": "Norway", "City": "Oslo"})),
            online: false,
            exit_node: true,
            ..node(3, "oslo")
        };
        let peers = [node(2, "db"), oslo, plain];
        let status = Status {
            peer: peers
                .into_iter()
                .map(|peer| (peer.public_key, peer))
                .collect(),
            ..Status::default()
        };
        let text = exit_nodes(&status, "").unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1..4],
            [
                " IP            HOSTNAME            COUNTRY    CITY    STATUS",
                " 100.64.0.2    db.net.example      -          -       -",
                " 100.64.0.3    oslo.net.example    Norway     Oslo    selected but offline",
            ]
        );
        assert!(!text.contains("plain"));
        assert!(exit_nodes(&status, "norway").unwrap().contains("oslo"));
        assert!(exit_nodes(&status, "sweden").is_err());
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("warren.prom");
        for text in ["one", "two"] {
            write_atomically(&path, text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_atomically(&folder.path().join("no/file"), b"").is_err());
    }
}
