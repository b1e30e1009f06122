#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidewire_axum::fuzzing::token(bytes));
