#!/usr/bin/env python3
"""Trains a small tokenizer of the Qwen3.5 kind and records what HF tokenizers makes of many strings.

usage: make_tokenizer_goldens.py [--qwen3 tokenizer.json.gz] [OUTDIR]

OUTDIR is tokenizer/ beside this file when left out. The real Qwen3 tokenizer is optional: without it the
recorded ids of cases_qwen3.bin and the qwen3 half of long.json cannot be made and are left as they are.
README.md beside this file describes every output.
"""
import gzip
import hashlib
import json
import os
import random
import sys
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import trainers
import unicodedata2

HERE = Path(__file__).resolve().parent
QWEN3 = HERE / "../../../shared/data/tokenizers/qwen3/tokenizer.json.gz"
BASE_VOCAB = 2000
SEED = 35
FLAG_PLAIN = 1
FLAG_NFC_NEW = 2

REGEX = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
         r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

# In the order of the ids 248044.. of the published tokenizer; True: special.
ADDED = (
    [(t, True) for t in (
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
        "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
        "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")]
    + [(t, False) for t in (
        "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
        "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>")]
    + [(t, True) for t in (
        "<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>",
        "<tts_text_bos_single>", "<|audio_pad|>")])

ENGLISH = """
The daemon reads the model once and keeps it until it is told to stop.
A request that does not fit is refused, and the answer says what would fit.
When the first token has been written, the client may already be gone.
She said that it wasn't hers; they'd've known, and I'm sure we'll see what you're doing.
Every number has its unit, every queue has its limit, every error has a name.
Water boils at one hundred degrees, but not on the top of a mountain.
It was a bright morning in early spring, and the river ran high between its banks.
How many people have asked this question before, and how many of them got an answer?
The quick brown fox jumps over the lazy dog while the old clock strikes thirteen.
There is nothing in the world that the children would rather have than a little more time.
In the beginning the whole system was small enough to be understood by one person.
Please write a short function that returns the largest value of a list of integers.
The following example shows how to call the function with two parameters.
You should not use this function if the input could be larger than the available memory.
Thinking about the problem again, we can see that the second condition is never true.
The user wants to know the weather in Paris, so I should call the weather function first.
""".strip().split("\n")

WORLD = """
Der Zug nach München fährt um halb acht, und die Straße ist gesperrt.
L'été dernier, nous avons mangé des crêpes près de la forêt, où il faisait très chaud.
El niño comió mañana y tarde; ¿dónde está la biblioteca? ¡Qué sorpresa!
A manhã está fria, mas o coração não; ações e reações são iguais.
Perché la città è così bella? Più tardi andrò all'università.
De trein naar 's-Gravenhage vertrekt zo meteen; m'n jas ligt nog thuis.
Det är en kylig höstdag på ön, och åskan går över sjön.
Ég heiti Þórður og á heima í Reykjavík, ðað er kalt.
Näin yöllä hyvää unta järven äärellä.
Žluťoučký kůň úpěl ďábelské ódy, příšerně žíznivý.
Zażółć gęślą jaźń, a potem śpij spokojnie w łóżku.
Árvíztűrő tükörfúrógép, öt szép szűzlány őrült írót nyúz.
İstanbul'da ışıklar söndü; çoğu kişi güneşi görmüyor.
Trời hôm nay đẹp quá, chúng ta đi ăn phở nhé?
Съешь же ещё этих мягких французских булок, да выпей чаю.
Їжак із п'яти ґав з'їв ще й яблуко; це було в Києві.
Ђаци су читали књигу о љубави и џепу.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία· ο ήλιος λάμπει.
Ὦ ξεῖν', ἀγγέλλειν Λακεδαιμονίοις ὅτι τῇδε κείμεθα.
שלום עולם, זהו מבחן קטן. בְּרֵאשִׁית בָּרָא אֱלֹהִים
مرحبا بالعالم، هذا اختبار صغير. بِسْمِ ٱللَّهِ ٱلرَّحْمَٰنِ
این یک آزمایش کوچک است؛ می‌خواهم بدانم ۱۲۳۴۵ چند است.
یہ ایک چھوٹا سا امتحان ہے۔ قیمت ۵۰۰ روپے ہے۔
नमस्ते दुनिया, यह एक छोटी परीक्षा है। क़ीमत १२३ रुपये।
আমার সোনার বাংলা, আমি তোমায় ভালোবাসি। ১২৩
ਸਤਿ ਸ੍ਰੀ ਅਕਾਲ, ਇਹ ਇੱਕ ਛੋਟਾ ਟੈਸਟ ਹੈ।
નમસ્તે, આ એક નાની કસોટી છે. ૧૨૩
ଏହା ଏକ ଛୋଟ ପରୀକ୍ଷା। ୧୨୩
வணக்கம் உலகம், இது ஒரு சிறிய சோதனை. கொள்கை
నమస్కారం ప్రపంచం, ఇది ఒక చిన్న పరీక్ష. ౧౨౩
ನಮಸ್ಕಾರ ಜಗತ್ತು, ಇದು ಒಂದು ಸಣ್ಣ ಪರೀಕ್ಷೆ.
നമസ്കാരം ലോകം, ഇത് ഒരു ചെറിയ പരീക്ഷണമാണ്.
ආයුබෝවන් ලෝකය, මෙය කුඩා පරීක්ෂණයකි.
สวัสดีชาวโลก นี่คือการทดสอบเล็ก ๆ น้ำใจ ๑๒๓
ສະບາຍດີຊາວໂລກ ນີ້ແມ່ນການທົດສອບ
མི་ལ་སྐྱེ་བ་ཡོད། བོད་ཡིག་ཚོད་ལྟ།
မင်္ဂလာပါ ကမ္ဘာ၊ ဒါက စမ်းသပ်မှု အသေးစားပါ။
សួស្តីពិភពលោក នេះជាការសាកល្បងតូចមួយ។
გამარჯობა მსოფლიო, ეს პატარა ტესტია. ᲐᲑᲒ
Բարեւ աշխարհ, սա փոքր փորձարկում է։
ሰላም ዓለም፣ ይህ ትንሽ ፈተና ነው። ፩፪፫
ᓄᓇᕗᑦ ᐃᓄᒃᑎᑐᑦ ᐅᖃᐅᓯᖅ
ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ꭰꭱꭲ
ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ᠌ ᠦᠨ ᠰᠣᠷᠢᠯᠲᠠ
今天天气很好，我们去公园散步吧。请写一个函数，返回列表中的最大值。
這是一個小測試，價格是三百五十元；「你好」他說。
吾輩は猫である。名前はまだ無い。カタカナとひらがな、ｶﾞｷﾞｸﾞ、株式会社㈱
안녕하세요 세계, 이것은 작은 시험입니다. 값은 삼백 원이에요. ㄱㄴㄷ
Habari ya dunia, hii ni jaribio dogo tu. Ọjọ́ dára, ẹ káàárọ̀.
Ħaġa moħġaġa: żunżana żgħira. Ŋdaŋa ɛ ɔ ʃ ʒ.
""".strip().split("\n")

