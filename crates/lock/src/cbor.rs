//! The part of CBOR (RFC 8949) that tailnet lock uses, in the canonical form of CTAP2:
//! definite lengths, shortest heads, map keys in ascending order of their encoding, no
//! tags. [`Reader`] refuses everything else.

/// The deepest nesting of arrays and maps.
const MAX_DEPTH: u8 = 16;
/// The most elements of an array.
const MAX_ELEMENTS: u64 = 4096;
/// The most pairs of a map.
const MAX_PAIRS: u64 = 1024;

const UINT: u8 = 0;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const NULL: u8 = 0xf6;

/// Bytes are not a message of tailnet lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end within a value.
    #[error("the message ends within a value")]
    Truncated,
    /// Bytes follow the message.
    #[error("bytes follow the message")]
    Trailing,
    /// The value has another type than the field.
    #[error("a value has the wrong type")]
    Type,
    /// The encoding is not canonical: a longer head than needed, map keys out of order
    /// or twice, an empty or null value that has to be omitted.
    #[error("the encoding is not canonical")]
    NotCanonical,
    /// Arrays and maps are nested more than 16 deep.
    #[error("the message is nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
    /// More than 4,096 elements in an array, or 1,024 pairs in a map.
    #[error("an array or map is too long")]
    TooLong,
    /// The message has more bytes than its kind may have.
    #[error("the message is too large")]
    TooLarge,
    /// A field that this version does not know.
    #[error("the message has an unknown field")]
    UnknownField,
    /// A field that every message has is missing.
    #[error("the message lacks a field")]
    MissingField,
    /// The message breaks a rule of its kind.
    #[error("{0}")]
    Invalid(&'static str),
}

/// Appends values.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    pub(crate) fn finish(self) -> Vec<u8> {
        self.out
    }

    fn head(&mut self, major: u8, value: u64) {
        let bytes = value.to_be_bytes();
        let (additional, tail): (u8, &[u8]) = match value {
            0..24 => (bytes[7], &[]),
            24..0x100 => (24, &bytes[7..]),
            0x100..0x1_0000 => (25, &bytes[6..]),
            0x1_0000..0x1_0000_0000 => (26, &bytes[4..]),
            _ => (27, &bytes),
        };
        self.out.push(major << 5 | additional);
        self.out.extend_from_slice(tail);
    }

    pub(crate) fn uint(&mut self, value: u64) {
        self.head(UINT, value);
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.head(BYTES, value.len() as u64);
        self.out.extend_from_slice(value);
    }

    pub(crate) fn bytes_or_null(&mut self, value: Option<&[u8]>) {
        match value {
            Some(value) => self.bytes(value),
            None => self.out.push(NULL),
        }
    }

    pub(crate) fn text(&mut self, value: &str) {
        self.head(TEXT, value.len() as u64);
        self.out.extend_from_slice(value.as_bytes());
    }

    pub(crate) fn array(&mut self, elements: usize) {
        self.head(ARRAY, elements as u64);
    }

    pub(crate) fn map(&mut self, pairs: usize) {
        self.head(MAP, pairs as u64);
    }

    /// Appends what another writer made.
    pub(crate) fn append(&mut self, encoded: &[u8]) {
        self.out.extend_from_slice(encoded);
    }
}

/// Writes a map whose keys are small integers, in the order of the calls, which must
/// ascend.
#[derive(Debug, Default)]
pub(crate) struct FieldWriter {
    pairs: usize,
    body: Writer,
}

impl FieldWriter {
    /// Starts the field with this number; its value follows.
    pub(crate) fn field(&mut self, number: u64) -> &mut Writer {
        self.pairs += 1;
        self.body.uint(number);
        &mut self.body
    }

    /// Appends the map to `out`.
    pub(crate) fn finish_into(self, out: &mut Writer) {
        out.map(self.pairs);
        out.append(&self.body.out);
    }

    /// The map.
    pub(crate) fn finish(self) -> Vec<u8> {
        let mut out = Writer::default();
        self.finish_into(&mut out);
        out.finish()
    }
}

