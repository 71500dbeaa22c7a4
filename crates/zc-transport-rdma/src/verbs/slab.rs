//! Values that are named by index and generation (M3).

/// Names one value, and no later one in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Token {
    index: u32,
    generation: u32,
}

impl Token {
    /// As a device carries it; never 0.
    pub(super) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

struct Slot<T> {
    /// Of the value inside, or of the next one; never 0.
    generation: u32,
    value: Option<T>,
}

/// A table that grows to what was in it at a time. Its users bound that.
pub(super) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, value: T) -> Token {
        match self.free.pop() {
            Some(index) => {
                let slot = &mut self.slots[index as usize];
                slot.value = Some(value);
                Token { index, generation: slot.generation }
            }
            None => {
                self.slots.push(Slot { generation: 1, value: Some(value) });
                Token { index: self.slots.len() as u32 - 1, generation: 1 }
            }
        }
    }

    fn slot(&mut self, token: Token) -> Option<&mut Slot<T>> {
        self.slots.get_mut(token.index as usize).filter(|slot| slot.generation == token.generation)
    }

    pub(super) fn value(&self, token: Token) -> Option<&T> {
        let slot = self.slots.get(token.index as usize)?;
        slot.value.as_ref().filter(|_| slot.generation == token.generation)
    }

    pub(super) fn value_mut(&mut self, token: Token) -> Option<&mut T> {
        self.slot(token)?.value.as_mut()
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<T> {
        let slot = self.slot(token)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.checked_add(1).unwrap_or(1);
        self.free.push(token.index);
        Some(value)
    }

    /// Takes out all values of which this is true.
    pub(super) fn extract(&mut self, mut of: impl FnMut(&T) -> bool) -> Vec<T> {
        let tokens: Vec<_> = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.value.as_ref().is_some_and(&mut of))
            .map(|(index, slot)| Token { index: index as u32, generation: slot.generation })
            .collect();
        tokens.into_iter().filter_map(|token| self.remove(token)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_that_of_a_later_value() {
        let mut slab = Slab::new();
        let a = slab.insert('a');
        assert_eq!(Token::from_bits(a.to_bits()), a);
        assert_ne!(a.to_bits(), 0);
        assert_eq!((slab.remove(a), slab.remove(a)), (Some('a'), None));
        let b = slab.insert('b');
        assert_ne!(a, b);
        assert_eq!((slab.value(a), slab.value(b), slab.len()), (None, Some(&'b'), 1));
        assert_eq!(slab.value_mut(Token::from_bits(u64::MAX)), None);
        slab.insert('c');
        assert_eq!(slab.extract(|value| *value == 'b'), ['b']);
        assert_eq!((slab.value(b), slab.len()), (None, 1));
    }
}
