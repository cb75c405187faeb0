//! The binary of [`kiln_init`].

fn main() -> std::process::ExitCode {
    kiln_init::main()
}
