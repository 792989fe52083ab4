"""ClvpTokenizer: golden ids of both references, live parity with `transformers`, arguments, files."""

import copy
import json
import pickle
import random
import string
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from clvp.text.normalizers import TextNormalizationError, tortoise_normalize
from clvp.text.tokenizer import ClvpTokenizer

DATA = Path(__file__).parent.parent / "data"
CHECKPOINT = DATA / "clvp_dev"


@pytest.fixture(scope="module")
def tokenizer() -> ClvpTokenizer:
    return ClvpTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def tortoise() -> ClvpTokenizer:
    return ClvpTokenizer.from_pretrained(CHECKPOINT, normalizer="tortoise")


@pytest.fixture(scope="module")
def reference() -> transformers.ClvpTokenizer:
    return transformers.ClvpTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def golden() -> list[dict]:
    lines = (DATA / "golden_tokens.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# ---- ids ----


def test_constants(tokenizer: ClvpTokenizer, tortoise: ClvpTokenizer) -> None:
    sentence = [147, 2, 54, 2, 43, 2, 169, 122, 29, 64, 2, 136, 37, 33, 9]
    for each in (tokenizer, tortoise):
        assert each("Hello world")["input_ids"] == [62, 84, 28, 2, 179, 79]
        assert each(" Hello world")["input_ids"] == [2, 62, 84, 28, 2, 179, 79]
        assert each("This is an example text.").input_ids == sentence


def test_golden_ids_of_transformers(tokenizer: ClvpTokenizer, golden: list[dict]) -> None:
    assert len(golden) == 1000
    for row in golden:
        if row["transformers"] is None:
            with pytest.raises(TextNormalizationError):
                tokenizer(row["text"])
        else:
            assert tokenizer(row["text"])["input_ids"] == row["transformers"], row["text"]


def test_golden_ids_of_tortoise(tortoise: ClvpTokenizer, golden: list[dict]) -> None:
    for row in golden:
        # Tortoise raises on stray commas in a dollar amount; without those commas it does not.
        expected = row["tortoise"]
        if expected is None:
            mended = row["text"].replace("$,5", "$5").replace("$1.,5", "$1.5")
            assert mended != row["text"]
            expected = tortoise(mended)["input_ids"]
        assert tortoise(row["text"])["input_ids"] == expected, row["text"]


def _fuzz(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    words = [
        *("don't", "they'll", "'many'", "Mr.", "st.", "1st", "22nd", "1984", "2005", "3.14", "$1.50", "$,5"),
        *(
            "$1.,5",
            "$2.3.4",
            "1,000,000",
            "007",
            "[STOP]",
            "[SPACE]",
            "[UNK]",
            "<|endoftext|>",
            "[stop]",
            '"q"',
        ),
        *(
            "café",
            "“”",
            "\u2003",
            "\x1c",
            "\x7f",
            "_",
            "e=mc2",
            "A&B",
            "  ",
            "\n\t",
            "£5",
            "10" * 9,
            "the",
            "ing",
        ),
    ]
    alphabet = string.printable + "éß€£’“”中😀\u200b\xa0"
    texts = []
    for _ in range(count):
        pieces = [
            draw.choice(words)
            if draw.random() < 0.6
            else "".join(draw.choices(alphabet, k=draw.randint(1, 9)))
            for _ in range(draw.randint(0, 10))
        ]
        texts.append(draw.choice(["", " ", "  "]).join(pieces))
    return texts


def test_fuzz_against_transformers(tokenizer: ClvpTokenizer, reference: transformers.ClvpTokenizer) -> None:
    failures = 0
    for text in _fuzz(2500, seed=1):
        try:
            expected = reference(text)["input_ids"]
        except ValueError:
            failures += 1
            with pytest.raises(TextNormalizationError):
                tokenizer(text)
            continue
        assert tokenizer(text)["input_ids"] == expected, text
        assert tokenizer.tokenize(text) == reference.tokenize(text), text
        for skip in (True, False):
            assert tokenizer.decode(expected, skip) == reference.decode(expected, skip_special_tokens=skip)
    assert 0 < failures < 1000


def test_tortoise_reads_the_fuzz_as_words_and_punctuation(tortoise: ClvpTokenizer) -> None:
    for text in _fuzz(300, seed=2):
        ids = tortoise(text)["input_ids"]
        assert all(0 <= i < 255 for i in ids)
        assert ids.count(2) == tortoise_normalize(text).count(" ")  # one [SPACE] for each space, none merged


def test_special_tokens_in_a_text(tokenizer: ClvpTokenizer, tortoise: ClvpTokenizer) -> None:
    assert tokenizer("a[STOP]b<|endoftext|>")["input_ids"] == [14, 0, 15, 255]
    # Tortoise lower-cases first: brackets around a word.
    assert tortoise("[STOP]")["input_ids"] == [1, *tortoise("stop")["input_ids"], 1]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("unit", ["a", "the ", "!", "'", "é", " ", "7", "_"])
def test_long_texts(unit: str, tokenizer: ClvpTokenizer, tortoise: ClvpTokenizer) -> None:
    short, text = unit * 300, unit * 100_000
    assert len(tortoise(text)["input_ids"]) >= len(tortoise(short)["input_ids"])
    if unit != "7":
        assert len(tokenizer(text)["input_ids"]) >= len(tokenizer(short)["input_ids"])


@pytest.mark.parametrize("normalizer", ["english", "tortoise"])
def test_a_long_text_has_the_ids_of_its_words(normalizer: str) -> None:
    tokenizer = ClvpTokenizer.from_pretrained(CHECKPOINT, normalizer=normalizer)
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(1, 8))) for _ in range(30_000)]
    whole = tokenizer(" ".join(words))["input_ids"]
    parts = [i for word in words for i in [*tokenizer(word)["input_ids"], 2]][:-1]
    assert len(whole) > 1 << 16
    assert whole == parts
    assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(" ".join(words))) == whole


