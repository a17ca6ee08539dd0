"""Curricular inactivation (paper 3.2): attention map, curriculum, fusion, and the gate on a backbone's features."""
