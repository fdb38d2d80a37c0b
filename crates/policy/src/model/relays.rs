//! The changes of a policy to the relays.

use std::collections::BTreeMap;

use warren_control_types::{DerpMap, DerpRegion, RegionId};

/// The changes of a policy to the relays of the tailnet (`derpMap`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RelayRegions {
    /// The server's own regions are left out.
    pub omit_default_regions: bool,
    /// Regions to add or replace; `None` removes one.
    pub regions: BTreeMap<RegionId, Option<DerpRegion>>,
}

impl RelayRegions {
    /// Whether the policy does not change the relays.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.omit_default_regions && self.regions.is_empty()
    }

    /// Applies the policy to the server's relays.
    pub fn apply(&self, map: &mut DerpMap) {
        if self.omit_default_regions {
            map.regions.clear();
            map.omit_default_regions = true;
        }
        for (id, region) in &self.regions {
            match region {
                Some(region) => map.regions.insert(*id, region.clone()),
                None => map.regions.remove(id),
            };
        }
    }
}
