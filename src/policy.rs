//! Which transports may carry a connection, and in which order.

use zc_core::transport::Unavailable;

/// The default order; others follow in the order they were registered.
pub const DEFAULT_ORDER: [&str; 5] = ["shm", "rdma", "xdp", "uring", "tcp"];
/// The environment variable that overrides a policy: `shm,tcp` (only these, in this order) or
/// `^rdma,shm` (all but these).
pub const ENV_TRANSPORTS: &str = "ZC_TRANSPORTS";

/// What to do when something other than the first choice carries the connection.
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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{ENV_TRANSPORTS}=`{0}`: names separated by commas, with one ^ in front to exclude them")]
pub struct PolicyError(String);

/// Ranks and restricts transports.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    prefer: Vec<String>,
    only: Option<Vec<String>>,
    never: Vec<String>,
    require_encrypted: bool,
    fallback: Fallback,
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
        if names.iter().any(|name| name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric())) {
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

    pub(crate) fn fallback_rule(&self) -> Fallback {
        self.fallback
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

#[cfg(test)]
mod tests {
    use super::*;

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
        for bad in ["", "^", "a,,b", "a;b", "^a,^b"] {
            assert!(Policy::default().with_override(bad).is_err(), "{bad}");
        }
    }
}
