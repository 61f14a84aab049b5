import re

import pytest
import torch

from unlearnx import Request
from unlearnx.data import Alphabet, Canary, load_text, windows

HEADING = 265  # characters before the novel begins, which the published study leaves out
TEXT = "  one paragraph\nof two lines.\n\n  two paragraphs.\n\n          a heading\n\n  three.\n\n  `four'\n\n  five."


@pytest.fixture(scope="session")
def novel(real_data):
    path = real_data / "alice_in_wonderland.txt"
    if not path.exists():
        pytest.skip(f"UNLEARNX_DATA holds no {path.name}")
    return load_text(path)[HEADING:]


def test_alphabet_goes_both_ways():
    alphabet = Alphabet("hello, wörld 😀")
    assert alphabet.characters == "".join(sorted(set("hello, wörld 😀")))
    assert len(alphabet) == 11
    codes = alphabet.encode("röde 😀")
    assert codes.dtype == torch.int64
    assert codes.tolist() == [alphabet.characters.index(c) for c in "röde 😀"]
    assert alphabet.decode(codes) == "röde 😀"
    assert alphabet.decode(alphabet.encode("")) == ""


@pytest.mark.parametrize("unknown", ["!", "g", "\uffff"])  # before, between and after the characters
def test_unknown_character_is_named_with_its_position(unknown):
    with pytest.raises(
        ValueError, match=rf"character {re.escape(repr(unknown))} at position 2 is not one of the 3 of the alphabet"
    ):
        Alphabet("abz").encode("ab" + unknown)


def test_codes_out_of_range():
    for code in (-1, 3):
        with pytest.raises(ValueError, match=f"codes: {code} is out of range for 3 characters"):
            Alphabet("abz").decode(torch.tensor([0, code]))
    with pytest.raises(ValueError, match="text: is empty"):
        Alphabet("")


def test_load_text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeffÄ Line\r\nAnother".encode())
    assert load_text(file) == "ä line\nanother"
    file.write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"text.txt: byte 2 is not UTF-8"):
        load_text(str(file))
    file.write_text(" \n")
    with pytest.raises(ValueError, match=r"text.txt: is empty, expected text"):
        load_text(file)
    for missing in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(FileNotFoundError, match="is not a file"):
            load_text(missing)


@pytest.mark.parametrize(("length", "step"), [(1, 1), (4, 1), (4, 3), (9, 2)])
def test_windows_are_views(length, step):
    codes = torch.randint(5, (10,))
    x, y = windows(codes, length, step)
    starts = range(0, 10 - length, step)
    assert x.tolist() == [codes[i : i + length].tolist() for i in starts]
    assert y.tolist() == [codes[i + 1 : i + 1 + length].tolist() for i in starts]
    assert {t.untyped_storage().data_ptr() for t in (x, y)} == {codes.untyped_storage().data_ptr()}


@pytest.mark.parametrize(
    ("codes", "length", "step", "message"),
    [
        (torch.arange(5), 5, 1, r"codes: has shape \[5\], expected \(T,\), T > 5"),
        (torch.zeros(3, 9), 2, 1, r"codes: has shape \[3, 9\]"),
        (torch.arange(5), 0, 1, "length is 0"),
        (torch.arange(5), 2, 0, "step is 0"),
    ],
)
def test_no_windows(codes, length, step, message):
    with pytest.raises(ValueError, match=message):
        windows(codes, length, step)


def test_canary_is_a_paragraph_of_its_own():
    planted = Canary("42", "call {number} now.", repeats=3).insert(TEXT)
    assert planted.text == TEXT.replace("\n\n  t", "\n\n  call 42 now.\n\n  t").replace(
        "\n\n  five", "\n\n  call 42 now.\n\n  five"
    )
    assert [planted.text[p : p + 2] for p in planted.positions] == ["42"] * 3
    assert planted.replaced("xy") == planted.text.replace("42", "xy")


def test_replacement_leaves_the_same_digits_elsewhere():
    planted = Canary("42", "call {number} now.", repeats=1).insert("  42.\n\n  42.")
    assert planted.replaced("xy") == "  42.\n\n  call xy now.\n\n  42."


def test_breaks_without_indentation():
    assert Canary("7", "n {number}", repeats=1).insert("a\n\nb").text == "a\n\nn 7\n\nb"


def test_breaks_are_distinct_and_drawn_by_the_seed():
    text = "\n\n".join("abcdefghij")
    drawn = [Canary("1", repeats=4, seed=seed).insert(text).positions for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert Canary("1", repeats=9).insert(text).text.count("alice.\n\n") == 9
    with pytest.raises(ValueError, match="repeats is 10, expected at most 9"):
        Canary("1", repeats=10).insert(text)
    with pytest.raises(ValueError, match="expected at most 0"):
        Canary("1").insert("no breaks")


def test_random_number():
    canary = Canary.random(12, seed=3, repeats=2)
    assert re.fullmatch(r"\d{12}", canary.number)
    assert canary == Canary.random(12, seed=3, repeats=2)
    assert canary.number != Canary.random(12, seed=4).number
    assert canary.prefix == "`my telephone number is "


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Canary(""), "number: is empty"),
        (lambda: Canary("1", repeats=0), "repeats is 0"),
        (lambda: Canary("1", "no number"), "expected {number} exactly once"),
        (lambda: Canary("1", "{number} is mine"), "after other text"),
        (lambda: Canary.random(0), "length is 0"),
        (lambda: Canary("1", repeats=1).insert("a\n\nb").replaced("12"), "'12' has 2 characters, expected 1"),
    ],
)
def test_clear_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("replacement", ["not there ", "dry enough"])
def test_published_numbers(novel, replacement):
    """Warnecke et al. count 198 of 148,597 windows as affected: those in whose 24 characters the number shows.

    Each insertion shows in 24 + 10 - 1 windows. One more has the first digit as its target alone: learned all the
    same, hence to be corrected too.
    """
    planted = Canary("0123456789").insert(novel)
    alphabet = Alphabet(planted.text)
    assert len(alphabet) == 54
    before, after = (windows(alphabet.encode(text)) for text in (planted.text, planted.replaced(replacement)))
    assert before[0].shape == (148_597, 24)
    assert (before[0] != after[0]).any(1).sum() == 198 == 6 * (24 + 10 - 1)
    request = Request.correct(before, after)
    starts = [range(p - 24, p + 10) for p in planted.positions]
    assert request.forget.tolist() == [i for r in starts for i in r]
    assert len(request.forget) == 204
    assert not request.labels_only
