"""Optical flow between neighbouring frames, its consistency, and its completion inside a hole."""
