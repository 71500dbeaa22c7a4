//! Which transports may carry a connection, and in which order.

use zc_core::transport::{PeerCred, Trust, Unavailable};

use crate::uri::is_transport_name;
use crate::user_namespace;

/// The default order; others follow in the order they were registered.
pub const DEFAULT_ORDER: [&str; 6] = ["shm", "rdma", "xdp", "udp", "uring", "tcp"];
/// The environment variable that overrides a policy: `shm,tcp` (only these, in this order) or
/// `^rdma,shm` (all but these).
pub const ENV_TRANSPORTS: &str = "ZC_TRANSPORTS";

/// What to do when something other than the first choice carries the connection.
///
/// A transport that can't serve this peer or link at all ([`Unavailable::is_expected`]: shared memory with
/// another host) is a first choice only if [`Policy::prefer`] or `ZC_TRANSPORTS` names it. The same goes for one of several
/// that speak the same to the peer (`uring` and `tcp`, `xdp` and `udp`): where one can't be had another one carries the same, which is in
/// the report and no fallback.
///
/// ```
/// use zc::{Fallback, Policy};
///
/// // The named transport or none.
/// let policy = Policy::default().prefer(["tcp"]).fallback(Fallback::Deny);
/// let fabric = zc::Fabric::auto_builder().policy(policy).build()?;
/// # Ok::<(), zc::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fallback {
    /// Nothing.
    Allow,
    /// Log a warning with the report.
    #[default]
    Warn,
    /// Refuse the connection.
    Deny,
}

/// A value of `ZC_TRANSPORTS` can't be read.
///
/// ```
/// let error = zc::Policy::default().with_override("shm,,tcp").unwrap_err();
/// println!("{error}");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{ENV_TRANSPORTS}=`{0}`: names separated by commas, with one ^ in front to exclude them")]
pub struct PolicyError(String);

/// Ranks and restricts transports.
///
/// ```
/// use zc::Policy;
///
/// let policy = Policy::default().prefer(["shm", "tcp"]).trust_nobody();
/// let fabric = zc::Fabric::auto_builder().policy(policy).build()?; // ZC_TRANSPORTS has the last word
/// # Ok::<(), zc::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Policy {
    prefer: Vec<String>,
    only: Option<Vec<String>>,
    never: Vec<String>,
    require_encrypted: bool,
    fallback: Fallback,
    uids: Vec<u32>,
    trust_nobody: bool,
    trust_namespaces: bool,
}

/// What the kernel shows for users of another user namespace: nobody in particular.
const OVERFLOW_UID: u32 = 65534;

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

impl Policy {
    /// These first, in this order.
    pub fn prefer<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.prefer = names.into_iter().map(Into::into).collect();
        self
    }

    /// Only encrypted lanes. No transport encrypts yet: every one is refused with
    /// [`Unavailable::NoEncryption`].
    pub fn require_encrypted(mut self) -> Self {
        self.require_encrypted = true;
        self
    }

    /// What to do when the first choice can't be had.
    pub fn fallback(mut self, fallback: Fallback) -> Self {
        self.fallback = fallback;
        self
    }

    /// On one host, also accepts processes of these users. Our own user and root always are.
    pub fn accept_uids(mut self, uids: impl IntoIterator<Item = u32>) -> Self {
        self.uids.extend(uids);
        self
    }

    /// Never lends memory that a peer may still write, not even to a process of our own user: payload
    /// is copied out first ([`Trust::Untrusted`]).
    pub fn trust_nobody(mut self) -> Self {
        self.trust_nobody = true;
        self
    }

    /// Lends memory of every process of our own user, also of those in another user namespace (a rootless
    /// container), and of those that we can't look at: their process namespace is not ours, or they have more
    /// capabilities. By default their payload is copied out: such a process can't trace ours, and may be
    /// confined for a reason. [`Policy::trust_nobody`] has the last word.
    pub fn trust_other_namespaces(mut self) -> Self {
        self.trust_namespaces = true;
        self
    }

    /// Applies the value of [`ENV_TRANSPORTS`].
    ///
    /// # Errors
    /// The value can't be read.
    pub fn with_override(mut self, value: &str) -> Result<Self, PolicyError> {
        let wrong = || PolicyError(value.to_owned());
        let (exclude, names) = match value.trim().strip_prefix('^') {
            Some(rest) => (true, rest),
            None => (false, value.trim()),
        };
        let names: Vec<String> = names.split(',').map(|name| name.trim().to_owned()).collect();
        if !names.iter().all(|name| is_transport_name(name)) {
            return Err(wrong());
        }
        if exclude {
            self.never.extend(names);
        } else {
            self.prefer.clone_from(&names);
            self.only = Some(names);
        }
        Ok(self)
    }

    /// The transports that are asked for by name, best first.
    pub(crate) fn named(&self) -> &[String] {
        &self.prefer
    }

    /// Whether a transport is asked for by name.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.prefer.iter().any(|n| n == name)
    }

    pub(crate) fn fallback_rule(&self) -> Fallback {
        self.fallback
    }

    /// Whether a process of this user may share memory and descriptors with us.
    pub(crate) fn accepts_uid(&self, uid: u32) -> bool {
        uid == 0 || is_own(uid, own_uid()) || self.uids.contains(&uid)
    }

    /// How far this peer is trusted.
    pub(crate) fn trust(&self, cred: Option<PeerCred>) -> Trust {
        let is_friend = |cred: PeerCred| {
            is_own(cred.uid, own_uid()) && (self.trust_namespaces || user_namespace::is_ours(cred.pid))
        };
        match cred {
            Some(cred) if !self.trust_nobody && is_friend(cred) => Trust::Cooperative,
            _ => Trust::Untrusted,
        }
    }

    /// How far the other end of a link inside this process is trusted.
    pub(crate) fn trust_in_process(&self) -> Trust {
        if self.trust_nobody { Trust::Untrusted } else { Trust::Cooperative }
    }

    /// Why a transport may not be used, if so.
    pub(crate) fn refuses(&self, name: &str) -> Option<Unavailable> {
        if self.require_encrypted {
            return Some(Unavailable::NoEncryption);
        }
        let excluded = self.never.iter().any(|n| n == name)
            || self.only.as_ref().is_some_and(|only| !only.iter().any(|n| n == name));
        excluded.then_some(Unavailable::ForbiddenByPolicy)
    }

    /// The rank of a transport; lower is better.
    pub(crate) fn rank(&self, name: &str) -> usize {
        let preferred = self.prefer.iter().position(|n| n == name);
        preferred.unwrap_or_else(|| {
            let default = DEFAULT_ORDER.iter().position(|n| *n == name);
            self.prefer.len() + default.unwrap_or(DEFAULT_ORDER.len())
        })
    }
}

