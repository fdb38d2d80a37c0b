//! Reads the sections that configure the whole network: relays, addresses,
//! ports.

use warren_control_types::{DerpMap, RegionId};

use super::{Fields, Reader};
use crate::json::Spanned;

impl Reader<'_> {
    pub(super) fn network_options(&mut self, fields: &Fields<'_>) {
        if let Some(value) = fields.get("derpMap") {
            self.derp_map(value);
        }
        self.policy.randomize_client_port = self.flag(fields.get("randomizeClientPort"));
        self.policy.disable_ipv4 = self.flag(fields.get("disableIPv4"));
        let route = fields
            .get("OneCGNATRoute")
            .and_then(|value| self.text(value));
        self.policy.one_cgnat_route = match route.as_ref().map(|text| text.text) {
            None | Some("") => None,
            Some("mac-always") => Some(true),
            Some("mac-never") => Some(false),
            Some(other) => {
                let help = self
                    .suggest(other, ["mac-always", "mac-never"])
                    .or_else(|| Some("expected \"\", mac-always or mac-never".to_owned()));
                let message = format!("{other:?} is not a valid value of OneCGNATRoute");
                if let Some(text) = &route {
                    self.problem_with(&text.span, message, help);
                }
                None
            }
        };
    }

    fn derp_map(&mut self, value: &Spanned) {
        let Some(fields) = self.fields(value, "derpMap", &["regions", "omitDefaultRegions"]) else {
            return;
        };
        let omit = self.flag(fields.get("omitDefaultRegions"));
        self.policy.relay_regions.omit_default_regions = omit;
        let Some(regions) = fields.get("regions") else {
            return;
        };
        for member in self.members(regions, "derpMap.regions") {
            let number = member.name.trim().parse::<u16>().ok();
            let Some(number) = number.filter(|number| *number > 0) else {
                let message = format!("{:?} is not a valid region number", member.name);
                let help = "expected 1 to 65535; 900 to 999 are for your own regions".to_owned();
                self.problem_with(&member.name_span, message, Some(help));
                continue;
            };
            let id = RegionId(number);
            let region = if member.value.is_null() {
                None
            } else {
                let Some(region) = self.derp_region(id, &member.value) else {
                    continue;
                };
                Some(region)
            };
            self.policy.relay_regions.regions.insert(id, region);
        }
    }

    fn derp_region(
        &mut self,
        id: RegionId,
        value: &Spanned,
    ) -> Option<warren_control_types::DerpRegion> {
        let known = [
            "regionID",
            "regionCode",
            "regionName",
            "avoid",
            "noMeasureNoHome",
            "latitude",
            "longitude",
            "nodes",
        ];
        let node_fields = [
            "name",
            "regionID",
            "hostName",
            "certName",
            "ipv4",
            "ipv6",
            "stunPort",
            "stunOnly",
            "derpPort",
            "canPort80",
        ];
        let before = self.problems.len();
        let fields = self.fields(value, "a region", &known)?;
        for node in self.items(fields.get("nodes"), "nodes") {
            let Some(node) = self.fields(node, "a relay", &node_fields) else {
                continue;
            };
            if node.get("hostName").is_none() {
                let message = "a relay must have a hostName";
                self.problem(&value.span, message);
            }
        }
        if self.problems.len() > before {
            return None;
        }
        // The wire type checks the remaining fields and their kinds.
        let map = serde_json::json!({ "Regions": { id.0.to_string(): value.to_json() } });
        match DerpMap::from_json(map.to_string().as_bytes()) {
            Ok(mut map) => map.regions.remove(&id),
            Err(error) => {
                self.problem(&value.span, format!("region {id}: {error}"));
                None
            }
        }
    }
}
