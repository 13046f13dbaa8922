"""Protocols that measure trained encoders on labeled sets."""
