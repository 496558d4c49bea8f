"""A booktabs table that compiles as it is: `\\input{table}` with booktabs and graphicx loaded."""

from __future__ import annotations

import unicodedata

import pandas as pd

from osrm_exp.report.frame import Score
from osrm_exp.report.tables import best, score_columns

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": "$<$", ">": "$>$", "|": r"$|$", '"': "''",
    "±": r"$\pm$", "−": r"$-$", "—": "---", "–": "--", "…": r"\dots{}", "×": r"$\times$",
    "*": r"$\ast$", "†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"\S{}", "¶": r"\P{}",
}  # fmt: skip
OF_MERGE = ["space", "search", "data", "tuned on", "output"]
KINDS = {"seeds": "r"}  # of columns; others stand to the left


def escape(value: object) -> str:
    """Text that TeX prints as it stands, on one line."""
    return "".join(SPECIAL.get(c) or _plain(c) for c in " ".join(str(value).split()))


def _plain(character: str) -> str:
    """What pdfTeX's fonts have; of other letters the base, or the code point."""
    if character.isascii() or (character.isalpha() and ord(character) < 256):
        return character
    base = unicodedata.normalize("NFKD", character)[0]
    return base if base.isascii() else f"U+{ord(character):04X}"


def latex(table: pd.DataFrame, text: pd.DataFrame, foot: str, name: str) -> str:
    """The table with caption and label.

    A score takes two columns, the mean to the right and its spread and marks to the left, so that
    points stand below each other. What every merge says by itself (its space, output and tuned
    split) is left to the other formats; what is wider than the page is scaled to it.
    """
    said = [c for c in OF_MERGE if c in text and (text.groupby("merge")[c].nunique() <= 1).all()]
    text = text.drop(columns=said)
    numbers, bold = score_columns(table, text), best(table)
    kinds = "".join("r@{}l" if c in numbers else KINDS.get(c, "l") for c in text)
    heads = [_head(c, c in numbers) for c in text]
    columns = [
        map(_score, table[c], bold[c]) if c in numbers else map(escape, text[c]) for c in text
    ]
    rules = [" & ".join(line) + r" \\" for line in zip(*columns)]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,graphicx}", r"\begin{table}",
            r"\centering\small\setlength{\tabcolsep}{4pt}\setlength{\belowcaptionskip}{6pt}",
            rf"\caption{{{escape(foot)}}}", rf"\label{{tab:{_label(name)}}}",
            r"\resizebox{\linewidth}{!}{%", rf"\begin{{tabular}}{{{kinds}}}", r"\toprule",
            " & ".join(heads) + r" \\", r"\midrule", *rules, r"\bottomrule",
            r"\end{tabular}}", r"\end{table}", "",
        ]
    )  # fmt: skip


def _head(column: str, number: bool) -> str:
    return rf"\multicolumn{{2}}{{c}}{{{escape(column)}}}" if number else escape(column)


def _score(score: Score | float, bold: bool) -> str:
    if not isinstance(score, Score) or score.mean != score.mean:
        return "--- &"
    mean = f"{score.mean:.1f}".replace("-", "$-$")
    mean = rf"\textbf{{{mean}}}" if bold else mean
    spread = rf"\,{{\tiny$\pm$\,{score.std:.1f}}}" if score.seeds > 1 else ""
    marks = rf"\textsuperscript{{{escape(score.marks)}}}" if score.marks else ""
    return f"{mean} & {spread}{marks}"


def _label(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-.") else "-" for c in name)
