//! Index objects: the older segments and images of a database.
