//! The slab against a model that keeps everything by token.

use super::*;
use proptest::prelude::*;
use std::collections::HashSet;
use std::rc::Rc;

#[derive(Debug, Clone)]
enum Action {
    Insert {
        owned: bool,
    },
    Complete {
        pick: usize,
        more: bool,
    },
    Take {
        pick: usize,
    },
    Release {
        pick: usize,
    },
    /// A completion that no operation of ours has.
    Forge {
        index: u32,
        generation: u32,
    },
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => any::<bool>().prop_map(|owned| Action::Insert { owned }),
        4 => (any::<usize>(), prop::bool::weighted(0.3)).prop_map(|(pick, more)| Action::Complete { pick, more }),
        2 => any::<usize>().prop_map(|pick| Action::Take { pick }),
        2 => any::<usize>().prop_map(|pick| Action::Release { pick }),
        1 => (0..8u32, 0..4u32).prop_map(|(index, generation)| Action::Forge { index, generation }),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Life {
    Flying { owned: bool },
    Landed,
    Over,
}

/// Knows every token that ever was.
#[derive(Default)]
struct Model {
    all: Vec<(Token, Life, Rc<u32>)>,
    unknown: u64,
}

impl Model {
    fn live(&self) -> usize {
        self.all.iter().filter(|(_, life, _)| *life != Life::Over).count()
    }

    fn flying(&self) -> usize {
        self.all.iter().filter(|(_, life, _)| matches!(life, Life::Flying { .. })).count()
    }
}

const MAX: usize = 6;

fn apply(slab: &mut Slab<Rc<u32>>, model: &mut Model, action: Action) {
    let count = model.all.len();
    match action {
        Action::Insert { owned } => {
            let value = Rc::new(count as u32);
            match slab.insert(owned, value.clone()) {
                Ok(token) => {
                    assert!(model.live() < MAX);
                    assert!(model.all.iter().all(|(other, ..)| *other != token), "a token came again");
                    assert_eq!(Token::from_bits(token.to_bits()), token);
                    assert_ne!(token.to_bits(), 0);
                    model.all.push((token, Life::Flying { owned }, value));
                }
                Err(_) => assert_eq!(model.live(), MAX),
            }
        }
        Action::Complete { pick, more } if count > 0 => {
            let (token, life, value) = &mut model.all[pick % count];
            let (step, value) = (slab.step(*token, more), value.clone());
            match (*life, more) {
                (Life::Flying { .. }, true) => assert_eq!(step, Step::More),
                (Life::Flying { owned: true }, false) => {
                    assert_eq!(step, Step::Landed);
                    *life = Life::Landed;
                }
                (Life::Flying { owned: false }, false) => {
                    assert_eq!(step, Step::Gone(value));
                    *life = Life::Over;
                }
                (Life::Landed | Life::Over, _) => {
                    assert_eq!(step, Step::Unknown);
                    model.unknown += 1;
                }
            }
        }
        Action::Take { pick } if count > 0 => {
            let (token, life, value) = &mut model.all[pick % count];
            let taken = slab.take(*token);
            assert_eq!(taken, (*life == Life::Landed).then(|| value.clone()));
            if taken.is_some() {
                *life = Life::Over;
            }
        }
        Action::Release { pick } if count > 0 => {
            let (token, life, value) = &mut model.all[pick % count];
            let released = slab.release(*token);
            match *life {
                Life::Flying { .. } => {
                    assert_eq!(released, Release::Flying);
                    *life = Life::Flying { owned: false };
                }
                Life::Landed => {
                    assert_eq!(released, Release::Landed(value.clone()));
                    *life = Life::Over;
                }
                Life::Over => assert_eq!(released, Release::Unknown),
            }
        }
        Action::Forge { index, generation } => {
            let token = Token { index, generation };
            if model.all.iter().all(|(other, ..)| *other != token) {
                assert_eq!(slab.step(token, false), Step::Unknown);
                assert!(slab.take(token).is_none() && slab.value_mut(token).is_none());
                model.unknown += 1;
            }
        }
        _ => {}
    }
}

fn check(slab: &mut Slab<Rc<u32>>, model: &Model) {
    assert_eq!((slab.flying(), slab.unknown()), (model.flying(), model.unknown));
    assert_eq!(slab.len(), model.live());
    assert_eq!(slab.tokens().len(), model.flying());
    for (token, life, value) in &model.all {
        // One count is the model's own: a value is kept exactly as long as it should be (M2).
        let kept = Rc::strong_count(value) == 2;
        assert_eq!(kept, *life != Life::Over, "{token:?}");
        assert_eq!(slab.value_mut(*token).is_some(), kept);
        assert_eq!(slab.flying_mut(*token).is_some(), matches!(life, Life::Flying { .. }));
    }
}

proptest! {
    #[test]
    fn fuzz_a_value_stays_until_its_last_completion(actions in prop::collection::vec(action(), 0..120)) {
        let (mut slab, mut model) = (Slab::new(MAX), Model::default());
        for action in actions {
            apply(&mut slab, &mut model, action);
            check(&mut slab, &model);
        }
        let flying: HashSet<u32> = slab.take_flying().iter().map(|(_, value)| **value).collect();
        for (token, life, value) in &mut model.all {
            let was_flying = matches!(life, Life::Flying { .. });
            prop_assert_eq!(flying.contains(&**value), was_flying);
            if was_flying {
                *life = Life::Over;
                prop_assert_eq!(slab.step(*token, false), Step::Unknown);
                model.unknown += 1;
            }
        }
        drop(flying);
        check(&mut slab, &model);
    }
}
