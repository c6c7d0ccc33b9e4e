//! Indirect requests and discards that no honest front end sends, in either layout.

use hypercall::GrantRef;
use hypercall::mem::PAGE_SIZE;
use xbd::back::Config;
use xbd::features::Discard;
use xbd::protocol::{Layout, Segment, Status, X86_32, X86_64};
use xen_sys::io::blkif::{BLKIF_DISCARD_SECURE, BlkifOp, x86_32, x86_64};
use xen_sys::reinterpret;

use crate::SECTORS;
use crate::common::raw_front::{Asks, Granted};
use crate::common::rig::{Rig, grefs, table, whole};
use crate::common::{Lots, Slow};

/// Requests as they stand in a slot, whatever is in their fields.
trait Raw: Layout {
    fn indirect(inner: BlkifOp, segments: u16, sector: u64, pages: &[GrantRef]) -> Self::Request;
    fn discard(flag: u8, sector: u64, sectors: u64) -> Self::Request;
}

macro_rules! raw {
    ($layout:ty, $of:ident) => {
        impl Raw for $layout {
            fn indirect(inner: BlkifOp, segments: u16, sector: u64, pages: &[GrantRef]) -> Self::Request {
                let mut raw = $of::BlkifRequestIndirect {
                    operation: BlkifOp::INDIRECT,
                    indirect_op: inner,
                    nr_segments: segments,
                    id: 1,
                    sector_number: sector,
                    ..Default::default()
                };
                let mut all = raw.indirect_grefs;
                all[..pages.len()].copy_from_slice(pages);
                raw.indirect_grefs = all;
                reinterpret(&raw)
            }

            fn discard(flag: u8, sector: u64, sectors: u64) -> Self::Request {
                reinterpret(&$of::BlkifRequestDiscard {
                    operation: BlkifOp::DISCARD,
                    flag,
                    id: 1,
                    sector_number: sector,
                    nr_sectors: sectors,
                    ..Default::default()
                })
            }
        }
    };
}

raw!(X86_64, x86_64);
raw!(X86_32, x86_32);

/// Sends one, which names itself as that operation in its one answer, and returns how it ended.
fn ends<L: Layout>(rig: &mut Rig<L>, raw: L::Request, operation: BlkifOp) -> Status {
    rig.front.send(&[raw]);
    rig.back.follow(&rig.bed);
    let answers = rig.front.answers();
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0].id, answers[0].operation), (1, operation));
    answers[0].status
}

fn indirect_lies<L: Raw>() {
    const LIMIT: u16 = 600;
    let disk = Slow::new(SECTORS as usize);
    let config = Config { max_indirect_segments: LIMIT, ..Config::default() };
    let mut rig = Rig::<L>::new(&disk, config, Asks::default());
    // Xen maps none of them more than 128 times.
    let pages = Granted::many(&rig.bed, 6);
    let base = rig.mapped();
    // Segments that are good, one more than may be, of one sector each: on two pages.
    let one: Vec<_> = pages.iter().map(|page| Segment::new(page.gref(), 2, 2).unwrap().to_bytes()).collect();
    let many: Vec<_> = one.iter().cycle().take(usize::from(LIMIT) + 1).copied().collect();
    let good = table(&rig.bed, &many);
    let good_grefs = grefs(&good);
    let (read, write) = (BlkifOp::READ, BlkifOp::WRITE);
    let mut lies: Vec<(BlkifOp, u16, u64, Vec<GrantRef>)> = Vec::new();
    for inner in [read, write] {
        // None, more than was offered, than fit onto eight pages, than can be counted.
        lies.extend([0, LIMIT + 1, 4096, 4097, u16::MAX].map(|count| (inner, count, 0, good_grefs.clone())));
        // Beyond the end, and around it.
        lies.extend(
            [SECTORS - 2, SECTORS, u64::MAX - 2, u64::MAX].map(|sector| (inner, 3, sector, good_grefs.clone())),
        );
        // Pages of segments that are not there, be it the second alone.
        for nowhere in [GrantRef(400), GrantRef(1 << 20), GrantRef(u32::MAX)] {
            lies.push((inner, 1, 0, vec![nowhere]));
            lies.push((inner, LIMIT, 0, vec![nowhere, good_grefs[1]]));
            lies.push((inner, LIMIT, 0, vec![good_grefs[0], nowhere]));
        }
    }
    // What is no read and no write inside, be it indirect once more.
    let inner = (0..=u8::MAX).map(BlkifOp).filter(|inner| ![read, write].contains(inner));
    lies.extend(inner.map(|inner| (inner, 3, 0, good_grefs.clone())));
    // Pages with anything on them.
    let mut lots = Lots(31);
    let mut garbage = vec![[0xff; PAGE_SIZE].to_vec()];
    garbage
        .extend((0..if cfg!(miri) { 2 } else { 100 }).map(|_| (0..PAGE_SIZE).map(|_| lots.below(256) as u8).collect()));
    let garbage: Vec<_> = garbage
        .iter()
        .map(|bytes| {
            let page = Granted::new(&rig.bed);
            page.shared().write(0, bytes);
            page
        })
        .collect();
    lies.extend(garbage.iter().map(|page| (read, 512, 0, vec![page.gref()])));
    for (inner, count, sector, list) in &lies {
        let raw = L::indirect(*inner, *count, *sector, list);
        assert_eq!(ends(&mut rig, raw, *inner), Status::Error, "{inner:?} {count} {sector} {list:?}");
        assert_eq!(rig.mapped(), base, "{inner:?} {count} {sector} {list:?}");
    }
    let counters = rig.counters();
    assert_eq!((counters.refused + counters.unmappable, disk.0.borrow().started), (lies.len() as u64, 0));
    // What looks like one and is none: as many as may be, and a page that tells of itself, which is read over.
    assert_eq!(ends(&mut rig, L::indirect(write, LIMIT, 0, &good_grefs), write), Status::Okay);
    let own = Granted::new(&rig.bed);
    own.shared().write(0, whole(std::slice::from_ref(&own)).as_flattened());
    assert_eq!(ends(&mut rig, L::indirect(read, 1, 8, &[own.gref()]), read), Status::Okay);
    assert_eq!(own.bytes(), disk.0.borrow().bytes[8 * 512..][..PAGE_SIZE]);
    rig.end([pages, good, garbage, vec![own]].into_iter().flatten().collect());
}

