//! The behaviours, each a function that panics when a transport does not have it.
//!
//! Instantiate them with [`suite!`](crate::suite).

mod backpressure;
mod cancel;
mod churn;
mod close;
mod completion;
mod fairness;
mod files;
mod integrity;
mod keepalive;
mod kill;
mod lease;
mod ledger;
mod limits;
mod remote;

pub use self::backpressure::{
    a_stalled_receiver_bounds_its_sender, a_window_smaller_than_a_message_lets_it_through,
};
pub use self::cancel::{
    a_drain_given_up_can_be_repeated, a_flush_given_up_can_be_repeated,
    a_recv_given_up_leaves_somebody_reading, a_recv_given_up_loses_nothing, a_send_given_up_sends_nothing,
    a_tracked_send_given_up_sends_once_or_not, accepting_can_be_given_up_anywhere,
    an_alloc_given_up_leaks_nothing, connecting_can_be_given_up_anywhere,
};
pub(crate) use self::churn::churn;
pub use self::churn::thousands_of_connections_leave_nothing;
pub use self::close::{
    a_dropped_end_still_sends_what_was_accepted, a_send_after_close_returns_the_message,
    close_tells_code_and_reason, drain_returns_once_the_peer_has_all, half_close_in_both_orders,
    what_was_accepted_goes_out_before_close,
};
pub use self::completion::{
    accepted_means_that_the_lane_has_it, delivered_means_queued_by_the_peer,
    delivered_waits_for_a_peer_that_does_not_read, sent_means_that_the_buffer_is_free,
};
pub use self::fairness::every_sender_gets_its_turn;
pub use self::files::{a_file_arrives_as_it_is, a_file_that_is_cut_is_an_error_of_the_file_alone};
pub use self::integrity::{
    every_size_arrives_whole, order_holds_in_both_directions, random_ropes_arrive_whole,
};
pub use self::keepalive::{a_slow_peer_is_not_declared_dead, a_stopped_peer_is_declared_dead};
pub use self::kill::{
    a_delivered_send_that_waits_when_the_peer_dies, a_peer_killed_while_holding_buffers,
    a_peer_killed_while_sending, a_send_that_waits_when_the_peer_is_killed,
};
pub use self::lease::{
    an_echo_of_messages_as_large_as_the_lease_goes_on, past_the_hard_lease_only_its_own_connection_waits,
    past_the_soft_lease_little_memory_is_pinned,
};
pub use self::ledger::{
    cost_does_not_grow_with_size, nothing_is_copied_where_zero_copy_is_claimed, the_ledger_adds_up,
};
pub use self::limits::a_message_too_large_comes_back;
pub(crate) use self::remote::write_for_ever;
pub use self::remote::{
    a_notification_comes_after_what_was_written, a_one_sided_operation_given_up_leaves_nothing,
    a_peer_killed_while_it_writes_into_an_export, atomics_of_both_sides_add_up,
    one_sided_operations_move_bytes, revoking_ends_access, what_is_not_granted_is_refused,
};
