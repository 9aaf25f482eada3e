"""What follows from judgements: a function of them alone, in numbers and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cerebras_jais.evaluate.judge.judgements import (
    WINNERS,
    Judgement,
    Outcome,
    choice_of,
    outcome_of,
    rating_of,
    why_unreadable,
)
from cerebras_jais.evaluate.judge.questions import NOTES, REFERENCED
from cerebras_jais.evaluate.judge.statistics import LEVEL, interval_of_mean, sign_test
from cerebras_jais.evaluate.judge.verdicts import RATINGS, fastchat_choice, fastchat_rating
from cerebras_jais.wording import counted

_WORDS_OF: Mapping[Outcome, str] = {
    "win": "{0} wins in both orders",
    "loss": "{1} wins in both orders",
    "tie": "tie in both orders",
    "inconsistent": "the orders disagree",
    "unreadable": "a verdict is not readable",
}
_VALUES: Mapping[Outcome, float] = {"win": 1.0, "loss": 0.0, "tie": 0.5, "inconsistent": 0.5, "unreadable": 0.5}
_SIGNIFICANT = 1 - LEVEL


@dataclass(frozen=True)
class Side:
    """One model's answers: mean of their words, how many are in another language than asked, how many were cut."""

    model: str
    mean_words: float
    other_language: int
    cut: int


@dataclass(frozen=True)
class Comparison:
    """Two models compared; wins and losses are the first one's. Rates and shares are of 1.

    Attributes:
        outcomes: questions by outcome.
        win_rate: wins of all questions; ties and what is not decided are in the count.
        adjusted: wins and half of all that is neither won nor lost, of all questions.
        interval: of `adjusted`, bootstrap over questions.
        sign_test: how likely wins and losses so uneven are between equals.
        first_preferred: of the judgements that name a winner, those that name the answer in the first place; None
            without any.
        longer_preferred: of the questions won or lost whose answers differ in words, those that the longer one won.
        unreadable: judgements without a verdict, by reason.
        categories: for each its questions won, neither, and lost.
        without_reference: questions judged without the reference answer that FastChat would give.
    """

    sides: tuple[Side, Side]
    judge: str
    questions: str
    language: str
    count: int
    outcomes: Mapping[Outcome, int]
    win_rate: float
    loss_rate: float
    adjusted: float
    interval: tuple[float, float]
    sign_test: float
    first_preferred: float | None
    longer_preferred: float | None
    unreadable: Mapping[str, int]
    categories: Mapping[str, tuple[int, int, int]]
    without_reference: int

    @property
    def better(self) -> int | None:
        """Which model is the better one; None where they cannot be told apart, by the sign test or by the interval."""
        low, high = self.interval
        if self.sign_test >= _SIGNIFICANT or low <= 0.5 <= high:
            return None
        return 0 if self.adjusted > 0.5 else 1


@dataclass(frozen=True)
class Ratings:
    """One model rated from 1 to 10.

    Attributes:
        mean: of the readable ratings; None without any. `interval` is its bootstrap over questions.
        bounds: of the mean, if each unreadable judgement were a 1, or a 10.
        categories: mean of each; None where nothing is readable.
    """

    side: Side
    judge: str
    questions: str
    language: str
    count: int
    mean: float | None
    interval: tuple[float, float] | None
    bounds: tuple[float, float]
    unreadable: Mapping[str, int]
    categories: Mapping[str, float | None]
    without_reference: int


@dataclass(frozen=True)
class FastChatComparison:
    """What FastChat's show_result.py says of the first model: a question with an error is left out."""

    win: int
    loss: int
    tie: int
    left_out: int

    def rates(self) -> tuple[float, float, float]:
        """Win rate, loss rate and adjusted win rate; nan without any question."""
        count = self.win + self.loss + self.tie
        return tuple(n / count if count else float("nan") for n in (self.win, self.loss, self.win + self.tie / 2))  # type: ignore[return-value]


@dataclass(frozen=True)
class FastChatRatings:
    """The mean of what FastChat's parsing finds; what it does not parse is left out."""

    mean: float
    left_out: int


