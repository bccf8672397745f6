"""Small classic series that ship with tsseq, for examples and tests.

airline      passengers of international airlines in thousands, monthly 1949-1960 (Box and Jenkins 1970)
lynx         lynx trapped in north-west Canada, yearly 1821-1934 (Elton and Nicholson 1942)
nile         flow of the Nile at Aswan in 10^8 m^3, yearly 1871-1970 (Cobb 1978)
nottingham   mean air temperature at Nottingham Castle in F, monthly 1920-1939 (Anderson 1976)
sunspots     mean relative sunspot number, yearly 1700-1988 (Tong 1990)
"""

from pathlib import Path

from tsseq.datasets.csv import load as load_file
from tsseq.datasets.panel import Panel

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the bundled series."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def load(name: str) -> Panel:
    """A bundled series by name, as a panel of one. Raises ValueError for other names."""
    if name not in names():
        raise ValueError(f"no bundled series {name!r}: expected {', '.join(names())}")
    return load_file(FOLDER / f"{name}.csv")
