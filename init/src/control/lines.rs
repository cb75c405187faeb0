//! Whole lines out of what arrives in pieces.

/// A line longer than this is nobody's request.
const LONGEST: usize = 256;

/// Takes the whole lines; what is left begins the next one.
pub fn take(received: &mut Vec<u8>) -> Vec<String> {
    let whole = match received.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => {
            let rest = received.split_off(end + 1);
            std::mem::replace(received, rest)
        }
        None => Vec::new(),
    };
    if received.len() > LONGEST {
        received.clear();
    }
    String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_waits_for_its_end() {
        let mut received = b"\n1 hello\n2 th".to_vec();
        assert_eq!(take(&mut received), ["", "1 hello"]);
        assert!(take(&mut received).is_empty());
        received.extend_from_slice(b"aw\n");
        assert_eq!(take(&mut received), ["2 thaw"]);
        assert!(received.is_empty());
    }

    #[test]
    fn what_never_ends_is_forgotten() {
        let mut received = vec![b'x'; LONGEST + 1];
        assert!(take(&mut received).is_empty() && received.is_empty());
    }
}