def compare(judgements: Sequence[Judgement]) -> Comparison:
    """The report on a comparison of two models."""
    outcomes = [outcome_of(judgement) for judgement in judgements]
    counts: dict[Outcome, int] = {outcome: outcomes.count(outcome) for outcome in _WORDS_OF}
    choices = [choice_of(said) for judgement in judgements for said in judgement.said]
    named = [choice for choice in choices if choice in ("A", "B")]
    decided = [
        (outcome == "win") == (judgement.words[0] > judgement.words[1])
        for outcome, judgement in zip(outcomes, judgements, strict=True)
        if outcome in ("win", "loss") and judgement.words[0] != judgement.words[1]
    ]
    values = [_VALUES[outcome] for outcome in outcomes]
    by_category = {
        category: [o for o, j in zip(outcomes, judgements, strict=True) if j.category == category]
        for category in dict.fromkeys(j.category for j in judgements)
    }
    return Comparison(
        (_side(judgements, 0), _side(judgements, 1)),
        *_common(judgements),
        count=len(judgements),
        outcomes=counts,
        win_rate=counts["win"] / len(judgements),
        loss_rate=counts["loss"] / len(judgements),
        adjusted=sum(values) / len(values),
        interval=interval_of_mean(values),
        sign_test=sign_test(counts["win"], counts["loss"]),
        first_preferred=named.count("A") / len(named) if named else None,
        longer_preferred=sum(decided) / len(decided) if decided else None,
        unreadable=_unreadable(judgements),
        categories={
            category: (o.count("win"), len(o) - o.count("win") - o.count("loss"), o.count("loss"))
            for category, o in by_category.items()
        },
        without_reference=_without_reference(judgements),
    )


def rate(judgements: Sequence[Judgement]) -> Ratings:
    """The report on the ratings of one model."""
    ratings = [rating_of(judgement.said[0]) for judgement in judgements]
    readable = [rating for rating in ratings if rating is not None]
    missing, total = len(ratings) - len(readable), sum(readable)
    by_category = {
        category: [r for r, j in zip(ratings, judgements, strict=True) if j.category == category and r is not None]
        for category in dict.fromkeys(j.category for j in judgements)
    }
    return Ratings(
        _side(judgements, 0),
        *_common(judgements),
        count=len(judgements),
        mean=total / len(readable) if readable else None,
        interval=interval_of_mean(readable) if readable else None,
        bounds=((total + missing * RATINGS.low) / len(ratings), (total + missing * RATINGS.high) / len(ratings)),
        unreadable=_unreadable(judgements),
        categories={name: sum(found) / len(found) if found else None for name, found in by_category.items()},
        without_reference=_without_reference(judgements),
    )


def fastchat_compare(judgements: Sequence[Judgement]) -> FastChatComparison:
    """The same by FastChat's parsing and averaging: orders that disagree are a tie."""
    counts: Counter[str] = Counter()
    for judgement in judgements:
        found = [fastchat_choice(said.text) for said in judgement.said]
        verdicts = [None if choice is None else WINNERS[order][choice] for order, choice in enumerate(found)]
        agreed = verdicts[0] if verdicts[0] == verdicts[1] else "tie"
        counts["left out" if None in verdicts else str(agreed)] += 1
    return FastChatComparison(counts["win"], counts["loss"], counts["tie"], counts["left out"])


def fastchat_rate(judgements: Sequence[Judgement]) -> FastChatRatings:
    """The same by FastChat's parsing and averaging."""
    ratings = [fastchat_rating(judgement.said[0].text) for judgement in judgements]
    found = [rating for rating in ratings if rating is not None]
    return FastChatRatings(sum(found) / len(found) if found else float("nan"), len(ratings) - len(found))


def _unreadable(judgements: Sequence[Judgement]) -> dict[str, int]:
    reasons = Counter(why_unreadable(judgement.kind, said) for judgement in judgements for said in judgement.said)
    return {reason: count for reason, count in reasons.items() if reason is not None}


def _side(judgements: Sequence[Judgement], number: int) -> Side:
    return Side(
        judgements[0].models[number],
        sum(judgement.words[number] for judgement in judgements) / len(judgements),
        sum(judgement.languages[number] != judgement.language for judgement in judgements),
        sum(judgement.finishes[number] == "length" for judgement in judgements),
    )


def _common(judgements: Sequence[Judgement]) -> tuple[str, str, str]:
    first = judgements[0]
    languages = {judgement.language for judgement in judgements}
    return first.judge, first.questions, languages.pop() if len(languages) == 1 else "ar, en"


def _without_reference(judgements: Sequence[Judgement]) -> int:
    return sum(judgement.category in REFERENCED and "math" not in judgement.prompt for judgement in judgements)


# ---- in words -------------------------------------------------------------------------------------------------------


