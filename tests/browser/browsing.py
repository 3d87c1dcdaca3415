"""A page in headless Chromium: what it printed, logged and drew."""

import re
import subprocess
from html import unescape
from pathlib import Path

from PIL import Image

# What Chromium itself says in a container, where there is no desktop, sound or GPU.
CONSOLE = re.compile(r":CONSOLE[:(]|Uncaught|Refused to|Failed to load resource")


def browse(chromium: str, page: Path, profile: Path, *options: str) -> tuple[str, str]:
    """What Chromium printed and what it logged, the page's console included."""
    done = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--disable-dev-shm-usage", f"--user-data-dir={profile}", "--enable-logging=stderr"),
            *(*options, page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return done.stdout, done.stderr


def drawn(chromium: str, page: Path, profile: Path) -> tuple[str, dict[str, str]]:
    """The document without its scripts once it is drawn, and each figure's own part by its title.

    The console has stayed empty.
    """
    dom, log = browse(chromium, page, profile, "--dump-dom", "--virtual-time-budget=2000")
    assert not CONSOLE.findall(log), log
    dom = re.sub(r"<(script|style)\b.*?</\1>", "", dom, flags=re.DOTALL)
    figures = re.findall(r'aria-label="([^"]*)"[^>]*>(.*?)</figure>', dom, re.DOTALL)
    for title, figure in figures:
        assert "main-svg" in figure and "NaN" not in figure, title
    return dom, {unescape(title): figure for title, figure in figures}


def shapes(figure: str) -> int:
    """How many bars, lines, dots or sectors a drawn figure has."""
    return len(re.findall(r'class="(?:point|js-line|slice)[ "]|<path class="point', figure))


def screenshot(chromium: str, page: Path, folder: Path, scheme: str, size: str) -> Path:
    """A picture of a page in a light or dark scheme; ``size`` is WIDTH,HEIGHT."""
    picture = folder / "page.png"
    setting = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    options = (f"--window-size={size}", f"--screenshot={picture}")
    browse(chromium, page, folder / "profile", setting, *options)
    return picture


def counted_colours(path: Path) -> dict[tuple[int, ...], int]:
    """Pixels of each colour in a picture."""
    with Image.open(path) as picture:
        rgb = picture.convert("RGB")
        found = rgb.getcolors(rgb.width * rgb.height) or []
        return {colour: n for n, colour in found if isinstance(colour, tuple)}
