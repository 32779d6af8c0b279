"""A headless Chromium and the page in it, as a user has it: what is seen, pressed, typed and dropped."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WAIT = 30  # seconds for what the browser has to show
HELD = ".held:not([hidden])"  # where a field for a picture has one
_NOTE = """
  window.sent = [];
  const before = window.fetch;
  window.fetch = (address, given) => {
    if (given?.body && String(address).endsWith("v1/jobs")) sent.push(given.body);
    return before(address, given);
  };
"""


@contextmanager
def chromium() -> Iterator[Any]:
    """It is driven from outside, through chromedriver."""
    pytest.importorskip("selenium", reason="needs selenium")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt install chromium chromium-driver)")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # it does not start as root with one
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = Chrome(options=options, service=Service(driver))
    opened.set_script_timeout(WAIT)
    try:
        yield opened
    finally:
        opened.quit()


class Page:
    """The page of the server at `url`. Elements are named by CSS selectors, buttons and fields by their labels."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser, self.url = browser, url

    def open(self, panel: str = "generate") -> None:
        """Anew: nothing is remembered of the test before."""
        self.browser.get(f"{self.url}/healthz")
        self.js("sessionStorage.clear(); localStorage.clear()")
        self.browser.get_log("browser")
        self.browser.get(f"{self.url}/#{panel}")
        self.until(lambda: self.find(f"#panel-{panel}:not([hidden])"))

    def ready(self) -> None:
        """The models are there, so that something can be drawn."""
        self.until(lambda: self.find(".form button[type=submit]:enabled"))

    @contextmanager
    def window(self, width: int, height: int = 740, colours: str = "light") -> Iterator[None]:
        """A window of this size, a phone's below 600 pixels, whose user likes these colours."""
        cdp = self.browser.execute_cdp_cmd
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        cdp("Emulation.setDeviceMetricsOverride", size)
        cdp("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": colours}]})
        try:
            yield
        finally:
            cdp("Emulation.clearDeviceMetricsOverride", {})
            cdp("Emulation.setEmulatedMedia", {"features": []})

    def find(self, selector: str) -> Any:
        """The first one, or None."""
        found = self.all(selector)
        return found[0] if found else None

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def js(self, script: str, *given: Any) -> Any:
        return self.browser.execute_script(script, *given)

    def text(self, selector: str) -> str:
        """Of the first one; nothing where there is none."""
        return self.js("return document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def texts(self, selector: str) -> list[str]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector)

    def until(self, true: Callable[[], Any], seconds: float = WAIT) -> Any:
        """What `true` gives once it is something; an element that went away meanwhile is asked for again."""
        from selenium.common.exceptions import StaleElementReferenceException

        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                found = true()
            except StaleElementReferenceException:
                continue
            if found:
                return found
            time.sleep(0.02)
        fields = self.js("return [...document.querySelectorAll('input, textarea, select')].map((one) => one.value)")
        raise AssertionError(
            f"not within {seconds} s; the page shows: {self.js('return document.body.innerText')}"
            f"\nits fields: {fields}\nits faults: {self.faults()}"
        )

    def button(self, label: str, within: str = "body") -> Any:
        """A button that is seen and can be pressed, by its text or its label; None where there is none."""
        return self.js(
            """
            const [label, within] = arguments;
            return [...document.querySelectorAll(`${within} button:enabled`)].find((one) => one.checkVisibility()
              && [one.getAttribute("aria-label"), one.firstChild?.textContent].includes(label)) ?? null
            """,
            label,
            within,
        )

    def press(self, label: str, within: str = "body") -> None:
        def pressed() -> bool:
            button = self.button(label, within)
            if button is not None:
                button.click()
            return button is not None

        self.until(pressed)

    def go(self, panel: str) -> None:
        """To another panel."""
        self.find(f"#tab-{panel}").click()
        self.until(lambda: self.find(f"#panel-{panel}:not([hidden])"))

    def field(self, label: str) -> Any:
        """The field of this label, which is brought into view."""
        ident = self.browser.find_element("xpath", f"//label[normalize-space()='{label}']").get_attribute("for")
        field = self.find(f"#{ident}")
        if not field.is_displayed():
            self.find(".settings summary").click()
        return field

    def write(self, label: str, value: object) -> None:
        """Into the field of this label, as typed."""
        field = self.field(label)
        if field.tag_name == "select":
            field.find_element("xpath", f"option[@value='{value}']").click()
            return
        field.clear()
        field.send_keys(str(value))

    def value(self, label: str) -> str:
        return str(self.js("return arguments[0].value", self.field(label)))

    def order(self, prompt: str, **settings: object) -> None:
        """Fill in the form, with settings by their labels in small letters, and press the button."""
        self.write("Prompt", prompt)
        for name, value in ({"guidance": 3, "seed": ""} | settings).items():
            self.write(name.capitalize(), value)
        self.find(".form button[type=submit]").click()

    def draw(self, prompt: str, **settings: object) -> None:
        """Order it and wait for the end; what is refused or fails, fails the test."""
        before = len(self.all(".job"))
        self.order(prompt, **{"steps": 4, "seed": 7, **settings})
        self.until(lambda: len(self.all(".job")) > before and not self.all(".job[data-state=open]"))
        assert self.find(".job").get_attribute("data-state") == "done", self.text(".job .status")

    def choose(self, file: Path, within: str = ".start") -> None:
        """A file for the picture that is asked for there."""
        self.find(f"{within} input[type=file]").send_keys(str(file))
        self.until(lambda: self.find(f"{within} {HELD}"))

    def note_jobs(self) -> None:
        """From now on, until the page is loaded again, note what it sends for `sent`."""
        self.js(_NOTE)

    def sent(self) -> Any:
        """The body of the last job."""
        return json.loads(self.js("return sent.at(-1)"))

    def keys(self, *keys: str) -> None:
        """Those that selenium names are held until the last one."""
        from selenium.webdriver import ActionChains

        chain = ActionChains(self.browser)
        for held in keys[:-1]:
            chain.key_down(held)
        chain.send_keys(keys[-1])
        for held in keys[:-1]:
            chain.key_up(held)
        chain.perform()

    def drop(self, *files: Path, at: tuple[int, int] = (400, 330)) -> None:
        """A real drop, of files and folders from outside the browser."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            given = {"type": kind, "x": at[0], "y": at[1], "data": data}
            self.browser.execute_cdp_cmd("Input.dispatchDragEvent", given)

    def faults(self) -> list[str]:
        """What the browser complained of since: scripts that failed, missing files, what the policy forbids."""
        return [line["message"] for line in self.browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]