fn is_own(uid: u32, own: u32) -> bool {
    uid == own && uid != OVERFLOW_UID
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user_namespace::tests::Other;

    #[test]
    fn our_own_user_is_trusted_root_is_accepted() {
        let own = own_uid();
        let cred = |uid| Some(PeerCred { pid: 1, uid, gid: 0 });
        let policy = Policy::default().accept_uids([4_000_001]);
        assert!(policy.accepts_uid(0) && policy.accepts_uid(4_000_001) && !policy.accepts_uid(4_000_002));
        assert_eq!(policy.accepts_uid(own), own != OVERFLOW_UID);
        assert_eq!(policy.trust(cred(4_000_001)), Trust::Untrusted);
        assert_eq!(policy.trust(None), Trust::Untrusted);
        assert_eq!(Policy::default().trust_nobody().trust(cred(own)), Trust::Untrusted);
        assert!(is_own(7, 7) && !is_own(7, 8) && !is_own(OVERFLOW_UID, OVERFLOW_UID));
    }

    /// Only who could trace us is lent from unasked; not, for one, who is in a sandbox of the same user.
    #[test]
    fn our_own_user_is_trusted_in_our_own_namespace() {
        let of = |pid: i32| Some(PeerCred { pid, uid: own_uid(), gid: 0 });
        let trusts = |policy: Policy, pid| policy.trust(of(pid)) == Trust::Cooperative;
        let known = own_uid() != OVERFLOW_UID;
        assert_eq!(trusts(Policy::default(), std::process::id() as i32), known);
        let other = Other::elsewhere();
        for pid in [0].into_iter().chain(other.iter().map(Other::pid)) {
            assert!(!trusts(Policy::default(), pid));
            assert_eq!(trusts(Policy::default().trust_other_namespaces(), pid), known);
            assert!(!trusts(Policy::default().trust_other_namespaces().trust_nobody(), pid));
        }
    }

    #[test]
    fn preferred_first_then_the_default_order() {
        let policy = Policy::default().prefer(["tcp"]);
        let mut names = ["other", "rdma", "tcp", "shm"];
        names.sort_by_key(|name| policy.rank(name));
        assert_eq!(names, ["tcp", "shm", "rdma", "other"]);
    }

    #[test]
    fn the_environment_includes_or_excludes() {
        let only = Policy::default().with_override("shm, tcp").unwrap();
        assert_eq!(only.refuses("rdma"), Some(Unavailable::ForbiddenByPolicy));
        assert!(only.refuses("tcp").is_none() && only.rank("shm") < only.rank("tcp"));
        let not = Policy::default().with_override("^rdma").unwrap();
        assert!(not.refuses("rdma").is_some() && not.refuses("tcp").is_none());
        let own = Policy::default().with_override("my-own_v1.2").unwrap();
        assert!(own.refuses("my-own_v1.2").is_none(), "whatever a URI can name");
        for bad in ["", "^", "a,,b", "a;b", "^a,^b", "a-name-of-more-than-thirty-two-bytes"] {
            assert!(Policy::default().with_override(bad).is_err(), "{bad}");
        }
    }
}
