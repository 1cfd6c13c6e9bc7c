//! `caisson`: the OCI command line; see [`caisson_shim::cli`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    caisson_shim::cli::main()
}
