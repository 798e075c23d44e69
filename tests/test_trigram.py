"""The trigram baseline of language models, against sums written out as defined.

Interpolated Kneser-Ney with three discounts (Chen and Goodman, 1999), by dictionaries.
"""

import collections

import numpy as np
import pytest

from experiments.benchmarks import trigram

VOCAB = 5
RANDOM = np.random.default_rng(0)
# Some words are far more frequent after others: n-grams of every count.
TEXT = (RANDOM.integers(0, 4, 400) * (np.arange(400) % 3 > 0)).astype(np.int32)
HELD_OUT = RANDOM.integers(0, VOCAB, 30).astype(np.int32)  # 4 is in no n-gram


def slowly(text, context, token):
    """P(token | context), by the formula: discounts from the counts of counts."""
    grams = collections.Counter(tuple(text[i : i + 3]) for i in range(len(text) - 2))
    levels = {3: grams}
    for n in (2, 1):
        shorter = collections.Counter()
        for gram in levels[n + 1]:
            shorter[gram[1:]] += 1
        levels[n] = shorter

    def p(context, token):
        n = len(context) + 1
        counts = levels[n]
        n1, n2, n3, n4 = (sum(c == k for c in counts.values()) for k in (1, 2, 3, 4))
        if all((n1, n2, n3, n4)):
            y = n1 / (n1 + 2 * n2)
            d = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            d = [min(max(x, 0), k) for k, x in enumerate(d)]
        else:
            d = [0, 0.5, 0.75, 0.9]
        lower = p(context[1:], token) if context else 1 / VOCAB
        follow = {g[-1]: c for g, c in counts.items() if g[:-1] == context}
        if not follow:
            return lower
        total = sum(follow.values())
        kept = follow.get(token, 0) - d[min(follow.get(token, 0), 3)]
        rest = sum(d[min(c, 3)] for c in follow.values())
        return kept / total + rest / total * lower

    return p(tuple(context), token)


def test_probabilities_are_those_of_the_formula():
    found = trigram.probabilities(trigram.fit(TEXT, VOCAB), HELD_OUT, VOCAB)
    text, tokens = TEXT.tolist(), HELD_OUT.tolist()
    expected = [
        slowly(text, tokens[max(at - 2, 0) : at], tokens[at])
        for at in range(1, len(tokens))
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("context", [(1, 2), (2, 0), (4, 1), (0, 4)])
def test_they_sum_to_one(context):
    levels = trigram.fit(TEXT, VOCAB)
    each = [
        trigram.probabilities(levels, np.array([*context, token]), VOCAB)[-1]
        for token in range(VOCAB)
    ]
    assert sum(each) == pytest.approx(1)
    assert min(each) > 0


def test_perplexity_is_that_of_a_fair_die():
    # A unigram of a text with equally frequent faces.
    text = np.tile(np.arange(6), 50)
    levels = trigram.fit(text, 6, order=1)
    assert trigram.perplexity(levels, text, 6) == pytest.approx(6)


def test_the_command_shows_every_order(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 30)
    args = ["--text", str(tmp_path / "a.txt"), "--tokens", "words"]
    assert trigram.main(args) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [float(line.split()[-1]) for line in lines[1:]]
    # There are six words, and each word but "to" determines the next one.
    assert len(found) == 3
    assert 6 > found[0] > 2 * max(found[1:])
    assert min(found) > 1
    assert trigram.main(["--text", str(tmp_path / "none.txt")]) == 2
    assert "cannot read the text" in capsys.readouterr().err
    assert trigram.main([*args, "--order", "0"]) == 2
    assert "--order of at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(ValueError, match="below 2\\^63, got 9"):
        trigram.fit(TEXT, 200, order=9)
    with pytest.raises(ValueError, match="at least 3 tokens, got 2"):
        trigram.fit(TEXT[:2], VOCAB)
