//! Journal objects, claims, fences and term states.
