"""Shares of a corpus with honest intervals: arrays in, arrays out, without torch."""
