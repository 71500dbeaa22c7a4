//! The stage `rdmapair`: RDMA between two machines.
