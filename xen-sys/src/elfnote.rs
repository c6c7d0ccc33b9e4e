//! `elfnote.h`.
