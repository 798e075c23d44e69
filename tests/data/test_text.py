"""Texts: vocabularies, reading, continuing batches, and errors."""

import lzma

import numpy as np
import pytest

from mslice_jax import data
from mslice_jax.data import DataError, Vocabulary

# -- vocabularies


@pytest.mark.parametrize(
    ("kind", "text", "entries"),
    [
        ("characters", "abca\n", ["<unk>", "a", "b", "c", "\n"]),
        ("words", "To be, or\nTo be!", ["<unk>", "To", "be", ",", "or", "<eos>", "!"]),
        ("words", "the king's <unk>", ["<unk>", "the", "king's"]),
        ("spaced", "a @-@ <unk> a .\n", ["<unk>", "a", "@-@", ".", "<eos>"]),
    ],
)
def test_entries_are_the_pieces_the_most_frequent_first(kind, text, entries):
    assert list(Vocabulary.of(text, kind).entries) == entries


def test_the_rest_of_a_text_is_unknown():
    text = "b a a c c c d\n"
    vocabulary = Vocabulary.of(text, "words", size=3)
    assert vocabulary.entries == ("<unk>", "c", "a")
    assert vocabulary.encode(text).tolist() == [0, 2, 2, 1, 1, 1, 0, 0]
    assert vocabulary.decode([1, 0, 2]) == "c <unk> a"


@pytest.mark.parametrize("kind", ["characters", "spaced"])
def test_decoding_gives_the_text_again(kind):
    text = "To be , or\nnot to be .\n"
    vocabulary = Vocabulary.of(text, kind)
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_bad_vocabularies_are_refused():
    with pytest.raises(DataError, match="of characters, words, spaced; got 'letters'"):
        Vocabulary.of("a", "letters")
    with pytest.raises(DataError, match="at least 2 entries, got 1"):
        Vocabulary.of("a", size=1)
    with pytest.raises(DataError, match="from 0 to 1, .* token 2 is 7"):
        Vocabulary.of("a").decode([0, 1, 7])


# -- reading


def test_a_file_is_divided_at_the_end_of_a_line(tmp_path):
    lines = [f"{n} green bottles\n" for n in range(100, 120)]
    (tmp_path / "song.txt").write_text("".join(lines))
    text = data.read_text(tmp_path / "song.txt")
    assert text.vocabulary.decode(text.train) == "".join(lines[:19])
    assert len(text.held_out) == len(lines[-1])
    assert repr(text).startswith("Text(song.txt: 342 training and 18 held-out tokens")


def test_a_folder_has_its_parts(tmp_path):
    for part, words in (("train", "a b a c"), ("valid", "a d"), ("test", "b b b")):
        with lzma.open(tmp_path / f"wiki.{part}.tokens.xz", "wt") as file:
            file.write(f" {words} \n")
    text = data.read_text(tmp_path, vocabulary=4)
    assert text.vocabulary.entries == ("<unk>", "a", "b", "c")
    assert text.train.tolist() == [1, 2, 1, 3, 0]
    assert text.held_out.tolist() == [1, 0, 0]
    assert data.read_text(tmp_path, held_out="test").held_out.tolist() == [2, 2, 2, 4]


def test_wikitext_has_the_published_numbers_of_tokens(shared):
    # Merity et al., 2016, table 1: 2,088,628 tokens to train with, 217,646 to validate;
    # 33,278 words, "<unk>" among them.
    text = data.read_text(shared("data/text"))
    assert (len(text.train), len(text.held_out)) == (2_088_628, 217_646)
    assert len(text.vocabulary) == 33_278


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, "cannot read the text .*a.txt: No such file"),
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b" \n\n ", "a.txt is empty"),
        ("a.txt", b"caf\xe9", r"not a text in UTF-8: byte 3 is 0xe9 .* Save it as UTF"),
        ("a.txt", "\ufeffa".encode(), "has 0 tokens to train with; expected at least"),
        ("a.txt.xz", b"plain", "no xz file, or a damaged one"),
        ("folder/train.txt", b"a b c", "one file in .*folder with 'valid' .* got none"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(tmp_path, name, content, message):
    file = tmp_path / name
    if content is not None:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        data.read_text(file.parent if "/" in name else file)


# -- batches


def test_rows_continue_from_batch_to_batch_and_epoch_to_epoch():
    tokens = np.arange(100)
    batches = data.text_batches(tokens, 3, 7)  # four steps an epoch, 84 tokens
    rows = np.concatenate([next(batches)[0] for _ in range(12)], axis=1)
    # In three epochs each row reads the 84 tokens once, from its own part on.
    for row, start in zip(rows, (0, 28, 56), strict=True):
        np.testing.assert_array_equal(row, (start + np.arange(84)) % 84)


def test_targets_are_the_next_tokens():
    tokens = np.arange(100) * 3
    batches = data.text_batches(tokens, 3, 7)
    for _ in range(5):
        now, after = next(batches)
        np.testing.assert_array_equal(after, now + 3)


def test_a_resumed_run_reads_the_same_batches():
    tokens = np.arange(100)
    batches = data.text_batches(tokens, 3, 7)
    for step in range(10):
        again = next(data.text_batches(tokens, 3, 7, start=step))
        np.testing.assert_array_equal(next(batches), again)


def test_hosts_have_their_rows():
    tokens = np.arange(100)
    whole = next(data.text_batches(tokens, 4, 5, start=6))
    parts = [
        next(data.text_batches(tokens, 4, 5, start=6, host=(n, 2))) for n in (0, 1)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts, axis=1))
    with pytest.raises(DataError, match="that 3 hosts divide; got 4"):
        data.text_batches(tokens, 4, 5, host=(0, 3))


@pytest.mark.parametrize("overlap", [0, 2, 3])
@pytest.mark.parametrize("count", [2, 5, 23, 24, 25, 41])
def test_every_token_but_the_first_counts_once(count, overlap):
    tokens = np.arange(count)
    counted = []
    for now, after, mask in data.held_out_batches(tokens, 3, 4, overlap=overlap):
        assert now.shape == after.shape == mask.shape == (3, 4)
        np.testing.assert_array_equal(after, now + 1)
        counted += after[mask == 1].tolist()
    assert sorted(counted) == list(range(1, count))


def test_a_row_continues_in_evaluation():
    batches = list(data.held_out_batches(np.arange(25), 2, 4))
    rows = np.concatenate([now for now, _, _ in batches], axis=1)
    np.testing.assert_array_equal(rows, np.arange(24).reshape(2, 12))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((np.arange(20), 4, 5), "needs a text of 21 tokens; this one has 20"),
        ((np.arange(20), 0, 5), "at least 1 part and 1 token a batch, got 0"),
    ],
)
def test_a_text_that_is_too_short_is_refused(given, message):
    with pytest.raises(DataError, match=message):
        data.text_batches(*given)


def test_a_token_out_of_range_is_refused_before_the_first_batch():
    with pytest.raises(DataError, match="from 0 to 49, .* token 50 is 50. Encode"):
        data.text_batches(np.arange(100), 4, 5, vocabulary=50)
    with pytest.raises(DataError, match="whole numbers, got float64"):
        data.text_batches(np.ones(100), 4, 5, vocabulary=50)
    with pytest.raises(DataError, match="overlap from 0 to 3, got 4"):
        data.held_out_batches(np.arange(9), 2, 4, overlap=4)
    with pytest.raises(DataError, match="at least 2 tokens, got 1"):
        data.held_out_batches(np.arange(1), 2, 4)
