"""Lets the CUDA-linked torchvision of PyPI import beside a CPU-only torch.

Copied into the virtual environment by ``scripts.environment`` and imported at start-up through a .pth file; it
acts when torchvision is first imported. Without it that import fails with "operator torchvision::nms does not
exist", because torchvision's compiled library asks for CUDA libraries and does not load.
"""

import importlib.abc
import sys


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    kept: list = []  # noqa: RUF012  (the operator declarations live as long as this object)

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            # declared only, so that torchvision's Python part imports; calling them raises
            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.kept.append(library)
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
