//! Writes the seed corpus: a few small inputs for every target, made by our own
//! emitters, so that a short run starts behind the first checks.
//!
//! `bin/fuzz seeds` runs it; equal code gives equal files.

mod control;
mod dns;
mod lock;
mod netstack;
mod packets;
mod paths;
mod policy;
mod port_mapping;
mod relay;
mod tunnel;

use std::path::Path;
use std::{fs, io};

// Instrumented code needs the counters of this crate.
use libfuzzer_sys as _;
use serde_json::Value;
use warren_fuzz::put_step;

/// The seeds of one target.
struct Seeds<'a> {
    directory: &'a Path,
    target: &'a str,
}

impl<'a> Seeds<'a> {
    fn new(directory: &'a Path, target: &'a str) -> Self {
        Self { directory, target }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let directory = self.directory.join(self.target);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(name), bytes)
    }

    /// A sequence of steps: kind, argument, bytes.
    fn steps(&self, name: &str, steps: &[(u8, u8, &[u8])]) -> io::Result<()> {
        let mut out = Vec::new();
        for (kind, arg, bytes) in steps {
            put_step(&mut out, *kind, *arg, bytes);
        }
        self.put(name, &out)
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn main() -> io::Result<()> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    packets::write(&seeds)?;
    port_mapping::write(&seeds)?;
    paths::write(&seeds)?;
    tunnel::write(&seeds)?;
    relay::write(&seeds)?;
    control::write(&seeds)?;
    dns::write(&seeds)?;
    lock::write(&seeds)?;
    netstack::write(&seeds)?;
    policy::write(&seeds)
}
