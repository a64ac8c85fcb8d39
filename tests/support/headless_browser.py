"""Check a report.html in headless Chromium: network requests, console messages, layout; and take screenshots.

    python tests/support/headless_browser.py OUT.scorer/report.html [FOLDER FOR PICTURES]

At 1,400 and 700 pixels, light and dark, and as a printed page. Exits with 1 and prints a line for each fault. Needs
playwright and a system Chromium.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

WIDTHS, SCHEMES = (1400, 700), ("light", "dark")
NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium():
    """Return the path of the browser, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def look(page, path, width, faults):
    """Load the page and hover over a shape; add requests, messages and overflows to the faults."""
    where = f"{width} pixels"
    page.on(
        "request", lambda request: request.url == path.as_uri() or faults.append(f"{where}: requests {request.url}")
    )
    page.on("console", lambda said: said.type in {"error", "warning"} and faults.append(f"{where}: {said.text}"))
    page.on("pageerror", lambda error: faults.append(f"{where}: {error}"))
    page.on("dialog", lambda dialog: (faults.append(f"{where}: a dialog opened"), dialog.dismiss()))
    page.goto(path.as_uri())
    page.wait_for_load_state()
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    if wide > 0:
        faults.append(f"{where}: {wide} pixels wider than the window")
    shapes = page.locator(".frame [data-says]")
    if shapes.count():
        shapes.last.scroll_into_view_if_needed()
        shapes.last.hover(force=True)
        if page.locator(".tip").text_content() not in shapes.evaluate_all("all => all.map(one => one.dataset.says)"):
            faults.append(f"{where}: a shape shows no text when the pointer is over it")
        page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, 0)")


def main(path, pictures=None):
    """Check every width and color scheme; return the faults."""
    from playwright.sync_api import sync_playwright

    faults: list[str] = []
    with sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium(), args=flags)
        for width in WIDTHS:
            for scheme in SCHEMES:
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                look(page, path, width, faults)
                if pictures:
                    page.screenshot(path=pictures / f"{path.stem}-{width}-{scheme}.png", full_page=True)
                    if (width, scheme) == (WIDTHS[0], "light"):
                        page.pdf(path=pictures / f"{path.stem}.pdf", format="A4")
                page.close()
        browser.close()
    return faults


if __name__ == "__main__":
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    found = main(Path(sys.argv[1]).resolve(), folder)
    print("\n".join(found) or "nothing is wrong")
    sys.exit(bool(found))
