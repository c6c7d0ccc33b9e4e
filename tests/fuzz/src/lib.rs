//! What the fuzz targets share. Each target is a program of `targets/`, which says what it plays and what must hold.

pub mod bed;
pub mod input;
pub mod shelf;
pub mod still;
pub mod texts;
pub mod thin;
pub mod tree;
