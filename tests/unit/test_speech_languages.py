"""Languages as people name them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet.errors import InvalidRequest
from engine.worker.families.transcription import LANGUAGES
from speech.languages import heard, language_of

TAKEN: dict[str | None, tuple[str, ...]] = {
    "zh": (
        *(
            "zh",
            "ZH",
            " zh ",
            "zho",
            "chi",
            "cmn",
            "zh-CN",
            "zh_CN",
            "zh-Hans",
            "zh_Hant_TW",
            "zh-Hans-CN",
            "zh_CN.UTF-8",
        ),
        *(
            "Chinese",
            "chinese",
            "Mandarin",
            "Mandarin Chinese",
            "Chinese (Simplified)",
            "中文",
            "普通话",
            "國語",
            "中文（简体）",
        ),
        *("wuu", "nan", "zh-min-nan"),
    ),
    "yue": ("yue", "yue-HK", "zh-yue", "Cantonese", "粤语", "廣東話"),
    "en": ("en", "eng", "en-US", "en_GB", "EN-us", "English", "american english", "英语", "ｅｎ"),
    "fr": ("fr", "fra", "fre", "fr-CA", "French", "français", "FRANÇAIS", "franc\u0327ais"),
    "de": ("de", "deu", "ger", "de-AT", "de_DE@euro", "German", "Deutsch"),
    "ja": ("ja", "jpn", "ja-JP", "Japanese", "日本語"),
    "ko": ("ko", "kor", "Korean", "한국어"),
    "tl": ("tl", "fil", "tgl", "Filipino", "Tagalog"),
    "el": ("el", "ell", "gre", "Greek"),
    "fa": ("fa", "fas", "per", "pes", "Farsi", "Persian"),
    "pt": ("pt-BR", "Portuguese", "Brazilian Portuguese"),
    "es": ("es-419", "Castilian", "Spanish", "español"),
    "nl": ("nl", "dut", "Flemish"),
    "he": ("he", "iw", "heb"),
    "id": ("id", "in", "ind"),
    "no": ("no", "nor", "Norwegian"),
    "qu": ("qu", "que"),
    "haw": ("haw", "Hawaiian"),
    None: ("", " ", "auto", "AUTO", "Auto", "und", "mul", "null", "none", "detect"),
}
REFUSED = {
    "qq": "sq (Albanian)",
    "xx": "",
    "zz": "zh (Chinese)",
    "qqq": "",
    "qaa": "",
    "x-private": "",
    "englsh": "en (English)",
    "frrench": "fr (French)",
    "Chinees": "zh (Chinese)",
    "klingonish": "",
    "zh-": "zh (Chinese)",
    "-zh": "",
    "zh--CN": "",
    "en,zh": "",
    "en;q=0.9": "",
    "not English": "en (English)",
    "1": "",
    "😀": "",
    "中": "",
    "e" * 1000: "",
    "en\x00": "en (English)",
    "<script>": "",
}


@pytest.mark.parametrize(("given", "code"), [(name, code) for code, names in TAKEN.items() for name in names])
def test_a_language_is_read(given: str, code: str | None) -> None:
    assert language_of(given) == code


def test_no_language_is_detected() -> None:
    assert language_of(None) is None


@pytest.mark.parametrize(("given", "nearest"), REFUSED.items(), ids=[repr(name[:12]) for name in REFUSED])
def test_what_is_no_language_is_refused_with_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(InvalidRequest, match=r"the nearest is [a-z]{2,3} ") as caught:
        language_of(given, param="language")
    assert caught.value.param == "language"
    assert nearest in str(caught.value)
    assert len(str(caught.value)) < 250
    assert str(caught.value).isprintable()


@given(st.text(max_size=80))
def test_any_text_is_a_language_or_refused(text: str) -> None:
    try:
        code = language_of(text)
    except InvalidRequest:
        return
    assert code is None or language_of(code) == code


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_names_that_models_use_have_codes_of_their_own(name: str) -> None:
    code = heard(name)
    assert code is not None
    assert code.isascii()
    assert [other for other in LANGUAGES if heard(other) == code] == [name]


@pytest.mark.parametrize("said", [None, 1, "", "und", "None", "Chinese,English", ["en"]])
def test_a_model_may_hear_no_language(said: object) -> None:
    assert heard(said) is None
