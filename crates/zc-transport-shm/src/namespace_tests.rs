//! A peer in a user namespace of its own, as in a rootless container: it has other numbers for the same users.

use std::process::{Command, Stdio};
use std::sync::Arc;

use zc_core::memory::CopyPlace;
use zc_core::transport::*;
use zc_transport_tcp::StreamLinks;

use crate::common::process::Killed;
use crate::common::skipped::skipped;
use crate::common::{End, Setup, TokioReactor, body, data, run, try_end};
use crate::offer::ShmOffer;
use crate::transport::{ShmTransport, own_uid};

/// The peer is told by this where to connect to, and who we are.
const PEER_OF: &str = "ZC_SHM_TEST_PEER_OF";
/// Who the peer is in its namespace.
const UID_THERE: u32 = 4711;
const LEN: usize = 100_000;

fn inside() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", &format!("--map-user={UID_THERE}"), &format!("--map-group={UID_THERE}")]);
    command
}

/// What a side of this user offers.
fn offer_of(uid: u32) -> Offer {
    let mut offer = ShmTransport::default().offer(&Setup::default().context().0).unwrap();
    offer.bytes = ShmOffer { uid, ..ShmOffer::decode(&offer.bytes).unwrap() }.encode();
    offer
}

/// One message each way, with the trust that a policy gives on demand: written and read in place.
async fn exchange(mut end: End, role: Role) {
    let mut buf = end.alloc(LEN).await;
    buf.put_slice(&body(LEN, 1));
    end.send(data(1, buf.freeze())).await.unwrap();
    let got = end.recv().await.unwrap();
    assert!(got[0].payload == body(LEN, 1)[..]);
    let ledger = end.ledger.snapshot();
    assert_eq!((ledger.copied_at(CopyPlace::CopyOut), ledger.copied_at(CopyPlace::Foreign)), (0, 0));
    // The client waits until the server has all and is gone.
    match role {
        Role::Client => {
            end.send(data(2, body(1, 1))).await.unwrap();
            assert!(end.recv().await.is_err());
        }
        _ if got.len() == 1 => assert_eq!(end.recv().await.unwrap().len(), 1),
        _ => assert_eq!(got.len(), 2),
    }
}

/// The kernel says who is the same user, whatever number the peer has for itself. How far it is trusted is said by the policy.
#[test]
fn the_same_user_in_another_namespace_is_lent_to_as_it_is_trusted() {
    let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
    if let Ok(told) = std::env::var(PEER_OF) {
        let (name, uid) = told.split_once(' ').unwrap();
        assert_eq!(own_uid(), UID_THERE);
        let peer = offer_of(uid.parse().unwrap());
        return run(async {
            let link = StreamLinks.connect(&LinkAddr::UnixAbstract(name.into()), &reactor).await.unwrap();
            assert_eq!(link.peer_cred().unwrap().uid, UID_THERE);
            let end = try_end(link, Role::Client, &Setup::default(), Some(peer)).await.unwrap();
            exchange(end, Role::Client).await;
        });
    }
    if !inside().arg("true").output().is_ok_and(|done| done.status.success()) {
        return skipped("the same user in another namespace", "no user namespace can be made here");
    }
    run(async {
        let name = format!("zc-shm-namespace-{}", std::process::id());
        let mut listener = StreamLinks.bind(&LinkAddr::UnixAbstract(name.clone()), &reactor).await.unwrap();
        let mut child = inside();
        child.arg(std::env::current_exe().unwrap()).env(PEER_OF, format!("{name} {}", own_uid()));
        child.args([
            "--exact",
            "namespace_tests::the_same_user_in_another_namespace_is_lent_to_as_it_is_trusted",
        ]);
        let mut child = Killed(child.stdout(Stdio::null()).spawn().unwrap());
        let link = std::future::poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
        assert_eq!(link.peer_cred().unwrap().uid, own_uid());
        let end = try_end(link, Role::Server, &Setup::default(), Some(offer_of(UID_THERE))).await.unwrap();
        exchange(end, Role::Server).await;
        assert!(child.0.wait().unwrap().success());
    });
}
