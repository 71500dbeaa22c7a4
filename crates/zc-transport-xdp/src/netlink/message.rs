//! Messages and attributes, as bytes; without I/O.
//!
//! ```text
//! length 4 | kind 2 | flags 2 | sequence 4 | port 4 | fixed part | attribute ...      (native order)
//! attribute: length 2 | kind 2 | value, padded to a multiple of 4
//! ```

const HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
// In the kind of an attribute: it is nested, or in network order.
const ATTRIBUTE_FLAGS: u16 = 0xc000;

// This is a question.
pub(super) const REQUEST: u16 = 1;
// ... about all that there are.
pub(super) const DUMP: u16 = 0x300;

pub(super) const ERROR: u16 = 2;
pub(super) const DONE: u16 = 3;

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

fn aligned(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// A question to the kernel.
pub(super) struct Request(Vec<u8>);

impl Request {
    pub(super) fn new(kind: u16, flags: u16, sequence: u32, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(fixed);
        bytes.resize(aligned(bytes.len()), 0);
        Self(bytes)
    }

    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let len = (ATTRIBUTE_HEADER_BYTES + value.len()) as u16;
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(aligned(self.0.len()), 0);
        self
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        let len = (self.0.len() as u32).to_ne_bytes();
        self.0[..4].iter_mut().zip(len).for_each(|(to, from)| *to = from);
        self.0
    }
}

/// One message of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

impl Message<'_> {
    /// The error number of an [`ERROR`]; 0 is an acknowledgement.
    pub(super) fn errno(&self) -> Option<i32> {
        Some((u32_at(self.payload, 0)? as i32).wrapping_neg())
    }

    /// The fixed part, of `len` bytes, and the attributes behind it.
    pub(super) fn parts(&self, len: usize) -> Result<(&[u8], Attributes<'_>), Malformed> {
        let fixed = self.payload.get(..len).ok_or(Malformed)?;
        Ok((fixed, Attributes(self.payload.get(aligned(len)..).unwrap_or_default())))
    }
}

/// The messages of what was received at once.
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let message = take_message(&mut self.0).ok_or(Malformed);
        if message.is_err() {
            self.0 = &[];
        }
        Some(message)
    }
}

fn take_message<'a>(bytes: &mut &'a [u8]) -> Option<Message<'a>> {
    let len = u32_at(bytes, 0)? as usize;
    let payload = bytes.get(HEADER_BYTES..len)?;
    let message = Message { kind: u16_at(bytes, 4)?, sequence: u32_at(bytes, 8)?, payload };
    *bytes = bytes.get(aligned(len)..).unwrap_or_default();
    Some(message)
}

/// Attributes, each a kind and a value. What is cut off ends them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);
    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & !ATTRIBUTE_FLAGS;
        let value = self.0.get(ATTRIBUTE_HEADER_BYTES..len)?;
        self.0 = self.0.get(aligned(len)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    pub(super) fn find(mut self, wanted: u16) -> Option<&'a [u8]> {
        self.find_map(|(kind, value)| (kind == wanted).then_some(value))
    }

    /// A number of 1, 2, 4 or 8 bytes.
    pub(super) fn number(self, wanted: u16) -> Option<u64> {
        number(self.find(wanted)?)
    }
}

fn number(value: &[u8]) -> Option<u64> {
    match value.len() {
        1 => Some(value[0].into()),
        2 => u16_at(value, 0).map(u64::from),
        4 => u32_at(value, 0).map(u64::from),
        8 => Some(u64::from_ne_bytes(value.try_into().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let request = Request::new(26, DUMP, 7, &[1, 2, 3, 4, 5, 6])
            .attribute(3, b"eth0\0")
            .attribute(0x8004, &9u32.to_ne_bytes())
            .finish();
        assert_eq!(request.len(), 16 + 8 + 12 + 8);
        let [message] = Messages(&request).collect::<Result<Vec<_>, _>>().unwrap().try_into().unwrap();
        assert_eq!((message.kind, message.sequence), (26, 7));
        let (fixed, attributes) = message.parts(6).unwrap();
        assert_eq!(fixed, [1, 2, 3, 4, 5, 6]);
        assert_eq!(attributes.find(3), Some(&b"eth0\0"[..]));
        assert_eq!((attributes.number(4), attributes.number(3), attributes.number(1)), (Some(9), None, None));
        assert!(message.parts(1000).is_err());
    }

    /// So that what is written is the same tomorrow, and what the kernel says (little-endian here).
    #[cfg(target_endian = "little")]
    #[test]
    fn golden_bytes() {
        let request = Request::new(18, 0, 1, &[0; 4]).attribute(3, b"lo\0").finish();
        let golden =
            [28, 0, 0, 0, 18, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 3, 0, b'l', b'o', 0, 0];
        assert_eq!(request, golden);
    }

    #[test]
    fn errors_have_a_number() {
        let error = Request::new(ERROR, 0, 1, &(-19i32).to_ne_bytes()).finish();
        let message = Messages(&error).next().unwrap().unwrap();
        assert_eq!(message.errno(), Some(19));
    }

    proptest! {
        #[test]
        fn fuzz_any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..200), fixed in 0..40usize) {
            for message in Messages(&bytes).flatten() {
                message.errno();
                if let Ok((_, attributes)) = message.parts(fixed) {
                    prop_assert!(attributes.count() <= bytes.len());
                    attributes.number(1);
                }
            }
            prop_assert!(Messages(&bytes).count() <= bytes.len());
        }

        #[test]
        fn fuzz_attributes_come_back(
            values in proptest::collection::vec((0u16..0x3fff, proptest::collection::vec(any::<u8>(), 0..20)), 0..10),
            cut in 0..400usize,
        ) {
            let mut request = Request::new(1, 0, 2, &[]);
            for (kind, value) in &values {
                request = request.attribute(*kind, value);
            }
            let bytes = request.finish();
            let message = Messages(&bytes).next().unwrap().unwrap();
            let read: Vec<_> = message.parts(0).unwrap().1.map(|(kind, value)| (kind, value.to_owned())).collect();
            prop_assert_eq!(read, values);
            // What is cut off is no message.
            let cut = 1 + cut % (bytes.len() - 1);
            prop_assert!(Messages(&bytes[..cut]).next().unwrap().is_err());
        }
    }
}
