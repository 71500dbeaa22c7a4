//! The handshakes of a listener, and which of them has to go when there are too many.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use zc_core::transport::{ControlLink, LinkAddr};

/// Where a link comes from, as far as whoever opens many of them can't choose it freely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// An IPv4 address, or the first half of an IPv6 one: the rest is the client's own to choose.
    Net(u64),
    /// A user of this host.
    User(u32),
    /// Nothing is known; all such count as one.
    Unknown,
}

impl Source {
    pub(super) fn of(link: &dyn ControlLink) -> Self {
        if let Some(cred) = link.peer_cred() {
            return Self::User(cred.uid);
        }
        let LinkAddr::Tcp(at) = link.peer() else { return Self::Unknown };
        match at.parse::<SocketAddr>().map(|at| at.ip().to_canonical()) {
            Ok(IpAddr::V4(ip)) => Self::Net(u64::from(ip.to_bits())),
            Ok(IpAddr::V6(ip)) => Self::Net((ip.to_bits() >> 64) as u64),
            Err(_) => Self::Unknown,
        }
    }
}

/// Handshakes by their source. Numbers grow, so the smallest is the oldest.
#[derive(Debug, Default)]
pub(super) struct Crowd(HashMap<Source, BTreeSet<u64>>);

impl Crowd {
    pub(super) fn insert(&mut self, source: Source, id: u64) {
        self.0.entry(source).or_default().insert(id);
    }

    pub(super) fn remove(&mut self, source: Source, id: u64) {
        if let Some(ids) = self.0.get_mut(&source) {
            ids.remove(&id);
            if ids.is_empty() {
                self.0.remove(&source);
            }
        }
    }

    /// Of the source with the most handshakes, the oldest that has not proved who it is; else the oldest.
    ///
    /// Whoever floods a listener thus crowds out itself. How far a handshake has come does not count, for
    /// anybody can send a HELLO; what an authentication method has accepted does.
    pub(super) fn victim(&self, proved: impl Fn(u64) -> bool) -> Option<u64> {
        // Of two crowds of one size, the one with the older handshake.
        let crowd = self.0.values().max_by_key(|ids| (ids.len(), std::cmp::Reverse(ids.first())))?;
        crowd.iter().find(|id| !proved(**id)).or(crowd.first()).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct At(&'static str);

    impl ControlLink for At {
        fn poll_read(
            &mut self,
            _: &mut std::task::Context<'_>,
            _: &mut [u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            std::task::Poll::Pending
        }
        fn poll_write(
            &mut self,
            _: &mut std::task::Context<'_>,
            _: &[u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            std::task::Poll::Pending
        }
        fn poll_shutdown(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Pending
        }
        fn peer(&self) -> LinkAddr {
            LinkAddr::Tcp(self.0.into())
        }
        fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
            self
        }
    }

    #[test]
    fn ports_and_host_parts_do_not_make_another_source() {
        let of = |at| Source::of(&At(at));
        assert_eq!(of("192.0.2.1:1"), of("192.0.2.1:2"));
        assert_eq!(of("192.0.2.1:1"), of("[::ffff:192.0.2.1]:1"));
        assert_ne!(of("192.0.2.1:1"), of("192.0.2.2:1"));
        assert_eq!(of("[2001:db8::1]:1"), of("[2001:db8::2]:1"));
        assert_ne!(of("[2001:db8::1]:1"), of("[2001:db8:0:1::1]:1"));
        assert_eq!(of("unknown"), Source::Unknown);
    }

    #[test]
    fn a_crowd_pushes_out_itself_and_first_whoever_proved_nothing() {
        let mut crowd = Crowd::default();
        assert_eq!(crowd.victim(|_| false), None);
        crowd.insert(Source::Net(1), 0);
        for id in 1..5 {
            crowd.insert(Source::Net(2), id);
        }
        assert_eq!(crowd.victim(|_| false), Some(1), "not the older one of the other source");
        assert_eq!(crowd.victim(|id| id == 1), Some(2));
        assert_eq!(crowd.victim(|_| true), Some(1));
        for id in 1..5 {
            crowd.remove(Source::Net(2), id);
        }
        assert_eq!(crowd.victim(|_| false), Some(0));
        crowd.insert(Source::User(7), 9);
        assert_eq!(crowd.victim(|_| false), Some(0), "of two equal crowds the older");
        crowd.remove(Source::Net(1), 0);
        crowd.remove(Source::User(7), 9);
        assert!(crowd.0.is_empty(), "nothing is kept about sources that are gone");
    }
}
