"""The demo model's words: what it can hear, how it writes them, and its sentencepiece model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sentencepiece import sentencepiece_model_pb2 as sentencepiece_pb2

Language = Literal["en", "zh"]

ENGLISH = (
    "zero one two three four five six seven eight nine ten hello world please start stop open close"
    " the door light on off turn up down left right yes no good morning thank you weather today"
    " tomorrow time play music call home"
).split()
CHINESE = list("零一二三四五六七八九十今天明气你好请打开关闭灯门音乐播放电话回家早上谢")

WIDE_ENGLISH = (
    ENGLISH
    + (
        "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
        " twenty thirty forty fifty sixty seventy eighty ninety"
        " monday tuesday wednesday thursday friday saturday sunday"
        " january february march april may june july august september october november december"
        " yesterday now noon midnight evening night week month year minute half past quarter"
        " london paris beijing shanghai tokyo china england america"
        " school hospital station airport office kitchen hotel bank street city park restaurant"
        " what where when is my your we car bus train water coffee tea bread apple cat dog book"
        " phone message help big small hot cold green blue black white new old happy friend family"
        " and not go come drink"
    ).split()
)
# No two share a toned syllable, and espeak-ng says none nearly like another (是 and 十, 饭 and 放).
WIDE_CHINESE = CHINESE + list(
    "年周点分半刻晚中秒我他不去来在大小多少人水茶吃喝看听说写买车站路学国北海南东西左右"
    "前后下里外雨热冷红绿白黑猫狗书高新快慢爱见对老城楼生火飞机手"
)

ENGLISH_PHRASES = (
    "good morning|hello world|thank you|turn on the light|turn off the light|open the door|"
    "close the door|play music|stop music|call home|what time is it|the weather today|"
    "turn left|turn right|up and down|half past nine|quarter past three|good evening|good night|"
    "where is the station|where is my phone|what is the weather tomorrow|happy new year|"
    "hot coffee please|cold water please|go to the airport|come home|we want tea|"
    "monday morning|friday night|new message|call my family"
).split("|")
CHINESE_PHRASES = (
    "今天|明天|天气|今天天气|你好|请打开灯|请关闭灯|打开门|关闭门|播放音乐|打电话|请打电话|回家|早上好|"
    "谢谢|谢谢你|请开门|关灯|开灯|上车|下车|车站|去学|国家|你好吗|晚上好|中国|北海|东南西北|左右|前后|"
    "喝茶|喝水|吃饭|看书|听音乐|说话|写书|买车|高楼|飞机|火车|手机|大小|多少|三点半|九点一刻|今年|去年|"
    "下雨|很热|红绿灯|黑白|小猫|小狗|老人|我爱你|不是|我是|新年快乐"
).split("|")

UNITS = "one two three four five six seven eight nine".split()
SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
CHINESE_DIGITS = "零一二三四五六七八九"
CHINESE_TEN = "十"

SPECIALS = ("<unk>", "<s>", "</s>")
TAGS = (
    "<|zh|>", "<|en|>", "<|yue|>", "<|ja|>", "<|ko|>", "<|nospeech|>",
    "<|NEUTRAL|>", "<|EMO_UNKNOWN|>", "<|Speech|>", "<|Event_UNK|>", "<|withitn|>", "<|woitn|>",
)  # fmt: skip
SPACE = "▁"
BLANK_ID = 0


@dataclass(frozen=True)
class Lexicon:
    """The words that utterances are drawn from: the base list, or the wide one."""

    english: Sequence[str]
    chinese: Sequence[str]

    def of(self, language: Language) -> Sequence[str]:
        return self.english if language == "en" else self.chinese


BASE = Lexicon(ENGLISH, CHINESE)
WIDE = Lexicon(WIDE_ENGLISH, WIDE_CHINESE)


def phrases(language: Language) -> list[list[str]]:
    """Everyday phrases of the wide list, as words; those with a word outside it are left out."""
    known = set(WIDE.of(language))
    texts = ENGLISH_PHRASES if language == "en" else CHINESE_PHRASES
    split = [text.split() if language == "en" else list(text) for text in texts]
    return [words for words in split if known.issuperset(words)]


def pieces() -> list[str]:
    """All pieces in the order of their ids; blank is id 0."""
    words = [SPACE + word for word in WIDE_ENGLISH] + list(WIDE_CHINESE)
    digits = [SPACE + str(n) for n in range(10)] + [str(n) for n in range(10)]
    return [*SPECIALS, *words, *digits, SPACE, *TAGS]


def spell(words: Sequence[str], language: Language, *, use_itn: bool) -> list[list[str]]:
    """The pieces that each word adds to the text: one, or with ITN none to two digits."""
    if not use_itn:
        return [[SPACE + word] if language == "en" else [word] for word in words]
    return list(_spell_english(words) if language == "en" else _spell_chinese(words))


def _spell_english(words: Sequence[str]) -> Iterator[list[str]]:
    """``twenty one`` is 21; every other number stands alone."""
    for i, word in enumerate(words):
        follows_tens = i > 0 and words[i - 1] in TENS
        if word in UNITS and follows_tens:
            yield [str(UNITS.index(word) + 1)]
        elif word in SMALL:
            first, *rest = list(str(SMALL.index(word)))
            yield [SPACE + first, *rest]
        elif word in TENS:
            has_unit = i + 1 < len(words) and words[i + 1] in UNITS
            first = SPACE + str(TENS.index(word) + 2)
            yield [first] if has_unit else [first, "0"]
        else:
            yield [SPACE + word]


def _spell_chinese(words: Sequence[str]) -> Iterator[list[str]]:
    """``三十五`` is 35; a digit ahead of 十 is its tens, one after it its unit."""

    def is_unit(i: int) -> bool:
        return 0 <= i < len(words) and words[i] in CHINESE_DIGITS[1:]

    for i, word in enumerate(words):
        if word in CHINESE_DIGITS:
            yield [str(CHINESE_DIGITS.index(word))]
        elif word == CHINESE_TEN:
            next_is_tens = i + 2 < len(words) and words[i + 2] == CHINESE_TEN
            tens = [] if is_unit(i - 1) else ["1"]
            yield tens if is_unit(i + 1) and not next_is_tens else [*tens, "0"]
        else:
            yield [word]


def sentencepiece_model() -> bytes:
    """A unigram model over whole words, in sentencepiece's own format."""
    proto: Any = sentencepiece_pb2  # its classes are made at run time, unseen by type checkers
    model, types = proto.ModelProto(), proto.ModelProto.SentencePiece
    for index, piece in enumerate(pieces()):
        entry = model.pieces.add(
            piece=piece, score=0.0 if piece in TAGS else -float(len(piece) > 1)
        )
        if index == 0:
            entry.type = types.UNKNOWN
        elif piece in SPECIALS:
            entry.type = types.CONTROL
        elif piece in TAGS:
            entry.type = types.USER_DEFINED
    model.trainer_spec.model_type = proto.TrainerSpec.UNIGRAM
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.unk_surface = " "
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = True
    model.normalizer_spec.escape_whitespaces = True
    return bytes(model.SerializeToString())
