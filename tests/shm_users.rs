//! Shared memory by a path, between users: the mode of the socket says who may knock, and the kernel who did.
//!
//! The other processes are this program again, as other users. Only root can start them; without root these tests say
//! so and pass by.
#![cfg(all(feature = "tokio", feature = "tcp", feature = "shm"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use zc::transport::Unavailable;
use zc::{Connection, Deadlines, Error, Fabric, HandshakeFailed, Observer, Outcome, Policy, SelectionReport};

#[path = "common/another_user.rs"]
mod another_user;
#[path = "common/skipped.rs"]
mod skipped;

use another_user::{AnotherUser, can_be_started};

/// Users of whom nothing needs to be known.
const ONE: u32 = 65534;
const OTHER: u32 = 65533;
const GUARD: Duration = Duration::from_secs(60);
/// What the other process is to do.
const TASK: &str = "ZC_TEST_SHM_USERS";

fn run<F: Future>(future: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    rt.block_on(async { tokio::time::timeout(2 * GUARD, future).await.expect("hangs") })
}

/// Says which handshakes of a listener failed, and why.
#[derive(Default)]
struct Failed(Mutex<Vec<String>>);

impl Observer for Failed {
    fn handshake_failed(&self, event: &HandshakeFailed) {
        println!("\nfailed: {}: {}", event.stage, event.reason.replace('\n', " "));
        self.0.lock().unwrap().push(event.reason.clone());
    }
}

impl Failed {
    /// The other side may know before.
    async fn first(&self) -> String {
        loop {
            if let Some(reason) = self.0.lock().unwrap().first() {
                return reason.clone();
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn fabric(policy: Policy) -> Fabric {
    observed(policy, &Arc::default())
}

fn observed(policy: Policy, failed: &Arc<Failed>) -> Fabric {
    // Nothing fails because the machine is busy.
    let mut deadlines = Deadlines::default();
    (deadlines.hello, deadlines.offers, deadlines.join, deadlines.total) = (GUARD, GUARD, GUARD, GUARD);
    Fabric::auto_builder().policy(policy).deadlines(deadlines).observer(failed.clone()).build().unwrap()
}

/// A directory that everybody can enter, of this user. Its name is new: nobody has put a link there.
struct Dir(TempDir);

impl Dir {
    fn of(uid: u32) -> Self {
        let dir = tempfile::Builder::new().prefix("zc-users-").tempdir().unwrap();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
        chown(&dir, Some(uid), Some(uid)).unwrap();
        Self(dir)
    }
    fn socket(&self) -> PathBuf {
        self.0.path().join("s")
    }
    fn uri(&self) -> String {
        format!("zc+shm://{}", self.socket().display())
    }
}

fn open_to_all(socket: &Path) {
    std::fs::set_permissions(socket, PermissionsExt::from_mode(0o666)).unwrap();
}

fn start(uid: u32, task: &str) -> AnotherUser {
    AnotherUser::start(uid, "other_user", TASK, task)
}

/// The process of another user; without the variable there is nothing to do.
#[test]
fn other_user() {
    let Ok(task) = std::env::var(TASK) else { return };
    // Nobody stays behind when the test is gone.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    run(async {
        let fabric = fabric(Policy::default());
        let ended = match task.split_once(' ').unwrap() {
            ("listen", uri) => {
                let mut listener = fabric.listen(uri).await.unwrap();
                open_to_all(Path::new(uri.strip_prefix("zc+shm://").unwrap()));
                println!("\nlistens:");
                listener.accept().await
            }
            ("connect", uri) => fabric.connect(uri).await,
            other => panic!("{other:?}"),
        };
        println!("\nended: {}", in_words(&ended));
        if let Ok(mut connection) = ended {
            while let Ok(Some(message)) = connection.recv().await {
                connection.send(message).await.unwrap();
            }
        }
    });
}

/// The same words in each process.
fn in_words(ended: &Result<Connection, Error>) -> String {
    match ended {
        Ok(connection) => connection.report().chosen().to_owned(),
        Err(Error::NoTransport(report)) => format!("{:?}", shm(report)),
        Err(error) => format!("{error:?}"),
    }
}

fn shm(report: &SelectionReport) -> Outcome {
    let found = report.candidates().iter().find(|candidate| candidate.transport == "shm");
    found.unwrap_or_else(|| panic!("shm is not in\n{report}")).outcome.clone()
}

fn refused(uid: u32) -> Unavailable {
    Unavailable::PeerUid { uid }
}

/// Neither is root, so neither accepts the other; each knows by the kernel's word who that is.
#[test]
fn two_users_who_may_open_one_socket_refuse_each_other() {
    if !can_be_started("two users", &[ONE, OTHER]) {
        return;
    }
    run(async {
        let dir = Dir::of(ONE);
        let mut server = start(ONE, &format!("listen {}", dir.uri()));
        server.says("listens:").await;
        let mut client = start(OTHER, &format!("connect {}", dir.uri()));
        let of_client = client.says("ended: ").await;
        assert_eq!(of_client, format!("{:?}", Outcome::Unavailable(refused(ONE))));
        let of_server = server.says("failed: ").await;
        assert!(of_server.contains(&refused(OTHER).to_string()), "{of_server}");
    });
}

#[test]
fn a_server_of_another_user_at_the_path_is_refused() {
    if !can_be_started("a server of another user", &[ONE]) {
        return;
    }
    run(async {
        let dir = Dir::of(ONE);
        let mut server = start(ONE, &format!("listen {}", dir.uri()));
        server.says("listens:").await;
        let failed = Arc::<Failed>::default();
        let Err(Error::NoTransport(report)) = observed(Policy::default(), &failed).connect(&dir.uri()).await
        else {
            panic!("it talks to whoever has the path")
        };
        assert_eq!(shm(&report), Outcome::Unavailable(refused(ONE)));
        // Root it would have accepted, so all it can say is that nothing came of it.
        assert!(server.says("failed: ").await.contains("no transport"));
        assert!(failed.first().await.contains(&refused(ONE).to_string()));
    });
}

#[test]
fn a_stranger_who_may_open_the_socket_is_refused_all_the_same() {
    if !can_be_started("a stranger", &[ONE]) {
        return;
    }
    run(async {
        let dir = Dir::of(0);
        let failed = Arc::<Failed>::default();
        let _listener = observed(Policy::default(), &failed).listen(&dir.uri()).await.unwrap();
        open_to_all(&dir.socket());
        let mut client = start(ONE, &format!("connect {}", dir.uri()));
        let said = client.says("ended: ").await;
        assert!(said.starts_with("Unavailable("), "{said}");
        let reason = failed.first().await;
        assert!(reason.contains(&refused(ONE).to_string()), "{reason}");
    });
}

#[test]
fn an_admitted_stranger_who_may_open_the_socket_shares_memory() {
    if !can_be_started("an admitted stranger", &[ONE]) {
        return;
    }
    run(async {
        let dir = Dir::of(0);
        let mut listener = fabric(Policy::default().accept_uids([ONE])).listen(&dir.uri()).await.unwrap();
        open_to_all(&dir.socket());
        let mut client = start(ONE, &format!("connect {}", dir.uri()));
        let mut connection = listener.accept().await.unwrap();
        assert_eq!(client.says("ended: ").await, "shm");
        assert_eq!(connection.report().chosen(), "shm", "{}", connection.report());
        assert_eq!(connection.peer().cred.unwrap().uid, ONE);
        connection.send(vec![7; 5000]).await.unwrap();
        assert!(connection.recv().await.unwrap().unwrap() == vec![7; 5000][..]);
    });
}
