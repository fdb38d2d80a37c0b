//! The pairs of places, by the short names used on the command line.

use std::fmt;
use std::str::FromStr;

use warren_lab::Place;

const NAMES: [(&str, Place); 7] = [
    ("open", Place::Open),
    ("cone", Place::Cone),
    ("easy", Place::Easy),
    ("cgnat", Place::CarrierNat),
    ("fw", Place::Firewall),
    ("hard", Place::Hard),
    ("noudp", Place::NoUdp),
];

/// Where the two nodes stand; the first one sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair(pub Place, pub Place);

impl Pair {
    /// The pairs that are measured by default.
    pub const USUAL: [Self; 7] = [
        Self(Place::Open, Place::Open),
        Self(Place::Open, Place::Cone),
        Self(Place::Cone, Place::Cone),
        Self(Place::Open, Place::Hard),
        Self(Place::Easy, Place::Easy),
        Self(Place::Firewall, Place::Open),
        Self(Place::Easy, Place::CarrierNat),
    ];
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |place: Place| {
            let found = NAMES.iter().find(|(_, known)| *known == place);
            found.map_or("?", |(name, _)| name)
        };
        f.pad(&format!("{}-{}", name(self.0), name(self.1)))
    }
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let place = |name: &str| {
            let found = NAMES.iter().find(|(known, _)| *known == name);
            found.map(|(_, place)| *place).ok_or_else(|| {
                let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
                format!(
                    "no place is called `{name}`; there are {}",
                    names.join(", ")
                )
            })
        };
        let (from, to) = text
            .split_once('-')
            .ok_or_else(|| "a pair looks like easy-open".to_owned())?;
        Ok(Self(place(from)?, place(to)?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_pair_has_a_name_that_is_read_back() {
        for from in Place::ALL {
            for to in Place::ALL {
                let pair = Pair(from, to);
                assert_eq!(pair.to_string().parse::<Pair>().unwrap(), pair);
            }
        }
    }

    #[test]
    fn other_names_are_refused_with_a_reason() {
        for text in ["", "open", "open-", "open-moon", "-"] {
            assert!(!text.parse::<Pair>().unwrap_err().is_empty());
        }
    }
}
