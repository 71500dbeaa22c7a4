//! Messages of zc, over the lane that the URI demands: echoed one at a time on many connections, or pipelined on one.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::rc::Rc;

use tokio::task::{JoinSet, LocalSet};
use zc::{Connection, Fabric, PinnedBuf};

use super::warm::{Start, warm_up};
use crate::Result;
use crate::child::serve;
use crate::contender::{Contender, block_on};
use crate::job::{Job, Test};
use crate::machine::{Cores, pin};
use crate::samples::Metric;

pub(super) struct Messages {
    pub(super) name: &'static str,
    /// One of the two. Each has contenders of its own: two points of one would share their processor time.
    pub(super) test: Test,
    pub(super) uri: &'static str,
    /// What the connection must have chosen.
    pub(super) transport: &'static str,
}

impl Contender for Messages {
    fn name(&self) -> &'static str {
        self.name
    }

    fn takes(&self, test: Test, _size: usize) -> bool {
        test == self.test
    }

    fn measure(&self, job: &Job) -> Result<Vec<(Metric, f64)>> {
        pin(Cores::TWO.client)?;
        let (uri, said) = std::io::pipe()?;
        let server = serve(job, Stdio::null(), said)?;
        let mut line = String::new();
        BufReader::new(uri).read_line(&mut line)?;
        let uri = line.trim();
        if uri.is_empty() {
            return Err(format!("the server does not listen on {}", self.uri).into());
        }
        let (connections, window, rate) = match job.test {
            Test::Pipeline => (1, job.inflight, Metric::PipelinedPerS),
            _ => (job.inflight, 1, Metric::EchoesPerS),
        };
        block_on(LocalSet::new().run_until(async {
            let fabric = Fabric::auto()?;
            let count = Rc::new(Cell::new(0));
            // All first: in the middle of the others' traffic a connection takes its turns to come up.
            let mut connected = Vec::new();
            for _ in 0..connections {
                let connection = fabric.connect(uri).await?;
                let chosen = connection.report().chosen();
                if chosen != self.transport {
                    return Err(format!("zc chose {chosen} instead of {}", self.transport).into());
                }
                let message = pattern(&connection, job.size).await?;
                connected.push((connection, message));
            }
            let mut tasks = JoinSet::new();
            for (connection, message) in connected {
                tasks.spawn_local(drive(connection, message, window, count.clone()));
            }
            passes(&mut tasks, warm_up(job)?).await?;
            // Memory that was never touched makes first messages slow.
            while count.get() < connections as u64 {
                passes(&mut tasks, warm_up(job)?).await?;
            }
            let start = Start::now(&server, count.get());
            passes(&mut tasks, job.duration()?).await?;
            start.until_now(&server, count.get(), rate)
        }))
    }

    fn serve(&self, _job: &Job) -> Result<()> {
        pin(Cores::TWO.server)?;
        block_on(async {
            let mut listener = Fabric::auto()?.listen(self.uri).await?;
            let mut stdout = std::io::stdout();
            writeln!(stdout, "{}", listener.local_uri())?;
            stdout.flush()?;
            loop {
                tokio::spawn(echo(listener.accept().await?));
            }
        })
    }
}

/// The time passes, unless a connection fails.
async fn passes(tasks: &mut JoinSet<Result<()>>, time: std::time::Duration) -> Result<()> {
    match tokio::time::timeout(time, tasks.join_next()).await {
        Err(_) => Ok(()),
        Ok(Some(ended)) => ended?,
        Ok(None) => Err("there is no connection".into()),
    }
}

/// Sends the same message again and again, so many at a time, and looks at what comes back.
async fn drive(
    mut connection: Connection,
    message: PinnedBuf,
    window: usize,
    count: Rc<Cell<u64>>,
) -> Result<()> {
    let (tx, mut rx) = connection.split();
    let mut under_way = 0;
    loop {
        while under_way + 1 < window {
            tx.feed(message.clone()).await?;
            under_way += 1;
        }
        tx.send(message.clone()).await?;
        under_way += 1;
        let mut back = rx.recv().await?;
        while let Some(came) = back {
            let ends = |bytes: &[u8]| (bytes.len(), bytes.first().copied(), bytes.last().copied());
            let (first, last) = match came.segments() {
                [first, .., last] => (first.first(), last.last()),
                [only] => (only.first(), only.last()),
                [] => (None, None),
            };
            if (came.len(), first.copied(), last.copied()) != ends(&message) {
                return Err("another message came back".into());
            }
            under_way -= 1;
            count.set(count.get() + 1);
            back = rx.try_recv()?;
        }
        if under_way == window {
            return Err("the connection ended".into());
        }
    }
}

async fn pattern(connection: &Connection, size: usize) -> Result<PinnedBuf> {
    let mut buf = connection.alloc(size).await?;
    buf.put_slice(&(0..size).map(|n| (n % 251) as u8).collect::<Vec<_>>());
    Ok(buf.freeze())
}

/// What is there goes back as one batch.
async fn echo(mut connection: Connection) -> Result<()> {
    let (tx, mut rx) = connection.split();
    while let Some(mut message) = rx.recv().await? {
        while let Some(next) = rx.try_recv()? {
            tx.feed(message).await?;
            message = next;
        }
        tx.send(message).await?;
    }
    Ok(())
}