#[test]
fn indirect_lies_are_errors_and_nothing_of_them_stays_in_the_layout_of_64_bits() {
    indirect_lies::<X86_64>();
}

#[test]
fn indirect_lies_are_errors_and_nothing_of_them_stays_in_the_layout_of_32_bits() {
    indirect_lies::<X86_32>();
}

fn discard_lies<L: Raw>() {
    const FLAGS: [u8; 4] = [0, BLKIF_DISCARD_SECURE, 2, 0xff];
    for (offered, secure) in [(false, false), (true, false), (true, true)] {
        let disk = Slow::new(SECTORS as usize);
        disk.0.borrow_mut().discard = offered.then_some(Discard { granularity: 4096, alignment: 512, secure });
        let mut rig = Rig::<L>::new(&disk, Config::default(), Asks::default());
        let mut lies = 0;
        for flag in FLAGS {
            let asked = flag & BLKIF_DISCARD_SECURE != 0;
            // Nothing; beyond the end; around it, to where it began or just before or behind.
            let nothing = [(0, 0), (8, 0), (SECTORS, 0), (u64::MAX, 0)];
            let outside = [
                (SECTORS, 1),
                (SECTORS - 1, 2),
                (0, SECTORS + 1),
                (1 << 55, 8),
                (u64::MAX, 1),
                (1, u64::MAX),
                (2, u64::MAX),
                (u64::MAX, u64::MAX),
                (8, u64::MAX - 8),
            ];
            for (sector, sectors) in nothing.into_iter().chain(outside) {
                let expected = if sectors > 0 && !offered { Status::NotSupported } else { Status::Error };
                let raw = L::discard(flag, sector, sectors);
                assert_eq!(ends(&mut rig, raw, BlkifOp::DISCARD), expected, "{flag} {sector} {sectors}");
                lies += 1;
            }
            assert_eq!((rig.counters().refused, disk.0.borrow().started), (lies, 0));
            // What isn't aligned to the granularity is no lie: the disk forgets of it what it can. Nor is it one to ask for more
            // than was offered of how it is forgotten.
            for (sector, sectors) in [(1, 1), (3, 9), (0, SECTORS)].into_iter().filter(|_| offered) {
                assert_eq!(ends(&mut rig, L::discard(flag, sector, sectors), BlkifOp::DISCARD), Status::Okay);
                let log = std::mem::take(&mut disk.0.borrow_mut().log);
                assert_eq!(log, [(if asked && secure { "secure" } else { "discard" }, sector)], "{flag}");
            }
            disk.0.borrow_mut().started = 0;
        }
        rig.end(Vec::new());
    }
}

#[test]
fn discard_lies_are_errors_and_reach_no_disk_in_the_layout_of_64_bits() {
    discard_lies::<X86_64>();
}

#[test]
fn discard_lies_are_errors_and_reach_no_disk_in_the_layout_of_32_bits() {
    discard_lies::<X86_32>();
}
