//! What the fuzz targets share. Each target is a program of `targets/`, which says what it plays and what must hold.

pub mod input;
pub mod still;
pub mod texts;
