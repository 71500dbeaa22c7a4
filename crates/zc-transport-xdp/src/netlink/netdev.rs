//! What a driver can do with XDP, and how many queues it has: the `netdev` family of generic netlink (Linux 6.6).

use super::message::{Attributes, Malformed, Message};
use super::socket::{Protocol, Socket};
use super::{Features, NetlinkError};

const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const DEV_GET: u8 = 1;
const DEV_INTERFACE: u16 = 1;
const DEV_XDP_FEATURES: u16 = 3;
const DEV_MAX_SEGMENTS: u16 = 4;
const DEV_XSK_FEATURES: u16 = 6;

const QUEUE_GET: u8 = 10;
const QUEUE_INTERFACE: u16 = 2;
const QUEUE_TYPE: u16 = 3;
const RX: u64 = 0;

const HAS_REDIRECT: u64 = 1 << 1;
const HAS_ZERO_COPY: u64 = 1 << 3;
const HAS_RX_SEGMENTS: u64 = 1 << 5;
const HAS_TX_CHECKSUM: u64 = 1 << 1;

// The fixed part of a generic message.
const GENERIC_BYTES: usize = 4;

fn generic(command: u8) -> [u8; GENERIC_BYTES] {
    [command, 1, 0, 0]
}

/// The family, if the kernel has it.
pub(super) struct Netdev {
    socket: Socket,
    family: u16,
}

impl Netdev {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::open(Protocol::Generic)?;
        let name: &[u8] = b"netdev\0";
        let family = socket.ask(CONTROL, &generic(GET_FAMILY), &[(FAMILY_NAME, name)], |message| {
            let (_, attributes) = message.parts(GENERIC_BYTES)?;
            attributes.number(FAMILY_ID).and_then(|id| u16::try_from(id).ok()).ok_or(Malformed)
        })?;
        Ok(Self { socket, family })
    }

    pub(super) fn features(&mut self, interface: u32) -> Result<Features, NetlinkError> {
        let index = interface.to_ne_bytes();
        self.socket.ask(self.family, &generic(DEV_GET), &[(DEV_INTERFACE, &index)], |message| {
            Ok(features(message.parts(GENERIC_BYTES)?.1))
        })
    }

    /// How many queues receive (Linux 6.8).
    pub(super) fn rx_queues(&mut self, interface: u32) -> Result<u32, NetlinkError> {
        let index = interface.to_ne_bytes();
        let mut count = 0;
        self.socket.ask_all(self.family, &generic(QUEUE_GET), &[(QUEUE_INTERFACE, &index)], |message| {
            count += u32::from(is_rx(message)?);
            Ok(())
        })?;
        Ok(count)
    }
}

fn features(attributes: Attributes<'_>) -> Features {
    let has = |attribute, bit| attributes.number(attribute).unwrap_or(0) & bit != 0;
    Features {
        known: true,
        redirect: has(DEV_XDP_FEATURES, HAS_REDIRECT),
        zero_copy: has(DEV_XDP_FEATURES, HAS_ZERO_COPY),
        rx_segments: has(DEV_XDP_FEATURES, HAS_RX_SEGMENTS),
        tx_checksum: has(DEV_XSK_FEATURES, HAS_TX_CHECKSUM),
        zero_copy_segments: attributes.number(DEV_MAX_SEGMENTS).unwrap_or(1).min(u32::MAX.into()) as u32,
    }
}

fn is_rx(message: Message<'_>) -> Result<bool, Malformed> {
    Ok(message.parts(GENERIC_BYTES)?.1.number(QUEUE_TYPE) == Some(RX))
}
