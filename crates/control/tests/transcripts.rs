//! The output of `warren-control` where no server runs: help, usage errors, and
//! policies read from files. After an intended change,
//! `TRYCMD=overwrite cargo test -p warren-control --test transcripts` writes the files
//! again.

#[test]
fn output_without_a_server_is_as_recorded() {
    trycmd::TestCases::new()
        .env("WARREN_CONTROL_STATE_DIR", "state")
        .case("tests/transcripts/*.trycmd");
}

/// README shows the recorded answer of a command.
fn readme_shows(command: &str, recorded: &str) {
    let readme = include_str!("../../../README.md");
    let command = format!("$ {command}\n");
    let (_, shown) = readme
        .split_once(&format!("    {command}"))
        .expect("in README");
    let (_, printed) = recorded.split_once(&command).expect("recorded");
    let shown = shown.lines().map_while(|line| line.strip_prefix("    "));
    let printed = printed.lines().filter(|line| !line.starts_with("? "));
    let printed = printed.take_while(|line| !line.is_empty());
    assert!(
        shown.eq(printed),
        "README and the transcript differ: {command}"
    );
}

#[test]
fn answers_in_the_readme_are_the_recorded_ones() {
    let policy = include_str!("transcripts/policy.trycmd");
    readme_shows("warren-control policy check acl.hujson", policy);
    let config = include_str!("transcripts/config.trycmd");
    readme_shows("warren-control config check --config control.toml", config);
}
