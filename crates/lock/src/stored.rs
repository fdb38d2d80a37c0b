//! The form of messages on disk, one file for each message. It is that of the official
//! client, so that a machine that changes programs keeps its lock.
//!
//! A file is a CBOR map: 2 is the message, 3 the time at which it was stored and 4 the
//! time at which it was removed, in seconds since 1970; zero times are omitted. The
//! official client keeps files of messages that it removed. Field 1 was used by its
//! earlier versions and has no meaning.

use crate::aum::{Aum, MAX_AUM};
use crate::cbor::{DecodeError, FieldWriter, Reader};

/// The most bytes of a file.
pub const MAX_STORED_AUM: usize = MAX_AUM + (64 << 10);

/// A message with the time at which it was stored.
#[derive(Debug, Clone)]
pub struct StoredAum {
    /// The message.
    pub aum: Aum,
    /// Seconds since 1970.
    pub stored_at: u64,
}

impl StoredAum {
    /// The content of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = FieldWriter::default();
        fields.field(2).append(self.aum.as_bytes());
        if self.stored_at != 0 {
            fields.field(3).uint(self.stored_at);
        }
        fields.finish()
    }

    /// Reads the content of a file; `None` if the message was removed.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are no such file, or the message is not valid.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, DecodeError> {
        if bytes.len() > MAX_STORED_AUM {
            return Err(DecodeError::TooLarge);
        }
        let (mut aum, mut stored_at, mut removed_at) = (None, 0, 0);
        let mut reader = Reader::new(bytes);
        reader.fields(|reader, number| {
            match number {
                1 => drop(reader.raw()?),
                2 => aum = Some(reader.raw()?),
                3 => stored_at = reader.uint()?,
                4 => removed_at = reader.uint()?,
                _ => return Err(DecodeError::UnknownField),
            }
            Ok(())
        })?;
        reader.finish()?;
        match aum {
            Some(aum) if removed_at == 0 => Ok(Some(Self {
                aum: Aum::decode(aum)?,
                stored_at,
            })),
            Some(_) => Ok(None),
            None => Err(DecodeError::MissingField),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::{Change, LockSecret};

    fn stored(stored_at: u64) -> StoredAum {
        let aum = Aum::unsigned(None, Change::NoOp).signed_by(&LockSecret::from_seed(&[1; 32]));
        StoredAum { aum, stored_at }
    }

    #[test]
    fn files_of_removed_messages_are_passed_over_and_old_fields_ignored() {
        let aum = stored(7).aum;
        let file = |head: &[u8], tail: &[u8]| [head, aum.as_bytes(), tail].concat();
        let read = StoredAum::decode(&file(&[0xa1, 2], &[])).unwrap().unwrap();
        assert_eq!((read.aum.hash(), read.stored_at), (aum.hash(), 0));
        // An array of two texts in field 1, and times.
        let old = file(&[0xa3, 1, 0x82, 0x61, b'a', 0x40, 2], &[3, 9]);
        assert_eq!(StoredAum::decode(&old).unwrap().unwrap().stored_at, 9);
        let removed = file(&[0xa3, 2], &[3, 9, 4, 10]);
        assert!(StoredAum::decode(&removed).unwrap().is_none());
        assert_eq!(
            StoredAum::decode(&[0xa1, 3, 9]).err(),
            Some(DecodeError::MissingField)
        );
        assert!(StoredAum::decode(&file(&[0xa1, 2], &[0])).is_err());
        assert!(StoredAum::decode(&vec![0; MAX_STORED_AUM + 1]).is_err());
    }

    proptest! {
        #[test]
        fn files_are_read_back(stored_at: u64) {
            let read = StoredAum::decode(&stored(stored_at).encode()).unwrap().unwrap();
            prop_assert_eq!(read.stored_at, stored_at);
            prop_assert_eq!(read.aum, stored(0).aum);
        }

        #[test]
        fn damaged_files_do_not_panic(
            mut bytes in Just(stored(77).encode()),
            at: prop::sample::Index,
            value: u8,
            cut: prop::sample::Index,
        ) {
            let at = at.index(bytes.len());
            bytes[at] = value;
            bytes.truncate(cut.index(bytes.len()) + 1);
            drop(StoredAum::decode(&bytes));
        }
    }
}
