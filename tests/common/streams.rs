//! The lanes on the control link itself: which engine moves the bytes is up to the machine.

/// Whether a lane of this name is one of them.
pub(crate) fn is_stream(name: &str) -> bool {
    ["uring", "tcp"].contains(&name)
}
