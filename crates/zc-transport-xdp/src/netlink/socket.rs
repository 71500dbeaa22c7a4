//! Asking the kernel.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::NetlinkError;
use super::message::{DONE, DUMP, ERROR, Malformed, Message, Messages, Request};
use crate::limits::{MAX_NETLINK_ANSWERS, NETLINK_BYTES};

/// How long the kernel may think.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whom to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Route,
    Generic,
}

/// A socket for questions, one after the other.
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

fn failed(operation: &'static str) -> impl Fn(rustix::io::Errno) -> NetlinkError {
    move |errno| NetlinkError::Os { operation, errno: io::Error::from(errno) }
}

impl Socket {
    pub(super) fn open(protocol: Protocol) -> Result<Self, NetlinkError> {
        let protocol = match protocol {
            Protocol::Route => None, // Number 0.
            Protocol::Generic => Some(GENERIC),
        };
        let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
        let fd = rustix::net::socket_with(family, SocketType::RAW, flags, protocol)
            .map_err(failed("socket(AF_NETLINK)"))?;
        set_socket_timeout(&fd, Timeout::Recv, Some(PATIENCE)).map_err(failed("setsockopt(SO_RCVTIMEO)"))?;
        rustix::net::connect(&fd, &SocketAddrNetlink::new(0, 0)).map_err(failed("connect(AF_NETLINK)"))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; NETLINK_BYTES] })
    }

    /// One question, one answer.
    pub(super) fn ask<T>(
        &mut self,
        kind: u16,
        fixed: &[u8],
        attributes: &[(u16, &[u8])],
        mut read: impl FnMut(Message<'_>) -> Result<T, Malformed>,
    ) -> Result<T, NetlinkError> {
        self.send(kind, 0, fixed, attributes)?;
        let mut answer = None;
        self.receive(|message| {
            answer = Some(read(message)?);
            Ok(true)
        })?;
        answer.ok_or(NetlinkError::Malformed)
    }

    /// One question about all that there are; an answer for each.
    pub(super) fn ask_all(
        &mut self,
        kind: u16,
        fixed: &[u8],
        attributes: &[(u16, &[u8])],
        mut read: impl FnMut(Message<'_>) -> Result<(), Malformed>,
    ) -> Result<(), NetlinkError> {
        self.send(kind, DUMP, fixed, attributes)?;
        self.receive(|message| read(message).map(|()| false))
    }

    fn send(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        attributes: &[(u16, &[u8])],
    ) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = Request::new(kind, flags, self.sequence, fixed);
        let request =
            attributes.iter().fold(request, |request, (kind, value)| request.attribute(*kind, value));
        let request = request.finish();
        rustix::net::send(&self.fd, &request, SendFlags::empty()).map_err(failed("send(AF_NETLINK)"))?;
        Ok(())
    }

    /// Until `take` says that it has enough, or the kernel that this is all.
    fn receive(
        &mut self,
        mut take: impl FnMut(Message<'_>) -> Result<bool, Malformed>,
    ) -> Result<(), NetlinkError> {
        let malformed = |_| NetlinkError::Malformed;
        let mut answers = 0;
        loop {
            // With a timeout a signal ends it, whatever its handler says.
            let received =
                retry_on_intr(|| rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::empty()));
            let (_, len) = received.map_err(failed("recv(AF_NETLINK)"))?;
            for message in Messages(&self.buffer[..len.min(NETLINK_BYTES)]) {
                let message = message.map_err(malformed)?;
                if message.sequence != self.sequence {
                    continue; // Of a question that was given up.
                }
                match message.kind {
                    DONE => return Ok(()),
                    ERROR => return refused(message),
                    _ if take(message).map_err(malformed)? => return Ok(()),
                    _ => answers += 1,
                }
                if answers > MAX_NETLINK_ANSWERS {
                    return Err(NetlinkError::Malformed);
                }
            }
            if len == 0 {
                return Err(NetlinkError::Malformed);
            }
        }
    }
}

fn refused(message: Message<'_>) -> Result<(), NetlinkError> {
    match message.errno() {
        Some(0) => Ok(()),
        Some(errno) => Err(NetlinkError::Refused { errno: io::Error::from_raw_os_error(errno) }),
        None => Err(NetlinkError::Malformed),
    }
}
