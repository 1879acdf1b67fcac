"""Normalises answers: LaTeX, full-width forms, Unicode signs and money become plain text.

`plain` keeps what a text says and drops how it is set: `\\dfrac{2}{3}`, `2 / 3` and `⅔` are 2/3.
Unknown commands stay as they are, with their backslash, for math-verify.
"""

import re
import unicodedata
from types import MappingProxyType

from workloads.grpo.rewards.numerals import in_digits

_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_SIGNS = MappingProxyType(
    {"−": "-", "–": "-", "‐": "-", "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "⁄": "/"}
    | {"≦": "≤", "≧": "≥", "⩽": "≤", "⩾": "≥", "≒": "≈", "，": ",", "\u2044": "/", "∕": "/"}
    | {"º": "°", "˚": "°", "∘": "°", "“": '"', "”": '"', "’": "'", "‘": "'", "´": "'", "′": "'"}
    | {"〜": "~", "～": "~", "∓": "±", "•": "*", "⦁": "*"}
    | dict.fromkeys("✓✔✅☑👍\ufe0f")
    | {"⟨": "(", "⟩": ")", "〈": "(", "〉": ")"}
)
_TABLE = str.maketrans(dict(_SIGNS))
_TYPED = (
    ("<=", "≤"),
    (">=", "≥"),
    ("!=", "≠"),
    ("=/=", "≠"),
    ("==", "="),
    ("+/-", "±"),
    ("+-", "±"),
)
_COMMANDS = MappingProxyType(
    {"pi": "π", "infty": "∞", "pm": "±", "mp": "±", "cdot": "*", "times": "*", "ast": "*"}
    | {"div": "/", "leq": "≤", "le": "≤", "leqslant": "≤", "geq": "≥", "ge": "≥"}
    | {"geqslant": "≥", "neq": "≠", "ne": "≠", "lt": "<", "gt": ">", "approx": "≈"}
    | {"triangle": "△", "angle": "∠", "degree": "°", "circ": "°", "alpha": "α", "beta": "β"}
    | {"gamma": "γ", "delta": "δ", "theta": "θ", "lambda": "λ", "mu": "μ", "phi": "φ", "rho": "ρ"}
    | {"omega": "ω", "sigma": "σ", "varphi": "φ", "Delta": "Δ", "Omega": "Ω", "sim": "~"}
    | {"therefore": "∴ ", "because": "∵ ", "quad": " ", "qquad": " ", "left": "", "right": ""}
    | {"displaystyle": "", "limits": "", "bigl": "", "bigr": "", "big": "", "Big": "", "rm": ""}
    | {"cup": "∪", "cap": "∩", "in": "∈", "notin": "∉", "subset": "⊂", "subseteq": "⊆"}
    | {"emptyset": "∅", "varnothing": "∅"}
    | {"prime": "'", "ldots": "...", "dots": "...", "perp": "⊥", "parallel": "∥", "Rightarrow": "⇒"}
    | {"langle": "(", "rangle": ")"}
    | {
        "implies": "⇒",
        "to": "→",
        "rightarrow": "→",
        "lbrack": "[",
        "rbrack": "]",
        "cong": "≅",
        "mid": "|",
    }
    | {name: f" {name} " for name in ("sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "lg")}
    | {name: f" {name} " for name in ("exp", "arcsin", "arccos", "arctan")}
)
_COMMAND = re.compile(r"\\([A-Za-z]+)\s?")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot|overset\{\.\})\s*\{(\d+)\}")
_AND_SO_ON = re.compile(r"(?<![\d.])(\d{0,9})\.(\d{0,9}?)(\d{1,6}?)\3{1,99}(?:\.{3}|…)")  # 0.333...
_WRAPPERS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname|underline"
    r"|overline|overrightarrow|vec|emph)\s*\{([^{}]*)\}"
)
_FRACTION = re.compile(r"\\[dtc]?frac\s*")
_ROOT = re.compile(r"\\sqrt\s*(?:\[([^\[\]]*)\])?\s*")
_TEXT_ROOT = MappingProxyType({"∛": 3, "∜": 4})
_PLAIN_ROOT = re.compile(r"([∛∜])\s*(\d+|[a-z]|\([^()]*\))")
_DEGREE = re.compile(r"\^\s*(?:\{\s*)?(?:\\circ|\\degree|°|\\text\{o\})(?:\s*\})?")
_THIN = re.compile(
    r"(?<=\d,)\\!(?=\d)|(?<=\d)(?:\\[,!;: ]|\{,\}|\\ ,|[\u2009\u202f\u00a0'](?=\d{3}(?!\d)))(?=\d)"
)
_SPACES = re.compile(r"\\[,!;: ]|\\\\")
_MATH_SPAN = re.compile(r"(?<!\$)(\${1,2})(?!\$)([^$]*)\1")
_IN_SPAN_WORDS = re.compile(r"^\s*[\d.,]*\s+[a-z]{2,}\s*$|\s[a-z]{2,}\s+(?:to|and|or|for)\s*$")
# Matrices: columns and rows as (1, 2), all others as [[1, 2], [3, 4]].
_MATRIX = re.compile(r"\\begin\{([pb]matrix)\}(.*?)\\end\{\1\}", re.DOTALL)
_ROW_END = re.compile(r"\\\\(?:\[[^\]]*\])?")
_BETWEEN_SPANS = re.compile(r"\x01\s*\x02")
_BOLD = re.compile(
    r"(?<![\w*)])\*\*([^*]+)\*\*(?!\w)|(?<![\w*)])\*([^*\s][^*]*[^*\s]|[^*\s])\*(?![\w(])"
)
_UNDERSCORED = re.compile(r"(?<!\w)_{1,3}([^_\s]+)_{1,3}(?!\w)")
_HTML = re.compile(
    r"<(?P<tag>b|i|u|strong|em|span|p|code)(?:\s[^<>]*)?>(?P<inside>[^<>]*)</(?P=tag)>|<br\s*/?>",
    re.IGNORECASE,
)
_RAISED = re.compile(r"<(sup|sub)>([^<>]*)</\1>", re.IGNORECASE)
_INDEX = re.compile(r"(?<![A-Za-z])([A-Za-z]|[A-Z][a-z])_(?=\d)|(?<=[A-Z\d][A-Z])_(?=\d)")
_SPOKEN = (
    (re.compile(r"(?<=[A-Za-z\d)])\s+(?:equals|is equal to)\s+(?=[-\d√(])"), " = "),
    (re.compile(r"\b(\d{1,2}) o'clock"), r"\1:00"),
    (re.compile(r"(?:half|1/2) past (\d{1,2})\b"), r"\1:30"),
    (re.compile(r"(?:(?:an? )?quarter|1/4) past (\d{1,2})\b"), r"\1:15"),
    (re.compile(r"([-+])\s*([＄€£¥₩])\s*(?=[\d.])"), r"\2\1"),
    (re.compile(r"(?:(?<=\d)|(?<=\b[a-z]))\s+squared(?=$|[,;.)]|\s+(?:is|=|[-+]))"), "^2"),
    (re.compile(r"(?:(?<=\d)|(?<=\b[a-z]))\s+cubed(?=$|[,;.)]|\s+(?:is|=|[-+]))"), "^3"),
    (re.compile(r"\b(?:double|twice)\s+(?=\d)", re.IGNORECASE), "2*"),
    (re.compile(r"\b(?:triple|thrice)\s+(?=\d)", re.IGNORECASE), "3*"),
    (re.compile(r"(?<=[\dπ)])\s+plus\s+(?=[\d(√π-])"), " + "),
    (re.compile(r"(?<=[\dπ)])\s+minus\s+(?=[\d(√π])"), " - "),
    (re.compile(r"(?<=[\dπ)])\s+(?:times|multiplied by)\s+(?=[\d(√π-])"), " * "),
    (re.compile(r"(?<=[\dπ)])\s+(?:divided by|over)\s+(?=[\d(√])"), "/"),
    (re.compile(r"(?<=\d)\s?in(?=$|[,;.)]|\s+(?:by|and)\b)"), " inches"),
)
_EXCLAIMED = re.compile(r"(?<=[A-Za-z]{3})[!！]+$")  # three!
_UNIT_PRODUCT = re.compile(r"/\s*\(\s*([A-Za-z°]+(?:\^-?\d)?)\s*\*\s*([A-Za-z°]+(?:\^-?\d)?)\s*\)")
_QUARTER_TO = re.compile(r"(?:(?:an? )?quarter|1/4) to (\d{1,2})\b")
_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)")
# <1, 2> is a vector.
_VECTOR = re.compile(r"(?:^|(?<=[=:]\s))<([^<>=]+[,;][^<>=]+)>$")
# Alternatives in brackets: 7 (or 8).
_BRACKETED_OR = re.compile(
    r"\(\s*(?:or(?: (?:maybe|perhaps|possibly))?|maybe|perhaps|possibly|または|あるいは|或者?|또는)"
    r"(?![A-Za-z])\s*([^()]*)\)",
    re.IGNORECASE,
)
_TRIGONOMETRY = re.compile(r"(sin|cos|tan|cot|sec|csc)\s*\(?\s*(\d+(?:\.\d+)?)\s*°\s*\)?")
_ARC = re.compile(  # degrees, minutes, seconds
    r"(?<![\d.])(\d+)\s*°\s*([0-5]?\d)\s*'(?:\s*([0-5]?\d(?:\.\d+)?)\s*(?:\"|''))?"
)
_TWICE = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)\s*\(\s*\1\s*\)")  # seven (7)
_SIMILAR = re.compile(r"(?<=[A-Z])\s*[~∼∽]\s*(?=[△A-Z])")
_PARALLEL = re.compile(r"(?<=[A-Za-z])\s*//\s*(?=[A-Za-z])")
_CODE = re.compile(r"`+([^`]*)`+")
_MINUS_WORD = re.compile(
    r"(?:\b(?:minus|negative)\s+|(?:マイナス|마이너스|负|負)\s*)(?=[\d√(])", re.IGNORECASE
)
_NAMED_VALUES = (
    (
        re.compile(
            r"\bplus[ -](?:or[ -])?minus\s+|(?:プラスマイナス|正负|플러스 ?마이너스)\s*", re.I
        ),
        "±",
    ),
    (re.compile(r"\binfinity\b|無限大|无穷大?|무한대", re.IGNORECASE), "∞"),
    (re.compile(r"\bDNE\b|存在しない|不存在|존재하지 않(?:는다|음|습니다)"), "does not exist"),
    (re.compile(r"(?:the )?\bempty set\b|空集合?|공집합|^\(\s*\)$|\{\s*\}", re.IGNORECASE), "∅"),
    (re.compile(r"^(?:[a-z]\s*∈\s*)?\(-∞\s*,\s*\+?∞\)$"), "real numbers"),
    (re.compile(r"^[a-z]\s*∈\s*(?=\{|real numbers)"), ""),
    (re.compile(r"^[{(]\s*[a-z]\s*[|:]\s*([^{}]*)[})]$"), r"\1"),  # {x | x > 3}
    (re.compile(r"^\|\s*([a-z])\s*\|\s*([<≤])\s*([\d./√π]+)$"), r"-\3 \2 \1 \2 \3"),
    (re.compile(r"^\|\s*([a-z])\s*\|\s*>\s*([\d./√π]+)$"), r"\1 < -\2 or \1 > \2"),
    (re.compile(r"^\|\s*([a-z])\s*\|\s*≥\s*([\d./√π]+)$"), r"\1 ≤ -\2 or \1 ≥ \2"),
    (re.compile(r"(?<=\d)\s*a\.?m\b\.?", re.IGNORECASE), " am"),
    (re.compile(r"(?<=\d)\s*p\.?m\b\.?", re.IGNORECASE), " pm"),
)
_PERCENT_WORD = re.compile(
    r"(?<!\s)\s*(?:\bper ?cents?\b|\bpercentage(?: points?)?\b|パーセント|퍼센트|プロセント|프로)",
    re.IGNORECASE,
)
_PI_WORD = re.compile(r"(?<![A-Za-z])pi(?=(?:[cdkm]?m)?(?![A-Za-z]))")
_ROOT_WORD = re.compile(r"(?<![A-Za-z])(?:sqrt|square root of|root|ルート|根号|루트)\s*(?=[\d(√])")
_LETTER_ROOT = re.compile(r"(?<![A-Za-z])sqrt\s*(?=[A-Za-z]\b)")
_SCALE_WORD = re.compile(
    r"(?:\bdegrees?\s+|°\s*)(?:celsius|centigrade|(?P<f>fahrenheit|F(?![A-Za-z]))|C(?![A-Za-z]))",
    re.IGNORECASE,
)
_EAST_SCALE = re.compile(r"(?:摄氏|攝氏|摂氏|섭씨)\s*(-?[\d.]+)\s*(?:度|도)")
_BASED_LOG = re.compile(r"\blog\s+_\s*")
_END = " \t\n.。．、,，;:！!？?"
_TIGHT_MINUS = re.compile(r"(?<!\S)(?<![\d)] )-\s+(?=[\d.√(])")
# All real numbers in one wording.
_REALS = re.compile(
    r"\\mathbb\s*\{?R\}?|ℝ|(?:the set of )?\b(?:all|any|every) (?:the )?(?:real numbers?|reals)\b"
    r"|(?:すべて|全て)の実数|(?:全体|所有|任意)实数|实数集|모든 실수",
    re.IGNORECASE,
)
_CLOCK = re.compile(r"(?<![\w.])(\d+)\s*h\s*([0-5]\d)(?:\s*min(?:utes)?)?(?![\w.])")


