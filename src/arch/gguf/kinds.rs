//! The storage types of GGUF tensors: their numbers, names, and how many bytes a block of values takes.

/// How a tensor's values are stored; only types that can be computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the names are ggml's")]
#[expect(missing_docs, reason = "each is ggml's type of that name")]
pub enum Type {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// Type, number in the file, name, values a block, bytes a block.
const SUPPORTED: [(Type, u32, &str, u64, u64); 13] = [
    (Type::F32, 0, "F32", 1, 4),
    (Type::F16, 1, "F16", 1, 2),
    (Type::BF16, 30, "BF16", 1, 2),
    (Type::Q4_0, 2, "Q4_0", 32, 18),
    (Type::Q4_1, 3, "Q4_1", 32, 20),
    (Type::Q5_0, 6, "Q5_0", 32, 22),
    (Type::Q5_1, 7, "Q5_1", 32, 24),
    (Type::Q8_0, 8, "Q8_0", 32, 34),
    (Type::Q2_K, 10, "Q2_K", 256, 84),
    (Type::Q3_K, 11, "Q3_K", 256, 110),
    (Type::Q4_K, 12, "Q4_K", 256, 144),
    (Type::Q5_K, 13, "Q5_K", 256, 176),
    (Type::Q6_K, 14, "Q6_K", 256, 210),
];

/// Types that exist and are refused by name.
const OTHERS: [(u32, &str); 19] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

impl Type {
    /// The type of a number; `Err` holds the name of one that exists but is not supported, if it exists.
    pub(super) fn of(number: u32) -> Result<Self, Option<&'static str>> {
        SUPPORTED
            .into_iter()
            .find(|row| row.1 == number)
            .map(|row| row.0)
            .ok_or_else(|| OTHERS.into_iter().find(|other| other.0 == number).map(|other| other.1))
    }

    fn row(self) -> (&'static str, u64, u64) {
        SUPPORTED.into_iter().find(|row| row.0 == self).map_or(("?", 1, 1), |row| (row.2, row.3, row.4))
    }

    /// Its number in the file.
    pub(super) fn number(self) -> u32 {
        SUPPORTED.into_iter().find(|row| row.0 == self).map_or(0, |row| row.1)
    }

    /// As ggml writes it.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// Values in a block.
    pub fn block(self) -> u64 {
        self.row().1
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> u64 {
        self.row().2
    }

    /// The names of all.
    pub(super) fn supported() -> String {
        SUPPORTED.map(|row| row.2).join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_own_row_and_number() {
        for (kind, number, name, block, bytes) in SUPPORTED {
            assert_eq!(Type::of(number), Ok(kind));
            assert_eq!(kind.number(), number);
            assert_eq!((kind.name(), kind.block(), kind.block_bytes()), (name, block, bytes));
        }
        assert_eq!(Type::of(20), Err(Some("IQ4_NL")));
        assert_eq!(Type::of(4), Err(None));
    }
}
