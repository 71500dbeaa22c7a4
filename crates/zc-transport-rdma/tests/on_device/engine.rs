//! Engines: two endpoints of one device.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use zc_core::memory::{BufPool, Message, PinnedBuf};
use zc_transport_rdma::*;

use super::rig::{LIMIT, device, port_is};

/// An engine, unless there is no device.
pub(crate) fn engine(pool: &BufPool, options: RdmaOptions) -> Option<Engine> {
    drop(device()?);
    let reactor = Arc::new(zc::TokioReactor::new());
    Some(Engine::start(reactor, pool, &DeviceChoice::default(), options).unwrap())
}

fn pair(engine: &Engine) -> (Endpoint, Endpoint) {
    let (a, b) = (engine.endpoint().unwrap(), engine.endpoint().unwrap());
    a.connect(&End::decode(&b.describe().encode()).unwrap(), RemoteAccess::default()).unwrap();
    b.connect(&End::decode(&a.describe().encode()).unwrap(), RemoteAccess::default()).unwrap();
    (a, b)
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("it hangs")
}

pub(crate) async fn receive(endpoint: &Endpoint, count: usize) -> Vec<PinnedBuf> {
    let mut found = Vec::new();
    while found.len() < count {
        within(poll_fn(|cx| endpoint.poll_received(cx, &mut found))).await.unwrap();
    }
    found.into_iter().map(|(buf, _)| buf).collect()
}

async fn finished(endpoint: &Endpoint, count: usize) -> Vec<Finished> {
    let mut found = Vec::new();
    while found.len() < count {
        within(poll_fn(|cx| endpoint.poll_finished(cx, &mut found))).await.unwrap();
    }
    found
}

/// Why it is over.
pub(crate) async fn end_of(endpoint: &Endpoint) -> EndpointEnd {
    let mut found = Vec::new();
    loop {
        if let Err(end) = within(poll_fn(|cx| endpoint.poll_finished(cx, &mut found))).await {
            return end;
        }
    }
}

pub(crate) fn send(endpoint: &Endpoint, tag: u64, message: Message) {
    endpoint.stage(Work::send(tag, message)).map_err(|(_, why)| why).unwrap();
}

pub(crate) fn message(pool: &BufPool, bytes: &[u8]) -> Message {
    let mut buf = pool.try_alloc(bytes.len()).unwrap();
    buf.put_slice(bytes);
    Message::from(buf.freeze())
}

