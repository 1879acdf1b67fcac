"""Units of measure and money, so that 5 cm is not 5 m, and 60 min is 1 h."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

Dimensions = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Unit:
    """A unit as `factor` times base units, e.g. km/h is 5/18 of (m, 1), (s, -1)."""

    factor: Fraction
    dimensions: Dimensions
    name: str

    def __mul__(self, other: "Unit") -> "Unit":
        powers = dict(self.dimensions)
        for base, power in other.dimensions:
            powers[base] = powers.get(base, 0) + power
        kept = tuple(sorted((base, power) for base, power in powers.items() if power))
        return Unit(self.factor * other.factor, kept, f"{self.name} {other.name}")

    def raised(self, power: int) -> "Unit":
        """The unit to a small whole power."""
        powers = tuple((base, exponent * power) for base, exponent in self.dimensions)
        return Unit(self.factor**power, powers, f"{self.name}^{power}")


# base: names of the unit with its factor. Symbols keep their case, words do not.
_TABLE = """
m 1: m meter metre metres mtr 米 公尺 メートル 미터
m 1000: km kms kilometer kilometre 千米 公里 キロメートル 킬로미터
m 1/100: cm cms centimeter centimetre 厘米 公分 センチ センチメートル 센티미터
m 1/10: dm decimeter decimetre 分米
m 1/1000: mm millimeter millimetre 毫米 ミリ ミリメートル 밀리미터
m 1/1000000: µm μm um micrometer micron 微米
m 1/1000000000: nm nanometer 纳米
m 1852: nmi 海里
m 1609344/1000: mi mile マイル 마일 英里
m 9144/10000: yd yard ヤード 码
m 3048/10000: ft foot feet フィート 英尺
m 254/10000: inch inches インチ 英寸
g 1: g gram gramme 克 グラム 그램
g 500: 斤
g 1000: kg kgs kilogram kilo 千克 公斤 キログラム キロ 킬로그램
g 1/1000: mg milligram 毫克 ミリグラム
g 1000000: tonne ton tons 吨 トン 톤
g 45359237/100000: lb lbs pound 磅 ポンド
g 45359237/1600000: oz ounce
s 1: s sec secs second 秒 秒钟 초 秒間
s 1/1000: ms millisecond 毫秒 ミリ秒
s 60: min mins minute 分 分钟 分間 분
s 3600: h hr hrs hour 小时 小時 時間 钟头 시간
s 86400: day days 天 日 日間 일 일간
s 1209600: fortnight
s 604800: week weeks wk 周 週間 주일
month 1: month months 个月 ヶ月 か月 개월
month 1200: century centuries 世紀 世纪 세기
month 120: decade
month 12: year years yr yrs 年間
m^3 1/1000: L l liter litre 升 リットル 리터
m^3 3785411784/1000000000000: gallon gal ガロン 加仑
m^3 946352946/1000000000000: quart
m^3 473176473/1000000000000: pint パイント 品脱
m^3 1/1000000: mL ml milliliter millilitre cc 毫升 ミリリットル
m^3 1/10000: dL dl デシリットル
m^2 10000: ha hectare 公顷 ヘクタール
m^2 40468564224/10000000: acre エーカー 英亩
m^2 1: 平米
deg 1: ° degree degrees deg 度 도
rad 1: rad rads radian ラジアン 弧度
°C 1: °C ℃ celsius
°F 1: °F ℉ fahrenheit
N 1: N newton ニュートン
J 1: J joule ジュール 焦耳
J 1000: kJ kilojoule
J 3600000: kWh
cal 1: cal calorie
cal 1000: kcal kilocalorie
W 1: W watt ワット 瓦
W 1000: kW kilowatt
V 1: V volt ボルト 伏
A 1: A amp amps ampere アンペア 安培
A 1/1000: mA
ohm 1: Ω ohm オーム 欧姆
Pa 1: Pa pascal
Pa 1000: kPa
Hz 1: Hz hertz ヘルツ
Hz 1000: kHz
Hz 1000000: MHz
K 1: K kelvin
mol 1: mol mole
C 1: C coulomb
byte 1: byte bytes B
byte 1000: kB KB kilobyte
byte 1000000: MB megabyte
byte 1000000000: GB gigabyte
usd 1: $ ＄ USD US$ dollar dollars 美元 ドル 달러
usd 1/100: cent cents ¢
eur 1: € EUR euro ユーロ 欧元 유로
gbp 1: £ GBP
inr 1: ₹ INR Rs rupee rupees
jpy 1: ¥ JPY yen 円 엔 日元
cny 1: CNY RMB yuan 元 人民币
cny 1/10: 角
krw 1: ₩ KRW won 원
"""
_CURRENCIES = ("usd", "eur", "gbp", "inr", "jpy", "cny", "krw")
# Words of counting without a unit: the same as no unit.
_COUNTED = (
    "個 个 箇 つ ヶ 개 items item objects object things thing pieces piece units unit pcs pc total "
    "times different distinct altogether overall in the of are there is a an these those all "
    "approximately exactly about around roughly answer result th st nd rd only just which"
)


_COUNTERS = frozenset(_COUNTED.split())
# Words that count what no unit measures, besides plurals; and words that only look like plurals.
_COUNTING = (
    "people person men women children sheep fish mice 人 本 匹 枚 冊 台 頭 羽 名 只 条 张 張 "
    "명 마리 권 대 그루 송이 자루"
)
_THINGS = frozenset(_COUNTING.split())
_UNCOUNTING = "plus minus always perhaps thus times versus afterwards besides"
_NO_PLURALS = frozenset(_UNCOUNTING.split())


def _entries() -> Iterator[tuple[str, Unit]]:
    for line in _TABLE.strip().splitlines():
        head, _, names = line.partition(": ")
        base, _, factor = head.partition(" ")
        base, _, power = base.partition("^")
        for name in names.split():
            unit = Unit(Fraction(factor), ((base, int(power or 1)),), name)
            yield name, unit
            if name.isascii() and name.isalpha() and len(name) > 3:
                yield f"{name}s", unit


_BY_NAME = MappingProxyType(dict(_entries()))
_BY_WORD = MappingProxyType(
    {
        name.casefold(): unit
        for name, unit in _BY_NAME.items()
        if len(name) > 2 or not name.isascii()
    }
)
# Characters of East Asia stand without spaces: the longest name that a run begins with.
_EAST = tuple(sorted((name for name in _BY_NAME if ord(name[0]) > 0x2E80), key=len, reverse=True))
_SQUARES = MappingProxyType(
    {"平方": 2, "立方": 3, "square": 2, "sq": 2, "cubic": 3, "cu": 3, "제곱": 2, "세제곱": 3}
)
_POWERED = re.compile(r"(?P<name>[A-Za-zµμ]+)(?P<power>[23])")
DEGREES, RADIANS = (("deg", 1),), (("rad", 1),)
_RATES = MappingProxyType(
    {"mph": ("mi", "h"), "kph": ("km", "h"), "kmh": ("km", "h")}
    | dict.fromkeys(("knot", "knots", "ノット"), ("nmi", "h"))
)
CURRENCY_SIGNS = "＄€£¥₩₹¢"
CURRENCY_CODES = tuple(
    name
    for name, unit in _BY_NAME.items()
    if unit.dimensions[0][0] in _CURRENCIES
    and name.isalpha()
    and name.isascii()
    and name[0].isupper()
)


def unit_of(word: str) -> Unit | None:
    """The unit called `word`: km, metres, cm2, $, 円."""
    if powered := _POWERED.fullmatch(word):
        found = unit_of(powered["name"])
        return found.raised(int(powered["power"])) if found else None
    if over := _RATES.get(word.casefold()):
        return _BY_NAME[over[0]] * _BY_NAME[over[1]].raised(-1)
    return _BY_NAME.get(word) or _BY_WORD.get(word.casefold())


def are_alike(one: Unit, other: Unit) -> bool:
    """Whether two units measure the same; ¥ is yen or yuan, degrees are angles or heat."""
    if "¥" in (one.name, other.name):
        return {one.dimensions, other.dimensions} <= {(("jpy", 1),), (("cny", 1),)}
    if one.dimensions == other.dimensions:
        return True
    kinds = {one.dimensions, other.dimensions}
    return DEGREES in kinds and bool(kinds & {RADIANS, (("°C", 1),), (("°F", 1),)})


def unit_at_start(run: str) -> tuple[Unit, str] | None:
    """The unit that a run of East Asian characters begins with, and the rest of the run."""
    for prefix in ("平方", "立方", "제곱", "세제곱"):
        if run.startswith(prefix) and (found := unit_at_start(run[len(prefix) :].lstrip())):
            return found[0].raised(_SQUARES[prefix]), found[1]
    for name in _EAST:
        if run.startswith(name):
            return _BY_NAME[name], run[len(name) :]
    return None


def power_of(word: str) -> int | None:
    """2 for square, 3 for cubic, else None."""
    return _SQUARES.get(word.casefold())


def counts_nothing(word: str) -> bool:
    """Whether a word after a number only counts, as `items` does."""
    return word.casefold() in _COUNTERS


def counts_things(word: str) -> bool:
    """Whether a word behind a number counts things, as in 5 bottles or 5人, which 5 cm are not."""
    word = word.casefold()
    is_plural = word.isascii() and word.isalpha() and len(word) > 3 and word[-1] == "s" != word[-2]
    return word in _THINGS or (is_plural and word not in _NO_PLURALS and not counts_nothing(word))
