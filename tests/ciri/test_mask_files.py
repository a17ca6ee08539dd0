"""Masks as people and programs write them, and which of them belong to the frames of a part of a clip."""

import cv2
import numpy as np
import pytest
import torch

from ciri import media
from ciri.mask_files import read_mask, read_masks


def test_mask_kinds(tmp_path):
    shape = np.zeros((8, 8), np.uint8)
    shape[2:5, 3:7] = 1
    target = torch.from_numpy(shape.astype(np.float32))

    def read(image):
        cv2.imwrite(str(tmp_path / "mask.png"), image)
        return read_mask(tmp_path / "mask.png")

    photo = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    mask, notes = read(np.dstack([photo, 255 * (1 - shape)]))  # ComfyUI's mask editor: transparent where painted
    assert torch.equal(mask, target) and notes == []
    mask, notes = read(255 * shape)
    assert torch.equal(mask, target) and notes == []
    mask, notes = read(np.dstack([255 * shape] * 3))
    assert torch.equal(mask, target) and notes == []
    mask, notes = read(np.dstack([255 * shape] * 3 + [np.full_like(shape, 255)]))  # opaque RGBA
    assert torch.equal(mask, target) and notes == []
    mask, notes = read(shape)  # label numbers
    assert torch.equal(mask, target) and "0 to 1" in notes[0]
    mask, notes = read(np.dstack([0 * shape, 0 * shape, 128 * shape]))  # a coloured annotation
    assert torch.equal(mask, target) and "colour" in notes[0]
    mask, notes = read(np.uint8(shape * 200))  # soft grey levels stay
    assert torch.equal(mask, target * (200 / 255)) and notes == []
    assert not read(np.zeros((8, 8), np.uint8))[0].any()
    # painted in ComfyUI on a picture that is white nearly everywhere
    mask, notes = read(np.dstack([np.uint8([254]) * np.ones((8, 8, 3), np.uint8), 255 * (1 - shape)]))
    assert torch.equal(mask, target) and notes == []


@pytest.mark.parametrize("white", [np.uint8(255), np.uint16(65535)])
def test_white_on_a_transparent_ground_is_the_object(tmp_path, white):
    shape = np.zeros((8, 8), white.dtype)
    shape[2:5, 3:7] = 1
    for number, image in enumerate([shape, 0 * shape]):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.dstack([white * image] * 4))
    mask, notes = read_mask(tmp_path / "0.png")
    assert torch.equal(mask, torch.from_numpy(shape.astype(np.float32))) and "opaque" in notes[0]
    # the object is gone: the second image is transparent everywhere
    masks, notes = read_masks(tmp_path)
    assert masks.sum((1, 2, 3)).tolist() == [12, 0] and len(notes) == 1


def test_an_image_is_read_alike_for_one_frame_and_for_a_clip_of_one(tmp_path):
    shape = np.zeros((8, 8), np.uint8)
    shape[2:5, 3:7] = 1
    photo = np.full((8, 8, 3), 200, np.uint8)
    painted, white = np.dstack([photo, 255 * (1 - shape)]), np.dstack([255 * shape] * 4)
    for image in (painted, white, shape, np.dstack([0 * shape, 0 * shape, 128 * shape])):
        cv2.imwrite(str(tmp_path / "mask.png"), image)
        (masks, notes), (mask, same) = read_masks(tmp_path / "mask.png"), read_mask(tmp_path / "mask.png")
        assert torch.equal(masks, torch.from_numpy(shape.astype(np.float32))[None, None])
        assert torch.equal(masks[0, 0], mask) and notes == same


@pytest.mark.parametrize("label", [1, 100, 1000])
def test_labels_of_16_bits(tmp_path, label):
    shape = np.zeros((8, 8), np.uint16)
    shape[2:5, 3:7] = 1
    cv2.imwrite(str(tmp_path / "labels.png"), label * shape)
    mask, notes = read_mask(tmp_path / "labels.png")
    assert torch.equal(mask, torch.from_numpy(shape.astype(np.float32))) and f"0 to {label}" in notes[0]
    cv2.imwrite(str(tmp_path / "grey.png"), np.uint16(50000) * shape)
    assert read_mask(tmp_path / "grey.png")[0].max() == pytest.approx(50000 / 65535)


def test_masks_of_a_folder(tmp_path):
    for index, size in enumerate([2, 3, 4]):
        image = np.zeros((8, 8), np.uint8)
        image[:size, :size] = 255
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
    masks, notes = read_masks(tmp_path, start=1)
    assert masks.shape == (2, 1, 8, 8) and masks.sum((1, 2, 3)).tolist() == [9, 16] and notes == []


def a_part(start, count, names=(), total=None):
    """Frames start, start + 1, ... of a clip of ten."""
    return media.Clip(torch.zeros(count, 3, 2, 2), names=list(names), start=start, total=total)


