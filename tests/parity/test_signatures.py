"""Published lists of keys and shapes: each is recognised as its own model, and as that alone."""

import pytest

from ciri.signatures import _SIGNATURES, TensorInfo, identify
from tests.parity.fixtures import documents


def published():
    """(model, keys) of every list that the fixtures hold."""
    found = []
    for folder in ("stcn", "siammask", "fuseformer", "dstt", "sttn", "e2fgvi", "metrics"):
        for document in documents(folder):
            if not isinstance(document, dict):
                continue
            parts = {
                "e2fgvi": {"e2fgvi": "base", "e2fgvi_hq": "hq"},
                "metrics": {"i3d": "i3d_rgb_imagenet"},
                "siammask": {"siammask": None},
            }
            if folder in parts:
                for model, name in parts[folder].items():
                    part = document.get(name, {}) if name else document
                    if "keys" in part:
                        found.append((model, part["keys"]))
            elif "tensors" in document and document.get("file", "").startswith(folder):
                found.append((folder, document["tensors"]))
            elif folder == "stcn" and "key_encoder.conv1.weight" in document:
                found.append((folder, document))
    return found


@pytest.mark.parametrize(("model", "keys"), published(), ids=lambda value: value if isinstance(value, str) else "keys")
def test_every_published_file_is_recognised(model, keys):
    state = {key: TensorInfo(tuple(entry["shape"]), entry["dtype"]) for key, entry in keys.items()}
    assert identify(state) == model
    assert [s.model for s in _SIGNATURES.values() if s.fits(state)] == [model]
