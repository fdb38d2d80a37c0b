//! Reading and writing the messages of the coordination protocol, once for all targets: the code that
//! is made for each of these types is what takes long to build.

use serde_json::Result;
use warren_control_types::{
    DerpMap, EarlyNoise, FilterRule, Hostinfo, MapRequest, MapResponse, Netmap, Node,
    OverTlsPublicKeyResponse, PingResponse, RegisterRequest, RegisterResponse, SshPolicy,
};

/// A message of the coordination protocol.
pub trait Message: Sized {
    /// Reads one.
    ///
    /// # Errors
    /// The bytes are not such a message.
    fn read(json: &[u8]) -> Result<Self>;

    /// Writes it. Every message has a form.
    fn write(&self) -> Vec<u8>;
}

macro_rules! messages {
    ($($name:ty)*) => {
        $(impl Message for $name {
            #[inline(never)]
            fn read(json: &[u8]) -> Result<Self> {
                serde_json::from_slice(json)
            }

            #[inline(never)]
            fn write(&self) -> Vec<u8> {
                serde_json::to_vec(self).expect("a message has a form")
            }
        })*
    };
}

messages! {
    DerpMap EarlyNoise Hostinfo MapRequest MapResponse Netmap Node OverTlsPublicKeyResponse
    PingResponse RegisterRequest RegisterResponse SshPolicy Vec<FilterRule>
}
