"""Bytes that are not UTF-8 text: the encoding they may be in, or the kind of file they are."""

from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from workloads.errors import UserError

# The first bytes of files that were renamed, or saved under a text file's name.
_OTHER_FILES = {
    b"PK\x03\x04": "a zip archive, as .xlsx is",
    b"\xd0\xcf\x11\xe0": "an old Office file, as .xls is",
    b"PAR1\x15": "a Parquet file",
    b"ARROW1\0\0": "an Arrow file",
    b"\x1f\x8b": "a gzip file",
    b"%PDF-": "a PDF",
}
# The standard behind each encoding, and the first bytes of what texts in it mostly consist of:
# kana and the frequent kanji, Hangul, the frequent half of the Chinese characters, Latin letters
# with ¡, «, » and ¿.
_USUAL: dict[str, tuple[str, Collection[int]]] = {
    "cp932": ("shift_jis", {0x82, 0x83, *range(0x88, 0x98)}),
    "cp949": ("euc_kr", range(0xB0, 0xC9)),
    "euc_jp": ("euc_jp", {0xA4, 0xA5, *range(0xB0, 0xD0)}),
    "gb18030": ("gb2312", range(0xB0, 0xD8)),
    "big5": ("big5", range(0xA4, 0xC7)),
    "cp1252": ("latin_1", {0xA1, 0xAB, 0xBB, 0xBF, *range(0xC0, 0x100)}),
}


def text_lines(file: Path, lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a file, without a byte order mark.

    Raises UserError for UTF-16, and for a file of another kind.
    """
    for number, line in enumerate(lines):
        if number == 0:
            _refuse_other_files(file, line)
            line = line.removeprefix(b"\xef\xbb\xbf")
        yield line


def _refuse_other_files(file: Path, start: bytes) -> None:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(
            f"{file}: expected UTF-8 text, found UTF-16; convert it (iconv), "
            "or set data.encoding=utf-16"
        )
    if kind := next((kind for mark, kind in _OTHER_FILES.items() if start.startswith(mark)), None):
        raise UserError(
            f"{file}: expected text, found {kind}; save a table as CSV in UTF-8, "
            "and give other files their own ending"
        )


def not_utf8(column: int, byte: int) -> str:
    """Message for the first byte that is not UTF-8, counted from 1."""
    return f"not UTF-8 at byte {column} (0x{byte:02x}); save the file as UTF-8"


def without_utf8(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Those lines that are not UTF-8."""
    for line in lines:
        try:
            line.decode()
        except UnicodeDecodeError:
            yield line


@lru_cache(maxsize=64)  # all bad rows of a CSV file ask about the same bytes
def reads_as(content: bytes) -> str:
    """The end of a message: the likeliest encoding of the bytes; '' where none decodes them.

    Nearly every text in EUC-KR also decodes as EUC-JP, GB 18030 and Big5, and the other way round:
    the likeliest one is that in which most characters are usual ones.
    """
    shares: dict[str, float] = {}
    for encoding, (standard, first_bytes) in _USUAL.items():
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        letters = [letter for letter in text if letter > "\x7f"]
        codes = [letter.encode(standard, errors="ignore") for letter in letters]
        usual = sum(code[:1] != b"" and code[0] in first_bytes for code in codes)
        shares[encoding] = usual / max(1, len(letters))
    if not shares:
        return ""
    encoding = max(shares, key=lambda name: shares[name])
    return f" (it reads as {encoding}: set data.encoding={encoding})"