def plain(text: str) -> str:
    """`text` in one spelling, on one line; numbers in digits."""
    text = _SUPERSCRIPT.sub(lambda match: _power(match[0]), text)
    text = _REALS.sub(" real numbers ", text)
    text = _VULGAR.sub(lambda match: " " + unicodedata.normalize("NFKC", match[0]), text)
    text = unicodedata.normalize("NFKC", _THIN.sub(_joint, text)).translate(_TABLE)
    text = _latex(text) if "\\" in text or "$" in text or "{" in text else text
    text = _AND_SO_ON.sub(_repeating, _EXCLAIMED.sub("", _unmarked(text)))
    for typed, sign in _TYPED:
        text = text.replace(typed, sign)
    text = _TIMES_TEN.sub("*", text.replace("**", "^"))
    text = _PLAIN_ROOT.sub(lambda m: f"({m[2]})^(1/{_TEXT_ROOT[m[1]]})", text)
    text = _PERCENT_WORD.sub("%", _ROOT_WORD.sub("√", _LETTER_ROOT.sub("√", text)))
    text = _PI_WORD.sub("π", text)
    for pattern, value in _NAMED_VALUES:
        text = pattern.sub(value, text)
    text = _BRACKETED_OR.sub(r" or \1", _VECTOR.sub(r"(\1)", text.strip()))
    text = _UNIT_PRODUCT.sub(r"/\1/\2", text)
    text = _BASED_LOG.sub("log_", text)
    text = _CLOCK.sub(r"\1 h \2 min", _INDEX.sub(r"\1", text))
    text = _PARALLEL.sub(" ∥ ", _SIMILAR.sub(" ∽ ", text))
    text = _SCALE_WORD.sub(lambda match: "°F" if match["f"] else "°C", text)
    text = _TRIGONOMETRY.sub(r"\1(\2π/180)", _ARC.sub(_degrees, text))
    text = in_digits(text)
    text = _QUARTER_TO.sub(lambda match: f"{(int(match[1]) - 2) % 12 + 1}:45", text)
    for pattern, sign in _SPOKEN:
        text = pattern.sub(sign, text)
    text = _EAST_SCALE.sub(r"\1 °C", _MINUS_WORD.sub("-", text))
    text = _TWICE.sub(r"\1", _TIGHT_MINUS.sub("-", " ".join(text.split())))
    return trimmed(text)


