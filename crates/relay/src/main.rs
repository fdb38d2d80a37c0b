//! The program `warren-relay`.

fn main() -> std::process::ExitCode {
    warren_relay::cli::main().into()
}
