//! The ends of a connection.

use zc::{CloseCode, ConnectionError, Delivery};

use crate::data::{number, numbered};
use crate::run::{GUARD, Verdict};
use crate::setup::Bench;

/// The peer learns why, in both directions of use.
pub async fn close_tells_code_and_reason(bench: &Bench) -> Verdict {
    for backwards in [false, true] {
        let (client, server) = bench.pair().await;
        let (closing, mut other) = if backwards { (server, client) } else { (client, server) };
        let app = CloseCode::app(7).unwrap();
        closing.close(app, "enough for today").await;
        match other.recv().await.unwrap_err() {
            ConnectionError::ClosedByPeer { code, reason } => {
                assert_eq!((code, reason.as_str()), (app, "enough for today"));
            }
            error => panic!("{error}"),
        }
        let error = other.send(&b"x"[..]).await.unwrap_err();
        assert!(matches!(error.error, ConnectionError::ClosedByPeer { code, .. } if code == app), "{error}");
    }
    Ok(())
}

/// CLOSE overtakes nothing that was accepted.
pub async fn what_was_accepted_goes_out_before_close(bench: &Bench) -> Verdict {
    let (client, mut server) = bench.pair().await;
    for n in 0..100 {
        client.send(numbered(0, n, 1000)).await.unwrap();
    }
    client.close(CloseCode::app(1).unwrap(), "done").await;
    for n in 0..100 {
        assert_eq!(number(&server.recv().await.unwrap().unwrap()), (0, n));
    }
    let error = server.recv().await.unwrap_err();
    assert!(matches!(error, ConnectionError::ClosedByPeer { .. }), "{error}");
    Ok(())
}

/// Each direction ends on its own, whichever is first.
pub async fn half_close_in_both_orders(bench: &Bench) -> Verdict {
    for backwards in [false, true] {
        let (client, server) = bench.pair().await;
        let (mut first, mut second) = if backwards { (server, client) } else { (client, server) };
        first.send(numbered(0, 0, 100)).await.unwrap();
        first.sender().finish().await.unwrap();
        assert_eq!(number(&second.recv().await.unwrap().unwrap()), (0, 0));
        assert!(second.recv().await.unwrap().is_none());
        assert!(second.recv().await.unwrap().is_none(), "and stays so");
        let error = first.send(&b"late"[..]).await.unwrap_err();
        assert!(matches!(error.error, ConnectionError::Finished { .. }), "{error}");
        assert_eq!(error.delivery(), Delivery::NotSent);
        for n in 0..20 {
            second.send(numbered(1, n, 5000)).await.unwrap();
            assert_eq!(number(&first.recv().await.unwrap().unwrap()), (1, n));
        }
        second.sender().finish().await.unwrap();
        assert!(first.recv().await.unwrap().is_none());
    }
    Ok(())
}

/// Also when the peer's application takes nothing: its session layer queues.
pub async fn drain_returns_once_the_peer_has_all(bench: &Bench) -> Verdict {
    let (client, mut server) = bench.pair().await;
    for n in 0..300 {
        client.send(numbered(0, n, 100)).await.unwrap();
    }
    client.drain(GUARD).await.unwrap();
    for n in 0..300 {
        let queued = server.try_recv().unwrap().expect("queued already");
        assert_eq!(number(&queued), (0, n));
    }
    assert!(server.recv().await.unwrap().is_none());
    Ok(())
}

/// Dropping is an orderly end: everything, then `None`.
pub async fn a_dropped_end_still_sends_what_was_accepted(bench: &Bench) -> Verdict {
    for backwards in [false, true] {
        let (client, server) = bench.pair().await;
        let (dropped, mut other) = if backwards { (server, client) } else { (client, server) };
        for n in 0..100 {
            dropped.send(numbered(0, n, 2000)).await.unwrap();
        }
        drop(dropped);
        for n in 0..100 {
            assert_eq!(number(&other.recv().await.unwrap().unwrap()), (0, n));
        }
        assert!(other.recv().await.unwrap().is_none());
    }
    Ok(())
}

/// On either side, untouched.
pub async fn a_send_after_close_returns_the_message(bench: &Bench) -> Verdict {
    let (client, mut server) = bench.pair().await;
    let sender = client.sender();
    client.close(CloseCode::app(1).unwrap(), "done").await;
    assert!(server.recv().await.is_err());
    for sender in [sender, server.sender()] {
        let error = sender.send(numbered(0, 5, 100)).await.unwrap_err();
        assert_eq!(error.delivery(), Delivery::NotSent);
        assert!(error.is_retryable());
        assert_eq!(number(&error.into_message().unwrap()), (0, 5));
    }
    Ok(())
}
