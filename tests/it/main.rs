//! Tidewire's promises, checked as a user would check them.

mod checker;
