//! One publisher, many subscribers: each message is written once, and every connection sends it from there.
//!
//! ```text
//! pubsub                                       a publisher and three subscribers
//! pubsub publish zc://127.0.0.1:7000           publishes until Ctrl-C
//! pubsub subscribe zc://127.0.0.1:7000 100     takes 100 messages
//! ```

#![allow(clippy::print_stdout, reason = "a program")]

use std::time::Duration;

use bytes::Buf;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::broadcast;
use tokio::time::MissedTickBehavior;
use zc::{Connection, Fabric, Group, Listener, PinnedBuf};
use zc_examples_rpc::{BoxError, process};

/// Bytes of a message: a number, then the rest.
const MESSAGE_BYTES: usize = 64 << 10;
/// Messages that a slow subscriber may be behind before it misses some.
const MAX_BEHIND: usize = 256;
/// The publisher's pace.
const PACE: Duration = Duration::from_millis(1);
/// Subscribers at a time.
const MAX_SUBSCRIBERS: usize = 1024;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => all().await,
        ["publish", uri] => {
            let fabric = Fabric::auto()?;
            let listener = fabric.listen(uri).await?;
            println!("{}", listener.local_uri());
            tokio::select! {
                served = publish(listener, fabric.group()) => served,
                () = process::stopped(false) => Ok(()),
            }
        }
        ["subscribe", uri, count] => subscribe("subscriber", uri, count.parse()?).await,
        _ => Err("usage: pubsub [publish URI | subscribe URI COUNT]".into()),
    }
}

async fn all() -> Result<(), BoxError> {
    let fabric = Fabric::auto()?;
    let listener = fabric.listen("zc://127.0.0.1:0").await?;
    let uri = listener.local_uri().to_string();
    let subscribers = ["one", "two", "three"].map(|name| subscribe(name, &uri, 500));
    tokio::select! {
        served = publish(listener, fabric.group()) => served,
        done = futures::future::try_join_all(subscribers) => done.map(drop),
    }
}

/// What is written into the group's memory is sent from there to every subscriber, each of which may see all of it.
async fn publish(mut listener: Listener, group: Group) -> Result<(), BoxError> {
    let (topic, _) = broadcast::channel::<PinnedBuf>(MAX_BEHIND);
    let mut pace = tokio::time::interval(PACE);
    // Who comes late for a while does not flood the subscribers then.
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut feeds = FuturesUnordered::new();
    let mut number = 0_u64;
    loop {
        tokio::select! {
            connection = listener.accept(), if feeds.len() < MAX_SUBSCRIBERS => {
                let connection = connection?;
                if let Err(error) = group.admit(&connection) {
                    println!("a subscriber is sent copies: {error}");
                }
                feeds.push(feed(connection, topic.subscribe()));
            }
            Some(fed) = feeds.next(), if !feeds.is_empty() => {
                let Fed { sent, missed, copied } = fed;
                println!("a subscriber left: {sent} messages sent, {missed} missed, {copied} bytes copied in user space");
            }
            _ = pace.tick() => {
                let mut message = group.alloc(MESSAGE_BYTES).await?;
                message.put_slice(&number.to_le_bytes());
                message.resize(MESSAGE_BYTES, number as u8);
                number += 1;
                // Nobody listening is no error.
                let _ = topic.send(message.freeze());
            }
        }
    }
}

/// What became of a subscriber.
struct Fed {
    sent: u64,
    missed: u64,
    copied: u64,
}

/// Sends one subscriber what is published; a clone is a count, not a copy.
async fn feed(connection: Connection, mut topic: broadcast::Receiver<PinnedBuf>) -> Fed {
    let (mut sent, mut missed) = (0, 0);
    loop {
        match topic.recv().await {
            Ok(message) => match connection.send(message).await {
                Ok(_) => sent += 1,
                Err(_) => break,
            },
            Err(broadcast::error::RecvError::Lagged(count)) => missed += count,
            Err(broadcast::error::RecvError::Closed) => break,
        }
    }
    Fed { sent, missed, copied: connection.ledger().copied_bytes() }
}

async fn subscribe(name: &str, uri: &str, count: u64) -> Result<(), BoxError> {
    let mut connection = Fabric::auto()?.connect(uri).await?;
    let (mut first, mut last, mut got) = (None, 0, 0);
    while got < count {
        let Some(mut message) = connection.recv().await? else { break };
        last = message.get_u64_le();
        first.get_or_insert(last);
        got += 1;
    }
    let missed = last + 1 - first.unwrap_or(last) - got;
    let copied = connection.ledger().copied_bytes();
    println!(
        "{name}: {got} messages of {MESSAGE_BYTES} bytes, {missed} missed, {copied} bytes copied in user space"
    );
    Ok(())
}
