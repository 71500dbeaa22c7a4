//! A lane that does one-sided operations itself, directly in the other end's memory, as shared memory
//! does: the facade uses it, and retires memory that it can't take back.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{LazyLock, Mutex};

use zc::memory::{CopyLedger, ExportMemory};
use zc::testing::stream_transport;
use zc::transport::{
    Batch, BoxFuture, Caps, ControlLink, Lane, LaneError, LaneRemote, Offer, OfferContext, RemoteCompletion,
    RemoteGrant, RemoteOp, RemoteToken, Revoked, Role, Transport, Unavailable, WireupError,
};
use zc::wire::RemoteStatus;

use super::*;

/// What all ends have granted.
static GRANTS: LazyLock<Mutex<HashMap<Vec<u8>, RemoteGrant>>> = LazyLock::new(Mutex::default);
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The in-memory lane with operations of its own. `keeps`: revoking does not help.
struct Direct {
    keeps: bool,
}

impl Transport for Direct {
    fn name(&self) -> &'static str {
        "mem"
    }
    fn probe(&self) -> Result<Caps, Unavailable> {
        mem_transport().probe()
    }
    fn in_band(&self) -> bool {
        true
    }
    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable> {
        stream_transport().offer(cx)
    }
    fn join<'a>(
        &'a self,
        role: Role,
        mine: Offer,
        peer: Offer,
        link: &'a mut Option<Box<dyn ControlLink>>,
        cx: OfferContext,
    ) -> BoxFuture<'a, Result<Lane, WireupError>> {
        Box::pin(async move {
            let stream = stream_transport();
            let mut lane = stream.join(role, mine, peer, link, cx).await?;
            lane.remote =
                Some(Box::new(Ops { keeps: self.keeps, waker: None, begun: Vec::new(), tokens: 0 }));
            Ok(lane)
        })
    }
}

struct Ops {
    keeps: bool,
    waker: Option<Waker>,
    begun: Vec<RemoteCompletion>,
    tokens: u64,
}

/// More at a time are not taken.
const ROOM: usize = 2;

fn memory_at(
    grant: &RemoteGrant,
    offset: u64,
    len: u64,
    access: Access,
) -> Result<(&ExportMemory, u64), RemoteStatus> {
    let Range { start, end } = grant.range;
    if !grant.access.contains(access) {
        Err(RemoteStatus::Denied)
    } else if offset.checked_add(len).is_none_or(|last| last > end - start) {
        Err(RemoteStatus::OutOfBounds)
    } else {
        Ok((&grant.memory, start + offset))
    }
}

impl Ops {
    fn run(
        key: &RemoteKey,
        offset: u64,
        op: RemoteOp,
        done: &mut RemoteCompletion,
    ) -> Result<(), RemoteStatus> {
        let grants = GRANTS.lock().unwrap();
        let grant = grants.get(key.as_bytes()).ok_or(RemoteStatus::Revoked)?;
        let ledger = CopyLedger::new();
        let outside = |_| RemoteStatus::Misaligned;
        match op {
            RemoteOp::Read { mut into, len } => {
                let (memory, at) = memory_at(grant, offset, len as u64, Access::READ)?;
                memory.read(at, &mut into.unfilled_mut()[..len], &ledger).map_err(outside)?;
                into.advance(len);
                done.read = Some(into);
            }
            RemoteOp::Write { message, notify } => {
                let (memory, at) = memory_at(grant, offset, message.len() as u64, Access::WRITE)?;
                memory.write(at, &flat(&message), &ledger).map_err(outside)?;
                if notify.is_some_and(|value| {
                    let mut cx = Context::from_waker(Waker::noop());
                    grant.notify.poll_notify(&mut cx, value).is_pending()
                }) {
                    return Err(RemoteStatus::Busy);
                }
            }
            RemoteOp::CompareSwap { expected, new } => {
                let (memory, at) = memory_at(grant, offset, 8, Access::ATOMIC)?;
                done.value = memory.compare_swap(at, expected, new).map_err(outside)?;
            }
            RemoteOp::FetchAdd { add } => {
                let (memory, at) = memory_at(grant, offset, 8, Access::ATOMIC)?;
                done.value = memory.fetch_add(at, add).map_err(outside)?;
            }
        }
        Ok(())
    }
}

