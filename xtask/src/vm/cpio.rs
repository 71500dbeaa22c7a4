//! Archives in the one format that the kernel unpacks as its first file system: cpio, "newc".
//!
//! ```text
//! 070701 inode mode uid gid links mtime size dev dev rdev rdev name-size check    each 8 hex digits
//! name NUL  padding to 4   contents  padding to 4   …   TRAILER!!!
//! ```

use std::io::{self, BufRead, Read, Write};
use std::path::{Component, Path, PathBuf};

const MAGIC: &[u8] = b"070701";
const FIELDS: usize = 13;
const HEADER_LEN: usize = MAGIC.len() + FIELDS * 8;
const TRAILER: &str = "TRAILER!!!";
/// Linux's PATH_MAX.
const NAME_MAX_BYTES: usize = 4096;

const TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Writes an archive. Everything in it belongs to root and has no date, so that equal contents make equal archives.
pub(super) struct Writer<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    /// Directories come before what is in them.
    pub(super) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY | 0o755, &[])
    }

    pub(super) fn file(&mut self, path: &str, executable: bool, contents: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | if executable { 0o755 } else { 0o644 }, contents)
    }

    pub(super) fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, SYMLINK | 0o777, target.as_bytes())
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry(TRAILER, 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        let size = u32::try_from(contents.len()).map_err(|_| invalid(path, "4 GiB or more"))?;
        let name = path.trim_start_matches('/');
        if name.is_empty() || name.len() >= NAME_MAX_BYTES || name.contains('\0') {
            return Err(invalid(path, "no name for a file"));
        }
        self.inode += 1;
        let links = if mode & TYPE == DIRECTORY { 2 } else { 1 };
        let name_size = name.len() as u32 + 1;
        self.out.write_all(MAGIC)?;
        for field in [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0] {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(HEADER_LEN + name.len() + 1)?;
        self.out.write_all(contents)?;
        self.pad(contents.len())
    }

    fn pad(&mut self, len: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..padding(len)])
    }
}

/// What stands in an archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Directory {
        path: PathBuf,
    },
    File {
        path: PathBuf,
        executable: bool,
        len: u32,
    },
    /// A link, a device, a socket.
    Other {
        path: PathBuf,
    },
}

/// Reads an archive.
pub(super) struct Reader<R> {
    input: R,
    /// Contents and padding that nobody has read.
    left: u64,
    padding: usize,
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0 }
    }

    /// The next entry; `None` at the trailer. Its contents are read with [`Self::contents`], or passed over.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        let rest = self.left + self.padding as u64;
        if io::copy(&mut (&mut self.input).take(rest), &mut io::sink())? != rest {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut header = [0; HEADER_LEN];
        self.input.read_exact(&mut header)?;
        let fields = fields(&header)?;
        let [_, mode, .., name_size, _] = fields;
        let size = fields[6];
        let name_size = name_size as usize;
        if name_size == 0 || name_size > NAME_MAX_BYTES {
            return Err(invalid("?", "a name of impossible length"));
        }
        let mut name = vec![0; name_size + padding(HEADER_LEN + name_size)];
        self.input.read_exact(&mut name)?;
        name.truncate(name_size - 1);
        let name = String::from_utf8(name).map_err(|_| invalid("?", "a name that is no text"))?;
        self.left = size.into();
        self.padding = padding(size as usize);
        if name == TRAILER {
            return Ok(None);
        }
        let path = inner_path(&name)?;
        Ok(Some(match mode & TYPE {
            DIRECTORY => Entry::Directory { path },
            REGULAR => Entry::File { path, executable: mode & 0o111 != 0, len: size },
            _ => Entry::Other { path },
        }))
    }

    /// Hands on the contents of the entry that was read last.
    pub(super) fn contents(&mut self, to: &mut impl Write) -> io::Result<()> {
        let left = std::mem::take(&mut self.left);
        match io::copy(&mut (&mut self.input).take(left), to)? {
            copied if copied == left => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn fields(header: &[u8; HEADER_LEN]) -> io::Result<[u32; FIELDS]> {
    let digits = header.strip_prefix(MAGIC).ok_or_else(|| invalid("?", "no archive"))?;
    let mut fields = [0; FIELDS];
    for (field, digits) in fields.iter_mut().zip(digits.chunks_exact(8)) {
        let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'));
        let value = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        *field = value.ok_or_else(|| invalid("?", "a field that is no number"))?;
    }
    Ok(fields)
}

/// The path below the directory into which the archive goes, and never outside of it.
fn inner_path(name: &str) -> io::Result<PathBuf> {
    let mut path = PathBuf::new();
    for component in Path::new(name).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => path.push(part),
            _ => return Err(invalid(name, "leads out of the archive")),
        }
    }
    Ok(path)
}

fn padding(len: usize) -> usize {
    len.wrapping_neg() % 4
}

fn invalid(path: &str, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{path}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        writer.directory("/zc").unwrap();
        writer.file("/zc/command", true, b"exec true").unwrap();
        writer.file("empty", false, b"").unwrap();
        writer.symlink("sh", "dash").unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let mut writer = Writer::new(Vec::new());
        writer.file("/ab", true, b"12345").unwrap();
        let bytes = writer.finish().unwrap();
        let header = "070701\
             00000001000081ed0000000000000000000000010000000000000005\
             000000000000000000000000000000000000000300000000";
        let (head, rest) = bytes.split_at(HEADER_LEN);
        assert_eq!(std::str::from_utf8(head).unwrap(), header);
        // 110 bytes of header and 3 of name are padded to 116, 5 of contents to 8.
        assert!(rest.starts_with(b"ab\0\0\0\x0012345\0\0\x00070701"), "{rest:?}");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn what_was_written_is_read_again() {
        let bytes = archive();
        let mut reader = Reader::new(&bytes[..]);
        assert_eq!(reader.next().unwrap(), Some(Entry::Directory { path: "zc".into() }));
        let file = Entry::File { path: "zc/command".into(), executable: true, len: 9 };
        assert_eq!(reader.next().unwrap(), Some(file));
        let mut contents = Vec::new();
        reader.contents(&mut contents).unwrap();
        assert_eq!(contents, b"exec true");
        let file = Entry::File { path: "empty".into(), executable: false, len: 0 };
        assert_eq!(reader.next().unwrap(), Some(file));
        // Contents that nobody asks for are passed over.
        assert_eq!(reader.next().unwrap(), Some(Entry::Other { path: "sh".into() }));
        assert_eq!(reader.next().unwrap(), None);
    }

    #[test]
    fn an_archive_that_is_cut_anywhere_is_an_error_and_no_end() {
        let bytes = archive();
        let trailer = HEADER_LEN + TRAILER.len() + 1;
        for len in 0..bytes.len() - trailer {
            let mut reader = Reader::new(&bytes[..len]);
            let end = loop {
                match reader.next() {
                    Ok(Some(_)) => {}
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            assert!(end.is_err(), "cut after {len} bytes");
        }
    }

    #[test]
    fn nothing_leads_out_of_the_archive() {
        assert_eq!(inner_path("./a/b").unwrap(), Path::new("a/b"));
        assert_eq!(inner_path(".").unwrap(), Path::new(""));
        for name in ["/etc/passwd", "../x", "a/../../x"] {
            assert!(inner_path(name).is_err(), "{name}");
        }
    }

    #[test]
    fn names_that_are_none_are_refused() {
        let mut writer = Writer::new(Vec::new());
        for name in ["", "/", "a\0b", &"x".repeat(NAME_MAX_BYTES)] {
            assert!(writer.file(name, false, b"").is_err());
        }
    }
}
