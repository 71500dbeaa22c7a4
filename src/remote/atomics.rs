//! Whose atomics a word of exported memory is changed by: all that are used at a time must be atomic together.

use std::sync::Arc;

use zc_core::memory::WordAtomics;
use zc_core::transport::RemoteAtomics;

use super::error::GrantError;

/// As whom the peers of native connections change words.
#[derive(Debug, Default)]
pub(super) enum AtomicsBy {
    /// There is none that may.
    #[default]
    Nobody,
    Processor,
    Device(Arc<dyn WordAtomics>),
}

impl AtomicsBy {
    /// One more that does it so. The device that we have to go through from now on, if it is news.
    pub(super) fn join(&mut self, wanted: RemoteAtomics) -> Result<Option<Arc<dyn WordAtomics>>, GrantError> {
        match (&*self, wanted) {
            (_, RemoteAtomics::None) => Err(GrantError::NoAtomics),
            (Self::Nobody, RemoteAtomics::Processor) => {
                *self = Self::Processor;
                Ok(None)
            }
            (Self::Nobody, RemoteAtomics::Device(device)) => {
                *self = Self::Device(device.clone());
                Ok(Some(device))
            }
            (Self::Processor, RemoteAtomics::Processor) => Ok(None),
            (Self::Device(ours), RemoteAtomics::Device(device)) if ours.device() == device.device() => {
                Ok(None)
            }
            (Self::Processor | Self::Device(_), _) => Err(GrantError::MixedAtomics),
        }
    }

    pub(super) fn is_device(&self) -> bool {
        matches!(self, Self::Device(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zc_core::memory::ExportError;

    #[derive(Debug)]
    struct Named(&'static str);

    impl WordAtomics for Named {
        fn device(&self) -> &str {
            self.0
        }
        fn compare_swap(&self, _: u64, _: u64, _: u64) -> Result<u64, ExportError> {
            Ok(0)
        }
        fn fetch_add(&self, _: u64, _: u64) -> Result<u64, ExportError> {
            Ok(0)
        }
    }

    #[test]
    fn only_what_is_atomic_together_is_used_together() {
        let device = |name| RemoteAtomics::Device(Arc::new(Named(name)));
        let mut by = AtomicsBy::default();
        assert!(matches!(by.join(RemoteAtomics::None), Err(GrantError::NoAtomics)));
        assert!(by.join(device("a")).unwrap().is_some(), "news");
        assert!(by.join(device("a")).unwrap().is_none());
        for other in [device("b"), RemoteAtomics::Processor] {
            assert!(matches!(by.join(other), Err(GrantError::MixedAtomics)));
        }
        assert!(by.is_device());
        let mut by = AtomicsBy::default();
        assert!(by.join(RemoteAtomics::Processor).unwrap().is_none());
        assert!(by.join(RemoteAtomics::Processor).unwrap().is_none());
        assert!(matches!(by.join(device("a")), Err(GrantError::MixedAtomics)));
        assert!(!by.is_device());
    }
}
