"""A page in headless Chromium: what it measures at the widths of a phone and of a desktop."""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (375, 390, 1280)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--window-size=1400,1000",
)

PROBE = """<!doctype html><meta charset="utf-8"><body><script>
const page = PAGE, widths = WIDTHS;
const report = {};
function measure(width) {
  return new Promise(done => {
    const frame = document.createElement("iframe");
    frame.style = `width:${width}px;height:900px;border:0`;
    frame.onload = () => {
      const inner = frame.contentDocument, view = frame.contentWindow;
      inner.querySelectorAll("details").forEach(one => { one.open = true; });
      const boxes = [...inner.querySelectorAll("body *")].filter(one => !one.closest(".scroll"));
      const text = [...inner.querySelectorAll("p, th, td, figcaption, span, h1")];
      report[width] = {
        scroll: inner.documentElement.scrollWidth,
        widest: Math.max(...boxes.map(one => one.getBoundingClientRect().right)),
        smallest: Math.min(...text.map(one => parseFloat(view.getComputedStyle(one).fontSize))),
        broken: [...inner.images].filter(one => !one.naturalWidth).length,
        images: inner.images.length,
        requests: view.performance.getEntriesByType("resource").filter(one => !one.name.startsWith("data:")).length,
      };
      done();
    };
    frame.srcdoc = page;
    document.body.append(frame);
  });
}
(async () => {
  for (const width of widths) await measure(width);
  const result = document.createElement("pre");
  result.id = "report";
  result.textContent = JSON.stringify(report);
  document.body.append(result);
})();
</script>"""


def browsed(page: str, folder: Path) -> tuple[dict[str, Any], str]:
    """The page in frames of both widths in headless Chromium: measures per width, and what the console said."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian's package chromium)")
    inner = json.dumps(page).replace("</", "<\\/")
    probe = folder / "probe.html"
    probe.write_text(PROBE.replace("PAGE", inner, 1).replace("WIDTHS", str(list(WIDTHS)), 1), encoding="utf-8")
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        "--dump-dom",
        probe.as_uri(),
    ]
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True, env=environment)
    found = re.search(r'<pre id="report">(.*?)</pre>', done.stdout)
    assert found is not None, done.stderr[-2000:]
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(unescape(found[1])), console
