"""Trials of policies on a robot: the schedule, the sealed key of its code words, and what follows from judgements.

A placement is how objects lie; each arm (a policy) has one trial in each, in random order. Every trial has a code word
of its own, so an operator cannot even tell which trials are of the same arm. Nothing here knows a robot.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from toolkit.evaluation.sequential import PairedTest, Tally, holm

SUCCESS, FAILURE, DISCARD, LOST = "success", "failure", "discard", "lost"
JUDGED = (SUCCESS, FAILURE)
SYLLABLES = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
Key = dict[str, str]  # code word: name of the policy


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A trial before it takes place; placements count from 1."""

    placement: int
    code_word: str


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Written before the first trial and never again. commitment: see `seal`. settings: what must not change."""

    placements: int
    policies: list[str]
    trials: list[Planned]
    commitment: str
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What became of a trial, which may take several attempts. judgement: success, failure, discard or lost.

    clipped: actions of which a dimension was brought back to the limits. seconds: from the first action to the last.
    """

    placement: int
    code_word: str
    attempt: int
    judgement: str
    reason: str = ""
    steps: int = 0
    clipped: int = 0
    stopped_by_key: bool = False
    seconds: float = 0.0
    recorded: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Of two policies over the placements that both have finished. better: the name, where the test has settled it.

    reachable: if trials are left that could settle it. p: of the sequential test; wins: placements that one alone
    solved.
    """

    a: str
    b: str
    placements: int
    wins_a: int
    wins_b: int
    p: float
    better: str | None = None
    reachable: bool = False


# ---------------------------------------------------------------------------------------------------------- schedule


def draw_schedule(policies: Sequence[str], placements: int, settings: dict[str, Any]) -> tuple[Schedule, Key, str]:
    """A schedule, its key, and the key sealed. The order comes from the system's randomness: no seed tells it."""
    random = secrets.SystemRandom()
    words = draw_code_words(placements * len(policies), random)
    trials, key = [], {}
    for placement in range(1, placements + 1):
        for policy in random.sample(list(policies), len(policies)):
            word = words.pop()
            trials.append(Planned(placement=placement, code_word=word))
            key[word] = policy
    commitment, sealed = seal(key)
    schedule = Schedule(
        placements=placements, policies=list(policies), trials=trials, commitment=commitment, settings=settings
    )
    return schedule, key, sealed


def draw_code_words(count: int, random: secrets.SystemRandom) -> list[str]:
    """Distinct words of three syllables, in random order."""
    words: set[str] = set()
    while len(words) < count:
        words.add("".join(random.choices(SYLLABLES, k=3)))
    return random.sample(sorted(words), count)


def seal(key: Key) -> tuple[str, str]:
    """Commitment and sealed text of a key.

    The commitment is the SHA-256 of the key with a random salt: it gives nothing away, and afterwards shows that the
    key is the one of before the first trial. The sealed text cannot be read by eye. It is no secret from somebody who
    runs this code on it, since the program itself must know which policy to run.
    """
    text = json.dumps({"key": key, "salt": secrets.token_hex(16)}, sort_keys=True).encode()
    nonce = secrets.token_bytes(16)
    return hashlib.sha256(text).hexdigest(), base64.b85encode(nonce + _masked(text, nonce)).decode()


def unseal(sealed: str, commitment: str) -> Key:
    """The key. Raises ValueError if it is not the one that the commitment was made of."""
    data = base64.b85decode(sealed)
    text = _masked(data[16:], data[:16])
    if hashlib.sha256(text).hexdigest() != commitment:
        raise ValueError("the sealed key is not the one that the schedule was written with")
    key: Key = json.loads(text)["key"]
    return key


def _masked(text: bytes, nonce: bytes) -> bytes:
    mask = hashlib.shake_256(nonce).digest(len(text))
    return bytes(one ^ other for one, other in zip(text, mask, strict=True))


# ---------------------------------------------------------------------------------------------------------- judgements


def attempts_of(planned: Planned, attempts: Sequence[Attempt]) -> list[Attempt]:
    return [one for one in attempts if one.code_word == planned.code_word]


def next_trial(schedule: Schedule, attempts: Sequence[Attempt]) -> Planned | None:
    """The first placement that is not finished; in it one that was discarded or lost comes after the others."""
    judged = {one.code_word for one in attempts if one.judgement in JUDGED}
    left = [planned for planned in schedule.trials if planned.code_word not in judged]
    if not left:
        return None
    here = [planned for planned in left if planned.placement == left[0].placement]
    return min(here, key=lambda planned: len(attempts_of(planned, attempts)))


def finished_placements(schedule: Schedule, key: Key, attempts: Sequence[Attempt]) -> dict[str, list[bool]]:
    """By policy its outcomes in the placements that all policies have finished, in order."""
    found: dict[int, dict[str, bool]] = {}
    for one in attempts:
        if one.judgement in JUDGED:
            found.setdefault(one.placement, {})[key[one.code_word]] = one.judgement == SUCCESS
    whole = [found[place] for place in sorted(found) if len(found[place]) == len(schedule.policies)]
    return {policy: [outcomes[policy] for outcomes in whole] for policy in schedule.policies}


def judge_pairs(outcomes: Mapping[str, Sequence[bool]], placements: int, alpha: float) -> list[Verdict]:
    """The sequential test of every pair of policies, over all of which the chance of a false alarm is alpha.

    outcomes: by policy, of the same placements in order. placements: as many as were planned.
    """
    test = PairedTest(placements, alpha)
    pairs = list(combinations(outcomes, 2))
    paths = []
    for a, b in pairs:
        both = list(zip(outcomes[a], outcomes[b], strict=True))
        paths.append([Tally.of(both[:seen]) for seen in range(len(both) + 1)])
    p_values = [test.p_value(path) for path in paths]
    verdicts = []
    for (a, b), path, p, rejected in zip(pairs, paths, p_values, holm(p_values, alpha), strict=True):
        now, strongest = path[-1], max(path, key=lambda tally: test.evidence[tally.a, tally.b])
        verdicts.append(
            Verdict(
                a=a,
                b=b,
                placements=now.seen,
                wins_a=now.a,
                wins_b=now.b,
                p=p,
                better=(a if strongest.a > strongest.b else b) if rejected else None,
                reachable=rejected or test.reachable(now),
            )
        )
    return verdicts


def plan_text(policies: int, placements: int, alpha: float) -> str:
    """What so many placements can settle, before the first trial."""
    pairs = policies * (policies - 1) // 2
    test = PairedTest(placements, alpha / pairs)
    first = f"{placements} placements, {placements * policies} trials of {policies} policies"
    if test.wins_needed is None:
        return f"{first}: too few to settle anything at alpha={alpha:g}; the rates and their intervals are told"
    gap = test.smallest_difference() or 1.0
    told = (
        f"success rates {gap:.2f} apart ({0.5 + gap / 2:.2f} and {0.5 - gap / 2:.2f}) are told apart with a chance of "
        "80 % if trials of a placement are independent; smaller differences less often"
    )
    return (
        f"{first}: it takes {test.wins_needed} placements that one policy alone solves, with none for the other, to "
        f"settle a pair; {told}"
    )
