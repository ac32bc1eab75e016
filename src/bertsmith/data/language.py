"""Guess the language of a text by its script, or by its most common words: enough to detect a mix of languages."""

from __future__ import annotations

import re
from collections import Counter

_SCRIPTS = {
    "Cyrillic": r"\u0400-\u052f",
    "Greek": r"\u0370-\u03ff",
    "Hebrew": r"\u0590-\u05ff",
    "Arabic": r"\u0600-\u06ff\u0750-\u077f",
    "Devanagari": r"\u0900-\u097f",
    "Thai": r"\u0e00-\u0e7f",
    "Korean": r"\uac00-\ud7af\u1100-\u11ff",
    "Japanese": r"\u3040-\u30ff",
    "Chinese": r"\u4e00-\u9fff",
}
_PATTERNS = {name: re.compile(f"[{span}]") for name, span in _SCRIPTS.items()}
_LETTERS = re.compile(r"[^\W\d_]+")
_COMMON = {
    "English": "the and of to is was for that with it you this not are on be have but my at what they can i do we as",
    "German": "der die und das ist nicht ich ein eine zu mit den auf für sie es auch dem wie von sich aber wir",
    "French": "le les et des est pas je une un que pour dans qui sur vous avec mais au nous ce elle sont il",
    "Spanish": "el los y que es una no por con para las del se su pero como más lo muy al yo está",
    "Italian": "il che di e non è per un una sono con mi ma si come più questo della le ho del anche",
    "Portuguese": "o que e é não uma um para com os da se mas por muito mais na eu ele isso está você",
    "Dutch": "de het een en van ik niet is dat op te zijn voor met maar ook aan bij heb deze naar",
    "Swedish": "och att det som en på är av för inte jag den med till har om ett men var",
    "Polish": "nie na się że jest jak ale czy tak jego przez już tylko może bardzo być są był ze mnie",
    "Turkish": "bir ve bu için çok da de ile ne ama gibi daha ben değil olarak var kadar",
    "Czech": "je se že jsem ale jako byl byla bylo není jen když proč už jsou který velmi podle nebo pro",
    "Hungarian": "és hogy nem egy ez az volt csak meg már kell nagyon vagy mint még lehet miért",
    "Romanian": "și şi nu este pe cu sunt mai din care pentru că să dar foarte fost acest",
    "Lithuanian": "yra kad į iš buvo bet kaip labai jau tik nuo arba čia prie apie",
    "Latvian": "ar uz bija ļoti nav tas ka kā ko lai ja vai šo jau tiek",
    "Icelandic": "og að er ekki ég við á í það sem hann þetta mjög eru ekkert var með",
}
WORDS = {language: frozenset(words.split()) for language, words in _COMMON.items()}
"""Common words of each language that distinguish it from the others."""
_LANGUAGES = {
    word: [name for name, words in WORDS.items() if word in words] for word in frozenset().union(*WORDS.values())
}
MIN_HITS = 3
"""Fewest common words in a text for a guess."""


def guess_language(text: str) -> str | None:
    """Return the likely language or script of a text, or ``None`` if it is uncertain."""
    letter_runs = _LETTERS.findall(text)
    if not text.isascii():
        n_letters = sum(map(len, letter_runs))
        for name, pattern in _PATTERNS.items():
            if len(pattern.findall(text)) > 0.3 * n_letters > 0:
                return name
    words = Counter(word.lower() for word in _LETTERS.findall(text[:2000]))
    hits = dict.fromkeys(WORDS, 0)
    for word in words.keys() & _LANGUAGES.keys():
        for language in _LANGUAGES[word]:
            hits[language] += words[word]
    best, second = sorted(hits.values(), reverse=True)[:2]
    if best < MIN_HITS or best < 1.5 * second:
        return None
    return max(hits, key=hits.__getitem__)