impl LaneRemote for Ops {
    fn grant(&mut self, grant: RemoteGrant) -> Result<RemoteKey, LaneError> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let key = RemoteKey::from_bytes(&[[7; 8], number.to_le_bytes()].concat()).unwrap();
        GRANTS.lock().unwrap().insert(key.to_bytes(), grant);
        Ok(key)
    }
    fn revoke(&mut self, key: &RemoteKey) -> Revoked {
        if self.keeps {
            return Revoked::Retired;
        }
        GRANTS.lock().unwrap().remove(key.as_bytes());
        Revoked::Done
    }
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        if self.begun.len() < ROOM {
            return Poll::Ready(Ok(()));
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
    fn start(&mut self, key: &RemoteKey, offset: u64, op: RemoteOp) -> Result<RemoteToken, LaneError> {
        self.tokens += 1;
        let token = RemoteToken(self.tokens);
        let status = RemoteStatus::Done;
        let mut done = RemoteCompletion { token, status, in_part: false, value: 0, read: None };
        done.status = Self::run(key, offset, op, &mut done).err().unwrap_or(RemoteStatus::Done);
        self.begun.push(done);
        Ok(token)
    }
    fn poll_completions(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Batch<RemoteCompletion>,
    ) -> Poll<Result<(), LaneError>> {
        if self.begun.is_empty() {
            self.waker = None;
            return Poll::Pending;
        }
        // Only every other look finds anything, so that operations have to wait.
        if self.waker.take().is_none() {
            self.waker = Some(cx.waker().clone());
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.begun.drain(..).for_each(|done| out.push(done));
        Poll::Ready(Ok(()))
    }
}

async fn direct_pair(keeps: bool) -> (Fabric, Connection, Connection) {
    let fabric = fabric_over(Arc::new(Direct { keeps })).build().unwrap();
    let (client, server) = pair(&fabric).await.unwrap();
    assert_eq!(client.caps().one_sided, OneSided::Native);
    (fabric, client, server)
}

#[tokio::test]
async fn a_lane_that_can_does_it_itself() {
    guarded(async {
        let (fabric, client, server) = direct_pair(false).await;
        let export = fabric.export(200_000).unwrap();
        let key = export.grant(&server, Access::ALL, 8..).unwrap();
        let remote = client.remote();
        let bytes = pattern(150_000, 1);
        remote.write(&key, 2, bytes.clone()).await.unwrap();
        assert!(content(&export)[10..150_010] == bytes[..]);
        assert!(flat(&remote.read(&key, 2, 150_000).await.unwrap()) == bytes);
        assert_eq!(remote.read(&key, 0, 0).await.unwrap().len(), 0);
        let adds = (0..20).map(|_| remote.fetch_add(&key, 150_008, 1));
        let olds = futures::future::try_join_all(adds).await.unwrap();
        assert_eq!(olds, (0..20).collect::<Vec<u64>>(), "in order, though the lane takes two at a time");
        assert_eq!(remote.compare_swap(&key, 150_008, 20, 3).await.unwrap(), 20);
        assert_eq!(export.load_u64(150_016).unwrap(), 3);
        remote.write_with_notify(&key, 0, vec![1], 6).await.unwrap();
        assert_eq!(export.notified().await.value, 6);
        refused(remote.read(&key, 199_992, 1).await, |fault| matches!(fault, RemoteFault::OutOfBounds));
        for polls in 0..4 {
            poll_then_drop(remote.fetch_add(&key, 0, 0), polls).await;
        }
        remote.fetch_add(&key, 0, 0).await.unwrap();
        let ledger = server.ledger();
        assert_eq!(ledger.copied_at(zc::memory::CopyPlace::Remote), 0, "no session layer took part");
        export.revoke(&key).unwrap();
        refused(remote.read(&key, 0, 1).await, |fault| matches!(fault, RemoteFault::Revoked));
    })
    .await;
}

#[tokio::test]
async fn memory_that_a_peer_keeps_is_retired() {
    guarded(async {
        let (fabric, client, server) = direct_pair(true).await;
        let export = fabric.export(10_000).unwrap();
        let key = export.grant(&server, Access::ALL, ..).unwrap();
        let remote = client.remote();
        remote.write(&key, 0, pattern(10_000, 4)).await.unwrap();
        export.revoke(&key).unwrap();
        assert!(content(&export) == pattern(10_000, 4), "the owner has a copy");
        // The peer does as it likes with what it kept; the export does not see it.
        remote.write(&key, 0, vec![9; 100]).await.unwrap();
        assert!(content(&export) == pattern(10_000, 4));
        export.write(0, &[5; 8]).unwrap();
        let fresh = export.grant(&server, Access::READ, ..).unwrap();
        assert_eq!(flat(&remote.read(&fresh, 0, 8).await.unwrap()), [5; 8]);

        // When the connection ends, so does what the peer has kept.
        let kept = GRANTS.lock().unwrap()[&fresh.to_bytes()[..]].memory.clone();
        drop(remote);
        client.close(zc::CloseCode::NORMAL, "").await;
        while !matches!(export.grant(&server, Access::READ, ..), Err(GrantError::Ended)) {
            tokio::task::yield_now().await;
        }
        let shared = |export: &Export| {
            kept.store_u64(0, export.load_u64(0).unwrap() + 1).unwrap();
            kept.load_u64(0).unwrap() == export.load_u64(0).unwrap()
        };
        assert!(!shared(&export));
    })
    .await;
}

/// Its owner does not see what the peer does, so it can't know that nothing is done.
#[tokio::test(start_paused = true)]
async fn a_connection_with_granted_memory_is_not_idle() {
    let mut options = zc::ConnectionOptions::default();
    options.idle = Some(Duration::from_secs(8));
    let fabric = fabric_over(Arc::new(Direct { keeps: false })).options(options).build().unwrap();
    let (client, server) = pair(&fabric).await.unwrap();
    let export = fabric.export(64).unwrap();
    let key = export.grant(&server, Access::ALL, ..).unwrap();
    let remote = client.remote();
    for n in 0..20 {
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(remote.fetch_add(&key, 0, 1).await.unwrap(), n);
    }
    export.revoke(&key).unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    // Which side sees it first is not said: the other one is told.
    let sent = server.send(vec![1]).await.map_err(|error| error.to_string());
    let is_idle = |error: &String| error.contains("idle") || error.contains("no message went");
    assert!(sent.as_ref().is_err_and(is_idle), "now it was: {sent:?}");
}
