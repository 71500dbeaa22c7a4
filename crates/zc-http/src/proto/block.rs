//! Header blocks: a sequence of fields, each an index into the tables or a literal.
//!
//! ```text
//! 1iiiiiii                     field `index`
//! 01nnnnnn [name] value        literal, remembered by both sides
//! 0000nnnn [name] value        literal
//! 0001nnnn [name] value        literal, never remembered by anybody (sensitive)
//! n: index of a field with this name, 0: the name follows. Strings: length, bytes.
//! ```
//! Integers fill the bits, and go on in groups of seven, lowest first, when those are all ones.

use bytes::BufMut;

use super::error::Violation;
use super::field::Field;
use super::table::{Dynamic, SEED, STATIC_LEN, hash, lookup, static_index, static_name};

/// No index or length needs more.
const MAX_INTEGER: usize = 1 << 20;
/// Fields seen once lately.
const SEEN: usize = 64;

fn put_integer(out: &mut Vec<u8>, first: u8, bits: u8, value: usize) {
    let mask = (1 << bits) - 1;
    if value < mask {
        out.put_u8(first | value as u8);
        return;
    }
    out.put_u8(first | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

fn take_integer(bytes: &mut &[u8], bits: u8) -> Result<usize, Violation> {
    let mask = (1 << bits) - 1;
    let mut value = usize::from(take_byte(bytes)?) & mask;
    if value < mask {
        return Ok(value);
    }
    for shift in [0, 7, 14] {
        let byte = usize::from(take_byte(bytes)?);
        value += (byte & 0x7f) << shift;
        if byte < 0x80 {
            return if value <= MAX_INTEGER { Ok(value) } else { Err(Violation::Headers("an integer")) };
        }
    }
    Err(Violation::Headers("an integer"))
}

fn take_byte(bytes: &mut &[u8]) -> Result<u8, Violation> {
    let (first, rest) = bytes.split_first().ok_or(Violation::Headers("cut short"))?;
    *bytes = rest;
    Ok(*first)
}

fn put_string(out: &mut Vec<u8>, value: &[u8]) {
    put_integer(out, 0, 7, value.len());
    out.put_slice(value);
}

fn take_string<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Violation> {
    let len = take_integer(bytes, 7)?;
    let (string, rest) = bytes.split_at_checked(len).ok_or(Violation::Headers("cut short"))?;
    *bytes = rest;
    Ok(string)
}

/// Writes fields. Its dynamic table follows what it writes.
pub(super) struct Encoder {
    table: Dynamic,
    /// Hashes of fields that were written once as they are: the second time they are remembered, so
    /// that values that never come again don't push out those that do.
    seen: [u32; SEEN],
}

impl Encoder {
    pub(super) fn new(table_bytes: usize) -> Self {
        Self { table: Dynamic::new(table_bytes), seen: [0; SEEN] }
    }

    pub(super) fn put(&mut self, field: &Field, out: &mut Vec<u8>) {
        let name = field.name();
        let name_hash = hash(SEED, name.as_bytes());
        if field.is_sensitive() {
            return self.put_literal(0x10, 4, name_hash, field, out);
        }
        let whole = hash(name_hash, field.value());
        let index = static_index(whole, field)
            .or_else(|| self.table.find(whole, field).map(|at| STATIC_LEN + 1 + at));
        if let Some(index) = index {
            return put_integer(out, 0x80, 7, index);
        }
        let seen = &mut self.seen[whole as usize % SEEN];
        let again = *seen == whole;
        *seen = whole;
        if again && field.size() <= self.table.max() / 4 {
            self.put_literal(0x40, 6, name_hash, field, out);
            self.table.insert(field.clone(), name_hash, whole);
        } else {
            self.put_literal(0, 4, name_hash, field, out);
        }
    }

    fn put_literal(&self, first: u8, bits: u8, name_hash: u32, field: &Field, out: &mut Vec<u8>) {
        let name = field.name();
        let index = static_name(name_hash, name)
            .or_else(|| self.table.find_name(name_hash, name).map(|at| STATIC_LEN + 1 + at));
        put_integer(out, first, bits, index.unwrap_or(0));
        if index.is_none() {
            put_string(out, name.as_bytes());
        }
        put_string(out, field.value());
    }
}

/// Reads fields. An error leaves the table of no use: the connection ends.
pub(super) struct Decoder {
    table: Dynamic,
}

impl Decoder {
    pub(super) fn new(table_bytes: usize) -> Self {
        Self { table: Dynamic::new(table_bytes) }
    }

    /// Hands each field of a block to `sink`, and goes on to the end whatever it does with them.
    pub(super) fn read(&mut self, mut block: &[u8], mut sink: impl FnMut(Field)) -> Result<(), Violation> {
        while let Some(&first) = block.first() {
            if first & 0x80 != 0 {
                let index = take_integer(&mut block, 7)?;
                sink(lookup(&self.table, index).ok_or(Violation::Headers("an index"))?.clone());
                continue;
            }
            let remember = first & 0x40 != 0;
            if first & 0x20 != 0 && !remember {
                return Err(Violation::Headers("reserved bits"));
            }
            let name = take_integer(&mut block, if remember { 6 } else { 4 })?;
            let mut field = if name == 0 {
                let name = take_string(&mut block)?;
                Field::parse(name, take_string(&mut block)?)?
            } else {
                let known = lookup(&self.table, name).ok_or(Violation::Headers("an index"))?;
                with_value(known, take_string(&mut block)?)?
            };
            if first & 0x50 == 0x10
                && let Field::Header(_, value) = &mut field
            {
                value.set_sensitive(true);
            }
            if remember {
                self.table.insert(field.clone(), 0, 0);
            }
            sink(field);
        }
        Ok(())
    }
}

/// A field with the name of another.
fn with_value(known: &Field, value: &[u8]) -> Result<Field, Violation> {
    match known {
        Field::Header(name, _) => {
            let value = http::HeaderValue::from_bytes(value).map_err(|_| Violation::Headers("a value"))?;
            Ok(Field::Header(name.clone(), value))
        }
        pseudo => Field::parse(pseudo.name().as_bytes(), value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn field(name: &str, value: &str) -> Field {
        Field::parse(name.as_bytes(), value.as_bytes()).unwrap()
    }

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Field>, Violation> {
        let mut fields = Vec::new();
        decoder.read(block, |field| fields.push(field))?;
        Ok(fields)
    }

    #[test]
    fn golden_bytes() {
        let mut encoder = Encoder::new(4096);
        let mut decoder = Decoder::new(4096);
        let fields = [
            field(":method", "POST"),
            field(":path", "/a.B/C"),
            field("te", "trailers"),
            field("content-type", "application/grpc"),
            field("x-a", "b"),
        ];
        let golden: [&[u8]; 3] = [
            b"\x81\x0a\x06/a.B/C\x99\x9a\x00\x03x-a\x01b",
            b"\x81\x4a\x06/a.B/C\x99\x9a\x40\x03x-a\x01b",
            b"\x81\xb2\x99\x9a\xb1",
        ];
        for block in golden {
            let mut out = Vec::new();
            fields.iter().for_each(|field| encoder.put(field, &mut out));
            assert_eq!(out, block);
            assert_eq!(decode(&mut decoder, block).unwrap(), fields);
        }
    }

    #[test]
    fn what_is_sensitive_is_never_remembered() {
        let mut encoder = Encoder::new(4096);
        let mut decoder = Decoder::new(4096);
        let mut value = http::HeaderValue::from_static("secret");
        value.set_sensitive(true);
        let token = Field::Header(http::header::AUTHORIZATION, value);
        for _ in 0..3 {
            let mut out = Vec::new();
            encoder.put(&token, &mut out);
            assert_eq!(out, b"\x1f\x1c\x06secret");
            assert!(decode(&mut decoder, &out).unwrap()[0].is_sensitive());
        }
    }

    #[test]
    fn hostile_blocks() {
        let bad: [&[u8]; 9] = [
            b"\x80",                         // index 0
            b"\xff\x40",                     // an index beyond both tables
            b"\x20\x00\x00",                 // reserved
            b"\x00\x01X\x00",                // uppercase
            b"\x00\x01a\x01\n",              // a line break in a value
            b"\x00\x05ab",                   // cut short
            b"\x00\x7f\xff\xff\xff\xff\x7f", // an endless integer
            b"\x0a\x03a b",                  // a path with a space
            b"\x0c\x0299",                   // a status of two digits
        ];
        for block in bad {
            assert!(
                matches!(decode(&mut Decoder::new(4096), block), Err(Violation::Headers(_))),
                "{block:?}"
            );
        }
    }

    fn any_field() -> impl Strategy<Value = Field> {
        prop_oneof![
            "/[a-c]{0,3}".prop_map(|path| field(":path", &path)),
            "[a-b]{1,2}".prop_map(|name| field(":authority", &name)),
            Just(field(":method", "GET")),
            ("[a-c-]{1,3}", "[ -~]{0,40}").prop_map(|(name, value)| field(&name, value.trim())),
            ("x-[a-c]", "[a-b]").prop_map(|(name, value)| {
                let mut field = field(&name, &value);
                if let Field::Header(_, value) = &mut field {
                    value.set_sensitive(true);
                }
                field
            }),
        ]
    }

    proptest! {
        #[test]
        fn fuzz_header_blocks(block in prop::collection::vec(any::<u8>(), 0..200), table in 0_usize..300) {
            let mut decoder = Decoder::new(table);
            let mut count = 0;
            let _ = decoder.read(&block, |_| count += 1);
            prop_assert!(count <= block.len());
        }

        #[test]
        fn fuzz_both_tables_stay_alike(
            blocks in prop::collection::vec(prop::collection::vec(any_field(), 0..8), 1..30),
            table in 0_usize..400,
        ) {
            let (mut encoder, mut decoder) = (Encoder::new(table), Decoder::new(table));
            for fields in blocks {
                let mut out = Vec::new();
                fields.iter().for_each(|field| encoder.put(field, &mut out));
                prop_assert_eq!(decode(&mut decoder, &out).unwrap(), fields);
            }
        }

        #[test]
        fn fuzz_integers(value in 0_usize..MAX_INTEGER, bits in 4_u8..8) {
            let mut out = Vec::new();
            put_integer(&mut out, 0, bits, value);
            let mut bytes = &out[..];
            prop_assert_eq!(take_integer(&mut bytes, bits).unwrap(), value);
            prop_assert!(bytes.is_empty());
        }
    }
}
