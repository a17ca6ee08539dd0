"""A client of the shared server, and small inputs made on the fly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ciri.media import write_clip, write_png
from scripts.comfy_client import Client
from scripts.comfyui import ROOT


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.server)


@pytest.fixture
def client(server) -> Client:
    return Client(server.url)


@pytest.fixture
def bundled() -> dict:
    """The bundled workflow in API format."""
    return json.loads((ROOT / "workflows" / "api" / "one_shot_removal.json").read_text())


class Scene:
    """A bright square that glides over a fixed texture: where it is, and what it hides, is known."""

    def __init__(self, frames: int, height: int = 80, width: int = 128, side: int = 20):
        generator = torch.Generator().manual_seed(7)
        coarse = torch.rand((1, 3, height // 8, width // 8), generator=generator)
        self.background = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0.1, 0.7)[0]
        self.clip = self.background.repeat(frames, 1, 1, 1)
        self.masks = torch.zeros(frames, 1, height, width)
        for index in range(frames):
            left = round((width - side - 16) * (0.5 - 0.5 * np.cos(2 * np.pi * index / 48))) + 8
            top = height // 2 - side // 2
            self.masks[index, 0, top : top + side, left : left + side] = 1
        self.clip = torch.where(self.masks > 0, torch.tensor([0.95, 0.9, 0.2])[:, None, None], self.clip)

    def save(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write the clip and its first frame with the square cut out of the alpha channel."""
        video, painting = folder / f"{name}.mp4", folder / f"{name}.png"
        write_clip(video, self.clip)
        write_png(painting, painted(self.clip[0], self.masks[0]))
        return video, painting


def painted(frame: Tensor, mask: Tensor) -> np.ndarray:
    """uint8 (H, W, 4), transparent where the mask is 1, as ComfyUI's mask editor saves it."""
    rgba = torch.cat([frame, 1 - mask])
    return np.ascontiguousarray((255 * rgba).round().byte().permute(1, 2, 0).numpy())


@pytest.fixture
def upload_scene(client, tmp_path):
    """``upload_scene(graph, frames, name)``: put a scene into the graph's loaders; return the scene."""

    def put(graph: dict, frames: int, name: str = "scene", **size) -> Scene:
        scene = Scene(frames, **size)
        video, painting = scene.save(tmp_path, name)
        for node in graph.values():
            if node["class_type"] == "LoadVideo":
                node["inputs"]["file"] = client.upload(video)
            if node["class_type"] == "LoadImage":
                node["inputs"]["image"] = client.upload(painting)
        return scene

    return put
