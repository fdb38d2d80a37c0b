//! `warren netcheck`: the network around this machine, as the daemon measures it.

use std::fmt::Write as _;

use jiff::Timestamp;
use warren_control_types::{DerpMap, DerpRegion, RegionId};

use super::args::Given;
use super::status::ago;
use super::{Failure, Io, duration, shown};
use warren_local_api::client::Client;
use warren_local_api::endpoints::{GetDerpMap, GetNetcheck};
use warren_local_api::types::NetcheckReport;

pub(super) async fn run(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let format = given.text("format").unwrap_or_default();
    if !matches!(format, "" | "json" | "json-line") {
        return Err(Failure::usage(format_args!(
            "--format: {format:?} is not a valid format; write json or json-line"
        )));
    }
    let report = client.call(GetNetcheck).await?;
    match format {
        "json" => io.say_json(&report),
        "json-line" => io.say(warren_terminal::json_line(&report).map_err(Failure::failed)?),
        _ => {
            // Region names make the list readable; without them it has numbers.
            let map = client
                .call(GetDerpMap)
                .await
                .unwrap_or_default()
                .unwrap_or_default();
            let now = Timestamp::now();
            io.say(text(&shown(&report)?, &shown(&map)?, now).trim_end())
        }
    }
}

/// A measurement of this age, in seconds, is one that could not be repeated now.
const OLD: i64 = 10;

pub(super) fn text(report: &NetcheckReport, derp_map: &DerpMap, now: Timestamp) -> String {
    let region = |id: u16, name: fn(&DerpRegion) -> &String| {
        let region = derp_map.regions.get(&RegionId(id));
        region.map_or_else(|| id.to_string(), |region| name(region).clone())
    };
    let unknown = |value: Option<bool>| value.map_or_else(String::new, |value| value.to_string());
    let mut out = String::from("\nReport:\n");
    // Writing into a String cannot fail.
    let mut item = |name: &str, value: &str| {
        let _ = writeln!(out, "\t* {name}: {value}");
    };
    let is_old = |at: &Timestamp| now.as_second() - at.as_second() > OLD;
    let time = match report.now.0.filter(is_old) {
        Some(at) => format!(
            "{} ({} ago; nothing can be measured now, see: warren status)",
            report.now,
            ago(now, at)
        ),
        None => report.now.to_string(),
    };
    item("Time", &time);
    item("UDP", &report.udp.to_string());
    let family = |works: bool, can_send: bool, address: &str| match (works, can_send, address) {
        (true, _, "") => "yes".to_owned(),
        (true, _, address) => format!("yes, {address}"),
        (false, true, _) => "(no addr found)".to_owned(),
        (false, false, _) => "no".to_owned(),
    };
    item(
        "IPv4",
        &family(report.ipv4, report.ipv4_can_send, &report.global_v4),
    );
    let six = family(report.ipv6, report.ipv6_can_send, &report.global_v6);
    item(
        "IPv6",
        &if six == "no" && report.os_has_ipv6 {
            "no, but OS has support".to_owned()
        } else {
            six
        },
    );
    item(
        "MappingVariesByDestIP",
        &unknown(report.mapping_varies_by_dest_ip),
    );
    let mut mappings = Vec::new();
    for (name, there) in [
        ("UPnP", report.upnp),
        ("NAT-PMP", report.pmp),
        ("PCP", report.pcp),
    ] {
        if there == Some(true) {
            mappings.push(name);
        }
    }
    item("PortMapping", &mappings.join(", "));
    if let Some(portal) = report.captive_portal {
        item("CaptivePortal", &portal.to_string());
    }
    if report.region_latency.is_empty() {
        item("Nearest DERP", "unknown (no response to latency probes)");
        return out;
    }
    item(
        "Nearest DERP",
        &region(report.preferred_derp, |region| &region.region_name),
    );
    item("DERP latency", "");
    let mut latencies: Vec<_> = report
        .region_latency
        .iter()
        .map(|(id, ns)| (*ns, *id))
        .collect();
    latencies.sort_unstable();
    for (ns, id) in latencies {
        let code = format!("{}:", region(id, |region| &region.region_code));
        let _ = writeln!(
            out,
            "\t\t- {code:>4} {:<8}({})",
            latency(ns),
            region(id, |region| &region.region_name)
        );
    }
    out
}

/// A latency with a tenth of a millisecond.
fn latency(ns: u64) -> String {
    let time = std::time::Duration::from_nanos(ns);
    if ns < 1_000_000_000 {
        format!("{:.1}ms", time.as_secs_f64() * 1e3)
    } else {
        duration::millis(time)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use warren_local_api::go_json::GoTime;

    #[test]
    fn the_report_names_regions_nearest_first() {
        let report = NetcheckReport {
            now: GoTime(Some("2026-01-02T02:58:05Z".parse().unwrap())),
            udp: true,
            ipv4: true,
            global_v4: "203.0.113.7:41641".into(),
            os_has_ipv6: true,
            mapping_varies_by_dest_ip: Some(false),
            preferred_derp: 2,
            region_latency: [(1, 31_040_000), (2, 12_300_000)].into(),
            ..NetcheckReport::default()
        };
        let amsterdam = DerpRegion {
            region_code: "ams".into(),
            region_name: "Amsterdam".into(),
            ..DerpRegion::default()
        };
        let map = DerpMap {
            regions: [(RegionId(2), amsterdam)].into(),
            ..DerpMap::default()
        };
        let now = "2026-01-02T03:04:05Z".parse().unwrap();
        let text = text(&report, &map, now);
        for line in [
            "\t* Time: 2026-01-02T02:58:05Z (6m ago; nothing can be measured now",
            "\t* UDP: true\n",
            "\t* IPv4: yes, 203.0.113.7:41641\n",
            "\t* IPv6: no, but OS has support\n",
            "\t* MappingVariesByDestIP: false\n",
            "\t* Nearest DERP: Amsterdam\n",
            "\t\t- ams: 12.3ms  (Amsterdam)\n\t\t-   1: 31.0ms  (1)\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in {text}");
        }
    }
}
