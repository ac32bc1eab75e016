"""Predict, explain and export with a fitted model."""
