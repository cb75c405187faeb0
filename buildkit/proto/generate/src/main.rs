//! Generates the client's protocol code from the vendored `.proto` files. Run by hand after they change.

use std::{io, path::Path};

fn main() -> io::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let vendor = here.join("../vendor");
    let buildkit = "github.com/moby/buildkit";
    let files = [
        format!("{buildkit}/api/services/control/control.proto"),
        format!("{buildkit}/session/auth/auth.proto"),
        format!("{buildkit}/session/filesync/filesync.proto"),
        format!("{buildkit}/session/secrets/secrets.proto"),
        "grpc/health/v1/health.proto".to_owned(),
    ];
    let files: Vec<_> = files.iter().map(|file| vendor.join(file)).collect();
    tonic_prost_build::configure()
        // Bulk data is handed over by reference count.
        .bytes(".fsutil.types.Packet.data")
        .bytes(".moby.buildkit.v1.BytesMessage.data")
        .bytes(".fsutil.types.Stat.path")
        .out_dir(here.join("../../src/proto"))
        .include_file("mod.rs")
        .emit_rerun_if_changed(false)
        .compile_protos(&files, &[vendor])
}
