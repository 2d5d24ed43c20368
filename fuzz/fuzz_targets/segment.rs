#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| laminar_sim::fuzz::run("segment", data));
