"""Positives that are found: agreement sets, tracks, and votes of neighbors."""
