"""Losses, and where their positives and negatives come from."""
