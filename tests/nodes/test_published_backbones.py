"""The loaders of published networks: which files they offer, and what they say when there is none that fits."""

import pytest
import torch
from safetensors.torch import save_file

from ciri.errors import CheckpointError
from ciri.inpainting.sttn import STTN
from tests.parity.seeded_weights import seeded_state_dict

LOADERS = ["CIRI_BackboneE2FGVI", "CIRI_BackboneFuseFormer", "CIRI_BackboneDSTT", "CIRI_BackboneSTTN"]


@pytest.fixture
def models(nodes, tmp_path, monkeypatch):
    """A models/ciri folder of the test's own."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ciri", ([str(tmp_path)], {".safetensors", ".pth", ".pt"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def offered(nodes, node_id):
    return nodes[node_id].GET_NODE_INFO_V1()["input"]["required"]["weights"][1]["options"]


def put_sttn(folder, name="sttn.pth"):
    torch.save({"netG": seeded_state_dict(STTN().state_dict(), 7, 0.8)}, folder / name)


@pytest.mark.parametrize("node_id", LOADERS)
def test_without_a_file_the_folder_is_named(nodes, run, models, node_id):
    assert offered(nodes, node_id) == ["(no file found)"]
    with pytest.raises(CheckpointError, match="no weight file of") as caught:
        run(node_id, weights="(no file found)")
    assert str(models) in str(caught.value)


def test_files_are_offered_by_content_not_by_name(nodes, models):
    put_sttn(models, "e2fgvi_or_so.pth")
    save_file({"a": torch.zeros(2)}, models / "sttn.safetensors")
    (models / "broken.pth").write_bytes(b"not a checkpoint")
    assert offered(nodes, "CIRI_BackboneSTTN") == ["e2fgvi_or_so.pth"]
    assert offered(nodes, "CIRI_BackboneE2FGVI") == ["(no file found)"]


def test_a_file_that_changed_is_looked_at_again(nodes, models):
    import folder_paths

    save_file({"a": torch.zeros(2)}, models / "mine.safetensors")
    assert offered(nodes, "CIRI_BackboneSTTN") == ["(no file found)"]
    save_file(seeded_state_dict(STTN().state_dict(), 7, 0.8), models / "mine.safetensors")
    folder_paths.filename_list_cache.clear()
    assert offered(nodes, "CIRI_BackboneSTTN") == ["mine.safetensors"]


def test_a_loaded_network_inpaints_under_inference_mode(run, models):
    put_sttn(models)
    backbone = run("CIRI_BackboneSTTN", weights="sttn.pth", precision="fp32").result[0]
    assert not any(p.is_inference() for p in backbone.network.parameters())
    images, masks = torch.rand(3, 50, 60, 3), torch.zeros(3, 50, 60)
    masks[:, 20:30, 20:40] = 1
    result, report = run("CIRI_InactivationInpaint", images=images, inactivation=masks, backbone=backbone).result
    assert torch.equal(result[:, :10], images[:, :10]) and not torch.equal(result[:, 20:30], images[:, 20:30])
    assert "sttn" in report and "MIT" in report and "hard mask" in report and "window" in report


def test_the_report_counts_frames_and_windows_that_are_filled(run, models):
    put_sttn(models)
    backbone = run("CIRI_BackboneSTTN", weights="sttn.pth", precision="fp32", window=2).result[0]
    images, masks = torch.rand(12, 48, 48, 3), torch.zeros(12, 48, 48)
    masks[0, 20:30, 20:30] = 1
    masks[9, 20:22, 20:22] = 1
    given = {"images": images, "inactivation": masks, "backbone": backbone, "feather": 0}
    # windows at 0 and 2 show frame 0, those at 8 and 10 show frame 9, whose few pixels shrinking takes away
    for grow, frames, windows in ((1, "2 of 12", "4 windows"), (-2, "1 of 12", "2 windows")):
        report = run("CIRI_InactivationInpaint", **given, grow=grow).result[1]
        assert f"filled {frames} frames" in report and windows in report


def test_other_models_give_way_before_a_run_on_a_device_of_its_own_memory(nodes, run, models, monkeypatch):
    import comfy.model_management as management

    put_sttn(models)
    backbone = run("CIRI_BackboneSTTN", weights="sttn.pth", precision="fp32").result[0]
    asked = []
    monkeypatch.setattr(management, "free_memory", lambda amount, device: asked.append((amount, device)))
    # two noises would be two shots, and two runs
    images, masks = torch.rand(1, 50, 60, 3).repeat(2, 1, 1, 1), torch.zeros(2, 50, 60)
    masks[:, 20:30, 20:40] = 1
    given = {"images": images, "inactivation": masks, "backbone": backbone}
    run("CIRI_InactivationInpaint", **given)
    assert asked == []
    monkeypatch.setattr(management, "get_torch_device", lambda: torch.device("cuda:0"))
    run("CIRI_InactivationInpaint", **given)
    # 50 x 60 is padded to multiples of 48
    assert asked == [(96 * 96 * 20_000, torch.device("cuda:0"))]


def test_a_vanished_file_and_unknown_options_are_refused(run, models):
    with pytest.raises(CheckpointError, match=r"gone\.pth"):
        run("CIRI_BackboneSTTN", weights="gone.pth")
    put_sttn(models)
    with pytest.raises(Exception, match="expected one of auto, hard, blend, gate"):
        run("CIRI_BackboneSTTN", weights="sttn.pth", mode="softly")


@pytest.mark.parametrize("node_id", [*LOADERS, "CIRI_PropagatorSTCN"])
def test_a_file_replaced_under_its_name_is_loaded_again(nodes, models, node_id):
    save_file({"a": torch.zeros(2)}, models / "mine.safetensors")
    before = nodes[node_id].fingerprint_inputs(weights="mine.safetensors", mode="auto")
    assert nodes[node_id].fingerprint_inputs(weights="mine.safetensors", mode="auto") == before
    save_file({"a": torch.zeros(200)}, models / "mine.safetensors")
    assert nodes[node_id].fingerprint_inputs(weights="mine.safetensors", mode="auto") != before