CODE = r'''
int main(int argc, char **argv)
{
        if (argc < 2)
                return -EINVAL;
        for (size_t i = 0; i < n; i++)
                sum += a[i] * b[i];
        printf("%s: %d\n", argv[1], sum);
        return 0;
}
#include <stdint.h>
#define MIN(a, b) ((a) < (b) ? (a) : (b))
static const uint8_t table[256] = { 0x00, 0x1f, 0xff };
def largest(values: list[int]) -> int | None:
    """Returns the largest value, or None."""
    if not values:
        return None
    best = values[0]
    for value in values[1:]:
        if value > best:
            best = value
    return best

class Queue(object):
	def __init__(self, limit=1024):
		self.items, self.limit = [], limit
SELECT name, count(*) FROM users WHERE id >= 100 GROUP BY name ORDER BY 2 DESC;
{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius", "days": [1, 2, 3], "x": null, "y": true}}
<div class="row" id='a1'><a href="https://example.org/path?q=1&amp;r=2#top">text</a></div>
fn main() -> Result<(), Box<dyn Error>> { let mut v: Vec<u32> = vec![]; v.push(1); Ok(()) }
const f = async (x) => { await fetch(`/v1/${x}`); return x?.y ?? 0; };
$ curl -s -X POST http://localhost:8080/v1/chat/completions -H 'Content-Type: application/json' | jq .
x = 3.14159e-10; y += 1_000_000; z = 0b1010 ^ 0o777; s = 'it''s'; // comment
<tool_call>
<function=get_weather>
<parameter=city>
Paris
</parameter>
</function>
</tool_call>
\begin{equation} \frac{a}{b} = \sum_{i=0}^{n} x_i^2 \end{equation}
| a | b |
|---|:-:|
| 1 | 2 |
- [ ] item one
* item two
## Heading
'''.strip("\n").split("\n")

EMOJI = (
    "😀 🙂 👍 👍🏽 ❤️ 🔥 🎉 🇩🇪 🇯🇵 🏴󠁧󠁢󠁥󠁮󠁧󠁿 👨‍👩‍👧‍👦 👩🏾‍💻 🧑‍🚀 🏳️‍🌈 ☺️ ☀ ⚡️ "
    "1️⃣ #️⃣ ©️ ™ 🫠 🫩 🪉 🧑‍🧑‍🧒‍🧒 🙂‍↔️ 🐦‍🔥 🤷🏻‍♀️ ♟︎ 🀄 🃏 ✈️ ➕ 💯 ").split()

