"""Scores, with their uncertainty, from arrays of class indices and probabilities. Needs no torch."""
