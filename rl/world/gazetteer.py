"""The town of the built-in world: 24 places and their facts, the ground truth of every answer.

The table is fixed: a seed draws requests and replies, never facts, so that a true answer stays true
between files written with different seeds. Each pair (kind, area) and each pair (kind, quality)
names exactly one place, so every request has one right subject.
"""

from dataclasses import dataclass

KINDS = ("cafe", "restaurant", "bakery", "museum", "bookshop", "theatre")
AREAS = ("old town", "new town", "harbour", "garden quarter")
ITEMS = {
    "cafe": "coffee",
    "restaurant": "dinner",
    "bakery": "cake",
    "museum": "ticket",
    "bookshop": "map",
    "theatre": "seat",
}
"""What the price of a place of each kind speaks of."""
QUALITIES = ("quiet", "cheap", "famous", "modern", "cosy", "small")
STOPS = ("bridge", "church", "station", "library", "fountain", "castle")

_TABLE = """
lantern   cafe       old town       quiet   8  18  4  3 bridge
anchor    cafe       harbour        cosy    6  20  3  5 station
teapot    cafe       new town       modern  9  22  5  1 library
maple     cafe       garden quarter small   7  17  4  2 fountain
swan      restaurant old town       famous 11  23 24  3 church
lobster   restaurant harbour        modern 10  22 20  5 bridge
pepper    restaurant new town       cheap   9  21 12  6 station
orchard   restaurant garden quarter quiet  11  20 15  2 castle
windmill  bakery     old town       small   6  16  5  4 church
captain   bakery     harbour        cheap   7  18  3  1 bridge
clover    bakery     new town       famous  8  19  6  6 library
rose      bakery     garden quarter cosy    9  17  4  4 fountain
crown     museum     old town       famous 10  18 12  3 castle
compass   museum     harbour        quiet   9  17  8  5 station
mirror    museum     new town       modern 11  21 10  1 fountain
butterfly museum     garden quarter small  10  16  6  2 library
owl       bookshop   old town       cosy    8  20  5  4 bridge
island    bookshop   harbour        small  10  19  3  6 church
arrow     bookshop   new town       cheap   9  18  2  1 station
feather   bookshop   garden quarter quiet  11  17  4  2 castle
phoenix   theatre    old town       cosy   11  23 20  3 fountain
harp      theatre    harbour        cheap   9  21 10  5 library
comet     theatre    new town       famous 10  23 24  6 castle
willow    theatre    garden quarter modern  8  22 15  4 church
"""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One place and its facts; hours are full hours of the day, prices are crowns."""

    name: str
    kind: str
    area: str
    quality: str
    opens: int
    closes: int
    price: int
    tram: int
    stop: str

    @property
    def item(self) -> str:
        """What `price` buys here."""
        return ITEMS[self.kind]


def _read(line: str) -> Place:
    name, kind, *area, quality, opens, closes, price, tram, stop = line.split()
    return Place(
        name=name,
        kind=kind,
        area=" ".join(area),
        quality=quality,
        opens=int(opens),
        closes=int(closes),
        price=int(price),
        tram=int(tram),
        stop=stop,
    )


PLACES: dict[str, Place] = {place.name: place for place in map(_read, _TABLE.strip().splitlines())}
"""By name."""

FIELDS = ("kind", "area", "quality", "opens", "closes", "price", "tram", "stop")
VALUES: dict[str, tuple[str, ...]] = {
    field: tuple(sorted({str(getattr(place, field)) for place in PLACES.values()}))
    for field in FIELDS
}
"""Every value that occurs in a field, as written in replies; wrong facts are drawn from here."""

QUESTIONS = ("find", "recommend", "opens", "closes", "price", "way")
ASKED: dict[str, tuple[str, ...]] = {
    "find": ("area",),
    "recommend": ("quality",),
    "opens": ("opens",),
    "closes": ("closes",),
    "price": ("price",),
    "way": ("tram", "stop"),
}
"""The facts that answer each question."""
