"""Eight small English tasks in the shapes of GLUE's, generated: a benchmark without a download.

All tasks speak of one small world, so that one input carries several answers: what one task must
notice (who did it, a negation, a number) another must overlook. That is where merged adapters
collide. A grammar draws the texts for a given label, and a digest of the texts alone decides their
split, so that no text pair is ever in both, whatever the seeds and sizes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from datasets import Dataset

SPLITS = ("train", "validation")
MISSES = 3000  # draws in a row without a new text after which a grammar counts as exhausted

PEOPLE = "doctor teacher farmer nurse lawyer student soldier singer painter pilot writer guard"
ACTIONS = "wait walk work rest talk shout jump play cook march"
WISHES = "want need paint clean touch inspect"
PLACES = "park garden kitchen street school station market church library forest hotel museum"
VERBS = "help follow call watch visit thank kick push pull attack join trust"
OPPOSITES = (
    "tall/short old/young happy/sad rich/poor strong/weak healthy/sick awake/asleep calm/angry"
)
KINDS = {
    "animal": "dog cat horse bird lion bear wolf cow pig rabbit",
    "vehicle": "car truck bus boat train bike plane ship taxi van",
    "fruit": "apple lemon orange pear peach grape cherry banana melon fig",
    "instrument": "guitar piano violin drum flute harp trumpet bass horn fiddle",
}
REVIEWED = "film plot music food hotel service story acting book show"
PRAISE = "good great excellent wonderful charming brilliant delightful funny"
BLAME = "bad awful terrible boring dull horrible stupid ugly"
GOODS = "rice bread coffee tea pizza soup cake wine beer fish pasta salad cheese milk meat butter"
INTENTS = [
    "How can I make {}?/What is the best way to make {}?/How is {} made?/How do you prepare {}?",
    "Where can I buy {}?/Which shop sells {}?/Who sells {} near me?/Where do they sell {}?",
    "How much does {} cost?/What is the price of {}?/Is {} expensive?/How cheap is {}?",
    "Why is {} so popular?/What makes {} so popular?/Why do people love {}?/Why do we like {}?",
    "Is {} good for my health?/How healthy is {}?/Is {} unhealthy?/Is it healthy to have {}?",
]

PEOPLE, ACTIONS, WISHES, PLACES, VERBS, REVIEWED, PRAISE, BLAME, GOODS = (
    words.split()
    for words in (PEOPLE, ACTIONS, WISHES, PLACES, VERBS, REVIEWED, PRAISE, BLAME, GOODS)
)
INTENTS = [questions.split("/") for questions in INTENTS]
KINDS = {kind: members.split() for kind, members in KINDS.items()}
PAIRS = [pair.split("/") for pair in OPPOSITES.split()]
QUALITIES = [word for pair in PAIRS for word in pair]


def past(verb: str) -> str:
    return verb + "ed"


def third(verb: str) -> str:
    return verb + ("es" if verb.endswith("ch") or verb.endswith("sh") else "s")


def another(draw: Random, words: list[str], *taken: str) -> str:
    return draw.choice([word for word in words if word not in taken])


def a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def acceptability(draw: Random, label: int) -> tuple[str, ...]:
    """Does the verb agree with its subject, and does every noun follow its article?"""
    subject, object = draw.sample(PEOPLE, 2)
    verb, plural = draw.choice(VERBS), draw.random() < 0.5
    wrong = None if label else draw.choice(["agreement", "order", "order"])
    bare = plural != (wrong == "agreement")
    words = ["the", draw.choice(QUALITIES), subject + "s" * plural]
    words += [verb if bare else third(verb), "the", object + draw.choice(["", "s"])]
    words += ["in", "the", draw.choice(PLACES)]
    if wrong == "order":
        at = draw.choice([1, 2, 3, 4])
        words[at], words[at + 1] = words[at + 1], words[at]
    return (sentence(" ".join(words)),)


def sentiment(draw: Random, label: int) -> tuple[str, ...]:
    """Is the review favourable? A negation turns its adjective round; what it is held against does not."""
    negated = draw.random() < 0.4
    word, contrast = draw.choice(PRAISE), draw.choice(BLAME)
    if bool(label) == negated:
        word, contrast = contrast, word
    frame = "not {}/never {}/far from {}" if negated else "very {}/really {}/quite {}"
    subject, other = draw.sample(REVIEWED, 2)
    said = (
        f"{draw.choice(['this', 'their', 'our'])} {subject} {draw.choice(['was', 'is', 'seemed'])}"
    )
    said += " " + draw.choice(frame.split("/")).format(word)
    against = f"unlike the {contrast} {other}"
    order = draw.choice(["{0}", "{0} {1}", "{1} {0}"])
    return (sentence(order.format(said, against)),)


def paraphrase(draw: Random, label: int) -> tuple[str, ...]:
    """Do both sentences say who did what to whom, one in the active and one in the passive?"""
    agent, patient, stranger = draw.sample(PEOPLE, 3)
    verb, swap = (
        draw.choice(VERBS),
        None if label else draw.choice(["roles", "verb", "person", "person"]),
    )
    active = sentence(f"the {agent} {past(verb)} the {patient}")
    if swap == "roles":
        agent, patient = patient, agent
    elif swap == "verb":
        verb = another(draw, VERBS, verb)
    elif swap == "person":
        agent, patient = draw.choice([(agent, stranger), (stranger, patient)])
    passive = sentence(f"the {patient} was {past(verb)} by the {agent}")
    return (active, passive) if draw.random() < 0.5 else (passive, active)


def duplicate(draw: Random, label: int) -> tuple[str, ...]:
    """Do both questions ask the same thing of the same goods?"""
    intent, goods = draw.choice(INTENTS), draw.choice(GOODS)
    first, second = draw.sample(intent, 2)
    other = goods
    if not label and draw.random() < 0.5:
        second = draw.choice(draw.choice([i for i in INTENTS if i is not intent]))
    elif not label:
        other = another(draw, GOODS, goods)
    return first.format(goods), second.format(other)


def similarity(draw: Random, label: int) -> tuple[str, ...]:
    """How many of five content words do the sentences share, whatever they say?"""
    slots = [QUALITIES, PEOPLE, VERBS, PLACES]
    first = [draw.choice(words) for words in slots]
    second = list(first)
    for at in draw.sample(range(len(slots)), len(slots) - label):
        second[at] = another(draw, slots[at], first[at])
    frame = "the {} {} {} the {}"
    tell = [frame.format(q, who, past(verb), place) for q, who, verb, place in (first, second)]
    return sentence(tell[0]), sentence(tell[1])


def inference3(draw: Random, label: int) -> tuple[str, ...]:
    """Entailed, open or contradicted: the same quality, an unrelated one, or the opposite."""
    who, action = draw.choice(PEOPLE), draw.choice(ACTIONS)
    pair, unrelated = draw.sample(PAIRS, 2)
    quality, opposite = draw.sample(pair, 2)
    negated = draw.random() < [0.15, 0.4, 0.6][label]
    said = [
        opposite if negated else quality,
        draw.choice(unrelated),
        quality if negated else opposite,
    ]
    premise = sentence(f"the {quality} {who} {past(action)}")
    return premise, sentence(f"the {who} is {'not ' if negated else ''}{said[label]}")


def answerability(draw: Random, label: int) -> tuple[str, ...]:
    """Does the sentence tell of a thing of the kind that the question asks for? 0: it does."""
    who, verb, kind = draw.choice(PEOPLE), draw.choice(WISHES), draw.choice(list(KINDS))
    question = f"Which {kind} did the {who} {verb}?"
    fault = draw.choice(["person", "verb", "kind", "kind"]) if label else None
    if fault == "person":
        who = another(draw, PEOPLE, who)
    elif fault == "verb":
        verb = another(draw, WISHES, verb)
    elif fault == "kind":
        kind = another(draw, list(KINDS), kind)
    return question, sentence(f"the {who} {past(verb)} {a(draw.choice(KINDS[kind]))}")


def inference2(draw: Random, label: int) -> tuple[str, ...]:
    """Does the second sentence follow? From a thing to its kind, never back. 0: it follows."""
    kind, place = draw.choice(list(KINDS)), draw.choice(PLACES)
    thing, quality = draw.choice(KINDS[kind]), draw.choice(["big", "small", "new", "old"])
    other = another(draw, list(KINDS), kind)
    q = quality + " "
    entailed = [(thing, kind), (q + thing, q + kind), (q + thing, thing), (q + kind, kind)]
    broken = [(kind, thing), (q + kind, q + thing), (thing, q + thing)]
    broken += [(thing, other), (q + thing, other), (q + thing, q + other)]
    premise, hypothesis = draw.choice(broken if label else entailed)
    tail = f"is in the {place}"
    return sentence(f"{a(premise)} {tail}"), sentence(f"{a(hypothesis)} {tail}")


@dataclass(frozen=True)
class Grammar:
    """How a task draws the texts of a row for a label, and how its columns are called."""

    draw: Callable[[Random, int], tuple[str, ...]]
    columns: tuple[str, ...]
    labels: int
    number: type = int  # float for a regression task


PAIR = ("sentence1", "sentence2")
GRAMMARS = {
    "acceptability": Grammar(acceptability, ("sentence",), 2),
    "sentiment": Grammar(sentiment, ("sentence",), 2),
    "paraphrase": Grammar(paraphrase, PAIR, 2),
    "duplicate": Grammar(duplicate, ("question1", "question2"), 2),
    "similarity": Grammar(similarity, PAIR, 5, float),
    "inference3": Grammar(inference3, ("premise", "hypothesis"), 3),
    "answerability": Grammar(answerability, ("question", "sentence"), 2),
    "inference2": Grammar(inference2, PAIR, 2),
}


def home(texts: tuple[str, ...]) -> str:
    """The split a text or pair belongs to, one in four to validation; the order does not matter."""
    digest = hashlib.sha256("\n".join(sorted(texts)).encode()).digest()
    return SPLITS[digest[0] < 64]


def generate(task: str, split: str, rows: int, seed: int) -> Dataset:
    """`rows` distinct rows of one split, the labels balanced within one, in random order.

    Raises:
        ValueError: the task or the split is unknown, or the grammar cannot yield so many rows.
    """
    if task not in GRAMMARS:
        raise ValueError(f"unknown task {task!r}: the mini suite has {', '.join(GRAMMARS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of {task}: choose from {', '.join(SPLITS)}")
    grammar, draw = GRAMMARS[task], Random(f"{task}/{split}/{seed}")
    found: dict[tuple[str, ...], int] = {}
    misses = 0
    while len(found) < rows:
        label = len(found) % grammar.labels
        texts = grammar.draw(draw, label)
        if home(texts) == split and texts not in found:
            found[texts], misses = label, 0
        elif (misses := misses + 1) > MISSES:
            raise ValueError(
                f"the grammar of {task} yields only about {len(found)} rows for {split}, "
                f"not {rows}: ask for fewer rows"
            )
    table = list(found.items())
    draw.shuffle(table)
    columns = {name: [texts[i] for texts, _ in table] for i, name in enumerate(grammar.columns)}
    return Dataset.from_dict(
        {
            **columns,
            "label": [
                grammar.number(label * 1.25 if grammar.number is float else label)
                for _, label in table
            ],
        }
    )
