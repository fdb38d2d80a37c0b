//! What the lab's tests share: a lab, or a visible reason to skip.
#![allow(dead_code)] // each test file uses its own part

use warren_lab::Lab;

/// A lab, or `None` with the reason printed where namespaces are not allowed.
pub fn lab() -> Option<Lab> {
    match Lab::new() {
        Ok(lab) => Some(lab),
        Err(error) => skip(&error.to_string()),
    }
}

/// Prints why a test does nothing here.
pub fn skip<T>(reason: &str) -> Option<T> {
    // Straight to the terminal: the harness hides the output of tests that
    // pass, and a skip must be seen.
    use std::io::Write as _;
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    drop(writeln!(
        std::io::stderr().lock(),
        "SKIPPED {name}: {reason}"
    ));
    None
}
