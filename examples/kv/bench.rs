//! Operations per second, how long they take, and what the server's processor had to do for them.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use zc::Fabric;

use super::client::{Client, Seen};
use super::{Result, USAGE};

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) seconds: f64,
    pub(crate) clients: usize,
    pub(crate) get_ratio: f64,
    pub(crate) keys: u64,
    pub(crate) value_bytes: usize,
    /// Has the server do everything, to compare.
    pub(crate) by_messages: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { seconds: 2.0, clients: 2, get_ratio: 0.95, keys: 2048, value_bytes: 32, by_messages: false }
    }
}

impl Options {
    pub(crate) fn parse(args: &[&str]) -> Result<Self> {
        let (mut options, mut args) = (Self::default(), args.iter());
        while let Some(arg) = args.next() {
            if *arg == "--by-messages" {
                options.by_messages = true;
                continue;
            }
            let value = args.next().ok_or(USAGE)?;
            match *arg {
                "--seconds" => options.seconds = value.parse()?,
                "--clients" => options.clients = value.parse()?,
                "--get-ratio" => options.get_ratio = value.parse()?,
                "--keys" => options.keys = value.parse()?,
                "--value-bytes" => options.value_bytes = value.parse()?,
                _ => return Err(USAGE.into()),
            }
        }
        let sensible = options.clients > 0
            && options.keys > 0
            && (0.0..=1.0).contains(&options.get_ratio)
            && (0.0..1e6).contains(&options.seconds)
            && options.value_bytes >= 16;
        if sensible { Ok(options) } else { Err(USAGE.into()) }
    }
}

/// What is for a check afterwards.
pub(crate) struct Done {
    pub(crate) is_native: bool,
    /// One-sided operations that the server's session layer did.
    pub(crate) operations_of_server: u64,
}

/// What one client did.
struct Tally {
    gets: Histogram<u64>,
    puts: Histogram<u64>,
    /// In which the server's processor took part.
    with_server: u64,
    messages: u64,
    operations: u64,
    seen: Seen,
}

impl Tally {
    fn new() -> Result<Self> {
        let (gets, puts) = (Histogram::new(3)?, Histogram::new(3)?);
        Ok(Self { gets, puts, with_server: 0, messages: 0, operations: 0, seen: Seen::default() })
    }

    fn add(&mut self, other: &Self) -> Result<()> {
        self.gets.add(&other.gets)?;
        self.puts.add(&other.puts)?;
        self.with_server += other.with_server;
        self.messages += other.messages;
        self.operations += other.operations;
        self.seen.leases += other.seen.leases;
        self.seen.torn += other.seen.torn;
        self.seen.contended += other.seen.contended;
        Ok(())
    }
}

pub(crate) async fn run(uri: &str, options: &Options) -> Result<Done> {
    let fabric = Fabric::auto()?;
    let mut first = Client::connect(&fabric, uri).await?;
    println!("{}", first.connection().report());
    for key in 0..options.keys {
        let put = first.put(&name(key), &value(key, 0, options.value_bytes)).await;
        put.map_err(|error| {
            format!("{key} keys are in, then: {error}; the server takes --slots and --room")
        })?;
    }
    let is_native = first.is_native();
    let mut clients = JoinSet::new();
    let mut all = vec![first];
    while all.len() < options.clients {
        all.push(Client::connect(&fabric, uri).await?);
    }
    for (n, client) in all.into_iter().enumerate() {
        clients.spawn(work(client, options.clone(), n as u64 + 1));
    }
    let began = Instant::now();
    let (mut total, mut finished) = (Tally::new()?, Vec::new());
    while let Some(done) = clients.join_next().await {
        let (client, tally) = done??;
        total.add(&tally)?;
        finished.push(client); // whose connection ends when all are measured
    }
    print(options, is_native, &total, began.elapsed());
    Ok(Done { is_native, operations_of_server: total.operations })
}

