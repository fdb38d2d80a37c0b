//! Which cipher the daemon's sessions use.

use warren_tunnel::Aead;

/// The environment variable that switches our own AVX2 code off, to find out
/// whether it is at fault.
const VARIABLE: &str = "WARREN_AEAD";

/// The variable has no valid value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{VARIABLE} is {value:?}, which is not the name of a cipher implementation; set it to \
     \"portable\" to encrypt with the library alone, or remove it"
)]
pub struct BadAead {
    value: String,
}

/// The implementation that the environment names; without the variable, the fastest.
///
/// # Errors
/// [`BadAead`] when the variable has no valid value.
pub fn choose() -> Result<Aead, BadAead> {
    match std::env::var_os(VARIABLE) {
        Some(value) => parse(&value.to_string_lossy()),
        None => Ok(Aead::Fastest),
    }
}

fn parse(value: &str) -> Result<Aead, BadAead> {
    match value.trim() {
        "" => Ok(Aead::Fastest),
        "portable" => Ok(Aead::Portable),
        _ => Err(BadAead {
            value: value.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_variable_is_read_strictly() {
        assert_eq!(parse(""), Ok(Aead::Fastest));
        assert_eq!(parse("portable\n"), Ok(Aead::Portable));
        for bad in ["fast", "0", "Portable"] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains(VARIABLE) && error.contains(bad), "{error}");
        }
    }
}
