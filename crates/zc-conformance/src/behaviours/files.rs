//! Files arrive over any lane, whether it takes their pages by reference or has them read.

use std::fs::File;
use std::io::Write;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use rustix::fs::MemfdFlags;
use zc::{Connection, FileFault, FileWay, SendFileOptions};

use crate::data::{ask, assert_is, bytes, echo};
use crate::run::Verdict;
use crate::setup::{Bench, window};

const LEN: usize = 3_000_001;
/// Start and length: nothing, too little to be worth a pipe, whole pages and parts of them, several chunks.
const RANGES: [(usize, usize); 6] =
    [(7, 0), (5, 4095), (4096, 65_536), (4095, 70_000), (12_345, 1_500_001), (0, LEN)];
const WINDOW_BYTES: u32 = 64 << 10;
const CHUNK_BYTES: usize = 64 << 10;

/// A regular file of the pattern, without a name.
fn file(len: usize) -> Arc<File> {
    let mut file = File::from(rustix::fs::memfd_create("zc-conformance", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(&bytes(0, len)).unwrap();
    Arc::new(file)
}

/// Receives the file's bytes from `at` on, and checks each.
async fn receive(from: &mut Connection, mut at: usize, end: usize) {
    while at < end {
        let message = from.recv().await.unwrap().expect("the rest of a file");
        assert_is(&message, at, message.len());
        at += message.len();
    }
    assert_eq!(at, end);
}

/// Any range, by reference and read; the ledger has all of it, and no copy of what went by reference.
pub async fn a_file_arrives_as_it_is(bench: &Bench) -> Verdict {
    let (client, mut server) = bench.pair().await;
    let (file, sender) = (file(LEN), client.sender());
    for way in [FileWay::Auto, FileWay::Read] {
        for (start, len) in RANGES {
            let mut options = SendFileOptions::default();
            options.way = way;
            let before = client.ledger();
            let sending = sender.send_file(file.clone(), start as u64..(start + len) as u64, options);
            let (sent, ()) = tokio::join!(sending, receive(&mut server, start, start + len));
            let (sent, since) = (sent.unwrap(), client.ledger().since(&before));
            assert_eq!((sent.bytes, since.moved_bytes), (len as u64, len as u64));
            assert!(way == FileWay::Auto || sent.spliced_bytes == 0, "{sent:?}");
            if sent.spliced_bytes == sent.bytes {
                assert_eq!(since.copied_bytes(), 0, "{sent:?}");
            }
        }
    }
    Ok(())
}

/// Too short from the start, or cut on the way: the error says what is missing and how much was sent, that is
/// what arrives, and the connection goes on.
pub async fn a_file_that_is_cut_is_an_error_of_the_file_alone(bench: &Bench) -> Verdict {
    let (mut client, mut server) = bench.pair_within(window(WINDOW_BYTES)).await;
    let sender = client.sender();
    let beyond = sender.send_file(file(10), 3..17, SendFileOptions::default()).await.unwrap_err();
    assert!(matches!(beyond.fault, FileFault::Truncated { missing: 7 }), "{beyond}");
    assert_eq!(beyond.sent(), 0);
    for way in [FileWay::Auto, FileWay::Read] {
        let mut options = SendFileOptions::default();
        (options.way, options.chunk_bytes) = (way, CHUNK_BYTES);
        let file = file(LEN);
        let mut sending = sender.send_file(file.clone(), 0..LEN as u64, options);
        // Nothing is received, so it comes no farther than the window lets it.
        std::future::poll_fn(|cx| {
            assert!(pin!(&mut sending).as_mut().poll(cx).is_pending());
            if sending.sent() > 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        file.set_len(0).unwrap();
        let failing = async {
            let error = sending.await.expect_err("it was cut");
            sender.send(&b"end"[..]).await.unwrap();
            error
        };
        let receiving = async {
            let mut at = 0;
            loop {
                let message = server.recv().await.unwrap().unwrap();
                if message == b"end"[..] {
                    return at;
                }
                assert_is(&message, at, message.len());
                at += message.len();
            }
        };
        let (error, got) = tokio::join!(failing, receiving);
        let FileFault::Truncated { missing } = error.fault else { panic!("{error}") };
        assert_eq!(error.sent(), got as u64, "what was sent is what arrives");
        assert!(missing > 0 && error.sent() + missing <= LEN as u64, "{error}");
    }
    let echoing = tokio::spawn(echo(server));
    ask(&mut client, 1, 100_000).await;
    drop((client, sender));
    echoing.await.unwrap();
    Ok(())
}
