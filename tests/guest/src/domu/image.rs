//! An ELF image of a PV kernel: what is loaded where, and what its Xen notes say.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use xen_sys::elfnote::XEN_ELFNOTE_HYPERCALL_PAGE;

/// Kinds of program headers.
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// What a loader needs to know.
#[derive(Debug)]
pub(super) struct Image<'a> {
    pub(super) entry: usize,
    /// Address of the page that Xen is to fill, if the image wants it.
    pub(super) hypercall_page: Option<usize>,
    pub(super) segments: Vec<Segment<'a>>,
    /// First address behind all segments, counted from the start of memory.
    pub(super) end: usize,
}

/// Bytes and the address, counted from the start of memory, where they go.
#[derive(Debug)]
pub(super) struct Segment<'a> {
    pub(super) address: usize,
    pub(super) bytes: &'a [u8],
}

impl<'a> Image<'a> {
    pub(super) fn parse(elf: &'a [u8]) -> Result<Self, String> {
        if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
            return Err(format!("the module of {} bytes is no 64-bit ELF", elf.len()));
        }
        let (headers, size, count) = (word(elf, 32)?, half(elf, 54)?, half(elf, 56)?);
        let mut image = Self { entry: word(elf, 24)?, hypercall_page: None, segments: Vec::new(), end: 0 };
        for index in 0..count {
            let header = part(elf, headers.saturating_add(index * size), 56)?;
            let bytes = part(elf, word(header, 8)?, word(header, 32)?)?;
            match int(header, 0)? {
                PT_LOAD => {
                    let address = word(header, 24)?;
                    image.segments.push(Segment { address, bytes });
                    image.end = image.end.max(address.saturating_add(word(header, 40)?));
                }
                PT_NOTE => image.read_notes(bytes)?,
                _ => {}
            }
        }
        Ok(image)
    }

    fn read_notes(&mut self, mut notes: &[u8]) -> Result<(), String> {
        while notes.len() >= 12 {
            let name_len = int(notes, 0)? as usize;
            let value_len = int(notes, 4)? as usize;
            let value_at = 12 + name_len.next_multiple_of(4);
            let is_xen = part(notes, 12, name_len)? == b"Xen\0";
            if is_xen && int(notes, 8)? == XEN_ELFNOTE_HYPERCALL_PAGE {
                self.hypercall_page = Some(word(part(notes, value_at, value_len)?, 0)?);
            }
            notes = notes.get(value_at + value_len.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(())
    }
}

fn part(bytes: &[u8], at: usize, len: usize) -> Result<&[u8], String> {
    let end = at.saturating_add(len);
    bytes.get(at..end).ok_or_else(|| format!("the ELF ends before byte {end:#x}"))
}

fn word(bytes: &[u8], at: usize) -> Result<usize, String> {
    let bytes = part(bytes, at, 8)?;
    Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte)))
}

fn int(bytes: &[u8], at: usize) -> Result<u32, String> {
    let bytes = part(bytes, at, 4)?;
    Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte)))
}

fn half(bytes: &[u8], at: usize) -> Result<usize, String> {
    let bytes = part(bytes, at, 2)?;
    Ok(usize::from(bytes[0]) | usize::from(bytes[1]) << 8)
}