# What NFC changes, or has to leave alone.
NFC_PIECES = [
    "e\u0301", "E\u0301", "a\u0308\u0301", "o\u0302\u0323", "o\u0323\u0302", "u\u031b\u0323\u0309",
    "s\u0323\u0307", "s\u0307\u0323", "q\u0307\u0323", "\u1e9b\u0323", "\u0344", "\u0340", "\u0341",
    "\u0343", "\u0374", "\u037e", "\u0387", "\u0958", "\u095f", "\u0928\u093c", "\u09a1\u09bc",
    "\u09c7\u09be", "\u0b47\u0b56", "\u0bc6\u0bbe", "\u0cc6\u0cc2\u0cd5", "\u0d46\u0d3e",
    "\u0dd9\u0dcf\u0dca", "\u0f43", "\u0f71\u0f72", "\u0f73", "\u0f81", "\u1025\u102e", "\u1100\u1161",
    "\u1100\u1161\u11a8", "\uac00\u11a8", "\uac01\u11a8", "\u1100\u11a8", "\u1112\u1175\u11c2",
    "\u1b05\u1b35", "\u2126", "\u212a", "\u212b", "\u2329", "\u2adc", "\u304b\u3099", "\u30cf\u309a",
    "\u3099", "\uf900", "\ufa0e", "\ufa10", "\ufb1d", "\ufb2c", "\ufb4f", "\ufb01", "\uff76\uff9e",
    "\uff21", "\u00bd", "\u2460", "\U0001d15e", "\U0001d1bb", "\U0002f800", "\U0002fa1d",
    "\U00011099\U000110ba", "\U00011131\U00011127", "\U00011347\U0001133e", "\U000114b9\U000114ba",
    "\U00011935\U00011930", "a\u0315\u0300\u05ae\u0062", "a\u0327\u0323\u0301", "\u0301\u0301",
    "\u0061\u034f\u0301", "\u0915\u093c", "\u05d0\u05b7\u05bc", "\u05bc\u05b7", "\u0627\u0653",
    "\u0648\u0654", "\u064b\u0651", "\u0651\u064b", "<\u0338", ">\u0338", "=\u0338", "\u2190\u0338",
    "A\u030a\u0301", "\u00c5\u0301", "\u1e0a\u0323", "\u0306\u0307", "c\u0327\u0301",
    "\u03b1\u0345\u0301\u0313", "\u1fbe", "\u1fef", "\u2000", "\u2001", "\U00016121",
    "\U0001611e\U0001611e", "\U00011382\U000113c9", "\U00016d67\U00016d67", "a\u0897\u0316",
    "\U0001e4ec\u0316", "a" + "\u0301\u0316" * 20, "e" + "\u0323\u0301\u0327" * 11,
]

