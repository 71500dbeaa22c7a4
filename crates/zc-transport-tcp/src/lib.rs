//! Part of zc.
