"""CIRI: one-shot object removal from video (curricular inactivation, residue-aware; ICCV 2023).

The library knows nothing of ComfyUI: it takes tensors, a device, a dtype and a progress callback, and gives
tensors back. It never prints, never reads global settings and never touches the network.

Shapes throughout: frames float32 (T, 3, H, W) in [0, 1]; masks float32 (T, 1, H, W) in [0, 1], 1 = target.
"""

__version__ = "0.1.0"
