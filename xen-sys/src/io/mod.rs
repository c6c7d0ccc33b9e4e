//! `io/ring.h` and its neighbours: the shared structures of split devices, one module per header.

pub mod blkif;
pub mod console;
pub mod netif;
pub mod pciif;
pub mod protocols;
pub mod ring;
pub mod xenbus;
pub mod xs_wire;
