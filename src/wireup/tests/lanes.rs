//! Lanes that come up, fail and give way.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_best_lane_is_taken() {
    let all = || with([stream(), fake("rdma", Join::Works), fake("shm", Join::Works)]);
    let start = tokio::time::Instant::now();
    let (client, server) = connect(all(), all()).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    let report = client.as_ref().unwrap().report().clone();
    assert_eq!(outcome(&report, "rdma"), Outcome::NotNeeded);
    assert_eq!(client.as_ref().unwrap().peer().agent, concat!("zc/", env!("CARGO_PKG_VERSION")));
    both_chose((client, server), "shm").await;
}

#[tokio::test(start_paused = true)]
async fn lanes_that_fail_in_every_way_give_way_in_order() {
    let side = |join| {
        with([
            stream(),
            fake("shm", join),
            fake("rdma", Join::Hangs),
            fake("xdp", Join::Mute),
            fake("uring", Join::Dead),
        ])
    };
    for (near, far) in [(Join::Works, Join::Fails), (Join::Fails, Join::Works), (Join::Fails, Join::Fails)] {
        let reports = both_chose(connect(side(near), side(far)).await, "mem").await;
        assert!(reports.iter().any(|text| text.contains("no_device")), "{reports:?}");
        for text in reports {
            let line = |name| text.lines().find(|line: &&str| line.starts_with(name)).unwrap().to_owned();
            assert!(line("shm").contains("no_device"), "the reason is on both sides: {text}");
            assert!(line("rdma").contains("timeout (stage join)"), "{text}");
            assert!(line("xdp").contains("timeout (stage join)"), "{text}");
            assert!(line("uring").contains("unavailable: "), "{text}");
            assert!(line("mem").ends_with("chosen"), "{text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_gives_up_is_heard_while_we_ping() {
    let start = tokio::time::Instant::now();
    let side = |join| with([stream(), fake("shm", join)]);
    both_chose(connect(side(Join::Fails), side(Join::Works)).await, "mem").await;
    assert_eq!(start.elapsed(), Duration::ZERO, "no deadline had to pass");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_gives_up_is_heard_while_a_transport_does_not_read() {
    let side = |join| with([stream(), fake("shm", join)]);
    let start = tokio::time::Instant::now();
    // What is said before it gives up is read ahead of a transport that hangs.
    for (near, far) in [
        (Join::Fails, Join::Hangs),
        (Join::Hangs, Join::Fails),
        (Join::Babbles, Join::Hangs),
        (Join::Hangs, Join::Babbles),
    ] {
        let reports = both_chose(connect(side(near), side(far)).await, "mem").await;
        for text in reports {
            assert!(text.contains("no_device") || text.contains("join messages is too long"), "{text}");
        }
    }
    assert_eq!(start.elapsed(), Duration::ZERO, "no deadline had to pass");
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_breaks_before_commit_gives_way_at_the_client() {
    let side = |join| with([stream(), fake("shm", join), fake("rdma", Join::Works)]);
    for name in ["rdma", "mem"] {
        let side = |join| if name == "rdma" { side(join) } else { with([stream(), fake("shm", join)]) };
        let [client, server] = both_chose(connect(side(Join::Breaks), side(Join::Works)).await, name).await;
        assert!(client.contains("os (break: errno 5)"), "{client}");
        assert!(server.contains("peer_failed (break: "), "{server}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_breaks_at_the_server_ends_in_a_typed_error() {
    let side = |join| with([stream(), fake("shm", join)]);
    let (client, server) = connect(side(Join::Works), side(Join::Breaks)).await;
    let error = server.err().unwrap();
    let lane =
        matches!(&error, Error::Connection(crate::ConnectionError::Lane(LaneError::Os { errno: 5, .. })));
    assert!(lane, "{error}");
    assert_eq!(error.stage(), Some(Stage::Commit));
    // It had committed, and hears of it as it would of any peer that goes away.
    let mut client = client.unwrap();
    assert!(matches!(client.recv().await, Err(crate::ConnectionError::Lane(_))));
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_babbles_fails_alone() {
    let side = |join| with([stream(), fake("shm", join)]);
    let reports = both_chose(connect(side(Join::Babbles), side(Join::Hangs)).await, "mem").await;
    assert!(reports[0].contains("unavailable"), "{reports:?}");
}

#[tokio::test(start_paused = true)]
async fn one_side_alone_has_it() {
    let ends = connect(with([stream(), fake("shm", Join::Works)]), with([stream()])).await;
    let report = ends.0.as_ref().unwrap().report().clone();
    assert_eq!(outcome(&report, "shm"), Outcome::Unavailable(Unavailable::PeerLacks));
    both_chose(ends, "mem").await;
}

#[tokio::test(start_paused = true)]
async fn the_control_link_is_the_last_resort() {
    let only = |join| with([fake("shm", join)]);
    let reports = both_chose(connect(only(Join::Fails), only(Join::Hangs)).await, "mem").await;
    assert!(reports[0].contains("no_device"), "{reports:?}");
    assert!(reports[1].contains("unavailable"), "{reports:?}");
    let empty = connect(only(Join::Works), with([fake("rdma", Join::Works)])).await;
    both_chose(empty, "mem").await;
    both_chose(connect(with([]), with([])).await, "mem").await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_reads_in_a_task_of_its_own_hears_of_all_that_was_read_ahead() {
    let server = with([stream(), fake("shm", Join::Elsewhere)]).build().unwrap();
    let (mut near, far) = duplex("elsewhere");
    let start = tokio::time::Instant::now();
    let talking = async {
        io::write_all(&mut near, &encoded(&[offers(&["shm"])])).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        // Both are there in one turn.
        let mut joins = Vec::new();
        for _ in 0..2 {
            ControlMessage::Join { index: 0, bytes: vec![0] }.encode(&mut joins).unwrap();
        }
        io::write_all(&mut near, &joins).await.unwrap();
        let mut words = Vec::new();
        while !String::from_utf8_lossy(&words).contains("no_device") {
            let mut some = [0; 256];
            let count = poll_fn(|cx| near.poll_read(cx, &mut some)).await.unwrap();
            words.extend(&some[..count]);
        }
        start.elapsed()
    };
    let (request, progress) = (Request::default(), Progress::default());
    let side = side_of(Role::Server, &request, &progress);
    let serving = run(server.shared(), side, Box::new(far), || 1);
    let ended = futures::future::select(Box::pin(talking), Box::pin(serving)).await;
    let futures::future::Either::Left((took, _)) = ended else { panic!("it ended") };
    assert_eq!(took.as_secs(), 2, "no deadline had to pass");
}

/// The last resort has two names, and a lane of its own under the second only where somebody has another transport under the first.
#[tokio::test(start_paused = true)]
async fn the_same_way_is_not_tried_again_under_another_name() {
    let last = |join| with([stream(), last_resort("udp", ["xdp", "udp"], join)]);
    let both = |raw, join| with([stream(), fake("xdp", raw), last_resort("udp", ["xdp", "udp"], join)]);
    let join = Deadlines::default().join;
    for (near, far) in [(Join::Hangs, Join::Hangs), (Join::Mute, Join::Mute), (Join::Fails, Join::Hangs)] {
        let start = tokio::time::Instant::now();
        both_chose(connect(last(near), last(far)).await, "mem").await;
        let once = if near == Join::Fails { Duration::ZERO } else { join };
        assert_eq!(start.elapsed(), once, "{near:?}");
    }
    // Another one's failure says nothing of it.
    for raw in [Join::Fails, Join::Hangs] {
        let ends = connect(both(raw, Join::Works), last(Join::Works)).await;
        both_chose(ends, "udp").await;
        let ends = connect(last(Join::Works), both(raw, Join::Works)).await;
        both_chose(ends, "udp").await;
        let ends = connect(both(raw, Join::Works), both(raw, Join::Works)).await;
        both_chose(ends, "udp").await;
    }
}

/// No name is offered twice, and who is better is no reason to call another one unavailable.
#[tokio::test(start_paused = true)]
async fn a_name_has_one_offer() {
    let side = || {
        let resorts = ["own", "other"].map(|name| last_resort(name, ["rdma", "xdp"], Join::Works));
        with([stream(), fake("rdma", Join::Works)].into_iter().chain(resorts))
    };
    let rank = || side().policy(Policy::default().prefer(["rdma", "own", "other"]));
    let ends = connect(rank(), rank()).await;
    for end in [&ends.0, &ends.1] {
        let report = end.as_ref().unwrap().report();
        assert_eq!(["own", "other"].map(|name| outcome(report, name)), [const { Outcome::NotNeeded }; 2]);
    }
    both_chose(ends, "rdma").await;
}

/// The first lane of the last resort took too long, and its second one was refused: that is why it is not had.
#[tokio::test(start_paused = true)]
async fn a_reason_is_that_of_the_last_lane_that_was_tried() {
    let client = with([stream(), last_resort("udp", ["xdp", "udp"], Join::Hangs)]);
    let server = with([stream(), fake("xdp", Join::Hangs), last_resort("udp", ["xdp", "udp"], Join::Fails)]);
    let ends = connect(client, server).await;
    let report = ends.0.as_ref().unwrap().report();
    let Outcome::Unavailable(why) = outcome(report, "udp") else { panic!("{report}") };
    assert!(matches!(why, Unavailable::PeerFailed { .. }) && why.to_string().contains("no_device"), "{why}");
    both_chose(ends, "mem").await;
}

#[tokio::test(start_paused = true)]
async fn progress_goes_back_when_a_later_lane_joins() {
    let lanes = |join| with([stream(), fake("shm", join), fake("rdma", Join::Hangs)]).build().unwrap();
    let (client, server) = (lanes(Join::Breaks), lanes(Join::Works));
    let (near, far) = duplex("progress");
    let request = Request::default();
    let [of_client, of_server] = [Progress::default(), Progress::default()];
    let connecting = futures::future::join(
        run(client.shared(), side_of(Role::Client, &request, &of_client), Box::new(near), || 1),
        run(server.shared(), side_of(Role::Server, &request, &of_server), Box::new(far), || 1),
    );
    let looking = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        [of_client.stage(), of_server.stage()]
    };
    let (ends, stages) = futures::future::join(connecting, looking).await;
    assert_eq!(stages, [Stage::Join; 2]);
    both_chose(ends, "mem").await;
}