def trimmed(text: str) -> str:
    """Without white space at the ends, and without punctuation behind."""
    kept = text.strip().rstrip(_END)
    # 5! is a factorial where nothing else ends the sentence.
    if re.fullmatch(r"[\d()+\-*/^]*[\dn)]!", text.strip()):
        return text.strip()
    return kept.strip()


def _degrees(match: re.Match[str]) -> str:
    seconds = f"+{match[3]}/3600" if match[3] else ""
    return f"({match[1]}+{match[2]}/60{seconds})°"


def _repeating(match: re.Match[str]) -> str:
    """0.1666... as (16 - 1)/90."""
    whole, before, block = match[1] or "0", match[2], match[3]
    top = int(whole + before + block) - int(whole + before)
    return f"({top}/{(10 ** len(block) - 1) * 10 ** len(before)})"


def _joint(match: re.Match[str]) -> str:
    return "," if match[0] == "{,}" else ""


def _power(run: str) -> str:
    digits = unicodedata.normalize("NFKC", run).replace("−", "-")
    return f"^{digits}" if digits.isalnum() else f"^({digits})"


def _unmarked(text: str) -> str:
    """Without the marks of Markdown: **7**, _7_, `7`."""
    text = _RAISED.sub(lambda match: ("^" if match[1] == "sup" else "_") + match[2], text)
    text = _CODE.sub(r"\1", _HTML.sub(r" \g<inside>", text))
    text = _BOLD.sub(lambda match: match[1] or match[2], text)
    return _UNDERSCORED.sub(r"\1", text)


