"""A study's records in one compressed file: the JSON lines of all its runs, one behind the other.

A record goes from a header line to a final line that holds its checksum, so a file of many records needs no names and
no table of contents: `xz -dc records.jsonl.xz` shows them as they were written. Nothing is ever unpacked to disk.
"""

try:
    import lzma
except ImportError:  # a Python that was built without it
    lzma = None

PACKED = "records.jsonl.xz"
MOST = 2**28  # bytes of records; the largest study has 5 million, and a small file may claim any size
MEMORY = 2**26  # bytes that unpacking itself may take; what `packed` makes needs 9 million


def packed(texts):
    """Records as one compressed text, bytes -> bytes; the same records in the same order give the same bytes."""
    _check_lzma()
    text = b"".join(text if text.endswith(b"\n") else text + b"\n" for text in texts)
    if len(text) > MOST:
        raise ValueError(f"the records have {len(text):,} bytes, {PACKED} holds at most {MOST:,}: leave them loose")
    return lzma.compress(text)


def unpacked(path):
    """The text of an archive, as bytes. Raises ValueError for one that is damaged, or unpacked larger than MOST."""
    _check_lzma()
    if not path.is_file():  # a folder, or a pipe that would keep its reader waiting
        raise ValueError(f"{path} is no file, and an archive is one: move it away")
    if path.stat().st_size > MOST:
        raise ValueError(f"{path} is larger than {MOST:,} bytes: no archive of records")
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)
    try:
        text = decoder.decompress(path.read_bytes(), MOST + 1)
    except lzma.LZMAError as error:
        raise ValueError(f"{path} is no archive of records ({error}): take it from the repository again") from None
    if len(text) > MOST:
        raise ValueError(f"{path} holds more than {MOST:,} bytes: no archive of records")
    if not decoder.eof or decoder.unused_data:
        raise ValueError(f"{path} is {'longer' if decoder.eof else 'cut short'}: take it from the repository again")
    return text


def _check_lzma():
    if lzma is None:
        raise ValueError(f"{PACKED} needs Python's module lzma, which this Python was built without: take another")
