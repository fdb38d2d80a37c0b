//! The output of `warren` where no daemon runs: help, usage errors, and the advice
//! when the daemon does not answer. After an intended change,
//! `TRYCMD=overwrite cargo test -p warren-cli --test transcripts` writes the files again.

#[test]
fn output_without_a_daemon_is_as_recorded() {
    trycmd::TestCases::new()
        .env("WARREN_SOCKET", "none.sock")
        .case("tests/transcripts/*.trycmd");
}
