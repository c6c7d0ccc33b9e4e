//! Data that goes by way of own pages: for a back end that keeps them mapped, and for one that isn't trusted.

use std::collections::BTreeSet;

use hypercall::GrantRef;
use hypercall::grant::{Access, MapRequest};
use hypercall::mem::{Buffer, PAGE_SIZE, PageBuf, Segment, Shared};
use mock::Domain;
use xbd::front::{Change, Config, Front, SubmitError};
use xbd::protocol::Operation;
use xen_sys::io::blkif::{BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, BlkifOp};
use xenbus::device::State;

use crate::common::{Bed, Done};
use crate::player::{Player, buffer, bytes, connected, ends, submit, toolstack_says};

const UNTRUSTED: Config = Config { trusted: false, ..Config::DEFAULT };
const PERSISTENT: Config = Config { persistent: true, ..Config::DEFAULT };
const KEEPS: [(&str, &str); 1] = [("feature-persistent", "1")];

/// Sectors anywhere in pages whose other bytes are a secret.
struct Poisoned {
    pages: PageBuf<Domain>,
    /// Offset and length in each page, in sectors.
    runs: Vec<(u16, u16)>,
}

const SECRET: u8 = 0xa5;

impl Poisoned {
    fn new(bed: &Bed, runs: &[(u16, u16)], salt: u8) -> Self {
        let pages = PageBuf::new(&bed.front.platform, runs.len() * PAGE_SIZE).unwrap();
        pages.shared().write(0, &vec![SECRET; runs.len() * PAGE_SIZE]);
        let poisoned = Self { pages, runs: runs.into() };
        for (part, index) in poisoned.parts().zip(0..) {
            // Never the secret.
            part.write(0, &vec![salt + index; part.len()]);
        }
        poisoned
    }

    fn data(&self) -> Vec<u8> {
        let mut data = Vec::new();
        for part in self.parts() {
            let mut bytes = vec![0; part.len()];
            part.read(0, &mut bytes);
            data.append(&mut bytes);
        }
        data
    }
}

// SAFETY: parts of pages that the buffer owns.
unsafe impl Buffer for Poisoned {
    fn segments(&self) -> impl Iterator<Item = Segment> {
        let cut =
            |(part, (first, count)): (Segment, &(u16, u16))| Segment { offset: first * 512, len: count * 512, ..part };
        self.pages.segments().zip(&self.runs).map(cut)
    }

    fn parts(&self) -> impl Iterator<Item = Shared<'_>> {
        let cut = |(page, (first, count)): (Shared<'static>, &(u16, u16))| {
            page.slice(usize::from(*first) * 512, usize::from(*count) * 512)
        };
        // SAFETY: the pages live as long as the buffer, and the view is handed out for no longer.
        let free = |page: Shared<'_>| unsafe { Shared::new(page.as_ptr(), page.len()) };
        self.pages.parts().map(free).zip(&self.runs).map(cut)
    }
}

type Owner = Front<mock::Node, Poisoned>;

fn poisoned(seed: u64, config: Config, nodes: &[(&str, &str)], by_toolstack: bool) -> (Bed, Owner, Player) {
    let bed = Bed::new(seed);
    if by_toolstack {
        toolstack_says(&bed, "trusted", "0");
    }
    let mut front = Owner::new(&bed.front, &bed.device.front_path(), config).unwrap();
    bed.back_says("sectors", 65536).unwrap();
    for (node, value) in nodes {
        bed.back_says(node, value).unwrap();
    }
    bed.back_says("state", State::InitWait.number()).unwrap();
    bed.settle();
    assert_eq!(front.step(drop), Ok(Change::None));
    let player = Player::attach_all(&bed).remove(0);
    bed.back_says("state", State::Connected.number()).unwrap();
    bed.settle();
    assert!(matches!(front.step(drop), Ok(Change::Connected(_))));
    (bed, front, player)
}

fn over(bed: Bed, mut front: Owner, player: Player) {
    front.close().unwrap();
    assert_eq!(front.step(drop), Ok(Change::None));
    drop(player);
    bed.back_says("state", State::Closed.number()).unwrap();
    bed.settle();
    assert_eq!(front.step(drop), Ok(Change::Closed));
    drop(front);
    bed.check_quiet();
}

