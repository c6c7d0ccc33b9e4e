//! A disk that does nothing but look whether it is asked for what it may be asked for, and finishes when it is told to.

use std::cell::RefCell;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

use xbd::SECTOR;
use xbd::back::{Parts, Started, Store, StoreFault, Token, Work};
use xbd::features::Discard;

use crate::thin::Thin;

/// What a disk is, and is at.
pub struct Inside {
    thin: Thin,
    /// What it has in sectors, and in which units.
    pub sectors: u64,
    /// Where what is asked for may end: elsewhere, if the size has changed.
    pub end: u64,
    /// Memory that is written in no case.
    pub spared: Range<NonNull<u8>>,
    /// Bytes of a unit.
    pub sector_size: u32,
    /// It can't be written.
    pub read_only: bool,
    /// It can forget.
    pub discard: Option<Discard>,
    /// Nothing is finished at once.
    pub hold: bool,
    /// How what is finished at once ends.
    pub result: Result<(), StoreFault>,
    /// What was started and is not finished, with an address that has to stay mapped.
    pending: Vec<(Token, Option<NonNull<u8>>, bool)>,
    finished: Vec<(Token, Result<(), StoreFault>)>,
}

/// The disk. A handle.
#[derive(Clone)]
pub struct Shelf(pub Rc<RefCell<Inside>>);

impl Shelf {
    /// Makes a disk of so many sectors.
    pub fn new(thin: &Thin, sectors: u64, sector_size: u32) -> Self {
        Self(Rc::new(RefCell::new(Inside {
            thin: thin.clone(),
            sectors,
            end: sectors,
            spared: NonNull::dangling()..NonNull::dangling(),
            sector_size,
            read_only: false,
            discard: None,
            hold: false,
            result: Ok(()),
            pending: Vec::new(),
            finished: Vec::new(),
        })))
    }

    /// Finishes something of what is under way; `false` if nothing is.
    pub fn finish(&self, which: usize, result: Result<(), StoreFault>) -> bool {
        let mut inside = self.0.borrow_mut();
        if inside.pending.is_empty() {
            return false;
        }
        let which = which % inside.pending.len();
        let (token, va, write) = inside.pending.swap_remove(which);
        if let Some(va) = va {
            assert!(inside.thin.is_usable(va, write), "taken away while the disk works on it");
        }
        inside.finished.push((token, result));
        true
    }

    /// Names a token that may be under way or not.
    pub fn lie(&self, token: u16) {
        let mut inside = self.0.borrow_mut();
        if !inside.pending.iter().any(|(under_way, ..)| under_way.0 == token) {
            inside.finished.push((Token(token), Ok(())));
        }
    }

    /// Returns how much is under way, or finished and not yet told.
    pub fn busy(&self) -> usize {
        let inside = self.0.borrow();
        inside.pending.len() + inside.finished.len()
    }
}

impl Inside {
    fn look(&self, sector: u64, parts: Parts<'_>, to_memory: bool) -> Option<NonNull<u8>> {
        let unit = self.sector_size as usize;
        assert!(parts.len() > 0 && parts.len().is_multiple_of(unit), "{} bytes", parts.len());
        self.inside(sector, (parts.len() / SECTOR) as u64);
        let mut len = 0;
        for part in parts.iter() {
            assert!(!part.is_empty() && part.len().is_multiple_of(SECTOR));
            assert!(self.thin.is_usable(part.as_ptr(), to_memory), "a part that is not mapped so");
            // A front end may have its ring read over. Whoever plays it wants to know what stands there.
            if to_memory && !self.spared.contains(&part.as_ptr()) {
                part.write(0, &[0x5a; 8]);
                part.write(part.len() - 8, &[0x5a; 8]);
            }
            len += part.len();
        }
        assert_eq!(len, parts.len());
        parts.iter().next().map(|part| part.as_ptr())
    }

    fn inside(&self, sector: u64, sectors: u64) {
        let end = sector.checked_add(sectors);
        assert!(end.is_some_and(|end| end <= self.end), "{sectors} sectors at {sector}");
        let unit = u64::from(self.sector_size) / SECTOR as u64;
        assert!(sector.is_multiple_of(unit) && sectors.is_multiple_of(unit), "{sectors} sectors at {sector}");
    }
}

impl Store for Shelf {
    fn handle(&self) -> Self {
        self.clone()
    }

    fn sectors(&self) -> u64 {
        self.0.borrow().sectors
    }

    fn sector_size(&self) -> u32 {
        self.0.borrow().sector_size
    }

    fn read_only(&self) -> bool {
        self.0.borrow().read_only
    }

    fn discard(&self) -> Option<Discard> {
        self.0.borrow().discard
    }

    fn start(&mut self, token: Token, work: Work<'_>) -> Started {
        let mut inside = self.0.borrow_mut();
        let read_only = inside.read_only;
        let (va, write) = match work {
            Work::Read { sector, parts } => (inside.look(sector, parts, true), true),
            Work::Write { sector, parts } => {
                assert!(!read_only, "a write to a read-only disk");
                (inside.look(sector, parts, false), false)
            }
            Work::Flush => (None, false),
            Work::Discard { sector, sectors, secure } => {
                assert!(!read_only, "a discard of a read-only disk");
                assert!(inside.discard.is_some_and(|discard| !secure || discard.secure), "not offered");
                assert!(sectors > 0);
                inside.inside(sector, sectors);
                (None, false)
            }
        };
        if !inside.hold {
            return Started::Done(inside.result);
        }
        assert!(!inside.pending.iter().any(|(under_way, ..)| *under_way == token), "a token twice");
        inside.pending.push((token, va, write));
        Started::Pending
    }

    fn completed(&mut self) -> Option<(Token, Result<(), StoreFault>)> {
        self.0.borrow_mut().finished.pop()
    }
}
