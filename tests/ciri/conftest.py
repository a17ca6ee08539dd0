"""What several tests read."""

import pytest
import torch

from ciri import media
from tests.ciri.videos import smooth_clip


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.mp4"
    media.write_clip(path, smooth_clip(), media.Clip(torch.empty(0), fps=30))
    return path
