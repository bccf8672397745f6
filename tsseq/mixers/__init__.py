"""Every sequence mixer by name. To add one: a file beside this one, and a line here."""

from tsseq.mixers.base import SequenceMixer
from tsseq.mixers.gated_delta_product import GatedDeltaProduct
from tsseq.mixers.lru import LRU

MIXERS: dict[str, type[SequenceMixer]] = {
    "gated_delta_product": GatedDeltaProduct,
    "lru": LRU,
}
