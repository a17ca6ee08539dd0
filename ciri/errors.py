"""What can go wrong, in the words of the person it goes wrong for.

Every message says what was got, what was expected and what to do. Bad input ends in one of these, never in
another exception: callers (nodes, command line) show the text and nothing else.
"""


class CiriError(Exception):
    """Anything that this pack refuses or cannot finish."""


class ClipError(CiriError):
    """The frames cannot be used: wrong shape, no frame, not-a-number."""


class MaskError(CiriError):
    """A mask cannot be used: empty, full, of another shape, not-a-number."""


class CheckpointError(CiriError):
    """A weight file is missing, broken, hostile, or of another model."""


class MediaError(CiriError):
    """A video or an image cannot be read or written."""


class OutOfMemoryError(CiriError):
    """Memory ran out even after the work unit was made smaller; the text names the knob to turn."""


class TrainingError(CiriError):
    """Training cannot start or go on: no usable data, a checkpoint of another run, a loss that is not a number."""


class EvaluationError(CiriError):
    """Nothing can be measured: no case, frames and masks that do not belong together, results of another clip."""
