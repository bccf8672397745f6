"""Every sequence mixer by name. To add one: a file beside this one, and a line here."""

from tsseq.mixers.base import SequenceMixer
from tsseq.mixers.efla import EFLA
from tsseq.mixers.gate_loop import GateLoop
from tsseq.mixers.gated_delta_product import GatedDeltaProduct
from tsseq.mixers.hgrn import HGRN
from tsseq.mixers.longhorn import Longhorn
from tsseq.mixers.lru import LRU
from tsseq.mixers.lstm import LSTM
from tsseq.mixers.min_gru import MinGRU
from tsseq.mixers.min_lstm import MinLSTM
from tsseq.mixers.s4d import S4D
from tsseq.mixers.s5 import S5
from tsseq.mixers.slstm import SLSTM

MIXERS: dict[str, type[SequenceMixer]] = {
    "efla": EFLA,
    "gate_loop": GateLoop,
    "gated_delta_product": GatedDeltaProduct,
    "hgrn": HGRN,
    "longhorn": Longhorn,
    "lru": LRU,
    "lstm": LSTM,
    "min_gru": MinGRU,
    "min_lstm": MinLSTM,
    "s4d": S4D,
    "s5": S5,
    "slstm": SLSTM,
}
