//! `hvm/params.h`: what a hardware-virtualised guest has in common with the paravirtual one.

pub mod params;
