//! The server: lays the table out, lends it to clients, and does by messages what they can't do by themselves.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use zc::{CloseCode, Connection, Fabric, Listener, Message};

use super::error::KvError;
use super::layout::{Owner, Shape};
use super::leases::{Complaint, Leases};
use super::table::{Step, Table};
use super::wire::{Answer, Request};

/// Most clients at a time.
pub(crate) const MAX_CLIENTS: usize = 1024;
/// A client gets no other lease sooner: for each all slots are looked at. What can cost a copy of the table waits longer.
const LEASE_PAUSE: Duration = Duration::from_millis(5);
/// So often a slot is tried that clients hold locked, and so long in between: longer than a lock lasts that somebody
/// complains about.
const TRIES: usize = 1000;
const PAUSE: Duration = Duration::from_millis(1);

pub(crate) struct Server {
    table: Table,
    leases: Leases,
}

/// One client, as the server knows it.
struct Client<'a> {
    server: &'a Server,
    conn: Connection,
    owner: Option<Owner>,
    leased: Option<tokio::time::Instant>,
    complaint: Complaint,
    /// Handled so far, but for questions about this number.
    messages: u64,
}

impl Server {
    pub(crate) fn new(fabric: &Fabric, slots: u64, room: u32) -> Result<Self, KvError> {
        let mut seed = [0; 16];
        getrandom::fill(&mut seed)?;
        let shape = Shape { slots, room, seed }.checked().ok_or(KvError::Shape { slots, room })?;
        let export = fabric.export(shape.bytes())?;
        Ok(Self { table: Table::new(export, shape), leases: Leases::default() })
    }

    /// Serves whoever comes, until `end`. How many came, and how many messages they sent.
    pub(crate) async fn serve(
        self: Arc<Self>,
        mut listener: Listener,
        end: impl Future<Output = ()>,
    ) -> Result<(u64, u64), KvError> {
        let (mut clients, mut end) = (JoinSet::new(), Box::pin(end));
        let (mut served, mut messages) = (0, 0);
        loop {
            tokio::select! {
                () = &mut end => return Ok((served, messages)),
                conn = listener.accept(), if clients.len() < MAX_CLIENTS => {
                    let (server, conn) = (self.clone(), conn?);
                    served += 1;
                    clients.spawn(async move { server.serve_client(conn).await });
                }
                Some(done) = clients.join_next() => messages += done.unwrap_or(0),
            }
        }
    }

    /// One request after the other; how many.
    async fn serve_client(&self, conn: Connection) -> u64 {
        let mut client = Client {
            server: self,
            conn,
            owner: None,
            leased: None,
            complaint: Complaint::default(),
            messages: 0,
        };
        let end = client.serve().await;
        let Client { conn, owner, messages, .. } = client;
        if let Some(Err(error)) = owner.map(|owner| self.leases.end(&self.table, owner)) {
            eprintln!("server: locks of a client that is gone remain: {error}");
        }
        match end {
            Ok(()) => {}
            Err(error @ KvError::Peer(_)) => conn.close(CloseCode::PROTOCOL_ERROR, &error.to_string()).await,
            Err(KvError::Connection(_) | KvError::Send(_)) => {} // it went away
            Err(error) => conn.close(CloseCode::INTERNAL, &error.to_string()).await,
        }
        messages
    }
}

impl Client<'_> {
    async fn serve(&mut self) -> Result<(), KvError> {
        while let Some(message) = self.conn.recv().await? {
            let (number, request) = parsed(&message)?;
            self.messages += u64::from(request != Request::Counts);
            drop(message);
            let answer = self.answer(request).await?;
            self.conn.send(answer.encode(number)).await?;
        }
        Ok(())
    }

    async fn answer(&mut self, request: Request) -> Result<Answer, KvError> {
        let table = &self.server.table;
        let done = match request {
            Request::Lease => return self.lease().await,
            Request::Counts => {
                let operations = self.conn.stats().remote_operations;
                return Ok(Answer::Counts { messages: self.messages, operations });
            }
            Request::Stuck { slot, state } => {
                let open = self.server.leases.complain(table, &mut self.complaint, slot, state).await?;
                return Ok(if open { Answer::Done } else { Answer::Busy });
            }
            Request::Get { key } => self
                .until_done(|| table.get(&key))
                .await
                .map(|value| value.map_or(Answer::None, Answer::Value)),
            Request::Put { key, value } => {
                self.until_done(|| table.put(&key, &value)).await.map(|()| Answer::Done)
            }
            Request::Delete { key } => self
                .until_done(|| table.delete(&key))
                .await
                .map(|was_there| if was_there { Answer::Done } else { Answer::None }),
        };
        match done {
            Err(KvError::Full) => Ok(Answer::Full),
            Err(KvError::Size { .. }) => Ok(Answer::Size),
            Err(KvError::Damaged) => Ok(Answer::Damaged),
            Err(KvError::Busy) => Ok(Answer::Busy),
            done => done,
        }
    }

    /// Clients hold locks for moments; one that does so for longer loses its lease.
    async fn until_done<T>(&self, mut step: impl FnMut() -> Result<Step<T>, KvError>) -> Result<T, KvError> {
        let mut complaint = Complaint::default();
        for _ in 0..TRIES {
            match step()? {
                Step::Done(done) => return Ok(done),
                Step::Locked { slot, state } => {
                    self.server.leases.complain(&self.server.table, &mut complaint, slot, state).await?;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(KvError::Busy)
    }

    async fn lease(&mut self) -> Result<Answer, KvError> {
        if let Some(leased) = self.leased {
            tokio::time::sleep_until(leased + LEASE_PAUSE).await;
        }
        let Server { table, leases } = self.server;
        let terms = leases.renew(table, &self.conn, self.owner).await?;
        (self.owner, self.leased) = (Some(terms.owner), Some(tokio::time::Instant::now()));
        Ok(Answer::Lease(terms))
    }
}

fn parsed(message: &Message) -> Result<(u64, Request), KvError> {
    Request::decode(message).ok_or(KvError::Peer("a message that is no request"))
}
