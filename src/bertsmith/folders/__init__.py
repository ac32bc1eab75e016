"""Runs, studies and other outputs on disk: claim, atomic writes, and layouts."""
