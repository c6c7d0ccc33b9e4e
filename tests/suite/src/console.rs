//! The console: an echo, and somebody who talks to it.

use alloc::format;
use alloc::vec::Vec;

use hypercall::event::Channel;
use hypercall::grant::SharedPages;
use hypercall::{GrantRef, Platform, Port};
use xenbus::Domain;
use xenbus::store::{Perm, Store, Tx};
use xencons::back;
use xencons::front::Console;

use crate::node::{Node, Own};
use crate::{Context, Failure, ensure};

type Page<P> = SharedPages<<Own<P> as Domain>::Grants>;

/// The guest's end of a scenario's console: pages of its own stand in for those that a domain builder makes.
pub type FrontHalf<P> = Console<<Own<P> as Domain>::Events, Page<P>>;
/// The other end.
pub type BackHalf<P> = back::Console<Own<P>>;

/// Makes both ends of a guest's second console, which find each other as with a real toolstack: by the nodes `ring-ref` and `port` in
/// the device's directory.
///
/// # Errors
/// [`Failure`] if there is no page, grant or port, or the store refuses.
pub fn pair<P: Platform>(
    toolstack: &Node<P>,
    front: &Node<P>,
    back: &Node<P>,
) -> Result<(FrontHalf<P>, BackHalf<P>), Failure> {
    let page = SharedPages::new(front.own().grants(), back.id(), 1).context("console page")?;
    let channel = Channel::offer(front.own().events(), back.id()).context("console port")?;
    let path = format!("/local/domain/{}/device/console/1", front.id().0);
    let store = toolstack.store();
    let told = store.transaction(|tx| {
        store.mkdir(tx, &path)?;
        let guest = Perm { domain: front.id(), read: false, write: false };
        store.set_permissions(tx, &path, &[guest, Perm { domain: back.id(), read: true, write: false }])?;
        store.write_text(tx, &format!("{path}/ring-ref"), page.refs()[0].0)?;
        store.write_text(tx, &format!("{path}/port"), channel.port().0)
    });
    told.context("tell of the console")?;
    let gref = back.store().read_as(Tx::NONE, &format!("{path}/ring-ref")).context("console page")?;
    let port = back.store().read_as(Tx::NONE, &format!("{path}/port")).context("console port")?;
    let other = back::Console::attach(back.own(), front.id(), GrantRef(gref), Port(port)).context("xencons back")?;
    Ok((Console::new(page, channel), other))
}

/// Gives back all that comes in, until `count` bytes have.
///
/// # Errors
/// [`Failure`] if the other end lies.
pub async fn echo<P: Platform>(node: &Node<P>, console: &mut FrontHalf<P>, count: usize) -> Result<(), Failure> {
    let (mut held, mut done) = (Vec::new(), 0);
    let mut buffer = [0; 256];
    while done < count {
        let seen = node.happened();
        // What couldn't be given back is given back before more is taken: that is flow control.
        if held.is_empty() {
            let count = console.read(&mut buffer).context("xencons read")?;
            held.extend_from_slice(&buffer[..count]);
        }
        let count = console.write(&held).context("xencons write")?;
        held.drain(..count);
        done += count;
        if count > 0 {
            continue;
        }
        console.unmask();
        if !node.take(Some(console.port())) && node.happened() == seen {
            node.turn().await;
        }
    }
    Ok(())
}

/// Sends a text and checks that it comes back.
///
/// # Errors
/// [`Failure`] if it doesn't.
pub async fn talk<P: Platform>(node: &Node<P>, console: &mut BackHalf<P>, text: &[u8]) -> Result<(), Failure> {
    let (mut sent, mut got) = (0, Vec::new());
    let mut buffer = [0; 300];
    while got.len() < text.len() {
        let seen = node.happened();
        let written = console.write(&text[sent..]).context("xencons back write")?;
        sent += written;
        let count = console.read(&mut buffer).context("xencons back read")?;
        got.extend_from_slice(&buffer[..count]);
        if written + count > 0 {
            continue;
        }
        console.unmask();
        if !node.take(Some(console.port())) && node.happened() == seen {
            node.turn().await;
        }
    }
    let first = got.iter().zip(text).position(|(got, sent)| got != sent);
    ensure(first.is_none(), format!("byte {first:?} came back wrong"))
}
