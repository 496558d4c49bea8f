"""Eight small English tasks in the shapes of GLUE's, generated: a benchmark without a download.

All tasks speak of one small world and ask different things of it: roles are the point of one and
nothing to another, likewise a negation, an ending, a kind. That is where merged adapters collide.
A grammar draws the texts for a given label, and a digest of the texts alone decides their split,
so that no text pair is ever in both, whatever the seeds and sizes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from random import Random

SPLITS = ("train", "validation")
MISSES = 3000  # draws in a row without a new text after which a grammar counts as exhausted

words = str.split  # a lexicon to a line
PEOPLE = words(
    "doctor teacher farmer nurse lawyer student soldier singer painter pilot writer guard"
)
PLACES = words(
    "park garden kitchen street school station market church library forest hotel museum"
)
MEETS = words("help follow call watch visit thank kick push pull attack join trust")
ACTS = words("wait walk work rest talk shout jump play cook march")
HANDLES = words("want need paint clean touch inspect")
PAIRS = words(
    "tall/short old/young happy/sad rich/poor strong/weak healthy/sick clean/dirty calm/angry"
)
OPPOSITES = [pair.split("/") for pair in PAIRS]
QUALITIES = [quality for pair in OPPOSITES for quality in pair]
KINDS = {
    "animal": words("dog cat horse bird lion bear wolf cow pig rabbit"),
    "vehicle": words("car truck bus boat train bike plane ship taxi van"),
    "fruit": words("apple lemon orange pear peach grape cherry banana melon fig"),
    "instrument": words("guitar piano violin drum flute harp trumpet bass horn fiddle"),
}
THINGS = [thing for members in KINDS.values() for thing in members]
REVIEWED = words("film plot music food hotel service story acting book show")
PRAISE = words("good great excellent wonderful charming brilliant delightful funny")
BLAME = words("bad awful terrible boring dull horrible stupid ugly")
GOODS = words(
    "rice bread coffee tea pizza soup cake wine beer fish pasta salad cheese milk meat rum"
)
QUESTIONS = [
    "How can I make {}?/What is the best way to make {}?/How is {} made?/How do you prepare {}?",
    "Where can I buy {}?/Which shop sells {}?/Who sells {} near me?/Where do they sell {}?",
    "How much does {} cost?/What is the price of {}?/Is {} expensive?/How cheap is {}?",
    "Why is {} so popular?/What makes {} so popular?/Why do people love {}?/Why do we like {}?",
    "Is {} good for my health?/How healthy is {}?/Is {} unhealthy?/Is it healthy to have {}?",
]
INTENTS = [line.split("/") for line in QUESTIONS]


def past(verb: str) -> str:
    return verb + "ed"


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def other(draw: Random, candidates: Collection, taken):
    return draw.choice([one for one in candidates if one != taken])


def acceptability(draw: Random, label: int) -> tuple[str, ...]:
    """Do subject and verb agree, and does every word stand in its place?"""
    subject, patient = draw.sample(PEOPLE, 2)
    verb, plural = draw.choice(MEETS), draw.random() < 0.5
    wrong = None if label else draw.choice(["agreement", "order", "order"])
    singular = verb + ("es" if verb.endswith(("ch", "sh")) else "s")
    words = ["the", draw.choice(QUALITIES), subject + "s" * plural]
    words += [verb if plural != (wrong == "agreement") else singular]
    words += ["the", patient + draw.choice(["", "s"]), "in", "the", draw.choice(PLACES)]
    if wrong == "order":
        at = draw.choice([1, 2, 3, 4])
        words[at], words[at + 1] = words[at + 1], words[at]
    return (sentence(" ".join(words)),)


def sentiment(draw: Random, label: int) -> tuple[str, ...]:
    """Is the review favourable? A negation turns its word round; a contrast is its reverse."""
    negated = draw.random() < 0.4
    word = draw.choice(PRAISE if bool(label) != negated else BLAME)
    degree = draw.choice(["not", "never", "far from"] if negated else ["very", "really", "quite"])
    subject, rival = draw.sample(REVIEWED, 2)
    whose, verb = draw.choice(["this", "their", "our"]), draw.choice(["was", "is", "seemed"])
    contrast = f"unlike the {draw.choice(BLAME if label else PRAISE)} {rival}"
    order = draw.choice(["{0}", "{0}", "{0} {1}", "{1} {0}"])
    return (sentence(order.format(f"{whose} {subject} {verb} {degree} {word}", contrast)),)


def paraphrase(draw: Random, label: int) -> tuple[str, ...]:
    """Do an active and a passive sentence say that the same person did the same to the same?"""
    agent, patient, stranger = draw.sample(PEOPLE, 3)
    verb = draw.choice(MEETS)
    active = sentence(f"the {agent} {past(verb)} the {patient}")
    change = None if label else draw.choice(["roles", "verb", "agent", "patient"])
    if change == "roles":
        agent, patient = patient, agent
    elif change == "verb":
        verb = other(draw, MEETS, verb)
    elif change == "agent":
        agent = stranger
    elif change == "patient":
        patient = stranger
    passive = sentence(f"the {patient} was {past(verb)} by the {agent}")
    return (active, passive) if draw.random() < 0.5 else (passive, active)


def duplicate(draw: Random, label: int) -> tuple[str, ...]:
    """Do both questions ask the same thing of the same goods?"""
    intent, goods = draw.choice(INTENTS), draw.choice(GOODS)
    first, second = draw.sample(intent, 2)
    change = None if label else draw.choice(["intent", "goods"])
    if change == "intent":
        second = draw.choice(other(draw, INTENTS, intent))
    again = other(draw, GOODS, goods) if change == "goods" else goods
    return first.format(goods), second.format(again)


def similarity(draw: Random, label: int) -> tuple[str, ...]:
    """How many of four content words do the sentences share, whatever they say?"""
    slots = [QUALITIES, PEOPLE, HANDLES, THINGS]
    first = [draw.choice(words) for words in slots]
    changed = draw.sample(range(4), 4 - label)
    second = [other(draw, slots[i], first[i]) if i in changed else first[i] for i in range(4)]
    pair = (first, second)
    return tuple(sentence(f"the {q} {who} {past(v)} the {what}") for q, who, v, what in pair)


def inference3(draw: Random, label: int) -> tuple[str, ...]:
    """Entailed, open or contradicted: the same quality, an unrelated one, or the opposite."""
    who, act = draw.choice(PEOPLE), draw.choice(ACTS)
    pair, unrelated = draw.sample(OPPOSITES, 2)
    quality, opposite = draw.sample(pair, 2)
    negated = draw.random() < [0.15, 0.4, 0.6][label]
    told = [quality, draw.choice(unrelated), opposite]
    if negated:
        told.reverse()  # "not weak" follows from "strong", "not strong" contradicts it
    premise = sentence(f"the {quality} {who} {past(act)}")
    return premise, sentence(f"the {who} is {'not ' * negated}{told[label]}")


def answerability(draw: Random, label: int) -> tuple[str, ...]:
    """Does the sentence tell of a thing of the kind that the question asks for? 0: it does."""
    who, verb, kind = draw.choice(PEOPLE), draw.choice(HANDLES), draw.choice(list(KINDS))
    question = f"Which {kind} did the {who} {verb}?"
    change = draw.choice(["who", "verb", "kind", "kind"]) if label else None
    if change == "who":
        who = other(draw, PEOPLE, who)
    elif change == "verb":
        verb = other(draw, HANDLES, verb)
    elif change == "kind":
        kind = other(draw, KINDS, kind)
    return question, sentence(f"the {who} {past(verb)} {article(draw.choice(KINDS[kind]))}")


def inference2(draw: Random, label: int) -> tuple[str, ...]:
    """Does the second sentence follow? From a thing to its kind, never back. 0: it follows."""
    kind, place = draw.choice(list(KINDS)), draw.choice(PLACES)
    thing, wrong = draw.choice(KINDS[kind]), other(draw, KINDS, kind)
    q = draw.choice(["big ", "small ", "new ", "old "])
    entailed = [(thing, kind), (q + thing, q + kind), (q + thing, thing), (q + kind, kind)]
    broken = [(kind, thing), (q + kind, q + thing), (thing, q + thing)]
    broken += [(thing, wrong), (q + thing, wrong), (q + thing, q + wrong)]
    pair = draw.choice(broken if label else entailed)
    return tuple(sentence(f"{article(noun)} is in the {place}") for noun in pair)


@dataclass(frozen=True)
class Grammar:
    """A task: what draws the texts of one row for the n-th of its labels, and its columns."""

    draw: Callable[[Random, int], tuple[str, ...]]
    columns: tuple[str, ...]
    labels: tuple[int, ...] | tuple[float, ...] = (0, 1)


PAIR = ("sentence1", "sentence2")
GRAMMARS = {
    "acceptability": Grammar(acceptability, ("sentence",)),
    "sentiment": Grammar(sentiment, ("sentence",)),
    "paraphrase": Grammar(paraphrase, PAIR),
    "duplicate": Grammar(duplicate, ("question1", "question2")),
    "similarity": Grammar(similarity, PAIR, (0.0, 1.25, 2.5, 3.75, 5.0)),
    "inference3": Grammar(inference3, ("premise", "hypothesis"), (0, 1, 2)),
    "answerability": Grammar(answerability, ("question", "sentence")),
    "inference2": Grammar(inference2, PAIR),
}


def home(texts: tuple[str, ...]) -> str:
    """The split a text or pair belongs to, one in four to validation; the order does not matter."""
    digest = hashlib.sha256("\n".join(sorted(texts)).encode()).digest()
    return SPLITS[digest[0] < 64]


def _check_wish(task: str, split: str, rows: int) -> None:
    if task not in GRAMMARS:
        raise ValueError(f"unknown task {task!r}: the mini suite has {', '.join(GRAMMARS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of {task}: choose from {', '.join(SPLITS)}")
    if not rows or rows < 1:
        raise ValueError(f"{task}/{split} is generated and needs a number of rows, not {rows}")


def generate(task: str, split: str, rows: int, seed: int) -> dict[str, list]:
    """Columns of `rows` distinct rows of a split, labels balanced within one, in random order.

    Raises:
        ValueError: an unknown task or split, no number of rows, or more than the grammar yields.
    """
    _check_wish(task, split, rows)
    grammar, draw = GRAMMARS[task], Random(f"{task}/{split}/{seed}")  # not hash(): every process
    found: dict[tuple[str, ...], int | float] = {}
    misses = 0
    while len(found) < rows:
        n = len(found) % len(grammar.labels)
        texts = grammar.draw(draw, n)
        if home(texts) == split and texts not in found:
            found[texts], misses = grammar.labels[n], 0
        elif (misses := misses + 1) > MISSES:
            raise ValueError(
                f"the grammar of {task} yields only about {len(found)} rows for {split}, "
                f"not {rows}: ask for fewer rows"
            )
    table = [(*texts, label) for texts, label in found.items()]
    draw.shuffle(table)
    return dict(zip((*grammar.columns, "label"), map(list, zip(*table))))
