"""Detect the code page of text that is not UTF-8, by its words."""

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
"""Non-ASCII letters of the languages of every Latin code page; of equally good pages, the first one wins.

The other ISO 8859 pages are missing: they decode 0x80-0x9f to control characters, where Windows has quotes and dashes.
"""
_OTHER_SCRIPTS = ("cp1251", "cp1253", "cp1255", "cp1256")
"""Code pages to choose from if a text has fewer than `_MIN_BYTES` non-ASCII bytes."""
_MIN_BYTES = 60
_REDUCED_WEIGHT = 0.9
"""Weight of a word in a language of `_AMBIGUOUS`, and of a word in a text in several Western languages."""
_AMBIGUOUS = ("Icelandic", "Croatian")
"""Languages whose letters other pages use for more common letters of Turkish and Icelandic."""
_QUOTES = "‘’“”„«»–—…•\xa0"
_OPENING = "¿¡" + _QUOTES
_CLOSING = _QUOTES + "€£™®©°"
_SYMBOLS = "¢£¤¥¦§¨©ª¬®¯°±²³´µ¶·¸¹º¼½¾×÷€™"
"""Symbols of Windows-1252 whose bytes are letters in other pages."""
_WORD = re.compile(rb"[A-Za-z\x80-\xff]+")
_ALSO_ENGLISH = frozenset({"bet", "care", "mint", "pro", "volt"})
"""English words that are common words of another language."""
_DISTINCTIVE = {
    language: frozenset(
        word
        for word in words.difference(_ALSO_ENGLISH, *(others for other, others in WORDS.items() if other != language))
        if len(word) > 1
    )
    for language, words in WORDS.items()
}
"""Common words of one language only. Single letters are excluded: a single byte is more often a symbol."""
_DISTINCTIVE_NON_ASCII = frozenset(word for words in _DISTINCTIVE.values() for word in words if not word.isascii())


def detect_code_page(content: bytes) -> str:
    """Return the code page that best explains bytes that are not UTF-8.

    A language explains a word if its alphabet has all letters of the word. The page whose best language explains the
    most words wins, where common words count twice. Windows-1252 wins a tie. Words that Windows-1252 reads as symbols
    (``m³``, ``§``) count only if they are common words of a language.
    """
    words = list(dict.fromkeys(_WORD.findall(content)))
    ascii_words = {word.decode().lower() for word in words if word.isascii()}
    non_ascii = [word for word in words if not word.isascii() and not _is_symbol(word)]
    best, best_score, n_explained = "cp1252", 0.0, 0
    for page, languages in _PAGES.items():
        decoded = [word.decode(page, errors="replace") for word in non_ascii]
        seen = ascii_words | {word.lower() for word in decoded}
        by_language = {language: _explained(decoded, letters) for language, letters in languages.items()}
        n_union = len(set().union(*by_language.values()))
        score = max(_score(language, len(explained), seen) for language, explained in by_language.items())
        if languages is _WESTERN:
            score = max(score, _REDUCED_WEIGHT * n_union)
        if score > best_score:
            best, best_score = page, score
        n_explained = max(n_explained, n_union)
    return best if 2 * n_explained >= len(non_ascii) else _detect_other_script(content)


def _is_symbol(word: bytes) -> bool:
    """Return whether Windows-1252 reads a word as symbols, or as an ASCII word between symbols."""
    text = word.decode("cp1252", errors="replace").strip(_SYMBOLS + _QUOTES)
    if not text.isascii() and any(character.isalpha() for character in text):
        return False
    return not any(word.decode(page, errors="replace").lower() in _DISTINCTIVE_NON_ASCII for page in _PAGES)


def _score(language: str, n_explained: int, seen: set[str]) -> float:
    n_common = len(seen & _DISTINCTIVE.get(language, frozenset())) if n_explained else 0
    return n_explained * (_REDUCED_WEIGHT if language in _AMBIGUOUS else 1) + n_common


def _explained(words: list[str], letters: str) -> set[str]:
    """Return the words that consist of these letters, without a non-ASCII capital after a lower-case letter."""
    pattern = re.compile(f"[{_OPENING}]*[A-Za-z{letters}{letters.upper()}’´]*[{_CLOSING}]*")
    return {
        word
        for word in words
        if pattern.fullmatch(word)
        and not any(a.islower() and b.isupper() and not b.isascii() for a, b in pairwise(word))
    }


def _detect_other_script(content: bytes) -> str:
    from charset_normalizer import from_bytes

    best = None
    if sum(byte > 0x7F for byte in content) < _MIN_BYTES:
        best = from_bytes(content, cp_isolation=list(_OTHER_SCRIPTS)).best()
    best = best or from_bytes(content).best()
    return "cp1252" if best is None or best.encoding in ("ascii", "utf_8") else best.encoding
