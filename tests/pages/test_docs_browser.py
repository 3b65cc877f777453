"""The documentation in a real browser: no console error, fits a phone, search finds."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.nightly
ROOT = Path(__file__).parents[2]
PHONE, DESKTOP = 390, 1280


@pytest.fixture(scope="module")
def site(built: Path) -> Iterator[str]:
    """Served: a browser lets no page read others from file://, and search shows summaries."""
    handler = functools.partial(Quiet, directory=str(built))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built as `make docs` does."""
    pytest.importorskip("furo")
    folder = tmp_path_factory.mktemp("html")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "docs", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("no chromedriver: install chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    chrome = webdriver.Chrome(options=options, service=service)
    yield chrome
    chrome.quit()


def resize(browser: Any, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def errors(browser: Any) -> list[dict[str, Any]]:
    """What the console says, but for the icon that a browser asks of every server by itself."""
    lines = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    return [line for line in lines if "/favicon.ico" not in line["message"]]


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_no_page_is_wider_than_the_screen_or_logs_an_error(
    built: Path, browser: Any, width: int
) -> None:
    resize(browser, width)
    pages = [p for p in built.rglob("*.html") if "_modules" not in p.parts]
    assert len(pages) > 20
    for page in pages:
        browser.get(page.as_uri())
        found = browser.execute_script("return document.documentElement.scrollWidth")
        assert found <= width, page.name
        assert not errors(browser), page.name
        assert all(
            browser.execute_script("return [...document.images].map(i => i.naturalWidth > 0)")
        ), page.name


def test_search_finds_and_navigation_leads_to_every_page_of_the_index(
    site: str, browser: Any
) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    resize(browser, DESKTOP)
    browser.get(f"{site}/search.html?q=sinkhorn")
    WebDriverWait(browser, 20).until(
        lambda b: b.find_elements("css selector", "#search-results li a")
    )
    browser.get(f"{site}/index.html")
    links = browser.find_elements("css selector", ".sidebar-tree a.reference.internal")
    targets = [link.get_attribute("href").split("#")[0] for link in links]
    assert len(targets) > 15
    for target in targets:
        browser.get(target)
        assert browser.find_element("css selector", "article h1").text
    assert not errors(browser)
