//! Bytes of a document that are read without a look at what is around them: spaces, text and escapes of strings.

/// The byte that an escape with this letter denotes, if it is a single byte.
pub(super) fn unescaped(byte: u8) -> Option<u8> {
    Some(match byte {
        b'"' | b'\\' | b'/' => byte,
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        _ => return None,
    })
}

/// The part of `text` after the spaces at its start.
pub(super) fn after_space(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = text {
        text = rest;
    }
    text
}

/// Number of leading bytes that need no special treatment in a string.
pub(crate) fn plain_prefix(bytes: &[u8]) -> usize {
    // Keys, words such as roles, and text between escapes are short.
    let n_leading = bytes.first_chunk().map_or(0, |word| n_plain_in_word(*word));
    if (1..8).contains(&n_leading) {
        return n_leading;
    }
    let rest = &bytes[n_leading..];
    let rest = &rest[..memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len())];
    let is_control = |byte: &u8| *byte < 0x20;
    // No early exit, so that the compiler compares many bytes at once.
    let n_plain = if rest.iter().fold(false, |found, byte| found | is_control(byte)) {
        rest.iter().position(is_control).unwrap_or_default()
    } else {
        rest.len()
    };
    n_leading + n_plain
}

/// Compares eight bytes at once: their highest bits then show which are not plain. A borrow spoils
/// bits above the first such byte only.
fn n_plain_in_word(bytes: [u8; 8]) -> usize {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    let word = u64::from_le_bytes(bytes);
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit)) & !word;
    let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let special = (below(word, 0x20) | equal(b'"') | equal(b'\\')) & (ONES << 7);
    (special.trailing_zeros() / 8) as usize
}

#[cfg(test)]
mod tests {
    use super::plain_prefix;

    #[test]
    fn text_is_plain_up_to_the_first_special_byte() {
        for n_bytes in 0..100 {
            assert_eq!(plain_prefix(&vec![0xff; n_bytes]), n_bytes, "nothing is special");
            for first in 0..n_bytes {
                for special in [b'"', b'\\', 0x00, 0x1f] {
                    let mut text = vec![b' '; n_bytes];
                    (text[first], text[n_bytes - 1]) = (special, b'"');
                    assert_eq!(plain_prefix(&text), first, "{special:#x} of {n_bytes} bytes");
                }
            }
        }
    }
}
