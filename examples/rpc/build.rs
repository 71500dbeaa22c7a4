//! Compiles the service in pure Rust: no `protoc` is needed.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=tests/proto");
    let descriptors = protox::compile(["echo.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // For the reflection service.
    std::fs::write(out.join("echo.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    let interop = protox::compile(["testing.proto"], ["tests/proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(interop)?;
    Ok(())
}
