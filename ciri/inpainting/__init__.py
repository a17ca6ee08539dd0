"""Backbones that fill what the inactivation map covers, and what runs them over a clip."""