def test_full_tokenizer_of_the_reference_suite(tmp_path: Path) -> None:
    vocab = [
        *(
            "l",
            "o",
            "w",
            "e",
            "r",
            "s",
            "t",
            "i",
            "d",
            "n",
            "\u0120",
            "\u0120l",
            "\u0120n",
            "\u0120lo",
            "\u0120low",
        ),
        *("er", "\u0120lowest", "\u0120newer", "\u0120wider", "<unk>", "<|endoftext|>", "[SPACE]"),
    ]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n\u0120 l\n\u0120l o\n\u0120lo w\ne r\n")
    tokenizer = ClvpTokenizer.from_pretrained(tmp_path, unk_token="<unk>")
    tokens = tokenizer.tokenize("lower newer")
    assert tokens == ["l", "o", "w", "er", "[SPACE]", "n", "e", "w", "er"]
    assert tokenizer.convert_tokens_to_ids([*tokens, "<unk>"]) == [0, 1, 2, 15, 21, 9, 3, 2, 15, 19]
    assert tokenizer("lower newer")["input_ids"] == [0, 1, 2, 15, 21, 9, 3, 2, 15]
    assert tokenizer.tokenize("no low") == ["n", "o", "\u0120low"]
    assert tokenizer("x")["input_ids"] == [19]


# ---- calls ----


def test_batch_padding_and_tensors(tokenizer: ClvpTokenizer, reference: transformers.ClvpTokenizer) -> None:
    texts = ["Hello world", "A longer example, with more words.", ""]
    for arguments in (
        {"padding": True},
        {"padding": "longest", "padding_side": "left"},
        {"padding": "max_length", "max_length": 40},
        {"padding": "max_length", "max_length": 6, "truncation": True},
        {"padding": True, "truncation": True, "max_length": 6},
        {"padding": True, "pad_to_multiple_of": 8},
        {"padding": "max_length"},
    ):
        for tensors in ("pt", "np"):
            got = tokenizer(texts, return_tensors=tensors, **arguments)
            expected = reference(texts, return_tensors=tensors, **arguments)
            assert set(got) == {"input_ids", "attention_mask"}
            for key, value in got.items():
                np.testing.assert_array_equal(np.asarray(value), np.asarray(expected[key]))
                assert value.dtype == (torch.int64 if tensors == "pt" else np.int64)
        lists = tokenizer(texts, **arguments)
        assert lists["input_ids"] == reference(texts, **arguments)["input_ids"]


def test_single_texts(tokenizer: ClvpTokenizer, reference: transformers.ClvpTokenizer) -> None:
    for arguments in (
        {},
        {"max_length": 3},
        {"truncation": True, "max_length": 3},
        {"padding": "max_length", "max_length": 9},
    ):
        assert dict(tokenizer("Hello world", **arguments)) == dict(reference("Hello world", **arguments))
        assert tokenizer.encode("Hello world", **arguments) == reference.encode("Hello world", **arguments)
    assert tokenizer("Hello world", return_tensors="pt").input_ids.shape == (1, 6)
    assert tokenizer("", return_tensors="pt").input_ids.shape == (1, 0)
    assert tokenizer("", return_tensors="pt").input_ids.dtype == torch.int64
    assert "attention_mask" not in tokenizer("a", return_attention_mask=False)
    assert tokenizer([])["input_ids"] == []


