"""Tissue first, contrast second: a companion to Lüpke et al. 2024 (arXiv 2409.13532).

The arrows between modules point one way, physics at the bottom:
``physics`` ← ``vae`` ← ``runs``; ``diffusion`` knows latents, not MRI.
"""

__version__ = "0.1.0"
