"""Reports as text: Markdown, because ComfyUI's Preview Any shows it as such."""

from __future__ import annotations

from torch import Tensor

from ciri.numbering import ranges
from ciri.propagation.base import MaskTrack


def describe_track(track: MaskTrack, name: str, notes: list[str]) -> str:
    """Say how sure the propagator was: a summary, the notes, then every frame's confidence."""
    confidence, lost = track.confidence, track.lost_frames()
    lowest = int(confidence.argmin())
    remarks = [
        f"Gone or lost in frames {ranges(lost)}; paint the object again there (key_masks)." if lost else "Never lost.",
        *notes,
        *track.notes,
    ]
    return "\n".join(
        [
            f"{name}: {len(confidence)} frames, mean confidence {confidence.mean():.2f}, "
            f"lowest {confidence[lowest]:.2f} at frame {lowest}.",
            "",
            *(f"- {remark}" for remark in remarks),
            "",
            "Confidence by frame:",
            "",
            *rows_of_ten(confidence, 2),
        ]
    )


def rows_of_ten(values: Tensor, digits: int) -> list[str]:
    """A list of Markdown: ten frames' numbers a line."""
    rows = []
    for start in range(0, len(values), 10):
        row = values[start : start + 10]
        rows.append(f"- {start}-{start + len(row) - 1}: " + " ".join(f"{value:.{digits}f}" for value in row))
    return rows


def as_list(text: str) -> str:
    """Lines of plain text as a list of Markdown, which would otherwise run them together."""
    return "\n".join(f"- {line.strip()}" for line in text.splitlines() if line.strip())