# Blocks that random strings are drawn from: (first, last).
BLOCKS = [
    (0x20, 0x7E), (0xA0, 0xFF), (0x100, 0x17F), (0x180, 0x24F), (0x250, 0x2AF), (0x2B0, 0x2FF), (0x300, 0x36F),
    (0x370, 0x3FF), (0x400, 0x4FF), (0x500, 0x52F), (0x531, 0x58F), (0x591, 0x5F4), (0x600, 0x6FF), (0x700, 0x74F),
    (0x780, 0x7B1), (0x7C0, 0x7FF), (0x800, 0x83E), (0x840, 0x85E), (0x860, 0x88F), (0x890, 0x8FF), (0x900, 0x97F),
    (0x980, 0x9FE), (0xA01, 0xA76), (0xA81, 0xAFF), (0xB01, 0xB77), (0xB82, 0xBFA), (0xC00, 0xC7F), (0xC80, 0xCF3),
    (0xD00, 0xD7F), (0xD81, 0xDF4), (0xE01, 0xE5B), (0xE81, 0xEDF), (0xF00, 0xFDA), (0x1000, 0x109F), (0x10A0, 0x10FF),
    (0x1100, 0x11FF), (0x1200, 0x139F), (0x13A0, 0x13FD), (0x1400, 0x167F), (0x1680, 0x169C), (0x16A0, 0x16F8),
    (0x1700, 0x1773), (0x1780, 0x17F9), (0x1800, 0x18AA), (0x18B0, 0x18F5), (0x1900, 0x19DF), (0x19E0, 0x1A1F),
    (0x1A20, 0x1AAD), (0x1AB0, 0x1ACE), (0x1B00, 0x1B7F), (0x1B80, 0x1BFF), (0x1C00, 0x1C4F), (0x1C50, 0x1C8A),
    (0x1C90, 0x1CBF), (0x1CD0, 0x1CFA), (0x1D00, 0x1DBF), (0x1DC0, 0x1DFF), (0x1E00, 0x1EFF), (0x1F00, 0x1FFE),
    (0x2000, 0x206F), (0x2070, 0x20C0), (0x20D0, 0x20F0), (0x2100, 0x218B), (0x2190, 0x23FF), (0x2400, 0x24FF),
    (0x2500, 0x27BF), (0x27C0, 0x2BFF), (0x2C00, 0x2C7F), (0x2C80, 0x2D2D), (0x2D30, 0x2DDE), (0x2DE0, 0x2E5D),
    (0x2E80, 0x2FD5), (0x2FF0, 0x303F), (0x3041, 0x30FF), (0x3105, 0x31E5), (0x31EF, 0x33FF), (0x3400, 0x4DBF),
    (0x4DC0, 0x4DFF), (0x4E00, 0x9FFF), (0xA000, 0xA4C6), (0xA4D0, 0xA62B), (0xA640, 0xA6F7), (0xA700, 0xA7FF),
    (0xA800, 0xA877), (0xA880, 0xA8FF), (0xA900, 0xA97C), (0xA980, 0xAA7F), (0xAA80, 0xAB2E), (0xAB30, 0xABF9),
    (0xAC00, 0xD7A3), (0xD7B0, 0xD7FB), (0xE000, 0xE100), (0xF900, 0xFAD9), (0xFB00, 0xFDFF), (0xFE00, 0xFE6F),
    (0xFE70, 0xFEFF), (0xFF01, 0xFFEE), (0xFFF9, 0xFFFF), (0x10000, 0x101FD), (0x10280, 0x1037A), (0x10380, 0x104FB),
    (0x10500, 0x107BA), (0x10800, 0x109FF), (0x10A00, 0x10B9F), (0x10C00, 0x10D8F), (0x10E60, 0x10FF6),
    (0x11000, 0x1124F), (0x11280, 0x113E2), (0x11400, 0x114D9), (0x11580, 0x1183B), (0x118A0, 0x11AF8),
    (0x11B00, 0x11DA9), (0x11EE0, 0x11FFF), (0x12000, 0x12543), (0x12F90, 0x12FF2), (0x13000, 0x143FA),
    (0x14400, 0x14646), (0x16100, 0x16139), (0x16800, 0x16B8F), (0x16D40, 0x16D79), (0x16E40, 0x16FF1),
    (0x17000, 0x18CFF), (0x1AFF0, 0x1B2FB), (0x1BC00, 0x1BCA3), (0x1CC00, 0x1CEB3), (0x1CF00, 0x1D1EA),
    (0x1D200, 0x1D378), (0x1D400, 0x1D7FF), (0x1D800, 0x1DAAF), (0x1DF00, 0x1E08F), (0x1E100, 0x1E2FF),
    (0x1E4D0, 0x1E5FF), (0x1E7E0, 0x1E95F), (0x1EC71, 0x1EEF1), (0x1F000, 0x1F2FF), (0x1F300, 0x1F5FF),
    (0x1F600, 0x1F6FF), (0x1F700, 0x1F8FF), (0x1F900, 0x1FAFF), (0x1FB00, 0x1FBF9), (0x20000, 0x2A6DF),
    (0x2A700, 0x2EBE0), (0x2EBF0, 0x2EE5D), (0x2F800, 0x2FA1D), (0x30000, 0x323AF), (0x323B0, 0x33479),
    (0xE0001, 0xE007F), (0xE0100, 0xE01EF), (0xF0000, 0xF0100), (0x10FF00, 0x10FFFF),
]
DIGIT_BLOCKS = [(0x660, 0x669), (0x966, 0x96F), (0xFF10, 0xFF19), (0x2160, 0x2188), (0xBC, 0xBE), (0x2460, 0x2473)]
MARK_BLOCKS = [(0x591, 0x5BD), (0x64B, 0x655), (0x3099, 0x309A), (0x93C, 0x94D), (0x1DC0, 0x1DFF)]
NEW_BLOCKS = [b for b in BLOCKS if b[0] in (
    0x2EBF0, 0x31EF, 0x2FF0, 0x16100, 0x16D40, 0x11280, 0x10C00, 0x11B00, 0x13000, 0x1CC00, 0x1E4D0, 0x1F900,
    0x1C50, 0xA700, 0x890, 0x1B00, 0x323B0, 0x11EE0, 0x1DF00, 0x30000)]

SPACES = [
    " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", " \n", "\n ", " \n ", "\t\n\t", "        ", "\v",
    "\f", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u2029", "\u202f", "\u205f",
    "\u3000", "\u200b", "\u2060", "\ufeff", "\u180e", " " * 16, "\n" * 7, "\r\n\r\n", "\t\t\t", " \t \t",
    "\xa0 ", " \xa0",
]

CONTRACTIONS = [
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'Ve", "'M", "'lL", "'D", "'x", "''s",
    "'", "\u2019s", "'\u017f", "'sa", "'lla", "'\u017fa", "'r", "'v", "'l", "'rE ", " 's", "\n's", "1's",
    "!'s", "'s's", "'ret", "'mm",
]