fn one(bed: &Bed, front: &mut Owner, operation: Operation, buffer: Poisoned) {
    let queue = front.queue(0).unwrap();
    queue.submit(operation, 0, buffer).map_err(|(error, _)| error).unwrap();
    queue.push();
    bed.settle();
}

fn back(bed: &Bed, front: &mut Owner) -> Vec<(Poisoned, bool)> {
    bed.settle();
    let mut over = Vec::new();
    front
        .queue(0)
        .unwrap()
        .poll(|completion| match completion.buffer {
            xbd::front::Returned::Whole(buffer) => over.push((buffer, completion.result.is_ok())),
            xbd::front::Returned::Held(_) => panic!("nothing of the owner's is ever lent"),
        })
        .unwrap();
    over
}

/// Sizes that differ, so that each page is used after something longer has been in it.
const SHAPES: [&[(u16, u16)]; 6] =
    [&[(0, 8), (0, 8), (0, 8)], &[(3, 2)], &[(7, 1), (0, 8), (0, 3)], &[(1, 6), (1, 6)], &[(0, 1); 14], &[(0, 8); 20]];

#[test]
fn untrusted_back_end_sees_the_sectors_of_a_request_and_zeros_and_nothing_of_an_earlier_one() {
    for by_toolstack in [false, true] {
        for (persistent, nodes) in [(false, &[][..]), (true, &KEEPS)] {
            let base = if by_toolstack { Config::DEFAULT } else { UNTRUSTED };
            let config = Config { persistent, max_grants: 40, ..base };
            let nodes = [nodes, &[("feature-max-indirect-segments", "32")]].concat();
            let (bed, mut front, mut player) = poisoned(1, config, &nodes, by_toolstack);
            let mut salt = 1u8;
            let mut granted = BTreeSet::new();
            for round in 0..3 {
                for shape in SHAPES {
                    salt = salt % 64 + 1;
                    let written = Poisoned::new(&bed, shape, salt);
                    let data = written.data();
                    one(&bed, &mut front, Operation::Write, written);
                    let requests = player.requests(&bed);
                    assert_eq!(requests.len(), 1);
                    let mut rest = &data[..];
                    for segment in &requests[0].segments {
                        granted.insert(segment.gref);
                        let page = player.page(&bed, segment.gref, Access::ReadOnly).unwrap();
                        let len = rest.len().min(PAGE_SIZE);
                        assert_eq!((segment.first_sect, usize::from(segment.last_sect)), (0, len / 512 - 1));
                        assert!(page[..len] == rest[..len], "{round} {shape:?}");
                        assert!(page[len..].iter().all(|byte| *byte == 0), "{round} {shape:?}");
                        rest = &rest[len..];
                        let writable = player.page(&bed, segment.gref, Access::ReadWrite).is_some();
                        assert_eq!(writable, persistent);
                    }
                    assert!(rest.is_empty());
                    player.all_well(&requests);
                    assert!(matches!(&back(&bed, &mut front)[..], [(same, true)] if same.data() == data));

                    one(&bed, &mut front, Operation::Read, Poisoned::new(&bed, shape, 0));
                    let requests = player.requests(&bed);
                    for segment in &requests[0].segments {
                        granted.insert(segment.gref);
                        let page = player.page(&bed, segment.gref, Access::ReadWrite).unwrap();
                        assert!(page.iter().all(|byte| *byte == 0), "{round} {shape:?}");
                    }
                    player.fill(&bed, &requests[0], |sector| (sector as u8 % 32) | 0x80);
                    player.all_well(&requests);
                    let mut read = back(&bed, &mut front);
                    let expected: Vec<u8> = (0..data.len()).map(|at| ((at / 512) as u8 % 32) | 0x80).collect();
                    assert!(read[0].0.data() == expected);
                    // Around them, all is as it was.
                    let (mut whole, pages) = (vec![0; shape.len() * PAGE_SIZE], read.remove(0).0);
                    pages.pages.shared().read(0, &mut whole);
                    assert_eq!(whole.iter().filter(|byte| **byte == SECRET).count(), whole.len() - data.len());
                }
            }
            assert!(granted.len() <= 40);
            if !persistent {
                assert!(granted.iter().all(|gref| player.page(&bed, *gref, Access::ReadOnly).is_none()));
            }
            over(bed, front, player);
        }
    }
}