async fn work(mut client: Client, options: Options, seed: u64) -> Result<(Client, Tally)> {
    client.get(&name(0)).await?; // the first operation with a key asks the server
    let (before, seen) = (client.server_counts().await?, client.seen);
    let (mut tally, mut random) = (Tally::new()?, Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    let end = Instant::now() + Duration::from_secs_f64(options.seconds);
    let is_remote = options.by_messages || !client.is_native();
    loop {
        let key = random.next() % options.keys;
        let is_get = (random.next() >> 11) as f64 / (1_u64 << 53) as f64 <= options.get_ratio;
        let (name, messages, at) = (name(key), client.seen.messages, Instant::now());
        if at >= end {
            break;
        }
        if is_get {
            let found = match options.by_messages {
                true => client.get_by_message(&name).await?,
                false => client.get(&name).await?,
            };
            if !found.is_some_and(|found| is_whole(key, &found)) {
                return Err(format!("the value of key {key} is not what was put").into());
            }
        } else {
            let value = value(key, random.next(), options.value_bytes);
            match options.by_messages {
                true => client.put_by_message(&name, &value).await?,
                false => client.put(&name, &value).await?,
            }
        }
        let times = if is_get { &mut tally.gets } else { &mut tally.puts };
        times.record(at.elapsed().as_nanos() as u64)?;
        tally.with_server += u64::from(is_remote || client.seen.messages > messages);
    }
    let after = client.server_counts().await?;
    (tally.messages, tally.operations) = (after.0 - before.0, after.1 - before.1);
    tally.seen.leases = client.seen.leases - seen.leases;
    tally.seen.torn = client.seen.torn - seen.torn;
    tally.seen.contended = client.seen.contended - seen.contended;
    Ok((client, tally))
}

fn print(options: &Options, is_native: bool, total: &Tally, took: Duration) {
    let how = match (options.by_messages, is_native) {
        (true, _) => "by messages",
        (false, true) => "one-sided, natively",
        (false, false) => "one-sided, done by the server's session layer",
    };
    let Options { clients, keys, value_bytes, .. } = options;
    println!("{how}: {clients} clients, {keys} keys, values of {value_bytes} bytes");
    println!(
        "{:>5} {:>12} {:>14} {:>9} {:>9} {:>9}",
        "", "operations", "operations/s", "p50 µs", "p99 µs", "p99.9 µs"
    );
    for (name, times) in [("get", &total.gets), ("put", &total.puts)] {
        let us = |q| times.value_at_quantile(q) as f64 / 1e3;
        let per_s = times.len() as f64 / took.as_secs_f64();
        let (p50, p99, p999) = (us(0.5), us(0.99), us(0.999));
        println!("{name:>5} {:>12} {per_s:>14.0} {p50:>9.2} {p99:>9.2} {p999:>9.2}", times.len());
    }
    let operations = total.gets.len() + total.puts.len();
    let share = 100.0 * total.with_server as f64 / operations.max(1) as f64;
    println!(
        "server's processor: took part in {} of {operations} operations ({share:.2} %): \
         {} messages handled, {} one-sided operations done",
        total.with_server, total.messages, total.operations
    );
    let Seen { torn, contended, leases, .. } = total.seen;
    println!(
        "clients: {torn} slots changed while they were read, {contended} locks were taken, {leases} leases renewed"
    );
}

fn name(key: u64) -> Vec<u8> {
    format!("key-{key:08}").into_bytes()
}

/// A value that shows whether it is of one piece: all of it follows from the key and a number in it.
pub(crate) fn value(key: u64, number: u64, len: usize) -> Vec<u8> {
    let mut random = Random(key ^ number.rotate_left(32) | 1);
    let mut value = Vec::from(number.to_le_bytes());
    while value.len() < len {
        value.extend(random.next().to_le_bytes());
    }
    value.truncate(len);
    value
}

pub(crate) fn is_whole(key: u64, found: &[u8]) -> bool {
    found.first_chunk().is_some_and(|number| value(key, u64::from_le_bytes(*number), found.len()) == found)
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}
