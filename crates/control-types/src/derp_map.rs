//! The relay map.
//!
//! A [`DerpMap`] is the state, and the form of files that people write. A server
//! sends a [`DerpMapUpdate`]; parts that are absent there stay as they are.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{RegionId, json};

/// All relay regions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DerpMap {
    /// How regions are favoured in the choice of a home.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub home_params: HomeParams,
    /// By number.
    #[serde(deserialize_with = "json::map_without_nulls")]
    pub regions: BTreeMap<RegionId, DerpRegion>,
    /// Programs that merge this map with a default map leave the default out.
    #[serde(
        rename = "omitDefaultRegions",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub omit_default_regions: bool,
}

impl DerpMap {
    /// Reads a map that people may have written: keys in any case.
    ///
    /// # Errors
    /// The text is not JSON of that shape, or names a region by two numbers.
    pub fn from_json(json: &[u8]) -> Result<Self, DerpMapError> {
        let map: Self = json::from_slice(json)?;
        for (key, region) in &map.regions {
            if key.0 == 0 || region.region_id != *key {
                return Err(DerpMapError::RegionNumber {
                    key: *key,
                    inside: region.region_id,
                });
            }
        }
        Ok(map)
    }

    /// Applies what a server sent.
    pub fn merge(&mut self, update: DerpMapUpdate) {
        if let Some(scores) = update.home_params.and_then(|params| params.region_score) {
            self.home_params.region_score = scores;
        }
        if let Some(regions) = update.regions {
            self.regions = regions;
            self.omit_default_regions = update.omit_default_regions;
        }
    }

    /// Factor on the measured latency of a region in the choice of a home.
    pub fn home_score(&self, region: RegionId) -> f64 {
        let score = self.home_params.region_score.get(&region).copied();
        score.filter(|score| *score > 0.0).unwrap_or(1.0)
    }
}

/// A relay map from a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DerpMapError {
    /// Not JSON of the right shape.
    #[error("the relay map is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// `Regions` and `RegionID` contradict each other.
    #[error(
        "the relay map lists region {inside} under the key \"{key}\": \
         use one number, from 1 to 65535, in both places"
    )]
    RegionNumber {
        /// The key in `Regions`.
        key: RegionId,
        /// `RegionID` in its value.
        inside: RegionId,
    },
}

/// How regions are favoured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HomeParams {
    /// Below 1 favours a region, above 1 puts it off; 1 for those not named.
    #[serde(
        deserialize_with = "json::map_without_nulls",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub region_score: BTreeMap<RegionId, f64>,
}

/// A change to a [`DerpMap`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DerpMapUpdate {
    /// Scores, if they change.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub home_params: Option<HomeParamsUpdate>,
    /// All regions, if they change.
    #[serde(deserialize_with = "json::optional_map_without_nulls")]
    pub regions: Option<BTreeMap<RegionId, DerpRegion>>,
    /// Counts only together with `regions`.
    #[serde(
        rename = "omitDefaultRegions",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub omit_default_regions: bool,
}

impl From<DerpMap> for DerpMapUpdate {
    /// The update that turns any map into `map`.
    fn from(map: DerpMap) -> Self {
        Self {
            home_params: Some(HomeParamsUpdate {
                region_score: Some(map.home_params.region_score),
            }),
            regions: Some(map.regions),
            omit_default_regions: map.omit_default_regions,
        }
    }
}

/// A change to [`HomeParams`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HomeParamsUpdate {
    /// All scores, if they change; an empty map takes all away.
    #[serde(
        deserialize_with = "json::optional_map_without_nulls",
        skip_serializing_if = "Option::is_none"
    )]
    pub region_score: Option<BTreeMap<RegionId, f64>>,
}

/// Relays that are near each other and forward to each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DerpRegion {
    /// Its number.
    #[serde(rename = "RegionID", deserialize_with = "json::or_zero")]
    pub region_id: RegionId,
    /// Short name, as `fra`.
    #[serde(deserialize_with = "json::or_zero")]
    pub region_code: String,
    /// Long name, as `Frankfurt`.
    #[serde(deserialize_with = "json::or_zero")]
    pub region_name: String,
    /// Degrees north.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub latitude: f64,
    /// Degrees east.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub longitude: f64,
    /// Older form of `no_measure_no_home`.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub avoid: bool,
    /// Only for reaching peers: not measured, and never a home.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub no_measure_no_home: bool,
    /// In order of preference.
    #[serde(deserialize_with = "json::list")]
    pub nodes: Vec<DerpNode>,
}

/// One relay, or a server that only answers STUN.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DerpNode {
    /// Name, different from that of all others.
    #[serde(deserialize_with = "json::or_zero")]
    pub name: String,
    /// The region it is in.
    #[serde(rename = "RegionID", deserialize_with = "json::or_zero")]
    pub region_id: RegionId,
    /// Name to connect to, and to ask for in TLS.
    #[serde(deserialize_with = "json::or_zero")]
    pub host_name: String,
    /// Name its certificate must have instead of `host_name`, or
    /// `sha256-raw:` and the digest of the certificate itself.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub cert_name: String,
    /// Its IPv4 address.
    #[serde(
        rename = "IPv4",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub ipv4: HostAddress<Ipv4Addr>,
    /// Its IPv6 address.
    #[serde(
        rename = "IPv6",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub ipv6: HostAddress<Ipv6Addr>,
    /// As sent; see [`DerpNode::stun_port`].
    #[serde(
        rename = "STUNPort",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub stun_port_raw: i32,
    /// It only answers STUN.
    #[serde(
        rename = "STUNOnly",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub stun_only: bool,
    /// As sent; see [`DerpNode::derp_port`].
    #[serde(
        rename = "DERPPort",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub derp_port_raw: i32,
    /// Accept any certificate.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub insecure_for_tests: bool,
    /// Ask this address instead.
    #[serde(
        rename = "STUNTestIP",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub stun_test_ip: String,
    /// Answers captive portal probes on port 80.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub can_port80: bool,
}

impl DerpNode {
    /// The UDP port it answers STUN on, unless it does not.
    pub fn stun_port(&self) -> Option<u16> {
        match self.stun_port_raw {
            0 => Some(3478),
            port => u16::try_from(port).ok(),
        }
    }

    /// The TCP port of the relay.
    pub fn derp_port(&self) -> u16 {
        match self.derp_port_raw {
            0 => 443,
            port => u16::try_from(port).unwrap_or(443),
        }
    }
}

/// How to find the address of a relay in one family.
///
/// Anything that is not an address of the family, by habit `none`, means that
/// the relay is not reachable in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HostAddress<A> {
    /// Ask DNS for the host name.
    #[default]
    Resolve,
    /// Not reachable in this family.
    Never,
    /// This address.
    At(A),
}

impl<A: Copy> HostAddress<A> {
    /// The address, if one was given.
    pub fn literal(&self) -> Option<A> {
        match self {
            Self::At(address) => Some(*address),
            Self::Resolve | Self::Never => None,
        }
    }
}

impl<A: fmt::Display> Serialize for HostAddress<A> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Resolve => serializer.serialize_str(""),
            Self::Never => serializer.serialize_str("none"),
            Self::At(address) => serializer.collect_str(address),
        }
    }
}

impl<'de, A: FromStr> Deserialize<'de> for HostAddress<A> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        Ok(match text.parse() {
            _ if text.is_empty() => Self::Resolve,
            Ok(address) => Self::At(address),
            Err(_) => Self::Never,
        })
    }
}
