import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("plotly", reason="needs the dashboard's extra: pip install plotly")

from osrm_exp.dashboard import send, write_dashboard
from osrm_exp.report.rows import write_rows

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
TITLES = ["Average by merge", "Task by task", "Average on tune against scaling",
          "Interference in the query modules", "Average against cost"]  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two inits, two merges, a search, diagnostics: a chart of every kind."""
    results = tmp_path_factory.mktemp("x") / "a<b"
    shared = {
        "experiment": "x", "model": "m", "dataset": "d", "tuning": "t", "protocol": "clean",
        "space": "delta", "tuned_on": "tune", "split": "validation", "metric": "accuracy",
        "headline": True, "degenerate": False, "setup": "s", "schema": 2, "seed": 1,
    }  # fmt: skip
    for init in ("gaussian", "osrm"):
        for merge, value in {"ties": 0.6, "individual": 0.8, "pretrained": 0.4}.items():
            cell = f"{init}-{merge}"
            of = {"init": init, "merge": merge, "cell": cell, "line": cell, "adapters": [init],
                  "merge_seconds": 2.0, "chosen": {"scaling": 0.3} if merge == "ties" else {},
                  "settings": {"scaling": 0.3} if merge == "ties" else {},
                  "output": "per_task" if merge == "individual" else "shared, dense"}  # fmt: skip
            rows = [{**shared, **of, "task": t, "value": value} for t in ("cola", "</script>")]
            write_rows(results, cell, rows)
        tried = [{"cell": f"{init}-ties", "point": {"scaling": s}, "score": s, "split": "tune"}
                 for s in (0.1, 0.3)]  # fmt: skip
        write_rows(results, f"{init}-ties", tried, "searches")
        seen = {
            "init": init,
            "seed": 1,
            "tasks": ["cola", "rte"],
            "module": "layer.0.query",
            "stage": "end",
            "metric": "response_BA",
            "values": [[0.4, 0.1], [0.1, 0.4]],
        }
        write_rows(results, init, [seen], "diagnostics")
    return write_dashboard(results)


def test_the_page_needs_no_network_and_holds_everything(page):
    text = page.read_text()
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=", text)
    assert "<title>x-a&lt;b</title>" in text and "<h1>x-a&lt;b</h1>" in text
    assert "<td class='number best'>60.0" in text and "Bold: the best merge" in text
    assert [t for t in re.findall(r"<h2>(.*?)</h2>", text)] == ["Merged against single", *TITLES]
    assert "Protocol clean: coefficients chosen on tune" in text


def test_what_a_sweep_lacks_is_on_the_page_without_a_place_of_this_machine(page, monkeypatch):
    said = f"{page.parent}: 2 cells: 1 ok, 1 failed\n  failed  merge=ties: no <rows> in /srv/me/x"
    monkeypatch.setattr("osrm_exp.dashboard.unfinished", lambda results: said)
    text = write_dashboard(page.parent).read_text()
    lacking = text.partition("<h2>Not complete</h2>")[2].partition("</pre>")[0]
    assert "a&lt;b: 2 cells: 1 ok, 1 failed" in lacking
    assert "merge=ties: no &lt;rows&gt; in (local)" in lacking and "/srv/me" not in text
    monkeypatch.undo()
    assert "Not complete" not in write_dashboard(page.parent).read_text()


def test_a_browser_draws_every_chart(page, tmp_path):
    if BROWSER is None:
        pytest.skip("needs a headless browser: chromium")
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=20000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=180).stdout
    drawn = re.findall(r'class="plotly-graph-div js-plotly-plot"', dom)
    assert len(drawn) == len(TITLES) and dom.count('class="main-svg"') >= len(TITLES)
    assert "Merged against single" in dom


def test_who_is_logged_in_gets_a_workspace_a_report_and_late_references(page, monkeypatch):
    workspace = pytest.importorskip(
        "osrm_exp.report.workspace", reason="pip install wandb-workspaces", exc_type=ImportError
    )
    saved, summary = [], {}
    run = SimpleNamespace(
        config={"cell": {"cell": "osrm-ties"}}, state="finished",
        summary=SimpleNamespace(update=summary.update),
    )  # fmt: skip
    api = SimpleNamespace(default_entity="us", runs=lambda where, group: [run, failed])
    failed = SimpleNamespace(config={}, state="failed")
    monkeypatch.setattr("wandb.Api", lambda: api)
    for kind in (workspace.ws.Workspace, workspace.wr.Report):
        monkeypatch.setattr(kind, "save", lambda self: saved.append(self) or self)
        monkeypatch.setattr(kind, "url", property(lambda self: f"{self.entity}/{self.project}"))
    assert send(page.parent, project="p") == ["us/p", "us/p"]
    made, report = saved
    assert made.name == report.title == "x"
    assert [one.name for one in made.sections][:2] == ["Merged against single", "Coefficients"]
    assert summary["merged/average"] == pytest.approx(60)
    assert summary["lost/average"] == pytest.approx(20)  # known now, from rows that came later


def test_no_rows_are_said_in_a_sentence(tmp_path):
    command = [sys.executable, "-m", "osrm_exp.dashboard", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 1 and done.stderr.startswith("osrm_exp: ")
    assert "holds no rows yet" in done.stderr and "Traceback" not in done.stderr
