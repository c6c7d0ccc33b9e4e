//! What things cost.

mod plot;
pub(crate) mod ring;
pub(crate) mod xen;
