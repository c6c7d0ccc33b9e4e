//! A disk that is kept busy: as many reads at once as there are buffers, each of which ends once, whatever becomes of the back end.

use alloc::vec::Vec;
use core::mem::replace;

use hypercall::mem::{PAGE_SIZE, PageBuf};
use suite::block::{Client, Io, pattern_word};
use suite::node::Node;
use suite::{Context, Failure, ensure};
use xbd::SECTOR;
use xbd::front::{Completion, Returned, SubmitError};
use xbd::protocol::Operation;

use crate::{Bare, println};

/// Reads at once, and the bytes of each: more pages than a request has without an indirect one.
const READS: usize = 16;
const BYTES: usize = 16 * PAGE_SIZE;

/// Reads after which the disk is said to be busy.
const MANY: u64 = 100;

/// What keeps a disk busy.
pub(super) struct Busy {
    node: Node<Bare>,
    name: &'static str,
    /// The first sector that is read, and the number of the pattern's word there.
    begin: u64,
    word: u64,
    /// Reads by their numbers, each with the buffer that nobody has just now.
    idle: Vec<(u64, PageBuf<Bare>)>,
    in_flight: [bool; READS],
    finished: Vec<Completion<Io<Bare>>>,
    begun: u64,
    ended: u64,
    /// How many must have ended before something is said, and what.
    say: Option<(u64, &'static str)>,
    away: bool,
}

impl Busy {
    /// Keeps the second half of a disk of so many sectors busy, on which the pattern's words stand from that number.
    pub(super) fn new(node: &Node<Bare>, name: &'static str, sectors: u64, first: u64) -> Result<Self, Failure> {
        let begin = sectors - (READS * BYTES / SECTOR) as u64;
        let mut idle = Vec::with_capacity(READS);
        for number in 0..READS as u64 {
            idle.push((number, PageBuf::new(&Bare, BYTES).context("buffer")?));
        }
        Ok(Self {
            node: node.clone(),
            name,
            begin,
            word: first + begin * (SECTOR / size_of::<u64>()) as u64,
            idle,
            in_flight: [false; READS],
            finished: Vec::with_capacity(READS),
            begun: 0,
            ended: 0,
            say: Some((MANY, "is busy")),
            away: false,
        })
    }

    /// Takes what has ended, and leaves as much in flight as the disk takes.
    pub(super) fn go_on(&mut self, client: &mut Client<Bare>) -> Result<(), Failure> {
        client.poll(|completion| self.finished.push(completion))?;
        self.take()?;
        if !client.is_connected() {
            if !replace(&mut self.away, true) {
                let count = self.count()?;
                println!("xenlab: {} has lost its back end, {count} in flight", self.name);
            }
            return Ok(());
        }
        if replace(&mut self.away, false) {
            self.say = Some((self.ended + MANY, "is back"));
        }
        if let Some((_, what)) = self.say.take_if(|(count, _)| self.ended >= *count) {
            println!("xenlab: {} {what}", self.name);
        }
        // Although it is to go, perhaps: then this is what it goes with.
        while let Some((number, buffer)) = self.idle.pop() {
            let sector = self.begin + number * (BYTES / SECTOR) as u64;
            let queue = client.queue(self.begun as usize % client.queues())?;
            let submit = || queue.submit(Operation::Read, sector, (number, Some(buffer)));
            match self.node.metered(submit) {
                Ok(()) => self.in_flight[number as usize] = true,
                Err((SubmitError::Full, (number, buffer))) => {
                    self.idle.extend(buffer.map(|buffer| (number, buffer)));
                    break;
                }
                Err((error, _)) => return Err(Failure(alloc::format!("read at {sector}: {error}"))),
            }
            self.begun += 1;
        }
        for index in 0..client.queues() {
            let queue = client.queue(index)?;
            self.node.metered(|| queue.push());
        }
        Ok(())
    }

    /// Looks at what has ended.
    fn take(&mut self) -> Result<(), Failure> {
        for Completion { buffer, result } in self.finished.drain(..) {
            let (Returned::Whole((number, Some(buffer))), Ok(())) = (buffer, result) else {
                return Err(Failure(alloc::format!("a read has ended: {result:?}")));
            };
            let was_in_flight = replace(&mut self.in_flight[number as usize], false);
            ensure(was_in_flight, format_args!("read {number} has ended twice"))?;
            let mut found = [0; size_of::<u64>()];
            buffer.shared().read(0, &mut found);
            let (found, index) = (u64::from_le_bytes(found), self.word + number * (BYTES / size_of::<u64>()) as u64);
            ensure(found == pattern_word(index), format_args!("word {index} is {found:#x}"))?;
            self.idle.push((number, buffer));
            self.ended += 1;
        }
        Ok(())
    }

    /// Returns how many reads are in flight, of which there must be some.
    fn count(&self) -> Result<usize, Failure> {
        let count = self.in_flight.iter().filter(|in_flight| **in_flight).count();
        ensure(count > 0, "nothing is in flight")?;
        Ok(count)
    }

    /// Closes the disk with all that is in flight, and sees to it that this ends.
    pub(super) async fn close(mut self, client: Client<Bare>) -> Result<(), Failure> {
        println!("xenlab: {} goes, {} reads begun, {} in flight", self.name, self.begun, self.count()?);
        client.close_with(|completion| self.finished.push(completion)).await?;
        self.take()?;
        let (begun, ended) = (self.begun, self.ended);
        ensure(begun == ended, format_args!("{ended} of {begun} reads have ended"))?;
        println!("xenlab: {} ended all", self.name);
        Ok(())
    }
}
