"""Residue detection (paper 3.3): what of the target is still visible after it was removed."""
