"""Everything `fpe_core` raises on purpose.

    FPEError
    ├── CheckpointError        not a Stable Diffusion checkpoint or CLIP, or unreadable
    ├── ParameterError         an edit parameter is out of range, or does not fit the inversion
    ├── PromptError            a prompt is not usable text                         prompt_invalid
    │   └── NotApplicableError the editor lacks something, or prompts do not fit   prompt_invalid
    ├── ImageDecodeError       the bytes are not a readable image                  decode_failed
    ├── ImageTooLargeError     more pixels than allowed (decompression bomb)       image_too_large
    └── RowsOutOfMemoryError   one UNet row alone does not fit into memory         out_of_memory

The right column is the failure code of a row that fails with this error (`FPEError.code`).
"""

from typing import ClassVar


class FPEError(Exception):
    """Base class. `code` is the failure code of a row, "" for errors that are not a row's."""

    code: ClassVar[str] = ""


class CheckpointError(FPEError):
    """The checkpoint cannot be used; the message says which, why and what is accepted."""


class ParameterError(FPEError):
    """An edit parameter is unusable; the message names it, its value and what is allowed."""


class PromptError(FPEError):
    """A prompt is unusable; the message quotes it."""

    code = "prompt_invalid"


class NotApplicableError(PromptError):
    """An edit lacks what its editor needs; the message says what (`EditMethod.not_applicable`)."""


class ImageDecodeError(FPEError):
    """The bytes hold no image that can be read."""

    code = "decode_failed"


class ImageTooLargeError(FPEError):
    """The image declares more pixels than the limit; it was not decoded."""

    code = "image_too_large"


class RowsOutOfMemoryError(FPEError):
    """The row limit was halved down to one row and that row still ran out of memory."""

    code = "out_of_memory"
