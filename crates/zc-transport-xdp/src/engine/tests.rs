//! The engine's task, and those who look in its place.

use super::scripted::Scripted;
use crate::limits::TURNS_LOOKED_AT;

/// One whose task has left what comes to who looks.
fn left() -> Scripted {
    let mut scripted = Scripted::new();
    for _ in 0..TURNS_LOOKED_AT {
        scripted.engine.look(&scripted.conn);
        scripted.turn();
    }
    scripted
}

#[test]
fn the_task_receives_what_it_has_left_as_soon_as_who_looked_rests() {
    for rests in [false, true] {
        let mut scripted = left();
        scripted.comes();
        (0..3).for_each(|_| _ = scripted.turn());
        assert!(scripted.lies_there(), "it is left to who looks");
        scripted.calls.take();
        if rests {
            scripted.engine.rest();
        }
        assert_eq!(scripted.calls.take(), usize::from(rests), "he calls the task");
        scripted.turn();
        assert_eq!(scripted.lies_there(), !rests);
        assert_eq!(scripted.conn.state.lock().session.has_frame(), rests);
    }
    // He finds it himself, otherwise.
    let mut scripted = left();
    scripted.comes();
    assert!(scripted.engine.look(&scripted.conn) && !scripted.lies_there());
}

/// The other order: he rests before the task decides.
#[test]
fn the_task_leaves_nothing_to_one_who_has_gone_to_sleep() {
    let mut scripted = Scripted::new();
    for _ in 0..3 * TURNS_LOOKED_AT {
        scripted.engine.look(&scripted.conn);
        scripted.engine.rest();
        scripted.comes();
        scripted.turn();
        assert!(!scripted.lies_there());
    }
}

#[test]
fn an_error_that_one_who_spins_meets_is_found_by_the_task() {
    let mut scripted = left();
    scripted.breaks();
    assert!(!scripted.engine.look(&scripted.conn));
    assert_eq!(scripted.calls.take(), 1, "the task takes over at once");
    scripted.turn();
    assert!(!scripted.engine.works() && scripted.conn.state.lock().end().is_some());
}

/// Its timers run no more, so nothing is acknowledged any more either.
#[test]
fn a_session_whose_engine_has_failed_takes_nothing() {
    let mut scripted = Scripted::new();
    scripted.breaks();
    scripted.turn();
    assert!(!scripted.engine.works());
    scripted.mends();
    scripted.comes();
    assert!(scripted.engine.look(&scripted.conn) && !scripted.lies_there());
    assert!(!scripted.conn.state.lock().session.has_frame());
}