def report_lines(judgements: Sequence[Judgement], *, fastchat: bool = False) -> list[str]:
    """The report of a folder's judgements, to print."""
    if judgements[0].kind == "pairwise":
        found = compare(judgements)
        return [*_comparison_lines(found), *(_fastchat_comparison(fastchat_compare(judgements)) if fastchat else [])]
    rated = rate(judgements)
    return [*_rating_lines(rated), *(_fastchat_ratings(fastchat_rate(judgements)) if fastchat else [])]


def _comparison_lines(found: Comparison) -> list[str]:
    names = [side.model for side in found.sides]
    better = found.better
    verdict = (
        f"{names[0]} and {names[1]} cannot be told apart"
        if better is None
        else f"{names[better]} is preferred to {names[1 - better]}"
    )
    games = 2 * found.count
    return [
        f"{counted(found.count, 'question')} of {found.questions}, judged by {found.judge} in both orders",
        f"{verdict}: the win rate of {names[0]} is {_percent(found.adjusted)}, undecided questions counted half "
        f"({LEVEL:.0%} interval {_percent(found.interval[0])} to {_percent(found.interval[1])}; sign test of wins and "
        f"losses p = {found.sign_test:.2g})",
        "",
        *(
            f"  {_WORDS_OF[outcome].format(*names):<40} {count:>4} {_percent(count / found.count):>7}"
            for outcome, count in found.outcomes.items()
        ),
        "",
        _unreadable_line(found.unreadable, games),
        f"the answer in the first place: preferred in {_share(found.first_preferred)} of the judgements with a winner",
        f"the longer answer: preferred in {_share(found.longer_preferred)} of the questions with a winner",
        *map(_side_line, found.sides),
        *_notes(found.questions, found.without_reference),
        "",
        f"  {'category':<16} {'won':>4} {'neither':>8} {'lost':>5}",
        *(f"  {name:<16} {won:>4} {rest:>8} {lost:>5}" for name, (won, rest, lost) in found.categories.items()),
    ]


def _rating_lines(found: Ratings) -> list[str]:
    readable = found.count - sum(found.unreadable.values())
    mean = "no rating is readable"
    if found.mean is not None and found.interval is not None:
        low, high = found.interval
        mean = f"{found.mean:.2f} of 10 ({LEVEL:.0%} interval {low:.2f} to {high:.2f}), mean of {readable}"
    bounds = f"; with the unreadable ones {found.bounds[0]:.2f} to {found.bounds[1]:.2f}" if found.unreadable else ""
    return [
        f"{counted(found.count, 'question')} of {found.questions}, rated by {found.judge}",
        f"{found.side.model}: {mean}{bounds}",
        "",
        _unreadable_line(found.unreadable, found.count),
        _side_line(found.side),
        *_notes(found.questions, found.without_reference),
        "",
        f"  {'category':<16} {'mean':>6}",
        *(f"  {name:<16} {'-' if mean is None else f'{mean:.2f}':>6}" for name, mean in found.categories.items()),
    ]


def _fastchat_comparison(found: FastChatComparison) -> list[str]:
    win, loss, adjusted = found.rates()
    return [
        "",
        f"as FastChat counts: win {found.win}, loss {found.loss}, tie {found.tie}, left out {found.left_out}; "
        f"win_rate {win:.6f}, loss_rate {loss:.6f}, win_rate_adjusted {adjusted:.6f}",
    ]


def _fastchat_ratings(found: FastChatRatings) -> list[str]:
    return ["", f"as FastChat counts: score {found.mean:.6f}, left out {found.left_out}"]


def _unreadable_line(reasons: Mapping[str, int], total: int) -> str:
    said = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"judgements: {total}, {sum(reasons.values())} of them not readable{f' ({said})' if said else ''}"


def _side_line(side: Side) -> str:
    return (
        f"answers of {side.model}: {side.mean_words:.0f} words in the mean, {side.other_language} in another language "
        f"than the question, {side.cut} cut"
    )


def _notes(questions: str, without_reference: int) -> list[str]:
    notes = [f"note: {NOTES[questions]}"] if questions in NOTES else []
    if without_reference:
        notes.append(
            f"note: {counted(without_reference, 'question')} of {', '.join(REFERENCED)} judged without the reference "
            "answers that FastChat gives; --reference FILE takes them"
        )
    return notes


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _share(share: float | None) -> str:
    return "none" if share is None else _percent(share)
