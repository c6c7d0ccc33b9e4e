//! What the nodes of a block device say: each is garbage, or missing, or refused, or right. What is found keeps its bounds; an error
//! can be told.
#![no_main]

use fuzz::input::Input;
use fuzz::texts::Texts;
use libfuzzer_sys::fuzz_target;
use xbd::features::{self, Offer};
use xbd::{MAX_INDIRECT_SEGMENTS, MAX_RING_PAGES};
use xenbus::device::Device;
use xenbus::error::NegotiationError;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (queues, order) = (u16::from(input.byte() % 9).max(1), input.byte() % 5);
    let offer = Offer { max_queues: queues, max_ring_pages: 1 << order };
    let store = Texts::new(input);
    let Ok(device) = Device::front(&store, "device/vbd/1") else { return };
    if let Some(offer) = told(features::find_offer(&device)) {
        assert!(offer.max_queues > 0);
        assert!(offer.max_ring_pages.is_power_of_two() && usize::from(offer.max_ring_pages) <= MAX_RING_PAGES);
    }
    if let Some(disk) = told(features::find_disk(&device)) {
        assert!(disk.sectors.checked_mul(512).is_some());
        assert!(disk.sector_size.is_power_of_two() && (512..=4096).contains(&disk.sector_size));
        assert!(disk.physical_sector_size.is_power_of_two() && disk.physical_sector_size >= disk.sector_size);
        if let Some(discard) = disk.discard {
            assert!(discard.granularity > 0 && discard.granularity.is_multiple_of(disk.sector_size));
            assert!(discard.alignment < discard.granularity && discard.alignment.is_multiple_of(disk.sector_size));
        }
    }
    if let Some(abilities) = told(features::find_abilities(&device)) {
        assert!(usize::from(abilities.max_indirect_segments) <= MAX_INDIRECT_SEGMENTS);
    }
    told(features::trusted(&device));
    let Ok(device) = Device::back(&store, "backend/vbd/1/1") else { return };
    told(features::find_wishes(&device));
    if let Some(rings) = told(features::find_rings(&device, offer)) {
        assert!((1..=usize::from(offer.max_queues)).contains(&rings.queues.len()));
        let pages = rings.queues[0].refs.len();
        assert!(pages.is_power_of_two() && pages <= usize::from(offer.max_ring_pages));
        assert!(rings.queues.iter().all(|ring| ring.refs.len() == pages && ring.port.0 != 0));
    }
});

fn told<T>(found: Result<T, NegotiationError>) -> Option<T> {
    found.inspect_err(|error| assert!(!error.to_string().is_empty())).ok()
}
