//! What things cost.

pub(crate) mod block;
mod plot;
pub(crate) mod ring;
pub(crate) mod xen;
