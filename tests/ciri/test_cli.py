"""``python -m ciri``: what it writes, what it says, and how it ends."""

import argparse
import subprocess
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ciri import cli, mask_files, media
from ciri.commands import _arguments
from ciri.console import ProgressBar
from ciri.errors import CiriError

ROOT = Path(__file__).parents[2]
COUNT, HEIGHT, WIDTH = 10, 64, 96


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A red square crosses a texture that drifts: frames, clean, true masks, and the first mask as an image."""
    folder = tmp_path_factory.mktemp("scene")
    texture = cv2.GaussianBlur(np.random.default_rng(5).integers(0, 255, (HEIGHT, 2 * WIDTH, 3), np.uint8), (0, 0), 2)
    texture = cv2.normalize(texture, None, 40, 215, cv2.NORM_MINMAX)
    for name in ("frames", "clean", "masks"):
        (folder / name).mkdir()
    for t in range(COUNT):
        clean = np.ascontiguousarray(texture[:, 2 * t : 2 * t + WIDTH])
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[22:40, 8 + 6 * t : 26 + 6 * t] = 255
        frame = np.where(mask[..., None] > 0, np.uint8([230, 30, 40]), clean)
        for name, image in (("frames", frame), ("clean", clean), ("masks", mask)):
            media.write_png(folder / name / f"{t:05d}.png", image)
    return folder


def run(capsys, *arguments):
    """Run the command in this process; return exit code and standard error."""
    code = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert said.out == ""
    return code, said.err


def local_error(result, scene, start=0):
    """Mean absolute error in grey levels over the true mask."""
    after, clean = media.read_clip(result).frames, media.read_clip(scene / "clean", start=start).frames
    masks, _ = mask_files.read_masks(scene / "masks", start=start)
    return float((after - clean).abs().mul(masks).sum() / (3 * masks.sum()) * 255)


def test_remove_from_one_mask(scene, tmp_path, capsys):
    out, masks = tmp_path / "out", tmp_path / "masks"
    code, said = run(
        capsys, "remove", scene / "frames", "--mask", scene / "masks" / "00000.png", "-o", out,
        "--save-masks", masks, "--overlay", tmp_path / "look.mp4", "--grow", 2, "--feather", 1,
    )  # fmt: skip
    assert code == 0, said
    assert f"{COUNT} frames" in said
    assert local_error(scene / "frames", scene) > 60
    assert local_error(out, scene) < 12
    followed, true = mask_files.read_masks(masks)[0] > 0.5, mask_files.read_masks(scene / "masks")[0] > 0.5
    assert float((followed & true).sum() / (followed | true).sum()) > 0.8
    far = ~(torch.nn.functional.max_pool2d((followed | true).float(), 13, 1, 6) > 0).expand(-1, 3, -1, -1)
    before = media.read_clip(scene / "frames").frames
    assert torch.equal(media.read_clip(out).frames[far], before[far])
    overlay = media.read_clip(tmp_path / "look.mp4").frames
    assert overlay.shape == (COUNT, 3, HEIGHT, WIDTH)


def test_remove_with_a_mask_for_every_frame_from_a_later_start(scene, tmp_path, capsys):
    part = ["--start", 2, "--frames", 8]
    code, said = run(capsys, "remove", scene / "frames", "--masks", scene / "masks", "-o", tmp_path / "out", *part)
    assert code == 0, said
    assert sorted(file.name for file in (tmp_path / "out").iterdir())[0] == "00002.png"
    assert local_error(tmp_path / "out", scene, start=2) < 12


@pytest.mark.parametrize("frames", [6, 4])
def test_masks_that_were_written_for_a_part_are_those_of_its_frames(scene, tmp_path, capsys, frames):
    clip, part = media.read_clip(scene / "frames"), ["--start", 2, "--frames", 6]
    media.write_clip(tmp_path / "in.mp4", clip.frames, media.Clip(clip.frames))
    call = ["remove", tmp_path / "in.mp4", "--no-crop", "--backbone", "flow", "--masks"]
    code, said = run(capsys, *call, scene / "masks", "-o", tmp_path / "a.mp4", "--save-masks", tmp_path / "m", *part)
    assert code == 0 and sorted(file.name for file in (tmp_path / "m").iterdir())[0] == "00002.png", said
    part[-1] = frames
    code, said = run(capsys, *call, tmp_path / "m", "-o", tmp_path / "b.mp4", "--save-masks", tmp_path / "n", *part)
    assert code == 0, said
    written, again = mask_files.read_masks(tmp_path / "m")[0][:frames], mask_files.read_masks(tmp_path / "n")[0]
    assert torch.equal(written > 0.5, again > 0.5)


def test_one_frame_is_a_clip(scene, tmp_path, capsys):
    part = ["--start", 9, "--frames", 4]
    code, said = run(capsys, "remove", scene / "frames", "--masks", scene / "masks", "-o", tmp_path / "out", *part)
    assert code == 0, said
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["00009.png"]


def test_video_in_video_out(scene, tmp_path, capsys):
    clip = media.read_clip(scene / "frames")
    clip.fps = 12
    media.write_clip(tmp_path / "in.mp4", clip.frames, clip)
    code, said = run(
        capsys, "remove", tmp_path / "in.mp4", "--mask", scene / "masks" / "00000.png", "-o", tmp_path / "out.mp4"
    )  # fmt: skip
    assert code == 0, said
    assert media.read_clip(tmp_path / "out.mp4").fps == 12
    assert local_error(tmp_path / "out.mp4", scene) < 16


def test_propagate_from_a_later_frame_back_to_the_first(scene, tmp_path, capsys):
    code, said = run(
        capsys, "propagate", scene / "frames", "--mask", scene / "masks" / "00007.png", "--mask-frame", 7,
        "-o", tmp_path / "masks", "--overlay", tmp_path / "look",
    )  # fmt: skip
    assert code == 0, said
    assert "confidence: mean" in said
    followed, true = mask_files.read_masks(tmp_path / "masks")[0] > 0.5, mask_files.read_masks(scene / "masks")[0] > 0.5
    assert float((followed & true).sum() / (followed | true).sum()) > 0.8
    assert len(list((tmp_path / "look").iterdir())) == COUNT


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("propagator", ["flow", "lite"])
def test_frames_are_named_by_their_numbers_in_the_input(scene, tmp_path, capsys, start, propagator):
    (tmp_path / "frames").mkdir()
    for t in range(COUNT):
        kind = "clean" if t >= 7 else "frames"
        image = cv2.imread(str(scene / kind / f"{t:05d}.png"))
        cv2.imwrite(str(tmp_path / "frames" / f"{t:05d}.png"), image)
    call = ["propagate", tmp_path / "frames", "--start", start, "--mask", scene / "masks" / f"0000{start}.png"]
    code, said = run(capsys, *call, "--propagator", propagator, "-o", tmp_path / "out")
    assert code == 0 and "lost in frames 7-9;" in said, said
    assert int(said.split("in frame ")[1].split()[0]) >= 7
    code, said = run(capsys, *call, "--mask-frame", 12, "-o", tmp_path / "other")
    assert code == 2 and f"number 12 is outside the clip; it has frames {start} to 9" in said


def test_what_is_to_stay_is_read_and_kept(scene, tmp_path, capsys):
    """Half of the object is painted as what goes, the other half as what stays."""
    painted = cv2.imread(str(scene / "masks" / "00000.png"), cv2.IMREAD_GRAYSCALE)
    middle = int(np.nonzero(painted.any(0))[0].mean())
    for name, columns in (("goes", slice(middle, None)), ("stays", slice(0, middle))):
        half = painted.copy()
        half[:, columns] = 0
        cv2.imwrite(str(tmp_path / f"{name}.png"), half)
    covered = []
    for number, keep in enumerate(([], ["--keep", tmp_path / "stays.png"])):
        code, said = run(
            capsys, "propagate", scene / "frames", "--mask", tmp_path / "goes.png", "--exact", *keep,
            "--propagator", "flow", "-o", tmp_path / str(number),
        )  # fmt: skip
        assert code == 0, said
        covered.append(mask_files.read_masks(tmp_path / str(number))[0] > 0.5)
    alone, beside = covered
    assert torch.equal(alone[0], beside[0]) and not (beside & ~alone).any()
    assert beside[1:].sum() < alone[1:].sum()


@pytest.mark.parametrize("command", ["propagate", "remove"])
def test_what_was_painted_is_moved_onto_the_edge_unless_it_is_exact(scene, tmp_path, capsys, command):
    true = cv2.imread(str(scene / "masks" / "00004.png"), cv2.IMREAD_GRAYSCALE)
    wide = cv2.dilate(true, np.ones((11, 11), np.uint8))
    media.write_png(tmp_path / "wide.png", wide)
    found = {}
    for exact in ([], ["--exact"]):
        masks = tmp_path / f"masks{len(exact)}"
        saved = (
            ["-o", masks] if command == "propagate" else ["-o", tmp_path / f"out{len(exact)}", "--save-masks", masks]
        )
        code, said = run(
            capsys, command, scene / "frames", "--mask", tmp_path / "wide.png", "--mask-frame", 4,
            "--propagator", "flow", *exact, *saved, *(["--no-attention"] if command == "remove" else []),
        )  # fmt: skip
        assert code == 0 and ("note: The mask of frame 4 was moved" in said) != bool(exact)
        found[len(exact)] = mask_files.read_masks(masks)[0][4, 0].numpy() > 0.5
    assert (found[1] == (wide > 127)).all()
    assert (found[0] != (true > 127)).sum() < 0.3 * (found[1] != (true > 127)).sum()


@pytest.mark.parametrize("grain", [None, 0])
def test_noisy_footage_gets_its_grain_back_unless_nobody_wants_it(tmp_path, capsys, grain):
    (tmp_path / "frames").mkdir()
    mask = np.zeros((96, 160), np.uint8)
    mask[20:76, 40:120] = 255
    media.write_png(tmp_path / "mask.png", mask)
    random = np.random.default_rng(6)
    for t in range(4):
        frame = np.linspace(60, 190, 160)[None, :, None] + random.normal(0, 8, (96, 160, 3))
        media.write_png(tmp_path / "frames" / f"{t}.png", frame.clip(0, 255).astype(np.uint8))
    code, said = run(
        capsys, "remove", tmp_path / "frames", "--mask", tmp_path / "mask.png", "-o", tmp_path / "out", "--exact",
        "--propagator", "flow", "--backbone", "flow", "--no-attention", *([] if grain is None else ["--grain", grain]),
    )  # fmt: skip
    assert code == 0 and ("note: What was filled in got the grain of the clip" in said) == (grain is None)
    rough = [
        float(media.read_clip(tmp_path / name).frames[0, 0, 30:66, 50:110].diff(dim=0).std())
        for name in ("out", "frames")
    ]
    assert (rough[0] == pytest.approx(rough[1], rel=0.2)) == (grain is None)


def test_a_mask_among_the_frames_is_not_taken_for_one(scene, tmp_path, capsys):
    for t in range(3):
        (tmp_path / f"{t}.png").write_bytes((scene / "frames" / f"{t:05d}.png").read_bytes())
    painted = cv2.imread(str(tmp_path / "1.png"))
    mask = cv2.imread(str(scene / "masks" / "00001.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "1.png"), np.dstack([painted, 255 - mask]))
    call = ["propagate", tmp_path, "--propagator", "flow", "--start", 1, "-o", tmp_path / "out"]
    code, said = run(capsys, *call, "--mask", tmp_path / "1.png")  # painted on the frame itself
    assert code == 0, said
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    for given in (["--mask", tmp_path / "mask.png"], ["--mask", tmp_path / "1.png", "--keep", tmp_path / "mask.png"]):
        code, said = run(capsys, *call, *given)
        assert code == 2 and "mask.png lies among the frames" in said


def bad_calls(scene, folder):
    """Arguments, and words that the one line on standard error must hold."""
    frames, mask, out = scene / "frames", scene / "masks" / "00000.png", folder / "out"
    cv2.imwrite(str(folder / "empty.png"), np.zeros((HEIGHT, WIDTH), np.uint8))
    cv2.imwrite(str(folder / "square.png"), np.full((50, 50), 255, np.uint8))
    (folder / "text.mp4").write_text("no video")
    given = ["--mask", mask, "-o", out]
    return [
        (["remove", folder / "missing.mp4", *given], "does not exist"),
        (["remove", folder / "text.mp4", *given], "no video that can be read"),
        (["remove", folder / ("long" * 100), *given], "File name too long"),
        (["remove", frames, "--mask", mask, "-o", folder / ("long" * 100)], "File name too long"),
        (["remove", frames, "-o", out], "No --mask"),
        (["remove", frames, "--mask", folder / "missing.png", "-o", out], "does not exist"),
        (["remove", frames, "--mask", scene / "masks", "-o", out], "is a folder; expected one image"),
        (["remove", frames, "--mask", folder / "empty.png", "-o", out], "is empty"),
        (["remove", frames, "--mask", folder / "square.png", "-o", out], "aspect ratios"),
        (["remove", frames, *given, "--masks", scene / "masks"], "Both --mask and --masks"),
        (["remove", frames, *given, "--mask-frame", 3, "--mask-frame", 4], "1 --mask but 2 --mask-frame"),
        (["remove", frames, *given, "--mask", mask], "2 --mask but 0 --mask-frame"),
        (["remove", frames, *given, "--keep", mask], "to stay lies within what is to be removed"),
        (["remove", frames, "--masks", scene / "masks", "--mask-frame", 3, "-o", out], "Both --mask-frame and --masks"),
        (["remove", frames, "--masks", scene / "masks", "--keep", mask, "-o", out], "Both --keep and --masks"),
        (["remove", frames, "--masks", scene / "masks", "--exact", "-o", out], "Both --exact and --masks"),
        (["remove", frames, *given, "--grain", -1], "grain is -1.0"),
        (["remove", frames, *given, "--detector", "lite"], "--detector without --refine"),
        (["remove", frames, *given, "--time-budget", 0], "--time-budget without --refine"),
        (["remove", frames, "--masks", scene / "masks", "--propagator", "lite", "-o", out], "nothing is propagated"),
        (["remove", frames, *given, "--mask-frame", 99], "outside the clip"),
        (["remove", frames, *given, "--start", 4, "--mask-frame", 2], "lies before --start"),
        (["remove", frames, *given, "--start", 99], "no frame 99"),
        (["remove", frames, *given, "--frames", 0], "at least one frame"),
        (["remove", frames, *given, "--backbone", "magic"], "magic"),
        (["remove", frames, *given, "--propagator", "magic"], "magic"),
        (["remove", frames, *given, "--backbone", "sttn"], "needs a weight file"),
        (["remove", frames, *given, "--backbone", "flow", "--backbone-weights", mask], "'flow', which has no weights"),
        (["remove", frames, *given, "--backbone", "sttn", "--backbone-weights", folder / "text.mp4"], "text.mp4"),
        (["remove", frames, *given, "--backbone-weights", folder / "text.mp4"], "not a weight file"),
        (["remove", frames, *given, "--propagator", "stcn", "--propagator-weights", folder / "no.pth"], "no.pth"),
        (["remove", frames, *given, "--device", "toaster"], "toaster"),
        (["remove", frames, *given, "--overlay", folder / "look.gif"], ".gif"),
        (["remove", frames, "--mask", mask, "-o", folder / "out.txt"], ".txt"),
        (["propagate", frames, "--mask", mask, "-o", folder / "out.txt"], ".txt"),
        (["propagate", frames, "-o", out], "No --mask"),
    ]


def test_bad_input_ends_in_one_line_and_writes_nothing(scene, tmp_path, capsys):
    for arguments, words in bad_calls(scene, tmp_path):
        code, said = run(capsys, *arguments)
        # a progress bar may have been opened before the library saw the input
        lines = [line for line in said.splitlines() if not line.startswith(("removing:", "propagating:"))]
        assert code == 2 and len(lines) == 1 and lines[0].startswith("ciri: "), (arguments, said)
        assert words in lines[0], (arguments, said)
        assert not (tmp_path / "out").exists()


def test_what_a_video_lacks_is_said(scene, tmp_path, capsys):
    clip, video = media.read_clip(scene / "frames").frames, tmp_path / "clip.mkv"
    media.write_clip(video, clip.repeat(5, 1, 1, 1))
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    call = ["propagate", video, "--mask", scene / "masks" / "00000.png", "--propagator", "flow", "-o", tmp_path / "out"]
    code, said = run(capsys, *call)
    assert code == 0 and "note: clip.mkv lacks its last" in said
    code, said = run(capsys, *call[:2], "--frames", 10, *call[2:-1], tmp_path / "ten")
    assert code == 0 and "clip.mkv lacks" not in said


@pytest.mark.parametrize("argument", ["-o", "--save-masks", "--overlay"])
def test_a_folder_with_frames_of_a_longer_run_is_refused(scene, tmp_path, capsys, argument):
    call = ["remove", scene / "frames", "--masks", scene / "masks", "--frames", 2]
    call += ["-o", tmp_path / "out", "--save-masks", tmp_path / "m", "--overlay", tmp_path / "look"]
    folder = call[call.index(argument) + 1]
    folder.mkdir()
    media.write_png(folder / "00000.png", np.zeros((4, 4), np.uint8))
    assert run(capsys, *call)[0] == 0  # its own name: written again
    media.write_png(folder / "00002.png", np.zeros((4, 4), np.uint8))
    code, said = run(capsys, *call)
    assert code == 2 and "00002.png" in said and "empty the folder" in said


def test_outputs_may_not_take_the_place_of_inputs_or_of_one_another(tmp_path, capsys, monkeypatch):
    """Refused by the paths alone: none of these files could be read."""
    monkeypatch.chdir(tmp_path)
    for name in ("in.mp4", "mask.png"):
        (tmp_path / name).write_text("untouched")
    for folder in ("frames", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "link").symlink_to("frames")
    (tmp_path / "hard.mp4").hardlink_to("in.mp4")
    (tmp_path / "masks" / "0.png").write_text("untouched")
    mask = ["--mask", "mask.png"]
    calls = [
        ["remove", "in.mp4", *mask, "-o", "in.mp4"],
        ["remove", "in.mp4", *mask, "-o", tmp_path / "frames" / ".." / "in.mp4"],
        ["remove", "in.mp4", *mask, "-o", "hard.mp4"],
        ["remove", "frames", *mask, "-o", "link"],
        ["remove", "frames", "--masks", "masks", "-o", "masks"],
        ["remove", "frames", *mask, "-o", "out", "--save-masks", "out"],
        ["remove", "frames", *mask, "-o", "out", "--overlay", "./out"],
        ["remove", "frames", *mask, "-o", "out", "--save-masks", "frames"],
        ["remove", "frames", *mask, "--keep", "masks/0.png", "-o", "masks"],
        ["propagate", "in.mp4", *mask, "-o", "out", "--overlay", "in.mp4"],
        ["propagate", "frames", "--mask", "masks/0.png", "-o", "masks"],
        ["propagate", "frames", *mask, "-o", "out", "--overlay", "out"],
    ]
    for arguments in calls:
        code, said = run(capsys, *arguments)
        assert code == 2 and ("would destroy it" in said or "a name of its own" in said), (arguments, said)
    assert (tmp_path / "in.mp4").read_text() == (tmp_path / "masks" / "0.png").read_text() == "untouched"
    assert not (tmp_path / "out").exists() and not list((tmp_path / "frames").iterdir())


def test_as_a_program_it_prints_no_traceback(tmp_path):
    command = [sys.executable, "-m", "ciri", "remove", "nowhere.mp4", "--mask", "m.png", "-o", str(tmp_path / "o")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize(("missing", "required"), [("torch", True), ("cv2", True), ("fractions", False)])
def test_without_what_it_requires_it_says_so_in_one_line(missing, required):
    program = f"import runpy, sys; sys.modules[{missing!r}] = None; sys.argv = ['ciri', 'remove', 'in.mp4', '-o', 'o']"
    command = [sys.executable, "-c", f"{program}; runpy.run_module('ciri', run_name='__main__')"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ("Traceback" in done.stderr) is not required and missing in done.stderr
    if required:
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "requirements.txt" in done.stderr


def test_an_unknown_command_names_the_known_ones(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["vanish"])
    assert ended.value.code == 2 and "remove" in capsys.readouterr().err


def test_interrupt_ends_with_130(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    parser = types.SimpleNamespace(parse_args=lambda arguments: argparse.Namespace(run=interrupted))
    monkeypatch.setattr(cli, "make_parser", lambda: parser)
    assert cli.main([]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_every_command_module_makes_a_command():
    modules = {file.stem for file in (ROOT / "ciri" / "commands").glob("[a-z]*.py")}
    assert {"remove", "propagate"} <= modules
    text = cli.make_parser().format_help()
    for module in modules:
        assert module in text


def test_every_published_backbone_has_a_name():
    from ciri.inpainting import load, registry

    assert set(registry.names()) == {"flow", "lite", *load.NETWORKS}


def test_the_device_is_a_gpu_only_where_there_is_one():
    assert _arguments.choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert _arguments.choose_device("cpu") == torch.device("cpu")
    with pytest.raises(CiriError, match="'meta' is not there"):
        _arguments.choose_device("meta")


class Terminal:
    """A stream that remembers what was written; a terminal if asked to be."""

    def __init__(self, live):
        self.live, self.text = live, ""

    def isatty(self):
        return self.live

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_progress_bar_fills_on_a_terminal():
    terminal = Terminal(live=True)
    bar = ProgressBar("removing", terminal)
    bar(1, 2)
    assert "[###############               ]  50%" in terminal.text
    bar(2, 2)
    assert "100%" in terminal.text
    bar.close()
    assert terminal.text.endswith(" s\n")


def test_progress_bar_is_quiet_without_a_terminal():
    stream = Terminal(live=False)
    bar = ProgressBar("removing", stream)
    for step in range(1000):
        bar(step + 1, 1000)
    assert stream.text == ""
    bar.close()
    assert stream.text.count("\n") == 1
