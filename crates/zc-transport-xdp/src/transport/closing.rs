//! What takes the kernel a while to give back.

/// Drops it in a thread of its own, since no thread of a runtime may wait for it; in this one where no other is to be had. Where the process
/// ends meanwhile the kernel closes what is left, when nobody else has a copy of its descriptors: a child that was forked and did not exec is
/// the last to let go.
pub(super) fn elsewhere<T: Send + 'static>(what: T) {
    let thread = std::thread::Builder::new().name("zc-xdp-close".to_owned());
    if let Err(error) = thread.spawn(move || drop(what)) {
        tracing::debug!(%error, "an interface is closed where it was left");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::thread::ThreadId;
    use std::time::Duration;

    struct Tells(Sender<ThreadId>);

    impl Drop for Tells {
        fn drop(&mut self) {
            self.0.send(std::thread::current().id()).unwrap();
        }
    }

    #[test]
    fn another_thread_drops_it() {
        let (say, hear) = channel();
        super::elsewhere(Tells(say));
        let who = hear.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_ne!(who, std::thread::current().id());
    }
}
