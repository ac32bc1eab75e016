"""Text files in a code page are decoded correctly, however short they are, and the note shows words to check."""

import pytest

from bertsmith.data.formats.code_pages import detect_code_page
from bertsmith.data.formats.encodings import decode, decode_blocks
from bertsmith.errors import DataError

SENTENCES = {
    "French": (
        "cp1252",
        "C'était une fête à Noël, et tout le monde a adoré le gâteau.",
        "Où êtes-vous ? La réponse n'est jamais arrivée.",
        "Cœur de ville, œuvre magnifique, prix élevé : 45 €.",
        "L'hôtel était propre, mais le petit-déjeuner trop cher.",
        "Le téléphone s'éteint tout seul, même chargé.",
        "Ça ne marche plus après deux mois, c'est décevant.",
    ),
    "German": (
        "cp1252",
        "Das Gerät funktioniert überhaupt nicht, ich bin enttäuscht.",
        "Für den Preis ist die Qualität völlig in Ordnung.",
        "Schöne Größe, passt genau und fühlt sich gut an.",
        "Die Lieferung kam zu spät, der Käufer wurde nicht informiert.",
        "Sehr freundlicher Service, würde ich wieder kaufen.",
        "Leider ist der Deckel gebrochen und die Rückgabe mühsam.",
    ),
    "Spanish": (
        "cp1252",
        "El envío llegó rápido y el producto está muy bien.",
        "¿Por qué no funciona la aplicación en mi teléfono?",
        "La habitación era pequeña, pero la cama muy cómoda.",
        "No lo compraría otra vez, qué decepción.",
        "Mañana devolveré el artículo porque está roto.",
        "Excelente atención, volveremos el próximo año.",
    ),
    "Portuguese": (
        "cp1252",
        "O produto não chegou e ninguém respondeu às minhas mensagens.",
        "A qualidade é ótima e a entrega foi rápida.",
        "Não gostei da atenção, o atendimento é péssimo.",
        "A bateria não dura, já pedi a devolução.",
        "Muito bom, recomendo a todos os meus irmãos.",
        "O hotel fica próximo da praia e o pequeno-almoço é bom.",
    ),
    "Italian": (
        "cp1252",
        "Il prodotto è arrivato rotto, non è possibile usarlo.",
        "La qualità è ottima e il prezzo è giusto.",
        "Perché nessuno risponde? Così non va.",
    ),
    "Swedish": (
        "cp1252",
        "Produkten gick sönder efter två veckor, mycket dålig kvalitet.",
        "Jag är väldigt nöjd med köpet och leveransen.",
        "Rummet var för litet men sängen var skön.",
    ),
    "Danish": (
        "cp1252",
        "Varen gik i stykker efter få uger, meget dårlig kvalitet.",
        "Jeg er rigtig glad for købet og leveringen.",
        "Værelset var småt, men sengen var god.",
    ),
    "Polish": (
        "cp1250",
        "Produkt przyszedł uszkodzony i nie działa prawidłowo.",
        "Jestem bardzo zadowolony, polecam każdemu.",
        "Proszę o zwrot pieniędzy, to nie jest to, co zamówiłem.",
        "Łóżko było niewygodne, śniadanie zimne.",
        "Nie kupię więcej, żenada i strata pieniędzy.",
        "Muzyka piękna, film trochę za długi.",
    ),
    "Czech": (
        "cp1250",
        "Výrobek přišel poškozený a vůbec nefunguje.",
        "Kvalita je špatná, už nikdy víc.",
        "Děkuji za ochotu, určitě se vrátíme příští rok.",
        "Baterie vydrží krátce, to mě zklamalo.",
        "Proč to trvá tak dlouho?",
        "Ještě jsem nic neobdržel, peníze jsou pryč.",
    ),
    "Hungarian": (
        "cp1250",
        "A termék hibásan érkezett és egyáltalán nem működik.",
        "Nagyon elégedett vagyok, gyors volt a szállítás.",
        "A szoba kicsi volt, de az ágy kényelmes.",
    ),
    "Turkish": (
        "cp1254",
        "Ürün kırık geldi ve hiç çalışmıyor, çok kötü.",
        "Çok memnun kaldım, kargo hızlıydı.",
        "Fiyatına göre kalitesi iyi, herkese öneririm.",
        "Bir daha asla almam, param boşa gitti.",
        "İstediğim renk değildi, değiştirdim.",
        "Pil ömrü kısa, iki günde bitiyor.",
    ),
    "Russian": (
        "cp1251",
        "Товар пришёл сломанный и совсем не работает.",
        "Очень довольна покупкой, доставка быстрая.",
        "Номер был маленький, но кровать удобная.",
    ),
    "Greek": (
        "cp1253",
        "Το προϊόν ήρθε σπασμένο και δεν λειτουργεί καθόλου.",
        "Είμαι πολύ ευχαριστημένη, η παράδοση ήταν γρήγορη.",
        "Το δωμάτιο ήταν μικρό αλλά το κρεβάτι άνετο.",
    ),
}


