"""The encoding that a message names for bytes that are not UTF-8."""

from pathlib import Path

import pytest

from workloads.data.encodings import reads_as
from workloads.data.rows import read_rows
from workloads.errors import UserError

pytestmark = pytest.mark.unit
TEXTS = {
    "cp932": ["日本の首都はどこですか。,東京です。", "質問,回答", "品名,価格\nﾊﾞﾅﾅ,百円です"],
    "euc_jp": ["日本の首都はどこですか。,東京です。", "赤い積み木を箱に入れる"],
    "cp949": [
        "한국의 수도는 어디입니까?,서울입니다.",
        "질문,답변",
        "서울",
        "ㅋㅋ 똠방각하라고 합니다",
    ],
    "gb18030": ["中国的首都是哪里?,北京。", "问题,答案\n这是什么颜色的积木?,红色的。"],
    "big5": ["台灣的首都在哪裡?,臺北。"],
    "cp1252": ["Wie heißt die Hauptstadt von Österreich?", "Réponse : café", "¿Cuál es?"],
}


@pytest.mark.parametrize(
    ("encoding", "text"), [(name, text) for name, texts in TEXTS.items() for text in texts]
)
def test_the_letters_tell_the_encoding(encoding: str, text: str) -> None:
    """L-S5: texts in EUC-KR decode as EUC-JP and GB 18030 too."""
    assert f"set data.encoding={encoding})" in reads_as(text.encode(encoding))


def test_bytes_that_no_encoding_has_are_no_encoding() -> None:
    assert reads_as(b"\x81\xff\x80\xff") == ""


def test_a_short_cell_is_judged_with_the_others_of_its_file(tmp_path: Path) -> None:
    """L-S5: two characters may be of any encoding."""
    file = tmp_path / "a.csv"
    text = "question,answer\n中国的首都是哪里,北京\n" + "q,a\n" * 3
    file.write_bytes(text.encode("gb18030"))
    (bad,) = read_rows(file, {}).bad
    assert bad.reason.endswith("(it reads as gb18030: set data.encoding=gb18030)")


def test_one_bad_row_of_a_utf_8_file_is_judged_by_itself(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"question,answer\n" + "首都は,東京\n".encode() * 9 + b"caf\xe9,a\n")
    (bad,) = read_rows(file, {}).bad
    assert bad.line == 11 and bad.reason.endswith("set data.encoding=cp1252)")


def test_an_encoding_that_does_not_exist_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"question,answer\nq,a\n")
    with pytest.raises(UserError, match="such as utf-8, cp932 or cp949, found 'cp9322'"):
        read_rows(file, {}, encoding="cp9322")
