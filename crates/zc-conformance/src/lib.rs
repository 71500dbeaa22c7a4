//! One behaviour suite for every transport of zc, your own included.
//!
//! ```
//! // In `tests/conformance.rs`; each behaviour becomes a `#[test]` in the module `tcp`.
//! zc_conformance::suite!(tcp, || zc_conformance::Setup::new(
//!     zc::Fabric::auto_builder,
//!     "zc+tcp://127.0.0.1:0",
//! ));
//! # fn main() {}
//! ```
//!
//! Every behaviour runs on a runtime of its own, ends after [`GUARD`] at the latest, and leaves nothing
//! behind: both pools empty and no task alive. What a transport need not do is read from its
//! [`Caps`](zc::transport::Caps); such a behaviour says on standard error that it was skipped, and why.
//!
//! Some behaviours need a second process, or one of their own: they run the test binary again with
//! [`ENV_ROLE`] set and the name of the test `peer_process`. Such a process dies with its parent.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed expectation is what a test reports")]
#![allow(clippy::disallowed_methods, reason = "test data is not payload of a connection")]

pub mod behaviours;
mod data;
mod lanes;
mod peer;
mod run;
mod setup;

pub use self::lanes::exchange;
pub use self::peer::{ENV_ROLE, peer_process};
pub use self::run::{GUARD, Skipped, Verdict, run};
pub use self::setup::{Bench, Setup};

/// Instantiates the suite for one transport: a module of tests.
///
/// The first argument names the module, the second is a closure that returns a [`Setup`].
#[macro_export]
macro_rules! suite {
    ($module:ident, $setup:expr) => {
        mod $module {
            #[allow(unused_imports, reason = "the closure may use any name of the file")]
            use super::*;

            fn setup() -> $crate::Setup {
                ($setup)()
            }

            /// The other process of a behaviour; alone it has nothing to do.
            #[test]
            fn peer_process() {
                $crate::peer_process(setup());
            }

            $crate::__tests! {
                every_size_arrives_whole,
                random_ropes_arrive_whole,
                order_holds_in_both_directions,
                a_stalled_receiver_bounds_its_sender,
                a_window_smaller_than_a_message_lets_it_through,
                past_the_soft_lease_little_memory_is_pinned,
                past_the_hard_lease_only_its_own_connection_waits,
                an_echo_of_messages_as_large_as_the_lease_goes_on,
                connecting_can_be_given_up_anywhere,
                accepting_can_be_given_up_anywhere,
                a_send_given_up_sends_nothing,
                a_tracked_send_given_up_sends_once_or_not,
                a_recv_given_up_loses_nothing,
                a_recv_given_up_leaves_somebody_reading,
                a_drain_given_up_can_be_repeated,
                a_flush_given_up_can_be_repeated,
                an_alloc_given_up_leaks_nothing,
                close_tells_code_and_reason,
                what_was_accepted_goes_out_before_close,
                half_close_in_both_orders,
                drain_returns_once_the_peer_has_all,
                a_dropped_end_still_sends_what_was_accepted,
                a_send_after_close_returns_the_message,
                a_peer_killed_while_holding_buffers,
                a_peer_killed_while_sending,
                a_send_that_waits_when_the_peer_is_killed,
                a_delivered_send_that_waits_when_the_peer_dies,
                a_message_too_large_comes_back,
                every_sender_gets_its_turn,
                a_file_arrives_as_it_is,
                a_file_that_is_cut_is_an_error_of_the_file_alone,
                thousands_of_connections_leave_nothing,
                accepted_means_that_the_lane_has_it,
                sent_means_that_the_buffer_is_free,
                delivered_means_queued_by_the_peer,
                delivered_waits_for_a_peer_that_does_not_read,
                a_stopped_peer_is_declared_dead,
                a_slow_peer_is_not_declared_dead,
                the_ledger_adds_up,
                nothing_is_copied_where_zero_copy_is_claimed,
                cost_does_not_grow_with_size,
                one_sided_operations_move_bytes,
                atomics_of_both_sides_add_up,
                a_notification_comes_after_what_was_written,
                what_is_not_granted_is_refused,
                revoking_ends_access,
                a_one_sided_operation_given_up_leaves_nothing,
                a_peer_killed_while_it_writes_into_an_export,
            }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __tests {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                $crate::run(
                    concat!(module_path!(), "::", stringify!($name)),
                    setup(),
                    $crate::behaviours::$name,
                );
            }
        )*
    };
}
