"""Opens a page of `marquetry inspect MODEL --html FILE` in headless Chromium, walks through every view, and fails on any
console error or missing content.

    python3 tests/browser/page.py PAGE [--shots DIR]

Needs `pip install playwright` and a Chromium: the one called CHROMIUM, or `chromium` on the path.
"""

import argparse
import os
import pathlib
import shutil
import sys
import time

from playwright.sync_api import sync_playwright

SIZES = {"desktop": (1440, 900), "narrow": (420, 860)}


def expect(holds, what):
    if not holds:
        sys.exit(f"page.py: {what}")


def walk(page, shot):
    """Every view, by mouse and by keyboard."""
    expect(page.locator("#title").inner_text(), "the page has a title")
    nodes = page.locator("#graph .node")
    expect(nodes.count() > 3, "the graph is drawn")
    shot("graph")
    # A node tells what it is; its users are links.
    first = page.locator("#graph .node:not([aria-label^=group])").nth(2)
    first.focus()
    page.keyboard.press("Enter")
    panel = page.locator("#node").inner_text()
    for word in ("operator", "type", "estimate", "users"):
        expect(word in panel, f"the panel of a node says {word}")
    page.locator("#node .list button").first.click()
    # Groups open and close, and more nodes are there while they are open.
    if page.locator("#open").is_visible():
        closed = nodes.count()
        page.locator("#graph .node[aria-label^=group]").first.focus()
        page.keyboard.press("Enter")
        expect(nodes.count() > closed, "a group opens")
        page.locator("#open").click()
    # Zoom and pan change the view.
    before = page.locator("#graph > g").get_attribute("transform")
    page.locator("#in").click()
    page.locator("#graph").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#graph > g").get_attribute("transform") != before, "the graph moves")
    page.locator("#fit").click()
    # Another stage, and one of its functions.
    page.locator("#stage").select_option(label="fuse")
    functions = page.locator("#functions button")
    expect(functions.count() > 1, "a fused stage has several functions")
    page.locator("#find").fill("call")
    page.keyboard.press("Enter")
    expect("call" in page.locator("#node").inner_text(), "search finds a call")
    shot("fused")
    functions.first.click()
    expect(nodes.count() > 1, "a function is drawn")
    page.locator("#functions summary").first.click()
    expect(not functions.first.is_visible(), "the list of functions folds")
    # The kernel of a call.
    page.locator("#stage").select_option(label="fuse")
    page.locator("#find").fill("@")
    page.locator("#find").focus()
    page.keyboard.press("Enter")
    link = page.locator("#node button", has_text="Show its kernel")
    if link.count():
        link.click()
        expect(page.locator("#tab-kernels").is_visible(), "a call leads to its kernel")
    # Differences between two stages.
    page.locator("#for-diff").click()
    page.locator("#from").select_option(label="outline")
    page.locator("#to").select_option(label="eqsat")
    expect(page.locator("#diff td.add").count() and page.locator("#diff td.del").count(), "there are differences")
    expect("come" in page.locator("#difference").inner_text(), "differences are counted")
    shot("diff")
    gap = page.locator("#diff td.gap button").first
    if gap.count():
        rows = page.locator("#diff tr").count()
        gap.click()
        expect(page.locator("#diff tr").count() > rows, "equal lines unfold")
    page.locator("#to").select_option(label="plan")
    # Kernels.
    page.locator("#for-kernels").click()
    launches = page.locator("#launches button")
    expect(launches.count() > 2, "launches are listed")
    launches.nth(1).click()
    texts = page.locator("#texts pre").all_inner_texts()
    expect(len(texts) == 3 and "kernel @" in texts[0] and "kernel @" in texts[1], "a kernel has its loops")
    expect("block0" in texts[2] or "ret" in texts[2], "a kernel has its machine code")
    shot("kernels")
    page.locator("#find-launch").fill("no such kernel")
    expect(launches.count() == 0, "launches are filtered")
    page.locator("#find-launch").fill("")
    # Memory.
    page.locator("#for-memory").click()
    expect("peak" in page.locator("#peak").inner_text(), "the peak is said")
    page.locator("#memory rect").first.focus()
    page.keyboard.press("Enter")
    expect("offset" in page.locator("#buffer").inner_text(), "a buffer tells where it is")
    shot("memory")
    # Weights.
    page.locator("#for-weights").click()
    rows = page.locator("#weights tbody tr")
    total = rows.count()
    expect(total > 1, "weights are listed")
    page.locator("#weights th button", has_text="Bytes").click()
    page.locator("#weights th button", has_text="Bytes").click()
    number = lambda i: int(rows.nth(i).locator("td").nth(3).inner_text().replace(",", ""))
    expect(number(0) >= number(1) >= number(total - 1), "weights are sorted by bytes")
    shot("weights")
    page.locator("#filter").fill("norm")
    expect(0 < rows.count() < total, "weights are filtered")
    # Tabs by keyboard, the theme, and no sideways scrolling of the page.
    page.locator("#for-weights").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#tab-memory").is_visible(), "arrow keys move between views")
    page.locator("#theme").click()
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    expect(wide <= 0, f"the page is {wide} pixels too wide")


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("page", type=pathlib.Path)
    args.add_argument("--shots", type=pathlib.Path, help="write screenshots here")
    args = args.parse_args()
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            for name, (width, height) in SIZES.items():
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
                page = context.new_page()
                wrong = []
                page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
                page.on("pageerror", lambda e: wrong.append(str(e)))
                page.on("request", lambda r: wrong.append(f"loads {r.url}") if not r.url.startswith("file:") else None)
                start = time.monotonic()
                page.goto(args.page.resolve().as_uri())
                page.wait_for_selector("#graph .node")
                print(f"{scheme} {name}: drawn after {time.monotonic() - start:.2f} s")

                def shot(view):
                    if args.shots:
                        args.shots.mkdir(parents=True, exist_ok=True)
                        page.screenshot(path=args.shots / f"{view}-{scheme}-{name}.png")

                walk(page, shot)
                expect(not wrong, f"{scheme} {name}: {wrong}")
                context.close()
        browser.close()
    print("page.py: all views hold")


if __name__ == "__main__":
    main()