# What strict UTF-8 refuses.
BROKEN = [
    ("80", "lone continuation byte"), ("bf", "lone continuation byte"), ("c3", "lead byte at the end"),
    ("c328", "lead byte without continuation"), ("c080", "overlong NUL"), ("c1bf", "overlong U+007F"),
    ("e08080", "overlong NUL in three bytes"), ("e09fbf", "overlong U+07FF"),
    ("e28228", "third byte missing"), ("e282", "cut off"), ("eda080", "surrogate U+D800"),
    ("edafbf", "surrogate U+DBFF"), ("edb080", "surrogate U+DC00"), ("edbfbf", "surrogate U+DFFF"),
    ("eda0bdedb880", "CESU-8 pair"), ("f0808080", "overlong NUL in four bytes"),
    ("f08fbfbf", "overlong U+FFFF"), ("f09f98", "cut off"), ("f09f9828", "fourth byte missing"),
    ("f4908080", "above U+10FFFF"), ("f5808080", "lead byte F5"),
    ("f888808080", "five bytes"), ("fc8480808080", "six bytes"), ("fe", "byte FE"),
    ("ff", "byte FF"), ("61ff62", "byte FF inside text"), ("68656c6c6f20c3", "text, then cut off"),
    ("c3a9c3", "whole character, then cut off"), ("e4bda0e5a5", "whole character, then cut off"),
    ("3c7c696d5f73746172747c3eff", "after an added token"),
    ("ff3c7c696d5f73746172747c3e", "before an added token"), ("c2c2a0", "two lead bytes"),
    ("a0", "lone continuation byte"), ("f0", "lead byte at the end"),
]

LONG = [
    ("a", 1 << 20), (" ", 1 << 20), ("\n", 1 << 20), ("e\u0301", 1 << 18), ("7", 1 << 20), ("あ", 1 << 18),
    ("🙂", 1 << 18), ("!", 1 << 20), ("ab", 1 << 19), ("a ", 1 << 19), ("\u0301", 1 << 14),
    ("\u0301\u0316", 1 << 13), ("<|im_start|>", 1 << 14), ("the ", 1 << 18), ("\r\n", 1 << 19),
    (" \n", 1 << 19), ("한", 1 << 18), ("\u1112\u1161\u11ab", 1 << 17),
]


def corpus(rng):
    """What the tokenizer is trained on: the texts above, their words in other orders, and numbers."""
    lines = []
    for text, times in ((ENGLISH, 12), (CODE, 10), (WORLD, 5)):
        lines += text * times
    words = " ".join(ENGLISH).split()
    for _ in range(400):
        lines.append(" ".join(rng.choice(words) for _ in range(rng.randint(4, 14))) + ".")
    for _ in range(100):
        lines.append(f"{rng.choice(words)} = {rng.randint(0, 99999)};  # {rng.choice(words)}"
                     f"{rng.choice(CONTRACTIONS)}")
    lines += EMOJI * 2 + ["    " * k + "x\n" for k in range(8)]
    lines += ["\n\n\n", "\t\t", "-" * 40, "=" * 40, "aaaa" * 8, "*" * 30]
    return lines


def train(path):
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(REGEX), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])
    tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tok.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=BASE_VOCAB, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=[], show_progress=False)
    tok.train_from_iterator(corpus(random.Random(SEED)), trainer)
    assert tok.get_vocab_size() == BASE_VOCAB
    tok.add_tokens([AddedToken(t, special=s, normalized=False) for t, s in ADDED])
    assert tok.token_to_id("<|endoftext|>") == BASE_VOCAB and tok.token_to_id("<|audio_pad|>") == BASE_VOCAB + 32
    (path / "tokenizer.json").write_text(canonical(json.loads(tok.to_str())), encoding="utf-8")
    config = dict(add_bos_token=False, add_prefix_space=False, bos_token=None, clean_up_tokenization_spaces=False,
                  eos_token="<|im_end|>", errors="replace", model_max_length=262144, pad_token="<|endoftext|>",
                  split_special_tokens=False, tokenizer_class="Qwen2Tokenizer", unk_token=None)
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def canonical(j):
    """tokenizer.json with one vocabulary entry or merge a line, in the order of the ids."""
    model = j["model"]
    vocab = sorted(model["vocab"].items(), key=lambda kv: kv[1])
    dump = lambda x: json.dumps(x, ensure_ascii=False)
    head = {k: v for k, v in j.items() if k != "model"}
    out = ["{"] + [f" {dump(k)}: {dump(v)}," for k, v in head.items() if k != "added_tokens"]
    out += [' "added_tokens": [', ",\n".join("  " + dump(a) for a in j["added_tokens"]), " ],", ' "model": {']
    out += [f"  {dump(k)}: {dump(v)}," for k, v in model.items() if k not in ("vocab", "merges")]
    out += ['  "vocab": {', ",\n".join(f"   {dump(k)}: {v}" for k, v in vocab), "  },"]
    out += ['  "merges": [', ",\n".join("   " + dump(m) for m in model["merges"]), "  ]", " }", "}"]
    return "\n".join(out) + "\n"


