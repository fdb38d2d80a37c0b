//! The log of a program, the same for the node, the server and the relay.
//!
//! Lines go to standard error, with colours if that is a terminal. The environment
//! chooses the levels: `WARREN_LOG`, or `RUST_LOG` where that is not set, as
//! `info,warren_paths=debug`. A text that is not valid is ignored.

use std::io::IsTerminal as _;

pub use tracing_subscriber::filter::LevelFilter;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The environment variables, the stronger one first.
const VARIABLES: [&str; 2] = ["WARREN_LOG", "RUST_LOG"];

/// Logs to standard error, from the level `default` on where the environment chooses
/// none. In a process that logs already, that stays as it is.
pub fn log_to_stderr(default: LevelFilter) {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let levels = levels(VARIABLES.map(|name| std::env::var(name).ok()), default);
    // It fails where an embedding program logs already.
    let _ = tracing_subscriber::registry()
        .with(lines)
        .with(levels)
        .try_init();
}

fn levels(texts: [Option<String>; 2], default: LevelFilter) -> Targets {
    let chosen = texts
        .into_iter()
        .flatten()
        .filter(|text| !text.is_empty())
        .find_map(|text| text.parse().ok());
    chosen.unwrap_or_else(|| Targets::new().with_default(default))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_valid_text_chooses_the_levels() {
        let of = |own: &str, general: &str| {
            let texts = [own, general].map(|text| Some(text.to_owned()));
            levels(texts, LevelFilter::WARN).default_level()
        };
        assert_eq!(of("debug", "error"), Some(LevelFilter::DEBUG));
        assert_eq!(of("", "error"), Some(LevelFilter::ERROR));
        assert_eq!(of("a=b=c", "error"), Some(LevelFilter::ERROR));
        assert_eq!(of("", ""), Some(LevelFilter::WARN));
        let unset = levels([None, None], LevelFilter::INFO);
        assert_eq!(unset.default_level(), Some(LevelFilter::INFO));
    }
}
