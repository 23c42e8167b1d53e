//! Images: every page of a database at one Position.
