//! A small xenstored without IO, for the mock and for guests without a dom0.
#![no_std]
