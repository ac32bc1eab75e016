"""Kinds of text label, one module each behind one protocol."""
