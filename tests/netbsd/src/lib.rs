//! Checks of the NetBSD glue that need no NetBSD.
