//! A transport around another one: everything is the inner one's, but the lanes are wrapped.

use std::sync::Arc;

use crate::transport::{Lane, OfferContext, Role, Transport, WireupError};

/// What a middleware adds.
pub(super) trait Around: Send + Sync + 'static {
    fn inner(&self) -> &Arc<dyn Transport>;
    fn wrap(&self, lane: Lane, role: Role, cx: &OfferContext) -> Result<Lane, WireupError>;
}

/// Makes an [`Around`] a [`Transport`]. Every method is named, also those that have a default: what a
/// middleware does not hand on, the inner transport loses.
macro_rules! transport_around {
    ($middleware:ty) => {
        impl $crate::transport::Transport for $middleware {
            fn name(&self) -> &'static str {
                self.inner().name()
            }
            fn wire_name(&self) -> &'static str {
                self.inner().wire_name()
            }
            fn second_name(&self) -> Option<&'static str> {
                self.inner().second_name()
            }
            fn is_same_way(
                &self,
                first: &$crate::transport::Offer,
                second: &$crate::transport::Offer,
            ) -> bool {
                self.inner().is_same_way(first, second)
            }
            fn withdraw(&self, offer: &$crate::transport::Offer) {
                self.inner().withdraw(offer);
            }
            fn stands_in_for(&self) -> Option<&'static str> {
                self.inner().stands_in_for()
            }
            fn probe(&self) -> Result<$crate::transport::Caps, $crate::transport::Unavailable> {
                self.inner().probe()
            }
            fn suits(
                &self,
                cx: &$crate::transport::OfferContext,
            ) -> Result<(), $crate::transport::Unavailable> {
                self.inner().suits(cx)
            }
            fn in_band(&self) -> bool {
                self.inner().in_band()
            }
            fn wants_descriptors(&self) -> bool {
                self.inner().wants_descriptors()
            }
            fn params(&self) -> &'static [&'static str] {
                self.inner().params()
            }
            fn offer(
                &self,
                cx: &$crate::transport::OfferContext,
            ) -> Result<$crate::transport::Offer, $crate::transport::Unavailable> {
                self.inner().offer(cx)
            }
            fn offer_soon<'a>(
                &'a self,
                cx: &'a $crate::transport::OfferContext,
            ) -> $crate::transport::BoxFuture<
                'a,
                Result<$crate::transport::Offer, $crate::transport::Unavailable>,
            > {
                self.inner().offer_soon(cx)
            }
            fn join<'a>(
                &'a self,
                role: $crate::transport::Role,
                mine: $crate::transport::Offer,
                peer: $crate::transport::Offer,
                link: &'a mut Option<Box<dyn $crate::transport::ControlLink>>,
                cx: $crate::transport::OfferContext,
            ) -> $crate::transport::BoxFuture<
                'a,
                Result<$crate::transport::Lane, $crate::transport::WireupError>,
            > {
                Box::pin(async move {
                    let lane = self.inner().join(role, mine, peer, link, cx.clone()).await?;
                    self.wrap(lane, role, &cx)
                })
            }
        }
    };
}
pub(super) use transport_around;
