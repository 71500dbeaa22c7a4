//! For tests of code that uses zc: two connected ends in one process, no socket involved.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::connection::Connection;
use crate::error::Error;
use crate::fabric::Fabric;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Two ends of one connection of `fabric`, over a link in memory.
///
/// # Errors
/// The fabric lacks the in-process links, or its policy forbids the transport `mem`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (client, mut server) = zc::testing::pair(&zc::Fabric::auto()?).await?;
/// client.send(&b"hello"[..]).await?;
/// assert_eq!(server.recv().await?.unwrap(), b"hello"[..]);
/// # Ok(()) }
/// ```
pub async fn pair(fabric: &Fabric) -> Result<(Connection, Connection), Error> {
    let uri = format!("zc+mem://pair-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut listener = fabric.listen(&uri).await?;
    futures::future::try_join(fabric.connect(&uri), listener.accept()).await
}
