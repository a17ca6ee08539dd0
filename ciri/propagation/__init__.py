"""SVOS, the paper's first stage: one annotated frame in, a mask for every frame out."""
