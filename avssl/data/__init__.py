"""Manifests, and batches of clips out of them."""
