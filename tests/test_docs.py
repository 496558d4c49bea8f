"""The pages' tables are what the configs say, and every paper they name is explained in one."""

import re

import pytest
from omegaconf import OmegaConf

from osrm_exp import CONF, docs

METHODS = sorted((CONF / "merge").glob("*.yaml"))
COMMENT = re.compile(r"^#.*$", flags=re.MULTILINE)
ARXIV = re.compile(r"\d{4}\.\d{5}")


def cited(text: str) -> set[str]:
    """The arXiv numbers in a config's comments."""
    return set(ARXIV.findall("\n".join(COMMENT.findall(text))))


PAPERS = set().union(*(cited(file.read_text()) for file in METHODS))


@pytest.mark.parametrize("page", ["methods", "inits"])
def test_a_page_is_what_the_configs_say(page):
    assert docs.written(page) == (docs.DOCS / f"{page}.md").read_text(), (
        "write the pages again: python -m osrm_exp.docs"
    )


@pytest.mark.parametrize(("page", "group"), [("methods", "merge"), ("inits", "init")])
def test_a_page_names_every_config_once(page, group):
    found = re.findall(r"^\| `(\w+)` \|", docs.written(page), flags=re.MULTILINE)
    assert sorted(found) == sorted(file.stem for file in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("file", METHODS, ids=lambda file: file.stem)
def test_a_paper_in_the_page_is_explained_in_a_config(file):
    paper = re.search(r"^  paper: (.*)$", file.read_text(), flags=re.MULTILINE)
    assert set(ARXIV.findall(paper[1] if paper else "")) <= PAPERS


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ({}, "page.table is missing"),
        ({"table": "sums", "formula": "0"}, "missing 3 required .*'exact', 'rank', and 'flops'"),
        ({"table": "sums", "colour": "red"}, "unexpected keyword argument 'colour'"),
        (
            {"table": "moon", "formula": "0", "exact": "e", "rank": "r", "flops": "0"},
            "'moon'.*sums",
        ),
        ({"table": "sums", "paper": 2203.05482}, "page.paper is 2203.05482: write one quoted line"),
    ],
)
def test_a_page_that_does_not_fit_is_said_in_one_sentence(tmp_path, monkeypatch, page, sentence):
    (tmp_path / "merge").mkdir()
    config = {"_target_": "osrm_exp.merging.pretrained", "neutral": None, "page": page}
    OmegaConf.save(config, tmp_path / "merge" / "zero.yaml")
    monkeypatch.setattr(docs, "CONF", tmp_path)
    with pytest.raises(ValueError, match=sentence) as caught:
        docs.written("methods")
    assert "zero.yaml" in str(caught.value) and "\n" not in str(caught.value)
