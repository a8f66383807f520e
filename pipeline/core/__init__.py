"""The pure heart: frames in, frames out. No I/O, no clock, no randomness, no logging, no globals."""
