//! The log of a program, the same for the node, the server and the relay.
//!
//! Lines go to standard error: as text, with colours if that is a terminal, or as JSON,
//! one object in each line. The environment chooses the levels: `WARREN_LOG`, or
//! `RUST_LOG` where that is not set, as `info,warren_paths=debug`. A text there that is
//! not valid is ignored. A program may change the levels while it runs.

use std::fmt;
use std::io::IsTerminal as _;
use std::str::FromStr;

pub use tracing_subscriber::filter::LevelFilter;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};

/// The environment variables, the stronger one first.
const VARIABLES: [&str; 2] = ["WARREN_LOG", "RUST_LOG"];

/// The form of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// A JSON object in each line: `timestamp`, `level`, `target`, `fields`, `spans`.
    Json,
}

impl Format {
    /// Its name in settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// A setting of the log is not valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogError(String);

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LogError {}

impl FromStr for Format {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(LogError(format!(
                "\"{text}\" is not a form of log lines; write \"text\" or \"json\""
            ))),
        }
    }
}

/// The least level that is logged, in all and by module.
#[derive(Debug, Clone, PartialEq)]
pub struct Levels(Targets);

impl Levels {
    /// This level everywhere.
    #[must_use]
    pub fn all(level: LevelFilter) -> Self {
        Self(Targets::new().with_default(level))
    }

    /// The levels that the environment chooses, if it does. They are stronger than the
    /// settings of a program.
    #[must_use]
    pub fn of_environment() -> Option<Self> {
        chosen(VARIABLES.map(|name| std::env::var(name).ok()))
    }
}

impl FromStr for Levels {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        text.parse().map(Self).map_err(|error| {
            LogError(format!(
                "\"{text}\" does not choose levels ({error}); write them as \"info\" or \
                 \"warn,warren_control::login=debug\""
            ))
        })
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Changes the levels of the log of this process.
#[derive(Debug, Clone)]
pub struct LevelControl(reload::Handle<Targets, Registry>);

impl LevelControl {
    /// Logs from these levels on from now on.
    pub fn set(&self, levels: Levels) {
        // The log lives as long as the process.
        let _ = self.0.reload(levels.0);
    }
}

/// Logs to standard error, from the level `default` on where the environment chooses
/// none. In a process that logs already, that stays as it is.
pub fn log_to_stderr(default: LevelFilter) {
    let levels = Levels::of_environment().unwrap_or_else(|| Levels::all(default));
    let _ = start(Format::Text, levels);
}

/// Logs to standard error in this form, from these levels on. In a process that logs
/// already, that stays as it is, and the levels do not change.
pub fn start(format: Format, levels: Levels) -> LevelControl {
    let (levels, handle) = reload::Layer::new(levels.0);
    let registry = tracing_subscriber::registry().with(levels);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // It fails where an embedding program logs already.
    let _ = match format {
        Format::Text => {
            let lines = lines.with_ansi(std::io::stderr().is_terminal());
            registry.with(lines).try_init()
        }
        Format::Json => registry.with(lines.json()).try_init(),
    };
    LevelControl(handle)
}

/// The first text that is valid.
fn chosen(texts: [Option<String>; 2]) -> Option<Levels> {
    texts
        .into_iter()
        .flatten()
        .filter(|text| !text.is_empty())
        .find_map(|text| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_valid_text_chooses_the_levels() {
        let of = |own: &str, general: &str| {
            let texts = [own, general].map(|text| Some(text.to_owned()));
            chosen(texts).and_then(|levels| levels.0.default_level())
        };
        assert_eq!(of("debug", "error"), Some(LevelFilter::DEBUG));
        assert_eq!(of("", "error"), Some(LevelFilter::ERROR));
        assert_eq!(of("a=b=c", "error"), Some(LevelFilter::ERROR));
        assert_eq!(of("", ""), None);
    }

    #[test]
    fn settings_that_are_not_valid_say_what_to_write() {
        assert_eq!("json".parse(), Ok(Format::Json));
        let error = "xml".parse::<Format>().map_err(|error| error.to_string());
        assert!(error.is_err_and(|text| text.contains("\"text\" or \"json\"")));
        let error = "a=b=c".parse::<Levels>().map_err(|error| error.to_string());
        assert!(error.is_err_and(|text| text.contains("write them as")));
        for text in ["info", "warn,warren_control::login=debug"] {
            let levels = text.parse::<Levels>().map(|levels| levels.to_string());
            let again = levels.clone().and_then(|text| text.parse::<Levels>());
            assert_eq!(again.map(|levels| levels.to_string()), levels);
        }
    }
}
