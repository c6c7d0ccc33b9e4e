//! `io/netif.h`.