def _latex(text: str) -> str:
    text = text.replace(r"\$", "＄").replace(r"\%", "%").replace(r"\#", "#").replace(r"\&", "&")
    text = text.replace(r"\{", "⦃").replace(r"\}", "⦄").replace(r"\|", "|").replace(r"\_", "_")
    text = re.sub(r"\\[(\[]", "\x02", text)
    text = re.sub(r"\\[)\]]", "\x01", text)
    text = _MATH_SPAN.sub(_span, _MATRIX.sub(_matrix, text))
    text = _BETWEEN_SPANS.sub(" ; ", text).translate({1: " ", 2: " "}).replace("$", "＄")
    text = _REPEATING.sub(_repeating, _SPACES.sub(" ", _DEGREE.sub("°", text)))
    for _ in range(3):  # texts within texts
        text = _WRAPPERS.sub(r"\1", text)
    text = _COMMAND.sub(_command, _fractions(text))
    return _groups(text).replace("⦃", "{").replace("⦄", "}")


def _span(match: re.Match[str]) -> str:
    """A pair of dollars around mathematics; around words they are money."""
    inside = match[2]
    if len(match[1]) == 1 and _IN_SPAN_WORDS.search(inside):
        return match[0].replace("$", "＄")
    return f"\x02{inside}\x01"


