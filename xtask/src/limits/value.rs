//! Works out what constants are, for people.

use std::collections::HashMap;

use syn::{BinOp, Expr, Lit, UnOp};

use super::read::{Constant, tokens};

/// What an expression comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    Number(i128),
    /// A time in nanoseconds.
    Time(i128),
}

/// Constants by their last name. Two of the same name and different values are found by neither.
pub(super) struct Names(HashMap<String, Option<Value>>);

impl Names {
    pub(super) fn of(constants: &[Constant]) -> Self {
        let mut names = Self(HashMap::new());
        // One constant may use another: as many passes as the longest such chain.
        for _ in 0..4 {
            let mut found: HashMap<String, Option<Value>> = HashMap::new();
            for constant in constants {
                let Some(value) = names.value(&constant.expr) else { continue };
                let name = constant.name.rsplit("::").next().unwrap_or(&constant.name).to_owned();
                let slot = found.entry(name).or_insert(Some(value));
                if *slot != Some(value) {
                    *slot = None;
                }
            }
            names.0 = found;
        }
        names
    }

    pub(super) fn named(&self, name: &str) -> Option<Value> {
        self.0.get(name).copied().flatten()
    }

    pub(super) fn value(&self, expr: &Expr) -> Option<Value> {
        match expr {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Int(number) => number.base10_parse().ok().map(Value::Number),
                _ => None,
            },
            Expr::Paren(inner) => self.value(&inner.expr),
            Expr::Cast(inner) => self.value(&inner.expr),
            Expr::Unary(inner) if matches!(inner.op, UnOp::Neg(_)) => match self.value(&inner.expr)? {
                Value::Number(number) => Some(Value::Number(-number)),
                Value::Time(_) => None,
            },
            Expr::Binary(sum) => self.binary(sum),
            Expr::Path(path) => match &*tokens(path) {
                "u8::MAX" => Some(Value::Number(u8::MAX.into())),
                "u16::MAX" => Some(Value::Number(u16::MAX.into())),
                "i32::MAX" => Some(Value::Number(i32::MAX.into())),
                "u32::MAX" => Some(Value::Number(u32::MAX.into())),
                "Duration::ZERO" => Some(Value::Time(0)),
                name => self.named(name.rsplit("::").next()?),
            },
            Expr::MethodCall(call) if call.method == "div_ceil" => {
                let (a, b) = (self.value(&call.receiver)?, self.value(call.args.first()?)?);
                let (Value::Number(a), Value::Number(b @ 1..)) = (a, b) else { return None };
                Some(Value::Number(a.checked_add(b - 1)? / b))
            }
            Expr::Call(call) => {
                let Value::Number(count) = self.value(call.args.first()?)? else { return None };
                let nanoseconds = match &*tokens(&call.func).rsplit("::").next()?.to_owned() {
                    "from_secs" => 1_000_000_000,
                    "from_millis" => 1_000_000,
                    "from_micros" => 1_000,
                    "from_nanos" => 1,
                    "from_mins" => 60_000_000_000,
                    "from_hours" => 3_600_000_000_000,
                    "Some" => return Some(Value::Number(count)),
                    _ => return None,
                };
                Some(Value::Time(count.checked_mul(nanoseconds)?))
            }
            _ => None,
        }
    }

    fn binary(&self, sum: &syn::ExprBinary) -> Option<Value> {
        let (Value::Number(a), Value::Number(b)) = (self.value(&sum.left)?, self.value(&sum.right)?) else {
            return None;
        };
        let shift = || u32::try_from(b).ok().filter(|shift| *shift < 127);
        let number = match sum.op {
            BinOp::Add(_) => a.checked_add(b),
            BinOp::Sub(_) => a.checked_sub(b),
            BinOp::Mul(_) => a.checked_mul(b),
            BinOp::Div(_) => a.checked_div(b),
            BinOp::Shl(_) => a.checked_mul(1 << shift()?),
            BinOp::Shr(_) => Some(a >> shift()?),
            _ => None,
        }?;
        Some(Value::Number(number))
    }
}

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unit {
    Bytes,
    Milliseconds,
    Time,
    Count,
    None,
}

impl Unit {
    /// From the type, the name and the words.
    pub(super) fn of(ty: &str, name: &str, doc: &str) -> Self {
        let name = name.to_lowercase();
        let number = ["usize", "u8", "u16", "u32", "u64", "i32", "i64"].contains(&ty);
        let words = || doc.split(|c: char| !c.is_ascii_alphabetic());
        match () {
            () if ty == "Duration" => Self::Time,
            () if !number => Self::None,
            () if name.ends_with("_ms") => Self::Milliseconds,
            () if ["_messages", "_packets"].iter().any(|end| name.ends_with(end)) => Self::Count,
            () if ["bytes", "headroom"].iter().any(|part| name.contains(part)) => Self::Bytes,
            () if words().any(|word| word.eq_ignore_ascii_case("bytes")) => Self::Bytes,
            () => Self::Count,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Milliseconds => "ms",
            Self::Time => "time",
            Self::Count => "count",
            Self::None => "",
        }
    }

    /// With the largest unit that leaves a whole number.
    pub(super) fn show(self, value: Value) -> String {
        let scaled = |number: i128, units: &[(i128, &str)]| {
            let fits = units.iter().find(|(scale, _)| number != 0 && number % scale == 0);
            fits.map_or_else(|| number.to_string(), |(scale, unit)| format!("{} {unit}", number / scale))
        };
        match (value, self) {
            (Value::Time(0), _) => "0".to_owned(),
            (Value::Time(time), _) => {
                let units = [
                    (3_600_000_000_000, "h"),
                    (1_000_000_000, "s"),
                    (1_000_000, "ms"),
                    (1_000, "µs"),
                    (1, "ns"),
                ];
                scaled(time, &units)
            }
            (Value::Number(number), Self::Bytes) => {
                scaled(number, &[(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")])
            }
            (Value::Number(number), Self::Milliseconds) => format!("{number} ms"),
            (Value::Number(number), _) => number.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Option<Value> {
        let base = Constant {
            name: "limits::BASE".to_owned(),
            file: String::new(),
            doc: String::new(),
            ty: "usize".to_owned(),
            expr: syn::parse_str("3").unwrap(),
            documented: true,
        };
        Names::of(&[base]).value(&syn::parse_str(text).unwrap())
    }

    #[test]
    fn expressions_are_worked_out() {
        assert_eq!(value("(1 << 4) * crate::BASE + 0x10 - 1"), Some(Value::Number(63)));
        assert_eq!(value("Duration::from_millis(2 * 10)"), Some(Value::Time(20_000_000)));
        assert_eq!(value("crate::BASE.div_ceil(2) as u64"), Some(Value::Number(2)));
        assert_eq!(value("std::env::args().count()"), None);
        assert_eq!(value("UNKNOWN + 1"), None);
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(Unit::Bytes.show(Value::Number(64 << 20)), "64 MiB");
        assert_eq!(Unit::Bytes.show(Value::Number(3072)), "3 KiB");
        assert_eq!(Unit::Bytes.show(Value::Number(107)), "107 B");
        assert_eq!(Unit::Time.show(Value::Time(20_000)), "20 µs");
        assert_eq!(Unit::Time.show(Value::Time(86_400_000_000_000)), "24 h");
        assert_eq!(Unit::of("usize", "BACKLOG", "Connections."), Unit::Count);
        assert_eq!(Unit::of("u32", "recv_window", "Payload bytes."), Unit::Bytes);
        assert_eq!(Unit::of("u32", "window_messages", "Messages."), Unit::Count);
    }
}
