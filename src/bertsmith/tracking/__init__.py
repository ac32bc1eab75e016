"""Experiment trackers: a listener on the events, and what it needs of each tracker."""
