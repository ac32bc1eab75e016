"""Shares of a corpus with valid intervals: arrays in, arrays out, without torch."""
