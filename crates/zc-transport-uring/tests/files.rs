//! Files: into pinned memory, out of it, and past it.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use std::io::Write;
use zc_transport_uring::Engine;

async fn write_and_read(engine: Engine) {
    let pool = pool();
    let path = tempfile::NamedTempFile::new().unwrap();
    let file = engine.file(path.reopen().unwrap().into());
    let len = 300_000;
    let mut at = 0;
    while at < len {
        let part = bytes(len - at, at).slice(..(len - at).min(100_000));
        at += file.write_at(part, at as u64).await.unwrap();
    }
    file.sync(true).await.unwrap();
    file.sync(false).await.unwrap();
    let mut buf = pool.try_alloc(len).unwrap();
    while buf.len() < len {
        let (left, offset) = (len - buf.len(), buf.len() as u64);
        buf = file.read_at(buf, left.min(70_000), offset).await.unwrap();
    }
    assert_eq!(buf[..], pattern(len, 0));
    let end = file.read_at(pool.try_alloc(10).unwrap(), 10, len as u64).await.unwrap();
    assert!(end.is_empty());
    // A file that is open for reading only.
    let read_only = engine.file(std::fs::File::open(path.path()).unwrap().into());
    let error = read_only.write_at(bytes(1, 0), 0).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    engine.shutdown().await;
}

#[test]
fn go_into_pinned_memory_and_out_of_it() {
    for flavour in FLAVOURS {
        on_one_thread(async {
            let pool = pool();
            if let Some(engine) = engine(&pool, flavour) {
                write_and_read(engine).await;
            }
        });
    }
}

#[test]
fn go_to_a_socket_without_passing_through_memory_of_ours() {
    for flavour in FLAVOURS {
        on_one_thread(async {
            let pool = pool();
            let Some(engine) = engine(&pool, flavour) else { return };
            let mut path = tempfile::NamedTempFile::new().unwrap();
            let len = 500_000;
            path.write_all(&pattern(len, 0)).unwrap();
            let file = engine.file(path.reopen().unwrap().into());
            let (read, write) = rustix::pipe::pipe().unwrap();
            let (read, write) = (engine.file(read), engine.file(write));
            let (a, b) = tcp_pair();
            let (tx, _rx) = engine.socket(a).unwrap();
            let (_tx, mut rx) = engine.socket(b).unwrap();
            let send = async {
                let mut at = 0;
                while at < len {
                    let n = file.splice_to(Some(at as u64), &write, None, len - at).await.unwrap();
                    let mut left = n;
                    while left > 0 {
                        left -= read.splice_to_socket(&tx, left).await.unwrap();
                    }
                    at += n;
                }
            };
            let receive = async {
                let (expected, mut at) = (pattern(len, 0), 0);
                while at < len {
                    let piece = rx.recv().await.unwrap();
                    assert_eq!(piece[..], expected[at..at + piece.len()]);
                    at += piece.len();
                }
            };
            futures::join!(send, receive);
            engine.shutdown().await;
        });
    }
}

/// Closed by the ring, or by dropping the future: once.
#[test]
fn are_closed_once() {
    on_one_thread(async {
        let pool = pool();
        let Some(engine) = engine(&pool, zc_transport_uring::Flavour::OneThread) else { return };
        for begin in [true, false] {
            let (a, b) = unix_pair();
            if begin {
                engine.close(a).await.unwrap();
            } else {
                drop(engine.close(a));
            }
            let mut none = [0; 1];
            assert_eq!(rustix::io::read(&b, &mut none), Ok(0), "the other end sees it");
        }
    });
}
