//! The binary `tidelog`: see [`tidelog_server::cli`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    tidelog_server::cli::main()
}
