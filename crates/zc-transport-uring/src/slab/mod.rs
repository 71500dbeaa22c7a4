//! What is in flight: a table without I/O that decides when an operation is over and who gets what it owned.
//!
//! ```text
//! insert -> Flying --(completion with MORE)--> Flying
//!              |--(the last one, owned)------> Landed --take--> vacant
//!              |--(the last one, released)---> vacant, the value is handed out
//! ```
//!
//! A value stays until its *last* completion, whoever still waits for it (M2): one shot has one, a multishot
//! operation goes on until one comes without MORE, and a zero-copy send has its result (with MORE) and its
//! notification. Tokens are index and generation (M3).

#[cfg(test)]
mod tests;

/// The most that a table holds: a bit of each index is free, see [`Token::to_cancel_bits`].
const MAX_LEN: usize = CANCEL as usize;
const CANCEL: u64 = 1 << 31;

/// Names one operation, and no later one in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Token {
    index: u32,
    generation: u32,
}

impl Token {
    /// As the kernel carries it; never 0.
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// For the request that cancels this one; never what [`to_bits`](Self::to_bits) gives, of any.
    pub(crate) fn to_cancel_bits(self) -> u64 {
        self.to_bits() | CANCEL
    }

    /// What the request with this is to cancel, if it is one of these.
    pub(crate) fn from_cancel_bits(bits: u64) -> Option<Self> {
        (bits & CANCEL != 0).then(|| Self::from_bits(bits & !CANCEL))
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

struct Slot<T> {
    /// Of the value inside, or of the next one; never 0.
    generation: u32,
    state: State<T>,
}

enum State<T> {
    Vacant { next: Option<u32> },
    Taken { stage: Stage, value: T },
}

/// Beside the value, which then need not be moved for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Flying { owned: bool },
    Landed,
}

/// What a completion meant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step<T> {
    /// Nobody's: counted, and otherwise ignored.
    Unknown,
    /// More will come.
    More,
    /// The last one; the value waits for its owner.
    Landed,
    /// The last one, and there is no owner.
    Gone(T),
}

/// What an owner that goes leaves behind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Release<T> {
    /// There was nothing.
    Unknown,
    /// It is to be cancelled, and stays until its last completion.
    Flying,
    /// It was over; here is what the owner did not take.
    Landed(T),
}

/// Operations in flight, and those whose results were not taken yet.
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Option<u32>,
    len: usize,
    flying: usize,
    max: usize,
    unknown: u64,
}

impl<T> Slab<T> {
    pub(crate) fn new(max: usize) -> Self {
        let max = max.min(MAX_LEN);
        Self { slots: Vec::new(), free: None, len: 0, flying: 0, max, unknown: 0 }
    }

    /// How many the kernel may still work on.
    pub(crate) fn flying(&self) -> usize {
        self.flying
    }

    /// How many there are in all.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Completions that named nothing.
    pub(crate) fn unknown(&self) -> u64 {
        self.unknown
    }

    /// A place for `value`; where there is none it comes back.
    pub(crate) fn insert(&mut self, owned: bool, value: T) -> Result<Token, T> {
        if self.len >= self.max {
            return Err(value);
        }
        let state = State::Taken { stage: Stage::Flying { owned }, value };
        let token = match self.free {
            Some(index) => {
                let slot = &mut self.slots[index as usize];
                if let State::Vacant { next } = slot.state {
                    self.free = next;
                }
                slot.state = state;
                Token { index, generation: slot.generation }
            }
            None => {
                self.slots.push(Slot { generation: 1, state });
                Token { index: self.slots.len() as u32 - 1, generation: 1 }
            }
        };
        self.len += 1;
        self.flying += 1;
        Ok(token)
    }

    fn slot(&mut self, token: Token) -> Option<&mut Slot<T>> {
        self.slots.get_mut(token.index as usize).filter(|slot| slot.generation == token.generation)
    }

    /// What is in flight under this token.
    pub(crate) fn flying_mut(&mut self, token: Token) -> Option<&mut T> {
        match &mut self.slot(token)?.state {
            State::Taken { stage: Stage::Flying { .. }, value } => Some(value),
            _ => None,
        }
    }

    /// What is in flight, or waits for its owner.
    pub(crate) fn value_mut(&mut self, token: Token) -> Option<&mut T> {
        match &mut self.slot(token)?.state {
            State::Taken { value, .. } => Some(value),
            State::Vacant { .. } => None,
        }
    }

    /// A completion came in.
    pub(crate) fn step(&mut self, token: Token, more: bool) -> Step<T> {
        let Some(State::Taken { stage: stage @ Stage::Flying { .. }, .. }) =
            self.slot(token).map(|slot| &mut slot.state)
        else {
            self.unknown += 1;
            return Step::Unknown;
        };
        if more {
            return Step::More;
        }
        let before = std::mem::replace(stage, Stage::Landed);
        self.flying -= 1;
        if before == (Stage::Flying { owned: true }) {
            return Step::Landed;
        }
        self.vacate(token.index).map_or(Step::Unknown, Step::Gone)
    }

    /// The result, if the last completion has come.
    pub(crate) fn take(&mut self, token: Token) -> Option<T> {
        match self.slot(token)?.state {
            State::Taken { stage: Stage::Landed, .. } => self.vacate(token.index),
            _ => None,
        }
    }

    /// The owner goes.
    pub(crate) fn release(&mut self, token: Token) -> Release<T> {
        match self.slot(token).map(|slot| &mut slot.state) {
            Some(State::Taken { stage: Stage::Flying { owned }, .. }) => {
                *owned = false;
                Release::Flying
            }
            Some(State::Taken { stage: Stage::Landed, .. }) => {
                self.vacate(token.index).map_or(Release::Unknown, Release::Landed)
            }
            _ => Release::Unknown,
        }
    }

    /// Takes the value out; a later one in its place has another generation.
    fn vacate(&mut self, index: u32) -> Option<T> {
        let slot = &mut self.slots[index as usize];
        let old = std::mem::replace(&mut slot.state, State::Vacant { next: self.free });
        slot.generation = slot.generation.checked_add(1).unwrap_or(1);
        self.free = Some(index);
        self.len -= 1;
        match old {
            State::Taken { value, .. } => Some(value),
            State::Vacant { .. } => None,
        }
    }

    /// The tokens of all that is in flight.
    pub(crate) fn tokens(&self) -> Vec<Token> {
        let flying = |slot: &Slot<T>| matches!(slot.state, State::Taken { stage: Stage::Flying { .. }, .. });
        let all = self.slots.iter().enumerate().filter(|(_, slot)| flying(slot));
        all.map(|(index, slot)| Token { index: index as u32, generation: slot.generation }).collect()
    }

    /// Takes out what is in flight, as if it had never been; results that wait for their owners stay.
    pub(crate) fn take_flying(&mut self) -> Vec<(Token, T)> {
        let tokens = self.tokens();
        self.flying = 0;
        let flying = tokens.into_iter();
        flying.filter_map(|token| self.vacate(token.index).map(|value| (token, value))).collect()
    }
}
