import shutil
import subprocess

import pandas as pd
import pytest

from osrm_exp.report.frame import lines
from osrm_exp.report.latex import escape, latex
from osrm_exp.report.scores import scores
from osrm_exp.report.tables import shown

DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs,graphicx}
\begin{document}
\input{table}
See Table~\ref{tab:x-y}.
\end{document}
"""
NASTY = 'a\\b {c} $d$ #e ^f ~g %h _i & <j> "k" |l| ± — λ … é\nnext Ω′ 漢'


def made(*rows, foot="foot"):
    table = lines(scores(pd.DataFrame(rows)))
    return latex(table, shown(table)[0], foot, "x_y")


def test_every_special_character_is_escaped():
    assert escape("50% of a_b & {x}^2 ~ $1 #1 \\n") == (
        r"50\% of a\_b \& \{x\}\textasciicircum{}2 \textasciitilde{} \$1 \#1 \textbackslash{}n"
    )
    assert escape(NASTY).isascii() or set(escape(NASTY)) - set(map(chr, range(128))) == {"é"}


def test_caption_label_and_aligned_numbers(row, references):
    text = made(row(value=0.7), *references({"a": 0.6}, {"a": 0.8}), foot="50 % of_it")
    assert r"\caption{50 \% of\_it}" in text and r"\label{tab:x-y}" in text
    assert r"\multicolumn{2}{c}{a}" in text and "r@{}l" in text
    assert r"ties & scaling=0.3 density=0.2 & \textbf{70.0} & " in text


def test_what_cannot_be_compared_is_not_bold(row):
    text = made(
        row("emr", value=0.9, output="per_task, dense", line="l0"),
        *(row(seed=seed, value=0.5) for seed in (1, 2, 3)), row("dare", value=0.8, line="l2"),
        row("individual", value=0.95, line="l3", output="per_task, lowrank 8"),
    )  # fmt: skip
    assert text.count(r"\textbf{50.0}") == 2 and text.count(r"\textbf") == 3  # a, average; lost 35
    assert r"\textbf{45.0}" in text


def test_a_column_that_differs_within_a_merge_stays(row):
    rows = [row(line=space, space=space) for space in ("delta", "knots")]
    assert "knots" in made(*rows) and "dense" not in made(*rows)


def test_it_compiles_as_it_is(tmp_path, row, references):
    if not shutil.which("pdflatex"):
        pytest.skip("needs pdflatex with booktabs: texlive-latex-recommended")
    rows = [row(task=t, value=v, seed=s, init=NASTY, metric="pearson", degenerate=v < 0.5, rows=400)
            for t, v in {"a": -0.4, "b_%": 0.6}.items() for s in (1, 2)]  # fmt: skip
    both = {"a": 0.5, "b_%": 0.5}
    (tmp_path / "table.tex").write_text(
        made(*rows, *references(both, both, init=NASTY), foot=f"{NASTY} * † ‡ § ¶ ^ −")
    )
    (tmp_path / "document.tex").write_text(DOCUMENT)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "Missing character" not in done.stdout
