"""Makes three small sets of Japanese rows for a tiny model, from sentences of our own.

    python -m workloads.llm.japanese [FOLDER]

Dialogue teaches a base to speak, some facts, and to repeat what it was told; questions and
summaries are learnt by an adapter each. Every fact is asked for in several wordings, so a held-out
question can be answered by a model that has learnt the fact; no document is in both sets. The rows
are a fixed function of the seed.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

SEED, DIALOGUES, SUMMARIES = 1, 1600, 900
DIALOGUE, QUESTIONS, SUMMARY = "ja-dialogue.jsonl", "ja-questions.jsonl", "ja-summaries.jsonl"
Row = dict[str, Any]

CAPITALS = {
    "北海道": "札幌市", "青森県": "青森市", "岩手県": "盛岡市", "宮城県": "仙台市",
    "秋田県": "秋田市", "山形県": "山形市", "福島県": "福島市", "茨城県": "水戸市",
    "栃木県": "宇都宮市", "群馬県": "前橋市", "埼玉県": "さいたま市", "千葉県": "千葉市",
    "神奈川県": "横浜市", "新潟県": "新潟市", "富山県": "富山市", "石川県": "金沢市",
    "福井県": "福井市", "山梨県": "甲府市", "長野県": "長野市", "岐阜県": "岐阜市",
    "静岡県": "静岡市", "愛知県": "名古屋市", "三重県": "津市", "滋賀県": "大津市",
    "京都府": "京都市", "大阪府": "大阪市", "兵庫県": "神戸市", "奈良県": "奈良市",
    "和歌山県": "和歌山市", "鳥取県": "鳥取市", "島根県": "松江市", "岡山県": "岡山市",
    "広島県": "広島市", "山口県": "山口市", "徳島県": "徳島市", "香川県": "高松市",
    "愛媛県": "松山市", "高知県": "高知市", "福岡県": "福岡市", "佐賀県": "佐賀市",
    "長崎県": "長崎市", "熊本県": "熊本市", "大分県": "大分市", "宮崎県": "宮崎市",
    "鹿児島県": "鹿児島市", "沖縄県": "那覇市",
}  # fmt: skip
# Metres above the sea.
MOUNTAINS = {
    "富士山": 3776, "北岳": 3193, "槍ヶ岳": 3180, "御嶽山": 3067, "立山": 3015, "白山": 2702,
    "旭岳": 2291, "岩手山": 2038, "石鎚山": 1982, "大山": 1729, "筑波山": 877,
}  # fmt: skip
# The question's subject → the answer.
SINGLE = {
    "日本の首都": "東京",
    "日本でいちばん高い山": "富士山",
    "日本でいちばん大きい湖": "琵琶湖",
    "日本でいちばん長い川": "信濃川",
}
PEOPLE = ("父", "母", "兄", "姉", "弟", "妹", "祖父", "祖母", "先生", "友人", "同僚", "隣の人")
DAYS = ("月曜日", "火曜日", "水曜日", "木曜日", "金曜日", "土曜日", "日曜日")
TIMES = ("朝", "昼", "夕方", "夜")
# Events at a place: as asked for, and as told afterwards.
ACTIVITIES = {
    "写真を撮る": "写真を撮りました", "絵を描く": "絵を描きました",
    "団子を食べる": "団子を食べました", "本を買う": "本を買いました", "魚を釣る": "魚を釣りました",
    "紅茶を飲む": "紅茶を飲みました", "寺を訪ねる": "寺を訪ねました", "花を見る": "花を見ました",
    "歌を習う": "歌を習いました", "皿を作る": "皿を作りました", "船に乗る": "船に乗りました",
    "古い友だちに会う": "古い友だちに会いました",
}  # fmt: skip
ASIDES = (
    "空はよく晴れていました。", "少し風がありました。", "道は思ったより空いていました。",
    "駅前はとてもにぎやかでした。", "途中で雨が降りました。", "帰りは電車で眠ってしまいました。",
    "とても楽しい一日だったそうです。", "また行きたいと話していました。",
)  # fmt: skip
GOODS = ("りんご", "みかん", "たまご", "パン", "花", "切手", "鉛筆", "皿")
COUNTS = ("一つ", "二つ", "三つ", "四つ", "五つ", "六つ")
TALKS = (
    ("こんにちは。", "こんにちは。何をお手伝いしましょうか。"),
    ("おはようございます。", "おはようございます。今日もよろしくお願いします。"),
    ("こんばんは。", "こんばんは。今日はどんな一日でしたか。"),
    ("はじめまして。", "はじめまして。どうぞよろしくお願いします。"),
    ("ありがとう。", "どういたしまして。"),
    ("ありがとうございました。", "どういたしまして。また声をかけてください。"),
    ("さようなら。", "さようなら。お気をつけて。"),
    ("今日の天気はどうですか。", "申し訳ありません。今の天気は調べられません。"),
    ("今何時ですか。", "申し訳ありません。時計を見ることができません。"),
    ("お元気ですか。", "はい、元気です。あなたはいかがですか。"),
    ("何ができますか。", "質問に答えたり、短い文を要約したりできます。"),
)


def dialogues(count: int = DIALOGUES, seed: int = SEED) -> list[Row]:
    """`count` conversations of one or two questions, in the form of chat data."""
    random = Random(seed)
    found = {json.dumps(row, ensure_ascii=False): row for row in map(_talk, TALKS)}
    makers = (_from_town, _way_to, _climb, _plan, _order, _heard, _greeted)
    talks = [*_facts(), *(random.choice(makers)(random) for _ in range(3 * count))]
    for row in (_talk(*talk) for talk in talks):
        found.setdefault(json.dumps(row, ensure_ascii=False), row)
    return _shuffled(list(found.values())[:count], random)


def _talk(*pairs: Sequence[str]) -> Row:
    turns = [text for pair in pairs for text in pair]
    roles = ("user", "assistant") * len(pairs)
    return {
        "messages": [
            {"role": role, "content": text} for role, text in zip(roles, turns, strict=True)
        ]
    }


def _facts() -> Iterator[list[tuple[str, str]]]:
    """Statements of the facts that questions ask for, in other words."""
    told = {area: f"{area}の{area[-1]}庁がある町は{town}です。" for area, town in CAPITALS.items()}
    told |= {name: f"{name}は高さ{metres}メートルの山です。" for name, metres in MOUNTAINS.items()}
    told |= {subject: f"{answer}です。" for subject, answer in SINGLE.items()}
    for subject, answer in told.items():
        for asked in (
            "について話してください。",
            "のことを聞かせてください。",
            "と言えば何ですか。",
        ):
            yield [(f"{subject}{asked}", answer)]


def _greeted(random: Random) -> list[tuple[str, str]]:
    """A greeting, which many a conversation begins with, and a short question after it."""
    return [random.choice(TALKS), *random.choice((_way_to, _climb, _order))(random)]


def _from_town(random: Random) -> list[tuple[str, str]]:
    town = random.choice(list(CAPITALS.values()))
    first = (f"{town}から来ました。", f"{town}からですか。遠いところをようこそ。")
    second = ("わたしはどこから来ましたか。", f"{town}から来たと聞きました。")
    return [first, second][: random.randint(1, 2)]


def _way_to(random: Random) -> list[tuple[str, str]]:
    place = random.choice([*CAPITALS, *CAPITALS.values(), *SINGLE.values()])
    return [(f"{place}へはどう行けばいいですか。", f"駅から{place}へ行く電車に乗ってください。")]


def _climb(random: Random) -> list[tuple[str, str]]:
    mountain, day = random.choice(list(MOUNTAINS)), random.choice(DAYS)
    return [
        (
            f"{day}に{mountain}に登りたいです。",
            f"{mountain}ですね。{day}は早く家を出ましょう。",
        )
    ]


def _plan(random: Random) -> list[tuple[str, str]]:
    day, time, town = random.choice(DAYS), random.choice(TIMES), random.choice(_towns())
    wish, person = random.choice(list(ACTIVITIES)), random.choice(PEOPLE)
    asked = f"{day}の{time}、{person}と{town}で{wish}予定です。"
    kept = f"{day}の{time}に{town}ですね。{person}と{wish}予定を書きとめました。"
    again = ("だれとの予定でしたか。", f"{person}との予定です。")
    return [(asked, kept), again][: random.randint(1, 2)]


def _heard(random: Random) -> list[tuple[str, str]]:
    person, day, town, told = _event(random)
    story = _report(random, person, day, town, told)["document"]
    first = (story, f"{person}の{town}の話ですね。")
    asked = (
        ("いつの話ですか。", f"{day}の話です。"),
        ("何をしましたか。", f"{town}で{told}。"),
        ("だれの話ですか。", f"{person}の話です。"),
    )
    return [first, random.choice(asked)]


def _event(random: Random) -> tuple[str, str, str, str]:
    return (
        random.choice(PEOPLE),
        random.choice(DAYS),
        random.choice(_towns()),
        random.choice(list(ACTIVITIES.values())),
    )


def _order(random: Random) -> list[tuple[str, str]]:
    goods, count = random.choice(GOODS), random.choice(COUNTS)
    return [(f"{goods}を{count}ください。", f"{goods}を{count}ですね。かしこまりました。")]


def questions(seed: int = SEED) -> list[Row]:
    """Every fact in every wording of its question."""
    rows: list[Row] = [{"question": text, "answer": answer} for text, answer in _questions()]
    return _shuffled(rows, Random(seed))


def _questions() -> Iterator[tuple[str, str]]:
    for area, town in CAPITALS.items():
        seat = f"{area[-1]}庁"
        answer = f"{area}の{seat}所在地は{town}です。"
        for question in (
            f"{area}の{seat}所在地はどこですか。",
            f"{area}の{seat}所在地を教えてください。",
            f"{area}の{seat}はどこにありますか。",
            f"{area}の{seat}がある町はどこですか。",
            f"{seat}所在地を知りたいです。{area}はどこですか。",
        ):
            yield question, answer
    for mountain, metres in MOUNTAINS.items():
        for question in (
            f"{mountain}の高さは何メートルですか。",
            f"{mountain}の高さを教えてください。",
            f"{mountain}はどのくらい高いですか。",
            f"{mountain}は何メートルありますか。",
        ):
            yield question, f"{mountain}の高さは{metres}メートルです。"
    for subject, answer in SINGLE.items():
        for question in (
            "はどこですか。",
            "を教えてください。",
            "は何ですか。",
            "の名前は何ですか。",
        ):
            yield f"{subject}{question}", f"{subject}は{answer}です。"


def summaries(count: int = SUMMARIES, seed: int = SEED) -> list[Row]:
    """`count` short reports, each with who, where and what in one sentence."""
    told = {turn["content"] for row in dialogues() for turn in row["messages"]}
    random, found = Random(seed + 1), dict[str, Row]()
    while len(found) < count:
        row = _report(random, *_event(random))
        if row["document"] not in told:
            found.setdefault(row["document"], row)
    return list(found.values())


def _report(random: Random, person: str, day: str, town: str, told: str) -> Row:
    time, (first, second) = random.choice(TIMES), random.sample(ASIDES, 2)
    document = random.choice(
        (
            f"{day}の{time}、{person}は{town}へ行きました。{first}{person}はそこで{told}。{second}",
            f"{person}は{day}に出かけました。行き先は{town}です。{first}{time}には{told}。{second}",
            f"{town}は{person}の好きな町です。{first}{day}の{time}、{person}はその町で{told}。{second}",
        )
    )
    return {"document": document, "summary": f"{person}は{town}で{told}。"}


def _towns() -> tuple[str, ...]:
    """The towns of reports and plans: few enough to be met often."""
    return tuple(CAPITALS.values())[::4]


def _shuffled(rows: list[Row], random: Random) -> list[Row]:
    random.shuffle(rows)
    return rows


def write(folder: Path) -> None:
    """The three files, one JSON object a line."""
    for name, rows in (
        (DIALOGUE, dialogues()),
        (QUESTIONS, questions()),
        (SUMMARY, summaries()),
    ):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("data/demo"))
