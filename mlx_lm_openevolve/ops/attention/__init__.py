"""Attention: over float, quantised and latent caches."""
