//! The status of a single grant operation.

use core::fmt;

use xen_sys::grant_table::*;

/// What became of one entry of a batch: 0 or one of Xen's negative `GNTST_` numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantStatus(pub i16);

impl GrantStatus {
    /// Turns `GNTST_okay` into `Ok`.
    ///
    /// # Errors
    /// The status itself if it is another.
    #[inline]
    pub const fn ok(self) -> Result<(), Self> {
        if self.0 == GNTST_okay { Ok(()) } else { Err(self) }
    }

    /// Tells whether the operation may be tried again: the frame was paged out, and is on its way.
    #[inline]
    pub const fn is_again(self) -> bool {
        self.0 == GNTST_eagain
    }

    /// Returns the name that `grant_table.h` gives the number, if it gives one.
    #[allow(non_upper_case_globals, reason = "the constants have their C names")]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            GNTST_okay => "GNTST_okay",
            GNTST_general_error => "GNTST_general_error",
            GNTST_bad_domain => "GNTST_bad_domain",
            GNTST_bad_gntref => "GNTST_bad_gntref",
            GNTST_bad_handle => "GNTST_bad_handle",
            GNTST_bad_virt_addr => "GNTST_bad_virt_addr",
            GNTST_bad_dev_addr => "GNTST_bad_dev_addr",
            GNTST_no_device_space => "GNTST_no_device_space",
            GNTST_permission_denied => "GNTST_permission_denied",
            GNTST_bad_page => "GNTST_bad_page",
            GNTST_bad_copy_arg => "GNTST_bad_copy_arg",
            GNTST_address_too_big => "GNTST_address_too_big",
            GNTST_eagain => "GNTST_eagain",
            GNTST_no_space => "GNTST_no_space",
            _ => return None,
        })
    }
}

impl fmt::Display for GrantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name().unwrap_or("unknown grant status"), self.0)
    }
}
