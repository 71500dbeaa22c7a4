//! Instructions, and jumps to labels.

/// One instruction as the kernel reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Insn {
    code: u8,
    /// Destination and source, four bits each.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Insn {
    fn new(code: u8, to: Reg, from: Reg, offset: i16, immediate: i32) -> Self {
        let (to, from) = (to as u8, from as u8);
        let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
        Self { code, registers, offset, immediate }
    }
}

/// A register. R0 holds results, R1 to R5 arguments (lost in a call), R6 to R9 are kept, R10 is the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "all that there are")]
pub(crate) enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// How wide a load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    Byte,
    Half,
    Word,
}

impl Width {
    fn code(self) -> u8 {
        match self {
            Self::Word => 0x00,
            Self::Half => 0x08,
            Self::Byte => 0x10,
        }
    }
}

/// A place to jump to, further down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// The program does not fit: a jump is too long, or a label has no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unassembled;

/// Collects instructions.
#[derive(Default)]
pub(crate) struct Assembler {
    instructions: Vec<Insn>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

const R0: Reg = Reg::R0;

impl Assembler {
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label stands for what comes next.
    pub(crate) fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.instructions.len());
    }

    fn emit(&mut self, code: u8, to: Reg, from: Reg, offset: i16, immediate: i32) {
        self.instructions.push(Insn::new(code, to, from, offset, immediate));
    }

    /// `to = from`.
    pub(crate) fn copy(&mut self, to: Reg, from: Reg) {
        self.emit(0xbf, to, from, 0, 0);
    }

    /// `to = value`.
    pub(crate) fn set(&mut self, to: Reg, value: i32) {
        self.emit(0xb7, to, R0, 0, value);
    }

    /// `to += value`.
    pub(crate) fn add(&mut self, to: Reg, value: i32) {
        self.emit(0x07, to, R0, 0, value);
    }

    /// `to &= value`.
    pub(crate) fn and(&mut self, to: Reg, value: i32) {
        self.emit(0x57, to, R0, 0, value);
    }

    /// `to ^= value`.
    pub(crate) fn xor(&mut self, to: Reg, value: i32) {
        self.emit(0xa7, to, R0, 0, value);
    }

    /// The low 16 bits of `to` from network order to that of the machine.
    pub(crate) fn network_to_host16(&mut self, to: Reg) {
        self.emit(0xdc, to, R0, 0, 16);
    }

    /// `to = *(from + offset)`.
    pub(crate) fn load(&mut self, width: Width, to: Reg, from: Reg, offset: i16) {
        self.emit(0x61 | width.code(), to, from, offset, 0);
    }

    /// `*(to + offset) = from`.
    pub(crate) fn store(&mut self, width: Width, to: Reg, offset: i16, from: Reg) {
        self.emit(0x63 | width.code(), to, from, offset, 0);
    }

    /// `to` becomes a map.
    pub(crate) fn map(&mut self, to: Reg, fd: i32) {
        self.wide(to, Reg::R1, fd, 0);
    }

    /// `to` becomes the address of the first value of an array.
    pub(crate) fn map_value(&mut self, to: Reg, fd: i32) {
        self.wide(to, Reg::R2, fd, 0);
    }

    fn wide(&mut self, to: Reg, kind: Reg, low: i32, high: i32) {
        self.emit(0x18, to, kind, 0, low);
        self.emit(0, R0, R0, 0, high);
    }

    /// Calls a helper of the kernel.
    pub(crate) fn call(&mut self, helper: Helper) {
        self.emit(0x85, R0, R0, 0, helper as i32);
    }

    /// Ends with what is in R0.
    pub(crate) fn exit(&mut self) {
        self.emit(0x95, R0, R0, 0, 0);
    }

    fn jump(&mut self, code: u8, one: Reg, other: Reg, immediate: i32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.emit(code, one, other, 0, immediate);
    }

    pub(crate) fn goto(&mut self, label: Label) {
        self.jump(0x05, R0, R0, 0, label);
    }

    /// If the low 32 bits are this value.
    pub(crate) fn if_equal(&mut self, one: Reg, value: u32, label: Label) {
        self.jump(0x16, one, R0, value as i32, label);
    }

    /// If the low 32 bits are not this value.
    pub(crate) fn if_not_equal(&mut self, one: Reg, value: u32, label: Label) {
        self.jump(0x56, one, R0, value as i32, label);
    }

    /// If all 64 bits are zero: no address.
    pub(crate) fn if_null(&mut self, one: Reg, label: Label) {
        self.jump(0x15, one, R0, 0, label);
    }

    /// If the low 32 bits of one are not less than those of the other, unsigned.
    pub(crate) fn if_not_below_register(&mut self, one: Reg, other: Reg, label: Label) {
        self.jump(0x3e, one, other, 0, label);
    }

    /// If one address lies behind the other.
    pub(crate) fn if_above_register(&mut self, one: Reg, other: Reg, label: Label) {
        self.jump(0x2d, one, other, 0, label);
    }

    /// The program, with all jumps in place.
    pub(crate) fn finish(mut self) -> Result<Vec<Insn>, Unassembled> {
        for (at, label) in &self.jumps {
            let place = self.labels[label.0].ok_or(Unassembled)?;
            let distance = place as i64 - *at as i64 - 1;
            self.instructions[*at].offset = i16::try_from(distance).map_err(|_| Unassembled)?;
        }
        Ok(self.instructions)
    }
}

/// Functions of the kernel that a program may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Helper {
    MapLookup = 1,
    Random = 7,
    RedirectMap = 51,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_lead_to_their_labels() {
        let mut a = Assembler::default();
        let (end, early) = (a.label(), a.label());
        a.if_equal(Reg::R1, 0xffff_fffe, end);
        a.goto(early);
        a.place(early);
        a.set(R0, 2);
        a.place(end);
        a.exit();
        let program = a.finish().unwrap();
        assert_eq!(program.iter().map(|insn| insn.offset).collect::<Vec<_>>(), [2, 0, 0, 0]);
        assert_eq!((program[0].code, program[0].immediate), (0x16, -2));
        assert_eq!(size_of::<Insn>(), 8);
    }

    #[test]
    fn a_label_without_a_place_is_noticed() {
        let mut a = Assembler::default();
        let nowhere = a.label();
        a.goto(nowhere);
        assert_eq!(a.finish(), Err(Unassembled));
    }

    #[test]
    fn a_jump_that_is_too_long_is_noticed() {
        let mut a = Assembler::default();
        let end = a.label();
        a.goto(end);
        (0..40_000).for_each(|_| a.exit());
        a.place(end);
        a.exit();
        assert_eq!(a.finish(), Err(Unassembled));
    }
}
