//! The bound: an echo straight on io_uring, without a runtime, that can do nothing else. Receives go on by themselves into
//! buffers that the kernel chooses, one completion for several where much has come; what is there goes back with one call.

use std::net::TcpStream;

use crate::Result;
use crate::sys::ring::{Done, EchoRing};

/// 4 MiB of buffers, of which a small message takes a whole one.
const BUFFERS: u16 = 256;
const BUFFER_BYTES: usize = 16 << 10;

/// One socket.
#[derive(Default)]
struct Lane {
    /// Received, and not on its way back yet: the buffer and how much of it.
    pending: Vec<(u16, usize)>,
    /// On its way back.
    sending: Vec<(u16, usize)>,
    is_armed: bool,
    has_ended: bool,
}

pub(super) fn serve(sockets: Vec<TcpStream>) -> Result<()> {
    let lanes = sockets.iter().map(|_| Lane::default()).collect();
    let sockets = sockets.into_iter().map(Into::into).collect();
    let mut echo = Echo { ring: EchoRing::new(sockets, BUFFERS, BUFFER_BYTES)?, lanes };
    while echo.lanes.iter().any(|lane| !lane.has_ended || !lane.sending.is_empty()) {
        echo.turn()?;
    }
    Ok(())
}

struct Echo {
    ring: EchoRing,
    lanes: Vec<Lane>,
}

impl Echo {
    fn turn(&mut self) -> Result<()> {
        for (n, lane) in self.lanes.iter_mut().enumerate() {
            // After ENOBUFS, once some are back.
            if !lane.is_armed && !lane.has_ended && self.ring.has_buffers() {
                self.ring.receive(n)?;
                lane.is_armed = true;
            }
        }
        self.ring.enter()?;
        while let Some(done) = self.ring.next() {
            self.take(done?)?;
        }
        Ok(())
    }

    fn take(&mut self, done: Done) -> Result<()> {
        let n = match done {
            Done::Received { socket, buffers, goes_on, has_ended } => {
                let lane = &mut self.lanes[socket];
                lane.pending.extend(buffers);
                lane.is_armed = goes_on;
                lane.has_ended |= has_ended;
                socket
            }
            Done::Sent { socket, bytes } => {
                let lane = &mut self.lanes[socket];
                if bytes < lane.sending.iter().map(|(_, len)| len).sum() {
                    return Err("a part was sent".into());
                }
                lane.sending.drain(..).for_each(|(buffer, _)| self.ring.give_back(buffer));
                socket
            }
        };
        let lane = &mut self.lanes[n];
        if lane.sending.is_empty() && !lane.pending.is_empty() {
            std::mem::swap(&mut lane.sending, &mut lane.pending);
            self.ring.send(n, &lane.sending)?;
        }
        Ok(())
    }
}
