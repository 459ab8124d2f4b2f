//! The kernel's own client, where it can be had: `mount.sh`, which says so when it cannot.

use std::process::Command;

#[test]
fn the_kernels_client_is_served() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mount.sh");
    // A mount whose server does not answer would wait for ever.
    let output = Command::new("timeout")
        .args(["1800", script, "--server", env!("CARGO_BIN_EXE_9p")])
        .output()
        .expect("coreutils are there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // Past the capture of the test harness.
    use std::io::Write;
    let _ = write!(std::io::stderr(), "{said}");
}
