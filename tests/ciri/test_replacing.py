"""ciri.replacing: whole files or none, with the rights that open() gives."""

import os
import stat
import tempfile

import pytest
import torch

from ciri.checkpoints import write_safetensors
from ciri.evaluation.store import write_json
from ciri.media import write_clip
from ciri.replacing import replacing
from ciri.training.attention_data import save
from ciri.training.run import RunFolder


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with replacing(target, ".txt") as part:
        part.write_text("new")
        assert target.read_text() == "old" and part.parent == tmp_path and part.suffix == ".txt"
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("written", [True, False])
def test_a_failed_write_leaves_the_target_and_nothing_else(tmp_path, written):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as part:
        if written:
            part.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_a_link_keeps_leading_to_where_it_led(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    try:
        link.symlink_to(tmp_path / "there" / "file")
    except OSError:
        pytest.skip("no links here")
    with replacing(link) as part:
        part.write_text("new")
    assert link.is_symlink() and (tmp_path / "there" / "file").read_text() == "new"


def by_a_private_file(path):
    """As safetensors writes: a file that only its owner may read takes the place of the one that was named."""
    with replacing(path) as part:
        handle, name = tempfile.mkstemp(dir=path.parent)
        os.close(handle)
        os.replace(name, part)


WRITERS = {
    "private": by_a_private_file,
    "weights.safetensors": lambda path: write_safetensors(path, {"a": torch.ones(2)}),
    "scores.json": lambda path: write_json(path, {"a": 1}),
    "clip.mp4": lambda path: write_clip(path, torch.zeros(2, 3, 16, 16)),
    "frames/00000.png": lambda path: write_clip(path.parent, torch.zeros(1, 3, 16, 16)),
    "checkpoints/step_00000001.pt": lambda path: RunFolder(path.parents[1], {}).save(1, 0.0, {}),
    "samples.npz": lambda path: save(path, []),
}


@pytest.mark.skipif(os.name != "posix", reason="files have no such rights here")
@pytest.mark.parametrize("umask", [0o022, 0o027])
@pytest.mark.parametrize("name", WRITERS)
def test_files_have_the_rights_that_open_gives(tmp_path, name, umask):
    before = os.umask(umask)
    try:
        for _ in range(2):  # a file that is there is replaced
            WRITERS[name](tmp_path / name)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask
