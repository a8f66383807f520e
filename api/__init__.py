"""The HTTP door: bodies in, stream entries out. 202 is said only after Redis has every row."""
