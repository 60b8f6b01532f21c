r"""Boxed answers: what is taken for the answer, and a table of verdicts, math-verify's own unless a row says otherwise."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.math.boxed import Grade, grade, last_box, process_results, stated_answer

RIGHT = Grade(strict=True, flexible=True, parsed=True, timed_out=False)
WRONG = Grade(strict=False, flexible=False, parsed=True, timed_out=False)
NO_ANSWER = Grade(strict=False, flexible=False, parsed=False, timed_out=False)
TOO_LONG = Grade(strict=False, flexible=False, parsed=True, timed_out=True)


@pytest.mark.pitfall(
    "an answer may contain several boxes",
    area="Grading",
    guard="`tasks/math/boxed.py` takes the last one",
    evidence="the first one is taken",
)
@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1}, no: \boxed{2}", "2"),
        (r"\fbox{7}", "7"),
        (r"\boxed{1} \fbox{2} \boxed {3}", "3"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\left\{ 1, 2 \right.}", r"\left\{ 1, 2 \right."),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"$\boxed 5$", "5"),
        (r"\boxed12.", "12"),
        (r"\boxed{}", ""),
        (r"\boxed{ }", ""),
        (r"\boxed{1} and then \boxed{2", ""),
        (r"\boxed", ""),
        (r"\boxedquestion{5}", None),
        ("boxed{5}", None),
        ("", None),
    ],
)
def test_the_last_box_is_the_answer(text: str, content: str | None):
    assert last_box(text) == content


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("The answer is 5.", "5"),
        ("the answer is 3, no, the answer is: $4$. Bye", "4"),
        ("**Answer:** $3.5$", "3.5"),
        ("Answer: 1,200\nIs it?", "1,200"),
        ("answered 5; the answers are 6", ""),
        ("it is 7", ""),
    ],
)
def test_without_a_box_only_a_stated_answer_counts_and_only_as_flexible(text: str, stated: str):
    assert stated_answer(text) == stated


def test_a_stated_answer_is_only_flexible_and_an_empty_box_is_not_an_answer():
    assert grade("The answer is 5.", "5") == Grade(strict=False, flexible=True, parsed=False, timed_out=False)
    assert grade("The answer is 6, of 5.", "5") == NO_ANSWER
    assert grade("it is 5", "5") == NO_ANSWER
    assert grade(r"The answer is 5. \boxed{}", "5") == NO_ANSWER
    assert grade(r"The answer is 5. \boxed{5", "5") == NO_ANSWER
    assert grade("", "5") == NO_ANSWER


# Reference, answer in the box: equal. A comment names a verdict of math-verify that may surprise.
EQUAL = [
    ("5", r"5 \text{ cm}"),
    (r"5 \text{ cm}", "5"),
    (r"5 \text{ cm}", r"5 \text{ m}"),  # units are dropped, not compared
    ("5", r"5\,\mathrm{cm}"),
    ("5", "5 cm"),
    (r"50\%", "50%"),
    (r"50\%", r"\frac{1}{2}"),
    (r"50\%", "50"),  # a whole percentage equals its number as well, whichever of them is the reference
    ("50", r"50\%"),
    ("0.5", r"50\%"),
    ("0.125", r"12.5\%"),
    ("(1,2]", r"\left( 1, 2 \right]"),
    (r"[0,1)\cup(1,2]", r"(1,2] \cup [0,1)"),
    (r"x \le 2", r"(-\infty, 2]"),  # but not the other way round
    ("(1,2)", r"\{1,2\}"),  # an open interval, a pair and two values are the same to it
    ("(1,2)", "1,2"),
    (r"\{1,2\}", "1,2"),
    (r"\{1,2,3\}", r"\{3,2,1\}"),
    ("1,2", r"x=1 \text{ or } x=2"),
    ("2,-2", r"\pm 2"),
    (r"\emptyset", r"\{\}"),
    (r"\frac{1}{2}", r"\dfrac{1}{2}"),
    (r"\frac{1}{2}", "1/2"),
    (r"\frac{1}{2}", r"\frac24"),
    (r"\frac{3}{2}", r"1\frac{1}{2}"),
    (r"1\frac{1}{2}", "1.5"),
    ("1234", "1,234"),
    ("1,234", "1234"),
    ("1234", "1{,}234"),
    ("1000000", r"1 \times 10^6"),
    ("90", r"90^\circ"),
    (r"90^{\circ}", r"90 \text{ degrees}"),
    (r"\text{(B)}", "B"),
    ("B", r"\textbf{(B)}"),
    (r"\text{Monday}", r"\text{monday}"),
    ("5", r"\$5"),
    ("1200", r"\$1,200.00"),
    ("5", "x=5"),
    ("x=5", "5"),
    ("5", "3+2"),  # what could still be calculated is equal to its value
    ("120", "5!"),
    ("y=2x+1", "y-2x=1"),
    ("x+y=2", "2x+2y=4"),
    ("x^2+2x+1", "(x+1)^2"),
    ("1.0", "1"),
    ("73", "073"),
    (r"\frac{1}{3}", "0.333333"),  # a decimal number is compared to six places
    (r"\pi", "3.141593"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\infty", "infinity"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}"),
    (r"\begin{pmatrix} 1/2 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 0.5 \\ 2 \end{pmatrix}"),
    ("3:2", r"\frac{3}{2}"),
    ("2516_8", "2516"),  # a base is dropped
    ("-5", "−5"),
    (r"\frac{1}{10^{9}}", "0.000000001"),
    (r"3\pi r", r"3\pi R"),  # upper and lower case are the same to it
    (r"9\text{ a.m.}", r"9\text{ p.m.}"),  # text after a number is a unit
    (r"\text{no answer known}", r"\text{no answer known}"),
    (r"9^{9^{9^{9}}}", r"9^{9^{9^{9}}}"),  # equal texts are not calculated
]

# Reference, answer in the box: not equal.
DIFFERENT = [
    (r"\frac{1}{3^{80}}", r"\frac{1}{3^{90}}"),  # small numbers are compared by their ratio
    (r"6.63\times10^{-34}", r"1.6\times10^{-19}"),
    ("0.0000001", "0.0000004"),
    (r"\frac{1}{3\cdot 2^{2006}}", r"\frac{2^{2005}+1}{3\cdot 2^{2006}}"),  # about 0 and 1/6
    (r"3.1\times10^{20}", r"3.2\times10^{20}"),
    (r"5 \text{ km}", r"5000 \text{ m}"),  # units are not converted
    ("5", "5 dollars"),  # in words outside \text only the units of its list are dropped
    ("5", "€5"),
    ("50", "0.5"),
    (r"12.5\%", "12.5"),  # unlike a whole percentage
    ("(1,2]", "[1,2]"),
    ("(2,1)", "1,2"),
    (r"(-\infty, 2]", r"x \le 2"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    (r"\varnothing", r"\emptyset"),
    (r"\frac{3}{4}", r"\frac{4}{3}"),
    (r"\frac{3}{2}", "1 1/2"),  # a mixed number needs \frac
    ("1234", r"1\,234"),
    ("1.234", "1,234"),
    ("90", "90°"),
    (r"90^\circ", r"\frac{\pi}{2}"),
    (r"\text{(B)}", r"\text{(C)}"),
    (r"\text{(B) } 5", "5"),
    ("x=5", "y=5"),
    ("5", "x=6"),
    ("x", "y"),
    ("1", "1.00000001"),
    (r"\frac{1}{3}", "0.333"),
    (r"\pi", "3.14"),
    (r"\frac{1}{3}", r"0.\overline{3}"),
    (r"\infty", r"-\infty"),
    (r"\infty", r"\frac{1}{0}"),
    ("5", "5."),
    ("5", "about 5"),
    ("5", "5 or 6"),
    ("5", "6, then 5"),
    ("5", r"\frac{5}"),
    ("5", r"\{5"),
    ("5", "five"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "(1,2)"),
    ("1+2i", "1-2i"),
]

ENDLESS = [
    r"9^{9^{9^{9}}}",
    "2^{" * 40 + "2" + "}" * 40,
    "9999999999!",
    r"\prod_{k=1}^{10^9} k",
    r"\tan(10^{10^{10}})",
    r"\sin(" * 200 + "1" + ")" * 200,
    r"\int_0^{\infty} \frac{\sin(x^{x})}{e^{x^2}+x^{\pi}} dx",
    "(" * 3000 + "5" + ")" * 3000,
]


@pytest.mark.pitfall(
    "a percentage equals its number, its fraction, or neither, depending on how it is written",
    area="Grading",
    guard=(
        "`tests/tasks/test_boxed.py` lists every verdict in a table, and `tasks/math/boxed.py` keeps the text of the "
        "box whole"
    ),
    evidence="the percent sign is dropped before the verdict",
)
@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal_answers(gold: str, answer: str):
    assert grade(rf"It is $\boxed{{{answer}}}$.", gold) == RIGHT


@pytest.mark.pitfall(
    "math-verify's verdict depends on which of the two texts is called the reference",
    area="Grading",
    guard="`tasks/math/verdict_worker.py` passes the reference first",
    evidence="the answer is passed first",
)
@pytest.mark.pitfall(
    "by default, math-verify picks a number out of words, units and currency signs",
    area="Grading",
    guard=(
        "`tasks/math/verdict_worker.py` lets it read only the content of the box; a table lists the verdicts that "
        "may surprise"
    ),
    evidence="math-verify reads its own way",
)
@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different_answers(gold: str, answer: str):
    assert grade(rf"It is $\boxed{{{answer}}}$.", gold) == WRONG


@pytest.mark.parametrize("answer", ENDLESS, ids=lambda answer: answer[:20])
def test_an_endless_answer_ends_at_the_limit_and_the_next_one_is_graded(answer: str):
    assert grade(r"\boxed{4}", "4.0") == RIGHT
    started = time.monotonic()
    assert grade(rf"\boxed{{{answer}}}", "5", seconds=0.5) == TOO_LONG
    assert time.monotonic() - started < 60
    assert grade(r"\boxed{4}", "4.0") == RIGHT
    assert grade(r"\boxed{4}", "4.1") == WRONG


def test_metrics_are_numbers():
    assert process_results({"answer": "1"}, [r"\boxed{2}"]) == {"strict": 0, "flexible": 0, "parsed": 1, "timed_out": 0}


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_hostile_text_never_raises(text: str):
    found = process_results({"answer": "7"}, [rf"{text}\boxed{{{text}"])
    assert found.keys() == {"strict", "flexible", "parsed", "timed_out"}