def without_added(tok):
    j = json.loads(tok.to_str())
    j["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(j))


def make_strings(rng):
    """The case strings, each once, in a fixed order."""
    out = [""]
    world_words = [w for line in WORLD for w in line.split()]
    words = " ".join(ENGLISH).split()
    added = [t for t, _ in ADDED]

    def random_char(blocks):
        a, b = rng.choice(blocks)
        return chr(rng.randint(a, b))

    def from_blocks(n, blocks, p_space=0.12):
        return "".join(rng.choice(SPACES) if rng.random() < p_space else random_char(blocks) for _ in range(n))

    out += ENGLISH + WORLD + CODE + EMOJI + NFC_PIECES + SPACES + CONTRACTIONS + added
    out += ["".join(chr(c) for c in range(a, min(b, a + 48))) for a, b in BLOCKS]
    out += [chr(c) for c in range(0x80)] + ["a" + chr(c) + "b" for c in range(0x20)]
    out += [chr(c) * 3 for c in range(0x80, 0xA1)]
    out += ["\n".join(CODE[:9]), "\n".join(CODE[11:20]), "\r\n".join(CODE[20:24]), "\n".join(CODE)]
    out += ["\n\n".join(ENGLISH), " ".join(WORLD[:10]), " ".join(EMOJI), "".join(EMOJI), "".join(NFC_PIECES)]
    out += ["".join(added), " ".join(CONTRACTIONS)]
    for a, b in BLOCKS:  # one script at a time, as words
        for _ in range(4):
            out.append(" ".join("".join(random_char([(a, b)]) for _ in range(rng.randint(1, 7)))
                                for _ in range(rng.randint(1, 5))))
    for _ in range(450):  # words of many languages, with any space between
        out.append("".join(rng.choice(world_words) + rng.choice(SPACES[:9] + [" "] * 12)
                           for _ in range(rng.randint(1, 7))))
    for _ in range(400):  # any characters at all
        out.append(from_blocks(rng.randint(1, 24), BLOCKS))
    for _ in range(350):  # blocks of Unicode 15 to 17
        out.append(from_blocks(rng.randint(1, 14), NEW_BLOCKS + [(0x61, 0x7A)]))
    for _ in range(450):  # base characters under combining marks
        s = ""
        for _ in range(rng.randint(1, 6)):
            s += rng.choice("aeiouAEnszcαωиeу가ガかकكא1 .") if rng.random() < 0.8 else random_char(BLOCKS)
            s += "".join(chr(rng.randint(0x300, 0x345)) if rng.random() < 0.8 else random_char(MARK_BLOCKS)
                         for _ in range(rng.randint(0, 4)))
        out.append(s)
    for _ in range(300):
        out.append("".join(rng.choice(NFC_PIECES) + rng.choice(["", "", " ", "x"]) for _ in range(rng.randint(1, 5))))
    for _ in range(200):  # Hangul from its letters
        out.append("".join(chr(0x1100 + rng.randint(0, 18)) + chr(0x1161 + rng.randint(0, 20))
                           + (chr(0x11A7 + rng.randint(0, 27)) if rng.random() < 0.6 else "")
                           + rng.choice(["", " ", ""])
                           for _ in range(rng.randint(1, 6))))
    for _ in range(350):
        out.append("".join(rng.choice(words + ["I", "you", "it", "O", "1", "é", "我"])
                           + rng.choice(CONTRACTIONS) + rng.choice(["", " ", "\n", "!"])
                           for _ in range(rng.randint(1, 4))))
    for _ in range(400):  # runs of white space
        out.append("".join(rng.choice(SPACES) * rng.randint(1, 3)
                           + rng.choice(["", "", "a", "B1", ".", "é", "你", "\"", "{"])
                           for _ in range(rng.randint(1, 6))))
    for _ in range(350):
        out.append(rng.choice([
            lambda: f"20{rng.randint(10, 99)}-0{rng.randint(1, 9)}-1{rng.randint(0, 9)}T0{rng.randint(0, 9)}:30Z",
            lambda: str(rng.randint(0, 10 ** rng.randint(1, 25))),
            lambda: f"{rng.uniform(-1e6, 1e6):.{rng.randint(0, 9)}f}",
            lambda: f"{rng.randint(1, 999):,}{rng.randint(0, 999):03d}",
            lambda: f"0x{rng.getrandbits(64):x}",
            lambda: f"{rng.random() * 10 ** rng.randint(-20, 20):g}",
            lambda: "".join(random_char(DIGIT_BLOCKS) for _ in range(rng.randint(1, 8))),
            lambda: f"x{rng.randint(0, 99)}y {rng.randint(0, 9)}% ${rng.randint(1, 9999)}.{rng.randint(10, 99)}€",
        ])())
    for _ in range(350):  # code, cut and glued
        lines = [rng.choice(CODE) for _ in range(rng.randint(1, 3))]
        s = rng.choice(["\n", "\r\n", "\n\n    ", "\t"]).join(lines)
        a = rng.randint(0, len(s) // 2)
        out.append(s[a:a + rng.randint(1, 90)])
    for _ in range(300):
        out.append("".join(rng.choice(EMOJI + ["\u200d", "\ufe0f", "\U0001f3fd", " ", "a", "\u20e3"])
                           for _ in range(rng.randint(1, 9))))
    for _ in range(250):  # control characters
        out.append("".join(chr(rng.choice([rng.randint(0, 31), rng.randint(0x7F, 0x9F), rng.randint(0x61, 0x7A),
                                           0x20, 0x200E, 0xAD, 0xFFFD, 0xFFFF]))
                           for _ in range(rng.randint(1, 14))))
    n_plain = len(out)
    for _ in range(550):  # added tokens, whole, broken and touching what would combine with them
        s = ""
        for _ in range(rng.randint(1, 5)):
            t = rng.choice(added)
            k = rng.random()
            if k < 0.12:
                t = t[:rng.randint(1, len(t) - 1)]
            elif k < 0.2:
                t = t[rng.randint(1, len(t) - 1):]
            elif k < 0.26:
                t = t.upper()
            elif k < 0.3:
                t = "<" + t + ">"
            s += t + rng.choice(["", "", " ", "\n", "system\n", "\u0338", "\u0301", "e\u0301", "你", " a", "|>", "'s",
                                 rng.choice(words)])
        out.append(s)
    for _ in range(10):  # long ones
        out.append(from_blocks(400, BLOCKS))
        out.append(" ".join(rng.choice(words) for _ in range(150)))
        out.append("".join(rng.choice(world_words) for _ in range(80)))
        out.append(rng.choice(["a", "ab", "-", "=", "\u0301", "é", " ", "\n", "1", "na"]) * rng.randint(100, 700))
    seen, unique, plain = set(), [], 0
    for i, s in enumerate(out):
        if s not in seen:
            seen.add(s)
            unique.append(s)
            plain += i < n_plain
    return unique, plain


def varint(n):
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def pack_ids(ids):
    return varint(len(ids)) + b"".join(varint(i) for i in ids)


def encode(tok, s):
    return tok.encode(s, add_special_tokens=False).ids


def segments(s):
    """Splits as added-token matching does: leftmost, longest."""
    names = sorted((t for t, _ in ADDED), key=len, reverse=True)
    out, start, i = [], 0, 0
    while i < len(s):
        t = next((t for t in names if s.startswith(t, i)), None) if s[i] == "<" else None
        if t:
            out += [s[start:i], t]
            i += len(t)
            start = i
        else:
            i += 1
    return out + [s[start:]]


def nfc(tok, s):
    return tok.normalizer.normalize_str(s)


def write_cases(path, tok, strings, first_plain):
    bare = without_added(tok)
    out = [b"SHTOKC1\n", varint(len(strings))]
    n_plain = n_new = 0
    for i, s in enumerate(strings):
        raw, ids = s.encode(), encode(tok, s)
        expected = "".join(nfc(tok, p) for p in segments(s))
        assert tok.decode(ids, skip_special_tokens=False) == expected, ascii(s)
        plain = i >= first_plain
        new = any(nfc(tok, p) != unicodedata2.normalize("NFC", p) for p in [*segments(s), s])
        n_new += new
        out += [varint(FLAG_PLAIN * plain + FLAG_NFC_NEW * new), varint(len(raw)), raw, pack_ids(ids)]
        if plain:
            n_plain += 1
            ids = encode(bare, s)
            assert bare.decode(ids, skip_special_tokens=False) == nfc(tok, s), ascii(s)
            out.append(pack_ids(ids))
    (path / "cases.bin").write_bytes(b"".join(out))
    print(f"{len(strings)} cases, {n_plain} also without added tokens; NFC of {n_new} is another"
          f" in Unicode {unicodedata2.unidata_version}")


def fnv1a64(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def runs(ids):
    """Run-length form [[id, times], ...], or None if it is long."""
    out = []
    for i in ids:
        if out and out[-1][0] == i:
            out[-1][1] += 1
        else:
            out.append([i, 1])
            if len(out) > 64:
                return None
    return out


def long_case(tok, unit, count):
    ids = encode(tok, unit * count)
    raw = b"".join(i.to_bytes(4, "little") for i in ids)
    r = dict(n_ids=len(ids), sha256=hashlib.sha256(raw).hexdigest(), fnv1a64=f"{fnv1a64(raw):016x}")
    folded = runs(ids)
    if folded:
        r["runs"] = folded
    return r


def write_long(path, tok, qwen3):
    f = path / "long.json"
    old = {(c["unit"], c["count"]): c for c in json.loads(f.read_text())["cases"]} if f.exists() else {}
    cases = []
    for unit, count in LONG:
        c = dict(unit=unit, count=count, own=long_case(tok, unit, count))
        if qwen3:
            c["qwen3"] = long_case(qwen3, unit, count)
        elif "qwen3" in old.get((unit, count), {}):
            c["qwen3"] = old[unit, count]["qwen3"]
        cases.append(c)
    f.write_text('{"cases": [\n' + ",\n".join(json.dumps(c) for c in cases) + "\n]}\n")


def write_decode(path, tok, rng):
    """Ids that no text encodes to: characters cut in the middle, unpaired bytes, specials skipped or not."""
    byte_id = {b: tok.token_to_id(c) for b, c in byte_alphabet().items()}
    cases = []

    def add(ids):
        for skip in (False, True):
            cases.append(dict(ids=ids, skip_special=skip, text=tok.decode(ids, skip_special_tokens=skip)))

    add([])
    for hexa, _ in BROKEN:
        add([byte_id[b] for b in bytes.fromhex(hexa)])
    for s in ("é", "你", "🙂", "👍🏽", "a\u0301"):
        raw = s.encode()
        for cut in range(1, len(raw)):
            add([byte_id[b] for b in raw[:cut]])
            add([byte_id[b] for b in raw[cut:]] + encode(tok, " end"))
            add([byte_id[b] for b in raw[:cut]] + [tok.token_to_id("<|im_end|>")] + [byte_id[b] for b in raw[cut:]])
            add([byte_id[b] for b in raw[:cut]] + [tok.token_to_id("<think>")] + [byte_id[b] for b in raw[cut:]])
    for t, _ in ADDED:
        add(encode(tok, "a " + t + " b"))
    for _ in range(150):
        add([rng.randrange(BASE_VOCAB + len(ADDED)) for _ in range(rng.randint(1, 12))])
    (path / "decode.json").write_text('{"cases": [\n' + ",\n".join(json.dumps(c) for c in cases) + "\n]}\n")


def byte_alphabet():
    """GPT-2's printable stand-in of every byte."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    out = {b: chr(b) for b in kept}
    for n, b in enumerate(b for b in range(256) if b not in out):
        out[b] = chr(256 + n)
    return out


def write_classes(path):
    """Which characters the regex engine takes for letters, marks, numbers and white space."""
    lines = []
    for name, pattern in (("L", r"\p{L}+"), ("M", r"\p{M}+"), ("N", r"\p{N}+"), ("S", r"\s+")):
        removed = pre_tokenizers.Split(Regex(pattern), "removed")
        inside = bytearray(b"\1" * 0x110000)
        for start in range(0, 0x110000, 0x800):
            if 0xD800 <= start < 0xE000:
                inside[start:start + 0x800] = bytes(0x800)
                continue
            text = "".join(map(chr, range(start, start + 0x800)))
            for _, (a, b) in removed.pre_tokenize_str(text):
                inside[start + a:start + b] = bytes(b - a)
        c = 0
        while c < 0x110000:
            if inside[c]:
                end = inside.find(b"\0", c)
                end = 0x110000 if end < 0 else end
                lines.append(f"{name} {c:04X} {end - 1:04X}")
                c = end
            else:
                c += 1
    (path / "classes.txt").write_text("\n".join(lines) + "\n")


def write_nfc(path, tok):
    """Where HF's NFC, of an old Unicode, differs from the newest: marks it does not reorder, pairs it does not join."""
    new = lambda s: unicodedata2.normalize("NFC", s)
    lines = []
    for c in (c for c in range(0x110000) if unicodedata2.combining(chr(c))):
        # Each of these four has another combining class, so any mark of known class moves past one of them.
        probes = [f"q{a}{b}" for t in "\u0334\u0316\u0301\u0345" for a, b in ((chr(c), t), (t, chr(c)))]
        if any(nfc(tok, s) != new(s) for s in probes):
            lines.append(f"mark {c:04X} {unicodedata2.combining(chr(c))}")
    for c in range(0x110000):
        pair = unicodedata2.decomposition(chr(c)).split()
        if len(pair) == 2 and "<" not in pair[0]:
            s = "".join(chr(int(x, 16)) for x in pair)
            if nfc(tok, s) != new(s):
                lines.append(f"pair {pair[0]} {pair[1]} {c:04X}")
    (path / "nfc_missing.txt").write_text("\n".join(lines) + "\n")


def main():
    args = sys.argv[1:]
    qwen3_path = QWEN3
    if args[:1] == ["--qwen3"]:
        qwen3_path, args = Path(args[1]), args[2:]
    path = Path(args[0]) if args else HERE / "tokenizer"
    path.mkdir(parents=True, exist_ok=True)
    train(path)
    tok = Tokenizer.from_file(str(path / "tokenizer.json"))
    strings, first_plain = make_strings(random.Random(SEED + 1))
    write_cases(path, tok, strings, first_plain)
    qwen3 = None
    if qwen3_path.exists():
        text = gzip.open(qwen3_path).read()
        qwen3 = Tokenizer.from_str(text.decode())
        (path / "cases_qwen3.bin").write_bytes(
            b"SHTOKQ1\n" + varint(len(strings)) + b"".join(pack_ids(encode(qwen3, s)) for s in strings))
        (path / "qwen3.sha256").write_text(hashlib.sha256(text).hexdigest() + "  tokenizer.json\n")
    else:
        print(f"{qwen3_path}: not there; did without the Qwen3 tokenizer")
    write_long(path, tok, qwen3)
    write_decode(path, tok, random.Random(SEED + 2))
    write_classes(path)
    write_nfc(path, tok)
    for hexa, _ in BROKEN:
        try:
            bytes.fromhex(hexa).decode("utf-8", "strict")
        except UnicodeDecodeError:
            continue
        raise SystemExit(f"{hexa} is UTF-8 after all")
    (path / "rejected.txt").write_text("".join(f"{h} {why}\n" for h, why in BROKEN))


if __name__ == "__main__":
    main()
