"""The Inception network that FID is defined on, and its weights."""