#[test]
fn data_of_a_read_that_failed_does_not_reach_the_buffer() {
    let (bed, mut front, mut player) = poisoned(2, UNTRUSTED, &[], false);
    one(&bed, &mut front, Operation::Read, Poisoned::new(&bed, &[(2, 4)], 7));
    let requests = player.requests(&bed);
    player.fill(&bed, &requests[0], |_| 0x55);
    player.answer(&[(&requests[0], BLKIF_RSP_ERROR)]);
    let done = back(&bed, &mut front);
    assert!(!done[0].1 && done[0].0.data() == vec![7; 4 * 512]);
    drop(done);
    over(bed, front, player);
}

#[test]
fn persistent_grants_are_used_again_the_last_one_first_and_stay_mapped_for_life() {
    let (bed, mut front, mut players) = connected(3, Config { max_grants: 64, ..PERSISTENT }, &KEEPS);
    assert_eq!(bed.read(&bed.front, &format!("{}/feature-persistent", bed.device.front_path())).as_deref(), Some("1"));
    let mut known: Vec<GrantRef> = Vec::new();
    let player = &mut players[0];
    for round in 0..200u64 {
        let pages = 1 + (round % 5) as usize;
        let write = round % 2 == 0;
        let operation = if write { Operation::Write } else { Operation::Read };
        submit(&mut front, operation, round, Some(buffer(&bed, pages * PAGE_SIZE, round as u8))).unwrap();
        let requests = player.requests(&bed);
        let mut data = bytes(pages * PAGE_SIZE, round as u8);
        for segment in &requests[0].segments {
            let slot = known.iter().position(|gref| *gref == segment.gref).unwrap_or_else(|| {
                known.push(segment.gref);
                let request = MapRequest { gref: segment.gref, peer: bed.front.id, access: Access::ReadWrite };
                player.window.map(known.len() - 1, request).unwrap();
                known.len() - 1
            });
            let view = player.window.view(slot).unwrap();
            if write {
                let mut page = vec![0; PAGE_SIZE];
                view.read(0, &mut page);
                assert!(page == data[..PAGE_SIZE], "round {round}");
                data.drain(..PAGE_SIZE);
            } else {
                view.write(0, &[round as u8; PAGE_SIZE]);
            }
        }
        player.all_well(&requests);
        front.follow(&bed);
        assert_eq!(front.done.last(), Some(&Done { number: round, result: Ok(()), whole: true }));
    }
    assert_eq!(known.len(), 5, "one I/O of five pages at a time needs five");
    let counters = front.front.counters();
    assert_eq!((counters.still_mapped, counters.bounced_bytes), (0, counters.segments * PAGE_SIZE as u64));
    assert_eq!((front.front.queue(0).unwrap().held(), bed.front.grants.stats().quarantined_refs), (0, 0));
    // With all of them in use there is no more, and then there is again.
    submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 60 * PAGE_SIZE, 0))).unwrap();
    assert_eq!(submit(&mut front, Operation::Read, 0, Some(buffer(&bed, 5 * PAGE_SIZE, 0))), Err(SubmitError::Full));
    let requests = players[0].requests(&bed);
    players[0].all_well(&requests);
    front.follow(&bed);
    submit(&mut front, Operation::Read, 0, Some(buffer(&bed, 5 * PAGE_SIZE, 0))).unwrap();
    let requests = players[0].requests(&bed);
    assert!(requests[0].segments.iter().all(|segment| segment.gref.0 > 0));
    players[0].all_well(&requests);
    front.follow(&bed);
    ends(bed, front, players);
}

#[test]
fn pages_that_a_back_end_keeps_beyond_the_end_of_the_device_are_not_used_again() {
    let (bed, mut front, mut players) = connected(4, PERSISTENT, &KEEPS);
    submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 512, 0))).unwrap();
    let requests = players[0].requests(&bed);
    let request = MapRequest { gref: requests[0].segments[0].gref, peer: bed.front.id, access: Access::ReadWrite };
    players[0].window.map(0, request).unwrap();
    players[0].all_well(&requests);
    front.follow(&bed);
    bed.back_says("state", State::Closed.number()).unwrap();
    front.follow(&bed);
    assert!(front.closed);
    // That page, and the ring's.
    assert_eq!(bed.front.grants.stats().quarantined_refs, 2);
    drop(players);
    drop(front);
    bed.check_quiet();
}

