"""The page in a real browser: no errors on the console, and the buttons do what they say."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from components.report.stage import report

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium")]

PROBE = """
<script>
addEventListener("load", () => {
  const counts = () => document.querySelectorAll(".question:not([hidden])").length;
  const found = [];
  document.querySelectorAll("[data-filter]").forEach((button) => {
    button.click();
    found.push(`${button.dataset.filter}=${counts()}/${button.querySelector("span").textContent}`);
  });
  document.querySelector("[data-filter=all]").click();
  const search = document.getElementById("search");
  search.value = "FOUNDER13 who";
  search.dispatchEvent(new Event("input"));
  found.push(`search=${counts()}/1`);
  search.value = "";
  search.dispatchEvent(new Event("input"));
  document.getElementById("expand").click();
  found.push(`open=${document.querySelectorAll(".question[open]").length}/${counts()}`);
  found.push(`wide=${document.documentElement.scrollWidth}/${document.documentElement.clientWidth}`);
  document.body.dataset.found = found.join(" ");
});
</script>
"""


def browse(page: Path, profile: Path) -> tuple[str, str]:
    """(the page's elements after its scripts ran, what the browser logged)."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom"]
    options += ["--enable-logging=stderr", f"--user-data-dir={profile}", "--window-size=500,900"]
    command = [str(BROWSER), *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, done.stderr


def test_buttons_and_console(inputs: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    report(**inputs(num_questions=20), report=str(tmp_path / "report"))
    page = tmp_path / "report" / "report.html"
    elements, log = browse(page, tmp_path / "profile")
    assert "CONSOLE" not in log, log
    assert "<title>Evaluation report</title>" in elements, "no script from the data ran"

    probed = tmp_path / "probed.html"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    probed.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    elements, log = browse(probed, tmp_path / "profile")
    match = re.search(r'data-found="([^"]*)"', elements)
    assert match, log
    for pair in match[1].split():
        shown, expected = pair.partition("=")[2].split("/")
        assert shown == expected, match[1]
    assert match[1].count("=") == 9