def test_truncation_takes_the_models_limit(tokenizer: ClvpTokenizer) -> None:
    text = "a " * 1000
    assert len(tokenizer(text, truncation=True)["input_ids"]) == tokenizer.model_max_length == 402
    assert len(tokenizer(text)["input_ids"]) == 2000
    left = ClvpTokenizer.from_pretrained(CHECKPOINT, truncation_side="left")
    assert left("Hello world", truncation=True, max_length=2)["input_ids"] == [179, 79]


def test_bos_and_eos_on_request() -> None:
    tokenizer = ClvpTokenizer.from_pretrained(CHECKPOINT, add_bos_token=True, add_eos_token=True)
    assert tokenizer("Hello world")["input_ids"] == [255, 62, 84, 28, 2, 179, 79, 0]
    assert tokenizer("Hello world", truncation=True, max_length=4)["input_ids"] == [255, 62, 84, 0]
    assert tokenizer("Hello world", add_special_tokens=False)["input_ids"] == [62, 84, 28, 2, 179, 79]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"text": 5}, TypeError, "string"),
        ({"text": None}, TypeError, "string"),
        ({"text": ["a", None]}, TypeError, "text 1"),
        ({"text": "a", "text_pair": "b"}, ValueError, "text pairs|text_pair"),
        ({"text": ["a", "hello"], "return_tensors": "pt"}, ValueError, "padding=True"),
        ({"text": "a", "return_tensors": "tf"}, ValueError, "'tf'"),
        ({"text": "a", "padding": "shortest"}, ValueError, "'shortest'"),
        ({"text": "a", "truncation": "only_second"}, ValueError, "'only_second'"),
        ({"text": "a", "padding_side": "up"}, ValueError, "'up'"),
        ({"text": "a", "max_length": 0}, ValueError, "positive"),
        ({"text": ["fine", "$,5"]}, TextNormalizationError, "text 1: .*'[$],5'"),
    ],
)
def test_bad_calls_say_what_is_wrong(
    arguments: dict, error: type[Exception], message: str, tokenizer: ClvpTokenizer
) -> None:
    with pytest.raises(error, match=message):
        tokenizer(**arguments)


# ---- decoding ----


def test_decode(tokenizer: ClvpTokenizer) -> None:
    ids = tokenizer("Hello world_")["input_ids"]
    assert tokenizer.decode([*ids, 0]) == "hello world "
    assert tokenizer.decode([*ids, 0], skip_special_tokens=True) == "hello world"
    assert tokenizer.decode([*ids, 0], clean_up_tokenization_spaces=False) == "hello[SPACE]world[UNK][STOP]"
    assert tokenizer.decode(torch.tensor(ids)) == "hello world"
    assert tokenizer.decode(62) == "he"
    assert tokenizer.batch_decode(np.array([ids, ids])) == ["hello world"] * 2
    assert tokenizer.batch_decode([torch.tensor(ids), torch.tensor([62])]) == ["hello world", "he"]
    with pytest.raises(ValueError, match="8193"):
        tokenizer.decode([62, 8193])


# ---- vocabulary ----


def test_vocabulary(tokenizer: ClvpTokenizer, reference: transformers.ClvpTokenizer) -> None:
    assert tokenizer.get_vocab() == reference.get_vocab()
    assert (tokenizer.vocab_size, len(tokenizer)) == (255, 256)
    assert tokenizer.get_added_vocab() == reference.get_added_vocab()
    for role, expected in {"unk": 1, "bos": 255, "eos": 0, "pad": 0}.items():
        assert getattr(tokenizer, f"{role}_token_id") == expected
        assert getattr(tokenizer, f"{role}_token") == getattr(reference, f"{role}_token")
    assert sorted(tokenizer.all_special_ids) == sorted(set(reference.all_special_ids))
    assert tokenizer.convert_tokens_to_ids("[SPACE]") == 2
    assert tokenizer.convert_tokens_to_ids(["the", "nonsense"]) == [42, 1]
    assert tokenizer.convert_ids_to_tokens([42, 2, 255]) == ["the", "[SPACE]", "<|endoftext|>"]
    assert tokenizer.convert_ids_to_tokens([42, 255], skip_special_tokens=True) == ["the"]
    assert tokenizer.convert_ids_to_tokens(42) == "the"