@pytest.mark.parametrize(
    ("numbers", "start", "count", "names", "first", "note"),
    [
        (range(10), 3, 4, (), 3, ""),  # masks of the whole clip
        (range(10), 3, None, (), 3, ""),
        (range(1, 11), 3, 4, (), 4, "00004.png was taken as the mask of frame 3"),  # the same, counted from 1
        (range(1, 11), 3, None, (), 4, "00004.png"),
        (range(1, 11), 3, 4, ("00004", "00005", "00006", "00007"), 4, ""),  # and so are the frames
        (range(3, 10), 3, None, (), 3, ""),  # written with --start 3
        (range(3, 10), 3, 4, (), 3, ""),  # and used for fewer frames
        (range(3, 10), 5, 4, (), 5, ""),  # and from a later one on
        (range(1, 10), 1, None, (), 1, "00001.png"),
        (range(7), 3, None, (), 0, "00000.png was taken as the mask of frame 3"),  # of this part, by another tool
        (range(100, 107), 3, None, (), 100, "00100.png"),
        (range(103, 110), 3, 4, ("00103", "00104", "00105", "00106"), 103, ""),
        (range(100, 110), 3, 4, ("00103", "00104", "00105", "00106"), 103, ""),
        (range(10), 0, 4, ("00002", "00003", "00004", "00005"), 2, ""),
        (range(20, 40), 3, 4, (), 23, ""),  # nothing tells: by their place
    ],
)
def test_masks_of_a_part_of_a_clip(tmp_path, numbers, start, count, names, first, note):
    for number in numbers:
        cv2.imwrite(str(tmp_path / f"{number:05d}.png"), np.uint8([[255] * number + [0] * (120 - number)]))
    frames = count or 10 - start
    masks, notes = read_masks(tmp_path, start=start, count=count, clip=a_part(start, frames, names))
    assert masks.sum((1, 2, 3)).tolist() == list(range(first, first + frames))
    assert bool(notes) == bool(note) and note in "".join(notes)


@pytest.mark.parametrize(("first_frame", "first_mask"), [(1, 0), (10, 10), (0, 1)])
@pytest.mark.parametrize("start", [0, 2])
def test_as_many_masks_as_frames_belong_to_them_whatever_their_numbers(tmp_path, first_frame, first_mask, start):
    (tmp_path / "in").mkdir()
    (tmp_path / "masks").mkdir()
    for number in range(10):
        frame, mask = np.zeros((2, 12, 3), np.uint8), np.zeros((2, 12), np.uint8)
        mask[:, : number + 1] = 255
        media.write_png(tmp_path / "in" / f"{first_frame + number:05d}.png", frame)
        media.write_png(tmp_path / "masks" / f"mask_{first_mask + number:05d}.png", mask)
    clip = media.read_clip(tmp_path / "in", start=start, count=4)
    masks, notes = read_masks(tmp_path / "masks", start=start, count=4, clip=clip)
    assert (masks[:, 0, 0].sum(1) - 1).tolist() == list(range(start, start + 4)) and notes == []


def test_too_many_masks_after_the_start_are_not_cut_off(tmp_path):
    for number in range(12):
        cv2.imwrite(str(tmp_path / f"{number:05d}.png"), np.full((2, 2), 255, np.uint8))
    assert len(read_masks(tmp_path, start=3, clip=a_part(3, 7))[0]) == 9


@pytest.mark.parametrize(("length", "first"), [(10, 3), (7, 0)])
def test_a_video_of_masks_of_a_part_of_a_clip(tmp_path, length, first):
    masks = torch.zeros(length, 1, 16, 32)
    for index, mask in enumerate(masks):
        mask[:, :, : 2 * index] = 1
    media.write_clip(tmp_path / "masks.mp4", masks)
    read, notes = read_masks(tmp_path / "masks.mp4", start=3, clip=a_part(3, 7))
    assert len(read) == 7 and read[0].mean() == pytest.approx(first / 16, abs=0.02)
    assert ["taken for frame 3" in note for note in notes] == [True] * (first == 0)


@pytest.mark.parametrize("start", [0, 3])
def test_what_a_video_of_masks_lacks_is_told(tmp_path, start):
    masks = torch.rand(48, 1, 16, 32, generator=torch.Generator().manual_seed(1)).round()
    media.write_clip(tmp_path / "masks.mkv", masks)
    whole = (tmp_path / "masks.mkv").read_bytes()
    (tmp_path / "masks.mkv").write_bytes(whole[: len(whole) // 2])
    _, notes = read_masks(tmp_path / "masks.mkv", start=start, clip=a_part(start, 48 - start))
    assert ["lacks its last" in note for note in notes] == [True]
