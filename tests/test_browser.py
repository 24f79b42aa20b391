"""The reports in a real browser: pictures decode, nothing is fetched, nothing is wider than the window."""

import json
import re
import shutil
import subprocess

import pytest
from reported import make_run
from test_study import make_study

from sorl_fast.report import write_report, write_study

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
WIDTH = 1000
# shows the page in a frame, and then says what became of it
LOOK = f"""<!doctype html><body style="margin:0"><iframe src="PAGE" width="{WIDTH}" height="800"></iframe>
<pre id="found"></pre><script>
onload = () => {{
  const frame = document.querySelector("iframe"), page = frame.contentDocument;
  document.getElementById("found").textContent = JSON.stringify({{
    title: page.title,
    pictures: [...page.images].map(x => x.complete ? x.naturalWidth : 0),
    headings: [...page.querySelectorAll("h1,h2")].map(x => x.textContent),
    tables: [...page.querySelectorAll("table")].map(x => x.rows.length),
    width: page.documentElement.scrollWidth,
    fetched: frame.contentWindow.performance.getEntriesByType("resource")
      .map(x => x.name).filter(x => !x.startsWith("data:")),
  }});
}};
</script></body>"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium"),
]


def looked_at(page, folder):
    look = folder / "look.html"
    look.write_text(LOOK.replace("PAGE", page.as_uri()))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += [
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=20000",
        "--dump-dom",
    ]
    done = subprocess.run(
        [BROWSER, *options, look.as_uri()], capture_output=True, text=True, timeout=120
    )
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert text is not None and text[1], done.stdout[-500:] + done.stderr[-2000:]
    return json.loads(text[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))


def sound(found):
    assert found["title"]
    assert found["pictures"]
    assert min(found["pictures"]) > 300
    assert min(found["tables"]) >= 2
    assert len(found["headings"]) >= 3
    assert found["width"] <= WIDTH
    assert found["fetched"] == []


def test_the_page_of_a_study(tmp_path):
    study = make_study(tmp_path / "study", tasks=(1,), int8=False)
    page = write_study(study, tmp_path / "out", versus="fql", seconds=0.0, say=lambda text: None)
    sound(looked_at(page, tmp_path))


def test_the_page_of_a_run(tmp_path):
    run = tmp_path / "run"
    make_run(run, 0, 2000, "cube-single-play-singletask-task1-v0", ((1, 2, 4), (1, 4)))
    write_report([run], tmp_path / "out", seconds=0.0)
    (page,) = (tmp_path / "out").glob("*.html")
    sound(looked_at(page, tmp_path))


def test_a_picture_that_is_broken_is_seen(tmp_path):
    page = tmp_path / "broken.html"
    page.write_text("<title>x</title><img src='data:image/png;base64,AAAA'>")
    assert looked_at(page, tmp_path)["pictures"] == [0]
