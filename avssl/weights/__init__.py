"""Trained encoders and heads with how their clips are read: loaded, exported, converted from published checkpoints."""