#[test]
fn back_end_that_keeps_nothing_mapped_is_lent_the_owners_pages() {
    let (bed, mut front, mut players) = connected(5, PERSISTENT, &[]);
    let data = buffer(&bed, 3 * PAGE_SIZE, 0);
    let frames: Vec<_> = data.segments().map(|segment| segment.gfn).collect();
    submit(&mut front, Operation::Write, 0, Some(data)).unwrap();
    let requests = players[0].requests(&bed);
    assert_eq!((requests[0].segments.len(), frames.len()), (3, 3));
    assert_eq!(front.front.counters().bounced_bytes, 0);
    assert_eq!(players[0].page(&bed, requests[0].segments[0].gref, Access::ReadWrite), None);
    players[0].all_well(&requests);
    front.follow(&bed);
    assert_eq!(players[0].page(&bed, requests[0].segments[0].gref, Access::ReadOnly), None, "granted no longer");
    ends(bed, front, players);
}

#[test]
fn page_that_an_untrusted_back_end_keeps_is_lacking_and_holds_up_nobody() {
    let (bed, mut front, mut players) = connected(6, Config { max_grants: 11, ..UNTRUSTED }, &[]);
    let player = &mut players[0];
    submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 11 * PAGE_SIZE, 0))).unwrap();
    let requests = player.requests(&bed);
    for (slot, segment) in requests[0].segments.iter().enumerate() {
        let request = MapRequest { gref: segment.gref, peer: bed.front.id, access: Access::ReadOnly };
        player.window.map(slot, request).unwrap();
    }
    player.all_well(&requests);
    front.follow(&bed);
    assert_eq!(front.done, [Done { number: 0, result: Ok(()), whole: true }], "its data is not the owner's page");
    let queue = front.front.queue(0).unwrap();
    assert_eq!((queue.in_flight(), queue.held(), queue.counters().still_mapped), (0, 1, 11));
    assert_eq!(submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 512, 0))), Err(SubmitError::Full));
    player.window.unmap(7).unwrap();
    // Nobody tells of that: whoever needs one looks.
    submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 512, 0))).unwrap();
    let requests = player.requests(&bed);
    assert_eq!(requests[0].op, BlkifOp::WRITE);
    player.answer(&[(&requests[0], BLKIF_RSP_OKAY)]);
    for slot in [0, 1, 2, 3, 4, 5, 6, 8, 9, 10] {
        player.window.unmap(slot).unwrap();
    }
    front.follow(&bed);
    assert_eq!(front.front.queue(0).unwrap().held(), 0);
    submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 11 * PAGE_SIZE, 0))).unwrap();
    let requests = player.requests(&bed);
    player.all_well(&requests);
    front.follow(&bed);
    ends(bed, front, players);
}

#[test]
fn what_is_refused_takes_nothing_however_often_it_is_tried() {
    let ways = [(Config::DEFAULT, 20), (Config::DEFAULT, 40), (PERSISTENT, 20), (PERSISTENT, 40), (UNTRUSTED, 40)];
    for ((config, max_grants), indirect) in ways.into_iter().flat_map(|way| [(way, "0"), (way, "20")]) {
        let config = Config { max_grants, ..config };
        let nodes = [("feature-flush-cache", "1"), ("feature-max-indirect-segments", indirect), KEEPS[0]];
        let (bed, mut front, mut players) = connected(7, config, &nodes);
        for pages in [1, 3, 11, 20] {
            // As many as there are requests, or grants.
            let room = 32.min(usize::from(max_grants) / pages);
            for round in 0..3 {
                let mut next = || submit(&mut front, Operation::Read, 0, Some(buffer(&bed, pages * PAGE_SIZE, 0)));
                for index in 0..room + 50 {
                    let expected = if index < room { Ok(()) } else { Err(SubmitError::Full) };
                    assert_eq!(next().map(drop), expected, "{config:?}: {index} of {pages} page(s), round {round}");
                }
                let requests = players[0].requests(&bed);
                assert_eq!(requests.iter().map(|seen| seen.segments.len()).sum::<usize>(), room * pages);
                players[0].all_well(&requests);
                front.follow(&bed);
                assert_eq!(front.front.queue(0).unwrap().in_flight(), 0);
            }
            // These take nothing but a request.
            for _ in 0..32 {
                submit(&mut front, Operation::Flush, 0, None).unwrap();
            }
            let requests = players[0].requests(&bed);
            players[0].all_well(&requests);
            front.follow(&bed);
        }
        ends(bed, front, players);
    }
}
