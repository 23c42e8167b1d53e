//! Whose a request is, wherever something is counted by principal: a member's with all their tokens and signed
//! statements, or a token's that stands for nobody.

use sha2::{Digest as _, Sha256};
use tidelog_engine::system::tokens::TokenInfo;

/// Names a principal; of no use but to count by.
pub(crate) type Caller = [u8; 16];

/// The principal that a token is counted as.
pub(crate) fn caller(token: &TokenInfo) -> Caller {
    let Some(member) = &token.principal else {
        return token.id;
    };
    let mut hash = Sha256::new();
    hash.update(token.namespace.map_or([0; 16], |id| *id.as_bytes()));
    hash.update(member);
    let mut caller = [0; 16];
    for (to, from) in caller.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    caller
}
