//! Checks UTF-8 across the borders of chunks.

use super::BodyError;

/// Bytes of a character that the border of a chunk has cut: at most three.
#[derive(Debug, Default)]
pub(crate) struct Utf8Checker {
    carry: [u8; 4],
    n_carry: usize,
    /// Offset of the next byte in the body.
    offset: usize,
}

impl Utf8Checker {
    /// Checks the next chunk.
    ///
    /// # Errors
    /// The offset of the first byte that is not UTF-8.
    pub(crate) fn push(&mut self, mut chunk: &[u8]) -> Result<(), BodyError> {
        while self.n_carry > 0 {
            let Some((&byte, rest)) = chunk.split_first() else { return Ok(()) };
            self.carry[self.n_carry] = byte;
            let carried = &self.carry[..=self.n_carry];
            match std::str::from_utf8(carried) {
                Ok(_) => self.n_carry = 0,
                Err(error) if error.error_len().is_none() => self.n_carry += 1,
                Err(_) => return Err(BodyError::Utf8 { offset: self.offset - self.n_carry }),
            }
            self.offset += 1;
            chunk = rest;
        }
        let start = self.offset;
        self.offset += chunk.len();
        let Err(error) = std::str::from_utf8(chunk) else { return Ok(()) };
        if error.error_len().is_some() {
            return Err(BodyError::Utf8 { offset: start + error.valid_up_to() });
        }
        let cut = &chunk[error.valid_up_to()..];
        self.carry[..cut.len()].copy_from_slice(cut);
        self.n_carry = cut.len();
        Ok(())
    }

    /// Checks the end of the body.
    ///
    /// # Errors
    /// If the body ends inside a character.
    pub(crate) fn finish(&self) -> Result<(), BodyError> {
        if self.n_carry == 0 {
            return Ok(());
        }
        Err(BodyError::Utf8 { offset: self.offset - self.n_carry })
    }
}
