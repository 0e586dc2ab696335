"""Opens a page in a headless browser with Playwright, and prints as JSON what it shows.

    .venv-clients/bin/python tests/clients/browse.py PAGE BROWSER

It looks at the page in every width and colour scheme, and prints it to PDF. It needs no specpipe.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = (360, 1400)  # CSS pixels
SCHEMES = ("light", "dark")
PDF_PAGE = re.compile(rb"/Type\s*/Page\b")

# Every element that has text of its own: the ratio of luminances of WCAG 2.2 (1.4.3) of that text
# and what is behind it. A page without background has the colour of the scheme's canvas.
LOOK = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => {
    const [r, g, b] = rgba(colour).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (rgba(colour)[3] === 255) return colour;
    }
    return "Canvas";
  };
  const texts = [...document.body.querySelectorAll("*")]
    .filter((e) => !["title", "script", "style"].includes(e.localName.toLowerCase()))
    .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
  const contrasts = texts.map((element) => {
    const style = getComputedStyle(element);
    const colour = element.ownerSVGElement ? style.fill : style.color;
    const [low, high] = [light(colour), light(behind(element))].sort((a, b) => a - b);
    return [element.textContent.trim().slice(0, 60), (high + 0.05) / (low + 0.05)];
  });
  const pictures = [...document.querySelectorAll("figure > svg, figure > .empty")]
    .map((e) => e.getBoundingClientRect()).map((box) => [box.width, box.height]);
  const cut = [...document.querySelectorAll("svg text")].filter((e) => {
    const [box, frame] = [e, e.ownerSVGElement].map((x) => x.getBoundingClientRect());
    return box.left < frame.left - 1 || box.right > frame.right + 1;
  }).map((e) => e.textContent);
  const root = document.documentElement;
  return {contrasts, pictures, cut, wide: root.scrollWidth - root.clientWidth,
          page: getComputedStyle(document.body).backgroundColor};
}"""


def main(place: Path, browser: str) -> dict[str, Any]:
    """Return what every view of the page shows, its messages, its requests and its PDF."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        try:
            return look(opened, place)
        finally:
            opened.close()


def look(browser: Browser, place: Path) -> dict[str, Any]:
    """Load the page, and look at it from all sides."""
    messages: list[str] = []
    requests: list[str] = []
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(place.resolve().as_uri(), wait_until="load")
    views = {f"{width} {scheme}": view(page, width, scheme)
             for width in WIDTHS for scheme in SCHEMES}  # fmt: skip
    pages = len(PDF_PAGE.findall(page.pdf(format="A4")))
    return {"browser": browser.version, "messages": messages, "requests": requests,
            "views": views, "pdf_pages": pages}  # fmt: skip


def view(page: Page, width: int, scheme: str) -> dict[str, Any]:
    """Return what the page shows in a window of this width and with this colour scheme."""
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    found: dict[str, Any] = page.evaluate(LOOK)
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
