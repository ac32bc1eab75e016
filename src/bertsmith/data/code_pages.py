"""Which code page the bytes of a text were written in, decided over whole words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

from bertsmith.data.language import WORDS

_WESTERN = {
    "French": "àâæçéèêëîïôœùûüÿ",
    "German": "äöüß",
    "Spanish": "áéíñóúü",
    "Portuguese": "àáâãçéêíóôõúü",
    "Italian": "àèéìîòù",
    "Catalan": "àçèéíïòóúü",
    "Dutch": "áéèëïóöü",
    "Swedish": "åäöé",
    "Danish": "æøåé",
    "Estonian": "äõöü",
    "Icelandic": "áæðéíóöúýþ",
}
_CENTRAL = {
    "Polish": "ąćęłńóśźż",
    "Czech": "áčďéěíňóřšťúůýž",
    "Slovak": "áäčďéíĺľňóôŕšťúýž",
    "Hungarian": "áéíóöőúüű",
    "Croatian": "čćđšž",
    "Romanian": "ăâîşţ",
}
_TURKISH = {"Turkish": "çğıöşüâîûİ"}
_BALTIC = {"Lithuanian": "ąčęėįšųūž", "Latvian": "āčēģīķļņšūž"}
_PAGES: Mapping[str, Mapping[str, str]] = {
    "cp1252": _WESTERN,
    "cp1250": _CENTRAL,
    "cp1254": _TURKISH,
    "cp1257": _BALTIC,
    "iso8859_2": _CENTRAL,
    "mac_roman": _WESTERN,
    "cp850": _WESTERN,
}
"""The letters beyond ASCII of the languages written in a Latin code page; of equals, the first one is taken.

The other ISO 8859 pages are left out: they decode 0x80-0x9f to control characters, where Windows has quotes and dashes.
"""
_OTHER_SCRIPTS = ("cp1251", "cp1253", "cp1255", "cp1256")
"""Code pages considered where there are fewer than `_FEW` bytes to judge by."""
_FEW = 60
_LESS = 0.9
"""Weight of a word of `_RARE`, and of one of a Western text that may be in several languages."""
_RARE = ("Icelandic", "Croatian")
"""Languages whose letters stand for commoner ones of Turkish and Icelandic in other pages."""
_QUOTES = "‘’“”„«»–—…•\xa0"
_OPENING = "¿¡" + _QUOTES
_CLOSING = _QUOTES + "€£™®©°"
_SYMBOLS = "¢£¤¥¦§¨©ª¬®¯°±²³´µ¶·¸¹º¼½¾×÷€™"
"""What Windows-1252 has beside numbers and words, and other pages have letters for."""
_WORD = re.compile(rb"[A-Za-z\x80-\xff]+")
_ENGLISH = frozenset({"bet", "care", "mint", "pro", "volt"})
"""English words that are common words of another language."""
_TELLING = {
    language: frozenset(
        word
        for word in words.difference(_ENGLISH, *(others for other, others in WORDS.items() if other != language))
        if len(word) > 1
    )
    for language, words in WORDS.items()
}
"""Common words that no other language has, single letters left out: a byte on its own is more often a symbol."""
_TELLING_MARKED = frozenset(word for words in _TELLING.values() for word in words if not word.isascii())


def code_page(content: bytes) -> str:
    """Return the code page that best explains some bytes that are not UTF-8.

    A word is explained by a language if all its letters are of that language's alphabet. The page whose best language
    explains the most words wins, common words counted twice; Windows-1252 does unless another one explains more.
    Words that Windows-1252 reads as symbols (``m³``, ``§``) count only where they are a common word of a language.
    """
    words = list(dict.fromkeys(_WORD.findall(content)))
    plain = {word.decode().lower() for word in words if word.isascii()}
    marked = [word for word in words if not word.isascii() and not _is_symbol(word)]
    best, most, explained = "cp1252", 0.0, 0
    for page, languages in _PAGES.items():
        decoded = [word.decode(page, errors="replace") for word in marked]
        seen = plain | {word.lower() for word in decoded}
        fits = {language: _fitting(decoded, letters) for language, letters in languages.items()}
        together = len(set().union(*fits.values()))
        score = max(_score(language, len(fit), seen) for language, fit in fits.items())
        if languages is _WESTERN:
            score = max(score, _LESS * together)
        if score > most:
            best, most = page, score
        explained = max(explained, together)
    return best if 2 * explained >= len(marked) else _of_another_script(content)


def _is_symbol(word: bytes) -> bool:
    """Whether Windows-1252 reads a word as symbols, alone or at the ends of an ASCII word."""
    text = word.decode("cp1252", errors="replace").strip(_SYMBOLS + _QUOTES)
    if not text.isascii() and any(character.isalpha() for character in text):
        return False
    return not any(word.decode(page, errors="replace").lower() in _TELLING_MARKED for page in _PAGES)


def _score(language: str, fitting: int, seen: set[str]) -> float:
    common = len(seen & _TELLING.get(language, frozenset())) if fitting else 0
    return fitting * (_LESS if language in _RARE else 1) + common


def _fitting(words: list[str], letters: str) -> set[str]:
    """Return the words that are written with these letters, none of them a capital inside a word."""
    pattern = re.compile(f"[{_OPENING}]*[A-Za-z{letters}{letters.upper()}’´]*[{_CLOSING}]*")
    return {word for word in words if pattern.fullmatch(word) and not _capital_inside(word)}


def _capital_inside(word: str) -> bool:
    return any(a.islower() and b.isupper() and not b.isascii() for a, b in pairwise(word))


def _of_another_script(content: bytes) -> str:
    from charset_normalizer import from_bytes

    best = None
    if sum(byte > 0x7F for byte in content) < _FEW:
        best = from_bytes(content, cp_isolation=list(_OTHER_SCRIPTS)).best()
    best = best or from_bytes(content).best()
    return "cp1252" if best is None or best.encoding in ("ascii", "utf_8") else best.encoding
