"""Bidirectional feature propagation with second-order flow-guided deformable alignment.

Sources: BasicVSR++ (Chan et al., CVPR 2022) for the alignment; E2FGVI (Li et al., CVPR 2022) for its use here.

Dimensions: B clips, L local frames, C channels, h w features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ciri.inpainting.deform import modulated_deform_conv, warp

#: Deform groups: the first half displaces the previous state, the second half the one before it.
DEFORM_GROUPS = 16

#: Largest displacement in pixels that the network may add to the flow.
LARGEST_RESIDUE = 10.0

TAPS = 9


class SecondOrderAlignment(nn.Module):
    """Brings the two previous states to the current frame by one deformable convolution: flow plus learned residue."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 2 * channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        bound = 1 / math.sqrt(2 * channels * TAPS)
        nn.init.uniform_(self.weight, -bound, bound)
        self.conv_offset = nn.Sequential(
            nn.Conv2d(3 * channels + 4, channels, 3, 1, 1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(channels, channels, 3, 1, 1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(channels, channels, 3, 1, 1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(channels, 3 * TAPS * DEFORM_GROUPS, 3, 1, 1),
        )
        # at first the offsets are the flow alone
        last = self.conv_offset[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, states: Tensor, condition: Tensor, flow: Tensor, second_flow: Tensor) -> Tensor:
        """Align.

        Args:
            states: (B, 2 C, h, w), the previous state and the one before it, neither warped.
            condition: (B, 3 C, h, w): previous state warped, current features, state before it warped.
            flow: (B, 2, h, w), (dx, dy) from the current frame to the previous one.
            second_flow: (B, 2, h, w), to the one before it.

        Returns:
            (B, C, h, w).
        """
        raw = self.conv_offset(torch.cat([condition, flow, second_flow], 1)).float()
        residue, mask = raw.split([2 * TAPS * DEFORM_GROUPS, TAPS * DEFORM_GROUPS], 1)
        # offsets alternate dy, dx
        repeats = TAPS * DEFORM_GROUPS // 2
        flows = torch.cat([f.flip(1).repeat(1, repeats, 1, 1) for f in (flow, second_flow)], 1)
        offset = LARGEST_RESIDUE * residue.tanh() + flows
        return modulated_deform_conv(states, offset, mask.sigmoid(), self.weight, self.bias, padding=1)


class BidirectionalPropagation(nn.Module):
    """Carries features from the last frame to the first, then from the first to the last, and fuses both.

    Args:
        channels: C.
        released_flow_order: the released program takes the flow of the backward branch from the wrong end of the
            list (step s uses the flow between frames s - 1 and s). Its weights were trained so, and its authors keep
            it; False gives each step the flow of its own two frames.
    """

    def __init__(self, channels: int = 128, *, released_flow_order: bool = True) -> None:
        super().__init__()
        self.released_flow_order = released_flow_order
        self.deform_align = nn.ModuleDict(
            {direction: SecondOrderAlignment(channels) for direction in ("backward_", "forward_")}
        )
        self.backbone = nn.ModuleDict(
            {
                direction: nn.Sequential(
                    nn.Conv2d(inputs * channels, channels, 3, 1, 1),
                    nn.LeakyReLU(0.1, inplace=True),
                    nn.Conv2d(channels, channels, 3, 1, 1),
                )
                for direction, inputs in (("backward_", 2), ("forward_", 3))
            }
        )
        self.fusion = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, features: Tensor, to_next: Tensor, to_previous: Tensor) -> Tensor:
        """Propagate.

        Args:
            features: (B, L, C, h, w).
            to_next: (B, L - 1, 2, h, w), flow from frame i to i + 1.
            to_previous: (B, L - 1, 2, h, w), flow from frame i + 1 to i.

        Returns:
            (B, L, C, h, w).
        """
        frames = list(features.unbind(1))
        backward_flows = list(to_next.unbind(1))
        if not self.released_flow_order:
            backward_flows.reverse()
        backward = self.branch("backward_", [[x] for x in reversed(frames)], backward_flows)[::-1]
        inputs = [[x, b] for x, b in zip(frames, backward, strict=True)]
        forward = self.branch("forward_", inputs, list(to_previous.unbind(1)))
        fused = [self.fusion(torch.cat(pair, 1)) for pair in zip(backward, forward, strict=True)]
        return torch.stack(fused, 1) + features

    def branch(self, direction: str, inputs: list[list[Tensor]], flows: list[Tensor]) -> list[Tensor]:
        """Visit the frames in the given order.

        Args:
            direction: whose weights are used.
            inputs: for each visited frame its features, and what else the backbone sees.
            flows: the flow used from the second visited frame on.

        Returns:
            The state after each visited frame.
        """
        states: list[Tensor] = []
        for step, seen in enumerate(inputs):
            current = seen[0]
            if step == 0:
                state = torch.zeros_like(current)
            else:
                state = self.align(direction, current, states, flows[:step])
            state = state + self.backbone[direction](torch.cat([*seen, state], 1))
            states.append(state)
        return states

    def align(self, direction: str, current: Tensor, states: list[Tensor], flows: list[Tensor]) -> Tensor:
        """Bring the last two states to the current frame."""
        previous, flow = states[-1], flows[-1].float()
        if len(states) > 1:
            before, second_flow = states[-2], flow + warp(flows[-2], flow)
            warped = [warp(previous, flow), warp(before, second_flow)]
        else:
            before, second_flow = torch.zeros_like(previous), torch.zeros_like(flow)
            warped = [warp(previous, flow), before]
        condition = torch.cat([warped[0], current, warped[1]], 1)
        return self.deform_align[direction](torch.cat([previous, before], 1), condition, flow, second_flow)