def _matrix(match: re.Match[str]) -> str:
    rows = [row.split("&") for row in _ROW_END.split(match[2]) if row.strip()]
    if len(rows) == 1 or all(len(row) == 1 for row in rows):
        return f"({', '.join(cell for row in rows for cell in row)})"
    return f"[{', '.join('[' + ', '.join(row) + ']' for row in rows)}]"


def _command(match: re.Match[str]) -> str:
    name = match[1]
    if name in _COMMANDS:
        # A space behind a command ends its name and is no space in the formula.
        return _COMMANDS[name]
    return match[0]


def _fractions(text: str) -> str:
    """`\\frac{a}{b}` as ((a)/(b)), plain behind a number: 1 1/2; roots as √(a)."""
    for _ in range(12):  # each round takes the innermost left
        found = list(_FRACTION.finditer(text))
        if not found:
            break
        match = found[-1]
        top, end = argument(text, match.end())
        bottom, end = argument(text, end)
        if top is None or bottom is None:
            break
        before = text[: match.start()].rstrip()
        is_mixed = before[-1:].isdigit() and top.isdigit() and bottom.isdigit()
        made = f" {top}/{bottom} " if is_mixed else f"(({top})/({bottom}))"
        text = text[: match.start()] + made + text[end:]
    for _ in range(12):
        found = list(_ROOT.finditer(text))
        if not found:
            break
        match = found[-1]
        inside, end = argument(text, match.end())
        if inside is None:
            break
        made = f"({inside})^(1/({match[1]}))" if match[1] else f"√({inside})"
        text = text[: match.start()] + made + text[end:]
    return text


def argument(text: str, place: int) -> tuple[str | None, int]:
    """The argument of a LaTeX command at `place`, `{…}` or one character, and its end."""
    while place < len(text) and text[place] == " ":
        place += 1
    if place >= len(text):
        return None, place
    if text[place] != "{":
        return text[place], place + 1
    depth = 0
    for end in range(place, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[place + 1 : end], end + 1
    return None, place


def _groups(text: str) -> str:
    """Braces that only group become brackets; those of a plain list {1, 2} stay a set."""
    for _ in range(6):
        grouped = re.sub(r"\{([^{}]*)\}", _group, text)
        if grouped == text:
            break
        text = grouped
    return text.replace("\x03", "{").replace("\x04", "}")


def _group(match: re.Match[str]) -> str:
    inside = match[1].strip()
    before = match.string[: match.start()].rstrip()[-1:]
    if "," in inside and before not in ("^", "_"):
        return f"\x03{inside}\x04"
    if before == "_":
        return inside if inside.isalnum() else f"({inside})"
    if inside.isdigit() and before == "^":
        return inside
    return f"({inside})"
