//! What the two sides agreed on is kept.

use zc::transport::LaneLimits;
use zc::{ConnectionError, Delivery};

use crate::data::{assert_is, bytes};
use crate::run::Verdict;
use crate::setup::Bench;

/// A typed error, the message back, and the connection goes on; each side says what it takes.
pub async fn a_message_too_large_comes_back(bench: &Bench) -> Verdict {
    const MAX: [u32; 2] = [1000, 70_000];
    let limits = |max| {
        let mut limits = LaneLimits::default();
        limits.recv_max_message = max;
        limits
    };
    let client = bench.client().limits(limits(MAX[0]));
    let server = bench.server().limits(limits(MAX[1]));
    let (mut client, mut server) = bench.pair_of(client, server).await;
    for (from, to, max) in [(0, 1, MAX[1] as usize), (1, 0, MAX[0] as usize)] {
        let ends = [&mut client, &mut server];
        let error = ends[from].send(bytes(3, max + 1)).await.unwrap_err();
        let expected = ConnectionError::TooLarge { len: max + 1, max };
        assert_eq!(error.error.to_string(), expected.to_string());
        assert_eq!(error.delivery(), Delivery::NotSent);
        assert!(!error.is_retryable());
        assert_is(&error.into_message().unwrap(), 3, max + 1);
        ends[from].send(bytes(4, max)).await.unwrap();
        assert_is(&ends[to].recv().await.unwrap().unwrap(), 4, max);
    }
    Ok(())
}
