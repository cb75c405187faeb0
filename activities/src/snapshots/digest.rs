//! The two kinds of digest, so that one never stands in for the other.

use std::fmt;

/// Declares a 32-byte digest that shows as 64 lower-case hex digits.
macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// `None` for anything but 64 lower-case hex digits.
            pub fn parse(hex: &str) -> Option<Self> {
                parse_hex(hex).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

digest!(
    /// BLAKE3 of a blob: a file's content, or one chunk of it.
    BlobId
);
digest!(
    /// SHA-256 of a pack's stored bytes: its name, and what object storage checks an upload against.
    PackId
);

impl BlobId {
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }
}

fn parse_hex(hex: &str) -> Option<[u8; 32]> {
    let hex = hex.as_bytes();
    let mut bytes = [0; 32];
    if hex.len() != 64 || hex.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = (digit(digits[0])? << 4 | digit(digits[1])?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_written_and_read_as_lower_case_hex() {
        let id = BlobId::of(b"x");
        assert_eq!(BlobId::parse(&id.to_string()), Some(id));
        assert_eq!(id.to_string(), blake3::hash(b"x").to_hex().as_str());
        assert_eq!(PackId::parse(&id.to_string().to_uppercase()), None);
        assert_eq!(PackId::parse(&"0".repeat(63)), None);
        assert_eq!(PackId::parse(&"g".repeat(64)), None);
    }
}
