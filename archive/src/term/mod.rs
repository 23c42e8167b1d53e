//! Claiming, closing and inheriting terms; walking the journal of a term.