async fn until(mut is_so: impl FnMut() -> bool) {
    within(async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

fn pool() -> BufPool {
    BufPool::builder().max_bytes(32 << 20).build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echoes_over_two_endpoints() {
    let pool = pool();
    let Some(engine) = engine(&pool, RdmaOptions::default()) else { return };
    let (a, b) = pair(&engine);
    let echo = tokio::spawn(async move {
        for _ in 0..100 {
            for buf in receive(&b, 1).await {
                send(&b, 1, Message::from(buf));
                b.flush();
            }
            drop(finished(&b, 1).await);
        }
        b
    });
    for round in 0..100usize {
        let bytes = vec![round as u8; 1 + round * 40];
        send(&a, round as u64, message(&pool, &bytes));
        a.flush();
        assert_eq!(&receive(&a, 1).await[0][..], &bytes[..]);
        assert_eq!(finished(&a, 1).await[0].work.tag, round as u64);
    }
    let b = echo.await.unwrap();
    let stats = engine.stats();
    assert_eq!((stats.endpoints, stats.unknown_completions), (2, 0));
    assert!(
        stats.regions <= pool.regions().len(),
        "each registered once, if it was not all sent inline: {stats:?}"
    );
    drop((a, b));
    until(|| engine.stats().closing == 0).await;
    assert_eq!(engine.stats().under_way, engine.stats().posted_receives as usize);
}

/// A message that the peer's receive buffers could not take is refused before anything breaks.
#[tokio::test]
async fn too_long_and_too_many_are_refused() {
    let pool = pool();
    let Some(engine) = engine(&pool, RdmaOptions { send_depth: 16, ..RdmaOptions::default() }) else {
        return;
    };
    let (a, b) = pair(&engine);
    let long = a.stage(Work::send(1, message(&pool, &[1; RECEIVE_BYTES + 1]))).map_err(|(_, why)| why);
    let (len, max) = (RECEIVE_BYTES + 1, RECEIVE_BYTES);
    assert_eq!(long, Err(Unsent::Unfit(Unfit::TooLong { len, max })));
    for tag in 0..32 {
        send(&a, tag, message(&pool, &[tag as u8; 100]));
    }
    let full = a.stage(Work::send(99, message(&pool, b"x"))).map_err(|(work, why)| (work.tag, why));
    assert_eq!(full, Err((99, Unsent::Full)));
    // All of it goes, although the device takes half at a time.
    a.flush();
    let got = receive(&b, 32).await;
    assert_eq!(got.iter().map(|buf| buf[0]).collect::<Vec<_>>(), (0..32).collect::<Vec<_>>());
    let done = finished(&a, 32).await;
    assert_eq!(done.iter().map(|one| one.work.tag).collect::<Vec<_>>(), (0..32).collect::<Vec<_>>());
}

/// The receive queue is filled again from the pool; a pool that is empty only delays that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receive_buffers_are_kept_above_the_watermark() {
    let sends = pool();
    let receives = BufPool::builder().max_bytes(512 << 10).build();
    let options = RdmaOptions { recv_buffers: 64, ..RdmaOptions::default() };
    let Some(engine) = engine(&receives, options) else { return };
    let (a, b) = pair(&engine);
    // Of 64, each of the two has its share, and some are posted besides.
    let wanted = engine.stats().posted_receives;
    assert_eq!(wanted, 2 * MIN_SHARE + 2 * POST_BATCH as u32);
    let mut held = Vec::new();
    for round in 0..200u8 {
        send(&a, 0, message(&sends, &[round; 300]));
        a.flush();
        held.extend(receive(&b, 1).await);
        drop(finished(&a, 1).await);
        let stats = engine.stats();
        assert!(stats.posted_receives >= 2 * MIN_SHARE || stats.starved > 0, "{stats:?}");
        if stats.starved > 0 {
            break;
        }
    }
    assert!(engine.stats().starved > 0, "{:?}", engine.stats());
    drop(held);
    until(|| engine.stats().posted_receives >= 2 * MIN_SHARE).await;
    send(&a, 0, message(&sends, b"again"));
    a.flush();
    assert_eq!(&receive(&b, 1).await[0][..], b"again");
}

/// The peer goes without a word: what it had been sent comes back, and nothing of either is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_whose_peer_is_gone_ends() {
    let pool = pool();
    let Some(engine) = engine(&pool, RdmaOptions::default()) else { return };
    let (a, b) = pair(&engine);
    drop(b);
    until(|| engine.stats().closing == 0).await;
    for tag in 0..5 {
        send(&a, tag, message(&pool, &[1; 3000]));
    }
    a.flush();
    let done = finished(&a, 5).await;
    assert!(done.iter().all(|one| one.result.is_err()), "{done:?}");
    assert!(matches!(end_of(&a).await, EndpointEnd::Work(_)));
    let refused = a.stage(Work::send(9, message(&pool, b"late"))).map_err(|(work, why)| (work.tag, why));
    assert!(matches!(refused, Err((9, Unsent::NotTaken(_)))));
    drop((a, done));
    until(|| engine.stats().closing == 0).await;
    assert_eq!(engine.stats().under_way, engine.stats().posted_receives as usize);
    let pool_is_whole = || pool.stats().in_use_bytes == 0;
    drop(engine);
    until(pool_is_whole).await;
}

#[tokio::test]
async fn an_idle_engine_sleeps() {
    let pool = pool();
    let Some(engine) = engine(&pool, RdmaOptions::default()) else { return };
    let (a, b) = pair(&engine);
    until(|| engine.stats().sleeps > 0).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = engine.stats().sleeps;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(engine.stats().sleeps, before, "it was woken for nothing");
    send(&a, 1, message(&pool, b"wake up"));
    a.flush();
    assert_eq!(&receive(&b, 1).await[0][..], b"wake up");
}

#[tokio::test]
async fn the_device_and_the_address_can_be_named() {
    let Some(context) = device() else { return };
    let (pool, reactor) = (pool(), Arc::new(zc::TokioReactor::new()));
    let start = |device: &str, gid: Option<&str>| {
        let gid = gid.map(|gid| gid.parse().unwrap());
        let choice = DeviceChoice { device: Some(device.to_owned()), gid, link: None };
        let engine = Engine::start(reactor.clone(), &pool, &choice, RdmaOptions::default());
        engine.map(|engine| engine.local().gid.to_string()).map_err(|why| why.code())
    };
    assert_eq!(start("nobody0", None), Err("no_device"));
    assert_eq!(start(context.name(), Some("250")), Err("no_usable_gid"));
    assert_eq!(start(context.name(), None).as_deref(), Ok("::ffff:10.0.0.1"));
    assert!(start(context.name(), Some("0")).unwrap().starts_with("fe80:"), "if it is named");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_connections_leave_nothing_behind() {
    let pool = pool();
    let options = RdmaOptions { send_depth: 16, ..RdmaOptions::default() };
    let Some(engine) = engine(&pool, options) else { return };
    for _ in 0..2 {
        let pairs: Vec<_> = (0..50).map(|_| pair(&engine)).collect();
        for (n, (a, b)) in pairs.iter().enumerate() {
            send(a, 0, message(&pool, &[n as u8; 500]));
            a.flush();
            assert_eq!(receive(b, 1).await[0][0], n as u8);
        }
        assert_eq!(engine.stats().endpoints, 100);
    }
    until(|| engine.stats().closing == 0).await;
    assert_eq!(engine.stats().under_way, engine.stats().posted_receives as usize);
    let (domain, context) = (Arc::downgrade(engine.domain()), Arc::downgrade(engine.context()));
    drop(engine);
    until(|| domain.strong_count() + context.strong_count() == 0).await;
}

/// Run alone: it takes the port down for everybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes the port down; the test machine's stage runs it alone"]
async fn a_port_that_goes_down_ends_its_endpoints() {
    let pool = pool();
    let Some(engine) = engine(&pool, RdmaOptions::default()) else { return };
    let (a, b) = pair(&engine);
    port_is("down");
    assert_eq!(end_of(&a).await, EndpointEnd::PortDown);
    assert_eq!(end_of(&b).await, EndpointEnd::PortDown);
    let refused = Engine::start(
        Arc::new(zc::TokioReactor::new()),
        &pool,
        &DeviceChoice::default(),
        RdmaOptions::default(),
    );
    assert_eq!(refused.map(drop).map_err(|why| why.code()), Err("port_down"));
    port_is("up");
    let port = engine.local().port;
    until(|| engine.context().port(port).unwrap().is_active).await;
    let (c, d) = pair(&engine);
    send(&c, 1, message(&pool, b"up again"));
    c.flush();
    assert_eq!(&receive(&d, 1).await[0][..], b"up again");
}
