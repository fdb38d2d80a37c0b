//! Other people's chains that stand in the way: what drops forwarded packets
//! unless one of its own rules lets them through, as Docker and host firewalls
//! set it up. An `accept` of ours says nothing to them.

use std::io;

use super::TABLE;
use super::nftables::{Connection, find, message};

/// A chain that drops packets by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    family: &'static str,
    table: String,
    name: String,
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.name)
    }
}

/// All that drop forwarded packets by their policy.
pub(super) fn dropping(connection: &Connection) -> io::Result<Vec<Chain>> {
    let mut chains = Vec::new();
    connection.dump(message::GET_CHAIN, |family, attributes| {
        chains.extend(dropping_chain(family, attributes));
    })?;
    Ok(chains)
}

fn dropping_chain(family: u8, attributes: &[u8]) -> Option<Chain> {
    const FORWARD_HOOK: u32 = 2;
    const DROP: u32 = 0;
    let family = match family {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => return None,
    };
    let number = |value: &[u8]| value.first_chunk().map(|it| u32::from_be_bytes(*it));
    let hook = number(find(find(attributes, 4)?, 1)?)?;
    let policy = number(find(attributes, 5)?)?;
    let text = |value: &[u8]| {
        let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    };
    let table = text(find(attributes, 1)?);
    let stands = hook == FORWARD_HOOK && policy == DROP && table != TABLE;
    stands.then(|| Chain {
        family,
        table,
        name: text(find(attributes, 3).unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_attributes_are_read_or_not(family: u8, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = dropping_chain(family, &bytes);
        }
    }
}
