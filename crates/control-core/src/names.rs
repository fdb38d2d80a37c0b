//! Names of machines: from the name of a host to a unique DNS label.

use crate::references::is_number;

/// The longest DNS label (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

/// The label of a host when nothing usable is left of its name.
const FALLBACK: &str = "node";

/// The reason why a text is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Nothing there.
    #[error("the name is empty; use letters, digits and \"-\", for example \"db-1\"")]
    Empty,
    /// More than 63 bytes.
    #[error("the name has {0} characters; a DNS label has at most 63")]
    TooLong(usize),
    /// A character that DNS host names do not have, or `-` at an end.
    #[error(
        "\"{0}\" is not DNS-safe; use letters, digits and \"-\", not starting or ending with \"-\""
    )]
    NotDnsSafe(String),
    /// It would read as the number of another record.
    #[error("\"{0}\" reads as a number; put a letter into the name, for example \"n{0}\"")]
    OnlyDigits(String),
}

/// Checks a name that a person chose; the answer is in lower case.
///
/// # Errors
/// [`LabelError`] says what is wrong with it.
pub fn is_label(text: &str) -> Result<String, LabelError> {
    if text.is_empty() {
        return Err(LabelError::Empty);
    }
    if text.len() > MAX_LABEL {
        return Err(LabelError::TooLong(text.chars().count()));
    }
    let safe = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if safe {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(LabelError::NotDnsSafe(text.to_owned()))
    }
}

/// Characters between the words of host names; they become `-`.
const SEPARATORS: &str = " ._@";

/// The label that a host's own name gives, as the official service makes it. A valid
/// label stays as it is, in lower case; else suffixes of home networks are dropped,
/// [`SEPARATORS`] become `-`, all else that a label cannot have is left out, and the
/// rest is cut to 63. A name of digits alone would read as the number of a node, so it
/// gets a word in front.
pub fn sanitize_hostname(hostname: &str) -> String {
    let lower = hostname.trim().to_lowercase();
    let stem = [".localdomain", ".local", ".lan"]
        .iter()
        .find_map(|suffix| lower.strip_suffix(suffix))
        .unwrap_or(&lower);
    let usable = stem.chars().filter_map(|c| match c {
        c if c.is_ascii_alphanumeric() || c == '-' => Some(c),
        c if SEPARATORS.contains(c) => Some('-'),
        _ => None,
    });
    let label: String = usable.skip_while(|c| *c == '-').take(MAX_LABEL).collect();
    let label = label.trim_end_matches('-');
    if label.is_empty() {
        FALLBACK.to_owned()
    } else if is_number(label) {
        let number: String = label.chars().take(MAX_LABEL - FALLBACK.len() - 1).collect();
        format!("{FALLBACK}-{number}")
    } else {
        label.to_owned()
    }
}

/// Checks a node's name that a person chose; the answer is in lower case.
pub(crate) fn check_node_name(text: &str) -> Result<String, LabelError> {
    let label = is_label(text)?;
    if is_number(&label) {
        return Err(LabelError::OnlyDigits(label));
    }
    Ok(label)
}

/// `label` itself if it is free, else the first free of `label-1`, `label-2` ...
pub fn unique_label(label: &str, taken: impl Fn(&str) -> bool) -> String {
    if !taken(label) {
        return label.to_owned();
    }
    let mut n = 1_u64;
    loop {
        let suffix = format!("-{n}");
        let stem: String = label.chars().take(MAX_LABEL - suffix.len()).collect();
        let candidate = format!("{}{suffix}", stem.trim_end_matches('-'));
        if !taken(&candidate) {
            return candidate;
        }
        n += 1;
    }
}

/// Checks the login name of a user.
pub(crate) fn check_user_name(name: &str) -> Result<(), LabelError> {
    if name.is_empty() {
        return Err(LabelError::Empty);
    }
    if name.len() > 254 {
        return Err(LabelError::TooLong(name.chars().count()));
    }
    let safe = name
        .chars()
        .all(|c| c.is_alphanumeric() || "@._+-".contains(c));
    if !safe {
        return Err(LabelError::NotDnsSafe(name.to_owned()));
    }
    if is_number(name) {
        return Err(LabelError::OnlyDigits(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn host_names_become_labels() {
        for (raw, label) in [
            ("laptop", "laptop"),
            ("Alice's MacBook Pro", "alices-macbook-pro"),
            ("DB_1.local", "db-1"),
            ("--x--", "x"),
            ("büro", "bro"),
            ("server-北京-01", "server--01"),
            ("web--1", "web--1"),
            ("xn--fiq228c", "xn--fiq228c"),
            ("_dmz_", "dmz"),
            ("mail.", "mail"),
            ("a  b", "a--b"),
            ("", "node"),
            ("日本", "node"),
            ("a.b.c", "a-b-c"),
            ("7", "node-7"),
            ("7.local", "node-7"),
            ("10.0.0.7", "10-0-0-7"),
        ] {
            assert_eq!(sanitize_hostname(raw), label, "{raw:?}");
        }
        assert_eq!(sanitize_hostname(&"x".repeat(200)).len(), 63);
        assert_eq!(sanitize_hostname(&"7".repeat(200)).len(), 63);
    }

    #[test]
    fn chosen_names_are_refused_with_the_reason() {
        assert_eq!(is_label("DB-1").unwrap(), "db-1");
        assert_eq!(is_label(""), Err(LabelError::Empty));
        assert_eq!(is_label(&"x".repeat(64)), Err(LabelError::TooLong(64)));
        for bad in ["a b", "a.b", "-a", "a-", "ä", "a_b"] {
            assert!(
                matches!(is_label(bad), Err(LabelError::NotDnsSafe(_))),
                "{bad}"
            );
        }
    }

    proptest! {
        /// Names that need no change are not changed, so that a network that moves
        /// here keeps them.
        #[test]
        fn valid_label_stays(label in "[a-z]([a-z0-9-]{0,61}[a-z0-9])?") {
            prop_assert_eq!(sanitize_hostname(&label), label);
        }

        #[test]
        fn a_sanitized_name_is_a_label_and_stays_one_when_made_unique(raw in ".*", clashes in 0_u64..120) {
            let label = sanitize_hostname(&raw);
            prop_assert_eq!(check_node_name(&label), Ok(label.clone()));
            let taken: Vec<String> = (0..clashes).scan(Vec::new(), |seen: &mut Vec<String>, _| {
                let next = unique_label(&label, |name| seen.iter().any(|s| s == name));
                seen.push(next.clone());
                Some(next)
            }).collect();
            for name in &taken {
                prop_assert_eq!(is_label(name), Ok(name.clone()));
            }
            let distinct: std::collections::BTreeSet<_> = taken.iter().collect();
            prop_assert_eq!(distinct.len(), taken.len());
        }
    }
}
