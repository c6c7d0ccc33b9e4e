//! The grant table's hypercalls, and those that show its frames.

use std::collections::VecDeque;
use std::ptr::{NonNull, with_exposed_provenance_mut};

use hypercall::GrantRef;
use xen_sys::grant_table::*;
use xen_sys::memory::*;
use xen_sys::xen::DOMID_SELF;
use xen_sys::{GrantHandle, XenPfn, errno};

use super::{Fake, PAGE, PEER, at, zeroed};

impl Fake {
    /// # Safety
    /// `arg` is the address of `count` arguments of the command.
    pub(super) unsafe fn grant_table_op(&self, cmd: u32, arg: usize, count: usize) -> Result<(), i32> {
        for index in 0..count {
            // SAFETY: the caller's, for each command below.
            unsafe {
                match cmd {
                    GNTTABOP_query_size => {
                        let arg = at::<GnttabQuerySize>(arg);
                        arg.nr_frames = 1;
                        arg.max_nr_frames = self.state().max_table_frames;
                        arg.status = GNTST_okay;
                    }
                    GNTTABOP_setup_table => self.setup_table(at(arg)),
                    GNTTABOP_map_grant_ref => self.map(at(arg + index * size_of::<GnttabMapGrantRef>())),
                    GNTTABOP_unmap_grant_ref => self.unmap(at(arg + index * size_of::<GnttabUnmapGrantRef>())),
                    GNTTABOP_copy => self.copy(at(arg + index * size_of::<GnttabCopy>())),
                    _ => return Err(errno::XEN_ENOSYS),
                }
            }
        }
        Ok(())
    }

    fn setup_table(&self, arg: &mut GnttabSetupTable) {
        let mut state = self.state();
        if arg.nr_frames > state.max_table_frames {
            arg.status = GNTST_general_error;
            return;
        }
        while state.table.len() < arg.nr_frames as usize {
            state.table.push(zeroed(1));
        }
        for index in 0..arg.nr_frames as usize {
            // SAFETY: the caller has room for so many.
            unsafe { *arg.frame_list.0.add(index) = XenPfn(0xa00 + index) };
        }
        arg.status = GNTST_okay;
    }

    fn answer_for(&self, gref: GrantRef) -> i16 {
        let mut state = self.state();
        match state.answers.get_mut(&gref.0).and_then(VecDeque::pop_front) {
            Some(status) => status,
            None if state.foreign.contains_key(&gref.0) => GNTST_okay,
            None => GNTST_bad_gntref,
        }
    }

    fn map(&self, op: &mut GnttabMapGrantRef) {
        assert_eq!(op.dom, PEER);
        op.status = self.answer_for(op.r#ref);
        if op.status != GNTST_okay {
            return;
        }
        let mut state = self.state();
        let page = state.foreign[&op.r#ref.0];
        let at = state.at(op.host_addr);
        let before = state.mappings.insert(at, page);
        assert!(before.is_none(), "something is mapped there");
        op.handle = GrantHandle(state.next_handle);
        state.next_handle += 1;
        state.handles.insert(op.handle.0, at);
    }

    fn unmap(&self, op: &mut GnttabUnmapGrantRef) {
        let mut state = self.state();
        if state.unmap_refused {
            op.status = GNTST_general_error;
        } else if state.handles.get(&op.handle.0) == Some(&state.at(op.host_addr)) {
            let at = state.at(op.host_addr);
            state.handles.remove(&op.handle.0);
            state.mappings.remove(&at);
            op.status = GNTST_okay;
        } else {
            op.status = GNTST_bad_handle;
        }
    }

    fn copy(&self, op: &mut GnttabCopy) {
        let side = |ptr: &GnttabCopyPtr, grant: bool| {
            // SAFETY: the flag says which member it is; both are integers.
            let (gref, frame) = unsafe { if grant { (ptr.u.r#ref, 0) } else { (GrantRef(0), ptr.u.gmfn.0) } };
            if grant {
                assert_eq!(ptr.domid, PEER);
                match self.answer_for(gref) {
                    GNTST_okay => Ok(self.state().foreign[&gref.0]),
                    status => Err(status),
                }
            } else {
                assert_eq!(ptr.domid, DOMID_SELF);
                let va = self.state().frames[&(frame as u64)];
                Ok(NonNull::new(with_exposed_provenance_mut::<u8>(va)).unwrap())
            }
        };
        let from = side(&op.source, op.flags & GNTCOPY_source_gref != 0);
        let to = side(&op.dest, op.flags & GNTCOPY_dest_gref != 0);
        op.status = match (from, to) {
            (Err(status), _) | (_, Err(status)) => status,
            (Ok(from), Ok(to)) => {
                let len = op.len as usize;
                assert!(op.source.offset as usize + len <= PAGE && op.dest.offset as usize + len <= PAGE);
                // SAFETY: inside their pages, as was just checked, and alive.
                unsafe {
                    let from = from.add(op.source.offset as usize);
                    from.copy_to(to.add(op.dest.offset as usize), len);
                }
                GNTST_okay
            }
        };
    }

    pub(super) fn update_va_mapping(&self, va: usize, entry: usize) -> Result<(), i32> {
        let mut state = self.state();
        if state.is_translated {
            return Err(errno::XEN_ENOSYS);
        }
        if entry == 0 {
            return state.mappings.remove(&va).map(drop).ok_or(errno::XEN_EINVAL);
        }
        assert_eq!(entry & 0xfff, 0x67);
        let page = *state.table.get((entry >> 12) - 0xa00).ok_or(errno::XEN_EINVAL)?;
        assert!(state.mappings.insert(va, page).is_none(), "something is mapped there");
        Ok(())
    }

    /// # Safety
    /// `arg` is the address of the command's argument.
    pub(super) unsafe fn memory_op(&self, cmd: u32, arg: usize) -> Result<isize, i32> {
        let mut state = self.state();
        assert!(state.is_translated, "a PV domain has no physmap");
        // SAFETY: the caller's, for each command below.
        unsafe {
            match cmd {
                XENMEM_add_to_physmap => {
                    let arg = at::<XenAddToPhysmap>(arg);
                    assert_eq!((arg.domid, arg.space), (DOMID_SELF, XENMAPSPACE_grant_table));
                    let frame = *state.table.get(arg.idx).ok_or(errno::XEN_EINVAL)?;
                    let page = *state.frames.get(&(arg.gpfn.0 as u64)).ok_or(errno::XEN_EINVAL)?;
                    // A frame is in one place: it is moved.
                    state.mappings.retain(|_, shown| *shown != frame);
                    state.without_memory.insert(page);
                    state.mappings.insert(page, frame);
                    Ok(0)
                }
                XENMEM_remove_from_physmap => {
                    let page = *state.frames.get(&(at::<XenRemoveFromPhysmap>(arg).gpfn.0 as u64)).unwrap();
                    state.mappings.remove(&page).map(|_| 0).ok_or(errno::XEN_ENOENT)
                }
                XENMEM_populate_physmap => {
                    let arg = at::<XenMemoryReservation>(arg);
                    assert_eq!((arg.domid, arg.nr_extents, arg.extent_order), (DOMID_SELF, 1, 0));
                    let page = *state.frames.get(&((*arg.extent_start.0).0 as u64)).unwrap();
                    assert!(!state.mappings.contains_key(&page), "something is there");
                    assert!(state.without_memory.remove(&page), "memory is there");
                    Ok(1)
                }
                _ => Err(errno::XEN_ENOSYS),
            }
        }
    }
}
