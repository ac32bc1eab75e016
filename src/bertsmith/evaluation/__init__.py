"""Metrics with confidence intervals, from arrays of class indices and probabilities; imports no torch."""