def _table(sentences):
    return "Text,Label\n" + "".join(f'"{sentence}",{"ab"[i % 2]}\n' for i, sentence in enumerate(sentences))


@pytest.mark.parametrize("language", SENTENCES)
def test_a_file_is_read_in_the_code_page_of_its_language(language):
    page, *sentences = SENTENCES[language]
    long = [f"{sentence} {i}" for i in range(150 // len(sentences)) for sentence in sentences]
    for table in [_table([sentence]) for sentence in sentences] + [_table(sentences), _table(long)]:
        text, notes = decode(table.encode(page), "t.csv")
        assert text == table
        assert [note.severity for note in notes] == ["warning"]


@pytest.mark.parametrize("word", ["été", "Noël", "größer", "niño", "não", "perché", "smörgås", "It’s"])
def test_one_western_word_is_read_as_windows_1252(word):
    assert detect_code_page(word.encode("cp1252")) == "cp1252"


def test_a_mix_of_western_languages_is_read_as_windows_1252():
    western = [s for page, *sentences in SENTENCES.values() if page == "cp1252" for s in sentences]
    assert detect_code_page(_table(western).encode("cp1252")) == "cp1252"


def test_mac_roman_is_detected():
    table = _table(SENTENCES["French"][1:])
    assert decode(table.encode("mac_roman"), "t.csv")[0] == table


def test_the_note_shows_the_words_with_the_most_accents():
    rows = ["It’s plain,a", "x" * 300 + " “déjà” " + "y" * 300 + ",b", "un été à Noël\x1b[1m,b"]
    (note,) = decode("\n".join(["Text,Label", *rows, "plain,b"]).encode("cp1252"), "t.csv")[1]
    for shown in ("cp1252", "déjà", "Noël", "à"):
        assert shown in note.message
    for hidden in ("It’s", "\x1b", "xxx"):
        assert hidden not in note.message


@pytest.mark.parametrize(
    "text",
    [
        "30ºC in 5 m³",
        "1º piso, Mª José, Nº 5",
        "Costs ¥500 or £5m",
        "Only 50¢ each",
        "see §5 ¶2",
        "a 5 µm filter, 20° ±2, 5×3 cm²",
        "see note¹",
        "1¼ cups, ½tsp and ¾",
        "Add 1¼ cups to the crème brûlée; the café and the entrées",
        "café with mint for those who care, from a pro",
        "kWh/m² ©2020 Acme®",
        "“5 \xa0 kg”",
        "don´t",
        "Zimmer mit 20 m² für 2 Gäste, 3º",
    ],
)
def test_symbols_are_not_read_as_letters_of_another_page(text):
    assert detect_code_page(text.encode("cp1252")) == "cp1252"


@pytest.mark.parametrize("text", ["Produkt był drogi", "są już", "miał zły dzień", "casa şi oraş"])
def test_letters_that_are_symbols_in_windows_1252_count_in_words(text):
    assert detect_code_page(text.encode("cp1250")) == "cp1250"


def _rows(first, count, text="naïve café déjà"):
    return [f"{text} {i},{'ab'[i % 2]}" for i in range(first, first + count)]


@pytest.mark.parametrize("bad", [b"\xe9", b"\x93quoted\x94", b"\xe2\x82"])
def test_a_file_with_few_invalid_bytes_is_still_utf_8(bad):
    lines = [line.encode() for line in ["Text,Label", *_rows(0, 40)]]
    lines[7] = b"a bad " + bad + b" one,a"
    content = b"\n".join(lines)
    text, (note,) = decode(content, "t.csv")
    assert text == content.decode("utf-8", errors="replace")
    assert (note.severity, "line 8" in note.message.lower()) == ("warning", True)
    with pytest.raises(DataError, match="line 8, byte"):
        decode(content, "t.csv", "utf-8")


@pytest.mark.parametrize("rows", [1, 50])
def test_a_file_truncated_in_its_last_character_is_utf_8(rows):
    content = "\n".join(["Text,Label", *_rows(0, rows), "été"]).encode()[:-1]
    text, (note,) = decode(content, "t.csv")
    assert text == content.decode("utf-8", errors="replace")
    assert f"line {rows + 2}" in note.message


def test_a_replacement_character_in_the_text_is_not_an_invalid_byte():
    content = "\n".join(_rows(0, 5, "caf\ufffd")).encode() + "\nété\n".encode("cp1252")
    assert "cp1252" in decode(content, "t.csv")[1][0].message


def test_the_code_page_is_detected_from_all_parts_of_a_file(tmp_path):
    neutral = [f'"filler {"x" * 80} é {i}",a' for i in range(600)]
    polish = [f'"{sentence}",b' for sentence in SENTENCES["Polish"][1:]]
    table = "\n".join(["Text,Label", *neutral, *polish, *neutral, ""])
    text, (note,) = decode(table.encode("cp1250"), "t.csv")
    assert text == table
    assert "'Łóżko'" in note.message


def test_a_long_line_and_a_distant_invalid_byte_are_sampled():
    long = '{"text": "' + "é" * 50_000 + "x" * 2**21
    text, (note,) = decode((long + "caf").encode() + b"\xe9 ok", "t.json")
    assert (text == long + "caf\ufffd ok") is True  # no diff of megabytes
    assert "line 1" in note.message
    long = "x" * 2**21 + " żółć " + "x" * 2**21
    assert (decode(long.encode("cp1250"), "t.csv")[0] == long) is True


def _decoded(lines, codec, encoding=None, damage=lambda block: block):
    """Return the lines of a pipe that is read two lines at a time, and the notes."""
    notes = []
    *parts, last = damage("".join(f"{line}\n" for line in lines).encode(codec)).split(b"\n")
    parts = [*(part + b"\n" for part in parts), last]
    blocks = [b"".join(parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return "".join(decode_blocks(blocks, "stdin", encoding, notes.append)).splitlines(), notes


POLISH = [
    "plain",
    "text",
    "Kupi\u0119 dobr\u0105 ksi\u0105\u017ck\u0119",
    "Za\u017c\u00f3\u0142\u0107 g\u0119\u015bl\u0105 ja\u017a\u0144",
    "kupi\u0119",
    "tak",
]


def test_all_lines_of_a_pipe_have_the_same_encoding():
    text, notes = _decoded(POLISH, "cp1250")
    assert text == POLISH
    assert len(notes) == 1
    text, notes = _decoded(
        ["\u00e9t\u00e9", "\u00e0", "un caf\u00e9", "!"], "utf-8", damage=lambda b: b.replace(b"!", b"\xff")
    )
    assert text == ["\u00e9t\u00e9", "\u00e0", "un caf\u00e9", "\ufffd"]
    assert [note.severity for note in notes] == ["warning"]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_from_a_pipe_may_be_split_inside_characters(codec):
    lines = ["one", "two", "\u010a \u0a05", "four \U0001f600", "caf\u00e9"]
    assert _decoded(lines, codec, codec if codec.endswith("e") else None)[0] == lines


def test_a_pipe_in_another_encoding_than_the_given_one_is_refused():
    with pytest.raises(DataError):
        _decoded(["a", "b", "c", "\u00e9"], "cp1252", "utf-8")