def test_from_the_two_files_alone(reference: transformers.ClvpTokenizer) -> None:
    files = CHECKPOINT / "vocab.json", CHECKPOINT / "merges.txt"
    ours, theirs = ClvpTokenizer(*files), transformers.ClvpTokenizer(*map(str, files))
    assert ours.get_vocab() == theirs.get_vocab()
    for text in [row for row in _fuzz(200, seed=4) if "$" not in row]:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text


# ---- files ----


@pytest.mark.parametrize("normalizer", ["english", "tortoise"])
def test_saved_and_loaded_is_identical(tmp_path: Path, normalizer: str) -> None:
    tokenizer = ClvpTokenizer.from_pretrained(
        CHECKPOINT,
        normalizer=normalizer,
        padding_side="left",
        additional_special_tokens=["<x>"],
        add_eos_token=True,
    )
    names = tokenizer.save_pretrained(tmp_path / "a")
    assert all(Path(name).is_file() for name in names)
    loaded = ClvpTokenizer.from_pretrained(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    for name in names:
        assert Path(name).read_bytes() == (tmp_path / "b" / Path(name).name).read_bytes()
    assert loaded.normalizer == normalizer
    for text in ["1st <x> [STOP] café 1984", "Hello"]:
        assert loaded(text) == tokenizer(text)


@pytest.mark.parametrize("normalizer", ["english", "tortoise"])
def test_transformers_loads_what_we_save_and_we_what_it_saves(tmp_path: Path, normalizer: str) -> None:
    ours = ClvpTokenizer.from_pretrained(CHECKPOINT, normalizer=normalizer)
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.ClvpTokenizer.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = ClvpTokenizer.from_pretrained(tmp_path / "theirs")
    assert theirs.get_vocab() == back.get_vocab() == ours.get_vocab()
    assert back("1st [STOP] world.") == ours("1st [STOP] world.")
    english = ClvpTokenizer.from_pretrained(tmp_path / "theirs", normalizer="english")
    assert dict(english("1st [STOP] world.")) == dict(theirs("1st [STOP] world."))
    assert back.model_max_length == 402


def test_save_vocabulary(tokenizer: ClvpTokenizer, tmp_path: Path) -> None:
    vocab_file, merges_file = tokenizer.save_vocabulary(tmp_path, filename_prefix="my")
    assert (Path(vocab_file).name, Path(merges_file).name) == ("my-vocab.json", "my-merges.txt")
    assert json.loads(Path(vocab_file).read_text()) == json.loads((CHECKPOINT / "vocab.json").read_text())
    assert Path(merges_file).read_text().split() == (CHECKPOINT / "merges.txt").read_text().split()
    with pytest.raises(NotADirectoryError):
        tokenizer.save_vocabulary(tmp_path / "absent")


def test_old_layout_without_added_tokens_decoder(tmp_path: Path, tokenizer: ClvpTokenizer) -> None:
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"):
        (tmp_path / name).write_bytes((CHECKPOINT / name).read_bytes())
    old = ClvpTokenizer.from_pretrained(tmp_path)
    assert old.get_vocab() == tokenizer.get_vocab()
    assert old("a[STOP]b<|endoftext|>")["input_ids"] == [14, 0, 15, 255]


def test_pickle_and_deepcopy(tortoise: ClvpTokenizer) -> None:
    text = "1st, 1984 'many' $1.50"
    for twin in (pickle.loads(pickle.dumps(tortoise)), copy.deepcopy(tortoise)):
        assert twin(text) == tortoise(text)
        assert twin.get_vocab() == tortoise.get_vocab()
        assert twin.normalizer == "tortoise"


def test_bad_files_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"vocab\.json"):
        ClvpTokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "[UNK]": 2}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(ValueError, match="'ab', which the vocabulary lacks"):
        ClvpTokenizer.from_pretrained(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(ValueError, match="line 2"):
        ClvpTokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text("[1, 2")
    with pytest.raises(ValueError, match=r"vocab\.json"):
        ClvpTokenizer.from_pretrained(tmp_path)


def test_bad_arguments_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="'german'"):
        ClvpTokenizer.from_pretrained(CHECKPOINT, normalizer="german")
    with pytest.raises(ValueError, match="padding_side"):
        ClvpTokenizer.from_pretrained(CHECKPOINT, padding_side="both")
    with pytest.raises(TypeError, match="normaliser"):
        ClvpTokenizer.from_pretrained(CHECKPOINT, normaliser="tortoise")
    with pytest.raises(ValueError, match="lstrip"):
        ClvpTokenizer.from_pretrained(
            CHECKPOINT, added_tokens_decoder={0: {"content": "[STOP]", "lstrip": True}}
        )
