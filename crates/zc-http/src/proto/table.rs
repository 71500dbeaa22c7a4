//! The static table, and the dynamic one that both ends of a direction keep alike.

use std::collections::VecDeque;
use std::sync::LazyLock;

use super::field::Field;

/// Fields that every connection knows; the position is the index, from 1. Never reordered.
const STATIC: [(&str, &str); 48] = [
    (":method", "POST"),
    (":method", "GET"),
    (":method", "PUT"),
    (":method", "DELETE"),
    (":method", "PATCH"),
    (":method", "HEAD"),
    (":method", "OPTIONS"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":path", "/"),
    (":authority", "localhost"),
    (":status", "200"),
    (":status", "204"),
    (":status", "304"),
    (":status", "400"),
    (":status", "401"),
    (":status", "403"),
    (":status", "404"),
    (":status", "405"),
    (":status", "415"),
    (":status", "422"),
    (":status", "429"),
    (":status", "500"),
    (":status", "503"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("content-type", "application/grpc+proto"),
    ("content-type", "application/json"),
    ("content-type", "text/plain; charset=utf-8"),
    ("content-type", "application/octet-stream"),
    ("grpc-status", "0"),
    ("grpc-message", ""),
    ("grpc-timeout", ""),
    ("grpc-encoding", "gzip"),
    ("grpc-accept-encoding", "gzip"),
    ("grpc-accept-encoding", "identity"),
    ("grpc-status-details-bin", ""),
    ("user-agent", ""),
    ("accept", "*/*"),
    ("accept-encoding", "gzip"),
    ("content-length", "0"),
    ("content-encoding", "gzip"),
    ("authorization", ""),
    ("cookie", ""),
    ("date", ""),
    ("location", ""),
    ("traceparent", ""),
    ("x-request-id", ""),
];

pub(super) const STATIC_LEN: usize = STATIC.len();

static FIELDS: LazyLock<Vec<Field>> = LazyLock::new(|| {
    // The table is ours: a test checks that every entry is there.
    STATIC.iter().filter_map(|(name, value)| Field::parse(name.as_bytes(), value.as_bytes()).ok()).collect()
});

/// For the encoder: hash of name and value, hash of the name, index.
static BY_HASH: LazyLock<StaticIndex> = LazyLock::new(StaticIndex::new);

struct StaticIndex {
    whole: Vec<(u32, u8)>,
    names: Vec<(u32, u8)>,
}

impl StaticIndex {
    fn new() -> Self {
        let mut index = Self { whole: Vec::new(), names: Vec::new() };
        for (at, (name, value)) in (1_u8..).zip(STATIC) {
            let name_hash = hash(SEED, name.as_bytes());
            index.whole.push((hash(name_hash, value.as_bytes()), at));
            index.names.push((name_hash, at));
        }
        index.whole.sort_unstable();
        index.names.sort_unstable();
        index.names.dedup_by_key(|(hash, _)| *hash);
        index
    }
}

pub(super) const SEED: u32 = 0x9e37_79b9;

/// Fast and not secure: what collides is compared, and the tables are small.
pub(super) fn hash(seed: u32, bytes: &[u8]) -> u32 {
    let mut state = u64::from(seed) ^ (bytes.len() as u64);
    let mut chunks = bytes.chunks_exact(8);
    let mut mix = |word: u64| state = (state.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    for chunk in &mut chunks {
        mix(chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
    }
    mix(chunks.remainder().iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
    (state >> 32) as u32
}

/// The static index of a field.
pub(super) fn static_index(whole: u32, field: &Field) -> Option<usize> {
    let index = &BY_HASH.whole;
    let at = index.binary_search_by_key(&whole, |(hash, _)| *hash).ok()?;
    let at = usize::from(index[at].1);
    let (name, value) = STATIC[at - 1];
    (name == field.name() && value.as_bytes() == field.value()).then_some(at)
}

/// The first static index with this name.
pub(super) fn static_name(hash: u32, name: &str) -> Option<usize> {
    let index = &BY_HASH.names;
    let at = index.binary_search_by_key(&hash, |(hash, _)| *hash).ok()?;
    let at = usize::from(index[at].1);
    (STATIC[at - 1].0 == name).then_some(at)
}

struct Entry {
    field: Field,
    size: usize,
    /// Zero in a decoder.
    name_hash: u32,
    whole_hash: u32,
}

/// First in, first out, bounded in bytes. Index 0 is the newest.
pub(super) struct Dynamic {
    entries: VecDeque<Entry>,
    size: usize,
    max: usize,
}

impl Dynamic {
    pub(super) fn new(max: usize) -> Self {
        Self { entries: VecDeque::new(), size: 0, max }
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Makes room and inserts; a field above the bound empties the table.
    pub(super) fn insert(&mut self, field: Field, name_hash: u32, whole_hash: u32) {
        let size = field.size();
        while self.size + size > self.max {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.size;
        }
        self.size += size;
        self.entries.push_front(Entry { field, size, name_hash, whole_hash });
    }

    pub(super) fn find(&self, whole: u32, field: &Field) -> Option<usize> {
        self.entries.iter().position(|entry| entry.whole_hash == whole && entry.field == *field)
    }

    pub(super) fn find_name(&self, name_hash: u32, name: &str) -> Option<usize> {
        self.entries.iter().position(|entry| entry.name_hash == name_hash && entry.field.name() == name)
    }
}

/// The field with a combined index: static ones from 1, then dynamic ones, newest first.
pub(super) fn lookup(dynamic: &Dynamic, index: usize) -> Option<&Field> {
    match index.checked_sub(1)? {
        at if at < STATIC_LEN => FIELDS.get(at),
        at => dynamic.entries.get(at - STATIC_LEN).map(|entry| &entry.field),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FNV-1a of the table's lines in docs/http.md.
    const DIGEST: u64 = 0xe34d_ad0a_b99e_aaf6;

    #[test]
    fn every_static_field_is_found() {
        assert_eq!(FIELDS.len(), STATIC_LEN);
        let dynamic = Dynamic::new(0);
        for (index, (name, value)) in (1..).zip(STATIC) {
            let field = lookup(&dynamic, index).unwrap();
            assert_eq!((field.name(), field.value()), (name, value.as_bytes()));
            let name_hash = hash(SEED, name.as_bytes());
            assert_eq!(static_index(hash(name_hash, value.as_bytes()), field), Some(index));
            assert_eq!(STATIC[static_name(name_hash, name).unwrap() - 1].0, name);
        }
        assert!(lookup(&dynamic, 0).is_none() && lookup(&dynamic, STATIC_LEN + 1).is_none());
    }

    /// The wire's: an entry that changed, or moved, would be read as another by peers that are there already.
    #[test]
    fn golden_static_table() {
        let page = include_str!("../../../../docs/http.md");
        let (_, page) = page.split_once("The static table. ").unwrap();
        let (_, page) = page.split_once("```text\n").unwrap();
        let (page, _) = page.split_once("```").unwrap();
        let line = |(index, (name, value)): (usize, (&str, &str))| {
            let space = if value.is_empty() { "" } else { " " };
            format!("{index:>2} {name}:{space}{value}\n")
        };
        let table: String = (1..).zip(STATIC).map(line).collect();
        assert_eq!(table, page);
        // Page and table together could still change.
        let digest = table.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        assert_eq!(digest, DIGEST, "peers of version 1 know another table: {digest:#x}");
    }

    #[test]
    fn the_oldest_go_first() {
        let field = |n: u8| Field::parse(b"x", &[b'0' + n]).unwrap();
        let mut table = Dynamic::new(2 * field(0).size());
        (0..3).for_each(|n| table.insert(field(n), 0, n.into()));
        assert_eq!(table.find(2, &field(2)), Some(0));
        assert_eq!(table.find(1, &field(1)), Some(1));
        assert_eq!(table.find(0, &field(0)), None);
        table.insert(Field::parse(b"x", &[b'a'; 80]).unwrap(), 0, 9);
        assert!(lookup(&table, STATIC_LEN + 1).is_none(), "too large a field empties the table");
    }
}
