"""Residue: what the removal left of the target, found and scored (paper section 3.3)."""
