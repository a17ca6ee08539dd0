"""Test-time refinement: the masks of one clip corrected by what the removal left behind (paper section 3.3)."""
