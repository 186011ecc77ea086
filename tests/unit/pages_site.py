"""A server of run pages inside a test, and what a browser would be given."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html.parser import HTMLParser

from aiohttp.test_utils import TestClient, TestServer

from cluster.pages.access import access_to
from cluster.pages.app import make_app
from cluster.pages.library import Library
from tests.unit.synthetic_runs import write_offline
from tests.unit.watched_runs import write_empty, write_finished, write_running, write_torn

VOID = ("meta", "link", "input", "br", "hr")
PAGES = [
    "",
    "curves",
    "curves?board=attune-flow",
    "curves?board=attune-fleet",
    "curves?board=attune-memory&last=50",
    "rollouts",
    "rollouts?sort=score&order=asc&q=MUSEUM&from=1&most=9",
    "timeline",
    "timeline?window=60",
    "timeline?window=all",
    "faults",
    "config",
    "config?with=other",
]
SAMPLES = [
    "sample?id=2-20-1",
    "group?group=20&step=2",
    "group?group=20",
    "step?step=2",
    "prompt?row=6",
]


def write_one_of_each(folder):
    """One run of each kind, one of them deeper than the others."""
    write_finished(folder / "finished")
    write_running(folder / "running")
    write_torn(folder / "torn")
    write_empty(folder / "deep" / "empty")
    write_offline(folder / "sft", "sft")
    return folder


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    headers: object

    @property
    def page(self):
        return Html(self.text)


class Html(HTMLParser):
    """Text, tags and addresses of a page; raises where a tag is not closed."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.addresses, self.open = "", [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        given = dict(attrs)
        self.addresses += [given[key] for key in ("src", "href", "action") if key in given]
        assert not any(key.startswith("on") or key == "style" for key in given), (tag, given)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data


@asynccontextmanager
async def site(root, *, first=None, host="127.0.0.1", token=None, with_slots=True):
    """A client of the pages of a folder."""
    app = make_app(Library(root, first), access_to(host, token), with_slots=with_slots)
    async with TestClient(TestServer(app)) as client:
        yield client


async def read(client, path, method="GET", **options):
    async with client.request(method, path, allow_redirects=False, **options) as response:
        text = (await response.read()).decode()
        return Answer(response.status, text, response.headers)


def get(root, *paths, method="GET", options=None, **settings):
    """The answers to some requests; of one request, its answer."""

    async def ask():
        async with site(root, **settings) as client:
            return [await read(client, path, method, **(options or {})) for path in paths]

    answers = asyncio.run(ask())
    return answers[0] if len(answers) == 1 else answers


def asked(root, run, pages):
    """The answers for some pages of a run."""
    return get(root, *(f"/attune/run/{run}/{page}" for page in pages))
