"""Which type is chosen for a graphics card: by its compute capability, and by name where fp16 goes wrong."""

import pytest
import torch

from ciri.precision import choose_dtype

CARDS = [
    ("NVIDIA H200", (9, 0), torch.bfloat16),
    ("NVIDIA RTX A2000", (8, 6), torch.bfloat16),
    ("NVIDIA GeForce RTX 3060", (8, 6), torch.bfloat16),
    ("NVIDIA GeForce RTX 2080 Ti", (7, 5), torch.float16),
    ("Quadro RTX 5000", (7, 5), torch.float16),
    ("Tesla T4", (7, 5), torch.float16),
    ("Tesla V100-SXM2-16GB", (7, 0), torch.float16),
    ("NVIDIA GeForce GTX 1080", (6, 1), torch.float32),
    ("Tesla P100-PCIE-16GB", (6, 0), torch.float32),
    ("NVIDIA GeForce GTX 980", (5, 2), torch.float32),
    ("NVIDIA GeForce GTX 1630", (7, 5), torch.float32),
    ("NVIDIA GeForce GTX 1650 with Max-Q Design", (7, 5), torch.float32),
    ("NVIDIA GeForce GTX 1660 SUPER", (7, 5), torch.float32),
    ("GeForce GTX 1660 Ti", (7, 5), torch.float32),
    ("NVIDIA T500", (7, 5), torch.float32),
    ("NVIDIA T550 Laptop GPU", (7, 5), torch.float32),
    ("NVIDIA T600 Laptop GPU", (7, 5), torch.float32),
    ("NVIDIA T1000 8GB", (7, 5), torch.float32),
    ("NVIDIA T1200 Laptop GPU", (7, 5), torch.float32),
    ("Quadro T2000", (7, 5), torch.float32),
    ("NVIDIA GeForce MX450", (7, 5), torch.float32),
    ("NVIDIA GeForce MX550", (7, 5), torch.float32),
    ("NVIDIA CMP 30HX", (7, 5), torch.float32),
]


@pytest.mark.parametrize(("name", "capability", "expected"), CARDS, ids=[card[0] for card in CARDS])
def test_auto_is_what_the_card_is_fast_and_right_in(monkeypatch, name, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert choose_dtype("auto", torch.device("cuda")) == expected
    assert choose_dtype("fp16", torch.device("cuda")) == torch.float16
