"""One DICOM file: is it one, what does it hold, and its pixels as numbers.

Scanners, archives and anonymisers bend the format in many ways, and a wrong guess here is an image that looks
almost right. So these modules check before they read: what is claimed (rows, columns, frames, bits, lengths) against
what is there, before any memory is taken; and what does not fit is refused by name instead of patched up.

files            the file: parsed without trusting its lengths, its nesting or its compression
elements         single elements as text, numbers, an image's size
pixels           uncompressed and RLE pixels; checks of compressed ones
decoding         compressed pixels, decoded by another process, because decoders in native code can be made to crash
decoder_process  what runs there
"""

from .elements import check_image, integer, numbers, text, without_warnings
from .files import read_dataset, words_of
from .pixels import decode_frames

__all__ = [
    "check_image",
    "decode_frames",
    "integer",
    "numbers",
    "read_dataset",
    "text",
    "without_warnings",
    "words_of",
]