/// Reads values, and refuses what [`Writer`] would have written differently.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    depth: u8,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            depth: 0,
        }
    }

    /// Refuses bytes behind the last value.
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing)
        }
    }

    /// How many bytes are not read yet.
    pub(crate) fn unread(&self) -> usize {
        self.rest.len()
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn head(&mut self, wanted: u8) -> Result<u64, DecodeError> {
        let first = *self.rest.first().ok_or(DecodeError::Truncated)?;
        if first >> 5 != wanted {
            return Err(DecodeError::Type);
        }
        self.take(1)?;
        let (length, least) = match first & 0x1f {
            small @ 0..24 => return Ok(u64::from(small)),
            24 => (1, 24),
            25 => (2, 0x100),
            26 => (4, 0x1_0000),
            27 => (8, 0x1_0000_0000),
            // Reserved values and indefinite lengths.
            _ => return Err(DecodeError::NotCanonical),
        };
        let value = self
            .take(length)?
            .iter()
            .fold(0, |value: u64, byte| value << 8 | u64::from(*byte));
        if value < least {
            return Err(DecodeError::NotCanonical);
        }
        Ok(value)
    }

    fn string(&mut self, major: u8) -> Result<&'a [u8], DecodeError> {
        let length = self.head(major)?;
        let length = usize::try_from(length).map_err(|_| DecodeError::Truncated)?;
        self.take(length)
    }

    pub(crate) fn uint(&mut self) -> Result<u64, DecodeError> {
        self.head(UINT)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        self.string(BYTES)
    }

    /// Bytes of a field that is omitted when empty.
    pub(crate) fn some_bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let bytes = self.bytes()?;
        if bytes.is_empty() {
            return Err(DecodeError::NotCanonical);
        }
        Ok(bytes)
    }

    pub(crate) fn bytes_or_null(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        if self.rest.first() == Some(&NULL) {
            self.take(1)?;
            return Ok(None);
        }
        self.bytes().map(Some)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.string(TEXT)?).map_err(|_| DecodeError::Type)
    }

    /// Any value, as its bytes.
    pub(crate) fn raw(&mut self) -> Result<&'a [u8], DecodeError> {
        let before = self.rest;
        self.skip()?;
        Ok(&before[..before.len() - self.rest.len()])
    }

    fn skip(&mut self) -> Result<(), DecodeError> {
        match self.rest.first().ok_or(DecodeError::Truncated)? >> 5 {
            UINT => self.uint().map(drop),
            TEXT => self.text().map(drop),
            ARRAY => self.array(Self::skip).map(drop),
            MAP => self.map(|reader| {
                reader.skip()?;
                reader.skip()
            }),
            _ => self.bytes_or_null().map(drop),
        }
    }

    fn enter(&mut self) -> Result<(), DecodeError> {
        if self.depth == MAX_DEPTH {
            return Err(DecodeError::TooDeep);
        }
        self.depth += 1;
        Ok(())
    }

    /// Reads an array with `element`, once for each element.
    pub(crate) fn array<T>(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let length = self.head(ARRAY)?;
        if length > MAX_ELEMENTS {
            return Err(DecodeError::TooLong);
        }
        self.enter()?;
        let out = (0..length)
            .map(|_| element(self))
            .collect::<Result<_, _>>()?;
        self.depth -= 1;
        Ok(out)
    }

    fn map(
        &mut self,
        mut pair: impl FnMut(&mut Self) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        let length = self.head(MAP)?;
        if length > MAX_PAIRS {
            return Err(DecodeError::TooLong);
        }
        self.enter()?;
        for _ in 0..length {
            pair(self)?;
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads a map whose keys are small integers with `field`, which gets the number
    /// of each field and reads its value.
    pub(crate) fn fields(
        &mut self,
        mut field: impl FnMut(&mut Self, u64) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        let mut last = None;
        self.map(|reader| {
            let number = reader.uint()?;
            if last >= Some(number) {
                return Err(DecodeError::NotCanonical);
            }
            last = Some(number);
            field(reader, number)
        })
    }

    /// Reads a map from text to text. Shorter keys come first.
    pub(crate) fn text_map(&mut self) -> Result<Vec<(&'a str, &'a str)>, DecodeError> {
        let mut out: Vec<(&'a str, &'a str)> = Vec::new();
        self.map(|reader| {
            let key = reader.text()?;
            if let Some((last, _)) = out.last()
                && (last.len(), *last) >= (key.len(), key)
            {
                return Err(DecodeError::NotCanonical);
            }
            out.push((key, reader.text()?));
            Ok(())
        })?;
        if out.is_empty() {
            return Err(DecodeError::NotCanonical);
        }
        Ok(out)
    }
}
