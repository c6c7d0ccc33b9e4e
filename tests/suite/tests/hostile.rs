//! Ends that do whatever a test wants: as long as they are honest they are served, and what a lie costs is their
//! device.
#![cfg(not(target_os = "none"))]

use mock::Config;
use suite::block::{self, Client, Memory, XVDA};
use suite::exec::Program;
use suite::hostile::{Back, Front, request};
use suite::on_mock::MockBed;
use suite::toolstack::NewDevice;
use suite::{Failure, ensure};
use xbd::SECTOR;
use xbd::protocol::Operation;
use xen_sys::io::blkif::{BLKIF_RSP_OKAY, BlkifResponse};
use xenbus::device::State;

fn bed() -> (MockBed, NewDevice<'static>) {
    let bed = MockBed::new(Config::deterministic(5));
    let new = block::disk(bed.front.id(), bed.back.id());
    new.attach(bed.toolstack.store()).unwrap();
    (bed, new)
}

#[test]
fn front_end_by_hand_is_served_until_it_claims_too_much() {
    let (mut bed, new) = bed();
    let (front, back) = (bed.front.clone(), bed.back.clone());
    let liar = async {
        let mut liar = Front::connect(&front, &new).await?;
        let page = hypercall::grant::SharedPages::new(&front.own().grants, new.back, 1).unwrap();
        // More than the ring holds, so that it waits for answers again and again.
        for id in 0..70 {
            liar.send(&request(id, page.refs()[0], 2, 3))?;
            let response = liar.response().await?;
            ensure(response.id == id && response.status == BLKIF_RSP_OKAY, format!("{response:?}"))?;
        }
        let mut read = [0; 2 * SECTOR];
        page.shared().read(2 * SECTOR, &mut read);
        ensure(read == [7; 2 * SECTOR], "it has read something else")?;
        liar.claim(70 + 33);
        liar.back_is(State::Closing).await
    };
    let mut failed = None;
    let server = async {
        failed = block::serve(&back, XVDA, Memory::new(vec![7; 64 * SECTOR])).await.err();
        Ok(())
    };
    bed.bed().run(vec![Program::new("liar", liar), Program::new("server", server)]).unwrap();
    assert!(failed.as_ref().is_some_and(|failure| failure.0.contains("claims 33 entries")), "{failed:?}");
    bed.check().unwrap();
}

#[test]
fn back_end_by_hand_serves_until_it_answers_what_nobody_has_asked() {
    let (mut bed, new) = bed();
    let (front, back) = (bed.front.clone(), bed.back.clone());
    let liar = async {
        let mut liar = Back::connect(&back, &new, 64).await?;
        for at in 0..40 {
            let asked = liar.request().await?;
            let sector = asked.sector_number;
            ensure(sector == at, format!("it asks for {sector}"))?;
            // The last one is answered under another name.
            let id = if at < 39 { asked.id } else { asked.id + 1000 };
            liar.send(&BlkifResponse { id, operation: asked.operation, status: BLKIF_RSP_OKAY, ..Default::default() })?;
        }
        liar.front_is(State::Closed).await?;
        liar.close()
    };
    let mut ended = Vec::new();
    let client = async {
        let mut disk = Client::attach(&front, XVDA).await?;
        ensure(disk.disk().sectors == 64, "the disk has another size")?;
        for at in 0..40 {
            ended.push(disk.transfer(Operation::Read, at..at + 1, |_, _| {}, |_, _| {}).await);
        }
        disk.close().await
    };
    bed.bed().run(vec![Program::new("liar", liar), Program::new("client", client)]).unwrap();
    assert_eq!(ended[..39], vec![Ok(()); 39]);
    let said = "xbd poll: a response to request 1000, which is not in flight";
    assert_eq!(ended[39], Err(Failure(said.into())));
    bed.check().unwrap();
}
